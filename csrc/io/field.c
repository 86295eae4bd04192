#include "io/field.h"

enum { VARIABLE = 0xFF, UNKNOWN = 0xFE };

/* How many bytes the value of a kind takes; VARIABLE after a length of its
 * own. RabbitMQ 3.x and 4.x write no others. */
static uint8_t
width_of(uint8_t kind)
{
    switch (kind) {
    case FM_KIND_VOID:
        return 0;
    case FM_KIND_BOOL:
    case FM_KIND_I8:
    case FM_KIND_U8:
        return 1;
    case FM_KIND_I16:
    case FM_KIND_U16:
        return 2;
    case FM_KIND_I32:
    case FM_KIND_U32:
    case FM_KIND_F32:
        return 4;
    case FM_KIND_DECIMAL:
        return 5;
    case FM_KIND_I64:
    case FM_KIND_U64:
    case FM_KIND_F64:
    case FM_KIND_TIME:
        return 8;
    case FM_KIND_TEXT:
    case FM_KIND_BYTES:
    case FM_KIND_ARRAY:
    case FM_KIND_TABLE:
        return VARIABLE;
    default:
        return UNKNOWN;
    }
}

static bool
take_value(fm_cursor *rest, fm_field *field)
{
    uint8_t width;

    if (!fm_cursor_u8(rest, &field->kind))
        return false;
    width = width_of(field->kind);
    if (width == UNKNOWN)
        return false;
    if (width == VARIABLE)
        return fm_cursor_long_text(rest, &field->value);
    return fm_cursor_bytes(rest, width, &field->value);
}

fm_status
fm_field_next(fm_cursor *rest, fm_field *out)
{
    fm_cursor cursor = *rest;
    fm_field field = { 0 };

    if (fm_cursor_left(&cursor) == 0)
        return FM_NOT_FOUND;
    if (!fm_cursor_short_text(&cursor, &field.name)
        || !take_value(&cursor, &field))
        return FM_BAD_FRAME;
    *rest = cursor;
    *out = field;
    return FM_OK;
}

fm_status
fm_field_next_item(fm_cursor *rest, fm_field *out)
{
    fm_cursor cursor = *rest;
    fm_field field = { 0 };

    if (fm_cursor_left(&cursor) == 0)
        return FM_NOT_FOUND;
    if (!take_value(&cursor, &field))
        return FM_BAD_FRAME;
    *rest = cursor;
    *out = field;
    return FM_OK;
}

fm_status
fm_field_find(fm_slice table, const char *name, fm_field *out)
{
    fm_cursor rest = fm_cursor_over(table.data, table.len);
    size_t name_len = strlen(name);
    fm_field field;
    fm_status status;

    while ((status = fm_field_next(&rest, &field)) == FM_OK) {
        if (field.name.len == name_len
            && memcmp(field.name.data, name, name_len) == 0) {
            *out = field;
            return FM_OK;
        }
    }
    return status;
}

bool
fm_field_integer(const fm_field *field, int64_t *out)
{
    const uint8_t *data = field->value.data;
    uint64_t wide;

    switch (field->kind) {
    case FM_KIND_I8:
        *out = data[0] < 0x80 ? data[0] : data[0] - 0x100;
        return true;
    case FM_KIND_U8:
        *out = data[0];
        return true;
    case FM_KIND_I16:
        *out = (int16_t)fm_load_u16(data);
        return true;
    case FM_KIND_U16:
        *out = fm_load_u16(data);
        return true;
    case FM_KIND_I32:
        *out = (int32_t)fm_load_u32(data);
        return true;
    case FM_KIND_U32:
        *out = fm_load_u32(data);
        return true;
    case FM_KIND_I64:
        *out = (int64_t)fm_load_u64(data);
        return true;
    case FM_KIND_U64:
    case FM_KIND_TIME:
        wide = fm_load_u64(data);
        if (wide > INT64_MAX)
            return false;
        *out = (int64_t)wide;
        return true;
    default:
        return false;
    }
}

bool
fm_field_text(const fm_field *field, fm_slice *out)
{
    if (field->kind != FM_KIND_TEXT && field->kind != FM_KIND_BYTES)
        return false;
    *out = field->value;
    return true;
}

bool
fm_field_bool(const fm_field *field, bool *out)
{
    if (field->kind != FM_KIND_BOOL)
        return false;
    *out = field->value.data[0] != 0;
    return true;
}

void
fm_field_print(char *to, size_t size, fm_slice from)
{
    size_t len = from.len < size ? from.len : size - 1;

    if (len > 0)
        memcpy(to, from.data, len);
    for (size_t i = 0; i < len; i++) {
        if (from.data[i] < 0x20 || from.data[i] == 0x7F)
            to[i] = '?';
    }
    to[len] = '\0';
}
