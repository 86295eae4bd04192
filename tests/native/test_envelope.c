/* The envelope: payload and reply head of bodies that stock, others or nobody
 * in his senses wrote. */
#include "wire/envelope.h"

#include "check.h"

#include <stdlib.h>

enum { FUZZ_ROUNDS = 1000000 };

/* The end of a reply as the stock driver writes it. */
#define STOCK_END(ending)                                                      \
    ", \\\"failure\\\": null, \\\"ending\\\": " ending                         \
    ", \\\"_msg_id\\\": \\\"8d76912c1b264d539c825e3654be6866\\\", "            \
    "\\\"_unique_id\\\": \\\"048eeba7f757485d84472cf0b08bc6bc\\\"}\"}"
#define STOCK_ID "8d76912c1b264d539c825e3654be6866"

static fm_slice
slice_of(const char *text)
{
    return (fm_slice){ (const uint8_t *)text, strlen(text) };
}

/* Read a reply from memory of exactly its size, so that ASan sees a byte too
 * far. */
static fm_status
read_reply(fm_slice body, fm_reply_head *head)
{
    uint8_t *copy = malloc(body.len > 0 ? body.len : 1);
    fm_status status;

    CHECK(copy != NULL);
    if (body.len > 0)
        memcpy(copy, body.data, body.len);
    status = fm_envelope_read_reply((fm_slice){ copy, body.len }, head);
    free(copy);
    return status;
}

static void
check_reply(const char *body, const char *msg_id, bool ending)
{
    fm_reply_head head = { .ending = !ending };

    CHECK_INT(read_reply(slice_of(body), &head), FM_OK);
    CHECK_TEXT(head.msg_id, msg_id);
    CHECK_INT(head.ending, ending);
}

/* An inner object as the only thing in an envelope. */
static void
check_inner(const char *inner, const char *msg_id, bool ending)
{
    char body[1024];

    snprintf(body, sizeof(body), "%s%s%s", FM_ENVELOPE_HEAD, inner,
        FM_ENVELOPE_TAIL);
    check_reply(body, msg_id, ending);
}

static void
check_no_reply(const char *body)
{
    fm_reply_head head = { "before", true };

    if (read_reply(slice_of(body), &head) != FM_BAD_MESSAGE)
        CHECK_FAIL("accepted: %s", body);
    CHECK_TEXT(head.msg_id, "before"); /* outputs are written on FM_OK only */
}

static void
check_no_inner(const char *inner)
{
    char body[1024];

    snprintf(body, sizeof(body), "%s%s%s", FM_ENVELOPE_HEAD, inner,
        FM_ENVELOPE_TAIL);
    check_no_reply(body);
}

static void
test_stock_replies(void)
{
    check_reply(FM_ENVELOPE_HEAD
        "{\\\"result\\\": {\\\"a\\\": 1}" STOCK_END("true"),
        STOCK_ID, true);
    check_reply(FM_ENVELOPE_HEAD "{\\\"result\\\": null" STOCK_END("false"),
        STOCK_ID, false);
    /* The result imitates the end of a reply, as well as a value can. */
    check_reply(FM_ENVELOPE_HEAD
        "{\\\"result\\\": \\\"x, \\\\\\\"ending\\\\\\\": false, \\\\\\\"_msg_id"
        "\\\\\\\": \\\\\\\"feigned\\\\\\\", \\\\\\\"_unique_id\\\\\\\": "
        "\\\\\\\"u\\\\\\\"}\\\"" STOCK_END("true"),
        STOCK_ID, true);
    check_reply(FM_ENVELOPE_HEAD
        "{\\\"result\\\": {\\\"ending\\\": false, \\\"_msg_id\\\": "
        "\\\"feigned\\\", \\\"_unique_id\\\": \\\"u\\\"}" STOCK_END("true"),
        STOCK_ID, true);
}

static void
test_a_stock_end_is_enough(void)
{
    /* Whoever waits for this reply finds out when decoding it. */
    check_reply(FM_ENVELOPE_HEAD "{\\\"result\\\": nonsense" STOCK_END("true"),
        STOCK_ID, true);
}

