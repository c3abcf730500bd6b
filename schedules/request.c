/* From the shared options to a schedule and a plan. */
#include "schedules/request.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define AT(field) offsetof(request, field)

const cli_option request_options[REQUEST_OPTION_COUNT] = {
    {.kind = CLI_HEADING, .help = "Schedule"},
    {.kind = CLI_TEXT,
     .name = "schedule",
     .letter = 's',
     .arg = "NAME|FILE",
     .at = AT(schedule),
     .help = "a schedule of psim list, or a schedule file (- is stdin)"},
    {.kind = CLI_TEXT,
     .name = "plan",
     .arg = "FILE",
     .at = AT(plan),
     .help = "a lowered plan as psim plan prints it, in place of a schedule"},
    {.kind = CLI_INT,
     .name = "pp",
     .letter = 'p',
     .arg = "P",
     .at = AT(pp),
     .min = 1,
     .max = 65535,
     .help = "pipeline-parallel size"},
    {.kind = CLI_INT,
     .name = "microbatches",
     .letter = 'm',
     .arg = "M",
     .at = AT(microbatches),
     .min = 1,
     .max = 100000000,
     .help = "microbatches per step and replica"},
    {.kind = CLI_INT,
     .name = "chunks",
     .arg = "V",
     .at = AT(chunks),
     .min = 1,
     .max = 65535,
     .help = "stages per rank and pipe; default: what the schedule takes"},
    {.kind = CLI_INT,
     .name = "slices",
     .arg = "S",
     .at = AT(slices),
     .min = 1,
     .max = 65535,
     .help = "slices of the tokens of a microbatch; default: what the schedule takes"},
    {.kind = CLI_TEXT,
     .name = "slice-tokens",
     .arg = "N,N,...",
     .at = AT(slice_tokens),
     .help = "tokens of each slice"},
    {.kind = CLI_MANY,
     .name = "opt",
     .arg = "KEY=VALUE",
     .at = AT(opts),
     .help = "an option of the schedule (psim list shows them); may be repeated"},
    {.kind = CLI_REAL,
     .name = "activation-limit",
     .arg = "A",
     .at = AT(activation_limit),
     .min = 0,
     .max = 1000000000,
     .help = "microbatch activations of a rank's share that a schedule may keep"},
    {.kind = CLI_HEADING, .help = "Times and model"},
    {.kind = CLI_TEXT,
     .name = "times",
     .arg = "LIST|FILE",
     .at = AT(times),
     .help = "unit times in ms of one microbatch through 1/P of the model, and of a message: "
             "F=1,B=2,comm=0.1 (also I, W, R, S, T, E, G, FB, coll); or a file, one row a stage"},
    {.kind = CLI_TEXT,
     .name = "model",
     .arg = "PRESET|FILE",
     .at = AT(model),
     .help = "a model preset, or a Hugging Face config.json"},
    {.kind = CLI_INT,
     .name = "micro-batch",
     .letter = 'b',
     .arg = "B",
     .at = AT(micro_batch),
     .def = "1",
     .min = 1,
     .max = 1000000,
     .help = "sequences in a microbatch"},
    {.kind = CLI_INT,
     .name = "seq-len",
     .arg = "L",
     .at = AT(seq_len),
     .min = 1,
     .max = 100000000,
     .help = "tokens in a sequence; default: all positions of the model"},
    {.kind = CLI_INT,
     .name = "tp",
     .arg = "T",
     .at = AT(tp),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "tensor-parallel size"},
    {.kind = CLI_INT,
     .name = "dp",
     .arg = "D",
     .at = AT(dp),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "data-parallel replicas"},
    {.kind = CLI_CHOICE,
     .name = "dtype",
     .arg = "TYPE",
     .at = AT(dtype),
     .choices = "fp32|bf16|fp16",
     .help = "weights and activations"},
    {.kind = CLI_CHOICE,
     .name = "grad-dtype",
     .arg = "TYPE",
     .at = AT(grad_dtype),
     .choices = "fp32|bf16|fp16",
     .def = "fp32",
     .help = "accumulated gradients"},
    {.kind = CLI_CHOICE,
     .name = "recompute",
     .arg = "MODE",
     .at = AT(recompute),
     .choices = "none|selective|full",
     .def = "none",
     .help = "what backward computes again in place of keeping it"},
    {.kind = CLI_FLAG,
     .name = "zero1",
     .at = AT(zero1),
     .help = "share each optimizer state among the replicas and twins of its stage"},
    {.kind = CLI_FLAG,
     .name = "sequence-parallel",
     .at = AT(sequence_parallel),
     .help = "shard the activations between tensor-parallel regions"},
    {.kind = CLI_TEXT,
     .name = "layout",
     .arg = "TEXT",
     .at = AT(layout),
     .help = "layers of the stages as Megatron writes them: Et*2|(tt|)*3,tL"},
    {.kind = CLI_TEXT,
     .name = "layers",
     .arg = "N,N,...",
     .at = AT(layers),
     .help = "layers of each stage"},
    {.kind = CLI_FLAG,
     .name = "account-for-embedding",
     .at = AT(account_embedding),
     .help = "count the embedding as one layer when splitting evenly"},
    {.kind = CLI_FLAG,
     .name = "account-for-loss",
     .at = AT(account_loss),
     .help = "count head and loss as one layer when splitting evenly"},
    {.kind = CLI_HEADING, .help = "Lowering"},
    {.kind = CLI_CHOICE,
     .name = "mapping",
     .arg = "HOW",
     .at = AT(mapping),
     .choices = "channel|direction|single",
     .def = "channel",
     .help = "which messages share a stream"},
    {.kind = CLI_INT,
     .name = "lookahead",
     .arg = "N",
     .at = AT(lookahead),
     .def = "1",
     .min = 1,
     .max = 1000000,
     .help = "compute tasks by which a receive is posted early"},
    {.kind = CLI_INT,
     .name = "send-window",
     .arg = "N",
     .at = AT(send_window),
     .def = "0",
     .min = 0,
     .max = 1000000,
     .help = "compute tasks after which a send is waited for; 0: never, 1: at once"},
    {.kind = CLI_FLAG,
     .name = "fold",
     .at = AT(fold),
     .help = "let one replica stand for all (simulation only)"},
    {.kind = CLI_BYTES,
     .name = "memory-limit",
     .arg = "BYTES",
     .at = AT(memory_limit),
     .help = "refuse a plan that needs more on a rank: 80GiB"},
};

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

