#include "wire/json.h"

#include <string.h>

const fm_json_style fm_json_plain = { 1, "\"", "\\" };
const fm_json_style fm_json_quoted = { 2, { '\\', '"' }, { '\\', '\\' } };

static const char hex_digits[] = "0123456789abcdef";

/* Room for the longest escape of a character, a surrogate pair in quoted
 * text, and how many characters are converted per look at the room. */
enum { ESCAPE_MAX = 14, ESCAPE_MAX_BMP = 7, PART = 512 };

/* ---- Writing ---- */

/* Up to eight bytes of which none needs an escape; the test is exact for the
 * question "any at all?". */
static inline bool
is_clean_word(uint64_t bytes)
{
    const uint64_t ones = UINT64_C(0x0101010101010101);

    return (((bytes - ones * ' ') | ((bytes ^ ones * '"') - ones)
                | ((bytes ^ ones * '\\') - ones)
                | ((bytes ^ ones * 0x7F) - ones) | bytes)
               & (ones << 7))
        == 0;
}

static inline bool
is_clean(uint32_t code)
{
    return code >= ' ' && code < 0x7F && code != '"' && code != '\\';
}

#if defined(__SSE2__)

/* Copy 16 bytes, and say which of them should have been escaped. */
static inline unsigned
copy_block(uint8_t *to, const uint8_t *from)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)from);
    __m128i low = _mm_cmplt_epi8(bytes, _mm_set1_epi8(' '));
    __m128i quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('"'));
    __m128i backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'));
    __m128i del = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7F));

    _mm_storeu_si128((__m128i *)(void *)to, bytes);
    return (unsigned)_mm_movemask_epi8(
        _mm_or_si128(_mm_or_si128(low, quote), _mm_or_si128(backslash, del)));
}

enum { BLOCK = 16 };

#else

static inline unsigned
copy_block(uint8_t *to, const uint8_t *from)
{
    uint64_t bytes;
    unsigned mask = 0;
    unsigned i;

    memcpy(&bytes, from, 8);
    memcpy(to, &bytes, 8);
    if (!is_clean_word(bytes)) {
        for (i = 0; i < 8; i++)
            mask |= (unsigned)!is_clean(from[i]) << i;
    }
    return mask;
}

enum { BLOCK = 8 };

#endif

/* Copy the clean start of `count` bytes and return its length. What lies in
 * `to` behind that is garbage, up to count. */
static inline size_t
copy_clean(uint8_t *to, const uint8_t *from, size_t count)
{
    size_t done = 0;
    unsigned mask;

    if (count >= BLOCK) {
        for (; count - done >= BLOCK; done += BLOCK) {
            mask = copy_block(to + done, from + done);
            if (mask != 0)
                return done + (size_t)__builtin_ctz(mask);
        }
        if (done == count)
            return done;
        /* The rest with a block that overlaps what is known to be clean. */
        mask = copy_block(to + count - BLOCK, from + count - BLOCK);
        return mask == 0 ? count : count - BLOCK + (size_t)__builtin_ctz(mask);
    }
    if (count >= 8) {
        uint64_t head;
        uint64_t tail;

        memcpy(&head, from, 8);
        memcpy(&tail, from + count - 8, 8);
        if (is_clean_word(head) && is_clean_word(tail)) {
            memcpy(to, &head, 8);
            memcpy(to + count - 8, &tail, 8);
            return count;
        }
    } else if (count >= 4) {
        uint32_t head;
        uint32_t tail;

        memcpy(&head, from, 4);
        memcpy(&tail, from + count - 4, 4);
        if (is_clean_word((uint64_t)head << 32 | tail)) {
            memcpy(to, &head, 4);
            memcpy(to + count - 4, &tail, 4);
            return count;
        }
    }
    for (; done < count && is_clean(from[done]); done++)
        to[done] = from[done];
    return done;
}

