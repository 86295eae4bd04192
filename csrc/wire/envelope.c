#include "wire/envelope.h"

#include <string.h>

/* Room for the names that mean something to us; longer ones are others. */
enum { NAME_MAX_LEN = 16 };

/* A walk over the members of a plain object. */
struct members {
    fm_json_reader *reader; /* borrowed */
    bool started;
    uint8_t name[NAME_MAX_LEN]; /* cut, if name_len is larger */
    size_t name_len;
};

typedef enum member_step { MEMBER_BAD, MEMBER_VALUE, MEMBER_END } member_step;

/* Go to the value of the next member, which the caller reads, or behind the
 * object's end. */
static member_step
next_member(struct members *members)
{
    fm_json_reader *reader = members->reader;

    fm_json_skip_blank(reader, false);
    if (!members->started) {
        members->started = true;
        if (!fm_json_read_mark(reader, '{'))
            return MEMBER_BAD;
        fm_json_skip_blank(reader, false);
        if (fm_json_read_mark(reader, '}'))
            return MEMBER_END;
    } else {
        if (fm_json_read_mark(reader, '}'))
            return MEMBER_END;
        if (!fm_json_read_mark(reader, ','))
            return MEMBER_BAD;
        fm_json_skip_blank(reader, false);
    }
    if (!fm_json_read_quote(reader, false)
        || !fm_json_read_text(
            reader, members->name, NAME_MAX_LEN, &members->name_len))
        return MEMBER_BAD;
    fm_json_skip_blank(reader, false);
    if (!fm_json_read_mark(reader, ':'))
        return MEMBER_BAD;
    fm_json_skip_blank(reader, false);
    return MEMBER_VALUE;
}

static bool
is_named(const struct members *members, const char *name)
{
    size_t len = strlen(name);

    return members->name_len == len && memcmp(members->name, name, len) == 0;
}

/* Nothing but blanks up to the end of the text. */
static bool
is_at_end(fm_json_reader *reader)
{
    fm_json_skip_blank(reader, false);
    return reader->pos == reader->end;
}

/* Read any value; true in *is_version if it is the string that names ours. */
static bool
read_version(fm_json_reader *reader, bool *is_version)
{
    uint8_t version[3];
    size_t len;

    *is_version = false;
    if (!fm_json_read_quote(reader, false))
        return fm_json_skip_value(reader);
    if (!fm_json_read_text(reader, version, sizeof(version), &len))
        return false;
    *is_version = len == 3 && memcmp(version, "2.0", 3) == 0;
    return true;
}

fm_status
fm_envelope_read_payload(fm_slice body, fm_buf *text)
{
    fm_json_reader reader = { body.data, body.data + body.len, false };
    struct members members = { .reader = &reader };
    bool has_version = false;
    bool has_message = false;
    member_step step;
    fm_status status;

    while ((step = next_member(&members)) == MEMBER_VALUE) {
        if (is_named(&members, "oslo.version")) {
            if (!read_version(&reader, &has_version))
                return FM_BAD_MESSAGE;
        } else if (is_named(&members, "oslo.message")) {
            has_message = fm_json_read_quote(&reader, false);
            if (!has_message) {
                if (!fm_json_skip_value(&reader))
                    return FM_BAD_MESSAGE;
                continue;
            }
            text->len = 0;
            status = fm_json_append_text(&reader, text);
            if (status != FM_OK)
                return status;
        } else if (!fm_json_skip_value(&reader)) {
            return FM_BAD_MESSAGE;
        }
    }
    if (step == MEMBER_BAD || !is_at_end(&reader))
        return FM_BAD_MESSAGE;
    return has_version && has_message ? FM_OK : FM_BAD_MESSAGE;
}

/* Whether Python would take a value for true. A number too small to be other
 * than 0.0 as a float counts as true here. */
static bool
is_true(const uint8_t *pos, const uint8_t *end)
{
    fm_json_reader inside = { pos + 1, end, false };

    if (*pos == '-')
        pos++;
    switch (*pos) {
    case 'n':
    case 'f':
        return false;
    case '"':
        return end - pos > 2;
    case '[':
    case '{':
        fm_json_skip_blank(&inside, false);
        return *inside.pos != ']' && *inside.pos != '}';
    case '0': /* or 0.0, -0e9 and so on: look for another digit */
        for (; pos < end && *pos != 'e' && *pos != 'E'; pos++) {
            if (*pos >= '1' && *pos <= '9')
                return true;
        }
        return false;
    default:
        return true; /* true, 1, NaN, Infinity */
    }
}