/* "a,b,c" as 32-bit numbers. */
static td_status list_i32(td_arena *a, const char *text, const char *name, int32_t **out, size_t *n,
                          td_err *err)
{
    int64_t *wide = NULL;
    TD_TRY(td_parse_i64_list(a, text, name, &wide, n, err));
    *out = TD_NEW_N(a, int32_t, *n);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %s", name);
    for (size_t i = 0; i < *n; i++) {
        if (wide[i] < 0 || wide[i] > INT32_MAX)
            return td_fail(err, TD_EUSAGE, "%s: %lld is out of range", name, (long long)wide[i]);
        (*out)[i] = (int32_t)wide[i];
    }
    return TD_OK;
}

static td_status generate(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    sched_request r = {.pp = (int32_t)q->pp,
                       .microbatches = (int32_t)q->microbatches,
                       .chunks = (int32_t)q->chunks,
                       .slices = (int32_t)q->slices,
                       .activation_limit = q->activation_limit};
    if (q->pp == 0) return td_fail(err, TD_EUSAGE, "--pp is missing: how many stages wide; --pp 4");
    if (q->microbatches == 0)
        return td_fail(err, TD_EUSAGE, "--microbatches is missing; --microbatches 8");
    TD_TRY(split_options(q, a, &r, err));
    if (q->slice_tokens != NULL) {
        int32_t *tokens = NULL;
        size_t n = 0;
        TD_TRY(list_i32(a, q->slice_tokens, "--slice-tokens", &tokens, &n, err));
        if (q->slices != 0 && (size_t)q->slices != n)
            return td_fail(err, TD_EUSAGE, "--slice-tokens: %zu numbers for --slices %lld", n,
                           (long long)q->slices);
        r.slices = (int32_t)n;
        r.slice_tokens = tokens;
    }
    for (int i = 0; i < PASS_COUNT && out->has_units; i++)
        if (out->units.given[i]) r.times.pass_ns[i] = (int64_t)(out->units.pass_ms[i] * 1e6 + 0.5);
    if (out->has_units) r.times.comm_ns = (int64_t)(out->units.comm_ms * 1e6 + 0.5);
    return sched_generate(q->schedule, &r, a, &out->schedule, err);
}

