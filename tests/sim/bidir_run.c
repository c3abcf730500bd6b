#include "bidir_run.h"

#include "t.h"

enum { OPTIONS_MAX = 8 };

const char *bidir_text(td_arena *a, const bidir_query *q)
{
    return td_sprintf(a, "%s P=%d M=%d V=%d %s", q->family, q->pp, q->m, q->v,
                      q->options == NULL ? "" : q->options);
}

td_status bidir_generate(td_arena *a, const bidir_query *q, schedule *out, td_err *err)
{
    sched_option_value values[OPTIONS_MAX];
    sched_request r = {.pp = q->pp, .microbatches = q->m, .chunks = q->v, .options = values};
    char *text = td_strdup(a, q->options == NULL ? "" : q->options);
    for (char *at = strtok(text, " "); at != NULL; at = strtok(NULL, " ")) {
        char *const eq = strchr(at, '=');
        assert_non_null(eq);
        assert_true(r.n_options < OPTIONS_MAX);
        *eq = '\0';
        values[r.n_options++] = (sched_option_value){at, eq + 1};
    }
    return sched_generate(q->family, &r, a, out, err);
}

bidir_result bidir_run(td_arena *a, const bidir_query *q)
{
    bidir_result r = {0};
    td_err err = {0};
    T_OK(bidir_generate(a, q, &r.s, &err), &err);
    const int32_t v = r.s.n_stages / r.s.n_rows;
    const double i = q->i > 0 ? q->i : q->b / 2, w = q->w > 0 ? q->w : q->b - i;
    td_text times = {0};
    td_text_addf(&times, "F=%.17g,B=%.17g,I=%.17g,W=%.17g,comm=%.17g,coll=%.17g", q->f * v,
                 q->b * v, i * v, w * v, q->comm, q->coll);
    if (q->pair > 0) td_text_addf(&times, ",FB=%.17g", q->pair * v);
    unit_times units;
    T_OK(unit_times_parse(times.s, a, &units, &err), &err);
    td_text_free(&times);
    const sizes z = {.n_stages = r.s.n_stages, .chunks = v};
    const lower_options lower = {.sizes = &z,
                                 .dp = 1,
                                 .tp = 1,
                                 /* a receive posted late holds its sender */
                                 .lookahead = q->rendezvous ? 2 : 1,
                                 .mapping = q->mapping,
                                 .no_step = true,
                                 .keep_sync = q->synced};
    const cost_model cost = {.units = &units, .sizes = &z, .chunks = v};
    const sim_options o = {.protocol = q->rendezvous ? PROTOCOL_RENDEZVOUS : PROTOCOL_EAGER,
                           .cost = &cost};
    int64_t *class_ns = NULL;
    T_OK(plan_lower(&r.s, &lower, a, &r.p, &err), &err);
    T_OK(sim_price(&r.p, &cost, a, &class_ns, &err), &err);
    T_OK(sim_run(&r.p, class_ns, &o, a, &r.t, NULL, &err), &err);
    T_OK(metrics_of(&r.p, &r.t, (activation_deltas){1, 0, -1}, a, &r.m, &err), &err);
    return r;
}
