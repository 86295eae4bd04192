/* The binary envelope: what is written of texts, and heads of replies. */
#include "wire/msgpack.h"

#include "check.h"

#include <stdlib.h>

#define ID "0123456789abcdef0123456789abcdef"
#define OTHER "fedcba9876543210fedcba9876543210"

/* The same bytes in memory of their own size, so that ASan sees one too far. */
static fm_status
read_reply(const void *body, size_t len, fm_reply_head *head)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    fm_status status;

    CHECK(copy != NULL);
    memcpy(copy, body, len);
    memset(head, 'x', sizeof(*head));
    status = fm_msgpack_read_reply((fm_slice){ copy, len }, head);
    free(copy);
    return status;
}

static void
put_text(fm_buf *out, const char *text)
{
    CHECK_INT(
        fm_msgpack_put_ascii(out, (const uint8_t *)text, strlen(text)), FM_OK);
}

static void
put_pair(fm_buf *out, const char *key, const char *value)
{
    put_text(out, key);
    put_text(out, value);
}

/* What our servers send; `result` is there already, as a value. */
static void
put_rest(fm_buf *out, bool ending, const char *msg_id, const char *unique_id)
{
    put_text(out, "failure");
    CHECK_INT(fm_msgpack_put_nil(out), FM_OK);
    put_text(out, "ending");
    CHECK_INT(
        ending ? fm_msgpack_put_true(out) : fm_msgpack_put_false(out), FM_OK);
    put_pair(out, "_msg_id", msg_id);
    put_pair(out, "_unique_id", unique_id);
}

static void
begin_reply(fm_buf *out, size_t members)
{
    out->len = 0;
    CHECK_INT(fm_msgpack_put_map(out, members), FM_OK);
    put_text(out, "result");
}

static void
test_a_reply_of_ours_is_read_by_its_end(void)
{
    fm_reply_head head;
    fm_buf out = { 0 };

    for (int ending = 0; ending < 2; ending++) {
        begin_reply(&out, 5);
        put_text(&out, "x");
        put_rest(&out, ending, ID, OTHER);
        CHECK_INT(read_reply(out.data, out.len, &head), FM_OK);
        CHECK_TEXT(head.msg_id, ID);
        CHECK_INT(head.ending, ending);
        /* So it is if what is before the end is broken. */
        out.data[8] = 0xC1;
        CHECK_INT(read_reply(out.data, out.len, &head), FM_OK);
        /* But not without its end. */
        for (size_t len = 0; len < out.len; len++)
            CHECK_INT(read_reply(out.data, len, &head), FM_BAD_MESSAGE);
    }
    fm_buf_fini(&out);
}

static void
test_a_reply_in_another_order_is_read_as_a_whole(void)
{
    fm_reply_head head;
    fm_buf out = { 0 };

    CHECK_INT(fm_msgpack_put_map(&out, 4), FM_OK);
    put_pair(&out, "_msg_id", "short");
    put_text(&out, "ending");
    CHECK_INT(fm_msgpack_put_true(&out), FM_OK);
    put_pair(&out, "_unique_id", OTHER);
    put_text(&out, "result");
    /* A reply within a reply, at the end: it is not the one. */
    CHECK_INT(fm_msgpack_put_map(&out, 5), FM_OK);
    put_pair(&out, "result", "x");
    put_rest(&out, false, ID, OTHER);
    CHECK_INT(read_reply(out.data, out.len, &head), FM_OK);
    CHECK_TEXT(head.msg_id, "short");
    CHECK_INT(head.ending, true);
    for (size_t len = 0; len < out.len; len++)
        CHECK_INT(read_reply(out.data, len, &head), FM_BAD_MESSAGE);
    fm_buf_fini(&out);
}

