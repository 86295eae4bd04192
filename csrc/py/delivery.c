#include "py/consumer.h"

#include "io/field.h"
#include "py/raise.h"

typedef struct {
    PyObject_HEAD
    ConsumerObject *consumer; /* owned */
    fm_delivery *delivery;    /* owned */
    PyObject *payload;        /* owned: dict, or None */
    PyObject *unique_id;      /* owned: str, or NULL; in critical sections */
    size_t size;              /* of the body as received */
    bool is_read;             /* payload is not None */
    bool claims;              /* its id, until it is settled */
    atomic_bool settled;      /* acked or rejected, here or by take() */
} DeliveryObject;

#define SELF(op) ((DeliveryObject *)(op))

/* --- making one --- */

static bool
slice_is(fm_slice slice, const char *text)
{
    return slice.len == strlen(text)
        && memcmp(slice.data, text, slice.len) == 0;
}

/* Nothing about it that Python should decide. Only text has an encoding that
 * counts. */
static bool
is_plain(const fm_content *content, bool is_msgpack)
{
    fm_slice compression;

    return (is_msgpack
               || (slice_is(content->content_type, "application/json")
                   && (!content->has_content_encoding
                       || slice_is(content->content_encoding, "utf-8"))))
        && (content->headers.len == 0
            || fm_frame_find_header(
                   content->headers, "compression", &compression)
                == FM_NOT_FOUND);
}

/* The payload as a dict, a new reference; NULL without an exception: for the
 * slow path. */
static PyObject *
read_payload(fm_state *state, const fm_delivery *delivery)
{
    bool is_msgpack = fm_content_is_msgpack(&delivery->content);
    const fm_buf *body = &delivery->body;
    PyObject *payload;

    if (!is_plain(&delivery->content, is_msgpack))
        return NULL;
    payload = is_msgpack
        ? fm_codec_unpack(&state->codec, body->data, body->len)
        : fm_codec_decode(&state->codec, body->data, body->len);
    if (payload == NULL && PyErr_ExceptionMatches(state->bad_message))
        PyErr_Clear();
    if (payload != NULL && !PyDict_CheckExact(payload))
        Py_CLEAR(payload);
    return payload;
}

/* The UTF-8 of an id; NULL without an exception for a text that has none. */
static const char *
id_text(PyObject *id, size_t *len)
{
    Py_ssize_t size = 0;
    const char *text;

    *len = 0;
    if (id == NULL)
        return NULL;
    text = PyUnicode_AsUTF8AndSize(id, &size);
    if (text == NULL)
        PyErr_Clear();
    *len = (size_t)size;
    return text;
}

/* Does it name a message? */
static bool
is_id(PyObject *id)
{
    size_t len;

    return PyUnicode_Check(id) && id_text(id, &len) != NULL;
}

/* Take `_unique_id` out of the payload: a new reference to the text, or NULL
 * without an exception if there is none that counts. */
static PyObject *
take_unique_id(fm_state *state, PyObject *payload)
{
    PyObject *id = PyDict_GetItemWithError(payload, state->str_unique_id);

    if (id == NULL)
        return NULL;
    Py_INCREF(id);
    if (PyDict_DelItem(payload, state->str_unique_id) < 0 || !is_id(id))
        Py_CLEAR(id);
    return id;
}

static bool
has_seen(ConsumerObject *consumer, PyObject *id)
{
    size_t len;
    const char *text = id_text(id, &len);

    return text != NULL && fm_consumer_has_seen(consumer->consumer, text, len);
}

static void
remember(ConsumerObject *consumer, PyObject *id)
{
    size_t len;
    const char *text = id_text(id, &len);

    if (text != NULL)
        fm_consumer_remember(consumer->consumer, text, len);
}

/* What this id is to a consumer that settles its deliveries after the work. */
static fm_novelty
claim(ConsumerObject *consumer, PyObject *id, fm_delivery *delivery)
{
    size_t len;
    const char *text = id_text(id, &len);

    return text == NULL
        ? FM_ID_NEW
        : fm_consumer_claim(consumer->consumer, text, len, delivery);
}

static fm_novelty
judge(ConsumerObject *consumer, PyObject *id, fm_delivery *delivery)
{
    if (!consumer->ack_on_take)
        return claim(consumer, id, delivery);
    return has_seen(consumer, id) ? FM_ID_SEEN : FM_ID_NEW;
}

/* True if the delivery is another one now. */
static bool
release(ConsumerObject *consumer, PyObject *id, fm_delivery *delivery)
{
    size_t len;
    const char *text = id_text(id, &len);

    return text != NULL
        && fm_consumer_release(consumer->consumer, text, delivery);
}

