/* V-shaped schedules made of slots: a block of unit slots for one microbatch, repeated every six
 * slots, then packed (arXiv 2405.15362). */
#ifndef SCHEDULES_V_SLOTS_H
#define SCHEDULES_V_SLOTS_H

#include "schedules/zb_core.h"

/* Slots from one microbatch to the next when none is idle: the passes of two chunks. */
enum { V_PERIOD = 6 };

/* Rows of passes at slots. Kinds: F of chunk 0, F of chunk 1, I of chunk 1, I of chunk 0, in the
 * order in which a microbatch meets them, then W of chunk 1 and W of chunk 0 (or, while `joint`,
 * all W in one list: the first). */
enum { V_FD, V_FU, V_ID, V_IU, V_WD, V_WU, V_KINDS };

typedef struct v_slots {
    int32_t p, m;
    int32_t *slot[V_KINDS]; /* [p * m], joint W: [p * 2m] in V_WD; ascending in each row and kind */
    int32_t n_weights[2];   /* passes a row of V_WD and V_WU: 0, m or 2m */
} v_slots;

/* One pass: sorting keys of a visit. */
typedef struct v_pass {
    int32_t slot, rank, kind, k;
} v_pass;

/* Empty slots for p ranks and m microbatches, from `a`. Errors: TD_EUSAGE, TD_ENOMEM. */
TD_MUST_USE td_status v_slots_new(td_arena *a, int32_t p, int32_t m, v_slots *out, td_err *err);

static inline int32_t *v_row(const v_slots *v, int kind, int32_t rank)
{
    const int32_t width = kind >= V_WD ? 2 * v->m : v->m;
    return v->slot[kind] + (size_t)rank * (size_t)width;
}

static inline int32_t v_count(const v_slots *v, int kind)
{
    return kind < V_WD ? v->m : v->n_weights[kind - V_WD];
}

/* All passes by (slot, rank, kind, microbatch); their number in *n. */
TD_MUST_USE td_status v_visit(const v_slots *v, td_arena *a, v_pass **out, size_t *n, td_err *err);

/* Sets each pass to the earliest unit slot that its data and its row's order allow. */
TD_MUST_USE td_status v_squeeze(v_slots *v, td_arena *a, td_err *err);

/* The blocks of V-Half and V-Min on rank r of p. */
typedef void v_block(int32_t p, int32_t r, int32_t at[4]);
v_block v_half_block, v_min_block;
/* The order of V-Half or V-Min. */
TD_MUST_USE td_status v_block_order(int32_t p, int32_t m, v_block *block, td_arena *a,
                                    zb_order *out, td_err *err);

/* The order of m microbatches whose first one has its F of chunk 0 and 1 and its I of chunk 1 and 0
 * on rank r in the unit slots block[r], the others `period` slots after each other: squeezed, with
 * warm-up and cool-down packed below the peak of the whole (v_memory.c). Packs at least `least`
 * microbatches and drops what is too many. */
TD_MUST_USE td_status v_pack(int32_t p, int32_t m, int32_t least, int32_t period,
                             const int32_t (*block)[4], td_arena *a, zb_order *out, td_err *err);

#endif
