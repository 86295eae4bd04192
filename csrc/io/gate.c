#include "io/gate.h"

#include <stdlib.h>

fm_status
fm_gate_new(fm_gate **out)
{
    fm_gate *gate = calloc(1, sizeof(*gate));

    if (gate == NULL)
        return FM_NO_MEMORY;
    atomic_init(&gate->refs, 1);
    atomic_init(&gate->state, FM_GATE_SHUT);
    (void)fm_error_set(
        &gate->error, FM_CLOSED, 0, "the consumer of its replies was closed");
    *out = gate;
    return FM_OK;
}

fm_gate *
fm_gate_ref(fm_gate *gate)
{
    atomic_fetch_add_explicit(&gate->refs, 1, memory_order_relaxed);
    return gate;
}

void
fm_gate_unref(fm_gate *gate)
{
    if (gate != NULL
        && atomic_fetch_sub_explicit(&gate->refs, 1, memory_order_acq_rel) == 1)
        free(gate);
}
