/* The text form of measurements. */
#include "base/text.h"
#include "costmodel/samples.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const what_names[] = {"pass",       "optimizer", "norm", "message",
                                         "all_reduce", "product",   "copy"};
static const char *const part_names[] = {"layers", "embedding", "head", "fused-head"};
static const char *const recompute_names[] = {"none", "selective", "full"};
static const char *const link_names[] = {"threads", "mpi", "tcp"};

enum {
    COLUMN_WHAT,
    COLUMN_PASS,
    COLUMN_PART,
    COLUMN_LAYERS,
    COLUMN_MICRO_BATCH,
    COLUMN_SLICE_LEN,
    COLUMN_PREFIX,
    COLUMN_RECOMPUTE,
    COLUMN_AMOUNT,
    COLUMN_MEMBERS,
    COLUMN_BUSY,
    COLUMN_NS,
    COLUMNS_1, /* version 1 ends here */
    COLUMN_TP = COLUMNS_1,
    COLUMN_WORDS,
    COLUMN_M,
    COLUMN_N,
    COLUMN_K,
    COLUMN_LINK,
    COLUMN_REPEATS,
    COLUMN_HALF_NS,
    COLUMN_SPREAD,
    COLUMN_OUTLIERS,
    COLUMN_WORST_NS,
    COLUMNS
};
static const char *const column_names[COLUMNS] = {
    "what",   "pass",    "part",    "layers",  "micro_batch", "slice_len", "prefix",  "recompute",
    "amount", "members", "busy",    "ns",      "tp",          "words",     "m",       "n",
    "k",      "link",    "repeats", "half_ns", "spread",      "outliers",  "worst_ns"};

static const int64_t amount_max = INT64_C(1) << 53;

const char *stage_part_name(stage_part part) { return part_names[part]; }
const char *sample_link_name(sample_link link) { return link_names[link]; }

/* --- print --- */

/* A number that reads back as it was, and as short as may be. */
static void add_real(td_text *out, double x)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits += 11) {
        (void)snprintf(text, sizeof text, "%.*g", digits, x);
        double back = 0;
        if (td_parse_f64(text, -1e300, 1e300, "", &back, NULL) == TD_OK && back >= x && back <= x)
            break;
    }
    td_text_addf(out, "\t%s", text);
}

static void print_one(const sample *x, td_text *out)
{
    const bool pass = x->what == SAMPLE_PASS;
    const bool between = x->what == SAMPLE_MESSAGE || x->what == SAMPLE_ALL_REDUCE;
    td_text_addf(out, "%s\t%c\t%s\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%" PRId64,
                 what_names[x->what], pass ? pass_letter(x->pass) : '-',
                 pass ? part_names[x->part] : "-", x->layers, x->micro_batch, x->slice_len,
                 x->prefix);
    td_text_addf(out, "\t%s\t%" PRId64 "\t%" PRId32 "\t%" PRId32,
                 pass ? recompute_names[x->recompute] : "-", x->amount, x->members, x->busy);
    add_real(out, x->ns);
    td_text_addf(out, "\t%" PRId32 "\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%" PRId64 "\t%s",
                 x->tp, x->words, x->shape[0], x->shape[1], x->shape[2],
                 between ? link_names[x->link] : "-");
    td_text_addf(out, "\t%" PRId32, x->repeats);
    add_real(out, x->half_ns);
    add_real(out, x->spread);
    td_text_addf(out, "\t%" PRId32, x->outliers);
    add_real(out, x->worst_ns);
    td_text_add(out, "\n");
}

void samples_print(const samples *s, td_text *out)
{
    td_text_addf(out, "# tandem-samples 2\n# samples %zu\n", s->n);
    for (size_t i = 0; i < s->n_headers; i++)
        td_text_addf(out, "# %s %s\n", s->headers[i].key, s->headers[i].value);
    for (int i = 0; i < COLUMNS; i++)
        td_text_addf(out, "%s%c", column_names[i], i + 1 < COLUMNS ? '\t' : '\n');
    for (size_t i = 0; i < s->n; i++) print_one(&s->items[i], out);
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
    const char *start;   /* of the line */
    int64_t declared;    /* samples by the headers; several files may stand one after another */
    int64_t version, tp; /* of the file at hand; version 1 has one tp for all its passes */
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
    const int want = r->version == 1 || (r->version == 0 && n == COLUMNS_1) ? COLUMNS_1 : COLUMNS;
    if (n != want)
        return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: has %d columns, a sample has %d", r->name,
                       r->line, n, want);
    if (r->version == 0) r->version = want == COLUMNS ? 2 : 1; /* nothing said so */
    return TD_OK;
}

static td_status field_f64(const line_reader *r, int column, double *out, td_err *err)
{
    if (td_parse_f64(r->field[column], 0, 1e18, column_names[column], out, NULL) != TD_OK)
        return field_fail(r, column, err, "wants a number, at least 0");
    return TD_OK;
}

