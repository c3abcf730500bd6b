/* The automatic scheduler of ZB-1p and ZB-2p (arXiv 2401.10241): one rank a stage, a warm-up that
 * is as deep as memory and durations allow, then one input gradient of every rank per round, with
 * weight gradients wherever a rank would wait or needs memory. */
#include "schedules/zb_search.h"

#include <string.h>

typedef struct heuristic {
    const zb_problem *q;
    zb_order *o;
    bool lazy, skip, fill_small;
    int64_t *f_end, *i_end; /* [p * m] */
    int64_t *clock, *memory, *idle;
    int64_t most_idle;
    int32_t (*count)[3]; /* [p] passes that ran, of F, I, W */
    int32_t *extra;      /* [p] */
    bool *want;          /* [p] */
    bool stuck;
} heuristic;

static int64_t ns_of(const heuristic *h, int kind, int32_t r) { return h->q->pass_ns[kind][r]; }

static int64_t *end_of(const heuristic *h, int kind, int32_t r, int32_t k)
{
    return (kind == ZB_F ? h->f_end : h->i_end) + (size_t)r * (size_t)h->q->m + (size_t)k;
}

/* When the data of a rank's next pass is here. */
static int64_t arrival(const heuristic *h, int kind, int32_t r)
{
    const int32_t near = kind == ZB_F ? r - 1 : r + 1;
    if (kind == ZB_W || near < 0 || near >= h->q->p) return 0;
    return *end_of(h, kind, near, h->count[r][kind]) + h->q->comm_ns;
}

static void place(heuristic *h, int32_t r, int kind)
{
    const int64_t data = arrival(h, kind, r);
    const int64_t start = data > h->clock[r] ? data : h->clock[r];
    if (h->count[r][ZB_F] > 0) {
        h->idle[r] += start - h->clock[r];
        if (h->idle[r] > h->most_idle) h->most_idle = h->idle[r];
    }
    h->clock[r] = start + ns_of(h, kind, r);
    if (kind != ZB_W) *end_of(h, kind, r, h->count[r][kind]) = h->clock[r];
    h->memory[r] += h->q->delta[kind][r];
    h->count[r][kind]++;
    zb_push(h->o, r, zb_code(kind, 0));
}

static int32_t pending(const heuristic *h, int32_t r)
{
    return h->count[r][ZB_I] - h->count[r][ZB_W];
}

/* Weight gradients until a pass of this kind fits the memory. */
static void make_room(heuristic *h, int32_t r, int kind)
{
    while (h->memory[r] + h->q->delta[kind][r] > h->q->limit[r]) {
        if (pending(h, r) <= 0) {
            h->stuck = true;
            return;
        }
        place(h, r, ZB_W);
    }
}

static void fill(heuristic *h, int32_t r, int64_t until)
{
    while (pending(h, r) > 0 && h->clock[r] + ns_of(h, ZB_W, r) <= until) place(h, r, ZB_W);
    if (pending(h, r) > 0 && h->clock[r] < until &&
        (h->fill_small || until - h->clock[r] > h->most_idle - h->idle[r]))
        place(h, r, ZB_W);
}

/* Forwards of each rank before its first input gradient, beyond the first one. */
static void plan_warmup(heuristic *h)
{
    const zb_problem *const q = h->q;
    const int32_t last = q->p - 1;
    int64_t ready = h->f_end[(size_t)last * (size_t)q->m] + ns_of(h, ZB_I, last);
    h->extra[last] = 0;
    for (int32_t r = last - 1; r >= 0; r--) {
        int64_t t = h->clock[r], memory = h->memory[r];
        const int64_t f_ns = ns_of(h, ZB_F, r), due = ready + q->comm_ns;
        h->extra[r] = 0;
        while (h->count[r][ZB_F] + h->extra[r] < q->m &&
               memory + q->delta[ZB_F][r] <= q->limit[r] && (h->lazy ? t + f_ns <= due : t < due)) {
            t += f_ns;
            memory += q->delta[ZB_F][r];
            h->extra[r]++;
        }
        ready = (t > due ? t : due) + ns_of(h, ZB_I, r);
    }
    for (int32_t r = 1; r < q->p; r++)
        while (h->extra[r] > 0 && h->extra[r] >= h->extra[r - 1] &&
               h->count[r][ZB_F] + h->extra[r] < q->m)
            h->extra[r]--;
}

static void warm_up(heuristic *h)
{
    for (int32_t r = 0; r < h->q->p; r++) {
        make_room(h, r, ZB_F);
        if (h->stuck) return;
        place(h, r, ZB_F);
    }
    plan_warmup(h);
    for (int32_t r = 0; r < h->q->p; r++)
        for (int32_t i = 0; i < h->extra[r]; i++) place(h, r, ZB_F);
    for (int32_t r = h->q->p - 1; r >= 0; r--) place(h, r, ZB_I);
}

