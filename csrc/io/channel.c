#include "io/channel.h"

#include <stdlib.h>

enum { BODY_AHEAD = 1024 * 1024 }; /* what a header may reserve at once */

void
fm_delivery_free(fm_delivery *delivery)
{
    if (delivery == NULL)
        return;
    fm_buf_fini(&delivery->meta);
    fm_buf_fini(&delivery->body);
    free(delivery);
}

void
fm_channel_init(fm_channel *channel, const fm_channel_ops *ops, void *owner,
    fm_output *output)
{
    *channel = (fm_channel){ .ops = ops, .owner = owner, .output = output };
    fm_script_init(&channel->script, 0);
}

void
fm_channel_fini(fm_channel *channel)
{
    fm_delivery_free(channel->partial);
    fm_script_fini(&channel->script);
}

void
fm_channel_reset(fm_channel *channel)
{
    fm_delivery_free(channel->partial);
    channel->partial = NULL;
    channel->has_header = false;
    channel->state = FM_CHANNEL_CLOSED;
    channel->answered = 0;
    fm_script_fini(&channel->script);
    fm_mutex_lock(&channel->output->lock);
    channel->generation = 0;
    fm_mutex_unlock(&channel->output->lock);
}

/* A script that opens begins a generation; one that closes ends it. */
static void
update_generation_locked(fm_channel *channel, const fm_script *script)
    FM_REQUIRES(channel->output->lock)
{
    static atomic_uint_fast64_t last;

    if (script->expect[0] == FM_METHOD_CHANNEL_OPEN_OK)
        channel->generation = atomic_fetch_add(&last, 1) + 1;
    if (script->expect[script->count - 1] == FM_METHOD_CHANNEL_CLOSE_OK)
        channel->generation = 0;
}

fm_status
fm_channel_run_locked(fm_channel *channel, fm_script *script)
{
    fm_status status = fm_buf_append(
        &channel->output->out, script->frames.data, script->frames.len);

    if (status != FM_OK)
        return status;
    update_generation_locked(channel, script);
    fm_script_fini(&channel->script);
    channel->script = *script;
    fm_script_init(script, script->channel);
    channel->answered = 0;
    channel->moved_at = fm_now();
    channel->state = FM_CHANNEL_BUSY;
    fm_buf_fini(&channel->script.frames); /* sent, only the answers count */
    return FM_OK;
}

fm_status
fm_channel_run(fm_channel *channel, fm_script *script)
{
    fm_status status;

    fm_mutex_lock(&channel->output->lock);
    status = fm_channel_run_locked(channel, script);
    fm_mutex_unlock(&channel->output->lock);
    return status;
}

/* --- content: deliver or return, header, bodies --- */

static fm_status
bad(fm_channel *channel, fm_error *error, const char *what)
{
    return fm_error_set(error, FM_BAD_FRAME, 0,
        "the broker sent %s on channel %u", what, channel->id);
}

static void
content_done(fm_channel *channel)
{
    fm_delivery *delivery = channel->partial;

    channel->partial = NULL;
    channel->has_header = false;
    channel->ops->content(channel, delivery);
}

/* The slices of a parsed payload point into the receive buffer, which goes
 * on; so the payload is copied first and parsed in the copy. */
static fm_status
content_begin(
    fm_channel *channel, uint32_t id, const fm_frame *frame, fm_error *error)
{
    fm_delivery *delivery;
    fm_status status;

    if (channel->partial != NULL)
        return bad(channel, error, "a message within a message");
    if ((id == FM_METHOD_BASIC_RETURN) != channel->ops->returns)
        return bad(channel, error, "a message that cannot be for us");
    delivery = calloc(1, sizeof(*delivery));
    if (delivery == NULL)
        return FM_NO_MEMORY;
    status = fm_buf_append(&delivery->meta, frame->payload, frame->len);
    if (status != FM_OK) {
        fm_delivery_free(delivery);
        return status;
    }
    delivery->generation = channel->generation; /* written by this thread */
    delivery->return_code = id == FM_METHOD_BASIC_RETURN ? 1 : 0;
    channel->partial = delivery;
    return FM_OK;
}

static fm_status
parse_meta(fm_channel *channel, size_t method_len, fm_error *error)
{
    fm_delivery *delivery = channel->partial;
    const uint8_t *meta = delivery->meta.data;
    fm_status status;

    if (delivery->return_code != 0) {
        fm_returned returned;

        status = fm_amqp_get_return(meta, method_len, &returned);
        if (status == FM_OK) {
            delivery->return_code = returned.code == 0 ? 1 : returned.code;
            delivery->deliver.exchange = returned.exchange;
            delivery->deliver.routing_key = returned.routing_key;
        }
    } else {
        status = fm_frame_parse_deliver(meta, method_len, &delivery->deliver);
    }
    if (status == FM_OK)
        status = fm_frame_parse_header(meta + method_len,
            delivery->meta.len - method_len, &delivery->content);
    if (status != FM_OK)
        return bad(channel, error, "a malformed message");
    return FM_OK;
}

