/* psim compare: how far off a prediction was, and where. */
#include "base/text.h"
#include "sim/compare.h"
#include "sim/psim.h"
#include "sim/psim_viz.h"

#include <stdio.h>
#include <string.h>

static const char *kind_name(int kind)
{
    static const char *const others[] = {"overlapped pair", "send",          "receive",
                                         "collective",      "gradient norm", "optimizer",
                                         "norm so far",     "verification",  "mark"};
    _Static_assert(sizeof others / sizeof *others == TASK_KIND_COUNT - PASS_COUNT, "a name each");
    return kind < PASS_COUNT ? pass_name((pass_kind)kind) : others[kind - PASS_COUNT];
}

static double frac(int64_t predicted, int64_t measured)
{
    return measured == 0 ? 0 : (double)(predicted - measured) / (double)measured;
}

static void task_name(const trace *t, const trace_record *r, td_text *out)
{
    td_text_addf(out, "rank %u ", t->streams[r->stream].rank);
    if (r->kind < PASS_COUNT)
        td_text_addf(out, "%c", pass_letter((pass_kind)r->kind));
    else
        td_text_add(out, kind_name(r->kind));
    if (r->microbatch >= 0) td_text_addf(out, " %d", r->microbatch);
    if (t->n_slices > 1) td_text_addf(out, ".%u", (unsigned)r->slice);
    if (r->stage >= 0) td_text_addf(out, " of stage %d", r->stage);
}

/* --- JSON --- */

static void json_sum(const compare_sum *s, td_text *t)
{
    td_text_addf(t,
                 "\"tasks\":%lld,\"predicted_ns\":%lld,\"measured_ns\":%lld,\"error_frac\":%.15g,"
                 "\"mean_abs_error_ns\":%.15g",
                 (long long)s->n, (long long)s->predicted_ns, (long long)s->measured_ns,
                 frac(s->predicted_ns, s->measured_ns),
                 s->n == 0 ? 0.0 : (double)s->absolute_ns / (double)s->n);
}

static void json_bytes(const char *key, int64_t bytes, td_text *t)
{
    if (bytes < 0)
        td_text_addf(t, ",\"%s\":null", key);
    else
        td_text_addf(t, ",\"%s\":%lld", key, (long long)bytes);
}

/* A rank that runs its passes in another order: durations do not tell of that. */
static bool parts_ways(const compare_rank *r)
{
    return r->predicted_turn != UINT64_MAX || r->measured_turn != UINT64_MAX;
}

static void turn_name(const trace *t, uint64_t record, td_text *out)
{
    if (record == UINT64_MAX)
        td_text_add(out, "nothing more");
    else
        task_name(t, &t->records[record], out);
}

static void json_turn(const trace *t, const char *key, uint64_t record, td_text *out)
{
    td_text name = {0};
    turn_name(t, record, &name);
    td_text_addf(out, ",\"%s\":", key);
    td_text_json(out, name.s == NULL ? "" : name.s);
    td_text_free(&name);
}

static void report_json(const trace *p, const trace *m, const compare_report *c, td_text *t)
{
    td_text_addf(t,
                 "{\"schema\":1,\"predicted_step_ns\":%lld,\"measured_step_ns\":%lld,"
                 "\"step_error_frac\":%.15g,\"matched\":%llu,\"only_predicted\":%llu,"
                 "\"only_measured\":%llu,\"kinds\":[",
                 (long long)c->predicted_step_ns, (long long)c->measured_step_ns,
                 c->step_error_frac, (unsigned long long)c->n_matched,
                 (unsigned long long)c->n_only_predicted, (unsigned long long)c->n_only_measured);
    const char *comma = "";
    for (int k = 0; k < TASK_KIND_COUNT; k++) {
        if (c->kinds[k].n == 0) continue;
        td_text_addf(t, "%s{\"kind\":\"%s\",", comma, kind_name(k));
        json_sum(&c->kinds[k], t);
        td_text_add(t, "}");
        comma = ",";
    }
    td_text_add(t, "],\"per_rank\":[");
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        const compare_rank *const r = &c->ranks[i];
        td_text_addf(t, "%s{\"rank\":%u,", i > 0 ? "," : "", i);
        json_sum(&r->sum, t);
        td_text_addf(t, ",\"predicted_last_ns\":%lld,\"measured_last_ns\":%lld",
                     (long long)r->predicted_last_ns, (long long)r->measured_last_ns);
        json_bytes("predicted_peak_bytes", r->predicted_peak_bytes, t);
        json_bytes("measured_peak_bytes", r->measured_peak_bytes, t);
        if (r->predicted_peak_bytes >= 0 && r->measured_peak_bytes > 0)
            td_text_addf(t, ",\"memory_error_frac\":%.15g",
                         frac(r->predicted_peak_bytes, r->measured_peak_bytes));
        if (parts_ways(r)) {
            json_turn(p, "predicted_turn", r->predicted_turn, t);
            json_turn(m, "measured_turn", r->measured_turn, t);
        }
        td_text_add(t, "}");
    }
    td_text_add(t, "],\"worst\":[");
    for (uint32_t i = 0; i < c->n_worst; i++) {
        td_text name = {0};
        task_name(p, &p->records[c->worst[i].predicted], &name);
        td_text_add(t, i > 0 ? ",{\"task\":" : "{\"task\":");
        td_text_json(t, name.s == NULL ? "" : name.s);
        td_text_addf(t, ",\"error_ns\":%lld}", (long long)c->worst[i].error_ns);
        td_text_free(&name);
    }
    td_text_add(t, "]}");
}

/* --- for people --- */

