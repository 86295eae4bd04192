#include "io/script.h"

#include <stdlib.h>

void
fm_script_init(fm_script *script, uint16_t channel)
{
    *script = (fm_script){ .channel = channel };
}

void
fm_script_fini(fm_script *script)
{
    fm_buf_fini(&script->frames);
    free(script->expect);
    fm_script_init(script, 0);
}

fm_status
fm_script_expect(fm_script *script, uint32_t method_id)
{
    if (script->count == script->cap) {
        size_t cap = script->cap == 0 ? 8 : script->cap * 2;
        uint32_t *expect =
            realloc(script->expect, cap * sizeof(*script->expect));

        if (expect == NULL)
            return FM_NO_MEMORY;
        script->expect = expect;
        script->cap = cap;
    }
    script->expect[script->count++] = method_id;
    return FM_OK;
}

/* What every add_ is: the frame was appended, now its answer. */
static fm_status
sent(fm_script *script, fm_status status, uint32_t answer)
{
    return status == FM_OK ? fm_script_expect(script, answer) : status;
}

fm_status
fm_script_add_open(fm_script *script)
{
    return sent(script,
        fm_amqp_put_channel_open(&script->frames, script->channel),
        FM_METHOD_CHANNEL_OPEN_OK);
}

fm_status
fm_script_add_confirm(fm_script *script)
{
    return sent(script,
        fm_amqp_put_confirm_select(&script->frames, script->channel),
        FM_METHOD_CONFIRM_SELECT_OK);
}

fm_status
fm_script_add_qos(fm_script *script, uint16_t prefetch)
{
    return sent(script,
        fm_amqp_put_basic_qos(&script->frames, script->channel, prefetch),
        FM_METHOD_BASIC_QOS_OK);
}

fm_status
fm_script_add_exchange(
    fm_script *script, const fm_exchange *exchange, bool passive)
{
    return sent(script,
        fm_amqp_put_exchange_declare(
            &script->frames, script->channel, exchange, passive),
        FM_METHOD_EXCHANGE_DECLARE_OK);
}

fm_status
fm_script_add_queue(fm_script *script, const fm_queue *queue, bool passive)
{
    return sent(script,
        fm_amqp_put_queue_declare(
            &script->frames, script->channel, queue, passive),
        FM_METHOD_QUEUE_DECLARE_OK);
}

fm_status
fm_script_add_queue_look(fm_script *script, const char *name)
{
    fm_queue queue = { .name = name };

    return fm_script_add_queue(script, &queue, true);
}

fm_status
fm_script_add_bind(fm_script *script, const char *queue, const char *exchange,
    const char *routing_key)
{
    return sent(script,
        fm_amqp_put_queue_bind(
            &script->frames, script->channel, queue, exchange, routing_key),
        FM_METHOD_QUEUE_BIND_OK);
}

fm_status
fm_script_add_consume(fm_script *script, const char *queue, const char *tag,
    const fm_table *arguments)
{
    return sent(script,
        fm_amqp_put_basic_consume(
            &script->frames, script->channel, queue, tag, arguments),
        FM_METHOD_BASIC_CONSUME_OK);
}

fm_status
fm_script_add_cancel(fm_script *script, const char *tag)
{
    return sent(script,
        fm_amqp_put_basic_cancel(&script->frames, script->channel, tag),
        FM_METHOD_BASIC_CANCEL_OK);
}

fm_status
fm_script_add_delete(fm_script *script, const char *queue)
{
    return sent(script,
        fm_amqp_put_queue_delete(
            &script->frames, script->channel, queue, false, false),
        FM_METHOD_QUEUE_DELETE_OK);
}

fm_status
fm_script_add_delete_unused(fm_script *script, const char *queue, bool if_empty)
{
    return sent(script,
        fm_amqp_put_queue_delete(
            &script->frames, script->channel, queue, true, if_empty),
        FM_METHOD_QUEUE_DELETE_OK);
}

fm_status
fm_script_add_close(fm_script *script)
{
    return sent(script,
        fm_amqp_put_channel_close(
            &script->frames, script->channel, 0, "closed by the consumer"),
        FM_METHOD_CHANNEL_CLOSE_OK);
}
