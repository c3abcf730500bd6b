/* zb-auto: an order of split passes found for given durations and limits of memory. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"
#include "schedules/v_slots.h"
#include "schedules/zb_search.h"
#include "schedules/zb_v.h"

#include <stdio.h>
#include <string.h>

enum { SEARCH_LOCAL, SEARCH_HEURISTIC, SEARCH_EXACT };

/* The best order so far. */
typedef struct best_order {
    const zb_problem *q;
    zb_objective objective;
    zb_replay replay;
    zb_order order;
    zb_score score;
    bool found;
} best_order;

/* Takes an order if it is better than the best so far. False when it does not fit or finish. */
static bool offer(void *to, const zb_order *o)
{
    best_order *const best = to;
    zb_score s;
    for (int32_t r = 0; r < o->p; r++)
        if (zb_peak(best->q, o, r) > best->q->limit[r]) return false;
    if (!zb_replay_run(best->q, o, &best->replay, &s)) return false;
    if (best->found && !zb_better(&s, &best->score, best->objective)) return true;
    best->found = true;
    best->score = s;
    zb_order_copy(&best->order, o);
    return true;
}

/* One microbatch at a time: what every limit allows that allows one at all. */
static td_status offer_frugal(best_order *best, td_arena *a, td_err *err)
{
    const zb_problem *const q = best->q;
    zb_order o;
    TD_TRY(zb_order_new(a, q->p, q->m, q->chunks, &o, err));
    for (int32_t r = 0; r < q->p; r++)
        for (int32_t k = 0; k < q->m; k++) {
            for (int c = 0; c < q->chunks; c++) zb_push(&o, r, zb_code(ZB_F, c));
            for (int c = q->chunks - 1; c >= 0; c--) {
                zb_push(&o, r, zb_code(ZB_I, c));
                zb_push(&o, r, zb_code(ZB_W, c));
            }
        }
    (void)offer(best, &o);
    return TD_OK;
}

