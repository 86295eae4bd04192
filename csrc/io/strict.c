#include "io/strict.h"

#include <stdlib.h>
#include <string.h>

enum { INTERNAL_ERROR = 541, FIRST_MAJOR = 4 };

/* Entries are added, never removed. */
static fm_strictness *_Atomic known;

/* Of everybody for whom there was no memory. */
static fm_strictness spare;

fm_strictness *
fm_strictness_get(uint64_t key)
{
    fm_strictness *first = atomic_load(&known), *made = NULL;

    for (;;) {
        for (fm_strictness *each = first; each != NULL; each = each->next)
            if (each->key == key) {
                free(made);
                return each;
            }
        if (made == NULL && (made = calloc(1, sizeof(*made))) == NULL)
            return &spare;
        made->key = key;
        made->next = first;
        if (atomic_compare_exchange_strong(&known, &first, made))
            return made;
    }
}

/* 541: "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. ..."
 * The name is what its configuration calls it, so it will not change. */
bool
fm_close_is_strict(const fm_close *why)
{
    static const char name[] = "transient_nonexcl_queues";

    return why->code == INTERNAL_ERROR
        && why->method_id == FM_METHOD_QUEUE_DECLARE
        && memmem(why->text.data, why->text.len, name, sizeof(name) - 1)
        != NULL;
}

void
fm_strictness_note_version(
    fm_strictness *strictness, const char *product, const char *version)
{
    atomic_store(&strictness->may_be,
        strcmp(product, "RabbitMQ") == 0
            && strtol(version, NULL, 10) >= FIRST_MAJOR);
}
