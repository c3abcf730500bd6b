/* The text form of a schedule, read. Two kinds of file share one grammar of rows: ours, whose
 * headers say where stages live, and the plain torch form, where rows are ranks and stages live
 * where their passes are. Errors name line and column. */
#include "base/text.h"
#include "schedules/schedule_build.h"
#include "schedules/schedule_text.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

typedef struct parser {
    const char *name;       /* of the file */
    const char *line, *end; /* the line at hand */
    int line_no;
    td_arena *a;
    td_err *err;
    schedule *s;
    bool headers, sized, has_slices, legacy;
    unsigned sizes_given; /* a bit for each header that is a size */
    sched_row *rows;
    size_t n_rows, cap_rows;
    size_t cap_sync;
} parser;

static td_status bad(const parser *p, const char *at, const char *why)
{
    return td_fail(p->err, TD_EPARSE, "%s:%d:%d: %s", p->name, p->line_no, (int)(at - p->line) + 1,
                   why);
}

static bool parse_number(const char **at, const char *end, int64_t max, int64_t *out)
{
    const char *c = *at;
    int64_t v = 0;
    if (c >= end || !isdigit((unsigned char)*c)) return false;
    for (; c < end && isdigit((unsigned char)*c); c++) {
        v = v * 10 + (*c - '0');
        if (v > max) return false;
    }
    *out = v;
    *at = c;
    return true;
}

/* --- cells --- */

/* The kind at *at; the longest word wins, so that SEND_F is never S. */
static bool parse_kind(const parser *p, const char **at, const char *end, int *kind)
{
    size_t best = 0;
    for (int k = 0; k < CELL_IDLE; k++) {
        const char letter[2] = {k < PASS_COUNT ? pass_letter((pass_kind)k) : '\0', '\0'};
        const char *const word = k < PASS_COUNT ? letter : sched_action_name(k);
        const size_t n = strlen(word);
        if (n > best && (size_t)(end - *at) >= n && memcmp(*at, word, n) == 0) {
            best = n;
            *kind = k;
        }
    }
    if (p->legacy && end - *at >= 2 && memcmp(*at, "BW", 2) == 0) {
        *kind = PASS_B;
        best = 2;
    } else if (p->legacy && best == 1 && *kind == PASS_B) {
        *kind = PASS_I;
    }
    *at += best;
    return best > 0;
}

static td_status parse_simple(parser *p, const char **at, const char *end, sched_cell *out)
{
    const char *const start = *at;
    int64_t stage = 0, m = -1, k = 0;
    int kind = 0;
    if (!parse_number(at, end, UINT16_MAX, &stage))
        return bad(p, start, "a cell starts with its stage, like 2F7");
    if (!parse_kind(p, at, end, &kind))
        return bad(p, *at,
                   "unknown pass; legal: F B I W R S T E G, SEND_F RECV_F SEND_B RECV_B "
                   "UNSHARD RESHARD REDUCE_GRAD");
    if (sched_action_has_microbatch(kind)) {
        if (!parse_number(at, end, INT32_MAX / 4, &m))
            return bad(p, *at, "this pass needs a microbatch number");
        if (*at < end && **at == '.') {
            (*at)++;
            p->has_slices = true;
            if (!parse_number(at, end, UINT16_MAX - 1, &k))
                return bad(p, *at, "a slice number is missing after the dot");
        }
    }
    *out = (sched_cell){.kind = (uint8_t)kind,
                        .slice = (uint16_t)k,
                        .stage = (uint16_t)stage,
                        .microbatch = (int32_t)m};
    return TD_OK;
}

static td_status parse_overlap(parser *p, const char **at, const char *end, row_writer *w)
{
    static const char word[] = ")OVERLAP_F_B";
    (*at)++;
    for (;;) {
        sched_cell c;
        TD_TRY(parse_simple(p, at, end, &c));
        if (!sched_is_pass(&c)) return bad(p, *at, "only passes can overlap");
        if (*at < end && **at == ';') {
            c.overlaps = 1;
            row_add_cell(w, c);
            (*at)++;
            continue;
        }
        row_add_cell(w, c);
        if ((size_t)(end - *at) < sizeof word - 1 || memcmp(*at, word, sizeof word - 1) != 0)
            return bad(p, *at, "an overlapped cell ends with )OVERLAP_F_B");
        *at += sizeof word - 1;
        return TD_OK;
    }
}

