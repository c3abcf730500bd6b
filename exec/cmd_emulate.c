/* pexec emulate: trains a plan of many ranks on the one device there is, under the simulator's
 * clock: the numbers of a real run, and the timeline that so many devices would show. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "exec/emulate.h"
#include "exec/pexec.h"
#include "exec/team.h"
#include "sim/sim.h"

#include <stdio.h>
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
    TD_TRY(offload_sweep(e->engine.offload, err));
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

/* Ranks that share too little memory for all of them. */
static td_status open_offload(emulator *e, td_arena *a, td_err *err)
{
    offload_place place;
    if (e->o->offload <= 0) return TD_OK;
    if (pexec_on_cuda(e->o)) {
        TD_TRY(offload_device(&e->engine.device, a, &place, err));
        return offload_open(&place, e->o->offload, a, &e->engine.offload, err);
    }
    TD_TRY(offload_file(e->o->offload_dir, a, &place, err));
    return offload_open(&place, e->o->offload, a, &e->engine.offload, err);
}

static void tell_offload(const emulator *e)
{
    char all[32], most[32], moved[32];
    if (e->engine.offload == NULL || e->o->quiet) return;
    const offload_stats s = offload_stats_of(e->engine.offload);
    (void)fprintf(stderr,
                  "of %s of all ranks at most %s were in memory; %lld times one was brought "
                  "back, %s in all\n",
                  td_print_bytes(all, sizeof all, s.all_bytes),
                  td_print_bytes(most, sizeof most, s.most_bytes), (long long)s.brought,
                  td_print_bytes(moved, sizeof moved, s.brought_bytes));
}

td_status cmd_emulate(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    emulator *const e = TD_NEW(a, emulator);
    if (e == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    e->o = options;
    e->engine = (train_engine){.producer = "pexec emulate", .open = open_engine, .self = e};
    if (cli_given(args, "offload-dir") && !cli_given(args, "offload"))
        return td_fail(err, TD_EUSAGE, "--offload-dir: --offload says how much stays in memory");
    if (cli_given(args, "offload-dir") && pexec_on_cuda(e->o))
        return td_fail(err, TD_EUSAGE,
                       "--offload-dir: ranks that are not on the device lie in the host's memory; "
                       "leave it out");
    TD_TRY(open_offload(e, a, err));
    const td_status st = pexec_train(a, args, e->o, &e->engine, err);
    if (st == TD_OK) tell_offload(e);
    offload_close(e->engine.offload);
    return st;
}
