#include "wire/msgpack.h"

#define MSGPACK_EMBED_STACK_SIZE FM_JSON_DEPTH_MAX
#include <msgpack/unpack.h>
#include <msgpack/unpack_define.h>

bool
fm_msgpack_is_named(fm_slice names)
{
    static const char name[] = FM_MSGPACK_NAME;
    const uint8_t *end = names.data + names.len;
    const uint8_t *pos = names.data;

    while (pos < end) {
        const uint8_t *start = pos;

        while (pos < end && *pos != ',' && *pos != ' ')
            pos++;
        if ((size_t)(pos - start) == sizeof(name) - 1
            && memcmp(start, name, sizeof(name) - 1) == 0)
            return true;
        while (pos < end && (*pos == ',' || *pos == ' '))
            pos++;
    }
    return false;
}

/* ---- Writing ---- */

static inline size_t
utf8_width(uint32_t code)
{
    return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
}

static inline uint8_t *
store_utf8(uint8_t *at, uint32_t code)
{
    if (code < 0x80) {
        *at++ = (uint8_t)code;
        return at;
    }
    if (code < 0x800) {
        *at++ = (uint8_t)(0xC0 | code >> 6);
    } else {
        if (code < 0x10000) {
            *at++ = (uint8_t)(0xE0 | code >> 12);
        } else {
            *at++ = (uint8_t)(0xF0 | code >> 18);
            *at++ = (uint8_t)(0x80 | (code >> 12 & 0x3F));
        }
        *at++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    }
    *at++ = (uint8_t)(0x80 | (code & 0x3F));
    return at;
}

/* The head of a string and the room for it: FM_OK, and out->len behind it. */
static fm_status
begin_string(fm_buf *out, size_t len)
{
    fm_status status;

    if (len > UINT32_MAX)
        return FM_TOO_LARGE;
    status = fm_buf_reserve(out, len + 5);
    return status == FM_OK ? fm_msgpack_put_str(out, len) : status;
}

fm_status
fm_msgpack_put_ucs1(fm_buf *out, const uint8_t *chars, size_t count)
{
    size_t len = count;
    fm_status status;
    uint8_t *at;

    for (size_t i = 0; i < count; i++)
        len += chars[i] >> 7;
    status = begin_string(out, len);
    if (status != FM_OK)
        return status;
    at = out->data + out->len;
    for (size_t i = 0; i < count; i++)
        at = store_utf8(at, chars[i]);
    out->len += len;
    return FM_OK;
}

/* Of the character at `*i`, which moves over the second half of a pair. */
static inline uint32_t
next_code(const void *chars, size_t count, const bool is_ucs4, size_t *i)
{
    const uint32_t *wide = chars;
    const uint16_t *narrow = chars;
    uint32_t code = is_ucs4 ? wide[*i] : narrow[*i];
    uint32_t next;

    (*i)++;
    if (FM_LIKELY(code < 0xD800 || code >= 0xDC00 || *i == count))
        return code;
    next = is_ucs4 ? wide[*i] : narrow[*i];
    if (next < 0xDC00 || next >= 0xE000)
        return code;
    (*i)++;
    return 0x10000 + ((code - 0xD800) << 10) + (next - 0xDC00);
}

/* `is_ucs4` is a constant, which folds away. */
static inline __attribute__((always_inline)) fm_status
put_wide(fm_buf *out, const void *chars, size_t count, const bool is_ucs4)
{
    size_t len = 0;
    fm_status status;
    uint8_t *at;

    for (size_t i = 0; i < count;)
        len += utf8_width(next_code(chars, count, is_ucs4, &i));
    status = begin_string(out, len);
    if (status != FM_OK)
        return status;
    at = out->data + out->len;
    for (size_t i = 0; i < count;)
        at = store_utf8(at, next_code(chars, count, is_ucs4, &i));
    out->len += len;
    return FM_OK;
}

