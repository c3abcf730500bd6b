/* Starting and watching processes. */
#include "exec/spawn.h"
#include "exec/tcp_meet.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PROCESSES_MAX = 1024, PATIENCE_S = 15 };

typedef struct watch {
    pid_t pids[PROCESSES_MAX]; /* 0: it has ended */
    uint32_t n, left;
    int32_t failed;     /* the process that failed first, -1: none */
    int status;         /* of it, as waitpid tells */
    int64_t failed_ns;  /* when that was seen */
    bool ended_by_hand; /* those that were left have been killed */
} watch;

static void tell_all(const watch *w, int sig)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (w->pids[i] > 0) (void)kill(w->pids[i], sig);
}

static void look(watch *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        int status = 0;
        if (w->pids[i] == 0 || waitpid(w->pids[i], &status, WNOHANG) != w->pids[i]) continue;
        w->pids[i] = 0;
        w->left--;
        /* a process that was killed is the reason of those that fail beside it */
        const bool first =
            w->failed < 0 || (WIFSIGNALED(status) && !WIFSIGNALED(w->status) && !w->ended_by_hand);
        if (status == 0 || !first) continue;
        if (w->failed < 0) w->failed_ns = td_now_ns();
        w->failed = (int32_t)i;
        w->status = status;
    }
}

static td_status verdict(const watch *w, td_err *err)
{
    if (w->failed < 0) return TD_OK;
    if (WIFSIGNALED(w->status))
        return td_fail(err, TD_EDEVICE, "rank %d was ended by signal %d (%s)", (int)w->failed,
                       WTERMSIG(w->status), strsignal(WTERMSIG(w->status)));
    static const td_status codes[] = {TD_EMISMATCH, TD_EUSAGE, TD_EDEVICE};
    const int code = WEXITSTATUS(w->status);
    const td_status st = code == 130              ? TD_EINTR
                         : code >= 1 && code <= 3 ? codes[code - 1]
                                                  : TD_EDEVICE;
    (void)td_fail(err, st, "rank %d ended with code %d", (int)w->failed, code);
    err->msg[0] = '\0'; /* it has said why */
    return st;
}

/* The signals in `set` are blocked, so that none is lost between two looks. */
static td_status watch_all(watch *w, const sigset_t *set, td_err *err)
{
    const struct timespec turn = {.tv_nsec = 100000000};
    while (w->left > 0) {
        siginfo_t info = {0};
        const int sig = sigtimedwait(set, &info, &turn);
        /* what a terminal sends, it sends to all processes */
        if (sig == SIGTERM || (sig == SIGINT && info.si_code <= 0)) tell_all(w, sig);
        look(w);
        const bool late =
            w->failed >= 0 && td_now_ns() - w->failed_ns > (int64_t)PATIENCE_S * 1000000000;
        if (!late || w->ended_by_hand) continue;
        w->ended_by_hand = true;
        tell_all(w, SIGKILL);
    }
    return verdict(w, err);
}

static bool become(pid_t parent, const sigset_t *before)
{
    (void)sigprocmask(SIG_SETMASK, before, NULL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    return getppid() == parent; /* else the watcher was gone before that */
}

td_status spawn_processes(uint32_t n, launch *out, bool *watched, td_err *err)
{
    *watched = false;
    if (n > PROCESSES_MAX)
        return td_fail(err, TD_EUSAGE, "%u processes: this machine is asked for %d at most", n,
                       (int)PROCESSES_MAX);
    *out = (launch){.by = LAUNCHED_BY_FLAGS, .size = n, .local_size = n, .host = "127.0.0.1"};
    const int listener = tcp_listen_here(&out->port);
    if (listener < 0) return td_fail(err, TD_EDEVICE, "no port to meet on: %s", strerror(errno));
    const pid_t self = getpid();
    out->key = (uint64_t)td_now_ns() ^ (uint64_t)self << 40;
    watch w = {.n = n, .failed = -1};
    sigset_t set, before;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &set, &before);
    (void)fflush(NULL); /* else each process would write what waits in here */
    for (uint32_t i = 0; i < n; i++) {
        w.pids[i] = fork();
        if (w.pids[i] < 0) {
            const int why = errno;
            w.pids[i] = 0;
            tell_all(&w, SIGKILL);
            while (w.left > 0) look(&w);
            (void)close(listener);
            (void)sigprocmask(SIG_SETMASK, &before, NULL);
            return td_fail(err, TD_EDEVICE, "process %u of %u could not be started: %s", i, n,
                           strerror(why));
        }
        if (w.pids[i] == 0) {
            *watched = true;
            out->rank = out->local_rank = i;
            if (i == 0)
                out->listener = listener;
            else
                (void)close(listener);
            return become(self, &before)
                       ? TD_OK
                       : td_fail(err, TD_EINTR, "rank %u: the process that started it is gone", i);
        }
        w.left++;
    }
    (void)close(listener);
    const td_status st = watch_all(&w, &set, err);
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return st;
}