static void
test_members_in_any_order(void)
{
    check_inner("{\\\"_msg_id\\\": \\\"m1\\\", \\\"ending\\\": true, "
                "\\\"result\\\": [1, {\\\"_msg_id\\\": \\\"no\\\"}]}",
        "m1", true);
    check_inner("{\\\"ending\\\": true, \\\"ending\\\": false, \\\"_msg_id\\\":"
                " 1, \\\"_msg_id\\\": \\\"m2\\\"}",
        "m2", false);
    check_inner("{\\\"_msg_id\\\": \\\"m3\\\"}", "m3", false);
    check_inner("  {  \\\"_msg_id\\\"  :  \\\"m4\\\"  }  ", "m4", false);
    check_inner("{\\\"_msg\\\\u005fid\\\": \\\"\\\\u006d5\\\", "
                "\\\"\\\\u0065nding\\\": 1}",
        "m5", true);
    check_inner(
        "\\n{\\t\\u0022_msg_id\\u0022: \\u0022m\\/6\\u0022}\\r", "m/6", false);
    check_inner("{\\\"_msg_id\\\": \\\"\\\"}", "", false);
    check_reply(" {\"x\": [{}], \"oslo.message\": \"{\\\"_msg_id\\\": \\\"m7"
                "\\\"}\" , \"oslo.version\":\"2.0\"}\n",
        "m7", false);
    check_reply("{\"oslo.version\": \"1.0\", \"oslo.message\": 1, "
                "\"oslo.m\\u0065ssage\": \"{\\\"_msg_id\\\": \\\"m8\\\"}\", "
                "\"oslo.version\": \"2.0\"}",
        "m8", false);
    check_reply(FM_ENVELOPE_HEAD
        "{\\\"_msg_id\\\": \\\"old\\\"}\", \"oslo.message\": "
        "\"{\\\"_msg_id\\\": \\\"m9\\\"}\"}",
        "m9", false);
    check_inner("{\\\"_msg_id\\\": \\\"\xC3\xA9\\u00e9\\\\u00e9\\\"}",
        "\xC3\xA9\xC3\xA9\xC3\xA9", false);
}

static void
test_ending_is_true_as_python_sees_it(void)
{
    static const char *const falses[] = { "false", "null", "0", "-0", "0.0",
        "-0.0e5", "0E1", "\\\"\\\"", "[]", "[ ]", "{}", "{  }" };
    static const char *const trues[] = { "true", "1", "-1", "0.5", "-0.01",
        "1e0", "10", "NaN", "Infinity", "-Infinity", "\\\"false\\\"",
        "\\\"\\\\u0000\\\"", "[0]", "[[]]", "{\\\"\\\": 0}" };
    char inner[256];
    size_t i;

    for (i = 0; i < sizeof(falses) / sizeof(*falses); i++) {
        snprintf(inner, sizeof(inner),
            "{\\\"ending\\\": %s, \\\"_msg_id\\\": \\\"m\\\"}", falses[i]);
        check_inner(inner, "m", false);
    }
    for (i = 0; i < sizeof(trues) / sizeof(*trues); i++) {
        snprintf(inner, sizeof(inner),
            "{\\\"ending\\\": %s, \\\"_msg_id\\\": \\\"m\\\"}", trues[i]);
        check_inner(inner, "m", true);
    }
}

