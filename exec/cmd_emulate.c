/* pexec emulate: trains a plan of many ranks on the one device there is, under the simulator's
 * clock: the numbers of a real run, and the timeline that so many devices would show. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "exec/emulate.h"
#include "exec/pexec.h"
#include "exec/team.h"
#include "sim/sim.h"

#include <string.h>

typedef struct emulator {
    const pexec_options *o;
    train_engine engine;
    executor *x;
    emulation *m;
    cluster_desc cluster;
    cost_model cost;
    int64_t *class_ns; /* of messages and collectives; passes are timed */
    sim_live live;
    sim_options sim;
    td_arena *a;
} emulator;

/* Messages as this machine was measured; passes are timed here and now. */
static td_status open_profile(emulator *e, const run_setup *s, td_err *err)
{
    profile *const fitted = TD_NEW(e->a, profile);
    if (fitted == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the profile");
    TD_TRY(profile_read(e->o->profile, fitted, err));
    TD_TRY(profile_check(fitted, &s->model, &s->sizes.run, err));
    fitted->link = (sample_link)e->o->link;
    e->cost.profile = fitted;
    return TD_OK;
}

/* The devices that are emulated, and what lies between them. */
static td_status open_cluster(emulator *e, const run_setup *s, td_err *err)
{
    const plan *const p = &s->plan;
    const int64_t need = (int64_t)p->n_rows * p->dp * p->tp;
    e->cost = (cost_model){.sizes = &s->sizes, .chunks = p->chunks};
    const char *const other = e->o->cluster != NULL ? "--cluster" : "--profile";
    if ((e->o->cluster != NULL || e->o->profile != NULL) && s->has_units)
        return td_fail(err, TD_EUSAGE,
                       "--times and %s both say what messages take; give one of them", other);
    if (e->o->cluster != NULL && e->o->profile != NULL)
        return td_fail(err, TD_EUSAGE,
                       "--cluster and --profile both say what messages take; give one of them");
    if (s->has_units) {
        e->cost.units = &s->units;
        return TD_OK;
    }
    if (e->o->profile != NULL) TD_TRY(open_profile(e, s, err));
    const char *const name = e->o->cluster == NULL ? "local" : e->o->cluster;
    if (strcmp(name, "local") == 0)
        TD_TRY(cluster_local((int32_t)need, &e->cluster, err));
    else
        TD_TRY(cluster_load(name, &e->cluster, err));
    if (need > cluster_size(&e->cluster))
        return td_fail(err, TD_EUSAGE, "--cluster %s has %d devices, the plan needs %lld", name,
                       cluster_size(&e->cluster), (long long)need);
    e->cost.cluster = &e->cluster;
    return TD_OK;
}

static td_status run_period(void *self, int64_t *step_ns, td_err *err)
{
    emulator *const e = self;
    sim_stats stats = {0};
    emulation_begin(e->m);
    const td_status st =
        sim_run(e->x->p, e->class_ns, &e->sim, e->a, &e->x->now->times, &stats, err);
    *step_ns = stats.end_ns;
    return st;
}

static td_status open_engine(void *self, const run_setup *s, executor *x, td_arena *a, td_err *err)
{
    emulator *const e = self;
    e->x = x;
    e->a = a;
    TD_TRY(open_cluster(e, s, err));
    TD_TRY(sim_price(&s->plan, &e->cost, a, &e->class_ns, err));
    TD_TRY(emulation_open(x, a, &e->m, err));
    e->live = (sim_live){.self = e->m, .compute = emulation_compute, .post = emulation_post};
    e->sim = (sim_options){.protocol = e->o->protocol >= 0 ? (sim_protocol)e->o->protocol
                                       : s->has_units      ? PROTOCOL_EAGER
                                                           : PROTOCOL_RENDEZVOUS,
                           .cost = &e->cost,
                           .live = &e->live};
    e->engine.protocol = sim_protocol_name(e->sim.protocol);
    TD_TRY(sim_share_cores(&s->plan, &e->cost, a, &e->sim, err));
    x->period = run_period;
    x->period_self = e;
    return TD_OK;
}

td_status cmd_emulate(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    emulator *const e = TD_NEW(a, emulator);
    if (e == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    e->o = options;
    e->engine = (train_engine){.producer = "pexec emulate", .open = open_engine, .self = e};
    return pexec_train(a, args, e->o, &e->engine, err);
}
