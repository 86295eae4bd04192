#include "io/topology.h"

#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 255 };

/* Something may come and go between a declaration and a look, but what is
 * refused again and again is refused. */
enum { MOST_TRIES = 3 };

typedef enum fm_declaration_kind {
    DECLARE_EXCHANGE,
    DECLARE_QUEUE,
    DECLARE_BINDING,
} fm_declaration_kind;

/* One declaration with strings of its own. */
struct fm_declaration {
    fm_declaration_kind kind;
    union {
        fm_exchange exchange;
        fm_queue queue;
        struct {
            const char *queue, *exchange, *routing_key;
        } binding;
    } as;
    char *strings[3]; /* owned: what `as` points to */
    /* FM_OWNED_BY_THREAD(io); see fm_topology_adopt() and the like. */
    bool is_adopted; /* of a binding: left to others */
    bool follows;
    unsigned tries; /* to adopt it, since fm_topology_settle() */
    fm_arg *args;   /* owned: as.queue.arguments, names and texts too */
};

static void
declaration_fini(struct fm_declaration *item)
{
    if (item->args != NULL) {
        for (size_t i = 0; i < item->as.queue.arguments.count; i++) {
            free((char *)item->args[i].name);
            free((char *)item->args[i].text);
        }
        free(item->args);
    }
    for (size_t i = 0; i < 3; i++)
        free(item->strings[i]);
}

fm_status
fm_topology_new(fm_topology **out)
{
    fm_topology *topology = calloc(1, sizeof(*topology));

    if (topology == NULL)
        return FM_NO_MEMORY;
    atomic_init(&topology->refs, 1);
    atomic_init(&topology->declared, 0);
    atomic_init(&topology->requested, 0);
    *out = topology;
    return FM_OK;
}

fm_topology *
fm_topology_ref(fm_topology *topology)
{
    atomic_fetch_add_explicit(&topology->refs, 1, memory_order_relaxed);
    return topology;
}

void
fm_topology_unref(fm_topology *topology)
{
    if (topology == NULL
        || atomic_fetch_sub_explicit(&topology->refs, 1, memory_order_acq_rel)
            > 1)
        return;
    for (size_t i = 0; i < topology->count; i++)
        declaration_fini(&topology->items[i]);
    free(topology->items);
    free(topology);
}

/* A new last item with copies of up to three names. */
static fm_status
add(fm_topology *topology, fm_declaration_kind kind, const char *const names[3],
    struct fm_declaration **out)
{
    struct fm_declaration *items, *item;

    for (size_t i = 0; i < 3; i++)
        if (names[i] != NULL && strlen(names[i]) > NAME_MAX_BYTES)
            return FM_TOO_LARGE;
    items = realloc(
        topology->items, (topology->count + 1) * sizeof(*topology->items));
    if (items == NULL)
        return FM_NO_MEMORY;
    topology->items = items;
    item = &items[topology->count];
    *item = (struct fm_declaration){ .kind = kind };
    for (size_t i = 0; i < 3; i++) {
        if (names[i] == NULL)
            continue;
        item->strings[i] = strdup(names[i]);
        if (item->strings[i] == NULL) {
            declaration_fini(item);
            return FM_NO_MEMORY;
        }
    }
    topology->count++;
    *out = item;
    return FM_OK;
}

fm_status
fm_topology_add_exchange(fm_topology *topology, const fm_exchange *exchange)
{
    struct fm_declaration *item;
    fm_status status = add(topology, DECLARE_EXCHANGE,
        (const char *const[3]){ exchange->name, exchange->type, NULL }, &item);

    if (status != FM_OK)
        return status;
    item->as.exchange = *exchange;
    item->as.exchange.name = item->strings[0];
    item->as.exchange.type = item->strings[1];
    return FM_OK;
}

/* Does it fit into a frame? Better to be told now than at each attempt. */
static fm_status
try_write(const fm_queue *queue)
{
    fm_script script;
    fm_status status;

    fm_script_init(&script, 1);
    status = fm_script_add_queue(&script, queue, false);
    fm_script_fini(&script);
    return status;
}

