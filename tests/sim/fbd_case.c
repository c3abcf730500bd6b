/* Bodies of fbd_case.h. */
#include "fbd_case.h"

void fbd_schedule(const fbd_case *k, td_arena *a, schedule *s)
{
    const sched_option_value options[] = {{"topology", k->lagged ? "lagged" : "direct"},
                                          {"merge-forward", k->merged ? "1" : "0"},
                                          {"weights", k->all_step ? "all-step" : "refresh"},
                                          {"credits", td_sprintf(a, "%d", k->credits)}};
    const sched_request r = {
        .pp = k->p, .microbatches = k->m, .options = options, .n_options = k->credits < 0 ? 3 : 4};
    td_err err = {0};
    T_OK(sched_generate("fbd", &r, a, s, &err), &err);
}

void fbd_lower(const fbd_case *k, td_arena *a, fbd_run *out)
{
    td_err err = {0};
    const int32_t tp = k->tp < 1 ? 1 : k->tp, dp = k->dp < 1 ? 1 : k->dp;
    fbd_schedule(k, a, &out->s);
    out->z = (sizes){.n_stages = k->p, .chunks = 1, .model = k->model, .run = {.tp = tp, .dp = dp}};
    if (k->model != NULL) {
        stage_desc *const stages = TD_NEW_N(a, stage_desc, k->p);
        const layer_request lr = {.n_stages = k->p, .pp = k->p};
        T_OK(layers_assign(k->model, &lr, stages, &err), &err);
        out->z.stages = stages;
        out->z.run.micro_batch = 2;
        out->z.run.seq_len = 32;
    }
    const lower_options o = {.sizes = &out->z,
                             .dp = dp,
                             .tp = tp,
                             .fold = k->fold,
                             .lookahead = k->lookahead,
                             .send_window = k->window,
                             .no_step = k->model == NULL};
    T_OK(plan_lower(&out->s, &o, a, &out->p, &err), &err);
}

void fbd_simulate(const fbd_case *k, td_arena *a, fbd_run *out)
{
    td_err err = {0};
    unit_times units;
    int64_t *ns = NULL;
    const char *const times = td_sprintf(a, "F=%.17g,B=%.17g,comm=%.17g", k->f, k->b, k->comm);
    fbd_lower(k, a, out);
    T_OK(unit_times_parse(times, a, &units, &err), &err);
    const cost_model cost = {.units = &units, .sizes = &out->z, .chunks = 1};
    const sim_options so = {.protocol = k->protocol, .cost = &cost};
    T_OK(sim_price(&out->p, &cost, a, &ns, &err), &err);
    out->t = (task_times){0};
    T_OK(sim_run(&out->p, ns, &so, a, &out->t, NULL, &err), &err);
    T_OK(metrics_of(&out->p, &out->t, (activation_deltas){1, 0, -1}, a, &out->m, &err), &err);
}

fbd_case fbd_unit(int32_t p, int32_t m, bool lagged)
{
    return (fbd_case){
        .p = p, .m = m, .credits = -1, .lagged = lagged, .lookahead = 1, .f = 1, .b = 2};
}