/* Read any value; true in *is_id if it is a string that can be an id. */
static bool
read_msg_id(fm_json_reader *reader, fm_reply_head *head, bool *is_id)
{
    size_t len;

    *is_id = false;
    if (!fm_json_read_quote(reader, false))
        return fm_json_skip_value(reader);
    if (!fm_json_read_text(
            reader, (uint8_t *)head->msg_id, FM_MSG_ID_MAX, &len))
        return false;
    if (len <= FM_MSG_ID_MAX && memchr(head->msg_id, '\0', len) == NULL) {
        head->msg_id[len] = '\0';
        *is_id = true;
    }
    return true;
}

/* Read the two members out of a reply's payload, wherever they stand. */
static fm_status
find_reply_head(fm_slice payload, fm_reply_head *out)
{
    fm_json_reader reader = { payload.data, payload.data + payload.len, true };
    struct members members = { .reader = &reader };
    fm_reply_head head = { .ending = false };
    bool has_id = false;
    member_step step;

    while ((step = next_member(&members)) == MEMBER_VALUE) {
        if (is_named(&members, "_msg_id")) {
            if (!read_msg_id(&reader, &head, &has_id))
                return FM_BAD_MESSAGE;
        } else {
            const uint8_t *value = reader.pos;

            if (!fm_json_skip_value(&reader))
                return FM_BAD_MESSAGE;
            if (is_named(&members, "ending"))
                head.ending = is_true(value, reader.pos);
        }
    }
    if (step == MEMBER_BAD || !is_at_end(&reader) || !has_id)
        return FM_BAD_MESSAGE;
    *out = head;
    return FM_OK;
}

/* The end of a body, read backwards; len shrinks. */
static bool
drop_suffix(fm_slice *body, const char *suffix)
{
    size_t len = strlen(suffix);

    if (body->len < len
        || memcmp(body->data + body->len - len, suffix, len) != 0)
        return false;
    body->len -= len;
    return true;
}

/* Drop an id of ours and return it: letters, digits, `-` and `_`. */
static fm_slice
drop_id(fm_slice *body)
{
    size_t start = body->len;
    fm_slice id;

    while (start > 0 && body->len - start <= FM_MSG_ID_MAX) {
        uint8_t c = body->data[start - 1];

        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z')
                || (c >= 'A' && c <= 'Z') || c == '-' || c == '_'))
            break;
        start--;
    }
    id = (fm_slice){ body->data + start, body->len - start };
    body->len = start;
    return id;
}

/* Read a reply by its end alone: the stock driver writes `ending`, `_msg_id`
 * and `_unique_id` last. No value can feign that: a quote inside of one has
 * three backslashes here, and what closes the body closes this object. Another
 * member of the envelope can, but who sends such could send any reply. */
static bool
read_stock_end(fm_slice body, fm_reply_head *out)
{
    fm_json_reader payload;
    fm_slice msg_id;
    bool ending;

    if (!fm_envelope_read_head(body, &payload)
        || !fm_json_read_mark(&payload, '{'))
        return false;
    if (!drop_suffix(&body, "\\\"}" FM_ENVELOPE_TAIL))
        return false;
    (void)drop_id(&body);
    if (!drop_suffix(&body, "\\\", \\\"_unique_id\\\": \\\""))
        return false;
    msg_id = drop_id(&body);
    if (msg_id.len > FM_MSG_ID_MAX
        || !drop_suffix(&body, ", \\\"_msg_id\\\": \\\""))
        return false;
    ending = drop_suffix(&body, "true");
    if (!ending && !drop_suffix(&body, "false"))
        return false;
    if (!drop_suffix(&body, ", \\\"ending\\\": ")
        || body.len < FM_ENVELOPE_HEAD_LEN + 1)
        return false;
    memcpy(out->msg_id, msg_id.data, msg_id.len);
    out->msg_id[msg_id.len] = '\0';
    out->ending = ending;
    return true;
}

fm_status
fm_envelope_read_reply(fm_slice body, fm_reply_head *out)
{
    fm_buf text = { 0 };
    fm_status status;

    if (read_stock_end(body, out))
        return FM_OK;
    status = fm_envelope_read_payload(body, &text);
    if (status == FM_OK)
        status = find_reply_head(fm_buf_slice(&text), out);
    fm_buf_fini(&text);
    return status;
}
