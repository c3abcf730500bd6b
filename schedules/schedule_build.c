/* Bodies of schedule_build.h and the small questions about schedules. */
#include "schedules/schedule_build.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

enum { ROWS_MAX = 65535, MICROBATCHES_MAX = 1 << 24, SLICES_MAX = 65535 };

td_status sched_new(td_arena *a, int64_t n_rows, int64_t n_stages, int64_t n_pipes,
                    int64_t n_microbatches, int64_t n_slices, schedule *out, td_err *err)
{
    if (n_rows < 1 || n_rows > ROWS_MAX || n_stages < 1 || n_stages > ROWS_MAX)
        return td_fail(err, TD_EUSAGE, "%lld pipeline rows and %lld stages: both must be 1 to %d",
                       (long long)n_rows, (long long)n_stages, ROWS_MAX);
    if (n_microbatches < 1 || n_microbatches > MICROBATCHES_MAX)
        return td_fail(err, TD_EUSAGE, "%lld microbatches: must be 1 to %d",
                       (long long)n_microbatches, MICROBATCHES_MAX);
    if (n_slices < 1 || n_slices > SLICES_MAX || n_pipes < 1 || n_pipes > ROWS_MAX)
        return td_fail(err, TD_EUSAGE, "%lld slices and %lld pipes: both must be 1 to %d",
                       (long long)n_slices, (long long)n_pipes, SLICES_MAX);
    *out = (schedule){.n_rows = (int32_t)n_rows,
                      .n_stages = (int32_t)n_stages,
                      .n_pipes = (int32_t)n_pipes,
                      .n_microbatches = (int32_t)n_microbatches,
                      .n_slices = (int32_t)n_slices};
    out->rows = TD_NEW_N(a, sched_row, n_rows);
    out->pipes = TD_NEW_N(a, sched_pipe, n_pipes);
    out->microbatch_pipe = TD_NEW_N(a, int32_t, n_microbatches);
    bool ok = out->rows != NULL && out->pipes != NULL && out->microbatch_pipe != NULL;
    for (int64_t p = 0; ok && p < n_pipes; p++) {
        sched_pipe *const pipe = &out->pipes[p];
        pipe->forward_row = TD_NEW_N(a, int32_t, n_stages);
        pipe->backward_row = TD_NEW_N(a, int32_t, n_stages);
        ok = pipe->forward_row != NULL && pipe->backward_row != NULL;
        for (int64_t s = 0; ok && s < n_stages; s++)
            pipe->forward_row[s] = pipe->backward_row[s] = -1;
    }
    return ok ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for a schedule");
}

td_status sched_new_sliced(td_arena *a, const sched_request *q, int64_t n_stages, schedule *out,
                           td_err *err)
{
    const int32_t slices = q->slices == 0 ? 2 : q->slices;
    TD_TRY(sched_new(a, q->pp, n_stages, 1, q->microbatches, slices, out, err));
    if ((int64_t)slices * q->microbatches > INT32_MAX / 4)
        return td_fail(err, TD_EUSAGE, "%d slices of %d microbatches: too many passes to count",
                       slices, q->microbatches);
    if (q->slice_tokens == NULL) return TD_OK;
    const size_t n = (size_t)slices;
    out->slice_tokens = TD_NEW_N(a, int32_t, n * (size_t)q->microbatches);
    if (out->slice_tokens == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (size_t m = 0; m < (size_t)q->microbatches; m++)
        memcpy(&out->slice_tokens[m * n], q->slice_tokens, n * sizeof *q->slice_tokens);
    return TD_OK;
}

row_writer row_writer_of(td_arena *a, schedule *s, int32_t row)
{
    return (row_writer){.arena = a, .row = &s->rows[row], .cap = (size_t)s->rows[row].n_cells};
}

void row_add_cell(row_writer *w, sched_cell c)
{
    if (w->failed) return;
    const size_t need = (size_t)w->row->n_cells + 1;
    if (TD_GROW(w->arena, w->row->cells, w->cap, need, NULL) != TD_OK) {
        w->failed = true;
        return;
    }
    w->row->cells[w->row->n_cells++] = c;
}

sched_cell sched_cell_of(pass_kind kind, int32_t stage, int32_t microbatch, int32_t slice)
{
    return (sched_cell){.kind = (uint8_t)kind,
                        .slice = (uint16_t)slice,
                        .stage = (uint16_t)stage,
                        .microbatch = microbatch};
}

void row_add(row_writer *w, pass_kind kind, int32_t stage, int32_t microbatch, int32_t slice)
{
    row_add_cell(w, sched_cell_of(kind, stage, microbatch, slice));
}

void row_add_pair(row_writer *w, sched_cell first, sched_cell second)
{
    first.overlaps = 1;
    row_add_cell(w, first);
    row_add_cell(w, second);
}

void sched_place(schedule *s, int32_t pipe, int32_t stage, int32_t row)
{
    s->pipes[pipe].forward_row[stage] = row;
    s->pipes[pipe].backward_row[stage] = row;
}

td_status sched_option_i64(const sched_request *q, const char *key, int64_t min, int64_t max,
                           int64_t fallback, int64_t *out, td_err *err)
{
    char name[80];
    (void)snprintf(name, sizeof name, "--opt %s", key);
    *out = fallback;
    for (int32_t i = 0; i < q->n_options; i++)
        if (strcmp(q->options[i].key, key) == 0)
            TD_TRY(td_parse_i64(q->options[i].value, min, max, name, out, err));
    return TD_OK;
}

td_status sched_option_choice(const sched_request *q, const char *key, const char *const *names,
                              int64_t *out, td_err *err)
{
    *out = 0;
    for (int32_t i = 0; i < q->n_options; i++) {
        if (strcmp(q->options[i].key, key) != 0) continue;
        int64_t at = 0;
        while (names[at] != NULL && strcmp(names[at], q->options[i].value) != 0) at++;
        if (names[at] == NULL) {
            char legal[200] = "";
            for (size_t k = 0, n = 0; names[k] != NULL && n < sizeof legal; k++)
                n += (size_t)snprintf(legal + n, sizeof legal - n, "%s%s", k > 0 ? ", " : "",
                                      names[k]);
            return td_fail(err, TD_EUSAGE, "--opt %s=%s: no such value; legal: %s", key,
                           q->options[i].value, legal);
        }
        *out = at;
    }
    return TD_OK;
}

td_status sched_need_even_ranks(const sched_request *q, const char *family, td_err *err)
{
    const int32_t p = q->pp;
    if (p % 2 == 0) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--pp %d: %s's two directions need an even number of ranks; legal: %d or %d", p,
                   family, p < 3 ? 2 : p - 1, p < 3 ? 4 : p + 1);
}

td_status sched_need_units(const sched_request *q, const char *family, int32_t unit,
                           const char *text, td_err *err)
{
    const int32_t m = q->microbatches, low = m < unit ? unit : m / unit * unit;
    if (m % unit == 0) return TD_OK;
    return td_fail(err, TD_EUSAGE, "--microbatches %d: %s runs units of %s=%d; legal: %d or %d", m,
                   family, text, unit, low, low + unit);
}

int32_t sched_copies(const schedule *s)
{
    return s->n_pipes * (s->weights == WEIGHTS_ALL_STEP && sched_is_disaggregated(s) ? 2 : 1);
}

bool sched_is_disaggregated(const schedule *s)
{
    for (int32_t p = 0; p < s->n_pipes; p++)
        for (int32_t st = 0; st < s->n_stages; st++)
            if (s->pipes[p].forward_row[st] != s->pipes[p].backward_row[st]) return true;
    return false;
}
