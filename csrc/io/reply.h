/* Who is waiting for which reply.
 *
 * Caller threads expect and take; the I/O thread delivers. Nothing here
 * knows of sockets or of Python.
 */
#ifndef FM_IO_REPLY_H
#define FM_IO_REPLY_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/counter.h"
#include "base/idmap.h"
#include "base/status.h"
#include "base/sync.h"
#include "io/message.h"

typedef struct fm_reply_table {
    /* A leaf: its holder takes no other lock, no GIL, and calls nobody. */
    fm_mutex lock;
    fm_idmap calls FM_GUARDED_BY(lock); /* msg_id -> fm_message, shared */
    fm_counter late;                    /* replies that nobody waited for */
    fm_histogram round_trips;           /* from _expect to the ending reply */
} fm_reply_table;

void fm_reply_table_init(fm_reply_table *table);
void fm_reply_table_fini(fm_reply_table *table); /* nobody may wait */

/* Start expecting replies to call->msg_id. Do this before submitting the
 * call, or the reply may come before anybody expects it. FM_FULL: a call with
 * this id is waiting already. */
FM_MUST_CHECK fm_status fm_reply_expect(
    fm_reply_table *table, fm_message *call);

/* Stop expecting; replies that were not taken are dropped with the call. */
void fm_reply_forget(fm_reply_table *table, fm_message *call);

/* I/O thread: give one reply to its caller and wake it. FM_OK takes *body
 * and leaves it empty; FM_NOT_FOUND, a late reply or one too many, leaves
 * it. `is_msgpack` says which envelope it is in. */
FM_MUST_CHECK fm_status fm_reply_deliver(fm_reply_table *table,
    const fm_reply_head *head, bool is_msgpack, fm_buf *body);

/* The next reply to `call`; NULL: none yet. The caller frees it with
 * fm_reply_free(). */
fm_reply *fm_reply_try_take(fm_reply_table *table, fm_message *call);
bool fm_reply_is_there(fm_reply_table *table, fm_message *call);
void fm_reply_free(fm_reply *reply);

/* Fail the waiting calls whose replies come through the consumer with this
 * gate; NULL: every call, for a bus that is given up. */
void fm_reply_fail_all(
    fm_reply_table *table, const struct fm_gate *gate, const fm_error *error);

size_t fm_reply_waiting(fm_reply_table *table);

#endif
