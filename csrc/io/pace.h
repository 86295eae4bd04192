/* When to try again after every host failed.
 *
 * Pure functions: chance is what the caller brings. Many clients that lost
 * their broker in the same moment must not come back in the same one, and one
 * client alone should not wait for long. So the first few pauses are short,
 * of random length; if the outage goes on, one pause is drawn from the whole of
 * the longest interval, and from then on each lasts about as long as that. So
 * everybody keeps the moment that fell to him, and a thousand clients are
 * spread evenly over the interval, however long it takes. If each pause was
 * drawn anew, twice as many would come in the second after the broker is back.
 */
#ifndef FM_IO_PACE_H
#define FM_IO_PACE_H

#include <stdint.h>

typedef struct fm_pace {
    int64_t start_ns; /* the interval after the first failed round, ... */
    int64_t step_ns;  /* ... more after each further one, ... */
    int64_t max_ns;   /* ... up to start + this, and that after a few */
    int64_t splay_ns; /* at most so much more, which the caller adds */
} fm_pace;

/* How long to wait after so many rounds, 1 or more, failed in a row. `dice`:
 * any number is as likely as any other. */
int64_t fm_pace_pause(const fm_pace *pace, unsigned rounds, uint64_t dice);

/* How long after one connection of a process its other one may try: both are
 * needed, but not in the same moment as all others'. */
int64_t fm_pace_lag(const fm_pace *pace, unsigned rounds, uint64_t dice);

#endif