fm_status
fm_topology_add_queue(fm_topology *topology, const fm_queue *queue)
{
    size_t count = queue->arguments.count;
    struct fm_declaration *item;
    fm_status status;

    status = try_write(queue);
    if (status != FM_OK)
        return status;
    status = add(topology, DECLARE_QUEUE,
        (const char *const[3]){ queue->name, NULL, NULL }, &item);
    if (status != FM_OK)
        return status;
    item->as.queue = *queue;
    item->as.queue.name = item->strings[0];
    item->as.queue.arguments = (fm_table){ NULL, 0 };
    if (count == 0)
        return FM_OK;

    item->args = calloc(count, sizeof(*item->args));
    if (item->args == NULL)
        goto no_memory;
    for (size_t i = 0; i < count; i++) {
        const fm_arg *from = &queue->arguments.args[i];
        fm_arg *to = &item->args[i];

        *to = *from;
        to->name = strdup(from->name);
        to->text = from->kind == FM_ARG_TEXT ? strdup(from->text) : NULL;
        item->as.queue.arguments.count = i + 1;
        if (to->name == NULL || (from->kind == FM_ARG_TEXT && to->text == NULL))
            goto no_memory;
    }
    item->as.queue.arguments.args = item->args;
    return FM_OK;

no_memory:
    declaration_fini(item);
    topology->count--;
    return FM_NO_MEMORY;
}

fm_status
fm_topology_add_binding(fm_topology *topology, const char *queue,
    const char *exchange, const char *routing_key)
{
    struct fm_declaration *item;
    fm_status status = add(topology, DECLARE_BINDING,
        (const char *const[3]){ queue, exchange, routing_key }, &item);

    if (status != FM_OK)
        return status;
    item->as.binding.queue = item->strings[0];
    item->as.binding.exchange = item->strings[1];
    item->as.binding.routing_key = item->strings[2];
    return FM_OK;
}

static bool
has_type(const fm_topology *topology, const char *queue, const char *type)
{
    for (size_t i = 0; i < topology->count; i++) {
        const struct fm_declaration *item = &topology->items[i];
        const fm_table *table = &item->as.queue.arguments;

        if (item->kind != DECLARE_QUEUE
            || strcmp(item->as.queue.name, queue) != 0)
            continue;
        for (size_t j = 0; j < table->count; j++)
            if (table->args[j].kind == FM_ARG_TEXT
                && strcmp(table->args[j].name, "x-queue-type") == 0)
                return strcmp(table->args[j].text, type) == 0;
    }
    return false;
}

bool
fm_topology_is_quorum(const fm_topology *topology, const char *queue)
{
    return has_type(topology, queue, "quorum");
}

bool
fm_topology_is_stream(const fm_topology *topology, const char *queue)
{
    return has_type(topology, queue, "stream");
}

bool
fm_topology_is_transient(const fm_topology *topology, const char *queue)
{
    for (size_t i = 0; i < topology->count; i++) {
        const struct fm_declaration *item = &topology->items[i];

        if (item->kind == DECLARE_QUEUE
            && strcmp(item->as.queue.name, queue) == 0)
            return !item->as.queue.durable;
    }
    return false;
}

/* --- adopting --- */

static bool
name_is(const char *name, fm_slice wanted)
{
    return strlen(name) == wanted.len
        && memcmp(name, wanted.data, wanted.len) == 0;
}

static bool
is_called(const struct fm_declaration *item, bool is_queue, fm_slice name)
{
    if (is_queue)
        return item->kind == DECLARE_QUEUE
            && name_is(item->as.queue.name, name);
    return item->kind == DECLARE_EXCHANGE
        && name_is(item->as.exchange.name, name);
}

bool
fm_topology_adopt(fm_topology *topology, bool is_queue, fm_slice name)
{
    bool is_changed = false;

    for (size_t i = 0; i < topology->count; i++) {
        struct fm_declaration *item = &topology->items[i];

        if (item->is_adopted || item->tries == MOST_TRIES
            || !is_called(item, is_queue, name))
            continue;
        item->is_adopted = is_changed = true;
        item->tries++;
    }
    return is_changed;
}

static bool
is_binding_of(const struct fm_declaration *item, bool is_queue, fm_slice name)
{
    return item->kind == DECLARE_BINDING
        && name_is(
            is_queue ? item->as.binding.queue : item->as.binding.exchange,
            name);
}

bool
fm_topology_disown(fm_topology *topology, bool is_queue, fm_slice name)
{
    bool is_changed = false;

    for (size_t i = 0; i < topology->count; i++)
        if (topology->items[i].is_adopted
            && is_called(&topology->items[i], is_queue, name))
            is_changed = true;
    for (size_t i = 0; i < topology->count && is_changed; i++) {
        struct fm_declaration *item = &topology->items[i];

        if (is_called(item, is_queue, name)
            || is_binding_of(item, is_queue, name))
            item->is_adopted = false;
        if (!is_queue)
            item->follows = false;
    }
    return is_changed;
}

void
fm_topology_settle(fm_topology *topology)
{
    for (size_t i = 0; i < topology->count; i++)
        topology->items[i].tries = 0;
}

