/* JSON text at both depths: what is written, what is read and refused. */
#include "wire/json.h"

#include "check.h"

#include <stdlib.h>

static fm_json_reader
reader_of(const char *text)
{
    const uint8_t *bytes = (const uint8_t *)text;

    return (fm_json_reader){ bytes, bytes + strlen(text), false };
}

/* The same text in memory of its own size, so that ASan sees a byte too far. */
static fm_json_reader
tight_reader(fm_buf *copy, const void *text, size_t len)
{
    fm_buf_fini(copy);
    copy->data = malloc(len > 0 ? len : 1);
    CHECK(copy->data != NULL);
    memcpy(copy->data, text, len);
    copy->len = copy->cap = len;
    return (fm_json_reader){ copy->data, copy->data + len, false };
}

static void
check_written(fm_buf *out, const char *expected)
{
    CHECK_BYTES(out->data, out->len, expected, strlen(expected));
    out->len = 0;
}

static void
test_strings_are_ascii_at_both_depths(void)
{
    static const uint8_t narrow[] = "a\"b\\c\b\f\n\r\t/\x01\x1F ~\x7F\x80\xE9";
    static const uint16_t wide[] = { 'x', '"', 0x100, 0xD800, 0xFFFF };
    static const uint32_t wider[] = { 'x', '\\', 0x1F600, 0xDC00, 0x10FFFF };
    fm_buf out = { 0 };

    CHECK_INT(
        fm_json_write_ucs1(&out, &fm_json_plain, narrow, sizeof(narrow) - 1),
        FM_OK);
    check_written(&out,
        "\"a\\\"b\\\\c\\b\\f\\n\\r\\t/\\u0001\\u001f ~\\u007f\\u0080\\u00e9\"");
    CHECK_INT(
        fm_json_write_ucs1(&out, &fm_json_quoted, narrow, sizeof(narrow) - 1),
        FM_OK);
    check_written(&out,
        "\\\"a\\\\\\\"b\\\\\\\\c\\\\b\\\\f\\\\n\\\\r\\\\t/\\\\u0001\\\\u001f ~"
        "\\\\u007f\\\\u0080\\\\u00e9\\\"");
    CHECK_INT(fm_json_write_ucs2(&out, &fm_json_plain, wide, 5), FM_OK);
    check_written(&out, "\"x\\\"\\u0100\\ud800\\uffff\"");
    CHECK_INT(fm_json_write_ucs2(&out, &fm_json_quoted, wide, 5), FM_OK);
    check_written(&out, "\\\"x\\\\\\\"\\\\u0100\\\\ud800\\\\uffff\\\"");
    CHECK_INT(fm_json_write_ucs4(&out, &fm_json_plain, wider, 5), FM_OK);
    check_written(&out, "\"x\\\\\\ud83d\\ude00\\udc00\\udbff\\udfff\"");
    CHECK_INT(fm_json_write_ucs4(&out, &fm_json_quoted, wider, 5), FM_OK);
    check_written(
        &out, "\\\"x\\\\\\\\\\\\ud83d\\\\ude00\\\\udc00\\\\udbff\\\\udfff\\\"");
    CHECK_INT(fm_json_write_ucs1(&out, &fm_json_plain, narrow, 0), FM_OK);
    check_written(&out, "\"\"");
    fm_buf_fini(&out);
}

/* One character that needs an escape, at every place of strings of every
 * length around the block sizes. */
static void
test_an_escape_is_found_at_any_place(void)
{
    static const uint8_t odd[] = { '"', '\\', 0, 0x1F, 0x7F, 0x80, 0xFF };
    size_t len, at, i;
    uint8_t *text;
    fm_buf out = { 0 };
    char expected[8];
    size_t expected_len;

    for (len = 0; len < 70; len++) {
        text = malloc(len + 1);
        CHECK(text != NULL);
        for (at = 0; at <= len; at++) {
            for (i = 0; i < sizeof(odd); i++) {
                memset(text, 'a', len + 1);
                text[at] = odd[i];
                out.len = 0;
                CHECK_INT(
                    fm_json_write_ucs1(&out, &fm_json_plain, text, len + 1),
                    FM_OK);
                expected_len = (size_t)snprintf(expected, sizeof(expected),
                    odd[i] == '"' || odd[i] == '\\' ? "\\%c" : "\\u%04x",
                    odd[i]);
                CHECK_INT(out.len, len + 2 + expected_len);
                CHECK(memcmp(out.data + 1 + at, expected, expected_len) == 0);
                CHECK(out.data[at] == (at == 0 ? '"' : 'a'));
                CHECK(out.data[out.len - 2]
                    == (at == len ? (uint8_t)expected[expected_len - 1] : 'a'));
                CHECK(fm_json_find_special(text, text + len + 1)
                    == (odd[i] == 0x7F ? text + len + 1 : text + at));
            }
        }
        free(text);
    }
    fm_buf_fini(&out);
}

