#include "io/pace.h"

#include "base/sync.h"

/* Rounds after which the outage is taken to be a long one: with default
 * options they last 7 s on the average, and 12 s at most. */
enum { SHORT_ROUNDS = 3 };
#define LEAST_PAUSE_NS (10 * FM_NS_PER_MS)

static int64_t
interval(const fm_pace *pace, unsigned rounds)
{
    int64_t growth;

    if (pace->step_ns == 0)
        return pace->start_ns;
    if (rounds > SHORT_ROUNDS)
        return pace->start_ns + pace->max_ns;
    growth = pace->step_ns * (int64_t)(rounds - 1);
    return pace->start_ns + (growth < pace->max_ns ? growth : pace->max_ns);
}

static int64_t
below(int64_t bound, uint64_t dice)
{
    return (int64_t)(dice % ((uint64_t)bound + 1));
}

int64_t
fm_pace_pause(const fm_pace *pace, unsigned rounds, uint64_t dice)
{
    int64_t most = interval(pace, rounds), least = 0;

    if (rounds <= SHORT_ROUNDS)
        least = most / 10; /* so that nobody spins */
    else if (rounds > SHORT_ROUNDS + 1)
        least = most / 10 * 9;
    return LEAST_PAUSE_NS + least + below(most - least, dice);
}

int64_t
fm_pace_lag(const fm_pace *pace, unsigned rounds, uint64_t dice)
{
    return below(interval(pace, rounds) / 10, dice);
}
