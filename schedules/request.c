/* From the shared options to a schedule and a plan. */
#include "schedules/request.h"

#include "base/text.h"
#include "schedules/trace.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

const char *plan_mapping_name(plan_mapping m)
{
    static const char *const names[] = {"channel", "direction", "single"};
    return names[m];
}

enum { FILE_MAX = 1 << 30 };

/* --- schedule --- */

static td_status split_options(const request *q, td_arena *a, sched_request *r, td_err *err)
{
    sched_option_value *const values = TD_NEW_N(a, sched_option_value, q->opts.n);
    if (values == NULL) return td_fail(err, TD_ENOMEM, "out of memory for options");
    for (size_t i = 0; i < q->opts.n; i++) {
        char *const text = td_strdup(a, q->opts.item[i]);
        if (text == NULL) return td_fail(err, TD_ENOMEM, "out of memory for options");
        char *const eq = strchr(text, '=');
        if (eq == NULL || eq == text)
            return td_fail(err, TD_EUSAGE, "--opt %s: expected KEY=VALUE", text);
        *eq = '\0';
        values[i] = (sched_option_value){.key = text, .value = eq + 1};
    }
    r->options = values;
    r->n_options = (int32_t)q->opts.n;
    return TD_OK;
}

static td_status generate(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    sched_request r = {.pp = (int32_t)q->pp,
                       .microbatches = (int32_t)q->microbatches,
                       .chunks = (int32_t)q->chunks,
                       .slices = (int32_t)q->slices,
                       .activation_limit = q->activation_limit,
                       .activation_deltas = q->deltas,
                       .memory_limit = q->memory_limit,
                       .seed = q->seed,
                       .search_s = q->search_s};
    if (q->pp == 0) return td_fail(err, TD_EUSAGE, "--pp is missing: how many stages wide; --pp 4");
    if (q->microbatches == 0)
        return td_fail(err, TD_EUSAGE, "--microbatches is missing; --microbatches 8");
    TD_TRY(split_options(q, a, &r, err));
    if (q->slice_tokens != NULL) {
        int32_t *tokens = NULL;
        size_t n = 0;
        TD_TRY(request_list(a, q->slice_tokens, "--slice-tokens", &tokens, &n, err));
        if (q->slices != 0 && (size_t)q->slices != n)
            return td_fail(err, TD_EUSAGE, "--slice-tokens: %zu numbers for --slices %lld", n,
                           (long long)q->slices);
        r.slices = (int32_t)n;
        r.slice_tokens = tokens;
    }
    const request_pricing pricing = {.q = q, .setup = out, .a = a};
    r.price = request_price;
    r.price_from = &pricing;
    return sched_generate(q->schedule, &r, a, &out->schedule, err);
}

/* A registry name wins over a file that happens to be called so; ./NAME is the file. */
static bool is_file(const char *name)
{
    const sched_family *family = NULL;
    if (sched_find(name, &family, NULL) == TD_OK) return false;
    return strcmp(name, "-") == 0 || access(name, F_OK) == 0 || strpbrk(name, "/.") != NULL;
}

/* What a file or a plan has already: chunks, slices and their tokens; options made others. */
static td_status check_given(const request *q, const char *name, int32_t chunks, int32_t slices,
                             td_err *err)
{
    if (q->opts.n > 0)
        return td_fail(err, TD_EUSAGE,
                       "--opt %s: options are of schedules of psim list; %s is made already",
                       q->opts.item[0], name);
    if (q->chunks != 0 && q->chunks != chunks)
        return td_fail(err, TD_EUSAGE, "--chunks %lld: %s has %d", (long long)q->chunks, name,
                       chunks);
    if (q->slices != 0 && q->slices != slices)
        return td_fail(err, TD_EUSAGE, "--slices %lld: %s has %d", (long long)q->slices, name,
                       slices);
    return TD_OK;
}

