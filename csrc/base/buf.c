#include "base/buf.h"

#include <assert.h>
#include <stdlib.h>

enum { FIRST_CAP = 512 };

void
fm_buf_init(fm_buf *buf)
{
    *buf = (fm_buf){ 0 };
}

void
fm_buf_fini(fm_buf *buf)
{
    free(buf->data);
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
    data = realloc(buf->data, cap);
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
