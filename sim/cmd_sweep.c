/* psim sweep: many what-ifs, a row each. Settings are the outer loops, schedules the inner one, so
 * that rows to be compared stand together. */
#include "base/text.h"
#include "sim/psim.h"
#include "sim/psim_viz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 10000, FIGURE_MAX = 26 };

/* One combination and what came of it. */
typedef struct sweep_row {
    const char *schedule; /* as it was typed, with its own settings */
    const char **values;  /* [n_axes], of the sweep's axes */
    td_status status;
    const char *why; /* of a failure */
    uint32_t ranks;
    int64_t devices;
    bool has_roles;             /* some ranks only run forwards */
    int64_t forward_peak_bytes; /* of those; peak_bytes is over all */
    int32_t microbatches, slices;
    int32_t parts; /* of the model, one a position: what unit times are of */
    int64_t step_ns, peak_bytes, messages, message_bytes;
    double bubble_frac, span_bubble_frac, peak_activations, tokens_per_s;
} sweep_row;

typedef struct sweep {
    td_arena *a;
    const cli_args *args;
    const psim_options *o;
    cli_axis *axes; /* without the schedules */
    size_t n_axes;
    cli_axis schedules;
    sweep_row *rows;
    size_t n_rows;
    trace *traces; /* of a figure */
    size_t n_traces;
    bool any_model, any_roles;
} sweep;

/* --- rows --- */

static bool family_has(const char *family, const char *key)
{
    const sched_family *f = NULL;
    if (sched_find(family, &f, NULL) != TD_OK) return false;
    for (const sched_option *o = f->options; o != NULL && o->key != NULL; o++)
        if (strcmp(o->key, key) == 0) return true;
    return false;
}

/* Whether the schedule has no use for slices: it runs uncut beside those that are cut, and the
 * sweep's slices are not its own. */
static bool stays_whole(td_arena *a, const char *typed)
{
    const sched_family *f = NULL;
    const char *const name = td_sprintf(a, "%.*s", (int)strcspn(typed, ":"), typed);
    return name != NULL && sched_find(name, &f, NULL) == TD_OK && !f->cuts;
}