static inline uint8_t *
put_hex(uint8_t *to, const fm_json_style *style, uint32_t unit)
{
    memcpy(to, style->backslash, 2);
    to += style->width;
    to[0] = 'u';
    to[1] = (uint8_t)hex_digits[unit >> 12 & 15];
    to[2] = (uint8_t)hex_digits[unit >> 8 & 15];
    to[3] = (uint8_t)hex_digits[unit >> 4 & 15];
    to[4] = (uint8_t)hex_digits[unit & 15];
    return to + 5;
}

static uint8_t *
put_escape(uint8_t *to, const fm_json_style *style, uint32_t code)
{
    uint8_t letter;

    switch (code) {
    case '"':
    case '\\':
        /* The escaped one is itself quoted where the backslash is. */
        memcpy(to, style->backslash, 2);
        to += style->width;
        memcpy(to, code == '"' ? style->quote : style->backslash, 2);
        return to + style->width;
    case '\b':
        letter = 'b';
        break;
    case '\f':
        letter = 'f';
        break;
    case '\n':
        letter = 'n';
        break;
    case '\r':
        letter = 'r';
        break;
    case '\t':
        letter = 't';
        break;
    default:
        if (code >= 0x10000) {
            to = put_hex(to, style, 0xD7C0 + (code >> 10));
            code = 0xDC00 + (code & 0x3FF);
        }
        return put_hex(to, style, code);
    }
    memcpy(to, style->backslash, 2);
    to += style->width;
    *to = letter;
    return to + 1;
}

static inline uint8_t *
put_quote(uint8_t *to, const fm_json_style *style)
{
    memcpy(to, style->quote, 2);
    return to + style->width;
}

/* Room for `count` characters of at most `each` bytes and both quotes, each
 * of which is stored as two bytes even where one counts. */
static inline fm_status
reserve_part(fm_buf *out, size_t count, size_t each)
{
    return fm_buf_reserve(out, count * each + 6);
}

fm_status
fm_json_write_ucs1(
    fm_buf *out, const fm_json_style *style, const uint8_t *chars, size_t count)
{
    size_t part = count < PART ? count : PART;
    size_t done;
    uint8_t *to;

    if (FM_UNLIKELY(reserve_part(out, part, ESCAPE_MAX_BMP) != FM_OK))
        return FM_NO_MEMORY;
    to = put_quote(out->data + out->len, style);
    for (;;) {
        while (part > 0) {
            done = copy_clean(to, chars, part);
            to += done;
            chars += done;
            count -= done;
            part -= done;
            if (part > 0) {
                to = put_escape(to, style, *chars++);
                count--;
                part--;
            }
        }
        if (FM_LIKELY(count == 0))
            break;
        out->len = (size_t)(to - out->data);
        part = count < PART ? count : PART;
        if (reserve_part(out, part, ESCAPE_MAX_BMP) != FM_OK)
            return FM_NO_MEMORY;
        to = out->data + out->len;
    }
    to = put_quote(to, style);
    out->len = (size_t)(to - out->data);
    return FM_OK;
}

/* The same for wider characters, of which most need an escape: one by one. */
static inline fm_status
write_wide(fm_buf *out, const fm_json_style *style, const void *chars,
    size_t count, const bool is_ucs4)
{
    size_t each = is_ucs4 ? ESCAPE_MAX : ESCAPE_MAX_BMP;
    size_t next = 0;
    size_t stop;
    uint32_t code;
    uint8_t *to;

    if (reserve_part(out, 0, each) != FM_OK)
        return FM_NO_MEMORY;
    to = put_quote(out->data + out->len, style);
    out->len = (size_t)(to - out->data);
    while (next < count) {
        stop = count - next < PART ? count : next + PART;
        if (reserve_part(out, stop - next, each) != FM_OK)
            return FM_NO_MEMORY;
        to = out->data + out->len;
        for (; next < stop; next++) {
            code = is_ucs4 ? ((const uint32_t *)chars)[next]
                           : ((const uint16_t *)chars)[next];
            if (is_clean(code))
                *to++ = (uint8_t)code;
            else
                to = put_escape(to, style, code);
        }
        out->len = (size_t)(to - out->data);
    }
    if (reserve_part(out, 0, each) != FM_OK)
        return FM_NO_MEMORY;
    to = put_quote(out->data + out->len, style);
    out->len = (size_t)(to - out->data);
    return FM_OK;
}

