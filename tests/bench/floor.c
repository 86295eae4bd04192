/* The floor: an RPC with nothing in it that could be left out.
 *
 * A blocking client and server written straight on rabbitmq-c's connection
 * API. No envelope, no confirms, no acks, no correlation, a connection for
 * each client thread: what a call costs when only the broker and the kernel
 * are in the way. The benchmark compiles it and compares the driver with it.
 *
 *   floor server QUEUE [safe]    echoes until its standard input ends
 *   floor client QUEUE [safe]    obeys "call|cast THREADS BYTES MILLISECONDS"
 *
 * "safe" adds what the drivers have to ask of the broker: each publication is
 * confirmed and each delivery acked. A call does not wait for its confirm even
 * so; a cast, which has nothing else to wait for, does.
 *
 * Both read the broker's URL (amqp://...) from the environment, FLOOR_URL,
 * since an argument would show its password to every user of the machine.
 * Each answer is one line of JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__has_include)
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#define HAVE_NEW_HEADERS
#endif
#endif
#ifndef HAVE_NEW_HEADERS
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif

enum { CHANNEL = 1, MOST_THREADS = 256, PATIENCE_S = 30 };

/* One blocking connection; a client's also has the queue for its replies. */
typedef struct {
    amqp_connection_state_t state; /* owned */
    amqp_bytes_t reply_queue;      /* owned */
    uint64_t published;            /* the delivery tag of the last */
    bool is_safe;                  /* confirms and acks */
    bool is_client;                /* does not wait for ever */
} link_t;

/* What one client thread is to do, and what it measured. */
typedef struct worker {
    pthread_t thread;
    link_t link;
    const char *queue;        /* borrowed from argv */
    pthread_barrier_t *start; /* borrowed from run_client */
    amqp_bytes_t body;        /* borrowed from run_client */
    void (*operate)(struct worker *);
    uint64_t run_ns;
    uint64_t *latencies_ns; /* owned */
    size_t count;
    size_t room;
} worker_t;

static void
fail(const char *what, const char *why)
{
    fprintf(stderr, "floor: %s: %s\n", what, why);
    exit(1);
}

static void
check_status(const char *what, int status)
{
    if (status != AMQP_STATUS_OK)
        fail(what, amqp_error_string2(status));
}

static void
check_reply(const char *what, amqp_rpc_reply_t reply)
{
    switch (reply.reply_type) {
    case AMQP_RESPONSE_NORMAL:
        return;
    case AMQP_RESPONSE_LIBRARY_EXCEPTION:
        fail(what, amqp_error_string2(reply.library_error));
        return;
    case AMQP_RESPONSE_SERVER_EXCEPTION:
        fail(what, "the broker closed the channel or the connection");
        return;
    default:
        fail(what, "no answer");
    }
}

static uint64_t
clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static link_t
open_link(bool is_safe)
{
    struct amqp_connection_info where;
    const char *url = getenv("FLOOR_URL");
    char *copy; /* amqp_parse_url cuts it up and points into it */
    link_t link = { .is_safe = is_safe };
    amqp_socket_t *socket;

    if (url == NULL)
        fail("FLOOR_URL", "not set");
    copy = strdup(url);
    if (copy == NULL)
        fail("FLOOR_URL", strerror(ENOMEM));
    check_status("FLOOR_URL", amqp_parse_url(copy, &where));

    link.state = amqp_new_connection();
    socket = amqp_tcp_socket_new(link.state);
    if (socket == NULL)
        fail("socket", strerror(ENOMEM));
    check_status("connect", amqp_socket_open(socket, where.host, where.port));
    check_reply("login",
        amqp_login(link.state, where.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0,
            AMQP_SASL_METHOD_PLAIN, where.user, where.password));
    amqp_channel_open(link.state, CHANNEL);
    check_reply("open the channel", amqp_get_rpc_reply(link.state));
    if (is_safe) {
        amqp_confirm_select(link.state, CHANNEL);
        check_reply("ask for confirms", amqp_get_rpc_reply(link.state));
    }
    free(copy);
    return link;
}

/* Consume from a new queue, `name` or one that the broker names; it goes with
 * the connection. Gives a copy of the name. */
static amqp_bytes_t
consume_new_queue(link_t *link, amqp_bytes_t name)
{
    amqp_queue_declare_ok_t *declared = amqp_queue_declare(
        link->state, CHANNEL, name, 0, 0, 1, 1, amqp_empty_table);
    amqp_bytes_t queue;

    check_reply("declare the queue", amqp_get_rpc_reply(link->state));
    queue = amqp_bytes_malloc_dup(declared->queue);
    amqp_basic_consume(link->state, CHANNEL, queue, amqp_empty_bytes, 0,
        !link->is_safe, 1, amqp_empty_table);
    check_reply("consume", amqp_get_rpc_reply(link->state));
    return queue;
}

