/* The text form of a plan, read back. Errors name line and column; the result is checked like any
 * other plan before it is given out. */
#include "schedules/plan_table.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { TABLES_MAX = 16 };

typedef struct plan_reader {
    const char *name, *line, *at, *end; /* of the file; the line at hand */
    int line_no;
    td_arena *a;
    td_err *err;
    plan *p;
    size_t cap[TABLES_MAX];
    bool head;
    int32_t n_stages;
} plan_reader;

static td_status bad(const plan_reader *r, const char *why)
{
    return td_fail(r->err, TD_EPARSE, "%s:%d:%d: %s", r->name, r->line_no,
                   (int)(r->at - r->line) + 1, why);
}

/* The text up to the next blank or one of `stops`. */
static size_t word(const plan_reader *r, char stop)
{
    const char *c = r->at;
    while (c < r->end && *c != ' ' && *c != stop) c++;
    return (size_t)(c - r->at);
}

static bool is_word(const char *text, size_t n, const char *name)
{
    if (strlen(name) != n) return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] != (name[i] == ' ' ? '_' : name[i])) return false;
    return true;
}

static td_status read_number(plan_reader *r, size_t n, int64_t *out)
{
    const bool negative = n > 0 && r->at[0] == '-';
    int64_t v = 0;
    if (n == (negative ? 1u : 0u)) return bad(r, "a number is missing");
    for (size_t i = negative; i < n; i++) {
        if (!isdigit((unsigned char)r->at[i])) return bad(r, "not a number");
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, r->at[i] - '0', &v))
            return bad(r, "the number does not fit 64 bits");
    }
    *out = negative ? -v : v;
    return TD_OK;
}

static td_status read_value(plan_reader *r, const plan_field *f, void *record)
{
    const size_t n = word(r, ' ');
    int64_t value = 0;
    if (f->words != NULL) {
        while (value < f->n_words && !is_word(r->at, n, f->words[value])) value++;
        if (value == f->n_words) return bad(r, "unknown word for this field");
    } else if (n == 1 && *r->at == '-' && f->size == 4 && !f->is_signed) {
        value = PLAN_NONE;
    } else {
        TD_TRY(read_number(r, n, &value));
    }
    if (!plan_field_fits(f, value)) return bad(r, "the value does not fit this field");
    plan_field_set(record, f, value);
    r->at += n;
    return TD_OK;
}

static td_status read_record(plan_reader *r, const plan_field *fields, size_t n, void *record)
{
    for (size_t i = 0; i < n; i++) {
        while (r->at < r->end && *r->at == ' ') r->at++;
        const size_t w = word(r, '=');
        if (!is_word(r->at, w, fields[i].name) || r->at + w >= r->end || r->at[w] != '=') {
            char why[100];
            (void)snprintf(why, sizeof why, "expected %s=", fields[i].name);
            return bad(r, why);
        }
        r->at += w + 1;
        TD_TRY(read_value(r, &fields[i], record));
    }
    while (r->at < r->end && *r->at == ' ') r->at++;
    return r->at == r->end ? TD_OK : bad(r, "unexpected text behind the record");
}

static td_status read_index(plan_reader *r, uint32_t expected)
{
    while (r->at < r->end && *r->at == ' ') r->at++;
    const size_t n = word(r, ' ');
    int64_t index = -1;
    TD_TRY(read_number(r, n, &index));
    if (index != (int64_t)expected) return bad(r, "records must be numbered from 0 without gaps");
    r->at += n;
    return TD_OK;
}

static td_status read_table_record(plan_reader *r, size_t t)
{
    const plan_table *const table = &plan_tables[t];
    uint32_t *const count = (uint32_t *)(void *)((char *)r->p + table->count_offset);
    void **const array = (void **)(void *)((char *)r->p + table->array_offset);
    TD_TRY(read_index(r, *count));
    if (*count >= PLAN_NONE - 2) return bad(r, "too many records");
    /* one record more than there are: the tasks' array ends with a sentinel */
    TD_TRY(td_grow(r->a, array, &r->cap[t], (size_t)*count + 2, table->record_bytes, r->err));
    return read_record(r, table->fields, table->n_fields,
                       (char *)*array + (size_t)(*count)++ * table->record_bytes);
}

