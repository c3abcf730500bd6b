/* Branch and bound for the smallest longest span, one stage a rank.
 *
 * A rank's window opens with its first F, which runs as early as it can, and must close within a
 * span Z. The decision "is there an order within Z?" extends a partial schedule pass by pass: of
 * all passes that could run next, the one that would end first names a rank, and one of that rank's
 * passes that could start before that end comes next (Giffler and Thompson 1960). Some best
 * schedule is among those: an F that moves left over I and W keeps to the memory that it needs
 * where it was. A state is cut off when the earliest starts of what is left miss their latest ends
 * (zb_windows.c), or when an earlier state with the same passes done was nowhere later. */
#include "schedules/zb_windows.h"

#include <string.h>

enum { SLOTS = 1 << 19, ENTRIES_MAX = 1 << 19, POOL_MAX = 1 << 25, COMPARED_MAX = 32 };
static const int64_t default_states = 2000000;

/* States that led nowhere, by the passes that are done in them. */
typedef struct memo {
    uint32_t *slots;     /* [SLOTS] newest entry, plus 1 */
    uint32_t *older;     /* [ENTRIES_MAX] next entry of the slot, plus 1 */
    uint32_t *at, *size; /* [ENTRIES_MAX] its numbers in the pool */
    uint32_t n, n_pool;
    int32_t *pool;
} memo;

typedef struct branching {
    zb_windows *w;
    memo seen;
    int32_t *numbers; /* of the state at hand: counts, then clocks and arrivals */
    zb_order *order;
    int64_t states, most_states, until_ns;
    bool spent;
} branching;

/* --- states seen --- */

/* Counts of passes first, then everything that the rest depends on. Returns how many numbers. */
static uint32_t describe(const branching *b, uint32_t *n_key)
{
    const zb_windows *const w = b->w;
    int32_t *const x = b->numbers;
    uint32_t n = 0;
    for (int32_t r = 0; r < w->p; r++)
        for (int k = 0; k < 3; k++) x[n++] = w->count[r][k];
    *n_key = n;
    for (int32_t r = 0; r < w->p; r++) x[n++] = w->clock[r];
    for (int32_t r = 0; r + 1 < w->p; r++) {
        for (int32_t k = w->count[r + 1][ZB_F]; k < w->count[r][ZB_F]; k++) {
            const int32_t at = *zb_window(w, w->end[ZB_F], r, k) + w->comm;
            x[n++] = at > w->clock[r + 1] ? at : w->clock[r + 1];
        }
        for (int32_t k = w->count[r][ZB_I]; k < w->count[r + 1][ZB_I]; k++) {
            const int32_t at = *zb_window(w, w->end[ZB_I], r + 1, k) + w->comm;
            x[n++] = at > w->clock[r] ? at : w->clock[r];
        }
    }
    return n;
}

static uint32_t slot_of(const int32_t *x, uint32_t n)
{
    uint64_t h = 14695981039346656037u;
    for (uint32_t i = 0; i < n; i++) h = (h ^ (uint64_t)(uint32_t)x[i]) * 1099511628211u;
    return (uint32_t)((h ^ h >> 29) & (SLOTS - 1));
}

static bool nowhere_later(const int32_t *x, const int32_t *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (x[i] > y[i]) return false;
    return true;
}

/* Whether a state seen before dominates this one; if not, remembers this one. */
static bool seen_better(branching *b)
{
    memo *const s = &b->seen;
    uint32_t n_key = 0;
    const uint32_t n = describe(b, &n_key);
    uint32_t *const slot = &s->slots[slot_of(b->numbers, n_key)];
    uint32_t e = *slot;
    for (int i = 0; e != 0 && i < COMPARED_MAX; i++, e = s->older[e - 1]) {
        const int32_t *const x = s->pool + s->at[e - 1];
        if (s->size[e - 1] == n && memcmp(x, b->numbers, n_key * sizeof *x) == 0 &&
            nowhere_later(x + n_key, b->numbers + n_key, n - n_key))
            return true;
    }
    if (s->n == ENTRIES_MAX || s->n_pool + n > POOL_MAX) return false;
    memcpy(s->pool + s->n_pool, b->numbers, n * sizeof *b->numbers);
    s->at[s->n] = s->n_pool;
    s->size[s->n] = n;
    s->older[s->n] = *slot;
    s->n_pool += n;
    *slot = ++s->n;
    return false;
}

/* --- branching --- */

typedef struct choice {
    int32_t rank, kind, start;
} choice;

