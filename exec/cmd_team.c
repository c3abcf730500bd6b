/* How the verbs of pexec become one run of many processes. */
#include "exec/launch.h"
#include "exec/pexec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

enum { WIRE_AUTO, WIRE_THREADS, WIRE_MPI, WIRE_TCP }; /* the order of --wire */

static td_status join_mpi(const launch *l, td_arena *a, transport *out, td_err *err)
{
    if (l->by == LAUNCHED_ALONE && getenv("PMIX_RANK") == NULL)
        return td_fail(
            err, TD_EUSAGE,
            "--wire mpi: no launcher is seen; start one process a rank, as in mpirun -n 4 "
            "pexec train --pp 4 ...");
    TD_TRY(transport_open_mpi(a, out, err));
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
                       "--wire tcp: no launcher is seen; set RANK, WORLD_SIZE, LOCAL_RANK, "
                       "MASTER_ADDR and MASTER_PORT, as torchrun does");
    if (l->host[0] == '\0' || l->port == 0)
        return td_fail(
            err, TD_EUSAGE,
            "--wire tcp: %s does not say where rank 0 is; set MASTER_ADDR and MASTER_PORT",
            launcher_name(l->by));
    return transport_open_tcp(l, deadline_ns, a, out, err);
}

td_status pexec_join(const pexec_options *o, td_arena *a, team **out, td_err *err)
{
    *out = NULL;
    if (o->wire == WIRE_THREADS) return TD_OK;
    launch l;
    TD_TRY(launch_read((const char *const *)environ, &l, err));
    if (o->wire == WIRE_AUTO && l.size == 1) return TD_OK;
    const bool by_mpi = l.by == LAUNCHED_BY_OPENMPI || l.by == LAUNCHED_BY_MPICH;
    const int64_t deadline_ns = o->timeout * 1000000000;
    transport t;
    td_status st = TD_OK;
    if (o->wire == WIRE_MPI || (o->wire == WIRE_AUTO && by_mpi))
        st = join_mpi(&l, a, &t, err);
    else
        st = join_tcp(&l, deadline_ns, a, &t, err);
    if (st != TD_OK && !TD_HAVE_MPI && by_mpi && l.rank > 0)
        err->msg[0] = '\0'; /* rank 0 says it */
    TD_TRY(st);
    st = team_open(&t, deadline_ns, a, out, err);
    if (st != TD_OK) t.methods->close(&t, true);
    return st;
}

void pexec_report(const executor *x, td_status st)
{
    if (x == NULL || x->start_ns == 0 || (st != TD_EDEVICE && st != TD_EPLAN)) return;
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

td_status pexec_same(team *t, const run_setup *s, const cli_args *args, td_err *err)
{
    if (t == NULL) return TD_OK;
    uint64_t options = add_bytes(0xcbf29ce484222325u, TD_VERSION, sizeof TD_VERSION);
    for (int i = 1; i < args->argc; i++)
        options = add_bytes(options, args->argv[i], strlen(args->argv[i]) + 1);
    TD_TRY(team_same(t, options, "version and command line", err));
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