/* "chimera:f=2:chunks=1": options of the family, or of the command line. */
static td_status set_schedule(const sweep *s, td_arena *a, const char *text, psim_options *o,
                              td_err *err)
{
    const cli_verb *const verb = s->args->verb;
    char *word = td_strdup(a, text);
    if (word == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    char *rest = word + strcspn(word, ":");
    if (*rest != '\0') *rest++ = '\0';
    o->what.schedule = word;
    if (stays_whole(a, word)) {
        o->what.slices = 0;
        o->what.slice_tokens = NULL;
    }
    while (*rest != '\0') {
        char *const part = rest;
        rest += strcspn(rest, ":");
        if (*rest != '\0') *rest++ = '\0';
        char *const eq = strchr(part, '=');
        if (eq == NULL || eq == part)
            return td_fail(err, TD_EUSAGE, "--schedule %s: expected KEY=VALUE behind a colon",
                           text);
        const char *const key = td_sprintf(a, "%.*s", (int)(eq - part), part);
        if (key == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
        if (family_has(word, key) || !cli_has(verb, key))
            TD_TRY(cli_set(a, verb, "opt", part, o, err));
        else
            TD_TRY(cli_set(a, verb, key, eq + 1, o, err));
    }
    return TD_OK;
}

static bool runs_backwards(const plan *p, uint32_t rank)
{
    for (uint32_t i = 0; i < p->n_insts; i++)
        if (p->insts[i].backward_row == p->ranks[rank].row) return true;
    return false;
}

static void take_result(sweep_row *row, const psim_result *r)
{
    const plan *const p = &r->setup.plan;
    row->ranks = p->n_ranks;
    row->devices = plan_devices(p);
    row->microbatches = p->n_microbatches;
    row->slices = p->n_slices;
    row->parts = p->n_stages / (p->chunks > 1 ? p->chunks : 1);
    row->step_ns = r->period_ns;
    row->messages = r->metrics.messages;
    row->message_bytes = r->metrics.message_bytes;
    row->bubble_frac = r->metrics.bubble_frac;
    row->span_bubble_frac = r->metrics.span_bubble_frac;
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const rank_metrics *const m = &r->metrics.ranks[i];
        if (m->peak_bytes > row->peak_bytes) row->peak_bytes = m->peak_bytes;
        if (runs_backwards(p, i)) continue;
        row->has_roles = true;
        if (m->peak_bytes > row->forward_peak_bytes) row->forward_peak_bytes = m->peak_bytes;
    }
    for (uint32_t i = 0; i < p->n_ranks; i++) {
        const rank_metrics *const m = &r->metrics.ranks[i];
        if (m->peak_activations > row->peak_activations)
            row->peak_activations = m->peak_activations;
    }
    row->tokens_per_s = psim_tokens_per_s(r);
}

/* "bitpipe, microbatches 8" above a panel of the figure. */
static const char *caption_of(const sweep *s, const sweep_row *row)
{
    td_text t = {0};
    td_text_add(&t, row->schedule);
    for (size_t i = 0; i < s->n_axes; i++)
        td_text_addf(&t, ", %s %s", s->axes[i].name, row->values[i]);
    const char *const out = t.failed ? NULL : td_strdup(s->a, t.s);
    td_text_free(&t);
    return out;
}

/* Simulates one row in an arena of its own, or in the sweep's when its timeline is drawn. */
static td_status run_row(sweep *s, td_arena *a, sweep_row *row, td_err *err)
{
    psim_options o = *s->o;
    for (size_t i = 0; i < s->n_axes; i++)
        TD_TRY(cli_set(a, s->args->verb, s->axes[i].name, row->values[i], &o, err));
    TD_TRY(set_schedule(s, a, row->schedule, &o, err));
    psim_result *const r = TD_NEW(a, psim_result);
    if (r == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(psim_simulate(a, s->args, &o, r, err));
    take_result(row, r);
    s->any_model |= r->setup.has_model;
    s->any_roles |= row->has_roles;
    if (s->traces == NULL) return TD_OK;
    const char *const caption = caption_of(s, row);
    if (caption == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    trace_meta *const meta = TD_NEW_N(a, trace_meta, r->n_meta + 1);
    if (meta == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    memcpy(meta, r->meta, r->n_meta * sizeof *meta);
    meta[r->n_meta] = (trace_meta){"caption", caption};
    TD_TRY(trace_build(&r->setup.plan, &r->times, o.memory, meta, r->n_meta + 1, a,
                       &s->traces[s->n_traces], err));
    s->n_traces++;
    return TD_OK;
}

/* Running out of memory or of disk is no answer; all else is one. */
static td_status try_row(sweep *s, sweep_row *row, td_err *err)
{
    td_arena *const own = s->traces == NULL ? td_arena_new() : NULL;
    td_err why = {0};
    if (s->traces == NULL && own == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    row->status = run_row(s, own != NULL ? own : s->a, row, &why);
    if (own != NULL) td_arena_free(own);
    if (row->status == TD_OK) return TD_OK;
    if (row->status == TD_ENOMEM) return td_fail(err, TD_ENOMEM, "%s", why.msg);
    row->why = td_strdup(s->a, why.msg);
    return row->why == NULL ? td_fail(err, TD_ENOMEM, "out of memory") : TD_OK;
}

/* The axes: what was given several values. A single schedule is an axis of one. */
static td_status find_axes(sweep *s, td_err *err)
{
    static const char *const texts[] = {"schedule", "model", "cluster", NULL};
    cli_axis *all = NULL;
    size_t n = 0;
    TD_TRY(cli_axes(s->a, s->args, texts, &all, &n, err));
    if (s->o->what.schedule == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--schedule is missing: names of psim list, --schedule 1f1b,gpipe");
    s->schedules = (cli_axis){.name = "schedule", .n = 1};
    s->schedules.items = TD_NEW_N(s->a, const char *, 1);
    s->axes = TD_NEW_N(s->a, cli_axis, n);
    if (s->schedules.items == NULL || s->axes == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory");
    s->schedules.items[0] = s->o->what.schedule;
    size_t count = 1;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i].name, "schedule") == 0)
            s->schedules = all[i];
        else
            s->axes[s->n_axes++] = all[i];
        count *= all[i].n;
        if (count > ROWS_MAX)
            return td_fail(err, TD_EUSAGE, "more than %d combinations; fewer values would do",
                           ROWS_MAX);
    }
    s->n_rows = count;
    s->rows = TD_NEW_N(s->a, sweep_row, count);
    return s->rows == NULL ? td_fail(err, TD_ENOMEM, "out of memory") : TD_OK;
}

static td_status make_rows(sweep *s, td_err *err)
{
    for (size_t k = 0; k < s->n_rows; k++) {
        sweep_row *const row = &s->rows[k];
        row->values = TD_NEW_N(s->a, const char *, s->n_axes);
        if (row->values == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
        row->schedule = s->schedules.items[k % s->schedules.n];
        size_t left = k / s->schedules.n;
        for (size_t i = s->n_axes; i-- > 0; left /= s->axes[i].n)
            row->values[i] =
                strcmp(s->axes[i].name, "slices") == 0 && stays_whole(s->a, row->schedule)
                    ? "1"
                    : s->axes[i].items[left % s->axes[i].n];
    }
    return TD_OK;
}

/* --- output --- */

static bool is_number(const char *s)
{
    int64_t x = 0;
    return *s != '0' && *s != '+' && *s != '-' &&
           td_parse_i64(s, 1, INT64_MAX, "", &x, NULL) == TD_OK;
}

static void print_json(const sweep *s, td_text *t)
{
    td_text_add(t, "{\"schema\":1,\"rows\":[");
    for (size_t k = 0; k < s->n_rows; k++) {
        const sweep_row *const row = &s->rows[k];
        td_text_add(t, k > 0 ? ",{\"schedule\":" : "{\"schedule\":");
        td_text_json(t, row->schedule);
        td_text_add(t, ",\"settings\":{");
        for (size_t i = 0; i < s->n_axes; i++) {
            td_text_add(t, i > 0 ? "," : "");
            td_text_json(t, s->axes[i].name);
            td_text_add(t, ":");
            if (is_number(row->values[i]))
                td_text_add(t, row->values[i]);
            else
                td_text_json(t, row->values[i]);
        }
        td_text_add(t, "}");
        if (row->status != TD_OK) {
            td_text_add(t, ",\"error\":");
            td_text_json(t, row->why);
            td_text_add(t, "}");
            continue;
        }
        td_text_addf(
            t,
            ",\"ranks\":%u,\"microbatches\":%d,\"slices\":%d,\"step_ns\":%lld,\"bubble_frac\":%.15g"
            ",\"span_bubble_frac\":%.15g,\"peak_bytes\":%lld,\"peak_activations\":%.15g,"
            "\"messages\":%lld"
            ",\"message_bytes\":%lld,\"devices\":%lld,\"device_ns\":%.15g",
            row->ranks, row->microbatches, row->slices, (long long)row->step_ns, row->bubble_frac,
            row->span_bubble_frac, (long long)row->peak_bytes, row->peak_activations,
            (long long)row->messages, (long long)row->message_bytes, (long long)row->devices,
            (double)row->devices * (double)row->step_ns);
        if (row->has_roles)
            td_text_addf(t, ",\"forward_peak_bytes\":%lld", (long long)row->forward_peak_bytes);
        if (row->tokens_per_s > 0) td_text_addf(t, ",\"tokens_per_s\":%.15g", row->tokens_per_s);
        td_text_add(t, "}");
    }
    td_text_add(t, "]}\n");
}

static int column_width(const sweep *s, size_t axis)
{
    size_t width = strlen(s->axes[axis].name);
    for (size_t i = 0; i < s->axes[axis].n; i++)
        if (strlen(s->axes[axis].items[i]) > width) width = strlen(s->axes[axis].items[i]);
    return (int)width;
}

static void print_row(const sweep *s, const sweep_row *row, int first, td_text *t)
{
    char step[40], peak[40], rate[40];
    td_text_addf(t, "  %-*s", first, row->schedule);
    for (size_t i = 0; i < s->n_axes; i++)
        td_text_addf(t, "  %*s", column_width(s, i), row->values[i]);
    if (row->status != TD_OK) {
        td_text_addf(t, "  %s\n", row->why);
        return;
    }
    td_text_addf(t, "  %10s  %5.1f %%  %11.4g", td_print_ns(step, sizeof step, row->step_ns),
                 100 * row->bubble_frac, row->peak_activations);
    if (s->any_model)
        td_text_addf(t, "  %10s  %10s", td_print_bytes(peak, sizeof peak, row->peak_bytes),
                     td_print_count(rate, sizeof rate, row->tokens_per_s));
    td_text_addf(t, "  %8lld", (long long)row->messages);
    if (s->any_roles) {
        char all[40], forward[40] = "-";
        const double ns = (double)row->devices * (double)row->step_ns;
        if (row->has_roles && s->any_model)
            (void)td_print_bytes(forward, sizeof forward, row->forward_peak_bytes);
        td_text_addf(t, "  %7lld  %12s  %12s", (long long)row->devices,
                     td_print_ns(all, sizeof all, ns < 9e18 ? (int64_t)ns : INT64_MAX), forward);
    }
    td_text_add(t, "\n");
}

/* Says which schedules ran uncut, where no column does. */
static void print_uncut(const sweep *s, td_text *t)
{
    const char *before = "\n  not cut into slices: ";
    if (s->o->what.slices <= 1 && s->o->what.slice_tokens == NULL) return;
    for (size_t i = 0; i < s->n_axes; i++)
        if (strcmp(s->axes[i].name, "slices") == 0) return;
    for (size_t i = 0; i < s->schedules.n; i++) {
        if (!stays_whole(s->a, s->schedules.items[i])) continue;
        td_text_addf(t, "%s%s", before, s->schedules.items[i]);
        before = ", ";
    }
    if (*before == ',') td_text_add(t, "\n");
}

/* Says when unit times make rows that stand together rows of unlike models. */
static void print_unlike(const sweep *s, td_text *t)
{
    const char *const times = s->o->what.times;
    if (times == NULL || strchr(times, '=') == NULL) return;
    for (size_t i = 0; i < s->schedules.n; i++)
        if (strstr(s->schedules.items[i], ":times=") != NULL) return;
    for (size_t k = 1; k < s->n_rows; k++) {
        const sweep_row *const row = &s->rows[k], *const before = row - 1;
        if (k % s->schedules.n == 0 || row->status != TD_OK || before->status != TD_OK ||
            row->parts == before->parts)
            continue;
        td_text_addf(t,
                     "\n  --times are of 1/P of the model: of 1/%d and of 1/%d here; rows of one "
                     "model have times of their own, SCHEDULE:times=F=2,B=4\n",
                     before->parts, row->parts);
        return;
    }
}

static void print_table(const sweep *s, td_text *t)
{
    int first = 8;
    for (size_t i = 0; i < s->schedules.n; i++)
        if ((int)strlen(s->schedules.items[i]) > first) first = (int)strlen(s->schedules.items[i]);
    td_text_addf(t, "  %-*s", first, "schedule");
    for (size_t i = 0; i < s->n_axes; i++)
        td_text_addf(t, "  %*s", column_width(s, i), s->axes[i].name);
    td_text_addf(t, "  %10s  %7s  %11s", "step", "bubble", "activations");
    if (s->any_model) td_text_addf(t, "  %10s  %10s", "peak", "tokens/s");
    td_text_addf(t, "  %8s", "messages");
    if (s->any_roles)
        td_text_addf(t, "  %7s  %12s  %12s", "devices", "devices*step", "forward peak");
    td_text_add(t, "\n");
    for (size_t k = 0; k < s->n_rows; k++) {
        if (k > 0 && k % s->schedules.n == 0 && s->schedules.n > 1) td_text_add(t, "\n");
        print_row(s, &s->rows[k], first, t);
    }
    print_uncut(s, t);
    print_unlike(s, t);
}

static td_status draw_rows(const sweep *s, td_err *err)
{
    if (s->o->output == NULL || s->n_traces == 0) return TD_OK;
    return psim_draw(s->o, s->traces, s->n_traces, s->o->output, err);
}

td_status cmd_sweep(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    sweep s = {.a = a, .args = args, .o = options};
    TD_TRY(cli_check_outputs(args, err));
    TD_TRY(find_axes(&s, err));
    TD_TRY(make_rows(&s, err));
    if (s.o->output != NULL) {
        if (s.n_rows > FIGURE_MAX)
            return td_fail(err, TD_EUSAGE, "-o: %zu timelines under each other; at most %d fit",
                           s.n_rows, FIGURE_MAX);
        s.traces = TD_NEW_N(a, trace, s.n_rows);
        if (s.traces == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    }
    size_t failed = 0;
    cli_progress progress = cli_progress_begin(CLI_AUTO);
    for (size_t k = 0; k < s.n_rows; k++) {
        (void)cli_progress_show(&progress, "%zu of %zu: %s", k + 1, s.n_rows, s.rows[k].schedule);
        TD_TRY(try_row(&s, &s.rows[k], err));
        failed += s.rows[k].status != TD_OK;
    }
    cli_progress_end(&progress);
    if (failed == s.n_rows)
        return td_fail(err, s.rows[0].status, "%s%s", s.rows[0].why,
                       failed > 1 ? " (and no other combination can be)" : "");
    TD_TRY(draw_rows(&s, err));
    td_text out = {0};
    if (s.o->json)
        print_json(&s, &out);
    else
        print_table(&s, &out);
    return psim_print(&out, err);
}
