#include "io/adopt.h"

#include "base/event.h"

#include <stdio.h>
#include <string.h>

enum { NOT_FOUND = 404, ACCESS_REFUSED = 403, PRECONDITION_FAILED = 406 };

/* --- what the broker says ---
 *
 * 406: "... inequivalent arg 'durable' for queue 'q' in vhost '/': received
 *      'true' but current is 'false'"
 * 403: "... access to exchange 'x' in vhost '/' refused for user 'u'"
 */

/* Cut `*text` after `mark`: true, with what was before it in *before. */
static bool
cut(fm_slice *text, const char *mark, bool is_last, fm_slice *before)
{
    size_t len = strlen(mark);
    const uint8_t *found = NULL;

    for (size_t i = 0; i + len <= text->len; i++)
        if (memcmp(text->data + i, mark, len) == 0) {
            found = text->data + i;
            if (!is_last)
                break;
        }
    if (found == NULL)
        return false;
    *before = (fm_slice){ text->data, (size_t)(found - text->data) };
    text->len -= before->len + len;
    text->data = found + len;
    return true;
}

static bool
begins_with(fm_slice *text, const char *word)
{
    size_t len = strlen(word);

    if (text->len < len || memcmp(text->data, word, len) != 0)
        return false;
    text->data += len;
    text->len -= len;
    return true;
}

bool
fm_refusal_read(const fm_close *why, fm_refusal *out)
{
    fm_slice text = why->text, skipped;

    *out = (fm_refusal){ 0 };
    if (why->code == PRECONDITION_FAILED) {
        if (!cut(&text, "inequivalent arg '", false, &skipped)
            || !cut(&text, "' for ", false, &out->argument))
            return false;
    } else if (why->code != ACCESS_REFUSED
        || !cut(&text, "access to ", false, &skipped)) {
        return false;
    }
    out->is_queue = begins_with(&text, "queue '");
    if (!out->is_queue && !begins_with(&text, "exchange '"))
        return false;
    /* A name may hold anything; the last mark is the broker's own. */
    if (!cut(&text, "' in vhost '", true, &out->name)
        || !cut(&text, "'", false, &out->virtual_host))
        return false;
    if (text.len > 2)
        out->details = (fm_slice){ text.data + 2, text.len - 2 };
    return true;
}

static bool
slice_is(fm_slice slice, const char *text)
{
    return slice.len == strlen(text)
        && memcmp(slice.data, text, slice.len) == 0;
}

static bool
slice_ends_with(fm_slice slice, const char *end)
{
    size_t len = strlen(end);

    return slice.len >= len
        && memcmp(slice.data + slice.len - len, end, len) == 0;
}

/* --- what we say, once --- */

/* FM_OWNED_BY_THREAD(io). */
static struct {
    uint64_t hashes[256]; /* the oldest make room */
    size_t count;
} said;

static uint64_t
hash(uint64_t seed, fm_slice slice)
{
    for (size_t i = 0; i < slice.len; i++)
        seed = (seed ^ slice.data[i]) * UINT64_C(1099511628211); /* FNV-1a */
    return (seed ^ 0xff) * UINT64_C(1099511628211);
}

static bool
is_news(const fm_refusal *refusal)
{
    size_t size = sizeof(said.hashes) / sizeof(*said.hashes);
    uint64_t it = UINT64_C(14695981039346656037) ^ refusal->is_queue;
    bool is_new = true;

    it = hash(it, refusal->name);
    it = hash(it, refusal->virtual_host);
    it = hash(it, refusal->argument);
    it = hash(it, refusal->details);
    for (size_t i = 0; i < said.count && i < size && is_new; i++)
        is_new = said.hashes[i] != it;
    if (is_new)
        said.hashes[said.count++ % size] = it;
    return is_new;
}

/* The command that removes it; empty if nobody could paste it. */
static void
print_removal(char *to, size_t size, const fm_refusal *refusal)
{
    const fm_slice *name = &refusal->name, *vhost = &refusal->virtual_host;
    int len = snprintf(to, size,
        refusal->is_queue
            ? "; to have it made anew, stop who uses it and run: rabbitmqctl "
              "delete_queue --vhost '%.*s' '%.*s'"
            : "; to have it made anew, stop who uses it and run: rabbitmqadmin "
              "delete exchange '--vhost=%.*s' 'name=%.*s'",
        (int)vhost->len, (const char *)vhost->data, (int)name->len,
        (const char *)name->data);

    if (len < 0 || (size_t)len >= size
        || memchr(name->data, '\'', name->len) != NULL
        || memchr(vhost->data, '\'', vhost->len) != NULL)
        to[0] = '\0';
}

static void
say(const fm_refusal *refusal)
{
    const char *kind = refusal->is_queue ? "queue" : "exchange";
    char text[FM_EVENT_TEXT], removal[FM_EVENT_TEXT];
    int len;

    if (!is_news(refusal))
        return;
    if (refusal->argument.len == 0) {
        fm_event_post(FM_WARNING,
            "this user may not declare %s '%.*s': it is used as it is", kind,
            (int)refusal->name.len, (const char *)refusal->name.data);
        return;
    }
    len = snprintf(text, sizeof(text),
        "%s '%.*s' exists with another '%.*s' than configured and is used as "
        "it is (%.*s)",
        kind, (int)refusal->name.len, (const char *)refusal->name.data,
        (int)refusal->argument.len, (const char *)refusal->argument.data,
        (int)refusal->details.len, (const char *)refusal->details.data);
    print_removal(removal, sizeof(removal), refusal);
    if (len < 0 || (size_t)len + strlen(removal) >= sizeof(text))
        removal[0] = '\0';
    fm_event_post(FM_WARNING, "%s%s", text, removal);
}

/* 404: "... no queue 'q' in vhost '/'". Not: that its node is down. */
static bool
read_missing(const fm_close *why, bool *is_queue, fm_slice *name)
{
    fm_slice text = why->text, skipped;

    if (!cut(&text, "no ", false, &skipped))
        return false;
    *is_queue = begins_with(&text, "queue '");
    return (*is_queue || begins_with(&text, "exchange '"))
        && cut(&text, "' in vhost '", true, name);
}

static bool
change(fm_topology *topology, const fm_close *why)
{
    fm_refusal refusal;
    fm_slice name;
    bool is_queue;

    /* What was adopted is gone, so that it may be declared again. */
    if (why->code == NOT_FOUND)
        return read_missing(why, &is_queue, &name)
            && fm_topology_disown(topology, is_queue, name);
    if (!fm_refusal_read(why, &refusal)
        /* Messages would be routed in another way. */
        || slice_is(refusal.argument, "type"))
        return false;
    if (!fm_topology_adopt(topology, refusal.is_queue, refusal.name))
        /* Its bindings are refused as well: they have to be there. */
        return refusal.argument.len == 0
            && fm_topology_trust_bindings(
                topology, refusal.is_queue, refusal.name);
    if (!refusal.is_queue && slice_is(refusal.argument, "durable")
        && slice_ends_with(refusal.details, "current is 'false'"))
        fm_topology_follow(topology, refusal.name);
    say(&refusal);
    return true;
}

bool
fm_adopt(fm_topology *topology, const fm_close *why)
{
    if (change(topology, why))
        return true;
    fm_topology_settle(topology);
    return false;
}
