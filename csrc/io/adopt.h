/* Exchanges and queues that exist with other flags than ours, or that we may
 * not declare, are used as they are.
 *
 * The broker refuses such a declaration and closes the channel. Its text says
 * which one it was; from then on that is only looked for (a passive
 * declaration), and the next attempt gets further. So a deployment can change
 * an option process by process, and a user without permission to configure can
 * work with what the operator has set up.
 */
#ifndef FM_IO_ADOPT_H
#define FM_IO_ADOPT_H

#include "base/attrs.h"
#include "io/amqp.h"
#include "io/topology.h"

#include <stdbool.h>

/* What a refusal says; slices point into its text. */
typedef struct fm_refusal {
    bool is_queue; /* else an exchange */
    fm_slice name;
    fm_slice virtual_host;
    fm_slice argument; /* that differs; empty: access was refused */
    fm_slice details;
} fm_refusal;

/* False: it is about something else. */
FM_MUST_CHECK bool fm_refusal_read(const fm_close *why, fm_refusal *out);

/* A channel that declared `topology` was closed. True: try again at once, as
 * the topology was changed; said in the log, once per process and thing. The
 * I/O thread's. */
FM_MUST_CHECK bool fm_adopt(fm_topology *topology, const fm_close *why);

#endif
