/* V-Half with vocabulary parallelism (arXiv 2411.05288, section 5.3): the building block of V-Half
 * (arXiv 2405.15362) with its backward legs moved back by one interval for each barrier. The order
 * of the stages' passes comes from the block; the vocabulary passes are put in by the time at which
 * a unit-time run of that order reaches them, at the same time on every rank. */
#include "schedules/families.h"
#include "schedules/vocab_rows.h"

#include <stdlib.h>

/* Times of the unit-time run: a pass and a message. */
enum { UNIT = 1000, UNIT_COMM = 1, INTERVAL = 6 };

/* A pass of a stage with its place in the block, then its time. */
typedef struct v_pass {
    int64_t slot, start;
    int32_t row, m;
    uint8_t kind, chunk;
} v_pass;

typedef struct v_block {
    int32_t pp, n, barriers;
    int32_t window;       /* microbatches whose E stand at the very beginning */
    v_pass *rows;         /* [pp][6 n] in order */
    int64_t *end;         /* [4][pp][n] of F and I of both chunks, by kind then chunk */
    int64_t *s_at, *t_at; /* [n] when S and T stand */
} v_block;

static int64_t *end_of(const v_block *v, pass_kind kind, int chunk, int32_t row, int32_t m)
{
    const int32_t leg = (kind == PASS_F ? 0 : 2) + chunk;
    return &v->end[((int64_t)leg * v->pp + row) * v->n + m];
}

static int order_of(const v_pass *p) /* F down, F up, I down, I up, W */
{
    return p->kind == PASS_F ? p->chunk : p->kind == PASS_I ? 3 - p->chunk : 4;
}

static int by_slot(const void *a, const void *b)
{
    const v_pass *const x = a, *const y = b;
    if (x->slot != y->slot) return x->slot < y->slot ? -1 : 1;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return order_of(x) - order_of(y);
}

/* F and I of every microbatch at their slots, and each W in the first slot left free behind its I,
 * those of chunk 1 first. */
