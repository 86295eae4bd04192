/* Counts of what happens, and how long it took, for others to look at.
 *
 * Any thread counts, any thread looks, nobody waits: each number is an atomic
 * of its own. So two of them that are read one after the other may be of
 * different moments; each by itself is exact, and none ever goes back.
 */
#ifndef FM_BASE_COUNTER_H
#define FM_BASE_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

typedef atomic_uint_fast64_t fm_counter;

static inline void
fm_counter_add(fm_counter *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t
fm_counter_get(const fm_counter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* 2^30 us, the upper bound of the last bucket but one, are 18 minutes. */
enum { FM_HISTOGRAM_BUCKETS = 32 };

/* Durations: bucket i counts those below 2^i microseconds that are in no
 * bucket before it, the last one all that are longer. */
typedef struct fm_histogram {
    fm_counter buckets[FM_HISTOGRAM_BUCKETS];
    fm_counter sum_us;
} fm_histogram;

static inline unsigned
fm_histogram_index(int64_t ns)
{
    uint64_t us = ns <= 0 ? 0 : (uint64_t)ns / 1000;
    unsigned bits = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);

    return bits < FM_HISTOGRAM_BUCKETS ? bits : FM_HISTOGRAM_BUCKETS - 1;
}

static inline void
fm_histogram_add(fm_histogram *histogram, int64_t ns)
{
    fm_counter_add(&histogram->buckets[fm_histogram_index(ns)], 1);
    fm_counter_add(&histogram->sum_us, ns <= 0 ? 0 : (uint64_t)ns / 1000);
}

#endif
