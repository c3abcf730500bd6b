/* Bodies of schedule_index.h. The order of events is found by a sweep: each row runs on until its
 * next pass needs something that has not happened, and waits there; whoever does it wakes the row.
 * Linear in passes, and a row that never wakes is a deadlock. */
#include "schedules/schedule_index.h"

#include <string.h>

static td_status complain(const schedule *s, int32_t row, const sched_cell *c, td_err *err,
                          const char *why)
{
    td_text t = {0};
    sched_print_cell(c, s->n_slices, &t);
    const td_status st =
        td_fail(err, TD_EPLAN, "row %d: %s: %s", row, t.s == NULL ? "?" : t.s, why);
    td_text_free(&t);
    return st;
}

static td_status check_range(const schedule *s, int32_t row, const sched_cell *c, td_err *err)
{
    if (c->stage >= s->n_stages) return complain(s, row, c, err, "no such stage");
    if (c->microbatch < 0 || c->microbatch >= s->n_microbatches)
        return complain(s, row, c, err, "no such microbatch");
    if (c->slice >= s->n_slices) return complain(s, row, c, err, "no such slice");
    return TD_OK;
}

static td_status check_home(const schedule *s, int32_t row, const sched_cell *c, td_err *err)
{
    const pass_kind k = (pass_kind)c->kind;
    if (pass_is_sharded(k)) {
        const int32_t expected = k == PASS_S || k == PASS_T ? s->n_stages - 1 : 0;
        return c->stage == expected
                   ? TD_OK
                   : complain(s, row, c, err, "S and T name the last stage, E and G stage 0");
    }
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[c->microbatch]];
    const int32_t home = k == PASS_F ? p->forward_row[c->stage] : p->backward_row[c->stage];
    if (home == row) return TD_OK;
    td_text t = {0};
    sched_print_cell(c, s->n_slices, &t);
    const td_status st = td_fail(err, TD_EPLAN, "row %d: %s: this stage lives on row %d", row,
                                 t.s == NULL ? "?" : t.s, home);
    td_text_free(&t);
    return st;
}

