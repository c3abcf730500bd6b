/* 1F1B-V (arXiv 2405.15362): whole backwards on the V placement, at about two thirds of 1F1B's
 * activations. Slots as in V-Half, where a backward takes two. */
#include "schedules/families.h"
#include "schedules/zb_core.h"

#include <string.h>

enum { FD, FU, BD, BU, KINDS }; /* in the order in which a microbatch meets them */

/* Slots of one rank's passes. */
typedef struct row {
    uint8_t *at; /* kind + 1; both slots of a backward carry it; 0: free */
    int32_t n;
    int32_t *slot[KINDS]; /* [m] first slots */
} row;

typedef struct board {
    int32_t p, m;
    row *rows; /* [p] */
} board;

/* Passes of microbatch 0 along the V. Backwards come in runs of three with a pause of three slots,
 * so that no two passes of a rank meet modulo six. */
static void first_microbatch(int32_t p, board *b)
{
    int32_t now = 0, run = (3 - (p + 2) % 3) % 3;
    for (int32_t r = 0; r < p; r++) b->rows[r].slot[FD][0] = now++;
    for (int32_t r = p - 1; r >= 0; r--) b->rows[r].slot[FU][0] = now++;
    if (p % 3 == 0) now += 3;
    for (int32_t i = 0; i < 2 * p; i++) {
        const int32_t r = i < p ? i : 2 * p - 1 - i;
        b->rows[r].slot[i < p ? BD : BU][0] = now;
        now += 2;
        if (++run == 3) {
            run = 0;
            now += 3;
        }
    }
}

static int32_t width(int kind) { return kind >= BD ? 2 : 1; }

static td_status open_board(td_arena *a, int32_t p, int32_t m, board *b, td_err *err)
{
    *b = (board){.p = p, .m = m, .rows = TD_NEW_N(a, row, p)};
    if (b->rows == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    for (int32_t r = 0; r < p; r++)
        for (int kind = 0; kind < KINDS; kind++) {
            b->rows[r].slot[kind] = TD_NEW_N(a, int32_t, m);
            if (b->rows[r].slot[kind] == NULL)
                return td_fail(err, TD_ENOMEM, "out of memory for slots");
        }
    first_microbatch(p, b);
    for (int32_t r = 0; r < p; r++) {
        row *const w = &b->rows[r];
        w->n = w->slot[BU][0] + 6 * m + 2;
        w->at = TD_NEW_N(a, uint8_t, w->n);
        if (w->at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
        for (int kind = 0; kind < KINDS; kind++)
            for (int32_t k = 0; k < m; k++) {
                w->slot[kind][k] = w->slot[kind][0] + 6 * k;
                memset(w->at + w->slot[kind][k], kind + 1, (size_t)width(kind));
            }
    }
    return TD_OK;
}

/* Live chunk activations after each slot: a backward frees in its second slot. */
static int32_t live_after(const row *w, int32_t *live)
{
    int32_t now = 0, peak = 0;
    for (int32_t s = 0; s < w->n; s++) {
        const int kind = w->at[s] - 1;
        if (kind == FD || kind == FU) now++;
        if (kind >= BD && s + 1 < w->n) {
            live[s++] = now; /* the first slot of the two */
            now--;
        }
        live[s] = now;
        if (now > peak) peak = now;
    }
    return peak;
}

/* The first slot that data and order allow. */
static int32_t earliest(const board *b, int32_t r, int kind, int32_t k)
{
    const int32_t near = kind == FD || kind == BD ? r - 1 : r + 1;
    int32_t lo = 0;
    if (k > 0) lo = b->rows[r].slot[kind][k - 1] + width(kind);
    if (near >= 0 && near < b->p) {
        const int32_t s = b->rows[near].slot[kind][k] + width(kind);
        if (s > lo) lo = s;
    } else if (kind > FD) {
        const int32_t s = b->rows[r].slot[kind - 1][k] + width(kind - 1);
        if (s > lo) lo = s;
    }
    return lo;
}

static void shift(row *w, int kind, int32_t k, int32_t to)
{
    const int32_t from = w->slot[kind][k];
    memset(w->at + from, 0, (size_t)width(kind));
    memset(w->at + to, kind + 1, (size_t)width(kind));
    w->slot[kind][k] = to;
}

/* Moves a pass as early as it may go; a forward only as far as live activations stay within the
 * peak on the way. */
static void pull(board *b, int32_t r, int kind, int32_t k, int32_t *live, int32_t peak)
{
    row *const w = &b->rows[r];
    const int32_t from = w->slot[kind][k];
    int32_t to = earliest(b, r, kind, k);
    if (kind >= BD) {
        while (to < from && (w->at[to] != 0 || w->at[to + 1] != 0)) to++;
        if (to >= from) return;
        for (int32_t s = to + 1; s < from + 1; s++) live[s]--;
    } else {
        int32_t place = from;
        while (place > to && live[place - 1] < peak) place--;
        while (place < from && w->at[place] != 0) place++;
        to = place;
        for (int32_t s = to; s < from; s++) live[s]++;
    }
    if (to < from) shift(w, kind, k, to);
}

static td_status pull_all(board *b, td_arena *a, td_err *err)
{
    int32_t **const live = TD_NEW_N(a, int32_t *, b->p);
    int32_t peak = 0, slots = 0;
    if (live == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    int32_t(*const seen)[KINDS] = td_alloc(a, (size_t)b->p, sizeof *seen);
    if (seen == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
    for (int32_t r = 0; r < b->p; r++) {
        live[r] = TD_NEW_N(a, int32_t, b->rows[r].n);
        if (live[r] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for slots");
        const int32_t own = live_after(&b->rows[r], live[r]);
        if (own > peak) peak = own;
        if (b->rows[r].n > slots) slots = b->rows[r].n;
    }
    for (int32_t s = 0; s < slots; s++)
        for (int32_t r = 0; r < b->p; r++) {
            const row *const w = &b->rows[r];
            const int kind = s < w->n ? w->at[s] - 1 : -1;
            if (kind < 0 || seen[r][kind] >= b->m || w->slot[kind][seen[r][kind]] != s) continue;
            pull(b, r, kind, seen[r][kind]++, live[r], peak);
        }
    return TD_OK;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    static const uint8_t codes[KINDS] = {ZB_F * 2, ZB_F * 2 + 1, ZB_B * 2 + 1, ZB_B * 2};
    board b;
    zb_order o;
    TD_TRY(zb_check_shape(q, "1f1b-v", 2, err));
    TD_TRY(zb_order_new(a, q->pp, q->microbatches, 2, &o, err));
    TD_TRY(open_board(a, q->pp, q->microbatches, &b, err));
    TD_TRY(pull_all(&b, a, err));
    for (int32_t r = 0; r < b.p; r++)
        for (int32_t s = 0; s < b.rows[r].n; s++) {
            const int kind = b.rows[r].at[s] - 1;
            if (kind < 0) continue;
            zb_push(&o, r, codes[kind]);
            s += width(kind) - 1;
        }
    return zb_order_schedule(&o, a, out, err);
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_1f1b_v = {
    .name = "1f1b-v",
    .summary = "whole backwards, two chunks a rank in a V, at about two thirds of 1F1B's memory",
    .constraints = "P >= 1, M >= 1, V = 2",
    .options = no_options,
    .generate = generate,
};