static td_status parse_words(const line_reader *r, sample *x, td_err *err)
{
    int what = 0, part = 0, recompute = 0;
    TD_TRY(field_word(r, COLUMN_WHAT, what_names, SAMPLE_WHAT_COUNT, false, &what, err));
    x->what = (sample_what)what;
    const bool other = x->what != SAMPLE_PASS;
    const char *const letter = r->field[COLUMN_PASS];
    x->pass = other ? PASS_F : pass_from_letter(letter[0]);
    if (!other && (x->pass == PASS_COUNT || letter[1] != '\0'))
        return field_fail(r, COLUMN_PASS, err, "wants the letter of a pass");
    TD_TRY(field_word(r, COLUMN_PART, part_names, PART_COUNT, other, &part, err));
    TD_TRY(field_word(r, COLUMN_RECOMPUTE, recompute_names, 3, other, &recompute, err));
    x->part = (stage_part)part;
    x->recompute = (recompute_mode)recompute;
    return TD_OK;
}

/* What version 2 has more. */
static td_status parse_more(const line_reader *r, sample *x, td_err *err)
{
    int64_t tp = 0, repeats = 0, outliers = 0;
    int link = 0;
    const bool between = x->what == SAMPLE_MESSAGE || x->what == SAMPLE_ALL_REDUCE;
    TD_TRY(field_i64(r, COLUMN_TP, INT32_MAX, &tp, err));
    TD_TRY(field_i64(r, COLUMN_WORDS, INT32_MAX, &x->words, err));
    for (int i = 0; i < 3; i++) TD_TRY(field_i64(r, COLUMN_M + i, INT32_MAX, &x->shape[i], err));
    TD_TRY(field_word(r, COLUMN_LINK, link_names, LINK_COUNT, !between, &link, err));
    TD_TRY(field_i64(r, COLUMN_REPEATS, INT32_MAX, &repeats, err));
    TD_TRY(field_f64(r, COLUMN_HALF_NS, &x->half_ns, err));
    TD_TRY(field_f64(r, COLUMN_SPREAD, &x->spread, err));
    TD_TRY(field_i64(r, COLUMN_OUTLIERS, INT32_MAX, &outliers, err));
    TD_TRY(field_f64(r, COLUMN_WORST_NS, &x->worst_ns, err));
    if (tp < 1) return field_fail(r, COLUMN_TP, err, "wants at least 1");
    x->tp = (int32_t)tp;
    x->link = (sample_link)link;
    x->repeats = (int32_t)repeats;
    x->outliers = (int32_t)outliers;
    return TD_OK;
}

static td_status parse_sample(line_reader *r, char *line, samples *out, td_err *err)
{
    sample x = {.tp = (int32_t)r->tp};
    int64_t members = 0, busy = 0;
    TD_TRY(split_fields(r, line, err));
    if (strcmp(r->field[0], column_names[0]) == 0) return TD_OK;
    TD_TRY(parse_words(r, &x, err));
    TD_TRY(field_i64(r, COLUMN_LAYERS, INT32_MAX, &x.layers, err));
    TD_TRY(field_i64(r, COLUMN_MICRO_BATCH, INT32_MAX, &x.micro_batch, err));
    TD_TRY(field_i64(r, COLUMN_SLICE_LEN, INT32_MAX, &x.slice_len, err));
    TD_TRY(field_i64(r, COLUMN_PREFIX, INT32_MAX, &x.prefix, err));
    TD_TRY(field_i64(r, COLUMN_AMOUNT, amount_max, &x.amount, err));
    TD_TRY(field_i64(r, COLUMN_MEMBERS, INT32_MAX, &members, err));
    TD_TRY(field_i64(r, COLUMN_BUSY, INT32_MAX, &busy, err));
    TD_TRY(field_f64(r, COLUMN_NS, &x.ns, err));
    x.members = (int32_t)members;
    x.busy = (int32_t)busy;
    if (r->version > 1) TD_TRY(parse_more(r, &x, err));
    td_err why = {0};
    if (samples_add(out, &x, &why) == TD_OK) return TD_OK;
    return td_fail(err, why.code == TD_EUSAGE ? TD_EPARSE : why.code, "%s:%" PRId64 ":1: %s",
                   r->name, r->line, why.msg);
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
    if (strcmp(key, "tandem-samples") == 0) {
        if (td_parse_i64(value, 1, 2, key, &r->version, NULL) == TD_OK) return TD_OK;
        return td_fail(err, TD_EPARSE,
                       "%s:%" PRId64 ":1: version '%s': this program reads versions 1 and 2",
                       r->name, r->line, value);
    }
    if (strcmp(key, "tp") == 0 && td_parse_i64(value, 1, INT32_MAX, key, &r->tp, NULL) != TD_OK)
        return td_fail(err, TD_EPARSE, "%s:%" PRId64 ":1: tp: wants a whole number above 0",
                       r->name, r->line);
    const char *const before = samples_header_conflict(out, key, value);
    if (before != NULL)
        return td_fail(err, TD_EPARSE,
                       "%s:%" PRId64
                       ":1: %s: was '%s' above, is '%s' here; calibrate each bench by "
                       "itself",
                       r->name, r->line, key, before, value);
    return samples_header(out, key, value, err);
}

td_status samples_parse(const char *text, size_t len, const char *name, td_arena *a, samples *out,
                        td_err *err)
{
    *out = samples_new(a);
    char *const copy = td_alloc(a, len + 1, 1);
    if (copy == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", name);
    if (len > 0) memcpy(copy, text, len);
    line_reader r = {.name = name, .tp = 1};
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