/* The passes that may come next, best first; 0 when nothing can run. */
static int choices(const branching *b, choice out[3])
{
    const zb_windows *const w = b->w;
    int32_t first_end = INT32_MAX, rank = -1;
    for (int32_t r = 0; r < w->p; r++)
        for (int k = 0; k < 3; k++) {
            const int32_t start = zb_next_start(w, r, k);
            if (start < 0 || start + w->ns[k][r] >= first_end) continue;
            first_end = start + w->ns[k][r];
            rank = r;
        }
    int n = 0;
    static const int kinds[3] = {ZB_I, ZB_F, ZB_W};
    for (int i = 0; rank >= 0 && i < 3; i++) {
        const int32_t start = zb_next_start(w, rank, kinds[i]);
        if (start < 0 || start >= first_end) continue;
        int at = n++;
        for (; at > 0 && out[at - 1].start > start; at--) out[at] = out[at - 1];
        out[at] = (choice){rank, kinds[i], start};
    }
    return n;
}

static bool budget_left(branching *b)
{
    if (++b->states > b->most_states) b->spent = true;
    if (b->until_ns > 0 && b->states % 1024 == 0 && td_now_ns() > b->until_ns) b->spent = true;
    return !b->spent;
}

/* Whether the partial schedule has a completion within the windows; leaves it complete if so. */
static bool extend(branching *b, int32_t left)
{
    if (left == 0) return true;
    if (!budget_left(b) || !zb_windows_open(b->w) || seen_better(b)) return false;
    choice next[3];
    const int n = choices(b, next);
    for (int i = 0; i < n && !b->spent; i++) {
        const int32_t clock = b->w->clock[next[i].rank];
        zb_windows_run(b->w, next[i].rank, next[i].kind, next[i].start);
        zb_push(b->order, next[i].rank, zb_code(next[i].kind, 0));
        if (extend(b, left - 1)) return true;
        b->order->n[next[i].rank]--;
        zb_windows_undo(b->w, next[i].rank, next[i].kind, clock);
    }
    return false;
}

/* The smallest span that the windows alone do not rule out. */
static int32_t root_bound(zb_windows *w, int32_t at_most)
{
    int32_t no = 0, yes = at_most;
    while (yes - no > 1) {
        const int32_t mid = no + (yes - no) / 2;
        zb_windows_restart(w, mid);
        *(zb_windows_open(w) ? &yes : &no) = mid;
    }
    return yes;
}

static td_status open_memo(td_arena *a, const zb_problem *q, branching *b, td_err *err)
{
    memo *const s = &b->seen;
    s->slots = TD_NEW_N(a, uint32_t, SLOTS);
    s->older = TD_NEW_N(a, uint32_t, ENTRIES_MAX);
    s->at = TD_NEW_N(a, uint32_t, ENTRIES_MAX);
    s->size = TD_NEW_N(a, uint32_t, ENTRIES_MAX);
    s->pool = TD_NEW_N(a, int32_t, POOL_MAX);
    b->numbers = TD_NEW_N(a, int32_t, (size_t)q->p * (4 + 2 * (size_t)q->m));
    if (s->slots == NULL || s->older == NULL || s->at == NULL || s->size == NULL ||
        s->pool == NULL || b->numbers == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the states of an exact search");
    return TD_OK;
}

/* Decides smaller and smaller spans until none is left or the budget is spent. */
static void descend(branching *b, const zb_problem *q, zb_replay *replay, zb_order *order,
                    zb_score *score, int32_t *bound)
{
    const int64_t unit = b->w->unit_ns;
    const int32_t passes = 3 * q->m * q->p;
    for (;;) {
        const int32_t z = (int32_t)(score->span_ns / unit) - 1;
        if (z < *bound) break;
        memset(b->seen.slots, 0, SLOTS * sizeof *b->seen.slots);
        b->seen.n = b->seen.n_pool = 0;
        memset(b->order->n, 0, (size_t)q->p * sizeof *b->order->n);
        zb_windows_restart(b->w, z);
        zb_score s;
        const bool found = extend(b, passes);
        if (b->spent) return;
        if (!found) *bound = z + 1;
        if (!found || !zb_replay_run(q, b->order, replay, &s)) return;
        *score = s;
        zb_order_copy(order, b->order);
    }
}

td_status zb_exact(const zb_problem *q, const zb_search_options *o, td_arena *a, zb_order *order,
                   zb_score *score, int64_t *bound_ns, td_err *err)
{
    zb_windows w;
    zb_order work;
    zb_replay replay;
    branching b = {.w = &w, .order = &work};
    TD_TRY(zb_windows_new(q, score->span_ns, a, &w, err));
    TD_TRY(zb_order_new(a, q->p, q->m, 1, &work, err));
    TD_TRY(zb_replay_new(a, q, &replay, err));
    TD_TRY(open_memo(a, q, &b, err));
    b.most_states = o->search_s > 0 ? INT64_MAX : default_states;
    b.until_ns = o->search_s > 0 ? td_now_ns() + (int64_t)(o->search_s * 1e9) : 0;
    int32_t bound = root_bound(&w, (int32_t)(score->span_ns / w.unit_ns));
    descend(&b, q, &replay, order, score, &bound);
    *bound_ns = bound * w.unit_ns;
    return TD_OK;
}
