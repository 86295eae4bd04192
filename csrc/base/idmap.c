#include "base/idmap.h"

#include "base/sync.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { FIRST_CAP = 64 };

static uint64_t seeds[2];

static void
draw_seeds(void)
{
    /* Without entropy the seeds stay 0: slower under attack, never wrong. */
    if (getrandom(seeds, sizeof(seeds), GRND_NONBLOCK) != sizeof(seeds))
        seeds[0] = (uint64_t)(uintptr_t)&seeds;
}

/* FNV-1a with a seed and a final mix, so that the low bits are usable. */
static uint64_t
hash_bytes(const char *data, size_t len, int which)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t hash;

    pthread_once(&once, draw_seeds);
    hash = UINT64_C(0xcbf29ce484222325) ^ seeds[which];
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (uint8_t)data[i]) * UINT64_C(0x100000001b3);
    hash ^= hash >> 32;
    hash *= UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ (hash >> 29);
}

uint64_t
fm_id_hash(const char *id, size_t len)
{
    return hash_bytes(id, len, 0);
}

/* --- map --- */

void
fm_idmap_init(fm_idmap *map)
{
    *map = (fm_idmap){ 0 };
}

void
fm_idmap_fini(fm_idmap *map)
{
    free(map->slots);
    fm_idmap_init(map);
}

/* The slot of `id`, or the free slot where its probing ends. */
static fm_idmap_slot *
find(const fm_idmap *map, const char *id, uint64_t hash)
{
    size_t mask = map->cap - 1;

    for (size_t i = (size_t)hash & mask;; i = (i + 1) & mask) {
        fm_idmap_slot *slot = &map->slots[i];

        if (slot->id == NULL)
            return slot;
        if (slot->value != NULL && slot->hash == hash
            && strcmp(slot->id, id) == 0)
            return slot;
    }
}

/* Rebuild without the removed slots, with room for one more. */
static fm_status
rebuild(fm_idmap *map)
{
    fm_idmap bigger = { .cap = map->cap == 0 ? FIRST_CAP : map->cap };

    while (bigger.cap < (map->len + 1) * 2)
        bigger.cap *= 2;
    bigger.slots = calloc(bigger.cap, sizeof(*bigger.slots));
    if (bigger.slots == NULL)
        return FM_NO_MEMORY;
    for (size_t i = 0; i < map->cap; i++) {
        fm_idmap_slot *old = &map->slots[i];

        if (old->value != NULL)
            *find(&bigger, old->id, old->hash) = *old;
    }
    bigger.len = bigger.used = map->len;
    free(map->slots);
    *map = bigger;
    return FM_OK;
}

fm_status
fm_idmap_put(fm_idmap *map, const char *id, void *value)
{
    uint64_t hash = hash_bytes(id, strlen(id), 0);
    fm_idmap_slot *slot;

    if ((map->used + 1) * 4 > map->cap * 3) {
        fm_status status = rebuild(map);

        if (status != FM_OK)
            return status;
    }
    slot = find(map, id, hash);
    if (slot->id != NULL)
        return FM_FULL;
    *slot = (fm_idmap_slot){ id, hash, value };
    map->used++;
    map->len++;
    return FM_OK;
}

void *
fm_idmap_get(const fm_idmap *map, const char *id)
{
    if (map->len == 0)
        return NULL;
    return find(map, id, hash_bytes(id, strlen(id), 0))->value;
}

void *
fm_idmap_take(fm_idmap *map, const char *id)
{
    fm_idmap_slot *slot;
    void *value;

    if (map->len == 0)
        return NULL;
    slot = find(map, id, hash_bytes(id, strlen(id), 0));
    value = slot->value;
    if (value == NULL)
        return NULL;
    slot->id = ""; /* the id may be freed with its value */
    slot->value = NULL;
    map->len--;
    if (map->len == 0) { /* the usual case: forget the removed ones at once */
        if (map->used * 8 > map->cap)
            memset(map->slots, 0, map->cap * sizeof(*map->slots));
        else
            return value;
        map->used = 0;
    }
    return value;
}

void *
fm_idmap_next(const fm_idmap *map, size_t *cursor)
{
    while (*cursor < map->cap) {
        void *value = map->slots[(*cursor)++].value;

        if (value != NULL)
            return value;
    }
    return NULL;
}

/* --- window --- */

