#include "zb_run.h"

#include "t.h"

#include <stdlib.h>

enum { OPTIONS_MAX = 8 };

const char *zb_text(td_arena *a, const zb_query *q)
{
    return td_sprintf(a, "%s P=%d M=%d %d/%d/%d/%d %s", q->family, q->pp, q->m, q->f, q->i, q->w,
                      q->comm, q->options == NULL ? "" : q->options);
}

/* Takes the options that are fields of a request. */
static bool take_field(sched_request *r, const char *key, const char *value)
{
    if (strcmp(key, "limit") == 0)
        r->activation_limit = atof(value);
    else if (strcmp(key, "seed") == 0)
        r->seed = (uint64_t)atoll(value);
    else if (strcmp(key, "chunks") == 0)
        r->chunks = atoi(value);
    else
        return false;
    return true;
}

static int32_t chunks_of(const zb_query *q)
{
    const char *const chunks = q->options == NULL ? NULL : strstr(q->options, "chunks=");
    if (chunks != NULL) return atoi(chunks + 7);
    const bool v = strstr(q->family, "-v") != NULL || q->family[0] == 'v' ||
                   strncmp(q->family, "interleaved", 11) == 0 ||
                   (q->options != NULL && strstr(q->options, "placement=v") != NULL);
    return v ? 2 : 1;
}

td_status zb_generate(td_arena *a, const zb_query *q, schedule *out, td_err *err)
{
    sched_option_value values[OPTIONS_MAX];
    const int64_t ms = 1000000 * (int64_t)chunks_of(q);
    sched_request r = {.pp = q->pp, .microbatches = q->m, .options = values};
    r.times.pass_ns[PASS_F] = q->f * ms;
    r.times.pass_ns[PASS_I] = q->i * ms;
    r.times.pass_ns[PASS_W] = q->w * ms;
    r.times.pass_ns[PASS_B] = (q->i + q->w) * ms;
    r.times.comm_ns = q->comm * 1000000LL;
    char *const text = td_strdup(a, q->options == NULL ? "" : q->options);
    char *save = NULL;
    for (char *at = strtok_r(text, " ", &save); at != NULL; at = strtok_r(NULL, " ", &save)) {
        char *const eq = strchr(at, '=');
        assert_non_null(eq);
        *eq = '\0';
        if (take_field(&r, at, eq + 1)) continue;
        assert_true(r.n_options < OPTIONS_MAX);
        values[r.n_options++] = (sched_option_value){at, eq + 1};
    }
    return sched_generate(q->family, &r, a, out, err);
}

zb_result zb_run(td_arena *a, const zb_query *q)
{
    zb_result r = {0};
    td_err err = {0};
    T_OK(zb_generate(a, q, &r.s, &err), &err);
    const int32_t v = r.s.n_stages / r.s.n_rows;
    const char *const times =
        td_sprintf(a, "F=%d,I=%d,W=%d,comm=%d", q->f * v, q->i * v, q->w * v, q->comm);
    const sizes z = {.n_stages = r.s.n_stages, .chunks = v};
    const lower_options lower = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    unit_times units;
    const cost_model cost = {.units = &units, .sizes = &z, .chunks = v};
    const sim_options o = {.protocol = PROTOCOL_EAGER, .cost = &cost};
    const bool plain = q->deltas.f > 0;
    plan p;
    task_times t = {0};
    int64_t *class_ns = NULL;
    T_OK(unit_times_parse(times, a, &units, &err), &err);
    T_OK(plan_lower(&r.s, &lower, a, &p, &err), &err);
    T_OK(sim_price(&p, &cost, a, &class_ns, &err), &err);
    T_OK(sim_run(&p, class_ns, &o, a, &t, NULL, &err), &err);
    T_OK(metrics_of(&p, &t, plain ? q->deltas : (activation_deltas){1, 0, -1}, a, &r.m, &err),
         &err);
    r.step = (double)r.m.step_ns / 1e6;
    for (int32_t i = 0; i < q->pp; i++) {
        const rank_metrics *const x = &r.m.ranks[i];
        const double span = (double)(x->last_ns - x->first_ns) / 1e6;
        if (span > r.span) r.span = span;
        if (x->peak_activations * v > r.peak) r.peak = x->peak_activations * v;
    }
    return r;
}
