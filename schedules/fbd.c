/* Forward-backward disaggregation (MegaFBD; MegatronApp 2025, arXiv 2507.19845): each stage has a
 * forward row, which keeps no graph, and a backward row, which recomputes the forward and then runs
 * the backward. Rows 0 to P - 1 are the forward rows, P to 2P - 1 the backward rows. */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

static td_status check_shape(const sched_request *q, td_err *err)
{
    if (q->chunks > 1)
        return td_fail(err, TD_EUSAGE,
                       "--chunks %d: fbd has one stage a forward rank; legal: 1, and --pp for more "
                       "stages",
                       q->chunks);
    return TD_OK;
}

/* How far each forward row may run ahead: by default the window of 1F1B, P - 1 - s. */
static td_status give_credits(const sched_request *q, td_arena *a, schedule *s, td_err *err)
{
    int64_t asked = -1;
    const bool direct = s->handoff == HANDOFF_DIRECT;
    TD_TRY(sched_option_i64(q, "credits", 0, s->n_microbatches, -1, &asked, err));
    if (asked == 0 && direct && s->n_stages > 1)
        return td_fail(err, TD_EUSAGE,
                       "--opt credits=0: with topology=direct an output leaves behind its forward, "
                       "so the row is one ahead at least; legal: 1 and more, or topology=lagged");
    s->credits = TD_NEW_N(a, int32_t, s->n_stages);
    if (s->credits == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    for (int32_t i = 0; i < s->n_stages; i++)
        s->credits[i] = asked >= 0 ? (int32_t)asked : s->n_stages - 1 - i;
    return TD_OK;
}

static td_status read_options(const sched_request *q, td_arena *a, schedule *s, td_err *err)
{
    static const char *const topologies[] = {"direct", "lagged", NULL};
    static const char *const policies[] = {"refresh", "all-step", NULL};
    int64_t topology = 0, policy = 0, merge = 0;
    TD_TRY(sched_option_choice(q, "topology", topologies, &topology, err));
    TD_TRY(sched_option_choice(q, "weights", policies, &policy, err));
    TD_TRY(sched_option_i64(q, "merge-forward", 0, 1, 0, &merge, err));
    s->handoff = topology == 0 ? HANDOFF_DIRECT : HANDOFF_LAGGED;
    s->weights = policy == 0 ? WEIGHTS_REFRESH : WEIGHTS_ALL_STEP;
    if (merge == 1) s->tp_forward = 1;
    return give_credits(q, a, s, err);
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    TD_TRY(check_shape(q, err));
    const int32_t p = q->pp;
    TD_TRY(sched_new(a, 2 * (int64_t)p, p, 1, q->microbatches, 1, out, err));
    TD_TRY(read_options(q, a, out, err));
    bool failed = false;
    for (int32_t s = 0; s < p; s++) {
        out->pipes[0].forward_row[s] = s;
        out->pipes[0].backward_row[s] = p + s;
        row_writer f = row_writer_of(a, out, s), b = row_writer_of(a, out, p + s);
        for (int32_t m = 0; m < q->microbatches; m++) {
            row_add(&f, PASS_F, s, m, 0);
            row_add(&b, PASS_R, s, m, 0);
            row_add(&b, PASS_B, s, m, 0);
        }
        failed |= f.failed || b.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option options[] = {
    {"topology", "direct|lagged",
     "who hands a stage's input to its backward rank: the previous forward rank, with its output; "
     "or the stage's own, `credits` microbatches later"},
    {"merge-forward", "0|1",
     "one forward rank for each tensor-parallel group of backward ranks; its F takes --tp times as "
     "long"},
    {"weights", "refresh|all-step",
     "backward ranks step and send their weights to the forward ranks; or all ranks step on the "
     "summed gradient"},
    {"credits", "integer",
     "microbatches that a forward rank may be ahead of the hand-offs it sends; default: "
     "P - 1 - stage"},
    {NULL, NULL, NULL}};

const sched_family family_fbd = {
    .name = "fbd",
    .summary = "a forward rank and a backward rank per stage; one graph on a backward rank, none "
               "on a forward rank",
    .constraints = "P >= 1, M >= 1, one chunk; 2P ranks, P(T + 1) with merge-forward=1",
    .options = options,
    .generate = generate,
};
