#include "io/strict.h"

#include <stdlib.h>
#include <string.h>

enum { INTERNAL_ERROR = 541, FIRST_MAJOR = 4 };

/* Processes have a broker, or a few: one per cell. */
enum { MOST_BROKERS = 64 };

/* The last one is everybody's for whom there is none. */
static fm_strictness known[MOST_BROKERS + 1];

fm_strictness *
fm_strictness_get(uint64_t key)
{
    if (key == 0)
        key = 1;
    for (size_t i = 0; i < MOST_BROKERS; i++) {
        uint_fast64_t found = 0;

        if (atomic_compare_exchange_strong(&known[i].key, &found, key)
            || found == key)
            return &known[i];
    }
    return &known[MOST_BROKERS];
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
