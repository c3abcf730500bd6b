/* Do sharded vocabulary layers get what they need? Every rank has S and T of every microbatch, and
 * E and G where there are any; each waits for its barrier, which left behind the passes that gave
 * to it. Rules: arXiv 2411.05288, section 5; specs of the barriers in lower_vocab.c. */
#include "schedules/plan_check.h"

#include <string.h>

/* Tasks by (rank, microbatch, slice). */
typedef enum vocab_table {
    VT_S,
    VT_T,
    VT_E,
    VT_G,
    VT_C0,
    VT_C1,
    VT_C2,
    VT_SUM,  /* of the partial embeddings */
    VT_GRAD, /* of the embedding, to all */
    VT_FIRST_F,
    VT_LAST_F,
    VT_FIRST_B,
    VT_LAST_B,
    VT_COUNT
} vocab_table;

typedef struct vocab_flow {
    const plan_map *m;
    const plan *p;
    uint32_t *task[VT_COUNT];
} vocab_flow;

static size_t slot_of(const vocab_flow *f, uint32_t rank, uint32_t m, uint32_t k)
{
    return ((size_t)rank * (size_t)f->p->n_microbatches + m) * (size_t)f->p->n_slices + k;
}

static td_status enter(vocab_flow *f, vocab_table table, uint32_t task, uint32_t m, uint32_t k,
                       td_err *err)
{
    const plan *const p = f->p;
    if (m >= (uint32_t)p->n_microbatches || k >= (uint32_t)p->n_slices)
        return check_fail(f->m, task, err, "no such microbatch or slice");
    uint32_t *const at = &f->task[table][slot_of(f, map_rank(f->m, task), m, k)];
    if (*at != PLAN_NONE) return check_fail(f->m, task, err, "it occurs twice");
    *at = task;
    return TD_OK;
}

static td_status enter_pass(vocab_flow *f, uint32_t task, uint8_t kind, uint32_t cls, uint32_t m,
                            uint32_t k, td_err *err)
{
    static const vocab_table tables[PASS_COUNT] = {
        [PASS_S] = VT_S, [PASS_T] = VT_T, [PASS_E] = VT_E, [PASS_G] = VT_G};
    const int32_t stage = f->p->insts[f->p->classes[cls].inst].stage;
    const bool backward = kind == PASS_B || kind == PASS_I;
    if (kind >= PASS_S) return enter(f, tables[kind], task, m, k, err);
    if (kind != PASS_F && !backward) return TD_OK;
    if (stage == 0) TD_TRY(enter(f, backward ? VT_FIRST_B : VT_FIRST_F, task, m, k, err));
    if (stage != f->p->n_stages - 1) return TD_OK;
    return enter(f, backward ? VT_LAST_B : VT_LAST_F, task, m, k, err);
}

static td_status enter_task(vocab_flow *f, uint32_t task, td_err *err)
{
    const plan *const p = f->p;
    const plan_task *const t = &p->tasks[task];
    if (t->kind < PASS_COUNT)
        return enter_pass(f, task, t->kind, t->cls, t->microbatch, t->slice, err);
    for (uint32_t i = t->link; t->kind == TASK_PAIR && i < t->link + 2; i++) {
        const plan_member *const m = &p->members[i];
        TD_TRY(enter_pass(f, task, m->kind, m->cls, m->microbatch, m->slice, err));
    }
    if (t->kind != TASK_COLL || t->microbatch == PLAN_NONE) return TD_OK;
    switch ((coll_purpose)p->classes[t->cls].purpose) {
    case PURPOSE_C0: return enter(f, VT_C0, task, t->microbatch, t->slice, err);
    case PURPOSE_C1: return enter(f, VT_C1, task, t->microbatch, t->slice, err);
    case PURPOSE_C2: return enter(f, VT_C2, task, t->microbatch, t->slice, err);
    case PURPOSE_EMBED_SUM: return enter(f, VT_SUM, task, t->microbatch, t->slice, err);
    case PURPOSE_EMBED_GRAD: return enter(f, VT_GRAD, task, t->microbatch, t->slice, err);
    default: return TD_OK;
    }
}

/* --- the rules --- */

static uint32_t at(const vocab_flow *f, vocab_table table, size_t slot)
{
    return f->task[table][slot];
}

/* The barrier is there, and leaves behind the pass that gives to it. */
static td_status check_gives(const vocab_flow *f, vocab_table barrier, vocab_table pass,
                             size_t slot, td_err *err)
{
    const uint32_t c = at(f, barrier, slot), giver = at(f, pass, slot);
    if (c == PLAN_NONE) return check_fail(f->m, giver, err, "no barrier takes what it gives");
    const uint32_t gate = f->p->tasks[c].gate;
    if (gate == PLAN_NONE || gate < giver)
        return check_fail(f->m, c, err, "it leaves before the pass that gives to it");
    return TD_OK;
}

