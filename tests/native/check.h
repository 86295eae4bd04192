/* The little that a native test needs.
 *
 * A test is a function that checks; main() RUNs each. The first check that
 * fails says where and what and ends the program with status 1, at once:
 * nothing is freed then.
 */
#ifndef FM_TESTS_CHECK_H
#define FM_TESTS_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CHECK_FAIL(...)                                                        \
    (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__),                           \
        fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), _exit(1))

#define CHECK(condition)                                                       \
    ((condition) ? (void)0 : CHECK_FAIL("not true: %s", #condition))

/* Integers of any kind, enums included. */
#define CHECK_INT(found, expected)                                             \
    check_int(__FILE__, __LINE__, #found, (int64_t)(found), (int64_t)(expected))

/* C strings. */
#define CHECK_TEXT(found, expected)                                            \
    check_text(__FILE__, __LINE__, #found, (found), (expected))

/* `part` is somewhere in the C string `whole`. */
#define CHECK_HAS(whole, part)                                                 \
    check_has(__FILE__, __LINE__, #whole, (whole), (part))

#define CHECK_BYTES(found, found_len, expected, expected_len)                  \
    check_bytes(__FILE__, __LINE__, #found, (found), (found_len), (expected),  \
        (expected_len))

#define RUN(test) (fprintf(stderr, "%s\n", #test), test())

static inline void
check_int(const char *file, int line, const char *what, int64_t found,
    int64_t expected)
{
    if (found == expected)
        return;
    fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what,
        (long long)found, (long long)expected);
    _exit(1);
}

static inline void
check_text(const char *file, int line, const char *what, const char *found,
    const char *expected)
{
    if (strcmp(found, expected) == 0)
        return;
    fprintf(stderr, "%s:%d: %s is \"%s\", not \"%s\"\n", file, line, what,
        found, expected);
    _exit(1);
}

static inline void
check_has(const char *file, int line, const char *what, const char *whole,
    const char *part)
{
    if (strstr(whole, part) != NULL)
        return;
    fprintf(stderr, "%s:%d: %s is \"%s\", without \"%s\"\n", file, line, what,
        whole, part);
    _exit(1);
}

static inline void
check_bytes(const char *file, int line, const char *what, const void *found,
    size_t found_len, const void *expected, size_t expected_len)
{
    if (found_len == expected_len
        && (found_len == 0 || memcmp(found, expected, found_len) == 0))
        return;
    fprintf(stderr, "%s:%d: %s differs: %zu bytes, not %zu\n  found    ", file,
        line, what, found_len, expected_len);
    for (size_t i = 0; i < found_len && i < 200; i++)
        fprintf(stderr, "%02x", ((const uint8_t *)found)[i]);
    fprintf(stderr, "\n  expected ");
    for (size_t i = 0; i < expected_len && i < 200; i++)
        fprintf(stderr, "%02x", ((const uint8_t *)expected)[i]);
    fputc('\n', stderr);
    _exit(1);
}

#endif