static td_status read_stage(plan_reader *r)
{
    if (!r->head || r->n_stages >= r->p->n_stages) return bad(r, "more stages than the plan has");
    if (r->p->stages == NULL) r->p->stages = TD_NEW_N(r->a, stage_desc, r->p->n_stages);
    if (r->p->stages == NULL) return td_fail(r->err, TD_ENOMEM, "out of memory for stages");
    TD_TRY(read_index(r, (uint32_t)r->n_stages));
    return read_record(r, plan_stage_fields, plan_stage_n_fields, &r->p->stages[r->n_stages++]);
}

static td_status read_head(plan_reader *r)
{
    if (r->head) return bad(r, "a second plan line");
    TD_TRY(read_record(r, plan_head_fields, plan_head_n_fields, r->p));
    const plan *const p = r->p;
    if (p->n_stages < 1 || p->n_stages > UINT16_MAX || p->n_rows < 1 || p->n_pipes < 1 ||
        p->n_microbatches < 1 || p->n_microbatches > 1 << 24 || p->n_slices < 1 ||
        p->n_slices > UINT16_MAX || p->seq_len < 1 || p->chunks < 1 || p->dp < 1 || p->tp < 1)
        return bad(r, "a size of the plan is out of range");
    r->head = true;
    return TD_OK;
}

static char *copy_rest(plan_reader *r, size_t skip)
{
    char *const s = TD_NEW_N(r->a, char, (size_t)(r->end - r->line) + 1);
    if (s != NULL) memcpy(s, r->line + skip, (size_t)(r->end - r->line) - skip);
    return s;
}

static bool starts(const plan_reader *r, const char *prefix)
{
    const size_t n = strlen(prefix);
    return (size_t)(r->end - r->line) >= n && memcmp(r->line, prefix, n) == 0;
}

static td_status read_line(plan_reader *r)
{
    r->at = r->line;
    if (r->line == r->end) return TD_OK;
    if (starts(r, "# schedule ")) r->p->schedule_name = copy_rest(r, 11);
    if (starts(r, "# after ")) r->p->stage_of_run = copy_rest(r, 8);
    if (*r->line == '#') return TD_OK;
    const size_t n = word(r, ' ');
    const char *const name = r->at;
    r->at += n;
    if (is_word(name, n, "plan")) return read_head(r);
    if (!r->head)
        return bad(r, "no plan line before this, so this is no plan; --schedule reads schedules");
    if (is_word(name, n, "stage")) return read_stage(r);
    for (size_t t = 0; t < plan_n_tables; t++)
        if (is_word(name, n, plan_tables[t].name)) return read_table_record(r, t);
    r->at = name;
    return bad(r, "unknown record");
}

/* The checker's tables are as large as stages x microbatches x slices: refuse a plan whose sizes
 * its tasks cannot fill. */
static td_status check_claims(const plan_reader *r)
{
    const plan *const p = r->p;
    const double slots = (double)p->n_stages * p->n_microbatches * p->n_slices;
    if (slots > (double)p->n_tasks + p->n_members)
        return td_fail(r->err, TD_EPLAN, "%s: %u tasks cannot train %d stages on %d microbatches",
                       r->name, p->n_tasks, p->n_stages, p->n_microbatches);
    if (p->stages != NULL && r->n_stages != p->n_stages)
        return td_fail(r->err, TD_EPARSE, "%s: %d of %d stages described: cut short?", r->name,
                       r->n_stages, p->n_stages);
    return TD_OK;
}

td_status plan_parse(const char *text, size_t len, const char *name, td_arena *a, plan *out,
                     td_err *err)
{
    *out = (plan){0};
    plan_reader r = {.name = name, .a = a, .err = err, .p = out};
    for (const char *at = text; at < text + len;) {
        const char *const nl = memchr(at, '\n', (size_t)(text + len - at));
        r.line = at;
        r.end = nl == NULL ? text + len : nl;
        at = nl == NULL ? text + len : nl + 1;
        r.line_no++;
        TD_TRY(read_line(&r));
    }
    if (!r.head || out->n_tasks == 0)
        return td_fail(err, TD_EPARSE, "%s:%d:1: no plan in it, or cut short", name, r.line_no + 1);
    out->tasks[out->n_tasks] = (plan_task){.first_use = out->n_uses};
    TD_TRY(check_claims(&r));
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const td_status st = plan_check(out, scratch, err);
    td_arena_free(scratch);
    return st == TD_OK ? TD_OK : td_wrap(err, "%s", name);
}
