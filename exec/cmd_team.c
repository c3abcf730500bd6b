/* How the verbs of pexec become one run of many processes. */
#include "exec/launch.h"
#include "exec/pexec.h"
#include "exec/spawn.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { WIRE_AUTO, WIRE_THREADS, WIRE_MPI, WIRE_TCP, WIRE_NCCL }; /* the order of --wire */

/* --- MPI --- */

/* MPI's start waits for all processes, for ever when one is gone: then OpenMPI's launcher hangs as
 * well. Whoever has waited too long says so and ends, and so do the others in their turn. */
typedef struct start_watch {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over;
    uint32_t rank;
    int64_t deadline_ns;
} start_watch;

static void *watch_start(void *arg)
{
    start_watch *const w = arg;
    const int64_t until = td_now_ns() + w->deadline_ns;
    const struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
                                .tv_nsec = (long)(until % 1000000000)};
    (void)pthread_mutex_lock(&w->lock);
    bool late = false;
    while (!w->over && !late)
        late = pthread_cond_timedwait(&w->changed, &w->lock, &ts) != 0 && td_now_ns() >= until;
    if (!w->over) {
        (void)fprintf(stderr,
                      "pexec: rank %u has waited %.3g s for MPI to start: another process is not "
                      "there or is gone; --timeout sets how long\n",
                      w->rank, (double)w->deadline_ns / 1e9);
        _exit(td_exit_code(TD_EDEVICE));
    }
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

static td_status open_mpi(const launch *l, int64_t deadline_ns, td_arena *a, transport *out,
                          td_err *err)
{
    start_watch w = {.rank = l->rank, .deadline_ns = deadline_ns};
    pthread_condattr_t attr;
    pthread_t thread;
    if (pthread_condattr_init(&attr) != 0 ||
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
        pthread_cond_init(&w.changed, &attr) != 0 || pthread_mutex_init(&w.lock, NULL) != 0 ||
        pthread_create(&thread, NULL, watch_start, &w) != 0)
        return td_fail(err, TD_EDEVICE, "a thread could not be started");
    const td_status st = transport_open_mpi(a, out, err);
    (void)pthread_mutex_lock(&w.lock);
    w.over = true;
    (void)pthread_cond_signal(&w.changed);
    (void)pthread_mutex_unlock(&w.lock);
    (void)pthread_join(thread, NULL);
    (void)pthread_cond_destroy(&w.changed);
    (void)pthread_mutex_destroy(&w.lock);
    (void)pthread_condattr_destroy(&attr);
    return st;
}

static td_status join_mpi(const launch *l, int64_t deadline_ns, td_arena *a, transport *out,
                          td_err *err)
{
    if (l->by == LAUNCHED_ALONE && getenv("PMIX_RANK") == NULL)
        return td_fail(
            err, TD_EUSAGE,
            "--wire mpi: no launcher is seen; start one process a rank, as in mpirun -n 4 "
            "pexec train --pp 4 ...");
    TD_TRY(open_mpi(l, deadline_ns, a, out, err));
    if (l->by != LAUNCHED_BY_OPENMPI && l->by != LAUNCHED_BY_MPICH) return TD_OK;
    if (out->size == l->size && out->index == l->rank) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--wire mpi: MPI says rank %u of %u, but %s says %u of %u; this pexec was built "
                   "with another MPI than the launcher's",
                   out->index, out->size, launcher_name(l->by), l->rank, l->size);
}

static td_status join_tcp(const launch *l, int64_t deadline_ns, td_arena *a, transport *out,
                          td_err *err)
{
    if (l->by == LAUNCHED_ALONE)
        return td_fail(err, TD_EUSAGE,
                       "--wire tcp: no launcher is seen; --processes N starts processes here, or "
                       "set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun "
                       "does");
    if (l->host[0] == '\0' || l->port == 0)
        return td_fail(
            err, TD_EUSAGE,
            "--wire tcp: %s does not say where rank 0 is; set MASTER_ADDR and MASTER_PORT",
            launcher_name(l->by));
    return transport_open_tcp(l, deadline_ns, a, out, err);
}

