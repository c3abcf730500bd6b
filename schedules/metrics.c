/* Numbers from a plan and its times. Live activations are counted from the passes themselves, not
 * from the memory plan, so that the two can be held against each other. */
#include "schedules/trace.h"

#include <stdlib.h>

/* The share of a microbatch's activations on one rank that one pass's slice on one stage is. */
static double share_of(const plan *p, uint32_t cls)
{
    const double tokens = (double)p->classes[cls].slice_len / (double)p->seq_len;
    return tokens / (double)p->chunks;
}

typedef struct activations {
    const plan *p;
    activation_deltas d;
    double live, peak;
} activations;

static bool keeps_activations(const plan *p, uint32_t cls)
{
    const plan_inst *const i = &p->insts[p->classes[cls].inst];
    return i->forward_row == i->backward_row;
}

/* A forward counts from its start, a backward to its end: so within a pass growth comes first. */
static void count_pass(activations *a, uint8_t kind, uint32_t cls)
{
    const double share = share_of(a->p, cls);
    const bool home = keeps_activations(a->p, cls);
    double delta = 0;
    switch ((pass_kind)kind) {
    case PASS_F: delta = home ? a->d.f : 0; break;
    case PASS_R: delta = home ? 0 : a->d.f; break;
    case PASS_I: delta = a->d.i; break;
    case PASS_W: delta = a->d.w; break;
    case PASS_B: delta = a->d.i + a->d.w; break;
    default: break;
    }
    a->live += delta * share;
    if (a->live > a->peak) a->peak = a->live;
}

static double peak_activations(const plan *p, const plan_stream *s, activation_deltas d)
{
    activations a = {.p = p, .d = d};
    for (uint32_t i = 0; i < s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[s->first_task + i];
        if (!plan_begins_pass(p, t)) continue; /* counted with its first segment */
        if (t->kind < PASS_COUNT) {
            count_pass(&a, t->kind, t->cls);
        } else if (t->kind == TASK_PAIR) {
            /* both run at once: what the pair adds is there before what it frees is gone */
            const plan_member *const m = &p->members[t->link];
            const bool second_first = m[1].kind == PASS_F;
            count_pass(&a, m[second_first].kind, m[second_first].cls);
            count_pass(&a, m[!second_first].kind, m[!second_first].cls);
        }
    }
    return a.peak;
}

/* Peaks are sums of shares: rounding errors far below any share are taken out. */
static double tidy(double x)
{
    const double scaled = x * 1e9;
    return (double)(int64_t)(scaled + 0.5) / 1e9;
}

td_status activation_deltas_parse(const char *what, const char *text, activation_deltas *out,
                                  td_err *err)
{
    *out = (activation_deltas){1, 0, -1};
    if (text == NULL) return TD_OK;
    double v[3];
    const char *s = text;
    for (int i = 0; i < 3; i++) {
        char *end = NULL;
        v[i] = strtod(s, &end);
        if (end == s || *end != (i < 2 ? ',' : '\0') || !(v[i] > -1e6 && v[i] < 1e6))
            return td_fail(err, TD_EUSAGE,
                           "%s%s: expected three numbers F,I,W as in 1,0,-1 or 2,-1,-1", what,
                           text);
        s = end + 1;
    }
    *out = (activation_deltas){v[0], v[1], v[2]};
    return TD_OK;
}

td_status plan_check_activations(const plan *p, double limit, activation_deltas d, td_err *err)
{
    if (!(limit > 0) || !(d.f > 0)) return TD_OK;
    double most = 0;
    uint32_t n_over = 0, worst = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const double peak = tidy(peak_activations(p, plan_compute(p, r), d) / d.f);
        n_over += peak > limit + 1e-6;
        if (peak <= most) continue;
        most = peak;
        worst = r;
    }
    if (n_over == 0) return TD_OK;
    return td_fail(err, TD_EPLAN,
                   "--activation-limit %g: rank %u keeps %g microbatch activations (%u of %u ranks "
                   "are over); legal: --activation-limit %g or more%s",
                   limit, worst, most, n_over, p->n_ranks, most,
                   limit < 1 ? "" : ", or --schedule zb-auto, which searches below a limit");
}

