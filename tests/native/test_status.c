/* base/status.h: texts, and errors that are filled. */
#include "base/status.h"

#include "check.h"

#include <errno.h>

static void
every_status_has_a_text_of_its_own(void)
{
    for (int i = 0; i < FM_STATUS_COUNT; i++) {
        CHECK(fm_status_text((fm_status)i) != NULL);
        CHECK(fm_status_text((fm_status)i)[0] != '\0');
        CHECK(strcmp(fm_status_text((fm_status)i), "unknown status") != 0);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(fm_status_text((fm_status)i),
                      fm_status_text((fm_status)j))
                != 0);
    }
}

static void
a_number_outside_the_enum_is_unknown(void)
{
    CHECK_TEXT(fm_status_text(FM_STATUS_COUNT), "unknown status");
    CHECK_TEXT(fm_status_text((fm_status)1000), "unknown status");
}

static void
an_error_says_what_it_was_given(void)
{
    fm_error error;

    CHECK_INT(fm_error_set(&error, FM_REFUSED, 403, "login of %s", "nova"),
        FM_REFUSED);
    CHECK_INT(error.status, FM_REFUSED);
    CHECK_INT(error.code, 403);
    CHECK_TEXT(error.text, "login of nova");
}

static void
nobody_needs_to_want_the_error(void)
{
    CHECK_INT(fm_error_set(NULL, FM_CLOSED, 0, "%d", 1), FM_CLOSED);
    CHECK_INT(fm_error_set_errno(NULL, ENOENT, "open"), FM_SYSTEM);
}

static void
a_long_text_is_cut(void)
{
    char much[2 * FM_ERROR_TEXT];
    fm_error error;

    memset(much, 'x', sizeof(much) - 1);
    much[sizeof(much) - 1] = '\0';
    CHECK_INT(fm_error_set(&error, FM_FULL, 0, "%s", much), FM_FULL);
    CHECK_INT(strlen(error.text), FM_ERROR_TEXT - 1);
    CHECK_INT(fm_error_set_errno(&error, ENOENT, "%s", much), FM_SYSTEM);
    CHECK_INT(strlen(error.text), FM_ERROR_TEXT - 1);
}

static void
a_failed_system_call_has_its_words(void)
{
    fm_error error;

    CHECK_INT(
        fm_error_set_errno(&error, ECONNREFUSED, "connect to %s:%d", "h", 1),
        FM_SYSTEM);
    CHECK_INT(error.status, FM_SYSTEM);
    CHECK_INT(error.code, 0);
    CHECK_TEXT(error.text, "connect to h:1: Connection refused");
}

int
main(void)
{
    RUN(every_status_has_a_text_of_its_own);
    RUN(a_number_outside_the_enum_is_unknown);
    RUN(an_error_says_what_it_was_given);
    RUN(nobody_needs_to_want_the_error);
    RUN(a_long_text_is_cut);
    RUN(a_failed_system_call_has_its_words);
    return 0;
}