static void
test_long_strings_are_written_in_parts(void)
{
    static uint32_t wider[2000];
    static uint8_t narrow[2000];
    fm_buf out = { 0 };
    size_t i;

    for (i = 0; i < 2000; i++) {
        wider[i] = i % 3 == 0 ? 0x1F600 : 'a';
        narrow[i] = i % 3 == 0 ? 0xE9 : 'a';
    }
    CHECK_INT(fm_json_write_ucs4(&out, &fm_json_quoted, wider, 2000), FM_OK);
    CHECK_INT(out.len, 4 + 667 * 14 + 1333);
    out.len = 0;
    CHECK_INT(fm_json_write_ucs1(&out, &fm_json_quoted, narrow, 2000), FM_OK);
    CHECK_INT(out.len, 4 + 667 * 7 + 1333);
    fm_buf_fini(&out);
}

static void
test_integers_of_every_size(void)
{
    fm_buf out = { 0 };

    CHECK_INT(fm_json_write_int(&out, 0), FM_OK);
    check_written(&out, "0");
    CHECK_INT(fm_json_write_int(&out, -1), FM_OK);
    check_written(&out, "-1");
    CHECK_INT(fm_json_write_int(&out, INT64_MAX), FM_OK);
    check_written(&out, "9223372036854775807");
    CHECK_INT(fm_json_write_int(&out, INT64_MIN), FM_OK);
    check_written(&out, "-9223372036854775808");
    fm_buf_fini(&out);
}

/* Read a string from behind its opening quote; NULL if it is refused. */
static const char *
text_of(const char *string, size_t len)
{
    static uint8_t text[64];
    fm_buf copy = { 0 };
    fm_json_reader reader = tight_reader(&copy, string, len);
    size_t text_len = 0;
    bool read = fm_json_read_text(&reader, text, sizeof(text) - 1, &text_len);

    fm_buf_fini(&copy);
    if (!read || text_len >= sizeof(text))
        return NULL;
    text[text_len] = '\0';
    return (const char *)text;
}

#define TEXT_OF(string) text_of(string, sizeof(string) - 1)

static void
test_strings_mean_what_python_reads(void)
{
    CHECK_TEXT(TEXT_OF("\""), "");
    CHECK_TEXT(TEXT_OF("abc\" rest"), "abc");
    CHECK_TEXT(TEXT_OF("\\\"\\\\\\/\\b\\f\\n\\r\\t\""), "\"\\/\b\f\n\r\t");
    CHECK_TEXT(TEXT_OF("\\u00e9\\u00E9\xC3\xA9\""), "\xC3\xA9\xC3\xA9\xC3\xA9");
    CHECK_TEXT(TEXT_OF("\\ud83d\\ude00\""), "\xF0\x9F\x98\x80");
    /* Lone surrogates, in the wrong order, and before an ordinary escape. */
    CHECK_TEXT(TEXT_OF("\\ud83d\""), "\xED\xA0\xBD");
    CHECK_TEXT(TEXT_OF("\\ude00\\ud83d\""), "\xED\xB8\x80\xED\xA0\xBD");
    CHECK_TEXT(TEXT_OF("\\ud83d\\u0041\""),
        "\xED\xA0\xBD"
        "A");
    CHECK_TEXT(
        TEXT_OF("\\ud83d\\ud83d\\ude00\""), "\xED\xA0\xBD\xF0\x9F\x98\x80");
    CHECK_TEXT(TEXT_OF("\x7F\""), "\x7F");
}

