/* Counters and histograms: exact from any number of threads. */
#include "base/counter.h"

#include "check.h"

#include "base/sync.h"

#define US INT64_C(1000)

enum { THREADS = 4, ROUNDS = 20000 };

static fm_counter shared;
static fm_histogram times;

static void
a_duration_is_in_the_first_bucket_that_has_room_for_it(void)
{
    CHECK_INT(fm_histogram_index(-5), 0);
    CHECK_INT(fm_histogram_index(0), 0);
    CHECK_INT(fm_histogram_index(US - 1), 0);
    CHECK_INT(fm_histogram_index(US), 1);
    CHECK_INT(fm_histogram_index(2 * US - 1), 1);
    CHECK_INT(fm_histogram_index(2 * US), 2);
    for (unsigned i = 1; i < FM_HISTOGRAM_BUCKETS - 1; i++) {
        CHECK_INT(fm_histogram_index((INT64_C(1) << i) * US - 1), i);
        CHECK_INT(fm_histogram_index((INT64_C(1) << i) * US), i + 1);
    }
    CHECK_INT(fm_histogram_index(INT64_MAX), FM_HISTOGRAM_BUCKETS - 1);
}

static void
the_sum_is_in_microseconds(void)
{
    static fm_histogram one;

    fm_histogram_add(&one, 1500 * US);
    fm_histogram_add(&one, 500 * US);
    fm_histogram_add(&one, -1);
    CHECK_INT(fm_counter_get(&one.sum_us), 2000);
    CHECK_INT(fm_counter_get(&one.buckets[0]), 1);
    CHECK_INT(fm_counter_get(&one.buckets[9]), 1);
    CHECK_INT(fm_counter_get(&one.buckets[11]), 1);
}

static void *
count_often(void *arg)
{
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        fm_counter_add(&shared, 2);
        fm_histogram_add(&times, i * US);
    }
    return NULL;
}

static void
nothing_is_lost_between_threads(void)
{
    fm_thread threads[THREADS];
    uint64_t sum = 0, last = 0;

    for (int i = 0; i < THREADS; i++)
        CHECK_INT(
            fm_thread_start(&threads[i], "counts", count_often, NULL), FM_OK);
    while (last < 2 * THREADS * ROUNDS) { /* and it never goes back */
        uint64_t now = fm_counter_get(&shared);

        CHECK(now >= last);
        last = now;
    }
    for (int i = 0; i < THREADS; i++)
        fm_thread_join(&threads[i]);
    CHECK_INT(fm_counter_get(&shared), 2 * THREADS * ROUNDS);
    for (int i = 0; i < FM_HISTOGRAM_BUCKETS; i++)
        sum += fm_counter_get(&times.buckets[i]);
    CHECK_INT(sum, THREADS * ROUNDS);
    CHECK_INT(fm_counter_get(&times.sum_us),
        THREADS * (INT64_C(1) * ROUNDS * (ROUNDS - 1) / 2));
}

int
main(void)
{
    RUN(a_duration_is_in_the_first_bucket_that_has_room_for_it);
    RUN(the_sum_is_in_microseconds);
    RUN(nothing_is_lost_between_threads);
    return 0;
}
