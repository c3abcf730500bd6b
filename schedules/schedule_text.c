/* The text form of a schedule, printed; and equality. Headers come first, then one CSV row a
 * pipeline position. */
#include "schedules/schedule_text.h"

#include <string.h>

static const char *const action_names[] = {
#define X(kind, text, has_microbatch) text,
    SCHED_ACTIONS(X)
#undef X
};

const char *sched_action_name(int kind)
{
    return kind >= PASS_COUNT && kind < CELL_IDLE ? action_names[kind - PASS_COUNT] : NULL;
}

bool sched_action_has_microbatch(int kind)
{
    static const bool has[] = {
#define X(k, text, has_microbatch) has_microbatch,
        SCHED_ACTIONS(X)
#undef X
    };
    return kind < PASS_COUNT || (kind < CELL_IDLE && has[kind - PASS_COUNT]);
}

void sched_print_cell(const sched_cell *c, int32_t n_slices, td_text *out)
{
    if (c->kind == CELL_IDLE) return;
    td_text_addf(out, "%u", (unsigned)c->stage);
    if (sched_is_pass(c))
        td_text_addf(out, "%c", pass_letter((pass_kind)c->kind));
    else
        td_text_add(out, action_names[c->kind - PASS_COUNT]);
    if (!sched_action_has_microbatch(c->kind)) return;
    td_text_addf(out, "%d", c->microbatch);
    if (n_slices > 1) td_text_addf(out, ".%u", (unsigned)c->slice);
}

void sched_print_row(const sched_row *row, int32_t n_slices, td_text *out)
{
    for (int64_t i = 0; i < row->n_cells; i++) {
        if (i > 0) td_text_add(out, ",");
        const bool pair = row->cells[i].overlaps;
        if (pair) td_text_add(out, "(");
        sched_print_cell(&row->cells[i], n_slices, out);
        for (; row->cells[i].overlaps && i + 1 < row->n_cells; i++) {
            td_text_add(out, ";");
            sched_print_cell(&row->cells[i + 1], n_slices, out);
        }
        if (pair) td_text_add(out, ")OVERLAP_F_B");
    }
    /* a row of one idle cell would otherwise read as a row without cells */
    if (row->n_cells == 1 && row->cells[0].kind == CELL_IDLE) td_text_add(out, "\"\"");
}

static void print_list(td_text *out, const int32_t *items, int64_t n)
{
    for (int64_t i = 0; i < n; i++) td_text_addf(out, "%s%d", i > 0 ? " " : "", items[i]);
    td_text_add(out, "\n");
}

/* "0-3" runs keep the lists of a pipe's microbatches short. */
static void print_microbatches(const schedule *s, int32_t pipe, td_text *out)
{
    bool any = false;
    for (int32_t m = 0; m < s->n_microbatches; m++) {
        if (s->microbatch_pipe[m] != pipe) continue;
        if (!any) td_text_addf(out, "# pipe %d microbatches", pipe);
        any = true;
        int32_t last = m;
        while (last + 1 < s->n_microbatches && s->microbatch_pipe[last + 1] == pipe) last++;
        if (last > m)
            td_text_addf(out, " %d-%d", m, last);
        else
            td_text_addf(out, " %d", m);
        m = last;
    }
    if (any) td_text_add(out, "\n");
}

static void print_slices(const schedule *s, td_text *out)
{
    const size_t n = (size_t)s->n_slices;
    bool same = true;
    for (int32_t m = 1; m < s->n_microbatches && same; m++)
        same = memcmp(s->slice_tokens, s->slice_tokens + (size_t)m * n, n * sizeof(int32_t)) == 0;
    for (int32_t m = 0; m < (same ? 1 : s->n_microbatches); m++) {
        if (same)
            td_text_add(out, "# slice-tokens ");
        else
            td_text_addf(out, "# slice-tokens of %d: ", m);
        print_list(out, s->slice_tokens + (size_t)m * n, s->n_slices);
    }
}

static void print_roles(const schedule *s, td_text *out)
{
    for (int32_t p = 0; p < s->n_pipes; p++) {
        td_text_addf(out, "# pipe %d rows ", p);
        print_list(out, s->pipes[p].forward_row, s->n_stages);
        print_microbatches(s, p, out);
        if (memcmp(s->pipes[p].forward_row, s->pipes[p].backward_row,
                   (size_t)s->n_stages * sizeof(int32_t)) != 0) {
            td_text_addf(out, "# role %d backward rows ", p);
            print_list(out, s->pipes[p].backward_row, s->n_stages);
        }
    }
}

