/* Message ids: a map from id to pointer, and a window of ids seen lately.
 *
 * Neither is safe to share; the owner names the lock. Ids come from peers,
 * so both hash with a seed of the process.
 */
#ifndef FM_BASE_IDMAP_H
#define FM_BASE_IDMAP_H

#include "base/attrs.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A hash of some bytes, the same throughout the process. */
uint64_t fm_id_hash(const char *id, size_t len);

/* --- map --- */

typedef struct fm_idmap_slot {
    const char *id; /* borrowed from the value; NULL: free */
    uint64_t hash;
    void *value; /* borrowed; NULL with an id: removed */
} fm_idmap_slot;

typedef struct fm_idmap {
    fm_idmap_slot *slots; /* owned */
    size_t cap;           /* 0 or a power of two */
    size_t used;          /* live and removed slots */
    size_t len;           /* live slots */
} fm_idmap;

void fm_idmap_init(fm_idmap *map);
void fm_idmap_fini(fm_idmap *map); /* the values are the owner's */

/* `id` must live as long as the entry; an id that is present: FM_FULL. */
FM_MUST_CHECK fm_status fm_idmap_put(
    fm_idmap *map, const char *id, void *value);
void *fm_idmap_get(const fm_idmap *map, const char *id); /* NULL: none */
void *fm_idmap_take(fm_idmap *map, const char *id);      /* NULL: none */

/* Walk: start with *cursor = 0; NULL at the end. No changes meanwhile. */
void *fm_idmap_next(const fm_idmap *map, size_t *cursor);

/* --- window --- */

enum { FM_WINDOW_MAX = 65536 };
#define FM_WINDOW_NS (INT64_C(600) * 1000000000)

/* The last FM_WINDOW_MAX ids of the last FM_WINDOW_NS, to the second, as
 * hashes of 96 bits. */
typedef struct fm_window {
    struct fm_window_entry *ring; /* owned; grows up to FM_WINDOW_MAX */
    uint32_t *index;              /* owned; ring position + 1, 0: free */
    size_t cap;                   /* of ring; the index has twice as many */
    size_t first;                 /* the oldest entry */
    size_t len;
} fm_window;

void fm_window_init(fm_window *window);
void fm_window_fini(fm_window *window);

/* Was `id` added within the window? */
bool fm_window_has(
    const fm_window *window, const char *id, size_t len, int64_t now);

/* Remember `id`; adding one that is there keeps its first time. Out of
 * memory: FM_NO_MEMORY and the window as it was. */
FM_MUST_CHECK fm_status fm_window_add(
    fm_window *window, const char *id, size_t len, int64_t now);

#endif