static void
test_no_replies(void)
{
    char inner[256];

    check_no_reply("");
    check_no_reply("{}");
    check_no_reply("[]");
    check_no_reply("null");
    check_no_reply("{\"_msg_id\": \"m\", \"ending\": true}");
    check_no_reply("{\"oslo.version\": \"2.0\"}");
    check_no_reply("{\"oslo.message\": \"{\\\"_msg_id\\\": \\\"m\\\"}\"}");
    check_no_reply("{\"oslo.version\": \"2.1\", \"oslo.message\": "
                   "\"{\\\"_msg_id\\\": \\\"m\\\"}\"}");
    check_no_reply("{\"oslo.version\": 2.0, \"oslo.message\": "
                   "\"{\\\"_msg_id\\\": \\\"m\\\"}\"}");
    check_no_reply("{\"oslo.version\": \"2.0\", \"oslo.message\": "
                   "{\"_msg_id\": \"m\"}}");
    check_no_reply("{\"oslo.version\": \"2.0\", \"oslo.message\": "
                   "\"{\\\"_msg_id\\\": \\\"m\\\"}\"} x");
    check_no_reply("{\"oslo.version\": \"2.0\", \"oslo.message\": "
                   "\"{\\\"_msg_id\\\": \\\"m\\\"}\"");
    check_no_reply("{\"oslo.version\": \"2.0\", \"oslo.message\": "
                   "\"{\\\"_msg_id\\\": \\\"m\\\"}\", \"x\": \"\xFF\"}");
    check_no_inner("");
    check_no_inner("[]");
    check_no_inner("{}");
    check_no_inner("{\\\"ending\\\": true}");
    check_no_inner("{\\\"_msg_id\\\": 5}");
    check_no_inner("{\\\"_msg_id\\\": null}");
    check_no_inner("{\\\"_msg_id\\\": \\\"m\\\", \\\"_msg_id\\\": null}");
    check_no_inner("{\\\"_msg_id\\\": \\\"a\\\\u0000b\\\"}");
    check_no_inner("{\\\"_msg_id\\\": \\\"m\\\"} {}");
    check_no_inner("{\\\"_msg_id\\\": \\\"m\\\", \\\"x\\\": [}");
    check_no_inner("{\\\"_msg_id\\\": \\\"m\\\"");

    snprintf(inner, sizeof(inner), "{\\\"_msg_id\\\": \\\"%064d\\\"}", 5);
    check_inner(inner,
        "0000000000000000000000000000000000000000000000000000000000000005",
        false);
    snprintf(inner, sizeof(inner), "{\\\"_msg_id\\\": \\\"%065d\\\"}", 5);
    check_no_inner(inner);
    snprintf(inner, sizeof(inner),
        "{\\\"r\\\": 1, \\\"ending\\\": true, \\\"_msg_id\\\": \\\"%065d\\\", "
        "\\\"_unique_id\\\": \\\"u\\\"}",
        5);
    check_no_inner(inner);
}

static void
check_payload(const char *body, const char *expected)
{
    fm_buf text = { 0 };

    CHECK_INT(fm_buf_append(&text, "before", 6), FM_OK);
    CHECK_INT(fm_envelope_read_payload(slice_of(body), &text), FM_OK);
    CHECK_BYTES(text.data, text.len, expected, strlen(expected));
    fm_buf_fini(&text);
}

static void
test_a_payload_is_unescaped_once(void)
{
    check_payload(FM_ENVELOPE_HEAD "" FM_ENVELOPE_TAIL, "");
    check_payload(FM_ENVELOPE_HEAD "{\\u0022a\\/\\\": \\\"\\\\n\\n\\\\\\\"\"}",
        "{\"a/\": \"\\n\n\\\"");
    check_payload(FM_ENVELOPE_HEAD "\\ud83d\\ude00\\ud83d\xC3\xA9\"}",
        "\xF0\x9F\x98\x80\xED\xA0\xBD\xC3\xA9");
}

/* ---- Random and mutated bodies ---- */

static uint64_t random_state = 20240817; /* the seed: runs are alike */

static uint32_t
random_below(uint32_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 32) % bound);
}

#define LONG_REPLY                                                             \
    FM_ENVELOPE_HEAD                                                           \
    "{\\\"result\\\": {\\\"a\\\": [1, 2.5, null], \\\"\\\\u00e9\\\": "         \
    "\\\"\\\\u65e5\\\"}" STOCK_END("true")
#define SHORT_REPLY FM_ENVELOPE_HEAD "{\\\"result\\\": null" STOCK_END("false")
#define OTHER_ORDER                                                            \
    FM_ENVELOPE_HEAD                                                           \
    "{\\\"ending\\\": 1, \\\"result\\\": [[{}, []], -Infinity], "              \
    "\\\"_msg_id\\\": \\\"abc\\\"}" FM_ENVELOPE_TAIL