fm_status
fm_json_write_ucs2(fm_buf *out, const fm_json_style *style,
    const uint16_t *chars, size_t count)
{
    return write_wide(out, style, chars, count, false);
}

fm_status
fm_json_write_ucs4(fm_buf *out, const fm_json_style *style,
    const uint32_t *chars, size_t count)
{
    return write_wide(out, style, chars, count, true);
}

fm_status
fm_json_write_int(fm_buf *out, int64_t value)
{
    uint8_t digits[20]; /* -9223372036854775808 */
    uint8_t *first = digits + sizeof(digits);
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;

    do {
        *--first = (uint8_t)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (value < 0)
        *--first = '-';
    return fm_buf_append(out, first, (size_t)(digits + sizeof(digits) - first));
}

/* ---- Reading ---- */

static inline bool
is_high_surrogate(uint32_t code)
{
    return code >= 0xD800 && code < 0xDC00;
}

static inline bool
is_low_surrogate(uint32_t code)
{
    return code >= 0xDC00 && code < 0xE000;
}

fm_json_step
fm_json_read_utf8(fm_json_reader *reader, uint32_t *code)
{
    const uint8_t *pos = reader->pos;
    uint32_t value = *pos++;
    uint32_t least;
    int more;

    if (value >= 0xC2 && value < 0xE0) {
        value &= 0x1F;
        least = 0x80;
        more = 1;
    } else if (value >= 0xE0 && value < 0xF0) {
        value &= 0x0F;
        least = 0x800;
        more = 2;
    } else if (value >= 0xF0 && value < 0xF5) {
        value &= 0x07;
        least = 0x10000;
        more = 3;
    } else {
        return FM_JSON_BAD;
    }
    if (reader->end - pos < more)
        return FM_JSON_BAD;
    for (; more > 0; more--, pos++) {
        if ((*pos & 0xC0) != 0x80)
            return FM_JSON_BAD;
        value = value << 6 | (*pos & 0x3Fu);
    }
    if (value < least || value > 0x10FFFF)
        return FM_JSON_BAD;
    if (value >= 0xD800 && value < 0xE000 && !reader->surrogates)
        return FM_JSON_BAD;
    reader->pos = pos;
    *code = value;
    return FM_JSON_CODE;
}

/* Four hexadecimal digits; -1 if they are not there. */
static int32_t
read_hex(const uint8_t *pos, const uint8_t *end)
{
    int32_t value = 0;
    int i;

    if (end - pos < 4)
        return -1;
    for (i = 0; i < 4; i++) {
        int32_t digit = pos[i];

        if (digit >= '0' && digit <= '9')
            digit -= '0';
        else if (digit >= 'a' && digit <= 'f')
            digit -= 'a' - 10;
        else if (digit >= 'A' && digit <= 'F')
            digit -= 'A' - 10;
        else
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* What the escapes of one letter mean; none means 0. */
static const uint8_t letter_codes[256] = {
    ['"'] = '"',
    ['\\'] = '\\',
    ['/'] = '/',
    ['b'] = '\b',
    ['f'] = '\f',
    ['n'] = '\n',
    ['r'] = '\r',
    ['t'] = '\t',
};

fm_json_step
fm_json_read_escape(fm_json_reader *reader, bool quoted, uint32_t *code)
{
    static const uint8_t introducers[2][3] = { "\\u", "\\\\u" };
    const uint8_t *pos = reader->pos;
    const uint8_t *introducer = introducers[quoted];
    ptrdiff_t introducer_len = quoted ? 3 : 2;
    uint8_t letter;
    int32_t unit;
    int32_t second;

    if (pos == reader->end)
        return FM_JSON_BAD;
    letter = *pos++;
    *code = letter_codes[letter];
    if (FM_LIKELY(*code != 0)) {
        if (quoted && *code == '"')
            return FM_JSON_BAD; /* the string around us ends here */
        if (quoted && *code == '\\') {
            if (pos == reader->end || (*pos != '"' && *pos != '\\'))
                return FM_JSON_BAD;
            *code = *pos++;
        }
        reader->pos = pos;
        return FM_JSON_CODE;
    }
    if (letter != 'u')
        return FM_JSON_BAD;
    unit = read_hex(pos, reader->end);
    if (unit < 0)
        return FM_JSON_BAD;
    pos += 4;
    *code = (uint32_t)unit;
    /* Two escapes may make one character; alone each stays what it is. */
    if (is_high_surrogate(*code) && reader->end - pos >= introducer_len
        && memcmp(pos, introducer, (size_t)introducer_len) == 0) {
        second = read_hex(pos + introducer_len, reader->end);
        if (second >= 0 && is_low_surrogate((uint32_t)second)) {
            pos += introducer_len + 4;
            *code = 0x10000 + ((*code - 0xD800) << 10)
                + ((uint32_t)second - 0xDC00);
        }
    }
    reader->pos = pos;
    return FM_JSON_CODE;
}

static const uint8_t *
skip_digits(const uint8_t *pos, const uint8_t *end)
{
    while (pos < end && *pos >= '0' && *pos <= '9')
        pos++;
    return pos;
}

bool
fm_json_read_number(fm_json_reader *reader, fm_json_number *number)
{
    const uint8_t *pos = reader->pos;
    const uint8_t *end = reader->end;
    const uint8_t *digits;
    bool integral = true;

    if (pos < end && *pos == '-')
        pos++;
    digits = pos;
    pos = skip_digits(pos, end);
    if (pos == digits || (*digits == '0' && pos - digits > 1))
        return false;
    if (pos < end && *pos == '.') {
        integral = false;
        digits = ++pos;
        pos = skip_digits(pos, end);
        if (pos == digits)
            return false;
    }
    if (pos < end && (*pos == 'e' || *pos == 'E')) {
        integral = false;
        pos++;
        if (pos < end && (*pos == '+' || *pos == '-'))
            pos++;
        digits = pos;
        pos = skip_digits(pos, end);
        if (pos == digits)
            return false;
    }
    number->text.data = reader->pos;
    number->text.len = (size_t)(pos - reader->pos);
    number->integral = integral;
    reader->pos = pos;
    return true;
}

/* A character as UTF-8, in at most four bytes; returns how many. */
static size_t
put_utf8(uint8_t *to, uint32_t code)
{
    if (code < 0x80) {
        to[0] = (uint8_t)code;
        return 1;
    }
    if (code < 0x800) {
        to[0] = (uint8_t)(0xC0 | code >> 6);
        to[1] = (uint8_t)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (uint8_t)(0xE0 | code >> 12);
        to[1] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
        to[2] = (uint8_t)(0x80 | (code & 0x3F));
        return 3;
    }
    to[0] = (uint8_t)(0xF0 | code >> 18);
    to[1] = (uint8_t)(0x80 | (code >> 12 & 0x3F));
    to[2] = (uint8_t)(0x80 | (code >> 6 & 0x3F));
    to[3] = (uint8_t)(0x80 | (code & 0x3F));
    return 4;
}

bool
fm_json_read_text(
    fm_json_reader *reader, uint8_t *text, size_t room, size_t *len)
{
    size_t total = 0;
    fm_json_piece piece;
    fm_json_step step;
    uint8_t character[4];
    size_t part;

    do {
        step = fm_json_next_piece(reader, false, &piece);
        if (step == FM_JSON_BAD)
            return false;
        if (total <= room && piece.run_len <= room - total)
            memcpy(text + total, piece.run, piece.run_len);
        total += piece.run_len;
        if (step == FM_JSON_CODE) {
            part = put_utf8(character, piece.code);
            if (total <= room && part <= room - total)
                memcpy(text + total, character, part);
            total += part;
        }
    } while (step != FM_JSON_END);
    *len = total;
    return true;
}

fm_status
fm_json_append_text(fm_json_reader *reader, fm_buf *text)
{
    fm_json_piece piece;
    fm_json_step step;

    do {
        step = fm_json_next_piece(reader, false, &piece);
        if (step == FM_JSON_BAD)
            return FM_BAD_MESSAGE;
        if (fm_buf_reserve(text, piece.run_len + 4) != FM_OK)
            return FM_NO_MEMORY;
        memcpy(text->data + text->len, piece.run, piece.run_len);
        text->len += piece.run_len;
        if (step == FM_JSON_CODE)
            text->len += put_utf8(text->data + text->len, piece.code);
    } while (step != FM_JSON_END);
    return FM_OK;
}

static bool
skip_string(fm_json_reader *reader)
{
    fm_json_piece piece;
    fm_json_step step;

    if (!fm_json_read_quote(reader, false))
        return false;
    do {
        step = fm_json_next_piece(reader, false, &piece);
    } while (step == FM_JSON_CODE);
    return step == FM_JSON_END;
}

/* A value that holds no other. */
static bool
skip_scalar(fm_json_reader *reader)
{
    fm_json_number number;

    if (reader->pos == reader->end)
        return false;
    switch (*reader->pos) {
    case '"':
        return skip_string(reader);
    case 'n':
        return fm_json_read_word(reader, "null", 4);
    case 't':
        return fm_json_read_word(reader, "true", 4);
    case 'f':
        return fm_json_read_word(reader, "false", 5);
    case 'N':
        return fm_json_read_word(reader, "NaN", 3);
    case 'I':
        return fm_json_read_word(reader, "Infinity", 8);
    default:
        return fm_json_read_word(reader, "-Infinity", 9)
            || fm_json_read_number(reader, &number);
    }
}

/* A member's name and its colon, with the blanks around them. */
static bool
skip_name(fm_json_reader *reader)
{
    fm_json_skip_blank(reader, false);
    if (!skip_string(reader))
        return false;
    fm_json_skip_blank(reader, false);
    if (!fm_json_read_mark(reader, ':'))
        return false;
    fm_json_skip_blank(reader, false);
    return true;
}

bool
fm_json_skip_value(fm_json_reader *reader)
{
    uint8_t is_object[FM_JSON_DEPTH_MAX]; /* of each container we are in */
    size_t depth = 0;

    for (;;) {
        /* A value begins here. */
        if (fm_json_read_mark(reader, '{') || fm_json_read_mark(reader, '[')) {
            bool object = reader->pos[-1] == '{';

            fm_json_skip_blank(reader, false);
            if (!fm_json_read_mark(reader, object ? '}' : ']')) {
                if (depth == FM_JSON_DEPTH_MAX)
                    return false;
                is_object[depth++] = object;
                if (object && !skip_name(reader))
                    return false;
                continue;
            }
        } else if (!skip_scalar(reader)) {
            return false;
        }
        /* It ended, and so may what is around it. */
        for (;;) {
            if (depth == 0)
                return true;
            fm_json_skip_blank(reader, false);
            if (!fm_json_read_mark(reader, is_object[depth - 1] ? '}' : ']'))
                break;
            depth--;
        }
        if (!fm_json_read_mark(reader, ','))
            return false;
        fm_json_skip_blank(reader, false);
        if (is_object[depth - 1] && !skip_name(reader))
            return false;
    }
}