void
fm_topology_follow(fm_topology *topology, fm_slice exchange)
{
    for (size_t i = 0; i < topology->count; i++) {
        const struct fm_declaration *binding = &topology->items[i];
        const char *queue = binding->as.binding.queue;

        if (binding->kind != DECLARE_BINDING
            || !name_is(binding->as.binding.exchange, exchange)
            || fm_topology_is_quorum(topology, queue)
            || fm_topology_is_stream(topology, queue)) /* always durable */
            continue;
        for (size_t j = 0; j < topology->count; j++)
            if (topology->items[j].kind == DECLARE_QUEUE
                && strcmp(topology->items[j].as.queue.name, queue) == 0)
                topology->items[j].follows = true;
    }
}

bool
fm_topology_trust_bindings(fm_topology *topology, bool is_queue, fm_slice name)
{
    bool is_adopted = false, is_changed = false;

    for (size_t i = 0; i < topology->count; i++)
        is_adopted |= topology->items[i].is_adopted
            && is_called(&topology->items[i], is_queue, name);
    for (size_t i = 0; i < topology->count && is_adopted; i++) {
        struct fm_declaration *item = &topology->items[i];

        if (!item->is_adopted && is_binding_of(item, is_queue, name))
            item->is_adopted = is_changed = true;
    }
    return is_changed;
}

/* --- strict brokers --- */

void
fm_topology_harden(fm_topology *topology)
{
    topology->is_hardened = true;
    topology->probes = false;
}

const char *
fm_topology_hardened_get(const fm_topology *topology, size_t at)
{
    for (size_t i = 0; i < topology->count && topology->is_hardened; i++) {
        const struct fm_declaration *item = &topology->items[i];

        if (item->kind != DECLARE_QUEUE || at-- > 0)
            continue;
        return item->as.queue.durable || item->as.queue.exclusive
                || item->is_adopted
            ? NULL
            : item->as.queue.name;
    }
    return NULL;
}

void
fm_topology_probe(fm_topology *topology)
{
    topology->probes = !topology->is_hardened;
}

/* A queue of one process, with a name that was drawn for it: of those the
 * options let all and only those expire. */
static bool
is_probe(const fm_topology *topology, const struct fm_declaration *item)
{
    if (!topology->probes || item->kind != DECLARE_QUEUE
        || item->as.queue.durable || item->is_adopted)
        return false;
    for (size_t i = 0; i < item->as.queue.arguments.count; i++)
        if (strcmp(item->args[i].name, "x-expires") == 0)
            return true;
    return false;
}

/* --- writing --- */

static fm_status
write_queue(const fm_topology *topology, const struct fm_declaration *item,
    fm_script *script)
{
    fm_queue queue = item->as.queue;

    if (item->follows)
        queue.durable = false;
    if (topology->is_hardened && !queue.exclusive)
        queue.durable = true;
    return fm_script_add_queue(script, &queue, item->is_adopted);
}

static fm_status
write_items(const fm_topology *topology, bool with_queues, fm_script *script)
{
    fm_status status = FM_OK;

    for (size_t i = 0; i < topology->count && status == FM_OK; i++)
        if (with_queues && is_probe(topology, &topology->items[i]))
            status = write_queue(topology, &topology->items[i], script);
    for (size_t i = 0; i < topology->count && status == FM_OK; i++) {
        const struct fm_declaration *item = &topology->items[i];

        switch (item->kind) {
        case DECLARE_EXCHANGE:
            status = fm_script_add_exchange(
                script, &item->as.exchange, item->is_adopted);
            break;
        case DECLARE_QUEUE:
            if (with_queues && !is_probe(topology, item))
                status = write_queue(topology, item, script);
            break;
        case DECLARE_BINDING:
            if (item->is_adopted)
                break;
            status = fm_script_add_bind(script, item->as.binding.queue,
                item->as.binding.exchange, item->as.binding.routing_key);
            break;
        }
    }
    return status;
}

fm_status
fm_topology_write(const fm_topology *topology, fm_script *script)
{
    return write_items(topology, true, script);
}

fm_status
fm_topology_write_bindings(const fm_topology *topology, fm_script *script)
{
    return write_items(topology, false, script);
}

bool
fm_topology_binds(const fm_topology *topology)
{
    for (size_t i = 0; i < topology->count; i++)
        if (topology->items[i].kind == DECLARE_BINDING
            && !topology->items[i].is_adopted)
            return true;
    return false;
}

fm_status
fm_topology_write_for(
    fm_topology *topology, const fm_strictness *strictness, fm_script *script)
{
    if (atomic_load(&strictness->is_strict))
        fm_topology_harden(topology);
    else if (atomic_load(&strictness->may_be))
        fm_topology_probe(topology);
    return fm_topology_write(topology, script);
}
