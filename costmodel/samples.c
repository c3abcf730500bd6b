/* Bodies of samples.h: the text form of measurements. */
#include "costmodel/samples.h"

#include "base/text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const what_names[] = {"pass", "optimizer", "norm", "message", "all_reduce"};
static const char *const part_names[] = {"layers", "embedding", "head"};
static const char *const recompute_names[] = {"none", "selective", "full"};

enum { COLUMNS = 12 };
static const char *const column_names[COLUMNS] = {"what",        "pass",      "part",   "layers",
                                                  "micro_batch", "slice_len", "prefix", "recompute",
                                                  "amount",      "members",   "busy",   "ns"};

static const int64_t amount_max = INT64_C(1) << 53;

const char *stage_part_name(stage_part part) { return part_names[part]; }

samples samples_new(td_arena *a) { return (samples){.arena = a}; }

td_status samples_header(samples *s, const char *key, const char *value, td_err *err)
{
    if (key[0] == '\0' || strpbrk(key, " \t\r\n") != NULL || strpbrk(value, "\r\n") != NULL)
        return td_fail(err, TD_EUSAGE, "samples: header '%s': a key is one word, a value one line",
                       key);
    TD_TRY(TD_GROW(s->arena, s->headers, s->headers_cap, s->n_headers + 1, err));
    const sample_header h = {td_strdup(s->arena, key), td_strdup(s->arena, value)};
    if (h.key == NULL || h.value == NULL) return td_fail(err, TD_ENOMEM, "samples: out of memory");
    s->headers[s->n_headers++] = h;
    return TD_OK;
}

td_status samples_header_model(samples *s, const model_desc *m, const run_shape *run, td_err *err)
{
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {
        {"layers", m->n_layers},     {"hidden", m->hidden},     {"heads", m->n_heads},
        {"kv_heads", m->n_kv_heads}, {"head_dim", m->head_dim}, {"ffn", m->ffn},
        {"vocab", m->vocab},         {"causal", m->causal},     {"tp", run->tp > 0 ? run->tp : 1},
    };
    TD_TRY(samples_header(s, "model", m->name, err));
    TD_TRY(samples_header(s, "dtype", data_type_name(run->dtype), err));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char *const text = td_sprintf(s->arena, "%" PRId64, numbers[i].value);
        if (text == NULL) return td_fail(err, TD_ENOMEM, "samples: out of memory");
        TD_TRY(samples_header(s, numbers[i].key, text, err));
    }
    return TD_OK;
}

static const char *pass_flaw(const sample *x)
{
    if ((unsigned)x->pass >= PASS_COUNT) return "pass: not a pass";
    if ((unsigned)x->part >= PART_COUNT) return "part: not a part of a stage";
    if ((unsigned)x->recompute > RECOMPUTE_FULL) return "recompute: not a mode";
    if (x->part == PART_LAYERS && x->layers < 1) return "layers: wants at least 1";
    if (x->part != PART_LAYERS && x->layers != 0) return "layers: wants 0 for this part";
    if (x->micro_batch < 1) return "micro_batch: wants at least 1";
    if (x->slice_len < 1) return "slice_len: wants at least 1";
    if (x->prefix < 0) return "prefix: wants at least 0";
    if (x->layers > INT32_MAX || x->micro_batch > INT32_MAX || x->slice_len > INT32_MAX ||
        x->prefix > INT32_MAX)
        return "sizes: too large";
    return NULL;
}

/* What is wrong with a sample, or NULL. */
static const char *sample_flaw(const sample *x)
{
    if ((unsigned)x->what >= SAMPLE_WHAT_COUNT) return "what: not a kind of sample";
    if (!isfinite(x->ns) || x->ns <= 0) return "ns: wants a number above 0";
    if (x->busy < 1) return "busy: wants at least 1";
    if (x->amount < 0 || x->amount > amount_max) return "amount: wants 0 to 2^53";
    if (x->what == SAMPLE_PASS) return pass_flaw(x);
    if (x->what == SAMPLE_ALL_REDUCE && x->members < 2) return "members: wants at least 2";
    return NULL;
}

