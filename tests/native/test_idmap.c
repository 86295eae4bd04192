/* base/idmap.h: the map from message id to pointer, the window of ids. */
#include "base/idmap.h"

#include "check.h"

#include <stdlib.h>

enum { MANY = 5000 };
#define SECOND INT64_C(1000000000)

/* Distinct ids of the usual form. */
static void
make_id(char id[33], unsigned long number)
{
    snprintf(
        id, 33, "%08lx%024lx", (number * 2654435761UL) & 0xffffffffUL, number);
}

/* --- map --- */

static void
an_empty_map_has_nothing(void)
{
    fm_idmap map;
    size_t cursor = 0;

    fm_idmap_init(&map);
    CHECK(fm_idmap_get(&map, "a") == NULL);
    CHECK(fm_idmap_take(&map, "a") == NULL);
    CHECK(fm_idmap_next(&map, &cursor) == NULL);
    fm_idmap_fini(&map);
}

static void
what_was_put_is_found_and_taken_once(void)
{
    fm_idmap map;
    int value;

    fm_idmap_init(&map);
    CHECK_INT(fm_idmap_put(&map, "a", &value), FM_OK);
    CHECK(fm_idmap_get(&map, "a") == &value);
    CHECK(fm_idmap_get(&map, "b") == NULL);
    CHECK(fm_idmap_get(&map, "") == NULL);
    CHECK(fm_idmap_take(&map, "a") == &value);
    CHECK(fm_idmap_take(&map, "a") == NULL);
    CHECK_INT(map.len, 0);
    fm_idmap_fini(&map);
}

static void
an_id_can_be_put_once(void)
{
    fm_idmap map;
    int one, two;

    fm_idmap_init(&map);
    CHECK_INT(fm_idmap_put(&map, "a", &one), FM_OK);
    CHECK_INT(fm_idmap_put(&map, "a", &two), FM_FULL);
    CHECK(fm_idmap_take(&map, "a") == &one);
    CHECK_INT(fm_idmap_put(&map, "a", &two), FM_OK);
    CHECK(fm_idmap_get(&map, "a") == &two);
    fm_idmap_fini(&map);
}

/* Put, take and look up at random, next to a plain array that is right. */
static void
a_map_agrees_with_an_array(void)
{
    static char ids[MANY][33];
    static bool in[MANY];
    size_t live = 0;
    fm_idmap map;

    srand(1);
    fm_idmap_init(&map);
    for (unsigned long i = 0; i < MANY; i++)
        make_id(ids[i], i);
    for (int turn = 0; turn < 40 * MANY; turn++) {
        /* The range grows and shrinks, so that the map does. */
        size_t range = 10 + (size_t)(turn / 40) % (MANY - 10);
        size_t i = (size_t)rand() % range;

        if (in[i]) {
            CHECK(fm_idmap_get(&map, ids[i]) == ids[i]);
            CHECK_INT(fm_idmap_put(&map, ids[i], ids[i]), FM_FULL);
            CHECK(fm_idmap_take(&map, ids[i]) == ids[i]);
            live--;
        } else {
            CHECK(fm_idmap_get(&map, ids[i]) == NULL);
            CHECK(fm_idmap_take(&map, ids[i]) == NULL);
            CHECK_INT(fm_idmap_put(&map, ids[i], ids[i]), FM_OK);
            live++;
        }
        in[i] = !in[i];
        CHECK_INT(map.len, live);
    }
    for (size_t i = 0, cursor = 0; i < live; i++) {
        char *id = fm_idmap_next(&map, &cursor);

        CHECK(id != NULL && in[(id - ids[0]) / 33]);
        in[(id - ids[0]) / 33] = false; /* each comes once */
    }
    fm_idmap_fini(&map);
}

/* Calls come and go by the million; their slots must not pile up. */
static void
a_map_of_few_stays_small(void)
{
    char *ids[4] = { NULL, NULL, NULL, NULL };
    fm_idmap map;

    fm_idmap_init(&map);
    for (unsigned long i = 0; i < 100 * 1000; i++) {
        char **id = &ids[i % 4];

        if (*id != NULL) {
            CHECK(fm_idmap_take(&map, *id) == *id);
            free(*id); /* the removed slot may not look at it again */
        }
        *id = malloc(33);
        CHECK(*id != NULL);
        make_id(*id, i);
        CHECK_INT(fm_idmap_put(&map, *id, *id), FM_OK);
    }
    CHECK(map.cap <= 64);
    for (int i = 0; i < 4; i++)
        free(ids[i]);
    fm_idmap_fini(&map);
}

/* --- window --- */

static fm_status
add(fm_window *window, unsigned long number, int64_t now)
{
    char id[33];

    make_id(id, number);
    return fm_window_add(window, id, 32, now);
}

static bool
has(const fm_window *window, unsigned long number, int64_t now)
{
    char id[33];

    make_id(id, number);
    return fm_window_has(window, id, 32, now);
}