fm_status
fm_msgpack_put_ucs2(fm_buf *out, const uint16_t *chars, size_t count)
{
    return put_wide(out, chars, count, false);
}

fm_status
fm_msgpack_put_ucs4(fm_buf *out, const uint32_t *chars, size_t count)
{
    return put_wide(out, chars, count, true);
}

/* ---- The head of a reply ---- */

/* What is to be known of a value: its text, if it is one, and whether Python
 * would take it for true. */
struct value {
    const uint8_t *text; /* borrowed; NULL for other kinds */
    uint32_t len;
    bool is_true;
};

struct walk {
    fm_reply_head head;
    bool has_id;
    void *outermost; /* the stack's first frame */
};

/* msgpack-c calls these with what it finds. It compares the lengths of what it
 * hands over with what is there; of containers it hands over the number. */
#define msgpack_unpack_struct(name) struct walk##name
#define msgpack_unpack_func(result, name) static inline result walk##name
#define msgpack_unpack_callback(name) on##name
#define msgpack_unpack_object struct value
#define msgpack_unpack_user struct walk

#define ON_NUMBER(name, type)                                                  \
    static inline int on##name(                                                \
        struct walk *walk, type number, struct value *out)                     \
    {                                                                          \
        (void)walk;                                                            \
        /* NaN is true, too. */                                                \
        *out = (struct value){ .is_true = !(number == 0) };                    \
        return 0;                                                              \
    }
ON_NUMBER(_uint8, uint8_t)
ON_NUMBER(_uint16, uint16_t)
ON_NUMBER(_uint32, uint32_t)
ON_NUMBER(_uint64, uint64_t)
ON_NUMBER(_int8, int8_t)
ON_NUMBER(_int16, int16_t)
ON_NUMBER(_int32, int32_t)
ON_NUMBER(_int64, int64_t)
ON_NUMBER(_float, float)
ON_NUMBER(_double, double)

static inline struct value
on_root(struct walk *walk)
{
    (void)walk;
    return (struct value){ 0 };
}

static inline int
on_nil(struct walk *walk, struct value *out)
{
    (void)walk;
    *out = (struct value){ 0 };
    return 0;
}

#define on_false on_nil

static inline int
on_true(struct walk *walk, struct value *out)
{
    (void)walk;
    *out = (struct value){ .is_true = true };
    return 0;
}

static inline int
on_str(struct walk *walk, const char *base, const char *data, unsigned len,
    struct value *out)
{
    (void)walk;
    (void)base;
    /* Of an empty one msgpack-c does not say where it is. */
    *out = (struct value){ .text = (const uint8_t *)(len > 0 ? data : ""),
        .len = len,
        .is_true = len > 0 };
    return 0;
}

static inline int
on_bin(struct walk *walk, const char *base, const char *data, unsigned len,
    struct value *out)
{
    (void)walk, (void)base, (void)data, (void)len, (void)out;
    return MSGPACK_UNPACK_PARSE_ERROR; /* no writer of ours has these */
}

/* An integer's digits. The first byte is the type; msgpack-c has an overflow
 * that makes the longest of all come as one without any. */
static inline int
on_ext(struct walk *walk, const char *base, const char *data, unsigned len,
    struct value *out)
{
    (void)walk, (void)base;
    if (len < 2 || data[0] != FM_MSGPACK_BIG_INT)
        return MSGPACK_UNPACK_PARSE_ERROR;
    *out = (struct value){ 0 };
    for (unsigned i = 1; i < len; i++)
        if (data[i] >= '1' && data[i] <= '9')
            out->is_true = true;
    return 0;
}

static inline int
on_array(struct walk *walk, unsigned count, struct value *out)
{
    /* Of arrays there is only the stack, whatever count says. */
    if (walk->outermost == NULL)
        return MSGPACK_UNPACK_PARSE_ERROR; /* no object */
    *out = (struct value){ .is_true = count > 0 };
    return 0;
}