static td_status check_waits(const vocab_flow *f, vocab_table barrier, vocab_table pass,
                             size_t slot, td_err *err)
{
    const uint32_t c = at(f, barrier, slot), taker = at(f, pass, slot);
    if (c == PLAN_NONE) return check_fail(f->m, taker, err, "no barrier brings what it needs");
    const plan_task *const t = &f->p->tasks[c];
    if (t->join == PLAN_NONE || t->join > taker || (t->flags & TASK_FLAG_JOIN_NEXT))
        return check_fail(f->m, taker, err, "it does not wait for the barrier it needs");
    return TD_OK;
}

static td_status check_order(const vocab_flow *f, vocab_table first, vocab_table second,
                             size_t slot, td_err *err)
{
    if (at(f, first, slot) < at(f, second, slot)) return TD_OK;
    return check_fail(f->m, at(f, second, slot), err, "it comes before a pass it needs");
}

static td_status check_output(const vocab_flow *f, size_t slot, td_err *err)
{
    const bool has_c2 = at(f, VT_C2, slot) != PLAN_NONE;
    TD_TRY(check_order(f, VT_S, VT_T, slot, err));
    if (at(f, VT_LAST_F, slot) != PLAN_NONE) {
        TD_TRY(check_order(f, VT_LAST_F, VT_S, slot, err));
        TD_TRY(check_gives(f, VT_C0, VT_LAST_F, slot, err));
    } else {
        TD_TRY(check_waits(f, VT_C0, VT_S, slot, err));
    }
    TD_TRY(check_gives(f, VT_C1, VT_S, slot, err));
    TD_TRY(check_waits(f, VT_C1, VT_T, slot, err));
    if (has_c2) TD_TRY(check_gives(f, VT_C2, VT_T, slot, err));
    if (at(f, VT_LAST_B, slot) == PLAN_NONE) return TD_OK;
    return check_waits(f, has_c2 ? VT_C2 : VT_C1, VT_LAST_B, slot, err);
}

static td_status check_input(const vocab_flow *f, size_t slot, td_err *err)
{
    TD_TRY(check_gives(f, VT_SUM, VT_E, slot, err));
    if (at(f, VT_FIRST_F, slot) != PLAN_NONE) TD_TRY(check_waits(f, VT_SUM, VT_FIRST_F, slot, err));
    if (at(f, VT_FIRST_B, slot) == PLAN_NONE) return check_waits(f, VT_GRAD, VT_G, slot, err);
    TD_TRY(check_order(f, VT_FIRST_B, VT_G, slot, err));
    return check_gives(f, VT_GRAD, VT_FIRST_B, slot, err);
}

/* All ranks of a replica meet in the same collective. */
static td_status check_same(const vocab_flow *f, uint32_t rank, uint32_t m, uint32_t k, td_err *err)
{
    const plan *const p = f->p;
    const size_t slot = slot_of(f, rank, m, k);
    for (uint32_t r = 0; r < rank; r++) {
        if (p->ranks[r].replica != p->ranks[rank].replica) continue;
        for (int b = VT_C0; b <= VT_GRAD; b++) {
            const uint32_t x = f->task[b][slot], y = f->task[b][slot_of(f, r, m, k)];
            if (x == y ||
                (x != PLAN_NONE && y != PLAN_NONE && p->tasks[x].link == p->tasks[y].link))
                continue;
            return check_fail(f->m, x != PLAN_NONE ? x : y, err,
                              "not all ranks of its replica take part");
        }
        return TD_OK; /* the others have been held against that one */
    }
    return TD_OK;
}

static td_status check_all(const vocab_flow *f, bool has_e, td_err *err)
{
    static const char letters[] = "STEG";
    const plan *const p = f->p;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t m = 0; m < (uint32_t)p->n_microbatches; m++)
            for (uint32_t k = 0; k < (uint32_t)p->n_slices; k++) {
                const size_t slot = slot_of(f, r, m, k);
                for (int t = VT_S; t <= (has_e ? VT_G : VT_T); t++)
                    if (f->task[t][slot] == PLAN_NONE)
                        return td_fail(err, TD_EPLAN,
                                       "rank %u: %c of microbatch %u, slice %u is missing", r,
                                       letters[t], m, k);
                TD_TRY(check_output(f, slot, err));
                if (has_e) TD_TRY(check_input(f, slot, err));
                TD_TRY(check_same(f, r, m, k, err));
            }
    return TD_OK;
}

td_status check_vocab_flow(const plan_map *m, td_arena *a, td_err *err)
{
    const plan *const p = m->p;
    vocab_flow f = {.m = m, .p = p};
    bool has_s = false, has_e = false;
    for (uint32_t i = 0; i < p->n_classes; i++) {
        has_s |= p->classes[i].kind == PASS_S || p->classes[i].kind == PASS_T;
        has_e |= p->classes[i].kind == PASS_E || p->classes[i].kind == PASS_G;
    }
    if (!has_s) return TD_OK;
    const size_t slots = slot_of(&f, p->n_ranks, 0, 0);
    for (int t = 0; t < VT_COUNT; t++) {
        f.task[t] = TD_NEW_N(a, uint32_t, slots);
        if (f.task[t] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
        memset(f.task[t], 0xff, slots * sizeof(uint32_t));
    }
    for (uint32_t t = 0; t < p->n_tasks; t++) TD_TRY(enter_task(&f, t, err));
    return check_all(&f, has_e, err);
}