/* A registry name wins over a file that happens to be called so; ./NAME is the file. */
static bool is_file(const char *name)
{
    const sched_family *family = NULL;
    if (sched_find(name, &family, NULL) == TD_OK) return false;
    return strcmp(name, "-") == 0 || access(name, F_OK) == 0 || strchr(name, '/') != NULL;
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
    return TD_OK;
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

td_status request_schedule(const request *q, td_arena *a, run_setup *out, td_err *err)
{
    *out = (run_setup){0};
    char *plan_text = NULL;
    TD_TRY(read_units(q, a, out, err));
    TD_TRY(make_schedule(q, a, out, &plan_text, err));
    if (plan_text == NULL) return TD_OK;
    return td_fail(err, TD_EUSAGE, "%s holds a plan; a schedule is needed here", q->schedule);
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
    out->has_model = true;
    out->sizes.model = &out->model;
    if (q->seq_len == 0) out->sizes.run.seq_len = out->model.max_positions;
    if (out->model.learned_positions && out->sizes.run.seq_len > out->model.max_positions)
        return td_fail(err, TD_EUSAGE, "--seq-len %lld: %s has %lld positions",
                       (long long)q->seq_len, out->model.name, (long long)out->model.max_positions);
    return TD_OK;
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
    out->sizes.chunks = (int32_t)(s->n_stages < rows ? 1 : s->n_stages / rows);
    out->sizes.vocab_shards = s->vocab == VOCAB_NONE ? 0 : s->n_rows;
    out->sizes.vocab_fused = s->vocab == VOCAB_2;
    out->sizes.twins = s->n_pipes;
    if (!out->has_model) {
        out->sizes.run.seq_len = unit_tokens(s);
        return TD_OK;
    }
    layer_request lr = {.n_stages = s->n_stages,
                        .pp = rows,
                        .layout = q->layout,
                        .explicit_layers = s->layers,
                        .account_embedding = q->account_embedding,
                        .account_head = q->account_loss};
    if (q->layers != NULL) {
        int32_t *list = NULL;
        size_t n = 0;
        TD_TRY(list_i32(a, q->layers, "--layers", &list, &n, err));
        if (n != (size_t)s->n_stages)
            return td_fail(err, TD_EUSAGE, "--layers: %zu numbers, but there are %d stages", n,
                           s->n_stages);
        lr.explicit_layers = list;
    }
    stage_desc *const stages = TD_NEW_N(a, stage_desc, s->n_stages);
    if (stages == NULL) return td_fail(err, TD_ENOMEM, "out of memory for stages");
    TD_TRY(layers_assign(&out->model, &lr, stages, err));
    for (int32_t i = 0; i < s->n_stages; i++) stages[i].vocab_rows = sizes_vocab_rows(&out->sizes);
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
    out->sizes.twins = p->n_pipes;
    out->sizes.run.tp = p->tp;
    out->sizes.run.dp = p->dp;
    if (out->has_model) out->sizes.run.seq_len = p->seq_len;
    return TD_OK;
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
    else
        TD_TRY(make_schedule(q, a, out, &text, err));
    if (text != NULL)
        return take_plan(q, text, q->plan != NULL ? q->plan : q->schedule, a, out, err);
    TD_TRY(assign_layers(q, a, out, err));
    out->lower = (lower_options){.sizes = &out->sizes,
                                 .dp = (int32_t)q->dp,
                                 .tp = (int32_t)q->tp,
                                 .fold = q->fold,
                                 .mapping = (plan_mapping)q->mapping,
                                 .placement = (plan_placement)q->placement,
                                 .lookahead = (int32_t)q->lookahead,
                                 .send_window = (int32_t)q->send_window,
                                 .zero1 = q->zero1,
                                 .no_step = !out->has_model,
                                 .keep_sync = out->has_units && out->units.coll_ms > 0,
                                 .memory_limit = q->memory_limit,
                                 .after = after};
    return plan_lower(&out->schedule, &out->lower, a, &out->plan, err);
}
