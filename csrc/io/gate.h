/* What has to be in place before a message may go: for a call, that its
 * reply queue exists and is consumed.
 *
 * A consumer opens and shuts its gate (I/O thread); a publisher looks at it
 * before it sends. Shared by count, so that neither needs the other to live.
 */
#ifndef FM_IO_GATE_H
#define FM_IO_GATE_H

#include "base/attrs.h"
#include "base/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum fm_gate_state {
    FM_GATE_SHUT,   /* not yet: wait */
    FM_GATE_OPEN,   /* go */
    FM_GATE_BROKEN, /* never: the broker refused; see error */
} fm_gate_state;

typedef struct fm_gate {
    atomic_uint refs;
    atomic_int state;
    fm_error error; /* FM_CLOSED unless set before FM_GATE_BROKEN */
    /* What it was when the publisher saw it first in its walk of that number:
     * guarded by the publisher's lock, see publish.c. */
    uint64_t walk;
    bool was_open;
} fm_gate;

FM_MUST_CHECK fm_status fm_gate_new(fm_gate **out); /* shut */
fm_gate *fm_gate_ref(fm_gate *gate);
void fm_gate_unref(fm_gate *gate); /* NULL is allowed */

static inline fm_gate_state
fm_gate_state_get(fm_gate *gate)
{
    return (fm_gate_state)atomic_load_explicit(
        &gate->state, memory_order_acquire);
}

/* I/O thread only. */
static inline void
fm_gate_set(fm_gate *gate, fm_gate_state state)
{
    atomic_store_explicit(&gate->state, state, memory_order_release);
}

#endif