static void
test_ending_is_what_python_would_take_for_true(void)
{
    static const struct {
        const char *value;
        size_t len;
        bool is_true;
    } rows[] = {
        { "\xc0", 1, false },
        { "\xc2", 1, false },
        { "\xc3", 1, true },
        { "\x00", 1, false },
        { "\x01", 1, true },
        { "\xff", 1, true },
        { "\xcb\0\0\0\0\0\0\0\0", 9, false },
        { "\xcb\x80\0\0\0\0\0\0\0", 9, false },
        { "\xcb\x7f\xf8\0\0\0\0\0\0", 9, true },
        { "\xcf\0\0\0\0\0\0\0\1", 9, true },
        { "\xa0", 1, false },
        { "\xa1x", 2, true },
        { "\x90", 1, false },
        { "\x91\xc0", 2, true },
        { "\x80", 1, false },
        { "\x81\xa1x\xc0", 4, true },
        { "\xc7\x02\x01-1", 5, true },
        { "\xc7\x01\x01\x30", 4, false },
    };
    fm_reply_head head;
    fm_buf out = { 0 };

    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        out.len = 0;
        CHECK_INT(fm_msgpack_put_map(&out, 2), FM_OK);
        put_pair(&out, "_msg_id", ID);
        put_text(&out, "ending");
        CHECK_INT(fm_buf_append(&out, rows[i].value, rows[i].len), FM_OK);
        CHECK_INT(read_reply(out.data, out.len, &head), FM_OK);
        CHECK_INT(head.ending, rows[i].is_true);
    }
    fm_buf_fini(&out);
}

static void
test_what_names_no_call_is_refused(void)
{
    static const struct {
        const char *body;
        size_t len;
    } rows[] = {
        { "", 0 },
        { "\x80", 1 },
        { "\xc0", 1 },
        { "\x91\xc0", 2 },
        { "\x91\x81\xa7_msg_id\xa1x", 12 }, /* an object in a list */
        { "\x81\xa7_msg_id\x01", 10 },
        { "\x81\xa7_msg_id\xa2x\0", 12 },
        { "\x81\x01\xa7_msg_id", 10 },               /* a key that is none */
        { "\x81\xa7_msg_id\xa1x\xc0", 12 },          /* and more */
        { "\x81\xa7_msg_id\xc4\x01x", 12 },          /* bytes */
        { "\x82\xa7_msg_id\xa1x\xa7_msg_id\0", 20 }, /* the last counts */
        { "\x82\xa7_msg_id\xa1x\xa1y\xc9\xff\xff\xff\xff\1", 19 },
    };
    uint8_t deep[3000];
    fm_reply_head head;

    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        CHECK_INT(read_reply(rows[i].body, rows[i].len, &head), FM_BAD_MESSAGE);
    memset(deep, 0x91, sizeof(deep));
    CHECK_INT(read_reply(deep, sizeof(deep), &head), FM_BAD_MESSAGE);
    memcpy(deep, "\x82\xa7_msg_id\xa1x\xa1y", 13);
    CHECK_INT(read_reply(deep, sizeof(deep), &head), FM_BAD_MESSAGE);
}

static void
test_an_id_has_its_length(void)
{
    char id[FM_MSG_ID_MAX + 2];
    fm_reply_head head;
    fm_buf out = { 0 };

    memset(id, 'i', sizeof(id));
    id[FM_MSG_ID_MAX + 1] = '\0';
    for (size_t len = FM_MSG_ID_MAX + 1; len > FM_MSG_ID_MAX - 2; len--) {
        id[len] = '\0';
        out.len = 0;
        CHECK_INT(fm_msgpack_put_map(&out, 1), FM_OK);
        put_pair(&out, "_msg_id", id);
        CHECK_INT(read_reply(out.data, out.len, &head),
            len > FM_MSG_ID_MAX ? FM_BAD_MESSAGE : FM_OK);
        if (len <= FM_MSG_ID_MAX)
            CHECK_TEXT(head.msg_id, id);
    }
    fm_buf_fini(&out);
}