static fm_status
content_header(fm_channel *channel, const fm_frame *frame, fm_error *error)
{
    fm_delivery *delivery = channel->partial;
    size_t method_len, ahead;
    fm_status status;

    if (delivery == NULL || channel->has_header)
        return bad(channel, error, "a header without a message");
    method_len = delivery->meta.len;
    status = fm_buf_append(&delivery->meta, frame->payload, frame->len);
    if (status == FM_OK)
        status = parse_meta(channel, method_len, error);
    if (status != FM_OK)
        return status;
    channel->has_header = true;
    /* The size is only a claim: take memory for what has really come. */
    ahead = delivery->content.body_size < BODY_AHEAD
        ? (size_t)delivery->content.body_size
        : BODY_AHEAD;
    status = fm_buf_reserve(&delivery->body, ahead);
    if (status == FM_OK && delivery->content.body_size == 0)
        content_done(channel);
    return status;
}

static fm_status
content_body(fm_channel *channel, const fm_frame *frame, fm_error *error)
{
    fm_delivery *delivery = channel->partial;
    fm_status status;

    if (delivery == NULL || !channel->has_header)
        return bad(channel, error, "a body without a header");
    if (frame->len > delivery->content.body_size - delivery->body.len)
        return bad(channel, error, "a body longer than its header says");
    status = fm_buf_append(&delivery->body, frame->payload, frame->len);
    if (status == FM_OK && delivery->body.len == delivery->content.body_size)
        content_done(channel);
    return status;
}

/* --- methods --- */

static fm_status
take_close(fm_channel *channel, const fm_frame *frame)
{
    fm_close why;
    fm_status status = fm_amqp_get_close(frame->payload, frame->len, &why);

    if (status != FM_OK)
        return status;
    fm_mutex_lock(&channel->output->lock);
    status = fm_amqp_put_channel_close_ok(&channel->output->out, channel->id);
    channel->generation = 0; /* with close-ok: nothing may follow it */
    fm_mutex_unlock(&channel->output->lock);
    if (status != FM_OK)
        return status;
    fm_channel_reset(channel);
    channel->ops->closed(channel, &why);
    return FM_OK;
}

static fm_status
take_method(fm_channel *channel, const fm_frame *frame, fm_error *error)
{
    uint32_t id;
    fm_status status = fm_amqp_method_id(frame->payload, frame->len, &id);

    if (status != FM_OK)
        return bad(channel, error, "a malformed method");
    if (id == FM_METHOD_BASIC_DELIVER || id == FM_METHOD_BASIC_RETURN)
        return content_begin(channel, id, frame, error);
    if (channel->state == FM_CHANNEL_BUSY
        && channel->script.expect[channel->answered] == id) {
        channel->moved_at = fm_now();
        if (channel->ops->answer != NULL)
            channel->ops->answer(
                channel, id, (fm_slice){ frame->payload, frame->len });
        if (++channel->answered == channel->script.count) {
            channel->state = id == FM_METHOD_CHANNEL_CLOSE_OK
                ? FM_CHANNEL_CLOSED
                : FM_CHANNEL_READY;
            channel->ops->done(channel);
        }
        return FM_OK;
    }
    if (id == FM_METHOD_CHANNEL_CLOSE_OK) /* our close crossed the broker's */
        return FM_OK;
    if (id == FM_METHOD_CHANNEL_CLOSE)
        status = take_close(channel, frame);
    else
        status = channel->ops->method(
            channel, id, (fm_slice){ frame->payload, frame->len });
    if (status == FM_BAD_FRAME)
        return fm_error_set(error, FM_BAD_FRAME, 0,
            "the broker sent an unexpected or malformed %s on channel %u",
            fm_amqp_method_name(id), channel->id);
    return status;
}

fm_status
fm_channel_take_frame(
    fm_channel *channel, const fm_frame *frame, fm_error *error)
{
    switch (frame->type) {
    case FM_FRAME_METHOD:
        return take_method(channel, frame, error);
    case FM_FRAME_HEADER:
        return content_header(channel, frame, error);
    case FM_FRAME_BODY:
        return content_body(channel, frame, error);
    default:
        return bad(channel, error, "a frame of an unknown type");
    }
}