PyObject *
fm_delivery_make(fm_state *state, ConsumerObject *consumer,
    fm_delivery *delivery, bool *is_duplicate)
{
    PyTypeObject *type = state->delivery_type;
    PyObject *payload = read_payload(state, delivery), *id = NULL, *op;
    fm_novelty novelty;

    *is_duplicate = false;
    if (payload == NULL && PyErr_Occurred() != NULL)
        goto fail;
    if (payload != NULL)
        id = take_unique_id(state, payload);
    if (PyErr_Occurred() != NULL)
        goto fail;
    novelty = judge(consumer, id, delivery);
    if (novelty != FM_ID_NEW) {
        *is_duplicate = true;
        if (novelty == FM_ID_SEEN && !consumer->ack_on_take)
            fm_consumer_ack(consumer->consumer, delivery->generation,
                delivery->deliver.delivery_tag, false, true);
        goto fail;
    }
    op = type->tp_alloc(type, 0);
    if (op == NULL) {
        (void)release(consumer, id, delivery);
        goto fail;
    }
    if (payload != NULL && consumer->ack_on_take)
        remember(consumer, id);
    SELF(op)->claims = id != NULL && !consumer->ack_on_take;
    SELF(op)->consumer = (ConsumerObject *)Py_NewRef(consumer);
    SELF(op)->delivery = delivery;
    SELF(op)->is_read = payload != NULL;
    SELF(op)->settled = payload != NULL && consumer->ack_on_take;
    SELF(op)->payload = payload != NULL ? payload : Py_NewRef(Py_None);
    SELF(op)->unique_id = id;
    SELF(op)->size = delivery->body.len;
    if (payload == NULL)
        consumer->unsettled++;
    else
        fm_buf_fini(&delivery->body); /* it lives on, in another form */
    return op;

fail:
    Py_XDECREF(id);
    Py_XDECREF(payload);
    fm_delivery_free(delivery);
    return NULL;
}

bool
fm_delivery_is_read(PyObject *delivery)
{
    return SELF(delivery)->is_read;
}

/* --- methods --- */

/* It is settled from now on; false if it was before. */
static bool
settle(DeliveryObject *self)
{
    if (atomic_exchange(&self->settled, true))
        return false;
    if (!self->is_read)
        self->consumer->unsettled--;
    return self->consumer->bus->generation == fm_fork_generation();
}

/* Its id counts as seen. */
static void
finish(PyObject *op)
{
    Py_BEGIN_CRITICAL_SECTION(op);
    remember(SELF(op)->consumer, SELF(op)->unique_id);
    Py_END_CRITICAL_SECTION();
}

/* What is settled now is what the broker delivered last. True if that is
 * another one than the first. */
static bool
end_claim(PyObject *op)
{
    DeliveryObject *self = SELF(op);
    bool is_another = false;

    Py_BEGIN_CRITICAL_SECTION(op);
    if (self->claims)
        is_another = release(self->consumer, self->unique_id, self->delivery);
    self->claims = false;
    Py_END_CRITICAL_SECTION();
    return is_another;
}

PyDoc_STRVAR(accept_doc,
    "accept($self, unique_id, /)\n--\n\n"
    "Check a message that Python decoded for being a duplicate.\n\n"
    ":param unique_id: its `_unique_id`, or None if it has none.\n"
    ":returns: False: it was accepted before; acknowledge and drop it. (One\n"
    "    that is being worked on is acknowledged when that is done.)");