td_status samples_add(samples *s, const sample *one, td_err *err)
{
    const char *const flaw = sample_flaw(one);
    if (flaw != NULL) return td_fail(err, TD_EUSAGE, "sample: %s", flaw);
    TD_TRY(TD_GROW(s->arena, s->items, s->cap, s->n + 1, err));
    s->items[s->n++] = *one;
    return TD_OK;
}

const char *samples_header_value(const samples *s, const char *key)
{
    for (size_t i = 0; i < s->n_headers; i++)
        if (strcmp(s->headers[i].key, key) == 0) return s->headers[i].value;
    return NULL;
}

/* --- print --- */

void samples_print(const samples *s, td_text *out)
{
    td_text_addf(out, "# tandem-samples 1\n# samples %zu\n", s->n);
    for (size_t i = 0; i < s->n_headers; i++)
        td_text_addf(out, "# %s %s\n", s->headers[i].key, s->headers[i].value);
    for (int i = 0; i < COLUMNS; i++)
        td_text_addf(out, "%s%c", column_names[i], i + 1 < COLUMNS ? '\t' : '\n');
    for (size_t i = 0; i < s->n; i++) {
        const sample *const x = &s->items[i];
        const bool pass = x->what == SAMPLE_PASS;
        td_text_addf(out, "%s\t%c\t%s\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%" PRId64,
                     what_names[x->what], pass ? pass_letter(x->pass) : '-',
                     pass ? part_names[x->part] : "-", x->layers, x->micro_batch, x->slice_len,
                     x->prefix);
        td_text_addf(out, "\t%s\t%" PRId64 "\t%" PRId32 "\t%" PRId32 "\t%.17g\n",
                     pass ? recompute_names[x->recompute] : "-", x->amount, x->members, x->busy,
                     x->ns);
    }
}

td_status samples_write(const samples *s, const char *path, td_err *err)
{
    td_text t = {0};
    samples_print(s, &t);
    const td_status status = t.failed ? td_fail(err, TD_ENOMEM, "%s: out of memory", path)
                                      : td_write_file(path, t.s, t.len, err);
    td_text_free(&t);
    return status;
}

/* --- parse --- */

typedef struct line_reader {
    const char *name;
    int64_t line;
    const char *start; /* of the line */
    int64_t declared;  /* samples by the headers; several files may stand one after another */
    char *field[COLUMNS];
} line_reader;

static td_status field_fail(const line_reader *r, int column, td_err *err, const char *why)
{
    return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":%td: %s: %s", r->name, r->line,
                   r->field[column] - r->start + 1, column_names[column], why);
}

static td_status field_i64(const line_reader *r, int column, int64_t max, int64_t *out, td_err *err)
{
    if (td_parse_i64(r->field[column], 0, max, column_names[column], out, NULL) != TD_OK)
        return field_fail(r, column, err, "wants a whole number");
    return TD_OK;
}

/* The index of a field's word among names; "-" gives 0 where that is fine. */
static td_status field_word(const line_reader *r, int column, const char *const *names, int n,
                            bool dash, int *out, td_err *err)
{
    *out = 0;
    if (dash && strcmp(r->field[column], "-") == 0) return TD_OK;
    for (int i = 0; i < n; i++) {
        if (strcmp(r->field[column], names[i]) != 0) continue;
        *out = i;
        return TD_OK;
    }
    td_text t = {0};
    for (int i = 0; i < n; i++) td_text_addf(&t, "%s%s", i == 0 ? "wants one of " : ", ", names[i]);
    const td_status status = field_fail(r, column, err, t.s != NULL ? t.s : "unknown word");
    td_text_free(&t);
    return status;
}

static td_status split_fields(line_reader *r, char *line, td_err *err)
{
    int n = 0;
    char *save = NULL;
    for (char *f = strtok_r(line, " \t\r", &save); f != NULL; f = strtok_r(NULL, " \t\r", &save)) {
        if (n < COLUMNS) r->field[n] = f;
        n++;
    }
    if (n != COLUMNS)
        return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: has %d columns, a sample has %d", r->name,
                       r->line, n, COLUMNS);
    return TD_OK;
}

