/* Unit times: "F=1,B=2,comm=0.1", or a file with one row a stage. */
#include "costmodel/cost.h"

#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const double time_max = 1e9; /* ms */

/* What one key sets: a pass, or one of the three others. */
typedef struct time_row {
    bool given[PASS_COUNT];
    double ms[PASS_COUNT];
} time_row;

typedef struct times_reader {
    const char *name; /* the file, or "--times" */
    int64_t line;     /* 0: not of a file */
    td_err *err;
} times_reader;

static td_status times_fail(const times_reader *r, td_status code, const char *word,
                            const char *why)
{
    if (r->line == 0) return td_fail(r->err, code, "%s: '%s': %s", r->name, word, why);
    return td_fail(r->err, code, "%s:%" PRId64 ":1: '%s': %s", r->name, r->line, word, why);
}

/* Takes one "key=value"; *is_pass says whether it was a pass. */
static td_status take_pair(const times_reader *r, char *word, time_row *row, unit_times *out,
                           bool *is_pass)
{
    const td_status code = r->line == 0 ? TD_EUSAGE : TD_EPARSE;
    char *const equals = strchr(word, '=');
    if (equals == NULL)
        return times_fail(r, code, word, "wants KEY=MS, keys are F B I W R S T E G FB comm coll");
    double ms = 0;
    if (td_parse_f64(equals + 1, 0, time_max, "time", &ms, NULL) != TD_OK)
        return times_fail(r, code, word, "wants a time from 0 to 1e9 ms");
    *equals = '\0';
    const pass_kind kind = pass_from_letter(word[0]);
    *is_pass = word[0] != '\0' && word[1] == '\0' && kind != PASS_COUNT;
    if (*is_pass) {
        if (row->given[kind]) return times_fail(r, code, word, "given twice");
        row->given[kind] = true;
        row->ms[kind] = ms;
        return TD_OK;
    }
    if (strcmp(word, "FB") == 0) {
        out->pair_given = true;
        out->pair_ms = ms;
    } else if (strcmp(word, "comm") == 0) {
        out->comm_ms = ms;
    } else if (strcmp(word, "coll") == 0) {
        out->coll_ms = ms;
    } else {
        return times_fail(r, code, word, "no such time; keys are F B I W R S T E G FB comm coll");
    }
    return TD_OK;
}

/* B, I, W and R follow from each other where they can. */
static td_status derive(const times_reader *r, time_row *t)
{
    const bool b = t->given[PASS_B], i = t->given[PASS_I], w = t->given[PASS_W];
    if (!b && i && w) t->ms[PASS_B] = t->ms[PASS_I] + t->ms[PASS_W];
    if (b && !i) t->ms[PASS_I] = w ? t->ms[PASS_B] - t->ms[PASS_W] : t->ms[PASS_B] / 2;
    if (b && !w) t->ms[PASS_W] = i ? t->ms[PASS_B] - t->ms[PASS_I] : t->ms[PASS_B] / 2;
    if (t->ms[PASS_I] < 0 || t->ms[PASS_W] < 0)
        return times_fail(r, r->line == 0 ? TD_EUSAGE : TD_EPARSE, "B",
                          "shorter than one of its halves I and W");
    t->given[PASS_B] = b || (i && w);
    t->given[PASS_I] = b || i;
    t->given[PASS_W] = b || w;
    if (!t->given[PASS_R] && t->given[PASS_F]) {
        t->given[PASS_R] = true;
        t->ms[PASS_R] = t->ms[PASS_F];
    }
    return TD_OK;
}

/* Takes a row of pairs; *passes counts those that are passes. */
static td_status take_row(const times_reader *r, char *text, time_row *row, unit_times *out,
                          int *passes)
{
    char *save = NULL;
    *passes = 0;
    for (char *w = strtok_r(text, ", \t\r", &save); w != NULL;
         w = strtok_r(NULL, ", \t\r", &save)) {
        bool is_pass = false;
        TD_TRY(take_pair(r, w, row, out, &is_pass));
        *passes += is_pass;
    }
    return TD_OK;
}