static td_status record(sched_index *ix, td_arena *a, int32_t row, const sched_cell *c,
                        uint32_t node, td_err *err)
{
    const schedule *const s = ix->s;
    const pass_kind k = (pass_kind)c->kind;
    TD_TRY(check_range(s, row, c, err));
    TD_TRY(check_home(s, row, c, err));
    if (ix->pos[k] == NULL) {
        const int32_t firsts = pass_is_sharded(k) ? s->n_rows : s->n_stages;
        const size_t n = index_slot(s, firsts, 0, 0);
        ix->pos[k] = TD_NEW_N(a, uint32_t, n);
        if (ix->pos[k] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %zu passes", n);
        memset(ix->pos[k], 0xff, n * sizeof(uint32_t));
    }
    const size_t slot = index_slot(s, pass_is_sharded(k) ? row : c->stage, c->microbatch, c->slice);
    if (ix->pos[k][slot] != NODE_NONE) return complain(s, row, c, err, "occurs twice");
    ix->pos[k][slot] = node;
    return TD_OK;
}

static bool starts_node(const sched_row *row, int64_t i)
{
    return sched_is_pass(&row->cells[i]) && !(i > 0 && row->cells[i - 1].overlaps);
}

/* The forward of the node that begins with c before which a mark stands, or NULL. */
static const sched_cell *marked_forward(const sched_index *ix, const sched_cell *c)
{
    while (!handoff_is_marked(ix, c)) {
        if (!c->overlaps) return NULL;
        c++;
    }
    return c;
}

static void add_mark(sched_index *ix, const sched_cell *forward, sched_cell *mark, uint32_t node)
{
    *mark = *forward;
    mark->kind = CELL_IDLE;
    mark->overlaps = 0;
    ix->cell[node] = mark;
    ix->arrival[index_slot(ix->s, mark->stage, mark->microbatch, mark->slice)] = node;
}

td_status sched_index_build(const schedule *s, td_arena *a, sched_index *out, td_err *err)
{
    *out = (sched_index){.s = s};
    uint64_t n = 0, n_marks = 0;
    TD_TRY(handoff_build(out, a, err));
    for (int32_t r = 0; r < s->n_rows; r++)
        for (int64_t i = 0; i < s->rows[r].n_cells; i++) {
            if (!starts_node(&s->rows[r], i)) continue;
            n++;
            n_marks += marked_forward(out, &s->rows[r].cells[i]) != NULL;
        }
    n += n_marks;
    const uint64_t barriers = (uint64_t)BARRIER_COUNT * index_slot(s, 1, 0, 0);
    if (n + barriers >= NODE_NONE)
        return td_fail(err, TD_EUSAGE, "%llu passes: more than a plan can number",
                       (unsigned long long)n);
    out->row_first = TD_NEW_N(a, uint32_t, s->n_rows + 1);
    out->cell = TD_NEW_N(a, const sched_cell *, n);
    sched_cell *mark = TD_NEW_N(a, sched_cell, n_marks);
    if (out->row_first == NULL || out->cell == NULL || mark == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %llu passes", (unsigned long long)n);
    uint32_t node = 0;
    for (int32_t r = 0; r < s->n_rows; r++) {
        const sched_row *const row = &s->rows[r];
        out->row_first[r] = node;
        for (int64_t i = 0; i < row->n_cells; i++) {
            if (!sched_is_pass(&row->cells[i])) {
                if (row->cells[i].kind > CELL_RECV_B) continue;
                TD_TRY(check_range(s, r, &row->cells[i], err));
                const trail_place place = {node, (uint32_t)i};
                TD_TRY(trail_record(out, a, r, &row->cells[i], place, err));
                continue;
            }
            if (starts_node(row, i)) {
                const sched_cell *const marked = marked_forward(out, &row->cells[i]);
                if (marked != NULL) add_mark(out, marked, mark++, node++);
                out->cell[node++] = &row->cells[i];
            }
            TD_TRY(record(out, a, r, &row->cells[i], node - 1, err));
        }
    }
    out->row_first[s->n_rows] = node;
    out->n_nodes = node;
    out->n_all_nodes = node + (s->vocab == VOCAB_NONE ? 0 : (uint32_t)barriers);
    return TD_OK;
}

uint32_t index_find_backward(const sched_index *ix, int32_t stage, int32_t m, int32_t k)
{
    const uint32_t b = index_find(ix, PASS_B, stage, m, k);
    return b != NODE_NONE ? b : index_find(ix, PASS_I, stage, m, k);
}

uint32_t index_barrier(const sched_index *ix, barrier_kind b, int32_t m, int32_t k)
{
    return ix->n_nodes + (uint32_t)index_slot(ix->s, (int32_t)b, m, k);
}

int32_t index_row(const sched_index *ix, uint32_t node)
{
    int32_t lo = 0, hi = ix->s->n_rows;
    while (hi - lo > 1) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (ix->row_first[mid] <= node)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* The input gradient of the last stage comes from the loss: from its own F, or through the
 * vocabulary barriers (specs: Vocab-1 after C2, Vocab-2 after C1). */
static int needs_of_loss(const sched_index *ix, const sched_cell *c, uint32_t *needs)
{
    const int32_t m = c->microbatch, k = c->slice;
    switch (ix->s->vocab) {
    case VOCAB_NONE: return 0;
    case VOCAB_2: needs[0] = index_barrier(ix, BARRIER_S, m, k); return 1;
    default: needs[0] = index_barrier(ix, BARRIER_T, m, k); return 1;
    }
}

static int needs_of_backward(const sched_index *ix, const sched_cell *c, uint32_t *needs)
{
    const schedule *const s = ix->s;
    const int32_t stage = c->stage, m = c->microbatch, k = c->slice;
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[m]];
    int n = 0;
    const bool away = p->forward_row[stage] != p->backward_row[stage];
    needs[n++] = index_find(ix, away ? PASS_R : PASS_F, stage, m, k);
    if (!away && ix->pos[PASS_R] != NULL) {
        const uint32_t r = index_find(ix, PASS_R, stage, m, k);
        if (r != NODE_NONE) needs[n++] = r;
    }
    if (stage + 1 < s->n_stages)
        needs[n++] = index_find_backward(ix, stage + 1, m, k);
    else
        n += needs_of_loss(ix, c, needs + n);
    if (k + 1 < s->n_slices) needs[n++] = index_find_backward(ix, stage, m, k + 1);
    return n;
}

/* On a row of its own, R has the stage's input from the forward rows. */
static int needs_of_recompute(const sched_index *ix, const sched_cell *c, uint32_t *needs)
{
    const schedule *const s = ix->s;
    const int32_t stage = c->stage, m = c->microbatch, k = c->slice;
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[m]];
    int n = 0;
    int32_t row = 0;
    if (p->forward_row[stage] == p->backward_row[stage])
        needs[n++] = index_find(ix, PASS_F, stage, m, k);
    else if (stage > 0)
        needs[n++] = index_handoff(ix, stage, m, k, &row);
    if (k > 0) needs[n++] = index_find(ix, PASS_R, stage, m, k - 1);
    return n;
}

int index_needs(const sched_index *ix, const sched_cell *c, int32_t row, uint32_t needs[NEEDS_MAX])
{
    const schedule *const s = ix->s;
    const int32_t stage = c->stage, m = c->microbatch, k = c->slice;
    int n = 0;
    if (c->kind == CELL_IDLE) { /* a mark: the input of its forward is there */
        needs[0] = index_find(ix, PASS_F, stage - 1, m, k);
        return 1;
    }
    switch ((pass_kind)c->kind) {
    case PASS_F:
        if (stage > 0)
            needs[n++] = index_find(ix, PASS_F, stage - 1, m, k);
        else if (ix->pos[PASS_E] != NULL)
            needs[n++] = index_barrier(ix, BARRIER_E, m, k);
        if (k > 0) needs[n++] = index_find(ix, PASS_F, stage, m, k - 1);
        needs[n] = index_credit(ix, stage, m, k);
        return needs[n] == NODE_NONE ? n : n + 1;
    case PASS_B:
    case PASS_I: return needs_of_backward(ix, c, needs);
    case PASS_W: needs[0] = index_find(ix, PASS_I, stage, m, k); return 1;
    case PASS_R: return needs_of_recompute(ix, c, needs);
    case PASS_S:
        needs[n++] = index_find(ix, PASS_F, s->n_stages - 1, m, k);
        if (s->vocab == VOCAB_INTERLACED) needs[n++] = index_barrier(ix, BARRIER_READY, m, k);
        return n;
    case PASS_T:
        needs[n++] = index_find(ix, PASS_S, row, m, k);
        needs[n++] = index_barrier(ix, BARRIER_S, m, k);
        if (s->vocab_edge && m + 1 < s->n_microbatches &&
            row != s->pipes[s->microbatch_pipe[m + 1]].forward_row[s->n_stages - 1])
            needs[n++] = index_find(ix, PASS_F, s->n_stages - 1, m + 1, k);
        return n;
    case PASS_E: return 0;
    case PASS_G: needs[0] = index_find_backward(ix, 0, m, k); return 1;
    case PASS_COUNT: break;
    }
    return 0;
}

void index_node_text(const sched_index *ix, uint32_t node, td_text *out)
{
    static const char *const barriers[] = {"S", "T", "E", "readiness for S"};
    const schedule *const s = ix->s;
    if (node >= ix->n_nodes) {
        const uint32_t b = node - ix->n_nodes;
        const uint32_t per_kind = (uint32_t)index_slot(s, 1, 0, 0);
        td_text_addf(out, "%s of microbatch %u on all rows", barriers[b / per_kind],
                     b % per_kind / (uint32_t)s->n_slices);
        return;
    }
    td_text_addf(out, "row %d ", index_row(ix, node));
    const sched_cell *c = ix->cell[node];
    sched_cell forward = *c;
    if (c->kind == CELL_IDLE) {
        td_text_add(out, "input of ");
        forward.kind = PASS_F;
    }
    sched_print_cell(&forward, s->n_slices, out);
    while (c->overlaps) {
        c++;
        td_text_add(out, "&");
        sched_print_cell(c, s->n_slices, out);
    }
}

/* --- the sweep --- */

typedef struct sweep {
    sched_index *ix;
    uint32_t *next;         /* [n_rows] next node of each row */
    uint32_t *blocked_on;   /* [n_rows] */
    int32_t *waiter;        /* [n_all_nodes] first row that waits for a node, -1 */
    int32_t *next_waiter;   /* [n_rows] */
    uint32_t *barrier_left; /* rows still missing at each barrier */
    uint32_t *came_to;      /* [n_rows] the last node that come_to has told of, + 1 */
    int32_t *ready;         /* stack of rows */
    int32_t n_ready;
} sweep;

static void wake(sweep *w, uint32_t node)
{
    for (int32_t r = w->waiter[node]; r >= 0;) {
        const int32_t after = w->next_waiter[r];
        w->blocked_on[r] = NODE_NONE;
        w->ready[w->n_ready++] = r;
        r = after;
    }
    w->waiter[node] = -1;
}

static void reach_barrier(sweep *w, barrier_kind b, const sched_cell *c, uint32_t level)
{
    sched_index *const ix = w->ix;
    const uint32_t node = index_barrier(ix, b, c->microbatch, c->slice);
    uint32_t *const left = &w->barrier_left[node - ix->n_nodes];
    /* kept in the complement until complete, so that 0 still means "has not happened" */
    static const uint32_t open = 1u << 31;
    const uint32_t so_far = ix->level[node] & ~open;
    ix->level[node] = open | (so_far > level ? so_far : level);
    if (--*left > 0) return;
    ix->level[node] = (ix->level[node] & ~open) + 1;
    wake(w, node);
}

static void finish_barrier(sweep *w, const sched_cell *c, uint32_t level)
{
    if (c->kind == PASS_S) reach_barrier(w, BARRIER_S, c, level);
    if (c->kind == PASS_T) reach_barrier(w, BARRIER_T, c, level);
    if (c->kind == PASS_E) reach_barrier(w, BARRIER_E, c, level);
}

/* An interlaced row that comes to an S for the first time says so. */
static void come_to(sweep *w, int32_t row, uint32_t node, uint32_t level)
{
    const sched_cell *const c = w->ix->cell[node];
    if (w->ix->s->vocab != VOCAB_INTERLACED || c->kind != PASS_S || w->came_to[row] == node + 1)
        return;
    w->came_to[row] = node + 1;
    reach_barrier(w, BARRIER_READY, c, level);
}

static bool has_happened(const sched_index *ix, uint32_t node)
{
    return node == NODE_NONE || (ix->level[node] != 0 && ix->level[node] >> 31 == 0);
}

/* Vocabulary passes are short: levels that count them as whole passes would put their barriers in
 * an order far from that of time. */
static uint32_t weight_of(const sched_index *ix, const sched_cell *c)
{
    enum { STAGE_PASS = 8 };
    return ix->s->vocab == VOCAB_NONE || pass_is_sharded((pass_kind)c->kind) ? 1 : STAGE_PASS;
}

/* Runs a row on until it is blocked or done. */
static void advance(sweep *w, int32_t row)
{
    sched_index *const ix = w->ix;
    for (; w->next[row] < ix->row_first[row + 1]; w->next[row]++) {
        const uint32_t node = w->next[row];
        uint32_t level = node > ix->row_first[row] ? ix->level[node - 1] : 0;
        const sched_cell *c = ix->cell[node];
        come_to(w, row, node, level);
        for (bool more = true; more; c++) {
            uint32_t needs[NEEDS_MAX];
            const int n = index_needs(ix, c, row, needs);
            for (int i = 0; i < n; i++) {
                if (!has_happened(ix, needs[i])) {
                    w->blocked_on[row] = needs[i];
                    w->next_waiter[row] = w->waiter[needs[i]];
                    w->waiter[needs[i]] = row;
                    return;
                }
                if (needs[i] != NODE_NONE && ix->level[needs[i]] > level)
                    level = ix->level[needs[i]];
            }
            more = c->overlaps;
        }
        level += weight_of(ix, ix->cell[node]) - 1;
        ix->level[node] = level + 1;
        if (ix->n_all_nodes > ix->n_nodes) {
            c = ix->cell[node];
            for (bool more = true; more; c++) {
                finish_barrier(w, c, level + 1);
                more = c->overlaps;
            }
        }
        if (w->waiter[node] >= 0) wake(w, node);
    }
}

/* The row that has to act before `node` can happen. */
static int32_t row_behind(const sweep *w, uint32_t node)
{
    const sched_index *const ix = w->ix;
    if (node < ix->n_nodes) return index_row(ix, node);
    for (int32_t r = 0; r < ix->s->n_rows; r++)
        if (w->next[r] < ix->row_first[r + 1]) return r;
    return 0;
}

static td_status report_cycle(const sweep *w, td_arena *a, td_err *err)
{
    const sched_index *const ix = w->ix;
    const int32_t n_rows = ix->s->n_rows;
    int32_t row = 0;
    while (w->next[row] >= ix->row_first[row + 1]) row++;
    bool *const seen = TD_NEW_N(a, bool, n_rows);
    if (seen == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    while (!seen[row]) {
        seen[row] = true;
        row = row_behind(w, w->blocked_on[row]);
    }
    td_text t = {0};
    const int32_t start = row;
    int32_t steps = 0;
    do {
        if (steps++ > 0) td_text_add(&t, "; ");
        index_node_text(ix, w->next[row], &t);
        td_text_add(&t, " waits for ");
        const uint32_t wanted = w->blocked_on[row];
        index_node_text(ix, wanted, &t);
        row = row_behind(w, wanted);
        if (wanted >= ix->n_nodes || wanted == w->next[row]) continue;
        td_text_add(&t, ", which is behind ");
        index_node_text(ix, w->next[row], &t);
    } while (row != start && steps < n_rows);
    const td_status st =
        td_fail(err, TD_EPLAN, "deadlock: the order cannot finish: %s", t.s == NULL ? "" : t.s);
    td_text_free(&t);
    return st;
}

td_status sched_index_levels(sched_index *ix, td_arena *a, td_err *err)
{
    const int32_t n_rows = ix->s->n_rows;
    ix->level = TD_NEW_N(a, uint32_t, ix->n_all_nodes + 1);
    sweep w = {.ix = ix,
               .next = TD_NEW_N(a, uint32_t, n_rows),
               .blocked_on = TD_NEW_N(a, uint32_t, n_rows),
               .waiter = TD_NEW_N(a, int32_t, ix->n_all_nodes + 1),
               .next_waiter = TD_NEW_N(a, int32_t, n_rows),
               .came_to = TD_NEW_N(a, uint32_t, n_rows),
               .barrier_left = TD_NEW_N(a, uint32_t, ix->n_all_nodes - ix->n_nodes + 1),
               .ready = TD_NEW_N(a, int32_t, n_rows + 1)};
    if (ix->level == NULL || w.next == NULL || w.blocked_on == NULL || w.waiter == NULL ||
        w.next_waiter == NULL || w.barrier_left == NULL || w.came_to == NULL || w.ready == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u passes", ix->n_nodes);
    memset(w.waiter, 0xff, ((size_t)ix->n_all_nodes + 1) * sizeof *w.waiter);
    for (uint32_t i = 0; i < ix->n_all_nodes - ix->n_nodes; i++)
        w.barrier_left[i] = (uint32_t)n_rows;
    for (int32_t r = n_rows - 1; r >= 0; r--) {
        w.next[r] = ix->row_first[r];
        w.blocked_on[r] = NODE_NONE;
        w.ready[w.n_ready++] = r;
    }
    while (w.n_ready > 0) advance(&w, w.ready[--w.n_ready]);
    for (int32_t r = 0; r < n_rows; r++)
        if (w.next[r] < ix->row_first[r + 1]) return report_cycle(&w, a, err);
    return TD_OK;
}
