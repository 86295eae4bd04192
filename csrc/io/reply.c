#include "io/reply.h"

#include <stdlib.h>

void
fm_reply_table_init(fm_reply_table *table)
{
    fm_mutex_init(&table->lock);
    fm_idmap_init(&table->calls);
    atomic_init(&table->late, 0);
    memset(&table->round_trips, 0, sizeof(table->round_trips));
}

void
fm_reply_table_fini(fm_reply_table *table)
{
    fm_idmap_fini(&table->calls);
    fm_mutex_fini(&table->lock);
}

fm_status
fm_reply_expect(fm_reply_table *table, fm_message *call)
{
    int64_t now = fm_now();
    fm_status status;

    fm_mutex_lock(&table->lock);
    status = fm_idmap_put(&table->calls, call->msg_id, call);
    if (status == FM_OK) {
        call->expected = true;
        call->asked = now;
        fm_message_ref(call);
    }
    fm_mutex_unlock(&table->lock);
    return status;
}

void
fm_reply_forget(fm_reply_table *table, fm_message *call)
{
    bool expected;

    fm_mutex_lock(&table->lock);
    expected = call->expected;
    call->expected = false;
    if (expected)
        (void)fm_idmap_take(&table->calls, call->msg_id);
    fm_mutex_unlock(&table->lock);
    if (expected)
        fm_message_unref(call);
}

/* Its caller would wait for a reply that was here. */
static void
fail_one(fm_reply_table *table, const char *msg_id, const fm_error *error)
{
    fm_message *call;

    fm_mutex_lock(&table->lock);
    call = fm_idmap_get(&table->calls, msg_id);
    if (call != NULL)
        fm_message_finish(call, error); /* wakes only: calls nobody */
    fm_mutex_unlock(&table->lock);
}

fm_status
fm_reply_deliver(fm_reply_table *table, const fm_reply_head *head,
    bool is_msgpack, fm_buf *body)
{
    static const fm_error no_memory = { .status = FM_NO_MEMORY,
        .text = "a reply came, but there was no memory for it" };
    int64_t asked = 0;
    fm_message *call;
    fm_reply *reply = malloc(sizeof(*reply));

    if (reply == NULL) {
        if (head->ending)
            fail_one(table, head->msg_id, &no_memory);
        return FM_NO_MEMORY;
    }
    *reply = (fm_reply){
        .body = *body, .ending = head->ending, .is_msgpack = is_msgpack
    };

    fm_mutex_lock(&table->lock);
    call = fm_idmap_get(&table->calls, head->msg_id);
    if (call != NULL && fm_message_status(call) != FM_AGAIN)
        call = NULL; /* it has ended, and is about to be forgotten */
    if (call != NULL) {
        if (call->replies == NULL)
            call->replies = reply;
        else
            call->last_reply->next = reply;
        call->last_reply = reply;
        asked = call->asked;
        fm_message_ref(call); /* outlives the lock, whoever forgets it */
    }
    fm_mutex_unlock(&table->lock);
    if (call == NULL) {
        fm_counter_add(&table->late, 1);
        free(reply);
        return FM_NOT_FOUND;
    }
    fm_buf_init(body); /* the call's now */
    if (head->ending) {
        fm_histogram_add(&table->round_trips, fm_now() - asked);
        fm_message_finish(call, NULL);
    } else {
        fm_wake_all(&call->wake);
    }
    fm_message_unref(call);
    return FM_OK;
}

fm_reply *
fm_reply_try_take(fm_reply_table *table, fm_message *call)
{
    fm_reply *reply;

    fm_mutex_lock(&table->lock);
    reply = call->replies;
    if (reply != NULL)
        call->replies = reply->next;
    fm_mutex_unlock(&table->lock);
    return reply;
}

bool
fm_reply_is_there(fm_reply_table *table, fm_message *call)
{
    bool is_there;

    fm_mutex_lock(&table->lock);
    is_there = call->replies != NULL;
    fm_mutex_unlock(&table->lock);
    return is_there;
}

void
fm_reply_free(fm_reply *reply)
{
    if (reply == NULL)
        return;
    fm_buf_fini(&reply->body);
    free(reply);
}

void
fm_reply_fail_all(
    fm_reply_table *table, const struct fm_gate *gate, const fm_error *error)
{
    size_t cursor = 0;
    fm_message *call;

    fm_mutex_lock(&table->lock);
    while ((call = fm_idmap_next(&table->calls, &cursor)) != NULL)
        if (gate == NULL || call->gate == gate)
            fm_message_finish(call, error); /* wakes only: calls nobody */
    fm_mutex_unlock(&table->lock);
}

size_t
fm_reply_waiting(fm_reply_table *table)
{
    size_t len;

    fm_mutex_lock(&table->lock);
    len = table->calls.len;
    fm_mutex_unlock(&table->lock);
    return len;
}