static void print_headers(const schedule *s, td_text *out)
{
    td_text_addf(out, "# tandem schedule 1\n# stages %d\n# microbatches %d\n", s->n_stages,
                 s->n_microbatches);
    if (s->n_pipes > 1) td_text_addf(out, "# pipes %d\n", s->n_pipes);
    if (s->n_slices > 1) td_text_addf(out, "# slices %d\n", s->n_slices);
    if (s->slice_tokens != NULL) print_slices(s, out);
    print_roles(s, out);
    if (s->layers != NULL) {
        td_text_add(out, "# layers ");
        print_list(out, s->layers, s->n_stages);
    }
    if (s->tp_forward != 0 || s->tp_backward != 0)
        td_text_addf(out, "# tp forward %d backward %d\n", s->tp_forward, s->tp_backward);
    if (s->handoff != HANDOFF_NONE)
        td_text_addf(out, "# handoff %s\n", s->handoff == HANDOFF_DIRECT ? "direct" : "lagged");
    if (s->credits != NULL) {
        td_text_add(out, "# credits ");
        print_list(out, s->credits, s->n_stages);
    }
    if (s->weights == WEIGHTS_ALL_STEP) td_text_add(out, "# weights all-step\n");
    static const char *const vocab[] = {"", "1", "2", "interlaced"};
    if (s->vocab != VOCAB_NONE) {
        td_text_addf(out, "# vocab %s%s\n", vocab[s->vocab], s->vocab_edge ? " repo-edge" : "");
    }
    if (s->sync == SYNC_END) td_text_add(out, "# sync end\n");
    for (int32_t i = 0; i < s->n_sync_at; i++) {
        td_text_addf(out, "# sync stage %d row %d at ", s->sync_at[i].stage, s->sync_at[i].row);
        sched_print_cell(&s->sync_at[i].cell, s->n_slices, out);
        td_text_add(out, "\n");
    }
    if (s->validate) td_text_add(out, "# validate\n");
}

void sched_print(const schedule *s, td_text *out)
{
    print_headers(s, out);
    for (int32_t r = 0; r < s->n_rows; r++) {
        sched_print_row(&s->rows[r], s->n_slices, out);
        td_text_add(out, "\n");
    }
}

/* --- equality --- */

static bool same_ints(const int32_t *a, const int32_t *b, size_t n)
{
    if (a == NULL || b == NULL) return a == b;
    return memcmp(a, b, n * sizeof *a) == 0;
}

static bool same_cells(const sched_cell *a, const sched_cell *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (a[i].kind != b[i].kind || a[i].overlaps != b[i].overlaps || a[i].slice != b[i].slice ||
            a[i].stage != b[i].stage || a[i].microbatch != b[i].microbatch)
            return false;
    return true;
}

static bool same_syncs(const schedule *a, const schedule *b)
{
    if (a->n_sync_at != b->n_sync_at) return false;
    for (int32_t i = 0; i < a->n_sync_at; i++)
        if (a->sync_at[i].row != b->sync_at[i].row || a->sync_at[i].stage != b->sync_at[i].stage ||
            !same_cells(&a->sync_at[i].cell, &b->sync_at[i].cell, 1))
            return false;
    return true;
}

bool sched_equal(const schedule *a, const schedule *b)
{
    if (a->n_rows != b->n_rows || a->n_stages != b->n_stages || a->n_pipes != b->n_pipes ||
        a->n_microbatches != b->n_microbatches || a->n_slices != b->n_slices ||
        a->tp_forward != b->tp_forward || a->tp_backward != b->tp_backward ||
        a->handoff != b->handoff || a->vocab != b->vocab || a->vocab_edge != b->vocab_edge ||
        a->sync != b->sync || a->validate != b->validate || a->weights != b->weights ||
        !same_syncs(a, b))
        return false;
    const size_t stages = (size_t)a->n_stages, microbatches = (size_t)a->n_microbatches;
    if (!same_ints(a->microbatch_pipe, b->microbatch_pipe, microbatches) ||
        !same_ints(a->slice_tokens, b->slice_tokens, microbatches * (size_t)a->n_slices) ||
        !same_ints(a->layers, b->layers, stages) || !same_ints(a->credits, b->credits, stages))
        return false;
    for (int32_t p = 0; p < a->n_pipes; p++)
        if (!same_ints(a->pipes[p].forward_row, b->pipes[p].forward_row, stages) ||
            !same_ints(a->pipes[p].backward_row, b->pipes[p].backward_row, stages))
            return false;
    for (int32_t r = 0; r < a->n_rows; r++)
        if (a->rows[r].n_cells != b->rows[r].n_cells ||
            !same_cells(a->rows[r].cells, b->rows[r].cells, a->rows[r].n_cells))
            return false;
    return true;
}