static PyObject *
Delivery_accept(PyObject *op, PyObject *unique_id)
{
    DeliveryObject *self = SELF(op);
    fm_novelty novelty;

    if (unique_id == Py_None)
        Py_RETURN_TRUE;
    if (!PyUnicode_Check(unique_id)) {
        PyErr_SetString(PyExc_TypeError, "unique_id is a str or None");
        return NULL;
    }
    if (!is_id(unique_id))
        Py_RETURN_TRUE;
    novelty = judge(self->consumer, unique_id, self->delivery);
    if (novelty == FM_ID_CLAIMED)
        (void)settle(self);
    if (novelty != FM_ID_NEW)
        Py_RETURN_FALSE;
    Py_BEGIN_CRITICAL_SECTION(op);
    Py_XSETREF(self->unique_id, Py_NewRef(unique_id));
    self->claims = !self->consumer->ack_on_take;
    Py_END_CRITICAL_SECTION();
    if (self->consumer->ack_on_take)
        remember(self->consumer, unique_id);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(ack_doc,
    "ack($self, /)\n--\n\n"
    "Acknowledge it, now; from now on its id counts as seen. Does nothing\n"
    "for one that is settled already.");

static PyObject *
Delivery_ack(PyObject *op, PyObject *Py_UNUSED(unused))
{
    DeliveryObject *self = SELF(op);

    if (settle(self)) {
        finish(op); /* first: no copy may come in between */
        (void)end_claim(op);
        fm_consumer_ack(self->consumer->consumer, self->delivery->generation,
            self->delivery->deliver.delivery_tag, false, true);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(begin_doc,
    "begin($self, /)\n--\n\n"
    "Acknowledge it before it is worked on, if it is still there to be.\n\n"
    ":returns: False: its connection is gone, and the broker delivers it "
    "again,\n"
    "    to this or another consumer (not one of a stream: that goes on after\n"
    "    what was taken); or it is settled already.");

static PyObject *
Delivery_begin(PyObject *op, PyObject *Py_UNUSED(unused))
{
    DeliveryObject *self = SELF(op);

    if (!settle(self))
        Py_RETURN_FALSE;
    (void)end_claim(op);
    if (!fm_consumer_ack(self->consumer->consumer, self->delivery->generation,
            self->delivery->deliver.delivery_tag, false, true)
        && !self->delivery->is_of_stream)
        Py_RETURN_FALSE;
    /* The broker may deliver it again even so, if that ack gets lost: after
     * this, since it takes another connection. */
    finish(op);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(reject_doc,
    "reject($self, requeue, /)\n--\n\n"
    "Refuse it.\n\n"
    ":param requeue: True: back to its queue; False: gone, unless the queue\n"
    "    has a dead-letter exchange. A stream keeps it, and does not deliver\n"
    "    it here again.");

static PyObject *
Delivery_reject(PyObject *op, PyObject *requeue)
{
    DeliveryObject *self = SELF(op);
    int truth = PyObject_IsTrue(requeue);

    if (truth < 0)
        return NULL;
    if (settle(self)) {
        (void)end_claim(op);
        fm_consumer_refuse(self->consumer->consumer, self->delivery->generation,
            self->delivery->deliver.delivery_tag, self->delivery->is_of_stream,
            truth);
    }
    Py_RETURN_NONE;
}

static PyMethodDef Delivery_methods[] = {
    { "accept", Delivery_accept, METH_O, accept_doc },
    { "ack", Delivery_ack, METH_NOARGS, ack_doc },
    { "begin", Delivery_begin, METH_NOARGS, begin_doc },
    { "reject", Delivery_reject, METH_O, reject_doc },
    { NULL, NULL, 0, NULL },
};

/* --- attributes --- */

static PyObject *
text_of(fm_slice slice)
{
    return PyUnicode_DecodeUTF8(
        (const char *)slice.data, (Py_ssize_t)slice.len, "surrogateescape");
}

static PyObject *
Delivery_get_payload(PyObject *op, void *Py_UNUSED(closure))
{
    return Py_NewRef(SELF(op)->payload);
}

static PyObject *
Delivery_get_body(PyObject *op, void *Py_UNUSED(closure))
{
    const fm_buf *body = &SELF(op)->delivery->body;

    return PyBytes_FromStringAndSize(
        (const char *)body->data, (Py_ssize_t)body->len);
}

static PyObject *
Delivery_get_content_type(PyObject *op, void *Py_UNUSED(closure))
{
    const fm_content *content = &SELF(op)->delivery->content;

    if (!content->has_content_type)
        Py_RETURN_NONE;
    return text_of(content->content_type);
}

static PyObject *
Delivery_get_content_encoding(PyObject *op, void *Py_UNUSED(closure))
{
    const fm_content *content = &SELF(op)->delivery->content;

    if (!content->has_content_encoding)
        Py_RETURN_NONE;
    return text_of(content->content_encoding);
}

/* The value of a header; other kinds than text, integer and bool: None. */
static PyObject *
header_value(const fm_field *field)
{
    fm_slice text;
    int64_t integer;
    bool flag;

    if (fm_field_text(field, &text))
        return text_of(text);
    if (fm_field_bool(field, &flag))
        return PyBool_FromLong(flag);
    if (fm_field_integer(field, &integer))
        return PyLong_FromLongLong(integer);
    Py_RETURN_NONE;
}

static PyObject *
Delivery_get_headers(PyObject *op, void *Py_UNUSED(closure))
{
    const fm_slice headers = SELF(op)->delivery->content.headers;
    fm_cursor rest = fm_cursor_over(headers.data, headers.len);
    PyObject *dict = PyDict_New();
    fm_field field;
    fm_status status;

    if (dict == NULL)
        return NULL;
    while ((status = fm_field_next(&rest, &field)) == FM_OK) {
        PyObject *name = text_of(field.name);
        PyObject *value = name == NULL ? NULL : header_value(&field);
        int rc = value == NULL ? -1 : PyDict_SetItem(dict, name, value);

        Py_XDECREF(name);
        Py_XDECREF(value);
        if (rc < 0) {
            Py_DECREF(dict);
            return NULL;
        }
    }
    if (status == FM_NOT_FOUND)
        return dict;
    Py_DECREF(dict);
    PyErr_SetString(fm_state_of(op)->bad_message, "malformed headers");
    return NULL;
}

static PyObject *
Delivery_get_queue(PyObject *op, void *Py_UNUSED(closure))
{
    const char *queue =
        fm_consumer_queue_of(SELF(op)->consumer->consumer, SELF(op)->delivery);

    return PyUnicode_FromString(queue == NULL ? "" : queue);
}

static PyObject *
Delivery_get_exchange(PyObject *op, void *Py_UNUSED(closure))
{
    return text_of(SELF(op)->delivery->deliver.exchange);
}

static PyObject *
Delivery_get_routing_key(PyObject *op, void *Py_UNUSED(closure))
{
    return text_of(SELF(op)->delivery->deliver.routing_key);
}

static PyObject *
Delivery_get_redelivered(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(SELF(op)->delivery->deliver.redelivered);
}

static PyObject *
Delivery_get_reads_msgpack(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(
        fm_content_reads_msgpack(&SELF(op)->delivery->content));
}

static PyObject *
Delivery_get_size(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(SELF(op)->size);
}

static PyGetSetDef Delivery_getset[] = {
    { "payload", Delivery_get_payload, NULL,
        "dict without _unique_id; None: Python has to decode the body", NULL },
    { "body", Delivery_get_body, NULL,
        "bytes as received, of a payload that is None; else empty", NULL },
    { "size", Delivery_get_size, NULL, "bytes of the body as received", NULL },
    { "content_type", Delivery_get_content_type, NULL, "str or None", NULL },
    { "content_encoding", Delivery_get_content_encoding, NULL, "str or None",
        NULL },
    { "headers", Delivery_get_headers, NULL,
        "dict; raises BadMessage if it cannot be decoded", NULL },
    { "queue", Delivery_get_queue, NULL, "name of the queue", NULL },
    { "exchange", Delivery_get_exchange, NULL, "where it was published", NULL },
    { "routing_key", Delivery_get_routing_key, NULL,
        "with which it was published", NULL },
    { "redelivered", Delivery_get_redelivered, NULL,
        "bool: somebody had it before", NULL },
    { "reads_msgpack", Delivery_get_reads_msgpack, NULL,
        "bool: its sender reads the binary envelope", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};

/* --- the type --- */

static int
Delivery_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(SELF(op)->consumer);
    Py_VISIT(SELF(op)->payload);
    return 0;
}

static int
Delivery_clear(PyObject *op)
{
    Py_CLEAR(SELF(op)->payload);
    return 0;
}

/* Nobody has settled it, nor will. The broker delivers it again when its
 * channel ends; one that it has delivered again since is given back to it now.
 */
static void
forget(PyObject *op)
{
    DeliveryObject *self = SELF(op);

    if (self->claims && settle(self) && end_claim(op))
        fm_consumer_refuse(self->consumer->consumer, self->delivery->generation,
            self->delivery->deliver.delivery_tag, self->delivery->is_of_stream,
            true);
}

static void
Delivery_dealloc(PyObject *op)
{
    DeliveryObject *self = SELF(op);
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    (void)Delivery_clear(op);
    if (self->consumer != NULL)
        forget(op);
    Py_CLEAR(self->unique_id);
    fm_delivery_free(self->delivery);
    Py_CLEAR(self->consumer);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(Delivery_doc, "A message from Consumer.take().");

static PyType_Slot Delivery_slots[] = {
    { Py_tp_doc, (void *)Delivery_doc },
    { Py_tp_dealloc, Delivery_dealloc },
    { Py_tp_traverse, Delivery_traverse },
    { Py_tp_clear, Delivery_clear },
    { Py_tp_methods, Delivery_methods },
    { Py_tp_getset, Delivery_getset },
    { 0, NULL },
};

static PyType_Spec Delivery_spec = {
    .name = "oslo_fastmsg._core.Delivery",
    .basicsize = sizeof(DeliveryObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
        | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Delivery_slots,
};

int
fm_delivery_type_add(PyObject *module, fm_state *state)
{
    state->delivery_type = fm_type_add(module, &Delivery_spec);
    return state->delivery_type == NULL ? -1 : 0;
}
