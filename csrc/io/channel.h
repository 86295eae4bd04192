/* One AMQP channel: its script of set-up methods and its content assembly.
 *
 * The I/O thread owns it. The connection (conn.h) hands it the frames that
 * carry its number; it ticks off the answers to its script, puts deliveries
 * together, and tells its owner (a publisher's lane, a consumer) by the ops.
 */
#ifndef FM_IO_CHANNEL_H
#define FM_IO_CHANNEL_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"
#include "io/frame.h"
#include "io/output.h"
#include "io/script.h"

#include <stdbool.h>
#include <stdint.h>

/* A delivered or returned message. Slices point into `meta`. */
typedef struct fm_delivery {
    struct fm_delivery *next;
    fm_deliver deliver;   /* of a returned one: exchange and routing key only */
    uint16_t return_code; /* 0: delivered */
    uint64_t generation;  /* of the channel that delivered it */
    bool is_of_stream;    /* and where in it; -1: it does not say */
    int64_t offset;
    fm_content content;
    fm_buf meta; /* owned: the payloads of method and header frame */
    fm_buf body; /* owned */
} fm_delivery;

void fm_delivery_free(fm_delivery *delivery); /* NULL is allowed */

typedef enum fm_channel_state {
    FM_CHANNEL_CLOSED,
    FM_CHANNEL_BUSY, /* answers to its script are missing */
    FM_CHANNEL_READY,
} fm_channel_state;

typedef struct fm_channel fm_channel;

/* What the owner is told, always by the I/O thread, never with a lock held. */
typedef struct fm_channel_ops {
    /* The script was answered in full. */
    void (*done)(fm_channel *channel);
    /* The broker closed the channel; close-ok is written. Not called when
     * the whole connection goes. */
    void (*closed)(fm_channel *channel, const fm_close *why);
    /* One of its answers has come. NULL: nobody wants to know. */
    void (*answer)(fm_channel *channel, uint32_t id, fm_slice payload);
    /* Any other method; FM_BAD_FRAME ends the connection. */
    fm_status (*method)(fm_channel *channel, uint32_t id, fm_slice payload);
    /* A message, which is the owner's now. */
    void (*content)(fm_channel *channel, fm_delivery *delivery);
    /* The content is what was returned, not what was delivered; the other kind
     * ends the connection. */
    bool returns;
} fm_channel_ops;

struct fm_channel {
    uint16_t id;               /* 0: none assigned. FM_IMMUTABLE once up */
    const fm_channel_ops *ops; /* borrowed */
    void *owner;               /* borrowed */
    fm_output *output;         /* borrowed: the connection's */
    /* Unique for each opening of a channel in the process; 0 while frames on
     * it would be an error. Written by the I/O thread. */
    uint64_t generation FM_GUARDED_BY(output->lock);
    fm_channel_state state;
    fm_script script;     /* what is under way; empty when READY */
    size_t answered;      /* of script.expect */
    int64_t moved_at;     /* when it was sent, or answered last */
    fm_delivery *partial; /* owned; waits for header or body frames */
    bool has_header;
};

void fm_channel_init(fm_channel *channel, const fm_channel_ops *ops,
    void *owner, fm_output *output);
void fm_channel_fini(fm_channel *channel);

/* Send a script (taken, left empty) and expect its answers. Not while another
 * one is under way. */
FM_MUST_CHECK fm_status fm_channel_run(fm_channel *channel, fm_script *script);

/* The same for a caller that holds the output's lock. */
FM_MUST_CHECK fm_status fm_channel_run_locked(
    fm_channel *channel, fm_script *script) FM_REQUIRES(channel->output->lock);

/* A frame for this channel. FM_BAD_FRAME ends the connection. */
FM_MUST_CHECK fm_status fm_channel_take_frame(
    fm_channel *channel, const fm_frame *frame, fm_error *error);

/* The connection is gone: forget script and partial content. */
void fm_channel_reset(fm_channel *channel);

#endif
