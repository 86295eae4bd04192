/* io/loop.h without a broker: who looks for signals while it waits.
 */
#include "io/loop.h"

#include "base/sync.h"
#include "check.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS FM_NS_PER_MS

/* The C library's, which is not called any more in this program: counted. */
static atomic_int look_ups;

pid_t
gettid(void)
{
    atomic_fetch_add(&look_ups, 1);
    return (pid_t)syscall(SYS_gettid);
}

/* Wait in vain: FM_INTERRUPTED says that signals are to be looked for. */
static fm_status
wait_for_nothing(void)
{
    fm_wake wake;

    fm_wake_init(&wake);
    return fm_loop_wait(
        &wake, fm_wake_read(&wake), fm_deadline_in(300 * MS), FM_ERRAND_CALLER);
}

static void
nobody_looks_for_signals_before_that_is_asked_for(void)
{
    CHECK_INT(wait_for_nothing(), FM_TIMED_OUT);
    CHECK_INT(atomic_load(&look_ups), 0);
}

static void
the_main_thread_looks_and_is_looked_up_once(void)
{
    atomic_store(&look_ups, 0);
    fm_loop_look_for_signals();
    for (int i = 0; i < 3; i++)
        CHECK_INT(wait_for_nothing(), FM_INTERRUPTED);
    CHECK_INT(atomic_load(&look_ups), 1);
}

static void *
wait_and_fork(void *arg)
{
    int status;
    pid_t pid;

    CHECK_INT(wait_for_nothing(), FM_TIMED_OUT);
    CHECK_INT(wait_for_nothing(), FM_TIMED_OUT);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) /* whose main thread this is */
        _exit(wait_for_nothing() == FM_INTERRUPTED ? 0 : 1);
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
    CHECK_INT(wait_for_nothing(), FM_TIMED_OUT);
    return arg;
}

static void
a_thread_that_forks_looks_in_the_child_only(void)
{
    fm_thread thread;

    atomic_store(&look_ups, 0);
    CHECK_INT(fm_thread_start(&thread, "forks", wait_and_fork, NULL), FM_OK);
    fm_thread_join(&thread);
    CHECK_INT(atomic_load(&look_ups), 1);
}

int
main(void)
{
    RUN(nobody_looks_for_signals_before_that_is_asked_for);
    RUN(the_main_thread_looks_and_is_looked_up_once);
    RUN(a_thread_that_forks_looks_in_the_child_only);
    return 0;
}
