/* base/buf.h: the growing buffer, and integers in network order. */
#include "base/buf.h"

#include "check.h"

static void
a_zeroed_buffer_is_an_empty_one(void)
{
    fm_buf buf = { 0 };

    CHECK_INT(fm_buf_append(&buf, NULL, 0), FM_OK);
    CHECK_INT(buf.len, 0);
    CHECK_INT(fm_buf_append(&buf, "abc", 3), FM_OK);
    CHECK_BYTES(buf.data, buf.len, "abc", 3);
    fm_buf_fini(&buf);
    CHECK(buf.data == NULL);
    CHECK_INT(buf.len, 0);
    CHECK_INT(buf.cap, 0);
}

static void
a_finished_buffer_can_be_used_again(void)
{
    fm_buf buf;

    fm_buf_init(&buf);
    CHECK_INT(fm_buf_append(&buf, "abc", 3), FM_OK);
    fm_buf_fini(&buf);
    CHECK_INT(fm_buf_append(&buf, "de", 2), FM_OK);
    CHECK_BYTES(buf.data, buf.len, "de", 2);
    fm_buf_fini(&buf);
    fm_buf_fini(&buf);
}

static void
appending_keeps_what_is_there(void)
{
    enum { COUNT = 100 * 1000 };
    fm_buf buf = { 0 };
    uint8_t four[4];

    for (uint32_t i = 0; i < COUNT; i++) {
        fm_store_u32(four, i);
        CHECK_INT(fm_buf_append(&buf, four, sizeof(four)), FM_OK);
    }
    CHECK_INT(buf.len, 4 * COUNT);
    CHECK(buf.cap >= buf.len);
    CHECK(buf.cap < 3 * buf.len);
    for (uint32_t i = 0; i < COUNT; i++)
        CHECK_INT(fm_load_u32(buf.data + (size_t)4 * i), i);
    fm_buf_fini(&buf);
}

static void
reserved_room_can_be_written_to(void)
{
    fm_buf buf = { 0 };

    CHECK_INT(fm_buf_append(&buf, "x", 1), FM_OK);
    CHECK_INT(fm_buf_reserve(&buf, 5000), FM_OK);
    CHECK_INT(buf.len, 1);
    CHECK(buf.cap - buf.len >= 5000);
    memset(buf.data + buf.len, 'y', 5000);
    CHECK_INT(buf.data[0], 'x');
    fm_buf_fini(&buf);
}

static void
a_size_that_overflows_is_refused(void)
{
    fm_buf buf = { 0 };
    uint8_t *before;
    size_t cap;

    CHECK_INT(fm_buf_reserve(&buf, SIZE_MAX), FM_NO_MEMORY);
    CHECK_INT(fm_buf_append(&buf, "abc", 3), FM_OK);
    before = buf.data;
    cap = buf.cap;
    CHECK_INT(fm_buf_reserve(&buf, SIZE_MAX), FM_NO_MEMORY);
    CHECK_INT(fm_buf_reserve(&buf, SIZE_MAX - 2), FM_NO_MEMORY);
    CHECK_INT(fm_buf_reserve(&buf, SIZE_MAX / 2 - 2), FM_NO_MEMORY);
    CHECK(buf.data == before);
    CHECK_INT(buf.cap, cap);
    CHECK_BYTES(buf.data, buf.len, "abc", 3);
    fm_buf_fini(&buf);
}

static void
consuming_moves_the_rest_to_the_front(void)
{
    fm_buf buf = { 0 };

    CHECK_INT(fm_buf_append(&buf, "abcdef", 6), FM_OK);
    fm_buf_consume(&buf, 0);
    CHECK_BYTES(buf.data, buf.len, "abcdef", 6);
    fm_buf_consume(&buf, 2);
    CHECK_BYTES(buf.data, buf.len, "cdef", 4);
    fm_buf_consume(&buf, 4);
    CHECK_INT(buf.len, 0);
    fm_buf_consume(&buf, 0);
    CHECK_INT(fm_buf_append(&buf, "g", 1), FM_OK);
    CHECK_BYTES(buf.data, buf.len, "g", 1);
    fm_buf_fini(&buf);
}

static void
shrinking_gives_back_only_an_empty_large_one(void)
{
    fm_buf buf = { 0 };

    CHECK_INT(fm_buf_reserve(&buf, 100 * 1000), FM_OK);
    fm_buf_shrink(&buf, buf.cap);
    CHECK(buf.data != NULL);
    CHECK_INT(fm_buf_append(&buf, "a", 1), FM_OK);
    fm_buf_shrink(&buf, 1000);
    CHECK_BYTES(buf.data, buf.len, "a", 1);
    fm_buf_consume(&buf, 1);
    fm_buf_shrink(&buf, 1000);
    CHECK(buf.data == NULL);
    CHECK_INT(buf.cap, 0);
}

static void
a_slice_is_what_the_buffer_holds(void)
{
    fm_buf buf = { 0 };
    fm_slice slice = fm_buf_slice(&buf);

    CHECK_INT(slice.len, 0);
    CHECK_INT(fm_buf_append(&buf, "abc", 3), FM_OK);
    slice = fm_buf_slice(&buf);
    CHECK_BYTES(slice.data, slice.len, "abc", 3);
    fm_buf_fini(&buf);
}

static void
integers_are_in_network_order(void)
{
    uint8_t at[9] = { 0 };

    /* One byte further, so that UBSan sees a misaligned access. */
    fm_store_u16(at + 1, 0xfedc);
    CHECK_BYTES(at + 1, 2, "\xfe\xdc", 2);
    CHECK_INT(fm_load_u16(at + 1), 0xfedc);
    fm_store_u32(at + 1, 0xfedcba98);
    CHECK_BYTES(at + 1, 4, "\xfe\xdc\xba\x98", 4);
    CHECK_INT(fm_load_u32(at + 1), 0xfedcba98);
    fm_store_u64(at + 1, UINT64_C(0xfedcba9876543210));
    CHECK_BYTES(at + 1, 8, "\xfe\xdc\xba\x98\x76\x54\x32\x10", 8);
    CHECK(fm_load_u64(at + 1) == UINT64_C(0xfedcba9876543210));
}

int
main(void)
{
    RUN(a_zeroed_buffer_is_an_empty_one);
    RUN(a_finished_buffer_can_be_used_again);
    RUN(appending_keeps_what_is_there);
    RUN(reserved_room_can_be_written_to);
    RUN(a_size_that_overflows_is_refused);
    RUN(consuming_moves_the_rest_to_the_front);
    RUN(shrinking_gives_back_only_an_empty_large_one);
    RUN(a_slice_is_what_the_buffer_holds);
    RUN(integers_are_in_network_order);
    return 0;
}