/* The heuristic as if messages, forwards or memory were other than they are. */
static td_status offer_variants(best_order *best, td_arena *a, td_err *err)
{
    const zb_problem *const q = best->q;
    zb_order o;
    zb_score s;
    bool found = false;
    for (int i = 0; i < 6; i++) {
        static const double comm[] = {0, 0.5, 1.5, 2, 3, 4};
        zb_problem like = *q;
        like.comm_ns = (int64_t)((double)q->comm_ns * comm[i]);
        TD_TRY(zb_heuristic(&like, best->objective, a, &o, &s, &found, err));
        if (found) (void)offer(best, &o);
    }
    int64_t *const less = TD_NEW_N(a, int64_t, q->p);
    if (less == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a search");
    for (int32_t i = 1; i < 8; i++) {
        zb_problem like = *q;
        for (int32_t r = 0; r < q->p; r++) less[r] = q->limit[r] - i * q->delta[ZB_F][r] / 2;
        like.limit = less;
        TD_TRY(zb_heuristic(&like, best->objective, a, &o, &s, &found, err));
        if (found) (void)offer(best, &o);
    }
    return TD_OK;
}

/* The fixed orders of the placement: a search is not worse than what can be had without one. */
static td_status offer_fixed(best_order *best, td_arena *a, td_err *err)
{
    const zb_problem *const q = best->q;
    zb_order o;
    for (int32_t lead = 1; lead <= 2 && q->chunks == 1; lead++) {
        TD_TRY(zb_slot_order(q->p, q->m, lead, a, &o, err));
        (void)offer(best, &o);
    }
    if (q->chunks == 1) return TD_OK;
    static v_block *const blocks[] = {v_half_block, v_min_block};
    for (int i = 0; i < 2; i++) {
        TD_TRY(v_block_order(q->p, q->m, blocks[i], a, &o, err));
        (void)offer(best, &o);
    }
    TD_TRY(zb_v_hand(q->p, q->m, a, &o, err));
    (void)offer(best, &o);
    /* few microbatches may need less than the limit that ZB-V is made for */
    zb_problem like = *q;
    bool found = false;
    int64_t *const own = TD_NEW_N(a, int64_t, q->p);
    if (own == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a search");
    for (int32_t r = 0; r < q->p; r++)
        own[r] = q->p * (q->delta[ZB_F][r] + q->delta[ZB_F][2 * q->p - 1 - r]);
    like.limit = own;
    TD_TRY(zb_v_even(&like, a, &o, &found, err));
    if (found) (void)offer(best, &o);
    return TD_OK;
}

/* Blocks on the V for the memory that every rank has. */
static td_status offer_v(best_order *best, td_arena *a, td_err *err)
{
    const zb_problem *const q = best->q;
    int64_t chunks = INT32_MAX;
    for (int32_t r = 0; r < q->p; r++) {
        const int64_t x = q->delta[ZB_F][r], y = q->delta[ZB_F][2 * q->p - 1 - r];
        const int64_t fit = q->limit[r] / (x > y ? x : y);
        if (fit < chunks) chunks = fit;
    }
    return zb_blocks(q, (int32_t)chunks, offer, best, a, err);
}

static td_status first_orders(best_order *best, bool heuristic_only, td_arena *a, td_err *err)
{
    const zb_problem *const q = best->q;
    zb_order o;
    zb_score s;
    bool found = false;
    TD_TRY(zb_replay_new(a, q, &best->replay, err));
    TD_TRY(zb_order_new(a, q->p, q->m, q->chunks, &best->order, err));
    if (q->chunks == 1) {
        TD_TRY(zb_heuristic(q, best->objective, a, &o, &s, &found, err));
        if (found) (void)offer(best, &o);
        if (!heuristic_only) TD_TRY(offer_variants(best, a, err));
    } else {
        TD_TRY(zb_v_even(q, a, &o, &found, err));
        if (found) (void)offer(best, &o);
        if (!found || !heuristic_only) TD_TRY(offer_v(best, a, err));
    }
    if (!heuristic_only) TD_TRY(offer_fixed(best, a, err));
    if (!best->found || !heuristic_only) TD_TRY(offer_frugal(best, a, err));
    return TD_OK;
}

/* The most work of a rank, below which no span can be. */
static int64_t work_ns(const zb_problem *q)
{
    int64_t most = 0;
    for (int32_t r = 0; r < q->p; r++) {
        int64_t sum = 0;
        for (int k = 0; k < 3; k++) {
            sum += q->pass_ns[k][r];
            if (q->chunks == 2) sum += q->pass_ns[k][2 * q->p - 1 - r];
        }
        if (sum * q->m > most) most = sum * q->m;
    }
    return most;
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    static const char *const searches[] = {"local", "heuristic", "exact", NULL};
    static const char *const objectives[] = {"span", "makespan", NULL};
    static const char *const placements[] = {"linear", "v", NULL};
    int64_t search = 0, objective = 0, placement = 0;
    zb_problem z;
    TD_TRY(sched_option_choice(q, "search", searches, &search, err));
    TD_TRY(sched_option_choice(q, "objective", objectives, &objective, err));
    TD_TRY(sched_option_choice(q, "placement", placements, &placement, err));
    TD_TRY(zb_check_shape(q, "zb-auto", placement == 0 ? 1 : 2, err));
    if (search == SEARCH_EXACT && (placement != 0 || objective != 0))
        return td_fail(err, TD_EUSAGE,
                       "--opt search=exact: proves spans of one stage a rank; legal: "
                       "placement=linear objective=span, or search=local");
    TD_TRY(zb_problem_of(q, placement == 0 ? 1 : 2, true, q->pp, a, &z, err));
    zb_search_options o = {
        .objective = (zb_objective)objective, .seed = q->seed, .search_s = q->search_s};
    if (search == SEARCH_EXACT) o.trials = 4000000; /* a start for the proof */
    best_order best = {.q = &z, .objective = o.objective};
    TD_TRY(first_orders(&best, search == SEARCH_HEURISTIC, a, err));
    if (!best.found)
        return td_fail(err, TD_EPLAN,
                       "--activation-limit %g: zb-auto keeps 1 microbatch activation, as every "
                       "schedule does; legal: --activation-limit 1 or more",
                       q->activation_limit);
    int64_t bound_ns = work_ns(&z);
    if (search != SEARCH_HEURISTIC) TD_TRY(zb_improve(&z, &o, a, &best.order, &best.score, err));
    if (search == SEARCH_EXACT)
        TD_TRY(zb_exact(&z, &o, a, &best.order, &best.score, &bound_ns, err));
    TD_TRY(zb_order_schedule(&best.order, a, out, err));
    out->search = (sched_search){best.score.span_ns, bound_ns};
    return TD_OK;
}

static const sched_option options[] = {
    {"search", "local|heuristic|exact",
     "our search, the papers' heuristic alone, or branch and bound (small cases)"},
    {"objective", "span|makespan", "the longest span of a rank (the papers' cost), or the step"},
    {"placement", "linear|v", "one stage a rank, or two in a V"},
    {"deltas", "1,0,-1|F,I,W",
     "what passes add to the activations that a limit counts (2,-1,-1: the papers'); default: "
     "--activation-deltas"},
    {NULL, NULL, NULL},
};

const sched_family family_zb_auto = {
    .name = "zb-auto",
    .summary = "split backward in an order searched for the durations and a limit of memory",
    .constraints = "P >= 1, M >= 1, durations of F, I and W; --activation-limit P is ZB-1p (the "
                   "default), 2P is ZB-2p",
    .options = options,
    .obeys_memory_limit = true,
    .generate = generate,
};
