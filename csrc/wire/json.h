/* JSON text as Python's json module writes and reads it, in byte buffers.
 *
 * Pure functions, for any thread. The text stands at one of two depths:
 * plain, or quoted, which is inside a JSON string, as the payload of an
 * oslo envelope is. Quoted text has `\"` where plain text has `"`, and `\\`
 * where it has `\`; all else that a writer of ASCII can produce is the same.
 * So both are written and read in one pass, without a text in between.
 */
#ifndef FM_WIRE_JSON_H
#define FM_WIRE_JSON_H

#include "base/attrs.h"
#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* Containers in containers; more is refused, as Python refuses it near its
 * own limit on recursion. */
enum { FM_JSON_DEPTH_MAX = 1000 };

/* ---- Writing ---- */

/* What stands for the two characters in which the depths differ. */
typedef struct fm_json_style {
    size_t width; /* bytes used of each */
    char quote[2];
    char backslash[2];
} fm_json_style;

extern const fm_json_style fm_json_plain;
extern const fm_json_style fm_json_quoted;

/* Append one string with its quotes: ASCII only, everything outside 0x20 to
 * 0x7E escaped as Python does it, lone surrogates too. FM_NO_MEMORY may leave
 * a part of it in `out`. The number says how many bytes a character has. */
FM_MUST_CHECK fm_status fm_json_write_ucs1(fm_buf *out,
    const fm_json_style *style, const uint8_t *chars, size_t count);
FM_MUST_CHECK fm_status fm_json_write_ucs2(fm_buf *out,
    const fm_json_style *style, const uint16_t *chars, size_t count);
FM_MUST_CHECK fm_status fm_json_write_ucs4(fm_buf *out,
    const fm_json_style *style, const uint32_t *chars, size_t count);

/* Append a number in decimal; the same at both depths. */
FM_MUST_CHECK fm_status fm_json_write_int(fm_buf *out, int64_t value);

/* ---- Reading ---- */

/* A place in a text. The functions that take `quoted` are inline, and expect
 * a constant there: it folds away. They move `pos` over what they accept and
 * leave it anywhere in what they refuse. */
typedef struct fm_json_reader {
    const uint8_t *pos; /* borrowed, as is the text up to end */
    const uint8_t *end;
    bool surrogates; /* accept surrogates as three bytes of UTF-8 */
} fm_json_reader;

/* A stretch of ASCII of a string that stands for itself, and what ended it. */
typedef struct fm_json_piece {
    const uint8_t *run; /* borrowed from the text */
    size_t run_len;
    uint32_t code; /* of FM_JSON_CODE: the character that follows the run */
} fm_json_piece;

typedef enum fm_json_step {
    FM_JSON_BAD,  /* not JSON, or, quoted, an escape that Python never writes */
    FM_JSON_CODE, /* an escaped or non-ASCII character; the string goes on */
    FM_JSON_END,  /* the closing quote, which has been read */
} fm_json_step;

/* A number's text. `integral` is false if it has a fraction or exponent. */
typedef struct fm_json_number {
    fm_slice text; /* borrowed */
    bool integral;
} fm_json_number;

/* The rarer halves of fm_json_next_piece; reader->pos is at the first byte of
 * a character beyond ASCII, or behind the backslash of an escape. */
fm_json_step fm_json_read_utf8(fm_json_reader *reader, uint32_t *code);
fm_json_step fm_json_read_escape(
    fm_json_reader *reader, bool quoted, uint32_t *code);

/* Read a number: digits, with a sign, fraction or exponent, nothing else. */
FM_MUST_CHECK bool fm_json_read_number(
    fm_json_reader *reader, fm_json_number *number);

/* Read the word if it stands here, for literals. */
static inline bool
fm_json_read_word(fm_json_reader *reader, const char *word, size_t len)
{
    if ((size_t)(reader->end - reader->pos) < len
        || memcmp(reader->pos, word, len) != 0)
        return false;
    reader->pos += len;
    return true;
}

/* From behind the opening quote of a plain string: read it, and store what it
 * means in UTF-8 (a lone surrogate as three bytes). The first stores at most
 * `room` bytes and says in *len how many there were; the second appends. */