/* Whether a rank that could run a forward should wait for its next input gradient. */
static bool holds_back(const heuristic *h, int32_t r)
{
    const zb_problem *const q = h->q;
    const int64_t next =
        h->clock[r + 1] + ns_of(h, ZB_F, r + 1) + ns_of(h, ZB_I, r + 1) + q->comm_ns;
    if (h->count[r][ZB_F] < h->count[r + 1][ZB_F] + 2) return false;
    if (h->clock[r] >= next) return true;
    int64_t memory = h->memory[r] + q->delta[ZB_F][r], weights = 0;
    while (memory > q->limit[r] && weights < pending(h, r)) {
        memory += q->delta[ZB_W][r];
        weights++;
    }
    return h->clock[r] + ns_of(h, ZB_F, r) + weights * ns_of(h, ZB_W, r) > next &&
           next - h->clock[r] <= h->most_idle - h->idle[r];
}

/* Forwards where they are wanted, then input gradient k of every rank. */
static void one_round(heuristic *h, int32_t k)
{
    const int32_t p = h->q->p;
    for (int32_t r = p - 1; r >= 0; r--) {
        h->want[r] = h->count[r][ZB_F] < h->q->m;
        if (h->want[r] && h->skip && r < p - 1) h->want[r] = !holds_back(h, r);
    }
    for (int32_t r = p - 2; r >= 0; r--) h->want[r] &= h->want[r + 1];
    for (int32_t r = 0; r < p && !h->stuck; r++) {
        if (!h->want[r]) continue;
        make_room(h, r, ZB_F);
        if (r > 0) fill(h, r, arrival(h, ZB_F, r));
        if (!h->stuck) place(h, r, ZB_F);
    }
    for (int32_t r = p - 1; r >= 0 && !h->stuck; r--) {
        make_room(h, r, ZB_I);
        if (r < p - 1) fill(h, r, *end_of(h, ZB_I, r + 1, k) + h->q->comm_ns);
        if (r == 0 && h->count[0][ZB_F] == h->q->m)
            while (pending(h, 0) > 0) place(h, 0, ZB_W);
        if (!h->stuck) place(h, r, ZB_I);
    }
}

static bool run(heuristic *h, zb_score *score)
{
    const size_t p = (size_t)h->q->p;
    memset(h->clock, 0, p * sizeof *h->clock);
    memset(h->memory, 0, p * sizeof *h->memory);
    memset(h->idle, 0, p * sizeof *h->idle);
    memset(h->count, 0, p * sizeof *h->count);
    memset(h->o->n, 0, p * sizeof *h->o->n);
    h->most_idle = 0;
    h->stuck = false;
    warm_up(h);
    for (int32_t k = 1; k < h->q->m && !h->stuck; k++) one_round(h, k);
    if (h->stuck) return false;
    *score = (zb_score){0};
    for (int32_t r = 0; r < h->q->p; r++) {
        while (pending(h, r) > 0) place(h, r, ZB_W);
        const int64_t first = *end_of(h, ZB_F, r, 0) - ns_of(h, ZB_F, r);
        const int64_t span = h->clock[r] - first;
        if (span > score->span_ns) score->span_ns = span;
        if (h->clock[r] > score->makespan_ns) score->makespan_ns = h->clock[r];
        score->spans_ns += span;
    }
    return true;
}

td_status zb_heuristic(const zb_problem *q, zb_objective objective, td_arena *a, zb_order *out,
                       zb_score *score, bool *found, td_err *err)
{
    const size_t p = (size_t)q->p, n = p * (size_t)q->m;
    zb_order work;
    TD_TRY(zb_order_new(a, q->p, q->m, 1, &work, err));
    TD_TRY(zb_order_new(a, q->p, q->m, 1, out, err));
    heuristic h = {.q = q,
                   .o = &work,
                   .f_end = TD_NEW_N(a, int64_t, n),
                   .i_end = TD_NEW_N(a, int64_t, n),
                   .clock = TD_NEW_N(a, int64_t, p),
                   .memory = TD_NEW_N(a, int64_t, p),
                   .idle = TD_NEW_N(a, int64_t, p),
                   .count = td_alloc(a, p, sizeof *h.count),
                   .extra = TD_NEW_N(a, int32_t, p),
                   .want = TD_NEW_N(a, bool, p)};
    if (h.f_end == NULL || h.i_end == NULL || h.clock == NULL || h.memory == NULL ||
        h.idle == NULL || h.count == NULL || h.extra == NULL || h.want == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a search");
    *found = false;
    for (int i = 0; i < 8; i++) {
        zb_score s;
        h.lazy = (i & 4) == 0;
        h.skip = (i & 2) == 0;
        h.fill_small = (i & 1) == 0;
        if (!run(&h, &s)) continue;
        const bool shorter =
            objective == ZB_SPAN ? s.span_ns < score->span_ns : s.makespan_ns < score->makespan_ns;
        if (*found && !shorter) continue;
        *found = true;
        *score = s;
        zb_order_copy(out, &work);
    }
    return TD_OK;
}