static td_status parse_sample(line_reader *r, char *line, samples *out, td_err *err)
{
    TD_TRY(split_fields(r, line, err));
    if (strcmp(r->field[0], column_names[0]) == 0) return TD_OK;
    int what = 0, part = 0, recompute = 0;
    TD_TRY(field_word(r, 0, what_names, SAMPLE_WHAT_COUNT, false, &what, err));
    sample x = {.what = (sample_what)what};
    const bool other = x.what != SAMPLE_PASS;
    x.pass = other ? PASS_F : pass_from_letter(r->field[1][0]);
    if (!other && (x.pass == PASS_COUNT || r->field[1][1] != '\0'))
        return field_fail(r, 1, err, "wants the letter of a pass");
    TD_TRY(field_word(r, 2, part_names, PART_COUNT, other, &part, err));
    TD_TRY(field_word(r, 7, recompute_names, 3, other, &recompute, err));
    x.part = (stage_part)part;
    x.recompute = (recompute_mode)recompute;
    int64_t members = 0, busy = 0;
    TD_TRY(field_i64(r, 3, INT32_MAX, &x.layers, err));
    TD_TRY(field_i64(r, 4, INT32_MAX, &x.micro_batch, err));
    TD_TRY(field_i64(r, 5, INT32_MAX, &x.slice_len, err));
    TD_TRY(field_i64(r, 6, INT32_MAX, &x.prefix, err));
    TD_TRY(field_i64(r, 8, amount_max, &x.amount, err));
    TD_TRY(field_i64(r, 9, INT32_MAX, &members, err));
    TD_TRY(field_i64(r, 10, INT32_MAX, &busy, err));
    if (td_parse_f64(r->field[11], 0, 1e18, "ns", &x.ns, NULL) != TD_OK)
        return field_fail(r, 11, err, "wants a number above 0");
    x.members = (int32_t)members;
    x.busy = (int32_t)busy;
    const char *const flaw = sample_flaw(&x);
    if (flaw != NULL)
        return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: %s", r->name, r->line, flaw);
    return samples_add(out, &x, err);
}

static td_status parse_header(line_reader *r, char *line, samples *out, td_err *err)
{
    char *key = line + 1;
    key += strspn(key, " \t");
    char *value = key + strcspn(key, " \t\r");
    if (*value != '\0') *value++ = '\0';
    value += strspn(value, " \t");
    value[strcspn(value, "\r")] = '\0';
    if (key[0] == '\0') return TD_OK;
    if (strcmp(key, "samples") == 0) {
        int64_t n = 0;
        if (td_parse_i64(value, 0, INT32_MAX, key, &n, NULL) != TD_OK)
            return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: samples: wants their number", r->name,
                           r->line);
        r->declared += n;
        return TD_OK;
    }
    if (strcmp(key, "tandem-samples") != 0) return samples_header(out, key, value, err);
    if (strcmp(value, "1") == 0) return TD_OK;
    return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: version '%s': this program reads version 1",
                   r->name, r->line, value);
}

td_status samples_parse(const char *text, size_t len, const char *name, td_arena *a, samples *out,
                        td_err *err)
{
    *out = samples_new(a);
    char *const copy = td_alloc(a, len + 1, 1);
    if (copy == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", name);
    if (len > 0) memcpy(copy, text, len);
    line_reader r = {.name = name};
    for (char *at = copy; at < copy + len;) {
        char *const end = memchr(at, '\n', (size_t)(copy + len - at));
        if (end != NULL) *end = '\0';
        r.line++;
        r.start = at;
        const char *const first = at + strspn(at, " \t\r");
        if (at[0] == '#')
            TD_TRY(parse_header(&r, at, out, err));
        else if (*first != '\0')
            TD_TRY(parse_sample(&r, at, out, err));
        if (end == NULL) break;
        at = end + 1;
    }
    if ((int64_t)out->n < r.declared)
        return td_fail(err, TD_EPARSE,
                       "%s:%" PRId64 ":1: ends after %zu of %" PRId64 " samples; was it cut?", name,
                       r.line, out->n, r.declared);
    if (r.declared > 0 && len > 0 && text[len - 1] != '\n')
        return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: the last line has no end; was it cut?",
                       name, r.line);
    return TD_OK;
}

td_status samples_read(const char *path, td_arena *a, samples *out, td_err *err)
{
    char *text = NULL;
    size_t len = 0;
    TD_TRY(td_read_file(a, path, (size_t)64 << 20, &text, &len, err));
    return samples_parse(text, len, path, a, out, err);
}