static void measure_rank(const plan *p, const task_times *t, uint32_t rank, rank_metrics *out)
{
    const plan_stream *const s = plan_compute(p, rank);
    bool any = false;
    for (uint32_t i = 0; i < s->n_tasks; i++) {
        const uint32_t task = s->first_task + i;
        if (p->tasks[task].kind > TASK_PAIR) continue;
        const int64_t begin = t->begin_ns[task], end = t->end_ns[task];
        if (!any || begin < out->first_ns) out->first_ns = begin;
        if (!any || end > out->last_ns) out->last_ns = end;
        any = true;
        /* a pass takes from the begin of its first segment to the end of its last */
        out->busy_ns += end - (plan_begins_pass(p, &p->tasks[task]) ? begin : t->end_ns[task - 1]);
    }
}

/* Whether a pass takes its input (a backward: its gradient) from a neighbouring stage of its own
 * row. Instances of a pipe stand together, by stage. */
static bool is_handed_over(const plan *p, uint8_t kind, uint32_t cls)
{
    const plan_inst *const i = &p->insts[p->classes[cls].inst];
    if (kind == PASS_F) return i->stage > 0 && i->forward_row == (i - 1)->forward_row;
    if (kind != PASS_B && kind != PASS_I) return false;
    return i->stage + 1 < p->n_stages && i->backward_row == (i + 1)->backward_row;
}

static int64_t handovers_of(const plan *p, const plan_task *t)
{
    if (!plan_begins_pass(p, t)) return 0;
    if (t->kind < PASS_COUNT) return is_handed_over(p, t->kind, t->cls);
    if (t->kind != TASK_PAIR) return 0;
    const plan_member *const m = &p->members[t->link];
    return is_handed_over(p, m[0].kind, m[0].cls) + is_handed_over(p, m[1].kind, m[1].cls);
}

td_status metrics_of(const plan *p, const task_times *t, activation_deltas d, td_arena *a,
                     plan_metrics *out, td_err *err)
{
    *out = (plan_metrics){.tasks = p->n_tasks, .ranks = TD_NEW_N(a, rank_metrics, p->n_ranks)};
    if (out->ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for metrics");
    int64_t begin = INT64_MAX, end = 0;
    for (uint32_t i = 0; i < p->n_tasks; i++) {
        if (t->begin_ns[i] < begin) begin = t->begin_ns[i];
        if (t->end_ns[i] > end) end = t->end_ns[i];
        out->local_handovers += handovers_of(p, &p->tasks[i]);
        if (p->tasks[i].kind != TASK_SEND) continue;
        out->messages++;
        out->message_bytes += p->classes[p->tasks[i].cls].bytes;
    }
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const uint32_t task = p->coll_tasks[p->colls[i].first_task];
        out->collective_bytes += p->classes[p->tasks[task].cls].bytes;
    }
    out->collectives = p->n_colls;
    out->step_ns = p->n_tasks == 0 ? 0 : end - begin;
    double busy = 0, devices = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        rank_metrics *const m = &out->ranks[r];
        measure_rank(p, t, r, m);
        const double shards = p->folded_tp ? p->ranks[r].tp : 1;
        busy += (double)m->busy_ns * shards;
        devices += shards;
        const double span = (double)(m->last_ns - m->first_ns);
        const double bubble = span > 0 ? 1.0 - (double)m->busy_ns / span : 0;
        if (bubble > out->span_bubble_frac) out->span_bubble_frac = bubble;
        m->peak_bytes = p->ranks[r].arena_bytes;
        m->peak_activations = tidy(peak_activations(p, plan_compute(p, r), d));
    }
    const double all = (double)out->step_ns * devices;
    out->bubble_frac = all > 0 ? 1.0 - busy / all : 0;
    return TD_OK;
}
