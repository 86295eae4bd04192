#include "io/message.h"

#include "base/event.h"
#include "io/gate.h"
#include "io/topology.h"

#include <stdlib.h>

enum { NAME_MAX_BYTES = 255 }; /* shortstr: AMQP 0-9-1 section 4.2.5.3 */

fm_status
fm_message_new(fm_lane lane, const char *exchange, const char *routing_key,
    fm_message **out)
{
    fm_message *message;

    if (strlen(exchange) > NAME_MAX_BYTES
        || strlen(routing_key) > NAME_MAX_BYTES)
        return FM_TOO_LARGE;
    message = calloc(1, sizeof(*message));
    if (message == NULL)
        return FM_NO_MEMORY;
    atomic_init(&message->refs, 1);
    fm_wake_init(&message->wake);
    atomic_init(&message->status, FM_AGAIN);
    atomic_init(&message->ended, false);
    message->lane = lane;
    message->retry = FM_RETRY_FOREVER;
    message->hold_ns = FM_NEVER;
    message->give_up = FM_NEVER;
    message->exchange = strdup(exchange);
    message->routing_key = strdup(routing_key);
    if (message->exchange == NULL || message->routing_key == NULL) {
        fm_message_unref(message);
        return FM_NO_MEMORY;
    }
    *out = message;
    return FM_OK;
}

fm_message *
fm_message_ref(fm_message *message)
{
    atomic_fetch_add_explicit(&message->refs, 1, memory_order_relaxed);
    return message;
}

void
fm_message_unref(fm_message *message)
{
    if (message == NULL
        || atomic_fetch_sub_explicit(&message->refs, 1, memory_order_acq_rel)
            > 1)
        return;
    while (message->replies != NULL) {
        fm_reply *reply = message->replies;

        message->replies = reply->next;
        fm_buf_fini(&reply->body);
        free(reply);
    }
    fm_topology_unref(message->topology);
    fm_gate_unref(message->gate);
    fm_buf_fini(&message->body);
    free(message->routing_key);
    free(message->exchange);
    free(message);
}

void
fm_message_finish(fm_message *message, const fm_error *error)
{
    if (atomic_exchange(&message->ended, true))
        return;
    if (error != NULL)
        message->error = *error;
    atomic_store_explicit(&message->status,
        (int)(error == NULL ? FM_OK : error->status), memory_order_release);
    fm_wake_all(&message->wake);
}

void
fm_message_describe(
    const fm_message *message, const fm_error *cause, fm_error *out)
{
    bool is_default = message->exchange[0] == '\0';

    (void)fm_error_set(out, cause->status, cause->code,
        "message to %s%s%s with routing key '%s': %s",
        is_default ? "the default exchange" : "exchange '", message->exchange,
        is_default ? "" : "'", message->routing_key, cause->text);
}

/* --- messages that are done with --- */

void
fm_settled_add(fm_settled *list, fm_message *message)
{
    message->place = FM_PLACE_CALLER;
    message->prev = message->next = NULL;
    if (list->first == NULL)
        list->first = message;
    else
        list->last->next = message;
    list->last = message;
}

static void
finish_failed(fm_message *message, const fm_error *cause)
{
    fm_error own;

    fm_message_describe(message, cause, &own);
    if (message->handed_over && cause->status != FM_CLOSED)
        fm_event_post(FM_WARNING, "dropped the reply: %s", own.text);
    fm_message_finish(message, &own);
}

void
fm_settled_finish(fm_settled *list, const fm_error *error)
{
    for (fm_message *each = list->first; each != NULL; each = each->next)
        if (error != NULL)
            finish_failed(each, error);
        else if (each->msg_id[0] == '\0')
            fm_message_finish(each, NULL);
    fm_settled_drop(list);
}

void
fm_settled_drop(fm_settled *list)
{
    fm_message *message = list->first;

    while (message != NULL) {
        fm_message *next = message->next;

        message->next = NULL;
        fm_message_unref(message);
        message = next;
    }
    *list = (fm_settled){ NULL, NULL };
}