static inline int
on_map(struct walk *walk, unsigned count, struct value *out)
{
    if (walk->outermost == NULL)
        walk->outermost = out;
    *out = (struct value){ .is_true = count > 0 };
    return 0;
}

static inline int
on_array_item(struct walk *walk, struct value *array, struct value item)
{
    (void)walk, (void)array, (void)item;
    return 0;
}

static inline bool
is_named(struct value name, const char *expected)
{
    size_t len = strlen(expected);

    return name.text != NULL && name.len == len
        && memcmp(name.text, expected, len) == 0;
}

static inline int
on_map_item(
    struct walk *walk, struct value *map, struct value key, struct value value)
{
    if (key.text == NULL)
        return MSGPACK_UNPACK_PARSE_ERROR;
    if ((void *)map != walk->outermost)
        return 0;
    if (is_named(key, "ending")) {
        walk->head.ending = value.is_true;
    } else if (is_named(key, "_msg_id")) {
        walk->has_id = value.text != NULL && value.len <= FM_MSG_ID_MAX
            && memchr(value.text, '\0', value.len) == NULL;
        if (walk->has_id) {
            memcpy(walk->head.msg_id, value.text, value.len);
            walk->head.msg_id[value.len] = '\0';
        }
    }
    return 0;
}

#include <msgpack/unpack_template.h>

/* Read all of it; the last of equal names counts. */
static fm_status
find_reply_head(fm_slice body, fm_reply_head *out)
{
    struct walk_context context;
    size_t used = 0;

    memset(&context.user, 0, sizeof(context.user));
    walk_init(&context);
    if (walk_execute(&context, (const char *)body.data, body.len, &used) != 1
        || used != body.len || !context.user.has_id)
        return FM_BAD_MESSAGE;
    *out = context.user.head;
    return FM_OK;
}

/* The three members that a server of ours writes last, ids of 32 characters
 * included; an `e` stands for `ending`, an `i` for a byte of an id. */
static const char end_of_reply[] = "\xa6"
                                   "ending"
                                   "e"
                                   "\xa7_msg_id\xd9\x20"
                                   "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii"
                                   "\xaa_unique_id\xd9\x20"
                                   "iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii";
enum {
    ID_LEN = 32,
    END_LEN = sizeof(end_of_reply) - 1,
    ENDING_AT = 7,
    MSG_ID_AT = ENDING_AT + 1 + 8 + 2,
};

fm_status
fm_msgpack_read_reply(fm_slice body, fm_reply_head *out)
{
    const uint8_t *end;

    /* A text cannot feign it, being UTF-8, in which no 0x20 follows a 0xD9.
     * A map that ends the last member can: so the outer one has to begin as
     * ours do, with what then is not the last. Who writes other maps that do
     * could as well send any reply. */
    if (body.len > END_LEN + 8 && memcmp(body.data, "\x85\xa6result", 8) == 0) {
        end = body.data + body.len - END_LEN;
        if (memcmp(end, end_of_reply, ENDING_AT) == 0
            && (end[ENDING_AT] == 0xC2 || end[ENDING_AT] == 0xC3)
            && memcmp(end + ENDING_AT + 1, end_of_reply + ENDING_AT + 1,
                   MSG_ID_AT - ENDING_AT - 1)
                == 0
            && memcmp(end + MSG_ID_AT + ID_LEN,
                   end_of_reply + MSG_ID_AT + ID_LEN,
                   END_LEN - MSG_ID_AT - 2 * ID_LEN)
                == 0
            && memchr(end + MSG_ID_AT, '\0', ID_LEN) == NULL) {
            memcpy(out->msg_id, end + MSG_ID_AT, ID_LEN);
            out->msg_id[ID_LEN] = '\0';
            out->ending = end[ENDING_AT] == 0xC3;
            return FM_OK;
        }
    }
    return find_reply_head(body, out);
}