static td_status lay_row(const v_block *v, int32_t row, td_arena *a, td_err *err)
{
    const int32_t p = v->pp, n = v->n;
    const int64_t late = (p % 2 == 0 ? 3 : 0) + (int64_t)INTERVAL * v->barriers;
    const int64_t first[4] = {2 * row, 3 * p - 2 - row, 3 * p + late - 1 + 2 * row,
                              6 * p + late - 2 - row};
    const int64_t n_slots = first[3] + (int64_t)INTERVAL * n + 1;
    int8_t *const taken = TD_NEW_N(a, int8_t, n_slots);
    if (taken == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    v_pass *at = &v->rows[(int64_t)row * 6 * n];
    for (int32_t m = 0; m < n; m++)
        for (int leg = 0; leg < 4; leg++) {
            const int64_t slot = first[leg] + (int64_t)INTERVAL * m;
            *at++ = (v_pass){.slot = slot,
                             .row = row,
                             .m = m,
                             .kind = leg < 2 ? PASS_F : PASS_I,
                             .chunk = leg == 1 || leg == 2};
            taken[slot] = (int8_t)(leg + 1);
        }
    int32_t done[2] = {0, 0}, back[2] = {0, 0}; /* W and I, by chunk */
    for (int64_t slot = 0; done[0] + done[1] < 2 * n; slot++) {
        const int leg = slot < n_slots ? taken[slot] - 1 : -1;
        if (leg >= 2) back[leg == 2]++;
        if (leg >= 0) continue;
        const int chunk = back[1] > done[1];
        if (done[chunk] == back[chunk]) continue;
        *at++ = (v_pass){
            .slot = slot, .row = row, .m = done[chunk]++, .kind = PASS_W, .chunk = (uint8_t)chunk};
    }
    return TD_OK;
}

/* When the pass before this one on the V has ended; messages between ranks take UNIT_COMM. */
static int64_t arrival(const v_block *v, const v_pass *x)
{
    const bool down = (x->kind == PASS_F) == (x->chunk == 0);
    const int32_t from = down ? x->row - 1 : x->row + 1;
    if (x->kind == PASS_W) return 0;
    if (from >= 0 && from < v->pp)
        return *end_of(v, (pass_kind)x->kind, x->chunk, from, x->m) + UNIT_COMM;
    if (x->kind == PASS_F && x->chunk == 0) return 0;
    if (x->kind == PASS_F) return *end_of(v, PASS_F, 0, x->row, x->m);
    return *end_of(v, x->chunk == 1 ? PASS_F : PASS_I, 1, x->row, x->m);
}

/* Each pass as early as the order allows. */
static td_status time_rows(const v_block *v, td_arena *a, td_err *err)
{
    const int64_t per_row = 6 * (int64_t)v->n, all = per_row * v->pp;
    v_pass *const order = TD_NEW_N(a, v_pass, all);
    int64_t *const clock = TD_NEW_N(a, int64_t, v->pp), *const at = TD_NEW_N(a, int64_t, v->pp);
    if (order == NULL || clock == NULL || at == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int64_t i = 0; i < all; i++) order[i] = v->rows[i];
    qsort(order, (size_t)all, sizeof *order, by_slot);
    for (int64_t i = 0; i < all; i++) {
        v_pass *const x = &order[i];
        const int64_t ready = arrival(v, x);
        x->start = ready > clock[x->row] ? ready : clock[x->row];
        clock[x->row] = x->start + UNIT;
        if (x->kind != PASS_W)
            *end_of(v, (pass_kind)x->kind, x->chunk, x->row, x->m) = clock[x->row];
        v->rows[x->row * per_row + at[x->row]++] = *x;
    }
    return TD_OK;
}

/* --- the vocabulary passes --- */

/* S a moment behind the end of the forward, which is left for C0; T with the next S. */
static td_status time_vocab(v_block *v, td_arena *a, td_err *err)
{
    v->s_at = TD_NEW_N(a, int64_t, v->n);
    v->t_at = TD_NEW_N(a, int64_t, v->n);
    if (v->s_at == NULL || v->t_at == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t m = 0; m < v->n; m++) v->s_at[m] = *end_of(v, PASS_F, 1, 0, m) + UNIT;
    for (int32_t m = 0; m < v->n; m++)
        v->t_at[m] = m + 1 < v->n ? v->s_at[m + 1] : v->s_at[m] + 2 * UNIT + 2 * UNIT;
    /* E of m stands with S of m - window, which has to come before the first stage's F of m; with
     * an odd number of ranks half of them and one are not enough for that */
    v->window = v->pp / 2 + 1;
    for (int32_t m = v->window; m < v->n; m++)
        if (v->s_at[m - v->window] > *end_of(v, PASS_F, 0, 0, m) - UNIT - 1) {
            v->window++;
            m = v->window - 1;
        }
    return TD_OK;
}

static void add_due(vocab_row *r, const v_block *v, int64_t now)
{
    const int32_t window = v->window;
    const int32_t *const next = r->next;
    for (;;) {
        int64_t best = now;
        pass_kind kind = PASS_COUNT;
        const int32_t e = next[PASS_E], t = next[PASS_T], s = next[PASS_S], g = next[PASS_G];
        /* ties: E, T, S, G */
        const struct {
            pass_kind kind;
            bool there;
            int64_t at;
        } due[4] = {
            {PASS_E, e < v->n, e < window || e >= v->n ? -1 : v->s_at[e - window]},
            {PASS_T, t < v->n, t < v->n ? v->t_at[t] : 0},
            {PASS_S, s < v->n, s < v->n ? v->s_at[s] : 0},
            {PASS_G, g < v->n - window - 2, g < v->n - window - 2 ? v->s_at[g + window + 2] : 0},
        };
        for (int i = 0; i < 4; i++)
            if (due[i].there && due[i].at < best) {
                best = due[i].at;
                kind = due[i].kind;
            }
        if (kind == PASS_COUNT) return;
        vocab_add(r, kind);
    }
}

static void add_row(vocab_row *r, const v_block *v, int32_t row)
{
    for (int64_t i = 0; i < 6 * (int64_t)v->n; i++) {
        const v_pass *const x = &v->rows[(int64_t)row * 6 * v->n + i];
        add_due(r, v, x->start);
        row_add(&r->w, (pass_kind)x->kind, x->chunk == 0 ? row : 2 * v->pp - 1 - row, x->m, 0);
    }
    add_due(r, v, INT64_MAX);
    for (int32_t m = 0; m < v->n; m++) vocab_add(r, PASS_G);
}

/* --- the family --- */

static td_status check_request(const sched_request *q, int64_t barriers, td_err *err)
{
    if (q->chunks != 0 && q->chunks != 2)
        return td_fail(err, TD_EUSAGE, "--chunks %d: v-half-vocab has two chunks a rank; legal: 2",
                       q->chunks);
    /* with fewer, nothing fills the intervals between the last forward and its backward */
    const int32_t half = (q->pp + 1) / 2 + 1;
    const int32_t least = barriers == 1 ? 2 : half < 3 ? 3 : half;
    if (q->pp < 2 || q->microbatches < least)
        return td_fail(err, TD_EUSAGE,
                       "v-half-vocab with P=%d, M=%d: needs P >= 2 and M >= %s; legal: --pp %d "
                       "--microbatches %d",
                       q->pp, q->microbatches, barriers == 1 ? "2" : "max(3, ceil(P/2) + 1)",
                       q->pp < 2 ? 2 : q->pp, q->microbatches < least ? least : q->microbatches);
    return TD_OK;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    int64_t algorithm = 0;
    TD_TRY(sched_option_i64(q, "algorithm", 1, 2, 1, &algorithm, err));
    v_block v = {.pp = q->pp, .n = q->microbatches, .barriers = algorithm == 1 ? 2 : 1};
    TD_TRY(check_request(q, v.barriers, err));
    TD_TRY(sched_new(a, q->pp, 2 * (int64_t)q->pp, 1, q->microbatches, 1, out, err));
    TD_TRY(vocab_edge(q, out, err));
    out->vocab = algorithm == 1 ? VOCAB_1 : VOCAB_2;
    const int64_t cells = (int64_t)v.pp * v.n;
    v.rows = TD_NEW_N(a, v_pass, 6 * cells);
    v.end = TD_NEW_N(a, int64_t, 4 * cells);
    if (v.rows == NULL || v.end == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t row = 0; row < v.pp; row++) TD_TRY(lay_row(&v, row, a, err));
    TD_TRY(time_rows(&v, a, err));
    TD_TRY(time_vocab(&v, a, err));
    bool failed = false;
    for (int32_t row = 0; row < v.pp; row++) {
        sched_place(out, 0, row, row);
        sched_place(out, 0, 2 * v.pp - 1 - row, row);
        vocab_row r = vocab_row_of(a, out, row, row);
        add_row(&r, &v, row);
        failed |= r.w.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option options[] = {
    {"algorithm", "1|2", "1: two barriers; 2: the input gradient in S and one barrier"},
    VOCAB_EDGE_OPTION,
    {NULL, NULL, NULL},
};

const sched_family family_v_half_vocab = {
    .name = "v-half-vocab",
    .summary = "V-Half, vocabulary layers sharded over all ranks; (P+2)/2 + 2 activations, or + 1",
    .constraints = "P >= 2, two chunks; M >= 2, with algorithm 1 M >= 3 and M >= (P+1)/2 + 1",
    .options = options,
    .generate = generate,
};
