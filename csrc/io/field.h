/* AMQP's fields as they lie in a frame: reading them without reading past.
 *
 * Pure functions over borrowed bytes, for any thread. Whatever the peer
 * claims about a length is compared with what is left before it is used, and
 * nothing recurses, so no table is too deep: a nested one is skipped by its
 * length.
 */
#ifndef FM_IO_FIELD_H
#define FM_IO_FIELD_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A place in borrowed bytes. Each getter takes a value and moves on, or
 * returns false and leaves the cursor and *out as they were. */
typedef struct fm_cursor {
    const uint8_t *pos; /* borrowed */
    const uint8_t *end;
} fm_cursor;

static inline fm_cursor
fm_cursor_over(const uint8_t *data, size_t len)
{
    return (fm_cursor){ data, data == NULL ? data : data + len };
}

static inline size_t
fm_cursor_left(const fm_cursor *cursor)
{
    return (size_t)(cursor->end - cursor->pos);
}

FM_MUST_CHECK static inline bool
fm_cursor_bytes(fm_cursor *cursor, size_t len, fm_slice *out)
{
    if (FM_UNLIKELY(len > fm_cursor_left(cursor)))
        return false;
    *out = (fm_slice){ cursor->pos, len };
    cursor->pos += len;
    return true;
}

FM_MUST_CHECK static inline bool
fm_cursor_skip(fm_cursor *cursor, size_t len)
{
    fm_slice skipped;

    return fm_cursor_bytes(cursor, len, &skipped);
}

FM_MUST_CHECK static inline bool
fm_cursor_u8(fm_cursor *cursor, uint8_t *out)
{
    if (FM_UNLIKELY(fm_cursor_left(cursor) < 1))
        return false;
    *out = *cursor->pos++;
    return true;
}

FM_MUST_CHECK static inline bool
fm_cursor_u16(fm_cursor *cursor, uint16_t *out)
{
    if (FM_UNLIKELY(fm_cursor_left(cursor) < 2))
        return false;
    *out = fm_load_u16(cursor->pos);
    cursor->pos += 2;
    return true;
}

FM_MUST_CHECK static inline bool
fm_cursor_u32(fm_cursor *cursor, uint32_t *out)
{
    if (FM_UNLIKELY(fm_cursor_left(cursor) < 4))
        return false;
    *out = fm_load_u32(cursor->pos);
    cursor->pos += 4;
    return true;
}

FM_MUST_CHECK static inline bool
fm_cursor_u64(fm_cursor *cursor, uint64_t *out)
{
    if (FM_UNLIKELY(fm_cursor_left(cursor) < 8))
        return false;
    *out = fm_load_u64(cursor->pos);
    cursor->pos += 8;
    return true;
}

/* A string of at most 255 bytes, after one byte of length. */
FM_MUST_CHECK static inline bool
fm_cursor_short_text(fm_cursor *cursor, fm_slice *out)
{
    size_t left = fm_cursor_left(cursor);

    if (FM_UNLIKELY(left < 1 || *cursor->pos > left - 1))
        return false;
    *out = (fm_slice){ cursor->pos + 1, *cursor->pos };
    cursor->pos += 1 + out->len;
    return true;
}

/* Bytes after four bytes of length: a long string, a table, an array. */
FM_MUST_CHECK static inline bool
fm_cursor_long_text(fm_cursor *cursor, fm_slice *out)
{
    size_t left = fm_cursor_left(cursor);
    uint32_t len;

    if (FM_UNLIKELY(left < 4))
        return false;
    len = fm_load_u32(cursor->pos);
    if (FM_UNLIKELY(len > left - 4))
        return false;
    *out = (fm_slice){ cursor->pos + 4, len };
    cursor->pos += 4 + out->len;
    return true;
}

/* The kinds of field that RabbitMQ writes, by their byte on the wire. */
enum {
    FM_KIND_BOOL = 't',
    FM_KIND_I8 = 'b',
    FM_KIND_U8 = 'B',
    FM_KIND_I16 = 's',
    FM_KIND_U16 = 'u',
    FM_KIND_I32 = 'I',
    FM_KIND_U32 = 'i',
    FM_KIND_I64 = 'l',
    FM_KIND_U64 = 'L',
    FM_KIND_F32 = 'f',
    FM_KIND_F64 = 'd',
    FM_KIND_DECIMAL = 'D', /* one byte of scale, four of value */
    FM_KIND_TEXT = 'S',
    FM_KIND_BYTES = 'x',
    FM_KIND_ARRAY = 'A',
    FM_KIND_TABLE = 'F',
    FM_KIND_TIME = 'T', /* seconds since 1970, 64 bits */
    FM_KIND_VOID = 'V'
};

/* One entry of a table or array. */
typedef struct fm_field {
    fm_slice name;  /* empty in an array */
    uint8_t kind;   /* FM_KIND_... */
    fm_slice value; /* as on the wire, without a length in front */
} fm_field;

/* Take the next entry of a table (`rest`: its bytes, without the length in
 * front). FM_NOT_FOUND at the end, FM_BAD_FRAME for anything malformed. */
FM_MUST_CHECK fm_status fm_field_next(fm_cursor *rest, fm_field *out);

/* The same for an array. */
FM_MUST_CHECK fm_status fm_field_next_item(fm_cursor *rest, fm_field *out);

/* The first entry of that name (`name` is a C string). FM_NOT_FOUND without
 * one, FM_BAD_FRAME if the table is malformed up to there. */
FM_MUST_CHECK fm_status fm_field_find(
    fm_slice table, const char *name, fm_field *out);

/* A field's value as C has it; false if it is of another kind, or does not
 * fit. Integers come from all integer kinds and from times. */
FM_MUST_CHECK bool fm_field_integer(const fm_field *field, int64_t *out);
FM_MUST_CHECK bool fm_field_text(const fm_field *field, fm_slice *out);
FM_MUST_CHECK bool fm_field_bool(const fm_field *field, bool *out);

/* Copy what a peer said into a text for people: cut to `size` - 1 bytes, 0 at
 * the end, control characters as '?'. Not necessarily UTF-8. */
void fm_field_print(char *to, size_t size, fm_slice from);

#endif