FM_MUST_CHECK bool fm_json_read_text(
    fm_json_reader *reader, uint8_t *text, size_t room, size_t *len);
FM_MUST_CHECK fm_status fm_json_append_text(
    fm_json_reader *reader, fm_buf *text);

/* Read one plain value of any kind and forget it. Checks all that Python
 * checks, but neither recurses nor allocates. */
FM_MUST_CHECK bool fm_json_skip_value(fm_json_reader *reader);

/* The first byte from `pos` on that cannot be copied as it is: a quote, a
 * backslash, a control or non-ASCII character; `end` if there is none. */
static inline const uint8_t *
fm_json_find_special(const uint8_t *pos, const uint8_t *end)
{
#if defined(__SSE2__)
    while (end - pos >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)pos);
        /* Signed, so bytes from 0x80 on count as below a blank. */
        __m128i hits = _mm_or_si128(_mm_cmplt_epi8(bytes, _mm_set1_epi8(' ')),
            _mm_or_si128(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')),
                _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'))));
        unsigned mask = (unsigned)_mm_movemask_epi8(hits);

        if (mask != 0)
            return pos + __builtin_ctz(mask);
        pos += 16;
    }
#else
    while (end - pos >= 8) {
        const uint64_t ones = UINT64_C(0x0101010101010101);
        uint64_t bytes;

        memcpy(&bytes, pos, 8);
        if ((((bytes - ones * ' ') | ((bytes ^ ones * '"') - ones)
                 | ((bytes ^ ones * '\\') - ones) | bytes)
                & (ones << 7))
            != 0)
            break;
        pos += 8;
    }
#endif
    while (
        pos < end && *pos >= ' ' && *pos < 0x80 && *pos != '"' && *pos != '\\')
        pos++;
    return pos;
}

static inline void
fm_json_skip_blank(fm_json_reader *reader, bool quoted)
{
    const uint8_t *pos = reader->pos;

    /* Inside a string the other three would have to be escapes. */
    while (pos < reader->end
        && (*pos == ' '
            || (!quoted && (*pos == '\n' || *pos == '\r' || *pos == '\t'))))
        pos++;
    reader->pos = pos;
}

/* Read a character that is written alike at both depths. */
static inline bool
fm_json_read_mark(fm_json_reader *reader, char mark)
{
    if (reader->pos == reader->end || *reader->pos != (uint8_t)mark)
        return false;
    reader->pos++;
    return true;
}

/* Read the quote that opens a string. */
static inline bool
fm_json_read_quote(fm_json_reader *reader, bool quoted)
{
    const uint8_t *pos = reader->pos;

    if (quoted) {
        if (reader->end - pos < 2 || pos[0] != '\\' || pos[1] != '"')
            return false;
        reader->pos = pos + 2;
        return true;
    }
    return fm_json_read_mark(reader, '"');
}

/* Read a string on, from behind its opening quote or behind a piece. */
static inline __attribute__((always_inline)) fm_json_step
fm_json_next_piece(fm_json_reader *reader, bool quoted, fm_json_piece *piece)
{
    const uint8_t *stop = fm_json_find_special(reader->pos, reader->end);

    piece->run = reader->pos;
    piece->run_len = (size_t)(stop - reader->pos);
    reader->pos = stop;
    if (FM_UNLIKELY(stop == reader->end))
        return FM_JSON_BAD;
    if (quoted) {
        if (*stop == '\\' && reader->end - stop >= 2) {
            reader->pos = stop + 2;
            if (stop[1] == '"')
                return FM_JSON_END;
            if (stop[1] == '\\')
                return fm_json_read_escape(reader, true, &piece->code);
            return FM_JSON_BAD;
        }
    } else {
        if (*stop == '"') {
            reader->pos = stop + 1;
            return FM_JSON_END;
        }
        if (*stop == '\\') {
            reader->pos = stop + 1;
            return fm_json_read_escape(reader, false, &piece->code);
        }
    }
    if (*stop >= 0x80)
        return fm_json_read_utf8(reader, &piece->code);
    return FM_JSON_BAD; /* a control character, or the string around us ends */
}

#endif