/* Wait for a message and ack it if need be; confirms that come are dropped. */
static void
consume(link_t *link, amqp_envelope_t *message)
{
    for (;;) {
        struct timeval patience = { .tv_sec = PATIENCE_S };
        amqp_rpc_reply_t reply = amqp_consume_message(
            link->state, message, link->is_client ? &patience : NULL, 0);
        amqp_frame_t frame;

        if (reply.reply_type != AMQP_RESPONSE_LIBRARY_EXCEPTION
            || reply.library_error != AMQP_STATUS_UNEXPECTED_STATE) {
            check_reply("wait for a message", reply);
            break;
        }
        /* Not a delivery: the library left it for us to fetch. */
        check_status(
            "fetch a frame", amqp_simple_wait_frame(link->state, &frame));
        if (frame.frame_type != AMQP_FRAME_METHOD
            || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
            fail("wait for a message", "neither that nor a confirm came");
    }
    if (link->is_safe)
        check_status("ack",
            amqp_basic_ack(link->state, CHANNEL, message->delivery_tag, 0));
}

/* Until the benchmark closes our standard input, or dies. */
static void *
exit_with_input(void *unused)
{
    (void)unused;
    while (getchar() != EOF)
        ;
    exit(0);
}

static void
run_server(const char *queue, bool is_safe)
{
    link_t link = open_link(is_safe);
    amqp_basic_properties_t properties = { 0 };
    pthread_t watcher;

    link.reply_queue = consume_new_queue(&link, amqp_cstring_bytes(queue));
    if (pthread_create(&watcher, NULL, exit_with_input, NULL) != 0)
        fail("watch the input", "no thread");
    printf("{\"ready\": true}\n");
    fflush(stdout);

    for (;;) {
        amqp_envelope_t request;

        consume(&link, &request);
        if ((request.message.properties._flags & AMQP_BASIC_REPLY_TO_FLAG)
            == 0) {
            amqp_destroy_envelope(&request);
            amqp_maybe_release_buffers(link.state);
            continue;
        }
        check_status("reply",
            amqp_basic_publish(link.state, CHANNEL, amqp_empty_bytes,
                request.message.properties.reply_to, 0, 0, &properties,
                request.message.body));
        amqp_destroy_envelope(&request);
        amqp_maybe_release_buffers(link.state);
    }
}

static void
call(worker_t *worker)
{
    amqp_basic_properties_t properties = { 0 };
    amqp_envelope_t reply;

    properties._flags = AMQP_BASIC_REPLY_TO_FLAG;
    properties.reply_to = worker->link.reply_queue;
    check_status("request",
        amqp_basic_publish(worker->link.state, CHANNEL, amqp_empty_bytes,
            amqp_cstring_bytes(worker->queue), 0, 0, &properties,
            worker->body));
    worker->link.published++;
    consume(&worker->link, &reply);
    if (reply.message.body.len != worker->body.len)
        fail("reply", "not the request's size");
    amqp_destroy_envelope(&reply);
    amqp_maybe_release_buffers(worker->link.state);
}

static void
wait_for_confirm(link_t *link)
{
    uint64_t confirmed = 0;

    while (confirmed < link->published) {
        struct timeval patience = { .tv_sec = PATIENCE_S };
        amqp_frame_t frame;
        amqp_basic_ack_t *ack;

        check_status("wait for a confirm",
            amqp_simple_wait_frame_noblock(link->state, &frame, &patience));
        if (frame.frame_type != AMQP_FRAME_METHOD
            || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
            fail("wait for a confirm", "something else came");
        ack = frame.payload.method.decoded;
        confirmed = ack->delivery_tag;
    }
}

static void
cast(worker_t *worker)
{
    amqp_basic_properties_t properties = { 0 };

    check_status("cast",
        amqp_basic_publish(worker->link.state, CHANNEL, amqp_empty_bytes,
            amqp_cstring_bytes(worker->queue), 0, 0, &properties,
            worker->body));
    worker->link.published++;
    wait_for_confirm(&worker->link);
    amqp_maybe_release_buffers(worker->link.state);
}

static void *
operate_until_deadline(void *arg)
{
    worker_t *worker = arg;
    uint64_t now;
    uint64_t deadline;

    pthread_barrier_wait(worker->start);
    now = clock_ns(CLOCK_MONOTONIC);
    deadline = now + worker->run_ns;
    while (now < deadline) {
        uint64_t before = now;

        worker->operate(worker);
        now = clock_ns(CLOCK_MONOTONIC);
        if (worker->count == worker->room) {
            worker->room = worker->room == 0 ? 4096 : worker->room * 2;
            worker->latencies_ns = realloc(worker->latencies_ns,
                worker->room * sizeof(*worker->latencies_ns));
            if (worker->latencies_ns == NULL)
                fail("record", strerror(ENOMEM));
        }
        worker->latencies_ns[worker->count++] = now - before;
    }
    return NULL;
}

static int
compare_ns(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;

    return (a > b) - (a < b);
}

static void
print_result(
    worker_t *workers, size_t threads, uint64_t elapsed_ns, uint64_t cpu_ns)
{
    size_t total = 0;
    size_t filled = 0;
    size_t p50;
    size_t p99;
    uint64_t *all;

    for (size_t i = 0; i < threads; i++)
        total += workers[i].count;
    all = malloc(total * sizeof(*all));
    if (all == NULL || total == 0)
        fail("result", "nothing was measured");
    for (size_t i = 0; i < threads; i++) {
        memcpy(all + filled, workers[i].latencies_ns,
            workers[i].count * sizeof(*all));
        filled += workers[i].count;
    }
    qsort(all, total, sizeof(*all), compare_ns);
    p50 = total / 2;
    p99 = total * 99 / 100;
    printf("{\"count\": %zu, \"elapsed_s\": %.6f, \"cpu_s\": %.6f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
        total, (double)elapsed_ns / 1e9, (double)cpu_ns / 1e9,
        (double)all[p50] / 1e3, (double)all[p99] / 1e3,
        (double)all[total - 1] / 1e3);
    fflush(stdout);
    free(all);
}

static void
measure(worker_t *workers, size_t threads, void (*operate)(worker_t *),
    const char *queue, size_t body_len, uint64_t run_ms, bool is_safe)
{
    pthread_barrier_t start;
    amqp_bytes_t body = { .len = body_len, .bytes = malloc(body_len) };
    uint64_t started_ns;
    uint64_t started_cpu_ns;

    if (body.bytes == NULL)
        fail("body", strerror(ENOMEM));
    memset(body.bytes, 'x', body_len);
    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    for (size_t i = 0; i < threads; i++) {
        worker_t *worker = &workers[i];

        if (worker->link.state == NULL) {
            worker->link = open_link(is_safe);
            worker->link.is_client = true;
            worker->link.reply_queue =
                consume_new_queue(&worker->link, amqp_empty_bytes);
        }
        worker->queue = queue;
        worker->start = &start;
        worker->body = body;
        worker->operate = operate;
        worker->run_ns = run_ms * 1000000u;
        worker->count = 0;
        if (pthread_create(
                &worker->thread, NULL, operate_until_deadline, worker)
            != 0)
            fail("start", "no thread");
    }

    pthread_barrier_wait(&start);
    started_ns = clock_ns(CLOCK_MONOTONIC);
    started_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (size_t i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    print_result(workers, threads, clock_ns(CLOCK_MONOTONIC) - started_ns,
        clock_ns(CLOCK_PROCESS_CPUTIME_ID) - started_cpu_ns);

    pthread_barrier_destroy(&start);
    free(body.bytes);
}

static void
run_client(const char *queue, bool is_safe)
{
    /* Connections stay open from one line to the next. */
    static worker_t workers[MOST_THREADS];
    char operation[8];
    size_t threads;
    size_t body_len;
    uint64_t run_ms;

    printf("{\"ready\": true}\n");
    fflush(stdout);
    while (
        scanf("%7s %zu %zu %" SCNu64, operation, &threads, &body_len, &run_ms)
        == 4) {
        bool is_cast = strcmp(operation, "cast") == 0;

        if (threads < 1 || threads > MOST_THREADS || body_len == 0)
            fail("input", "no such number of threads or bytes");
        if (is_cast && !is_safe)
            fail("input", "without confirms a cast has no end");
        measure(workers, threads, is_cast ? cast : call, queue, body_len,
            run_ms, is_safe);
    }
}

int
main(int argc, char **argv)
{
    bool is_safe = argc == 4 && strcmp(argv[3], "safe") == 0;

    if ((argc == 3 || is_safe) && strcmp(argv[1], "server") == 0)
        run_server(argv[2], is_safe);
    else if ((argc == 3 || is_safe) && strcmp(argv[1], "client") == 0)
        run_client(argv[2], is_safe);
    else
        fail("usage", "floor server|client QUEUE [safe]");
    return 0;
}
