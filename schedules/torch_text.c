/* torch.distributed.pipelining's plain form, written: compute-only as it stands, or with the
 * actions that torch's own lowering would add, in its order (unshard, reduce, send and receive). */
#include "schedules/schedule_build.h"
#include "schedules/schedule_text.h"

#include <stdlib.h>
#include <string.h>

/* --- what the plain form can say --- */

static td_status refuse(const schedule *s, td_err *err)
{
    const char *why = NULL;
    if (s->n_pipes > 1)
        why = "two pipes (a stage on several ranks)";
    else if (sched_is_disaggregated(s))
        why = "forward and backward of a stage on two ranks";
    else if (s->n_slices > 1)
        why = "slices of microbatches";
    else if (s->vocab != VOCAB_NONE)
        why = "vocabulary passes";
    for (int32_t r = 0; r < s->n_rows && why == NULL; r++)
        for (int64_t i = 0; i < s->rows[r].n_cells; i++) {
            const uint8_t k = s->rows[r].cells[i].kind;
            if (k >= PASS_R && k < PASS_COUNT) why = "passes other than F, B, I and W";
        }
    if (why == NULL) return TD_OK;
    return td_fail(err, TD_EUSAGE, "torch's form cannot say: %s; --format csv can", why);
}

static bool has_trail(const schedule *s)
{
    for (int32_t r = 0; r < s->n_rows; r++)
        for (int64_t i = 0; i < s->rows[r].n_cells; i++)
            if (!sched_is_pass(&s->rows[r].cells[i]) && s->rows[r].cells[i].kind != CELL_IDLE)
                return true;
    return false;
}

static void print_rows(const sched_row *rows, int32_t n, bool passes_only, td_arena *a,
                       td_text *out)
{
    for (int32_t r = 0; r < n; r++) {
        sched_row row = rows[r];
        row_writer w = {.arena = a, .row = &row};
        if (passes_only) {
            row = (sched_row){0};
            for (int64_t i = 0; i < rows[r].n_cells; i++) {
                const sched_cell *const c = &rows[r].cells[i];
                if (sched_is_pass(c) || c->kind == CELL_IDLE) row_add_cell(&w, *c);
            }
        }
        sched_print_row(&row, 1, out);
        td_text_add(out, "\r\n");
        out->failed |= w.failed;
    }
}

/* --- torch's lowering --- */

enum { ACTIVE_MAX = 3 }; /* stages whose weights are gathered at once */

static sched_cell action(cell_kind kind, int32_t stage, int32_t microbatch)
{
    return (sched_cell){.kind = (uint8_t)kind, .stage = (uint16_t)stage, .microbatch = microbatch};
}

static bool contains(const int32_t *items, int n, int32_t x)
{
    for (int i = 0; i < n; i++)
        if (items[i] == x) return true;
    return false;
}

/* The next distinct stages from a cell on. */
static int upcoming(const sched_row *row, int64_t from, int32_t out[ACTIVE_MAX])
{
    int n = 0;
    for (int64_t i = from; i < row->n_cells && n < ACTIVE_MAX; i++)
        if (sched_is_pass(&row->cells[i]) && !contains(out, n, row->cells[i].stage))
            out[n++] = row->cells[i].stage;
    return n;
}

/* Passes of a row with UNSHARD before first need and RESHARD after last, and REDUCE_GRAD after a
 * stage's last gradient. */
static void add_weights_actions(const sched_row *row, int32_t *left, row_writer *w)
{
    int32_t active[ACTIVE_MAX + 1];
    int n_active = 0;
    for (int64_t i = 0; i < row->n_cells; i++) {
        const sched_cell *c = &row->cells[i];
        if (!sched_is_pass(c)) continue;
        int32_t next[ACTIVE_MAX];
        const int n_next = upcoming(row, i, next);
        for (int j = 0; j < n_active;) {
            if (contains(next, n_next, active[j])) {
                j++;
                continue;
            }
            row_add_cell(w, action(CELL_RESHARD, active[j], -1));
            for (int k = j + 1; k < n_active; k++) active[k - 1] = active[k];
            n_active--;
        }
        for (int j = 0; j < n_next; j++)
            if (!contains(active, n_active, next[j])) {
                row_add_cell(w, action(CELL_UNSHARD, next[j], -1));
                active[n_active++] = next[j];
            }
        const int64_t first = i;
        row_add_cell(w, *c);
        while (row->cells[i].overlaps) row_add_cell(w, row->cells[++i]);
        for (int64_t j = first; j <= i; j++) {
            c = &row->cells[j];
            if ((c->kind == PASS_B || c->kind == PASS_W) && --left[c->stage] == 0)
                row_add_cell(w, action(CELL_REDUCE_GRAD, c->stage, -1));
        }
    }
    for (int j = 0; j < n_active; j++) row_add_cell(w, action(CELL_RESHARD, active[j], -1));
}

