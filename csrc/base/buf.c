#include "base/buf.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
    FIRST_CAP = 512, /* doubled, and doubled again */
    SPARE_CAP = 64 * 1024,
    SPARE_CLASSES = 2, /* of SPARE_CAP, and of twice that */
    SPARES = 8,        /* of each class */
};

/* --- spare memory ---
 *
 * A message of 64 kB is written by one of many threads and freed by another:
 * malloc() would have each thread's arena grow to the size of its largest
 * ones and keep that. So their memory goes from hand to hand here. */

static _Atomic(uint8_t *) spares[SPARE_CLASSES][SPARES]; /* owned; or NULL */

/* AddressSanitizer can only find the use of memory that is freed. */
#if defined(__SANITIZE_ADDRESS__)
static const bool keeps_spares = false;
#else
static const bool keeps_spares = true;
#endif

/* The spares of this capacity; NULL: there are none. */
static _Atomic(uint8_t *) *
spares_of(size_t cap)
{
    for (size_t i = 0; keeps_spares && i < SPARE_CLASSES; i++)
        if (cap == (size_t)SPARE_CAP << i)
            return spares[i];
    return NULL;
}

static uint8_t *
take_spare(size_t cap)
{
    _Atomic(uint8_t *) *slots = spares_of(cap);
    uint8_t *data = NULL;

    for (size_t i = 0; slots != NULL && data == NULL && i < SPARES; i++)
        if (atomic_load_explicit(&slots[i], memory_order_relaxed) != NULL)
            data = atomic_exchange(&slots[i], NULL);
    return data;
}

static void
put_spare(uint8_t *data, size_t cap)
{
    _Atomic(uint8_t *) *slots = spares_of(cap);

    for (size_t i = 0; slots != NULL && i < SPARES; i++) {
        uint8_t *none = NULL;

        if (atomic_compare_exchange_strong(&slots[i], &none, data))
            return;
    }
    free(data);
}

/* --- buffers --- */

void
fm_buf_init(fm_buf *buf)
{
    *buf = (fm_buf){ 0 };
}

void
fm_buf_fini(fm_buf *buf)
{
    put_spare(buf->data, buf->cap);
    fm_buf_init(buf);
}

fm_status
fm_buf_grow(fm_buf *buf, size_t extra)
{
    size_t cap = buf->cap < FIRST_CAP ? FIRST_CAP : buf->cap;
    size_t need;
    uint8_t *data;

    if (extra > SIZE_MAX / 2 - buf->len)
        return FM_NO_MEMORY;
    need = buf->len + extra;
    while (cap < need)
        cap *= 2; /* need <= SIZE_MAX / 2, so this cannot wrap */
    data = take_spare(cap);
    if (data != NULL) {
        if (buf->len > 0)
            memcpy(data, buf->data, buf->len);
        put_spare(buf->data, buf->cap);
    } else {
        data = realloc(buf->data, cap);
    }
    if (data == NULL)
        return FM_NO_MEMORY;
    buf->data = data;
    buf->cap = cap;
    return FM_OK;
}

void
fm_buf_consume(fm_buf *buf, size_t len)
{
    assert(len <= buf->len);
    buf->len -= len;
    if (buf->len > 0 && len > 0)
        memmove(buf->data, buf->data + len, buf->len);
}

void
fm_buf_shrink(fm_buf *buf, size_t keep)
{
    if (buf->len == 0 && buf->cap > keep)
        fm_buf_fini(buf);
}