/* The stages that a rank holds of each pipe. */
static int32_t chunks_of(const request *q, const schedule *s)
{
    const int64_t rows = q->pp != 0 ? q->pp : s->n_rows < s->n_stages ? s->n_rows : s->n_stages;
    return (int32_t)(s->n_stages < rows ? 1 : s->n_stages / rows);
}

/* --slice-tokens for a schedule file: its slices have no lengths yet, or these. */
static td_status take_slice_tokens(const request *q, td_arena *a, schedule *s, td_err *err)
{
    int32_t *tokens = NULL;
    size_t n = 0;
    if (q->slice_tokens == NULL) return TD_OK;
    TD_TRY(request_list(a, q->slice_tokens, "--slice-tokens", &tokens, &n, err));
    const size_t m = (size_t)s->n_microbatches;
    bool same = n == (size_t)s->n_slices;
    for (size_t i = 0; same && s->slice_tokens != NULL && i < m * n; i++)
        same = s->slice_tokens[i] == tokens[i % n];
    if (!same)
        return td_fail(err, TD_EUSAGE, "--slice-tokens %s: %s has %d slices%s", q->slice_tokens,
                       q->schedule, s->n_slices,
                       n == (size_t)s->n_slices ? " of other lengths" : "");
    s->slice_tokens = TD_NEW_N(a, int32_t, m * n);
    if (s->slice_tokens == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (size_t i = 0; i < m * n; i++) s->slice_tokens[i] = tokens[i % n];
    return sched_check(s, err);
}

static td_status parse_schedule(const request *q, const char *text, size_t len, td_arena *a,
                                schedule *s, td_err *err)
{
    TD_TRY(sched_parse(text, len, q->schedule, a, s, err));
    if (sched_check(s, err) != TD_OK) return td_wrap(err, "%s", q->schedule);
    if (q->microbatches != 0 && q->microbatches != s->n_microbatches)
        return td_fail(err, TD_EUSAGE, "--microbatches %lld: %s has %d", (long long)q->microbatches,
                       q->schedule, s->n_microbatches);
    if (q->pp != 0 && q->pp != s->n_rows && !sched_is_disaggregated(s))
        return td_fail(err, TD_EUSAGE, "--pp %lld: %s has %d rows", (long long)q->pp, q->schedule,
                       s->n_rows);
    TD_TRY(check_given(q, q->schedule, chunks_of(q, s), s->n_slices, err));
    return take_slice_tokens(q, a, s, err);
}

static td_status read_units(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    if (q->times == NULL) return TD_OK;
    TD_TRY(unit_times_parse(q->times, a, &out->units, err));
    out->has_units = true;
    return TD_OK;
}

/* The first line of what plan_print prints. */
static bool is_plan(const char *text)
{
    static const char begin[] = "# tandem plan";
    return strncmp(text, begin, sizeof begin - 1) == 0;
}

/* Makes the schedule; *plan_text is set instead when the file that is named holds a plan. */
static td_status make_schedule(const request *q, td_arena *a, run_setup *out, char **plan_text,
                               td_err *err)
{
    *plan_text = NULL;
    if (q->schedule == NULL)
        return td_fail(err, TD_EUSAGE, "--schedule is missing: a name of psim list, or a file");
    out->has_schedule = true;
    const sched_family *f = NULL;
    td_err unknown = {0};
    if (sched_find(q->schedule, &f, &unknown) == TD_OK) return generate(q, a, out, err);
    if (!is_file(q->schedule)) return td_fail(err, TD_EUSAGE, "--schedule: %s", unknown.msg);
    char *text = NULL;
    size_t len = 0;
    TD_TRY(td_read_file(a, q->schedule, FILE_MAX, &text, &len, err));
    if (!is_plan(text)) return parse_schedule(q, text, len, a, &out->schedule, err);
    out->has_schedule = false;
    *plan_text = text;
    return TD_OK;
}

/* --- sizes and plan --- */

static td_status read_model(const request *q, data_type dtype, run_setup *out, td_err *err)
{
    out->sizes =
        (sizes){.run = {.micro_batch = q->micro_batch,
                        .seq_len = q->seq_len,
                        .tp = q->tp,
                        .dp = q->dp,
                        .zero1 = q->zero1,
                        .sequence_parallel = q->sequence_parallel,
                        .dtype = q->dtype < 0 ? dtype : (data_type)q->dtype,
                        .grad_dtype = q->grad_dtype < 0 ? TYPE_FP32 : (data_type)q->grad_dtype,
                        .recompute = (recompute_mode)q->recompute}};
    if (q->model == NULL) return TD_OK;
    TD_TRY(model_load(q->model, &out->model, err));
    if (q->vocab_size != 0) out->model.vocab = q->vocab_size;
    out->has_model = true;
    out->sizes.model = &out->model;
    if (q->seq_len == 0) out->sizes.run.seq_len = out->model.max_positions;
    if (out->model.learned_positions && out->sizes.run.seq_len > out->model.max_positions)
        return td_fail(err, TD_EUSAGE, "--seq-len %lld: %s has %lld positions",
                       (long long)q->seq_len, out->model.name, (long long)out->model.max_positions);
    return TD_OK;
}

td_status request_schedule(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    *out = (run_setup){0};
    char *plan_text = NULL;
    TD_TRY(read_units(q, a, out, err));
    TD_TRY(read_model(q, TYPE_BF16, out, err));
    TD_TRY(make_schedule(q, a, out, &plan_text, err));
    out->schedule.validate |= q->post_validation;
    if (plan_text == NULL) return plan_check_slices(&out->schedule, &out->sizes, err);
    return td_fail(err, TD_EUSAGE, "%s holds a plan; a schedule is needed here", q->schedule);
}

/* Without a model a sequence has the tokens of its slices, one each where nothing says more. */
static int64_t unit_tokens(const schedule *s)
{
    int64_t sum = s->slice_tokens == NULL ? s->n_slices : 0;
    for (int32_t k = 0; s->slice_tokens != NULL && k < s->n_slices; k++) sum += s->slice_tokens[k];
    return sum;
}

static td_status assign_layers(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    const schedule *const s = &out->schedule;
    const int64_t rows = q->pp != 0 ? q->pp : s->n_rows < s->n_stages ? s->n_rows : s->n_stages;
    out->sizes.n_stages = s->n_stages;
    out->sizes.chunks = chunks_of(q, s);
    out->sizes.vocab_shards = s->vocab == VOCAB_NONE ? 0 : s->n_rows;
    out->sizes.vocab_fused = s->vocab == VOCAB_2;
    out->sizes.twins = sched_copies(s);
    if (!out->has_model) {
        out->sizes.run.seq_len = unit_tokens(s);
        return TD_OK;
    }
    stage_desc *stages = NULL;
    TD_TRY(request_layers(q, &out->sizes, s->n_stages, rows, s->layers, a, &stages, err));
    out->sizes.stages = stages;
    return TD_OK;
}

static td_status take_plan(const request *q, const char *text, const char *name, td_arena *a,
                           run_setup *out, td_err *err)
{
    TD_TRY(plan_parse(text, strlen(text), name, a, &out->plan, err));
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const td_status st = plan_check(&out->plan, scratch, err);
    td_arena_free(scratch);
    if (st != TD_OK) return st;
    const plan *const p = &out->plan;
    if (out->has_model && p->stages == NULL)
        return td_fail(err, TD_EUSAGE, "--model: %s was lowered without a model", name);
    if (q->microbatches != 0 && q->microbatches != p->n_microbatches)
        return td_fail(err, TD_EUSAGE, "--microbatches %lld: %s has %d", (long long)q->microbatches,
                       name, p->n_microbatches);
    TD_TRY(request_check_given(q, p, name, err));
    if (q->slice_tokens != NULL)
        return td_fail(err, TD_EUSAGE, "--slice-tokens: %s is cut already; leave it out", name);
    TD_TRY(check_given(q, name, p->chunks, p->n_slices, err));
    if ((q->tp > 1 && q->tp != p->tp) || (q->dp > 1 && q->dp != p->dp))
        return td_fail(err, TD_EUSAGE, "--tp %lld and --dp %lld: %s was lowered for %d and %d",
                       (long long)q->tp, (long long)q->dp, name, p->tp, p->dp);
    TD_TRY(plan_check_limit(p, q->memory_limit, err));
    out->sizes.stages = out->has_model ? p->stages : NULL;
    out->sizes.n_stages = p->n_stages;
    out->sizes.chunks = p->chunks;
    bool c1 = false, c2 = false;
    for (uint32_t i = 0; i < p->n_classes; i++) {
        c1 |= p->classes[i].kind == TASK_COLL && p->classes[i].purpose == PURPOSE_C1;
        c2 |= p->classes[i].kind == TASK_COLL && p->classes[i].purpose == PURPOSE_C2;
    }
    out->sizes.vocab_shards = c1 ? p->n_rows : 0;
    out->sizes.vocab_fused = c1 && !c2;
    out->sizes.twins = p->n_pipes * (p->n_insts > 0 && p->insts[0].all_step ? 2 : 1);
    for (uint32_t i = 0; i < p->n_classes; i++)
        if (p->classes[i].kind == TASK_COLL && p->classes[i].purpose == PURPOSE_WEIGHTS)
            out->sizes.run.zero1 = true;
    out->sizes.run.tp = p->tp;
    out->sizes.run.dp = p->dp;
    if (!out->has_model) return TD_OK;
    out->sizes.run.seq_len = p->seq_len;
    /* rows of other degrees have other sizes than those of the run */
    for (uint32_t r = 0; r < p->n_ranks; r++)
        if (p->ranks[r].tp != p->tp) return TD_OK;
    return plan_check_sizes(p, &out->sizes, err);
}

/* Whether the schedule is searched for within --memory-limit. */
static bool fits_memory(const request *q)
{
    const sched_family *f = NULL;
    return q->memory_limit > 0 && q->model != NULL && q->activation_limit <= 0 &&
           sched_find(q->schedule, &f, NULL) == TD_OK && f->obeys_memory_limit;
}

static td_status lower_schedule(const request *q, const char *after, td_arena *a, run_setup *out,
                                td_err *err)
{
    out->schedule.validate |= q->post_validation;
    TD_TRY(assign_layers(q, a, out, err));
    if (out->schedule.tp_backward > 0 && q->tp == 1) out->sizes.run.tp = out->schedule.tp_backward;
    if (out->has_model) TD_TRY(model_check_tp(&out->model, out->sizes.run.tp, err));
    out->lower = (lower_options){.sizes = &out->sizes,
                                 .dp = (int32_t)q->dp,
                                 .tp = (int32_t)q->tp,
                                 .fold = q->fold,
                                 .shards = q->shards,
                                 .mapping = (plan_mapping)q->mapping,
                                 .placement = (plan_placement)q->placement,
                                 .lookahead = (int32_t)q->lookahead,
                                 .send_window = (int32_t)q->send_window,
                                 .zero1 = q->zero1,
                                 .no_step = !out->has_model && !out->schedule.validate,
                                 .keep_sync = out->has_units && out->units.coll_ms > 0,
                                 .memory_limit = fits_memory(q) ? 0 : q->memory_limit,
                                 .after = after};
    return plan_lower(&out->schedule, &out->lower, a, &out->plan, err);
}

/* What the family needs at the least is its plan for one microbatch at a time: that one, or what
 * it would need. */
static td_status least_memory(const request *q, const char *after, td_arena *a, run_setup *out,
                              td_err *err)
{
    request one = *q;
    char *text = NULL, most[32];
    int64_t need = 0;
    one.memory_limit = 0;
    one.activation_limit = 1;
    TD_TRY(make_schedule(&one, a, out, &text, err));
    TD_TRY(lower_schedule(&one, after, a, out, err));
    for (uint32_t r = 0; r < out->plan.n_ranks; r++)
        if (out->plan.ranks[r].arena_bytes > need) need = out->plan.ranks[r].arena_bytes;
    if (need <= q->memory_limit) return TD_OK;
    return td_fail(err, TD_EPLAN,
                   "--memory-limit: no order of %s fits %s a rank; the least that works is "
                   "%lld bytes",
                   q->schedule, td_print_bytes(most, sizeof most, q->memory_limit),
                   (long long)need);
}

/* A search within bytes counts activations; what lives beside them is known once the plan is. So
 * it is asked again for less by as much as the plan needs too much, and by twice as much each time
 * that changed nothing: an order may stay the same for a while. Where that leaves too little for
 * any order, the middle between it and the last order that was too large comes next. */
static td_status fit_memory(const request *q, const char *after, td_arena *a, run_setup *out,
                            td_err *err)
{
    enum { TRIES = 16 };
    request less = *q;
    int64_t step = 0, last = INT64_MAX, too_large = q->memory_limit, too_little = 0;
    bool halves = false;
    for (int i = 0; i < TRIES && less.memory_limit > too_little; i++) {
        int64_t excess = 0;
        char *text = NULL;
        if (make_schedule(&less, a, out, &text, err) != TD_OK) {
            if (i == 0) break; /* the limit itself */
            too_little = less.memory_limit;
            halves = true;
        } else {
            TD_TRY(lower_schedule(q, after, a, out, err));
            for (uint32_t r = 0; r < out->plan.n_ranks; r++)
                if (out->plan.ranks[r].arena_bytes - q->memory_limit > excess)
                    excess = out->plan.ranks[r].arena_bytes - q->memory_limit;
            if (excess == 0) return TD_OK;
            too_large = less.memory_limit;
            step = excess < last ? excess : 2 * step;
            last = excess;
        }
        halves = halves || too_large - step <= too_little;
        less.memory_limit = halves ? too_little + (too_large - too_little) / 2 : too_large - step;
    }
    return least_memory(q, after, a, out, err);
}

/* A limit of activations holds for orders that were not made for it too. Orders that were count by
 * the deltas of their own option. */
static td_status check_activations(const request *q, const plan *p, td_err *err)
{
    activation_deltas d;
    const char *text = q->deltas;
    for (size_t i = 0; i < q->opts.n; i++)
        if (strncmp(q->opts.item[i], "deltas=", 7) == 0) text = q->opts.item[i] + 7;
    TD_TRY(activation_deltas_parse("--activation-deltas ", text, &d, err));
    return plan_check_activations(p, q->activation_limit, d, err);
}

td_status request_plan(const request *q, data_type dtype, const char *after, td_arena *a,
                       run_setup *out, td_err *err)
{
    *out = (run_setup){0};
    TD_TRY(read_units(q, a, out, err));
    TD_TRY(read_model(q, dtype, out, err));
    char *text = NULL;
    size_t len = 0;
    if (q->plan != NULL && q->schedule != NULL)
        return td_fail(err, TD_EUSAGE, "--schedule and --plan: give one of them");
    if (q->plan != NULL)
        TD_TRY(td_read_file(a, q->plan, FILE_MAX, &text, &len, err));
    else if (q->schedule != NULL && fits_memory(q))
        return fit_memory(q, after, a, out, err);
    else
        TD_TRY(make_schedule(q, a, out, &text, err));
    if (text != NULL)
        TD_TRY(take_plan(q, text, q->plan != NULL ? q->plan : q->schedule, a, out, err));
    else
        TD_TRY(lower_schedule(q, after, a, out, err));
    return check_activations(q, &out->plan, err);
}