static void
test_broken_strings_are_refused(void)
{
    CHECK(TEXT_OF("") == NULL);
    CHECK(TEXT_OF("abc") == NULL);
    CHECK(TEXT_OF("\\") == NULL);
    CHECK(TEXT_OF("\\\"") == NULL);
    CHECK(TEXT_OF("\\x41\"") == NULL);
    CHECK(TEXT_OF("\\'\"") == NULL);
    CHECK(TEXT_OF("\\u12\"") == NULL);
    CHECK(TEXT_OF("\\u12") == NULL);
    CHECK(TEXT_OF("\\u12g4\"") == NULL);
    CHECK(TEXT_OF("\\ud83d\\u12g4\"") == NULL);
    CHECK(TEXT_OF("\n\"") == NULL);
    CHECK(TEXT_OF("\x1F\"") == NULL);
    CHECK(TEXT_OF("\0\"") == NULL);
    CHECK(TEXT_OF("\x80\"") == NULL);             /* a stray continuation */
    CHECK(TEXT_OF("\xC0\xAF\"") == NULL);         /* overlong */
    CHECK(TEXT_OF("\xE0\x80\xAF\"") == NULL);     /* overlong */
    CHECK(TEXT_OF("\xF0\x80\x80\xAF\"") == NULL); /* overlong */
    CHECK(TEXT_OF("\xED\xA0\x80\"") == NULL);     /* a surrogate */
    CHECK(TEXT_OF("\xF4\x90\x80\x80\"") == NULL); /* above 0x10FFFF */
    CHECK(TEXT_OF("\xF8\x88\x80\x80\x80\"") == NULL);
    CHECK(TEXT_OF("\xC3\"") == NULL);
    CHECK(TEXT_OF("\xE2\x82") == NULL); /* cut */
    CHECK(TEXT_OF("\xFF\"") == NULL);
}

static void
test_a_text_that_is_too_long_is_measured_and_not_stored(void)
{
    fm_json_reader reader = reader_of("abcdefgh\\u00e9\", 1");
    uint8_t text[4] = "....";
    size_t len = 0;

    CHECK(fm_json_read_text(&reader, text, 3, &len));
    CHECK_INT(len, 10);
    CHECK(text[3] == '.');
    CHECK_INT(*reader.pos, ',');
}

static fm_json_step
last_quoted_step(const char *string)
{
    fm_buf copy = { 0 };
    fm_json_reader reader = tight_reader(&copy, string, strlen(string));
    fm_json_piece piece;
    fm_json_step step;

    do {
        step = fm_json_next_piece(&reader, true, &piece);
    } while (step == FM_JSON_CODE);
    fm_buf_fini(&copy);
    return step;
}

static void
test_quoted_strings_end_and_escape_with_more_backslashes(void)
{
    fm_json_reader reader =
        reader_of("ab\\\\\\\"c\\\\\\\\\\\\ud83d\\\\ude00\\\"");
    fm_json_piece piece;

    CHECK_INT(fm_json_next_piece(&reader, true, &piece), FM_JSON_CODE);
    CHECK_BYTES(piece.run, piece.run_len, "ab", 2);
    CHECK_INT(piece.code, '"');
    CHECK_INT(fm_json_next_piece(&reader, true, &piece), FM_JSON_CODE);
    CHECK_BYTES(piece.run, piece.run_len, "c", 1);
    CHECK_INT(piece.code, '\\');
    CHECK_INT(fm_json_next_piece(&reader, true, &piece), FM_JSON_CODE);
    CHECK_INT(piece.code, 0x1F600);
    CHECK_INT(fm_json_next_piece(&reader, true, &piece), FM_JSON_END);
    CHECK(reader.pos == reader.end);

    CHECK_INT(
        last_quoted_step("x\xC3\xA9\\\\/\\\\n\\\\u0041\\\""), FM_JSON_END);
    CHECK_INT(last_quoted_step("x\""), FM_JSON_BAD); /* the outer string ends */
    CHECK_INT(last_quoted_step("x\\\\\""), FM_JSON_BAD);
    CHECK_INT(last_quoted_step("x\\\\\\"), FM_JSON_BAD);
    CHECK_INT(last_quoted_step("x\\\\"), FM_JSON_BAD);
    CHECK_INT(last_quoted_step("x\\"), FM_JSON_BAD);
    CHECK_INT(last_quoted_step("x\\u0022"), FM_JSON_BAD); /* for the slow way */
    CHECK_INT(last_quoted_step("x\\/\\\""), FM_JSON_BAD);
    CHECK_INT(last_quoted_step("x\\\\\\n\\\""), FM_JSON_BAD);
}

