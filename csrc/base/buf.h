/* A growing byte buffer, and a borrowed slice of bytes.
 *
 * Neither is safe to share: the owner says which lock or thread guards it.
 * A zeroed fm_buf is a valid empty one, so `fm_buf b = {0}` needs no init.
 */
#ifndef FM_BASE_BUF_H
#define FM_BASE_BUF_H

#include "base/attrs.h"
#include "base/status.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Bytes that belong to somebody else, for as long as that one says. */
typedef struct fm_slice {
    const uint8_t *data; /* borrowed */
    size_t len;
} fm_slice;

typedef struct fm_buf {
    uint8_t *data; /* owned; NULL while cap is 0 */
    size_t len;
    size_t cap;
} fm_buf;

void fm_buf_init(fm_buf *buf);

/* Release the memory; the buffer is empty and usable afterwards. */
void fm_buf_fini(fm_buf *buf);

/* The slow half of fm_buf_reserve. */
FM_MUST_CHECK fm_status fm_buf_grow(fm_buf *buf, size_t extra);

/* Make room for `extra` bytes after len. FM_NO_MEMORY leaves it as it was. */
FM_MUST_CHECK static inline fm_status
fm_buf_reserve(fm_buf *buf, size_t extra)
{
    if (FM_LIKELY(extra <= buf->cap - buf->len))
        return FM_OK;
    return fm_buf_grow(buf, extra);
}

FM_MUST_CHECK static inline fm_status
fm_buf_append(fm_buf *buf, const void *data, size_t len)
{
    fm_status status = fm_buf_reserve(buf, len);

    if (FM_UNLIKELY(status != FM_OK))
        return status;
    if (len > 0)
        memcpy(buf->data + buf->len, data, len);
    buf->len += len;
    return FM_OK;
}

/* Drop `len` bytes from the front, moving the rest down. */
void fm_buf_consume(fm_buf *buf, size_t len);

/* Give memory back when the buffer is empty and larger than `keep`. */
void fm_buf_shrink(fm_buf *buf, size_t keep);

static inline fm_slice
fm_buf_slice(const fm_buf *buf)
{
    return (fm_slice){ buf->data, buf->len };
}

/* Integers in network order, as AMQP has them; `to` has room. */
static inline void
fm_store_u16(uint8_t *to, uint16_t value)
{
    to[0] = (uint8_t)(value >> 8);
    to[1] = (uint8_t)value;
}

static inline void
fm_store_u32(uint8_t *to, uint32_t value)
{
    fm_store_u16(to, (uint16_t)(value >> 16));
    fm_store_u16(to + 2, (uint16_t)value);
}

static inline void
fm_store_u64(uint8_t *to, uint64_t value)
{
    fm_store_u32(to, (uint32_t)(value >> 32));
    fm_store_u32(to + 4, (uint32_t)value);
}

static inline uint16_t
fm_load_u16(const uint8_t *from)
{
    return (uint16_t)((from[0] << 8) | from[1]);
}

static inline uint32_t
fm_load_u32(const uint8_t *from)
{
    return ((uint32_t)fm_load_u16(from) << 16) | fm_load_u16(from + 2);
}

static inline uint64_t
fm_load_u64(const uint8_t *from)
{
    return ((uint64_t)fm_load_u32(from) << 32) | fm_load_u32(from + 4);
}

#endif
