/* What it costs to count: less than 100 ns for each event.
 *
 * Counted where others do not count at the same moment, as in the core: most
 * events happen with a lock held or in the I/O thread.
 */
#include "base/counter.h"

#include "check.h"

#include "base/sync.h"

enum { EVENTS = 200000, RUNS = 11 };
#define LIMIT_NS 100.0

static fm_counter counter;
static fm_histogram times;

static void
count(void)
{
    for (int i = 0; i < EVENTS; i++)
        fm_counter_add(&counter, 1);
}

/* The end of a call: the clock is read for it, as it is at its beginning. */
static void
end_calls(void)
{
    int64_t begin = fm_now();

    for (int i = 0; i < EVENTS; i++)
        fm_histogram_add(&times, fm_now() - begin);
}

/* Nanoseconds for each event: the median of some runs, so that a moment
 * without the processor does not count. */
static double
cost(void (*body)(void))
{
    double found[RUNS];

    for (int run = 0; run < RUNS; run++) {
        int64_t begin = fm_now();
        int at = run;
        double ns;

        body();
        ns = (double)(fm_now() - begin) / EVENTS;
        for (; at > 0 && found[at - 1] > ns; at--)
            found[at] = found[at - 1];
        found[at] = ns;
    }
    return found[RUNS / 2];
}

static void
an_event_costs_less_than_100_ns(void)
{
    double counted = cost(count), timed = cost(end_calls);

    printf("a counter: %.1f ns\nthe end of a call, with a look at the clock: "
           "%.1f ns\n",
        counted, timed);
    fflush(stdout);
    CHECK(counted < LIMIT_NS);
    CHECK(timed < LIMIT_NS);
}

int
main(void)
{
    RUN(an_event_costs_less_than_100_ns);
    return 0;
}