static td_status parse_cell(parser *p, const char *at, const char *end, row_writer *w)
{
    while (at < end && isspace((unsigned char)*at)) at++;
    while (end > at && isspace((unsigned char)end[-1])) end--;
    if (at == end || (end - at == 2 && memcmp(at, "\"\"", 2) == 0)) {
        row_add_cell(w, (sched_cell){.kind = CELL_IDLE, .microbatch = -1});
        return TD_OK;
    }
    if (*at == '(') {
        TD_TRY(parse_overlap(p, &at, end, w));
    } else {
        sched_cell c;
        TD_TRY(parse_simple(p, &at, end, &c));
        row_add_cell(w, c);
    }
    return at == end ? TD_OK
                     : bad(p, at, "unexpected text after the pass; a comma stands between passes");
}

static td_status parse_row(parser *p)
{
    TD_TRY(TD_GROW(p->a, p->rows, p->cap_rows, p->n_rows + 1, p->err));
    sched_row *const row = &p->rows[p->n_rows++];
    *row = (sched_row){0};
    row_writer w = {.arena = p->a, .row = row};
    const char *at = p->line;
    if (at == p->end) return TD_OK; /* a blank line: a rank with no action */
    for (;;) {
        const char *const comma = memchr(at, ',', (size_t)(p->end - at));
        const char *const end = comma == NULL ? p->end : comma;
        TD_TRY(parse_cell(p, at, end, &w));
        if (comma == NULL) break;
        at = comma + 1;
    }
    return w.failed ? td_fail(p->err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

/* --- headers --- */

static td_status header_list(const parser *p, const char *value, int64_t n, int32_t **out)
{
    int64_t *items = NULL;
    size_t got = 0;
    td_err inner = {0};
    if (td_parse_i64_list(p->a, value, "list", &items, &got, &inner) != TD_OK)
        return bad(p, p->line, inner.msg);
    if (n >= 0 && (int64_t)got != n) {
        char why[120];
        (void)snprintf(why, sizeof why, "%zu numbers where %lld are needed", got, (long long)n);
        return bad(p, p->line, why);
    }
    *out = TD_NEW_N(p->a, int32_t, got + 1);
    if (*out == NULL) return td_fail(p->err, TD_ENOMEM, "out of memory");
    for (size_t i = 0; i < got; i++) {
        if (items[i] < 0 || items[i] > INT32_MAX - 1) return bad(p, p->line, "number out of range");
        (*out)[i] = (int32_t)items[i];
    }
    (*out)[got] = -1;
    return TD_OK;
}

/* Whether the header starts with these words; *value is what follows. Each %d takes a number. */
static bool words(const char *text, const char *format, int64_t *numbers, const char **value)
{
    for (; *format != '\0'; format++) {
        if (*format == '%') {
            const char *at = text;
            if (!parse_number(&at, text + strlen(text), INT32_MAX - 1, numbers++)) return false;
            text = at;
        } else if (*format == ' ') {
            if (*text != ' ' && *text != '\0') return false;
            while (*text == ' ') text++;
        } else if (*format != *text++) {
            return false;
        }
    }
    if (*text != '\0' && *text != ' ') return false;
    while (*text == ' ') text++;
    *value = text;
    return true;
}

enum { CELLS_MAX = 1 << 24 };

static td_status open_schedule(parser *p)
{
    if (p->sized) return TD_OK;
    schedule *const s = p->s;
    if (s->n_stages == 0 || s->n_microbatches == 0)
        return bad(p, p->line, "the headers \"stages\" and \"microbatches\" come before this one");
    if ((int64_t)s->n_stages * s->n_pipes > CELLS_MAX ||
        (int64_t)s->n_microbatches * s->n_slices > CELLS_MAX * 4)
        return bad(p, p->line, "more stages or microbatches than can be held");
    const schedule sizes = *s;
    td_err inner = {0};
    if (sched_new(p->a, 1, sizes.n_stages, sizes.n_pipes, sizes.n_microbatches, sizes.n_slices, s,
                  &inner) != TD_OK)
        return bad(p, p->line, inner.msg);
    p->sized = true;
    return TD_OK;
}

/* Sizes that must be known before anything else. */
static td_status header_sizes(parser *p, const char *text, bool *known)
{
    const char *value = NULL;
    int64_t n[2] = {0};
    struct {
        const char *format;
        int32_t *field;
        int64_t max;
    } const fields[] = {{"stages %", &p->s->n_stages, UINT16_MAX},
                        {"microbatches %", &p->s->n_microbatches, 1 << 24},
                        {"slices %", &p->s->n_slices, UINT16_MAX},
                        {"pipes %", &p->s->n_pipes, UINT16_MAX}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!words(text, fields[i].format, n, &value) || *value != '\0') continue;
        if (p->sized) return bad(p, p->line, "sizes come before the other headers");
        if (n[0] < 1 || n[0] > fields[i].max) return bad(p, p->line, "size out of range");
        if ((p->sizes_given & 1U << i) != 0) return bad(p, p->line, "given twice");
        p->sizes_given |= 1U << i;
        *fields[i].field = (int32_t)n[0];
        *known = true;
    }
    return TD_OK;
}

static td_status header_pipes(parser *p, const char *text, bool *known)
{
    const char *value = NULL;
    int64_t n[1] = {0};
    const int what = words(text, "pipe % rows", n, &value)            ? 1
                     : words(text, "pipe % microbatches", n, &value)  ? 2
                     : words(text, "role % backward rows", n, &value) ? 3
                                                                      : 0;
    if (what == 0) return TD_OK;
    *known = true;
    TD_TRY(open_schedule(p));
    if (n[0] >= p->s->n_pipes) return bad(p, p->line, "no such pipe; \"# pipes N\" says how many");
    int32_t *list = NULL;
    TD_TRY(header_list(p, value, what == 2 ? -1 : p->s->n_stages, &list));
    const size_t bytes = (size_t)p->s->n_stages * sizeof *list;
    sched_pipe *const pipe = &p->s->pipes[n[0]];
    if (what == 1) memcpy(pipe->forward_row, list, bytes);
    if (what != 2) memcpy(pipe->backward_row, list, bytes);
    for (; what == 2 && *list >= 0; list++) {
        if (*list >= p->s->n_microbatches) return bad(p, p->line, "no such microbatch");
        p->s->microbatch_pipe[*list] = (int32_t)n[0];
    }
    return TD_OK;
}

static td_status header_slice_tokens(parser *p, int64_t m, const char *value)
{
    TD_TRY(open_schedule(p));
    schedule *const s = p->s;
    if (m >= s->n_microbatches) return bad(p, p->line, "no such microbatch");
    int32_t *list = NULL;
    TD_TRY(header_list(p, value, s->n_slices, &list));
    const size_t n = (size_t)s->n_slices;
    if (s->slice_tokens == NULL)
        s->slice_tokens = TD_NEW_N(p->a, int32_t, n * (size_t)s->n_microbatches);
    if (s->slice_tokens == NULL) return td_fail(p->err, TD_ENOMEM, "out of memory for slices");
    for (int64_t i = m < 0 ? 0 : m; i < (m < 0 ? s->n_microbatches : m + 1); i++)
        memcpy(&s->slice_tokens[(size_t)i * n], list, n * sizeof *list);
    return TD_OK;
}

static td_status header_sync_at(parser *p, const int64_t *n, const char *value)
{
    TD_TRY(open_schedule(p));
    schedule *const s = p->s;
    TD_TRY(TD_GROW(p->a, s->sync_at, p->cap_sync, s->n_sync_at + 1, p->err));
    sched_sync_at *const at = &s->sync_at[s->n_sync_at++];
    *at = (sched_sync_at){.stage = (int32_t)n[0], .row = (int32_t)n[1]};
    TD_TRY(parse_simple(p, &value, value + strlen(value), &at->cell));
    if (*value != '\0' || !sched_is_pass(&at->cell) || at->stage >= s->n_stages ||
        at->cell.stage >= s->n_stages || at->cell.microbatch >= s->n_microbatches ||
        at->cell.slice >= s->n_slices)
        return bad(p, p->line, "a sync names a stage, a row and one of that row's passes");
    return TD_OK;
}

static td_status header_options(parser *p, const char *text, bool *known)
{
    const char *value = NULL;
    int64_t n[2] = {0};
    schedule *const s = p->s;
    *known = true;
    if (words(text, "slice-tokens of %:", n, &value)) return header_slice_tokens(p, n[0], value);
    if (words(text, "slice-tokens", n, &value)) return header_slice_tokens(p, -1, value);
    if (words(text, "sync stage % row % at", n, &value)) return header_sync_at(p, n, value);
    if (words(text, "layers", n, &value) || words(text, "credits", n, &value)) {
        TD_TRY(open_schedule(p));
        return header_list(p, value, s->n_stages, text[0] == 'l' ? &s->layers : &s->credits);
    }
    TD_TRY(open_schedule(p));
    if (words(text, "tp forward % backward %", n, &value) && *value == '\0') {
        s->tp_forward = (int32_t)n[0];
        s->tp_backward = (int32_t)n[1];
    } else if (strcmp(text, "handoff direct") == 0)
        s->handoff = HANDOFF_DIRECT;
    else if (strcmp(text, "handoff lagged") == 0)
        s->handoff = HANDOFF_LAGGED;
    else if (strcmp(text, "weights refresh") == 0)
        s->weights = WEIGHTS_REFRESH;
    else if (strcmp(text, "weights all-step") == 0)
        s->weights = WEIGHTS_ALL_STEP;
    else if (strcmp(text, "vocab 1") == 0)
        s->vocab = VOCAB_1;
    else if (strcmp(text, "vocab 2") == 0)
        s->vocab = VOCAB_2;
    else if (strcmp(text, "vocab 1 repo-edge") == 0 || strcmp(text, "vocab 2 repo-edge") == 0) {
        s->vocab = text[6] == '1' ? VOCAB_1 : VOCAB_2;
        s->vocab_edge = true;
    } else if (strcmp(text, "vocab interlaced") == 0)
        s->vocab = VOCAB_INTERLACED;
    else if (strcmp(text, "sync eager") == 0)
        s->sync = SYNC_EAGER;
    else if (strcmp(text, "sync end") == 0)
        s->sync = SYNC_END;
    else if (strcmp(text, "validate") == 0)
        s->validate = true;
    else
        *known = false;
    return TD_OK;
}

static td_status parse_header(parser *p)
{
    const char *at = p->line + 1;
    while (at < p->end && *at == ' ') at++;
    char *const text = TD_NEW_N(p->a, char, p->end - at + 1);
    if (text == NULL) return td_fail(p->err, TD_ENOMEM, "out of memory");
    memcpy(text, at, (size_t)(p->end - at));
    for (size_t n = strlen(text); n > 0 && text[n - 1] == ' '; n--) text[n - 1] = '\0';
    if (p->n_rows > 0) return bad(p, p->line, "headers come before the rows");
    if (strcmp(text, "tandem schedule 1") == 0) {
        p->headers = true;
        return TD_OK;
    }
    if (strncmp(text, "tandem ", strlen("tandem ")) == 0)
        return bad(p, p->line, "another kind or version of file; this reads tandem schedule 1");
    if (!p->headers) return TD_OK; /* a comment in somebody else's file */
    bool known = false;
    TD_TRY(header_sizes(p, text, &known));
    if (!known) TD_TRY(header_pipes(p, text, &known));
    if (!known) TD_TRY(header_options(p, text, &known));
    return known ? TD_OK : bad(p, p->line, "unknown header");
}

/* --- the plain torch form --- */

static td_status size_from_rows(parser *p)
{
    schedule *const s = p->s;
    for (size_t r = 0; r < p->n_rows; r++)
        for (int64_t i = 0; i < p->rows[r].n_cells; i++) {
            const sched_cell *const c = &p->rows[r].cells[i];
            if (c->kind == CELL_IDLE) continue;
            if (c->stage >= s->n_stages) s->n_stages = c->stage + 1;
            if (c->microbatch >= s->n_microbatches) s->n_microbatches = c->microbatch + 1;
            if (c->slice >= s->n_slices) s->n_slices = c->slice + 1;
        }
    if (s->n_microbatches == 0) return td_fail(p->err, TD_EPARSE, "%s: no pass in it", p->name);
    p->line = p->end = "";
    TD_TRY(open_schedule(p));
    for (size_t r = 0; r < p->n_rows; r++)
        for (int64_t i = 0; i < p->rows[r].n_cells; i++) {
            const sched_cell *const c = &p->rows[r].cells[i];
            if (!sched_is_pass(c)) continue;
            int32_t *const home = &s->pipes[0].forward_row[c->stage];
            if (*home >= 0 && *home != (int32_t)r)
                return td_fail(p->err, TD_EPARSE,
                               "%s:%zu: stage %d is also on row %d; the plain form has one row a "
                               "stage, use \"# tandem schedule 1\" with pipes or roles",
                               p->name, r + 1, c->stage, *home);
            *home = s->pipes[0].backward_row[c->stage] = (int32_t)r;
        }
    return TD_OK;
}

static td_status check_homes(const parser *p)
{
    const schedule *const s = p->s;
    for (int32_t i = 0; i < s->n_pipes; i++)
        for (int32_t st = 0; st < s->n_stages; st++) {
            const int32_t f = s->pipes[i].forward_row[st], b = s->pipes[i].backward_row[st];
            if (f < 0 || b < 0 || f >= s->n_rows || b >= s->n_rows)
                return td_fail(p->err, TD_EPARSE, "%s: stage %d of pipe %d lives on no row%s",
                               p->name, st, i, p->headers ? "" : ": it has no pass");
        }
    return TD_OK;
}

td_status sched_parse(const char *text, size_t len, const char *name, td_arena *a, schedule *out,
                      td_err *err)
{
    *out = (schedule){.name = name, .n_pipes = 1, .n_slices = 1};
    parser p = {.name = name, .a = a, .err = err, .s = out};
    const size_t mark = td_byte_order_mark(text, len);
    text += mark;
    len -= mark;
    /* before late 2024 torch wrote B for the input gradient and BW for the whole backward */
    for (size_t i = 0; i + 2 < len && text[0] != '#' && !p.legacy; i++)
        p.legacy = text[i] == 'B' && text[i + 1] == 'W' && isdigit((unsigned char)text[i + 2]);
    const char *const end = text + len;
    for (const char *at = text; at < end;) {
        const char *const nl = memchr(at, '\n', (size_t)(end - at));
        p.line = at;
        p.end = nl == NULL ? end : nl;
        at = nl == NULL ? end : nl + 1;
        if (p.end > p.line && p.end[-1] == '\r') p.end--;
        p.line_no++;
        if (p.end > p.line && memchr(p.line, '\0', (size_t)(p.end - p.line)) != NULL)
            return bad(&p, p.line, "a zero byte: this is not a schedule");
        TD_TRY(p.line < p.end && *p.line == '#' ? parse_header(&p) : parse_row(&p));
    }
    if (p.n_rows == 0) return td_fail(err, TD_EPARSE, "%s: no rows in it", name);
    if (p.n_rows > UINT16_MAX) return td_fail(err, TD_EPARSE, "%s: more than 65535 rows", name);
    p.line = p.end = "";
    if (p.headers)
        TD_TRY(open_schedule(&p));
    else
        TD_TRY(size_from_rows(&p));
    if (p.has_slices && out->n_slices == 1)
        return td_fail(err, TD_EPARSE, "%s: slices in the cells, but no \"# slices\" header", name);
    out->n_rows = (int32_t)p.n_rows;
    out->rows = p.rows;
    out->name = name;
    return check_homes(&p);
}
