/* Orders on the V placement for a limit of memory between V-Min and ZB-V: building blocks whose
 * ranks lie i0 slots apart for the first of them and i1 for the others (the idea of the adaptive
 * scheduler of arXiv 2405.15362), packed as V-Half is. */
#include "schedules/v_slots.h"
#include "schedules/zb_search.h"

enum { SPARE = 1, FITTING = 8, TRIES = 32, LONGEST = 64 /* bits of a set of slots */ };

typedef struct shape {
    int32_t p, wide; /* ranks 1..wide lie `far` slots after the one before */
    int32_t far, near;
    int32_t period; /* slots from one microbatch to the next */
    int32_t gap[3]; /* at the turns, beyond one slot */
} shape;

static void fill_block(const shape *s, int32_t (*block)[4])
{
    const int32_t p = s->p;
    int32_t at = 0;
    for (int32_t r = 0; r < p; r++) {
        if (r > 0) at += r <= s->wide ? s->far : s->near;
        block[r][V_FD] = at;
    }
    at += s->gap[0];
    for (int32_t r = p - 1; r >= 0; r--) block[r][V_FU] = ++at;
    at += s->gap[1] + 1;
    for (int32_t r = 0; r < p; r++) block[r][V_ID] = at + block[r][V_FD];
    at += block[p - 1][V_FD] + s->gap[2];
    for (int32_t r = p - 1; r >= 0; r--) block[r][V_IU] = ++at;
}

/* No two passes of a rank meet when the block repeats. */
static bool is_free(const shape *s, const int32_t (*block)[4])
{
    for (int32_t r = 0; r < s->p; r++) {
        uint64_t taken = 0;
        for (int k = 0; k < V_WD; k++) {
            const uint64_t bit = UINT64_C(1) << block[r][k] % s->period;
            if ((taken & bit) != 0) return false;
            taken |= bit;
        }
    }
    return true;
}

/* Chunk activations alive at a time, from how long they live; at least one less than the peak. */
static int32_t least_peak(const shape *s, const int32_t (*block)[4])
{
    int32_t most = 0;
    for (int32_t r = 0; r < s->p; r++) {
        const int32_t life = block[r][V_IU] - block[r][V_FD] + block[r][V_ID] - block[r][V_FU] + 4;
        if (life / s->period > most) most = life / s->period;
    }
    return most;
}

/* A gap of a whole period keeps one more chunk activation between two legs: odd limits take that.
 * Stops after `most` orders, whether they fit or not. */
static td_status try_gaps(const zb_problem *q, shape *s, int32_t limit, int32_t (*block)[4],
                          int most, zb_taker take, void *to, int *fitting, td_err *err)
{
    const int32_t n = 2 * s->period;
    const int32_t(*const fixed)[4] = (const int32_t(*)[4])block;
    for (int32_t g = 0; g < s->period * n * n && most > 0; g++) {
        s->gap[0] = g / (n * n);
        s->gap[1] = g / n % n;
        s->gap[2] = g % n;
        fill_block(s, block);
        const int32_t peak = least_peak(s, fixed);
        if (peak > limit || peak + SPARE < limit || !is_free(s, fixed)) continue;
        zb_order o;
        most--;
        td_arena *const scratch = td_arena_new();
        if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a search");
        const td_status st = v_pack(q->p, q->m, 2 * q->p, s->period, fixed, scratch, &o, err);
        if (st == TD_OK) *fitting += take(to, &o);
        td_arena_free(scratch);
        if (st != TD_OK) return st;
    }
    return TD_OK;
}

td_status zb_blocks(const zb_problem *q, int32_t limit, zb_taker take, void *to, td_arena *a,
                    td_err *err)
{
    int32_t(*const block)[4] = td_alloc(a, (size_t)q->p, sizeof *block);
    if (block == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a search");
    /* with more than ZB-V's memory there is nothing to win from blocks */
    const int32_t most = limit < 2 * q->p ? limit : 2 * q->p;
    int fits = 0; /* with no idle slot, and else with as few as it takes */
    for (int32_t far = 1; far < V_PERIOD; far++)
        for (int32_t near = 1; near <= far; near++) {
            int fitting = 0;
            for (int32_t wide = near == far ? 0 : q->p - 2; wide >= 0 && fitting < FITTING;
                 wide--) {
                shape s = {.p = q->p, .wide = wide, .far = far, .near = near, .period = V_PERIOD};
                TD_TRY(try_gaps(q, &s, most, block, INT32_MAX, take, to, &fitting, err));
            }
            fits += fitting;
        }
    for (int32_t period = V_PERIOD + 1; fits == 0 && period <= LONGEST; period++) {
        shape s = {.p = q->p, .far = 1, .near = 1, .period = period};
        TD_TRY(try_gaps(q, &s, most, block, TRIES, take, to, &fits, err));
    }
    return TD_OK;
}