#define OTHER_WRITER                                                           \
    "{\"oslo.message\": \"{\\u0022_msg_id\\u0022: \\\"\\ud83d\\ude00\\\"}\", " \
    "\"more\": [true, {\"x\": \"\xC3\xA9\"}], \"oslo.version\": \"2.0\"}"

static const char *const samples[] = { LONG_REPLY, SHORT_REPLY, OTHER_ORDER,
    OTHER_WRITER };

static const char *const tokens[] = { "\\", "\"", "\\\"", "\\\\", "{", "}", "[",
    "]", ",", ":", " ", "null", "true", "0", "-", "1e5", "\\u0022", "\\ud83d",
    "\xC3\xA9", "\xED\xA0\x80", "\xFF", "\n",
    "\\\"_msg_id\\\": ", "\\\"ending\\\": ", "\"oslo.message\": ", "\\\"}\"}",
    "2.0" };

enum { BODY_MAX = 2048 };

static size_t
random_body(uint8_t *body)
{
    const char *sample = samples[random_below(4)];
    size_t len = strlen(sample);
    uint32_t changes = random_below(6);
    const char *token;
    size_t token_len, at, cut;

    if (random_below(50) == 0) { /* noise alone */
        len = random_below(64);
        for (at = 0; at < len; at++)
            body[at] = (uint8_t)random_below(256);
        return len;
    }
    memcpy(body, sample, len);
    for (; changes > 0; changes--) {
        at = random_below((uint32_t)len + 1);
        switch (random_below(5)) {
        case 0: /* another byte */
            if (at < len)
                body[at] = (uint8_t)random_below(256);
            break;
        case 1: /* a hole */
            cut = random_below(8);
            if (cut > len - at)
                cut = len - at;
            memmove(body + at, body + at + cut, len - at - cut);
            len -= cut;
            break;
        case 2: /* cut off */
            if (random_below(4) == 0)
                len = at;
            break;
        default: /* something that means something */
            token = tokens[random_below(sizeof(tokens) / sizeof(*tokens))];
            token_len = strlen(token);
            if (len + token_len <= BODY_MAX) {
                memmove(body + at + token_len, body + at, len - at);
                memcpy(body + at, token, token_len);
                len += token_len;
            }
        }
    }
    return len;
}

/* Nothing is read beyond the body, and a body that is read as a whole gives
 * what its end alone gave. A blank behind it forces the former. */
static void
test_random_and_mutated_bodies(void)
{
    static uint8_t body[BODY_MAX + 1];
    fm_reply_head head;
    fm_reply_head whole;
    fm_status status;
    fm_status whole_status;
    size_t len;
    int accepted = 0;
    int refused = 0;
    int round;

    for (round = 0; round < FUZZ_ROUNDS; round++) {
        len = random_body(body);
        status = read_reply((fm_slice){ body, len }, &head);
        body[len] = ' ';
        whole_status = read_reply((fm_slice){ body, len + 1 }, &whole);
        if (whole_status == FM_OK) {
            CHECK_INT(status, FM_OK);
            CHECK_TEXT(head.msg_id, whole.msg_id);
            CHECK_INT(head.ending, whole.ending);
            accepted++;
        } else {
            CHECK_INT(whole_status, FM_BAD_MESSAGE);
            CHECK(status == FM_OK || status == FM_BAD_MESSAGE);
            refused++;
        }
    }
    /* The mutations are neither all too harmless nor all too harmful. */
    CHECK(accepted > FUZZ_ROUNDS / 20);
    CHECK(refused > FUZZ_ROUNDS / 20);
}

int
main(void)
{
    RUN(test_stock_replies);
    RUN(test_a_stock_end_is_enough);
    RUN(test_members_in_any_order);
    RUN(test_ending_is_true_as_python_sees_it);
    RUN(test_no_replies);
    RUN(test_a_payload_is_unescaped_once);
    RUN(test_random_and_mutated_bodies);
    return 0;
}