static void
test_any_bytes_can_be_read(void)
{
    fm_reply_head head;
    fm_buf out = { 0 };
    uint32_t random = 1;

    for (int round = 0; round < 20000; round++) {
        begin_reply(&out, 5);
        put_text(&out, "x");
        put_rest(&out, true, ID, OTHER);
        for (int change = 0; change < 3; change++) {
            random = random * 1664525 + 1013904223;
            out.data[(random >> 8) % out.len] = (uint8_t)(random >> 24);
        }
        random = random * 1664525 + 1013904223;
        (void)!read_reply(out.data, (random >> 8) % (out.len + 1), &head);
    }
    fm_buf_fini(&out);
}

static void
check_written(fm_buf *out, const char *expected, size_t len)
{
    CHECK_BYTES(out->data, out->len, expected, len);
    out->len = 0;
}

static void
test_texts_are_utf8_and_pairs_are_joined(void)
{
    static const uint8_t narrow[] = { 'a', 0x7F, 0x80, 0xFF };
    static const uint16_t wide[] = { 'a', 0x7FF, 0x800, 0xD83D, 0xDE00, 0xDE00,
        0xD83D };
    static const uint32_t widest[] = { 0x10FFFF, 0xDC00, 0xD800, 0xD83D, 0xDE00,
        'z' };
    fm_buf out = { 0 };

    CHECK_INT(fm_msgpack_put_ucs1(&out, narrow, 4), FM_OK);
    check_written(&out,
        "\xa6"
        "a\x7f\xc2\x80\xc3\xbf",
        7);
    CHECK_INT(fm_msgpack_put_ucs2(&out, wide, 7), FM_OK);
    check_written(&out,
        "\xb0"
        "a\xdf\xbf\xe0\xa0\x80\xf0\x9f\x98\x80\xed\xb8\x80\xed\xa0\xbd",
        17);
    CHECK_INT(fm_msgpack_put_ucs4(&out, widest, 6), FM_OK);
    check_written(&out,
        "\xaf\xf4\x8f\xbf\xbf\xed\xb0\x80\xed\xa0\x80\xf0\x9f\x98\x80z", 16);
    CHECK_INT(fm_msgpack_put_ucs2(&out, wide, 0), FM_OK);
    check_written(&out, "\xa0", 1);
    CHECK_INT(fm_msgpack_put_ucs4(&out, widest + 3, 1), FM_OK);
    check_written(&out, "\xa3\xed\xa0\xbd", 4);
    fm_buf_fini(&out);
}

static void
test_ascii_is_told_from_the_rest_at_every_place(void)
{
    uint8_t text[50];

    for (size_t len = 0; len <= sizeof(text); len++) {
        memset(text, 'x', sizeof(text));
        CHECK(fm_msgpack_is_ascii(text, len));
        for (size_t at = 0; at < sizeof(text); at++) {
            text[at] = 0x80;
            CHECK_INT(fm_msgpack_is_ascii(text, len), at >= len);
            text[at] = 'x';
        }
    }
}

static void
test_a_name_is_found_among_others(void)
{
    static const struct {
        const char *names;
        bool found;
    } rows[] = { { "msgpack", true }, { "cbor, msgpack", true },
        { "msgpack,cbor", true }, { " msgpack ", true }, { "", false },
        { "msgpack2", false }, { "xmsgpack", false }, { ",,, ,", false },
        { "msg,pack", false }, { "MSGPACK", false } };

    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        CHECK_INT(fm_msgpack_is_named((fm_slice){
                      (const uint8_t *)rows[i].names, strlen(rows[i].names) }),
            rows[i].found);
    CHECK(!fm_msgpack_is_named((fm_slice){ NULL, 0 }));
}

int
main(void)
{
    RUN(test_a_reply_of_ours_is_read_by_its_end);
    RUN(test_a_reply_in_another_order_is_read_as_a_whole);
    RUN(test_ending_is_what_python_would_take_for_true);
    RUN(test_what_names_no_call_is_refused);
    RUN(test_an_id_has_its_length);
    RUN(test_any_bytes_can_be_read);
    RUN(test_texts_are_utf8_and_pairs_are_joined);
    RUN(test_ascii_is_told_from_the_rest_at_every_place);
    RUN(test_a_name_is_found_among_others);
    return 0;
}