typedef struct comms_sweep {
    const schedule *s;
    const sched_row *in;
    row_writer *out;
    int64_t *head;
    uint8_t *here; /* by [arrival][stage][microbatch]: in the list of the stage's rank */
} comms_sweep;

typedef enum arrival { HERE_F_INPUT, HERE_B_INPUT } arrival;

static uint8_t *here(comms_sweep *c, arrival what, int32_t stage, int32_t m)
{
    const size_t per = (size_t)c->s->n_stages * (size_t)c->s->n_microbatches;
    return &c->here[(size_t)what * per + (size_t)stage * (size_t)c->s->n_microbatches + (size_t)m];
}

static bool is_ready(comms_sweep *c, const sched_cell *cell)
{
    const int32_t last = c->s->n_stages - 1;
    if (cell->kind == PASS_F)
        return cell->stage == 0 || *here(c, HERE_F_INPUT, cell->stage, cell->microbatch);
    if (cell->kind == PASS_B || cell->kind == PASS_I)
        return cell->stage == last || *here(c, HERE_B_INPUT, cell->stage, cell->microbatch);
    return true;
}

/* What a pass makes goes to the neighbour stage: by hand where that is on this rank, else by SEND,
 * with its RECV appended to the other rank's list at once. */
static void hand_on(comms_sweep *c, int32_t row, const sched_cell *cell)
{
    const bool forward = cell->kind == PASS_F;
    const int32_t to = cell->stage + (forward ? 1 : -1);
    if (cell->kind == PASS_W || to < 0 || to >= c->s->n_stages) return;
    const int32_t home = c->s->pipes[0].forward_row[to];
    if (home != row) {
        row_add_cell(&c->out[row],
                     action(forward ? CELL_SEND_F : CELL_SEND_B, cell->stage, cell->microbatch));
        row_add_cell(&c->out[home],
                     action(forward ? CELL_RECV_F : CELL_RECV_B, to, cell->microbatch));
    }
    *here(c, forward ? HERE_F_INPUT : HERE_B_INPUT, to, cell->microbatch) = 1;
}

/* Takes a row's next cell if it is ready. */
static bool take(comms_sweep *c, int32_t row)
{
    const sched_row *const in = &c->in[row];
    const int64_t first = c->head[row];
    if (first >= in->n_cells) return false;
    int64_t end = first + 1;
    while (in->cells[end - 1].overlaps) end++;
    for (int64_t i = first; i < end; i++)
        if (!is_ready(c, &in->cells[i])) return false;
    for (int64_t i = first; i < end; i++) row_add_cell(&c->out[row], in->cells[i]);
    for (int64_t i = first; i < end; i++)
        if (sched_is_pass(&in->cells[i])) hand_on(c, row, &in->cells[i]);
    c->head[row] = end;
    return true;
}

static td_status lower_torch(const schedule *s, td_arena *a, sched_row **rows, td_err *err)
{
    const size_t n_rows = (size_t)s->n_rows;
    sched_row *const in = TD_NEW_N(a, sched_row, n_rows), *const out =
                                                              TD_NEW_N(a, sched_row, n_rows);
    const size_t slots = 2 * (size_t)s->n_stages * (size_t)s->n_microbatches;
    comms_sweep c = {.s = s,
                     .in = in,
                     .out = TD_NEW_N(a, row_writer, n_rows),
                     .head = TD_NEW_N(a, int64_t, n_rows),
                     .here = TD_NEW_N(a, uint8_t, slots)};
    int32_t *const left = TD_NEW_N(a, int32_t, s->n_stages);
    if (in == NULL || out == NULL || c.out == NULL || c.head == NULL || c.here == NULL ||
        left == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory");
    for (int32_t i = 0; i < s->n_stages; i++) left[i] = s->n_microbatches;
    bool failed = false;
    for (size_t r = 0; r < n_rows; r++) {
        row_writer w = {.arena = a, .row = &in[r]};
        add_weights_actions(&s->rows[r], left, &w);
        failed |= w.failed;
        c.out[r] = (row_writer){.arena = a, .row = &out[r]};
    }
    for (bool moved = true; moved;) {
        moved = false;
        for (int32_t r = 0; r < s->n_rows; r++) moved |= take(&c, r);
    }
    for (size_t r = 0; r < n_rows; r++) failed |= c.out[r].failed;
    *rows = out;
    return failed ? td_fail(err, TD_ENOMEM, "out of memory") : TD_OK;
}

td_status torch_print(const schedule *s, bool with_comms, td_text *out, td_err *err)
{
    TD_TRY(refuse(s, err));
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    td_status st = TD_OK;
    sched_row *rows = s->rows;
    if (with_comms && !has_trail(s)) {
        st = sched_check(s, err); /* so that the sweep gets to the end */
        if (st == TD_OK) st = lower_torch(s, a, &rows, err);
    }
    if (st == TD_OK) print_rows(rows, s->n_rows, !with_comms, a, out);
    if (st == TD_OK && out->failed) st = td_fail(err, TD_ENOMEM, "out of memory");
    td_arena_free(a);
    return st;
}