static void
a_window_has_what_was_added(void)
{
    fm_window window;

    fm_window_init(&window);
    CHECK(!has(&window, 1, 0));
    CHECK_INT(add(&window, 1, 0), FM_OK);
    CHECK(has(&window, 1, 0));
    CHECK(!has(&window, 2, 0));
    CHECK(!fm_window_has(&window, "", 0, 0));
    CHECK_INT(fm_window_add(&window, "", 0, 0), FM_OK);
    CHECK(fm_window_has(&window, "", 0, 0));
    CHECK_INT(window.len, 2);
    fm_window_fini(&window);
}

static void
an_id_is_forgotten_after_its_time(void)
{
    fm_window window;

    fm_window_init(&window);
    CHECK_INT(add(&window, 1, 5 * SECOND), FM_OK);
    CHECK_INT(add(&window, 2, 6 * SECOND), FM_OK);
    CHECK(has(&window, 1, 5 * SECOND + FM_WINDOW_NS));
    CHECK(!has(&window, 1, 6 * SECOND + FM_WINDOW_NS));
    CHECK(has(&window, 2, 6 * SECOND + FM_WINDOW_NS));
    /* The memory goes with the next one. */
    CHECK_INT(add(&window, 3, 7 * SECOND + FM_WINDOW_NS), FM_OK);
    CHECK_INT(window.len, 1);
    fm_window_fini(&window);
}

static void
a_duplicate_keeps_its_first_time(void)
{
    fm_window window;

    fm_window_init(&window);
    CHECK_INT(add(&window, 1, 0), FM_OK);
    CHECK_INT(add(&window, 1, 300 * SECOND), FM_OK);
    CHECK_INT(window.len, 1);
    CHECK(has(&window, 1, FM_WINDOW_NS));
    CHECK(!has(&window, 1, FM_WINDOW_NS + SECOND));
    /* Once forgotten it begins anew. */
    CHECK_INT(add(&window, 1, FM_WINDOW_NS + SECOND), FM_OK);
    CHECK(has(&window, 1, FM_WINDOW_NS + 300 * SECOND));
    fm_window_fini(&window);
}

static void
a_full_window_drops_the_oldest(void)
{
    fm_window window;

    fm_window_init(&window);
    for (unsigned long i = 0; i < FM_WINDOW_MAX; i++)
        CHECK_INT(add(&window, i, (int64_t)i), FM_OK);
    for (unsigned long i = 0; i < FM_WINDOW_MAX; i++)
        CHECK(has(&window, i, FM_WINDOW_MAX));
    CHECK_INT(window.cap, FM_WINDOW_MAX);
    /* Round the ring two and a half times. */
    for (unsigned long i = FM_WINDOW_MAX; i < FM_WINDOW_MAX * 7 / 2; i++) {
        CHECK_INT(add(&window, i, (int64_t)i), FM_OK);
        CHECK_INT(window.len, FM_WINDOW_MAX);
        CHECK(has(&window, i, (int64_t)i));
        CHECK(has(&window, i - FM_WINDOW_MAX + 1, (int64_t)i));
        CHECK(!has(&window, i - FM_WINDOW_MAX, (int64_t)i));
    }
    CHECK_INT(window.cap, FM_WINDOW_MAX);
    for (unsigned long i = FM_WINDOW_MAX * 5 / 2; i < FM_WINDOW_MAX * 7 / 2;
         i++)
        CHECK(has(&window, i, FM_WINDOW_MAX * 7 / 2));
    fm_window_fini(&window);
}

/* Ids whose probing starts in the same place, so that removal has gaps to
 * close: the index is right or an id is lost or never forgotten. */
static void
ids_that_collide_are_kept_apart(void)
{
    enum { WANTED = 40 };
    unsigned long same[WANTED];
    size_t found = 0;
    fm_window window;

    for (unsigned long i = 0; found < WANTED; i++) {
        char id[33];

        make_id(id, i);
        if ((fm_id_hash(id, 32) & 127) >= 120) /* wraps, too: 128 slots */
            same[found++] = i;
    }
    fm_window_init(&window);
    for (size_t i = 0; i < WANTED; i++)
        CHECK_INT(add(&window, same[i], (int64_t)i * SECOND), FM_OK);
    CHECK_INT(window.cap, 64);
    for (size_t gone = 0; gone < WANTED; gone++) {
        int64_t now = FM_WINDOW_NS + (int64_t)(gone + 1) * SECOND;

        /* Adding drops what is too old: one more each time. */
        CHECK_INT(add(&window, same[gone] + 1000 * 1000, now), FM_OK);
        for (size_t i = 0; i < WANTED; i++)
            CHECK_INT(has(&window, same[i], now), i > gone);
        for (size_t i = 0; i <= gone; i++)
            CHECK(has(&window, same[i] + 1000 * 1000, now));
    }
    fm_window_fini(&window);
}

int
main(void)
{
    RUN(an_empty_map_has_nothing);
    RUN(what_was_put_is_found_and_taken_once);
    RUN(an_id_can_be_put_once);
    RUN(a_map_agrees_with_an_array);
    RUN(a_map_of_few_stays_small);
    RUN(a_window_has_what_was_added);
    RUN(an_id_is_forgotten_after_its_time);
    RUN(a_duplicate_keeps_its_first_time);
    RUN(a_full_window_drops_the_oldest);
    RUN(ids_that_collide_are_kept_apart);
    return 0;
}