static void text_sum(const char *name, const compare_sum *s, td_text *t)
{
    char p[32], m[32], e[32];
    td_text_addf(t, "  %-18s %7lld  %10s  %10s  %+7.1f %%  %10s\n", name, (long long)s->n,
                 td_print_ns(p, sizeof p, s->n == 0 ? 0 : s->predicted_ns / s->n),
                 td_print_ns(m, sizeof m, s->n == 0 ? 0 : s->measured_ns / s->n),
                 100 * frac(s->predicted_ns, s->measured_ns),
                 td_print_ns(e, sizeof e, s->n == 0 ? 0 : s->absolute_ns / s->n));
}

static void text_memory(const compare_report *c, td_text *t)
{
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        const compare_rank *const r = &c->ranks[i];
        char p[32], m[32];
        if (r->predicted_peak_bytes < 0 || r->measured_peak_bytes < 0) continue;
        td_text_addf(t, "  rank %u peak memory: predicted %s, measured %s%s\n", i,
                     td_print_bytes(p, sizeof p, r->predicted_peak_bytes),
                     td_print_bytes(m, sizeof m, r->measured_peak_bytes),
                     r->predicted_peak_bytes == r->measured_peak_bytes ? " (equal)" : "");
    }
}

static void text_turns(const trace *p, const trace *m, const compare_report *c, td_text *t)
{
    const char *const a = trace_meta_get(p, "schedule"), *const b = trace_meta_get(m, "schedule");
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_ranks; i++) {
        const compare_rank *const r = &c->ranks[i];
        if (!parts_ways(r) || n++ > 0) continue;
        td_text_addf(t, "  the order of passes differs from rank %u on: ", i);
        turn_name(p, r->predicted_turn, t);
        td_text_add(t, " predicted, ");
        turn_name(m, r->measured_turn, t);
        td_text_add(t, " measured\n");
    }
    if (n > 0)
        td_text_addf(t, "  so the step's error is not that of durations alone: %u of %u ranks", n,
                     c->n_ranks);
    if (n > 0 && a != NULL && b != NULL && strcmp(a, b) != 0)
        td_text_addf(t, "; the schedules are %s and %s", a, b);
    if (n > 0) td_text_add(t, "\n");
}

static void report_text(const trace *p, const trace *m, const compare_report *c, td_text *t)
{
    char a[32], b[32];
    td_text_addf(t, "step: predicted %s, measured %s: %+.1f %%\n\n",
                 td_print_ns(a, sizeof a, c->predicted_step_ns),
                 td_print_ns(b, sizeof b, c->measured_step_ns), 100 * c->step_error_frac);
    td_text_addf(t, "  %-18s %7s  %10s  %10s  %9s  %10s\n", "mean of a task", "tasks", "predicted",
                 "measured", "error", "|error|");
    for (int k = 0; k < TASK_KIND_COUNT; k++)
        if (c->kinds[k].n > 0) text_sum(kind_name(k), &c->kinds[k], t);
    td_text_add(t, "\n");
    for (uint32_t i = 0; i < c->n_ranks && i < 64; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "rank %u compute", i);
        if (c->ranks[i].sum.n > 0) text_sum(name, &c->ranks[i].sum, t);
    }
    td_text_add(t, "\n");
    text_memory(c, t);
    uint32_t n_wrong = 0;
    while (n_wrong < c->n_worst && c->worst[n_wrong].error_ns != 0) n_wrong++;
    if (n_wrong > 0) td_text_add(t, "  the largest errors (measured - predicted):\n");
    for (uint32_t i = 0; i < n_wrong; i++) {
        td_text_addf(
            t, "    %c%-10s ", c->worst[i].error_ns < 0 ? '-' : '+',
            td_print_ns(a, sizeof a,
                        c->worst[i].error_ns < 0 ? -c->worst[i].error_ns : c->worst[i].error_ns));
        task_name(p, &p->records[c->worst[i].predicted], t);
        td_text_add(t, "\n");
    }
    if (c->n_only_predicted + c->n_only_measured > 0)
        td_text_addf(t, "  not in both: %llu tasks only predicted, %llu only measured\n",
                     (unsigned long long)c->n_only_predicted,
                     (unsigned long long)c->n_only_measured);
    text_turns(p, m, c, t);
}

/* Each of the traces before the last against the last. */
static td_status compare_all(const psim_options *o, char *const *names, const trace *traces,
                             size_t n, td_arena *a, td_text *out, td_err *err)
{
    if (o->json && n > 2) td_text_add(out, "{\"schema\":1,\"comparisons\":[");
    for (size_t i = 0; i + 1 < n; i++) {
        compare_report report;
        TD_TRY(compare_traces(&traces[i], &traces[n - 1], (uint32_t)o->worst, a, &report, err));
        if (o->json) {
            if (i > 0) td_text_add(out, ",");
            report_json(&traces[i], &traces[n - 1], &report, out);
            continue;
        }
        if (n > 2)
            td_text_addf(out, "%s%s against %s\n", i > 0 ? "\n" : "", names[i], names[n - 1]);
        report_text(&traces[i], &traces[n - 1], &report, out);
    }
    if (o->json) td_text_add(out, n > 2 ? "]}\n" : "\n");
    return TD_OK;
}

td_status cmd_compare(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    const size_t n = (size_t)args->n_operands;
    trace *const traces = TD_NEW_N(a, trace, n);
    TD_TRY(cli_check_outputs(args, err));
    if (traces == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %zu traces", n);
    for (size_t i = 0; i < n; i++) TD_TRY(trace_read(args->operands[i], a, &traces[i], err));
    td_text out = {0};
    td_status st = compare_all(o, args->operands, traces, n, a, &out, err);
    if (st == TD_OK && o->output != NULL) st = psim_draw(o, traces, n, o->output, err);
    if (st == TD_OK) return psim_print(&out, err);
    td_text_free(&out);
    return st;
}
