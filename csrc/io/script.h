/* Methods that a channel sends in one go, and the answers it expects.
 *
 * Everything that a channel does to set itself up (open, qos, declare, bind,
 * consume) is pipelined: the broker works through it in order, and an error
 * closes the channel, which voids the rest. So a script is just bytes and a
 * list of method ids to tick off.
 */
#ifndef FM_IO_SCRIPT_H
#define FM_IO_SCRIPT_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "io/amqp.h"

#include <stdint.h>

typedef struct fm_script {
    uint16_t channel;
    fm_buf frames;    /* owned: complete method frames */
    uint32_t *expect; /* owned: ids of the answers, in order */
    size_t count;
    size_t cap;
} fm_script;

void fm_script_init(fm_script *script, uint16_t channel);
void fm_script_fini(fm_script *script);

/* Expect `method_id` as the next answer. Each add_ below sends one method
 * and expects its answer. A failed one leaves the script unusable. */
FM_MUST_CHECK fm_status fm_script_expect(fm_script *script, uint32_t method_id);

FM_MUST_CHECK fm_status fm_script_add_open(fm_script *script);
FM_MUST_CHECK fm_status fm_script_add_confirm(fm_script *script);
FM_MUST_CHECK fm_status fm_script_add_qos(fm_script *script, uint16_t prefetch);
/* `passive`: only look for it. */
FM_MUST_CHECK fm_status fm_script_add_exchange(
    fm_script *script, const fm_exchange *exchange, bool passive);
FM_MUST_CHECK fm_status fm_script_add_queue(
    fm_script *script, const fm_queue *queue, bool passive);
/* Passive: is there a queue of this name? 404 if not. */
FM_MUST_CHECK fm_status fm_script_add_queue_look(
    fm_script *script, const char *name);
FM_MUST_CHECK fm_status fm_script_add_bind(fm_script *script, const char *queue,
    const char *exchange, const char *routing_key);
/* `arguments` may be NULL: none. */
FM_MUST_CHECK fm_status fm_script_add_consume(fm_script *script,
    const char *queue, const char *tag, const fm_table *arguments);
FM_MUST_CHECK fm_status fm_script_add_cancel(
    fm_script *script, const char *tag);
FM_MUST_CHECK fm_status fm_script_add_delete(
    fm_script *script, const char *queue);
/* If nobody consumes from it; `if_empty`: and there is nothing in it. */
FM_MUST_CHECK fm_status fm_script_add_delete_unused(
    fm_script *script, const char *queue, bool if_empty);
FM_MUST_CHECK fm_status fm_script_add_close(fm_script *script);

#endif
