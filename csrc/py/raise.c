#include "py/raise.h"

/* Which exception each status is. What has none here is Error itself. */
static const struct {
    fm_status status;
    const char *name;
    const char *doc;
} classes[] = {
    { FM_TIMED_OUT, "Timeout",
        "The deadline passed; the text says what was waited for." },
    { FM_DISCONNECTED, "Disconnected",
        "The connection was lost or refused more often than `retry` allows." },
    { FM_REFUSED, "Refused",
        "The broker refused login, virtual host or mechanism." },
    { FM_REJECTED, "Rejected",
        "The broker refused the operation and closed its channel." },
    { FM_NACKED, "Nacked", "The broker could not take the message." },
    { FM_RETURNED, "Returned",
        "The message was mandatory and no queue is bound for it.\n\n"
        "Attributes exchange and routing_key say where it went." },
    { FM_CLOSED, "Closed", "This process closed the bus or the consumer." },
};

int
fm_raise_init(PyObject *module, fm_state *state)
{
    state->error = PyErr_NewExceptionWithDoc("oslo_fastmsg._core.Error",
        "Base of what the core raises.\n\n"
        "Attribute code is the broker's reply code (404, ...) or 0.",
        NULL, NULL);
    if (state->error == NULL
        || PyModule_AddObjectRef(module, "Error", state->error) < 0)
        return -1;
    for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++) {
        char name[64];
        PyObject *exception;

        PyOS_snprintf(
            name, sizeof(name), "oslo_fastmsg._core.%s", classes[i].name);
        exception =
            PyErr_NewExceptionWithDoc(name, classes[i].doc, state->error, NULL);
        if (exception == NULL)
            return -1;
        state->exceptions[classes[i].status] = exception;
        if (PyModule_AddObjectRef(module, classes[i].name, exception) < 0)
            return -1;
    }
    state->bad_message =
        PyErr_NewExceptionWithDoc("oslo_fastmsg._core.BadMessage",
            "A body that the fast path does not read.", state->error, NULL);
    if (state->bad_message == NULL
        || PyModule_AddObjectRef(module, "BadMessage", state->bad_message) < 0)
        return -1;
    state->exceptions[FM_BAD_MESSAGE] = Py_NewRef(state->bad_message);
    state->codec.bad_message = state->bad_message;
    return 0;
}

/* Set attribute `name` of the exception to a text; -1 on failure. */
static int
set_text(PyObject *exception, const char *name, const char *text)
{
    PyObject *value =
        PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
    int rc = -1;

    if (value != NULL)
        rc = PyObject_SetAttrString(exception, name, value);
    Py_XDECREF(value);
    return rc;
}

static PyObject *
make(fm_state *state, const fm_error *error)
{
    PyObject *class = state->error, *text, *code = NULL, *exception = NULL;

    if ((unsigned)error->status < FM_STATUS_COUNT
        && state->exceptions[error->status] != NULL)
        class = state->exceptions[error->status];
    /* Peers' words are in it, which need not be UTF-8. */
    text = PyUnicode_DecodeUTF8(
        error->text, (Py_ssize_t)strlen(error->text), "replace");
    if (text != NULL)
        exception = PyObject_CallOneArg(class, text);
    if (exception != NULL)
        code = PyLong_FromLong(error->code);
    if (exception != NULL
        && (code == NULL
            || PyObject_SetAttrString(exception, "code", code) < 0))
        Py_CLEAR(exception);
    Py_XDECREF(code);
    Py_XDECREF(text);
    return exception;
}

PyObject *
fm_raise(fm_state *state, const fm_error *error)
{
    PyObject *exception;

    if (error->status == FM_NO_MEMORY && error->text[0] == '\0')
        return PyErr_NoMemory();
    exception = make(state, error);
    if (exception != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    return NULL;
}

PyObject *
fm_raise_status(fm_state *state, fm_status status)
{
    fm_error error = { .status = status };

    if (status == FM_NO_MEMORY)
        return PyErr_NoMemory();
    (void)fm_error_set(&error, status, 0, "%s",
        status == FM_SYSTEM ? "no thread or file descriptor (ulimit -u, -n)"
                            : fm_status_text(status));
    return fm_raise(state, &error);
}

PyObject *
fm_raise_message(fm_state *state, const fm_message *message)
{
    PyObject *exception = make(state, &message->error);

    if (exception != NULL && message->error.status == FM_RETURNED
        && (set_text(exception, "exchange", message->exchange) < 0
            || set_text(exception, "routing_key", message->routing_key) < 0))
        Py_CLEAR(exception);
    if (exception != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    return NULL;
}