/* --- all --- */

/* What the flags say stands before what the environment says. */
static td_status find_launch(const pexec_options *o, td_arena *a, launch *l, td_err *err)
{
    size_t n = 0, at = 0;
    while (environ[n] != NULL) n++;
    const char **const all = TD_NEW_N(a, const char *, n + 5);
    if (all == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the launcher's variables");
    const char *const flags[][2] = {{"--rank", o->rank},
                                    {"--world", o->world},
                                    {"--local-rank", o->local_rank},
                                    {"--rendezvous", o->rendezvous}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (flags[i][1] != NULL &&
            (all[at] = td_sprintf(a, "%s=%s", flags[i][0], flags[i][1])) != NULL)
            at++;
    memcpy(all + at, environ, n * sizeof *all);
    TD_TRY(launch_read(all, l, err));
    if (at == 0 || l->by == LAUNCHED_BY_FLAGS) return TD_OK;
    return td_fail(err, TD_EUSAGE, "--rendezvous: --rank, --world and --local-rank go with it");
}

static int64_t wanted_processes(const pexec_options *o)
{
    return o->gpus > o->processes ? o->gpus : o->processes;
}

static td_status start_processes(const pexec_options *o, launch *who, td_err *err)
{
    bool watched = false;
    const int64_t n = wanted_processes(o);
    const char *const flag = o->gpus > 0 ? "--gpus" : "--processes";
    if (who->by != LAUNCHED_ALONE)
        return td_fail(err, TD_EUSAGE,
                       "%s %lld: this process was started by %s already; leave one of them out",
                       flag, (long long)n, launcher_name(who->by));
    if (o->wire == WIRE_THREADS || o->wire == WIRE_MPI)
        return td_fail(err, TD_EUSAGE, "%s %lld: they meet over TCP; leave --wire out", flag,
                       (long long)n);
    TD_TRY(spawn_processes((uint32_t)n, who, &watched, err));
    if (!watched) who->size = 0;
    return TD_OK;
}

static td_status refuse_wire(const pexec_options *o, td_err *err)
{
    if (o->gpus > 0 && o->processes > 0 && o->gpus != o->processes)
        return td_fail(err, TD_EUSAGE, "--gpus %lld and --processes %lld: one of them is enough",
                       (long long)o->gpus, (long long)o->processes);
    if (o->wire == WIRE_NCCL && !pexec_on_cuda(o))
        return td_fail(
            err, TD_EUSAGE,
            "--wire nccl: NCCL moves tensors between GPUs; use --backend cuda, or --wire "
            "tcp");
    if ((o->wire == WIRE_MPI || o->wire == WIRE_TCP) && pexec_on_cuda(o))
        return td_fail(err, TD_EUSAGE,
                       "--wire %s: between GPUs tensors go by NCCL; leave --wire out",
                       o->wire == WIRE_MPI ? "mpi" : "tcp");
    return TD_OK;
}

td_status pexec_join(const pexec_options *o, td_arena *a, launch *who, team **out, td_err *err)
{
    *out = NULL;
    *who = (launch){.size = 1, .local_size = 1};
    TD_TRY(refuse_wire(o, err));
    const bool threads = o->wire == WIRE_THREADS || o->wire == WIRE_AUTO;
    if (o->wire == WIRE_THREADS && wanted_processes(o) <= 1) return TD_OK;
    TD_TRY(find_launch(o, a, who, err));
    if (wanted_processes(o) > 1) TD_TRY(start_processes(o, who, err));
    if (who->size == 0 || (who->size == 1 && (threads || o->wire == WIRE_NCCL))) return TD_OK;
    const bool by_mpi = who->by == LAUNCHED_BY_OPENMPI || who->by == LAUNCHED_BY_MPICH;
    const int64_t deadline_ns = o->timeout * 1000000000;
    transport t;
    td_status st = TD_OK;
    if (o->wire == WIRE_MPI || (o->wire != WIRE_TCP && by_mpi))
        st = join_mpi(who, deadline_ns, a, &t, err);
    else
        st = join_tcp(who, deadline_ns, a, &t, err);
    if (st != TD_OK && !TD_HAVE_MPI && by_mpi && who->rank > 0)
        err->msg[0] = '\0'; /* rank 0 says it */
    TD_TRY(st);
    st = team_open(&t, deadline_ns, a, out, err);
    if (st != TD_OK) t.methods->close(&t, true);
    return st;
}

void pexec_report(const executor *x, td_status st)
{
    if (x == NULL || x->now == NULL || (st != TD_EDEVICE && st != TD_EPLAN)) return;
    td_text t = {0};
    exec_report(x, &t);
    (void)fputs(t.s == NULL ? "" : t.s, stderr);
    td_text_free(&t);
}

td_status pexec_leave(team *t, td_status st, td_err *err)
{
    if (t == NULL) return st;
    if (st != TD_OK && !t->agreed) team_give_up(t, err);
    /* before the first process ends, because the launcher then ends the others */
    if (st != TD_OK && team_index(t) == 0 && err->msg[0] != '\0') {
        (void)fprintf(stderr, "pexec: %s\n", err->msg);
        err->msg[0] = '\0';
    }
    team_close(t);
    /* one voice is enough where all know the reason */
    if (team_was_heard(t, 0)) err->msg[0] = '\0';
    return st;
}

static uint64_t add_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *const s = data;
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001b3u; /* FNV-1a */
    return h;
}

static uint64_t hash_model(const model_desc *m)
{
    const int64_t numbers[] = {(int64_t)m->family, m->n_layers, m->hidden,   m->n_heads,
                               m->n_kv_heads,      m->head_dim, m->ffn,      m->vocab,
                               m->max_positions,   m->tied,     m->qkv_bias, m->out_bias,
                               m->mlp_bias,        m->gated,    m->rms_norm, m->learned_positions,
                               m->causal};
    const double reals[] = {m->rope_theta, m->norm_eps};
    return add_bytes(add_bytes(0xcbf29ce484222325u, numbers, sizeof numbers), reals, sizeof reals);
}

/* Of the words of the command line, those that all processes have alike. */
static uint64_t hash_words(const cli_args *args)
{
    static const char *const own[] = {"--rank", "--local-rank"};
    uint64_t h = add_bytes(0xcbf29ce484222325u, TD_VERSION, sizeof TD_VERSION);
    for (int i = 1; i < args->argc; i++) {
        const char *const word = args->argv[i];
        bool skip = false;
        for (size_t k = 0; k < sizeof own / sizeof *own && !skip; k++) {
            const size_t n = strlen(own[k]);
            skip = strncmp(word, own[k], n) == 0 && (word[n] == '=' || word[n] == '\0');
            i += skip && word[n] == '\0'; /* the value is the next word */
        }
        if (!skip) h = add_bytes(h, word, strlen(word) + 1);
    }
    return h;
}

td_status pexec_same(team *t, const run_setup *s, const cli_args *args, td_err *err)
{
    if (t == NULL) return TD_OK;
    TD_TRY(team_same(t, hash_words(args), "version and command line", err));
    TD_TRY(team_same(t, hash_model(&s->model), "model", err));
    TD_TRY(team_same(t, plan_hash(&s->plan), "plan", err));
    td_status st = TD_OK;
    if (s->plan.n_ranks != team_size(t))
        st = td_fail(err, TD_EUSAGE,
                     "%u processes were started, but the plan has %u ranks; start one process a "
                     "rank",
                     team_size(t), s->plan.n_ranks);
    return team_agree(t, st, err);
}