/* 96 bits of hash: nobody lives to see two ids with the same ones. */
struct fm_window_entry {
    uint64_t hash;
    uint32_t more;
    uint32_t time_s;
};

/* What the entry of an id holds if it is added now. */
static struct fm_window_entry
window_entry(const char *id, size_t len, int64_t now)
{
    return (struct fm_window_entry){ hash_bytes(id, len, 0),
        (uint32_t)hash_bytes(id, len, 1), (uint32_t)(now / FM_NS_PER_S) };
}

/* Seconds wrap around like any unsigned number: differences stay right. */
static bool
is_expired(const struct fm_window_entry *entry, int64_t now)
{
    return (uint32_t)(now / FM_NS_PER_S) - entry->time_s
        > (uint32_t)(FM_WINDOW_NS / FM_NS_PER_S);
}

void
fm_window_init(fm_window *window)
{
    *window = (fm_window){ 0 };
}

void
fm_window_fini(fm_window *window)
{
    free(window->ring);
    free(window->index);
    fm_window_init(window);
}

/* The index slot that holds the entry with this hash, or the free one. */
static size_t
index_find(const fm_window *window, const struct fm_window_entry *wanted)
{
    size_t mask = window->cap * 2 - 1;
    size_t at = (size_t)wanted->hash & mask;

    for (; window->index[at] != 0; at = (at + 1) & mask) {
        const struct fm_window_entry *entry =
            &window->ring[window->index[at] - 1];

        if (entry->hash == wanted->hash && entry->more == wanted->more)
            break;
    }
    return at;
}

/* Linear probing without tombstones: close the gap that removal leaves. */
static void
index_remove(fm_window *window, size_t gap)
{
    size_t mask = window->cap * 2 - 1;

    window->index[gap] = 0;
    for (size_t at = (gap + 1) & mask; window->index[at] != 0;
         at = (at + 1) & mask) {
        size_t home = (size_t)window->ring[window->index[at] - 1].hash & mask;

        if (((at - home) & mask) < ((at - gap) & mask))
            continue; /* its probing starts behind the gap */
        window->index[gap] = window->index[at];
        window->index[at] = 0;
        gap = at;
    }
}

static void
drop_oldest(fm_window *window)
{
    index_remove(window, index_find(window, &window->ring[window->first]));
    window->first = (window->first + 1) & (window->cap - 1);
    window->len--;
}

static fm_status
window_grow(fm_window *window)
{
    fm_window bigger = { .cap =
                             window->cap == 0 ? FIRST_CAP : window->cap * 2 };

    bigger.ring = calloc(bigger.cap, sizeof(*bigger.ring));
    bigger.index = calloc(bigger.cap * 2, sizeof(*bigger.index));
    if (bigger.ring == NULL || bigger.index == NULL) {
        fm_window_fini(&bigger);
        return FM_NO_MEMORY;
    }
    for (; bigger.len < window->len; bigger.len++) {
        bigger.ring[bigger.len] =
            window->ring[(window->first + bigger.len) & (window->cap - 1)];
        bigger.index[index_find(&bigger, &bigger.ring[bigger.len])] =
            (uint32_t)bigger.len + 1;
    }
    fm_window_fini(window);
    *window = bigger;
    return FM_OK;
}

bool
fm_window_has(const fm_window *window, const char *id, size_t len, int64_t now)
{
    struct fm_window_entry wanted = window_entry(id, len, now);
    uint32_t found;

    if (window->len == 0)
        return false;
    found = window->index[index_find(window, &wanted)];
    return found != 0 && !is_expired(&window->ring[found - 1], now);
}

fm_status
fm_window_add(fm_window *window, const char *id, size_t len, int64_t now)
{
    struct fm_window_entry entry = window_entry(id, len, now);
    size_t at;

    while (window->len > 0 && is_expired(&window->ring[window->first], now))
        drop_oldest(window);
    if (window->len > 0 && window->index[index_find(window, &entry)] != 0)
        return FM_OK;
    if (window->len == FM_WINDOW_MAX)
        drop_oldest(window);
    if (window->len == window->cap) {
        fm_status status = window_grow(window);

        if (status != FM_OK)
            return status;
    }
    at = (window->first + window->len) & (window->cap - 1);
    window->ring[at] = entry;
    window->index[index_find(window, &entry)] = (uint32_t)at + 1;
    window->len++;
    return FM_OK;
}