/* --- a file --- */

typedef struct stage_rows {
    double *ms; /* [n * PASS_COUNT] */
    size_t cap;
    int32_t n;
} stage_rows;

static td_status store_row(const times_reader *r, td_arena *a, const time_row *row, stage_rows *out)
{
    TD_TRY(TD_GROW(a, out->ms, out->cap, (size_t)(out->n + 1) * PASS_COUNT, r->err));
    for (int k = 0; k < PASS_COUNT; k++)
        out->ms[(size_t)out->n * PASS_COUNT + (size_t)k] = row->given[k] ? row->ms[k] : -1;
    out->n++;
    return TD_OK;
}

/* "stage 3: F=1,B=2", "F=1,B=2" for the next stage, or "comm=0.1" for all. */
static td_status take_line(const times_reader *r, td_arena *a, char *line, stage_rows *rows,
                           unit_times *out)
{
    char *text = line + strspn(line, " \t\r");
    if (*text == '\0' || *text == '#') return TD_OK;
    const bool named = strncmp(text, "stage", 5) == 0;
    if (named) {
        char *const colon = strchr(text, ':');
        if (colon == NULL) return times_fail(r, TD_EPARSE, text, "wants 'stage N: F=...'");
        *colon = '\0';
        char *const number = text + 5 + strspn(text + 5, " \t");
        int64_t stage = 0;
        if (td_parse_i64(number, 0, 65535, "stage", &stage, NULL) != TD_OK || stage != rows->n) {
            char why[64];
            (void)snprintf(why, sizeof why,
                           "stages come in order, this is the row of stage %" PRId32, rows->n);
            return times_fail(r, TD_EPARSE, text, why);
        }
        text = colon + 1;
    }
    time_row row = {0};
    int passes = 0;
    TD_TRY(take_row(r, text, &row, out, &passes));
    if (passes == 0) return named ? times_fail(r, TD_EPARSE, line, "has no pass times") : TD_OK;
    if (rows->n > 65535) return times_fail(r, TD_EPARSE, line, "over 65536 stages");
    TD_TRY(derive(r, &row));
    return store_row(r, a, &row, rows);
}

static td_status parse_file(const char *path, td_arena *a, unit_times *out, td_err *err)
{
    char *text = NULL;
    size_t len = 0;
    stage_rows rows = {0};
    times_reader r = {.name = path, .err = err};
    TD_TRY(td_read_file(a, path, (size_t)1 << 24, &text, &len, err));
    for (char *line = text; line != NULL;) {
        char *const end = strchr(line, '\n');
        if (end != NULL) *end = '\0';
        r.line++;
        TD_TRY(take_line(&r, a, line, &rows, out));
        line = end != NULL ? end + 1 : NULL;
    }
    if (rows.n == 0)
        return td_fail(err, TD_EPARSE, "%s: no rows; wants one a stage, 'F=1,B=2'", path);
    out->stage_pass_ms = rows.ms;
    out->n_stages = rows.n;
    return TD_OK;
}

td_status unit_times_parse(const char *text_or_path, td_arena *a, unit_times *out, td_err *err)
{
    *out = (unit_times){0};
    if (strchr(text_or_path, '=') == NULL) {
        if (strpbrk(text_or_path, "/.") == NULL && strcmp(text_or_path, "-") != 0 &&
            strlen(text_or_path) < 3)
            return td_fail(err, TD_EUSAGE, "--times: '%s': wants F=1,B=2 (ms) or a file",
                           text_or_path);
        return parse_file(text_or_path, a, out, err);
    }
    char *const copy = td_strdup(a, text_or_path);
    if (copy == NULL) return td_fail(err, TD_ENOMEM, "--times: out of memory");
    const times_reader r = {.name = "--times", .err = err};
    time_row row = {0};
    int passes = 0;
    TD_TRY(take_row(&r, copy, &row, out, &passes));
    TD_TRY(derive(&r, &row));
    memcpy(out->given, row.given, sizeof out->given);
    memcpy(out->pass_ms, row.ms, sizeof out->pass_ms);
    return TD_OK;
}