/* The length of the number at the start, or -1. */
static int
number_len(const char *text, bool *integral)
{
    fm_buf copy = { 0 };
    fm_json_reader reader = tight_reader(&copy, text, strlen(text));
    fm_json_number number = { .integral = false };
    int len = -1;

    if (fm_json_read_number(&reader, &number)) {
        len = (int)number.text.len;
        *integral = number.integral;
    }
    fm_buf_fini(&copy);
    return len;
}

static void
test_numbers(void)
{
    static const char *const refused[] = { "", "-", "+1", ".5", "5.", "1.e5",
        "01", "-01", "1e", "1e+", "0x1F", "a" };
    bool integral = false;
    size_t i;

    CHECK_INT(number_len("0", &integral), 1);
    CHECK(integral);
    CHECK_INT(number_len("-120,", &integral), 4);
    CHECK(integral);
    CHECK_INT(number_len("0.5]", &integral), 3);
    CHECK(!integral);
    CHECK_INT(number_len("-1.25e-10 ", &integral), 9);
    CHECK(!integral);
    CHECK_INT(number_len("1E5", &integral), 3);
    CHECK(!integral);
    for (i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
        /* "0x1F" is a 0 and something that no container accepts. */
        if (strcmp(refused[i], "0x1F") == 0)
            CHECK_INT(number_len(refused[i], &integral), 1);
        else
            CHECK_INT(number_len(refused[i], &integral), -1);
    }
}

/* Whether the text is one value and nothing else. */
static bool
is_value(const char *text, size_t len)
{
    fm_buf copy = { 0 };
    fm_json_reader reader = tight_reader(&copy, text, len);
    bool is = fm_json_skip_value(&reader) && reader.pos == reader.end;

    fm_buf_fini(&copy);
    return is;
}

static void
test_values_are_checked_while_skipped(void)
{
    static const char *const good[] = { "null", "true", "false", "NaN",
        "Infinity", "-Infinity", "-0", "1e999", "\"\"", "{}", "[]", "[ ]",
        "{\n}", "[1, 2 ,3]", "[[],[[]],{}]", "{\"a\":1 , \"a\" : {\"b\":[{}]}}",
        "{\"\":\"\\ud800\"}" };
    static const char *const bad[] = { "", "nul", "nan", "True", "infinity",
        "-Inf", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{", "{\"a\"",
        "{\"a\":", "{\"a\":1", "{\"a\":1,}", "{1:2}", "{a:1}", "{\"a\" 1}",
        "[1}", "{\"a\":1]", "'a'", "[1]x", "\xEF\xBB\xBF[]", "\xC2\xA0",
        "// x\n1", "[\"\n\"]", "[\"\xFF\"]", "1 ", "[[[]]" };
    size_t i;

    for (i = 0; i < sizeof(good) / sizeof(*good); i++) {
        if (!is_value(good[i], strlen(good[i])))
            CHECK_FAIL("refused: %s", good[i]);
    }
    for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        if (is_value(bad[i], strlen(bad[i])))
            CHECK_FAIL("accepted: %s", bad[i]);
    }
}

static void
test_depth_has_a_limit_and_takes_no_stack(void)
{
    enum { FAR = 1000000 };
    char *text = malloc(2 * FAR);

    CHECK(text != NULL);
    memset(text, '[', FAR);
    memset(text + FAR, ']', FAR);
    CHECK(is_value(
        text + FAR - FM_JSON_DEPTH_MAX - 1, 2 * (FM_JSON_DEPTH_MAX + 1)));
    CHECK(!is_value(
        text + FAR - FM_JSON_DEPTH_MAX - 2, 2 * (FM_JSON_DEPTH_MAX + 2)));
    CHECK(!is_value(text, 2 * FAR));
    free(text);
}

int
main(void)
{
    RUN(test_strings_are_ascii_at_both_depths);
    RUN(test_an_escape_is_found_at_any_place);
    RUN(test_long_strings_are_written_in_parts);
    RUN(test_integers_of_every_size);
    RUN(test_strings_mean_what_python_reads);
    RUN(test_broken_strings_are_refused);
    RUN(test_a_text_that_is_too_long_is_measured_and_not_stored);
    RUN(test_quoted_strings_end_and_escape_with_more_backslashes);
    RUN(test_numbers);
    RUN(test_values_are_checked_while_skipped);
    RUN(test_depth_has_a_limit_and_takes_no_stack);
    return 0;
}
