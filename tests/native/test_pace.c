/* io/pace.h, by a thousand clients that live in this test only. */
#include "io/pace.h"

#include "base/sync.h"
#include "check.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define S FM_NS_PER_S

enum { CLIENTS = 1000, LONGEST_S = 45 };

/* The stock driver's options, as they are unless set. */
static const fm_pace usual = { 2 * S, 2 * S, 30 * S, 0 };

static uint64_t chance = 1;

/* splitmix64: the same in each run. */
static uint64_t
draw(void)
{
    uint64_t z = chance += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

typedef struct herd {
    int most;      /* connections within a second */
    int64_t last;  /* when, after the broker was back */
    int64_t total; /* waited by all */
} herd;

/* All lose both connections at 0, and the broker is back at `outage`. */
static herd
come_back(int64_t outage)
{
    int per_second[LONGEST_S] = { 0 };
    herd found = { 0 };

    for (int i = 0; i < CLIENTS; i++) {
        int64_t at = 0, both[2];
        unsigned rounds = 0;

        while (at < outage)
            at += fm_pace_pause(&usual, ++rounds, draw());
        both[0] = at - outage;
        both[1] = both[0] + fm_pace_lag(&usual, rounds, draw());
        for (int k = 0; k < 2; k++) {
            CHECK(both[k] < LONGEST_S * S);
            per_second[both[k] / S]++;
        }
        found.last = both[1] > found.last ? both[1] : found.last;
        found.total += both[1];
    }
    for (int second = 0; second < LONGEST_S; second++)
        if (per_second[second] > found.most)
            found.most = per_second[second];
    return found;
}

static void
a_thousand_clients_come_back_evenly_after_20_s_or_more(void)
{
    static const int outages_s[] = { 20, 21, 23, 25, 30, 40, 60, 120, 600 };

    for (size_t i = 0; i < sizeof(outages_s) / sizeof(outages_s[0]); i++) {
        herd found = come_back(outages_s[i] * S);

        fprintf(stderr, "  %d s: %d/s at most, the last after %.1f s\n",
            outages_s[i], found.most, (double)found.last / 1e9);
        CHECK(found.most <= 100);
        CHECK(found.last <= 36 * S);
    }
}

/* What an even spread costs is not paid for a broker that restarts. */
static void
a_short_outage_is_over_soon(void)
{
    herd found = come_back(4 * S);

    CHECK(found.total / CLIENTS < 5 * S);
}

static void
nobody_spins_and_nobody_waits_longer_than_the_interval(void)
{
    for (unsigned rounds = 1; rounds < 100; rounds++)
        for (int i = 0; i < 1000; i++) {
            int64_t pause = fm_pace_pause(&usual, rounds, draw());

            CHECK(pause >= 10 * FM_NS_PER_MS);
            CHECK(pause <= 32 * S + 10 * FM_NS_PER_MS);
            if (rounds <= 3)
                CHECK(pause <= 2 * rounds * S + 10 * FM_NS_PER_MS);
            if (rounds > 4)
                CHECK(pause >= 28 * S);
            CHECK(fm_pace_lag(&usual, rounds, draw()) <= 32 * S / 10);
        }
}

/* As the options say: it is the later ones that are longer. */
static void
the_first_pause_is_from_the_first_interval(void)
{
    for (int i = 0; i < 1000; i++) {
        int64_t pause = fm_pace_pause(&usual, 1, draw());

        CHECK(pause >= 2 * S / 10);
        CHECK(pause <= 2 * S + 10 * FM_NS_PER_MS);
    }
}

static void
an_interval_that_does_not_grow_stays(void)
{
    static const fm_pace steady = { S, 0, 30 * S, 0 }, none = { 1, 0, 0, 0 };

    for (unsigned rounds = 1; rounds < 100; rounds++) {
        CHECK(fm_pace_pause(&steady, rounds, draw()) <= S + 10 * FM_NS_PER_MS);
        CHECK(fm_pace_pause(&none, rounds, draw()) <= 11 * FM_NS_PER_MS);
        CHECK_INT(fm_pace_lag(&none, rounds, draw()), 0);
    }
}

static void
a_small_maximum_bounds_the_growth(void)
{
    static const fm_pace small = { S, 10 * S, 3 * S, 0 };

    for (unsigned rounds = 1; rounds < 10; rounds++)
        for (int i = 0; i < 100; i++)
            CHECK(fm_pace_pause(&small, rounds, draw())
                <= 4 * S + 10 * FM_NS_PER_MS);
}

int
main(void)
{
    RUN(a_thousand_clients_come_back_evenly_after_20_s_or_more);
    RUN(a_short_outage_is_over_soon);
    RUN(nobody_spins_and_nobody_waits_longer_than_the_interval);
    RUN(the_first_pause_is_from_the_first_interval);
    RUN(an_interval_that_does_not_grow_stays);
    RUN(a_small_maximum_bounds_the_growth);
    return 0;
}
