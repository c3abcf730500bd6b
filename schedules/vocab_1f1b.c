/* Vocabulary Parallelism on 1F1B (arXiv 2411.05288, sections 4 and 5): the output layer is sharded
 * over all ranks and its passes S and T stand between the last F and its B, one interval for each
 * of the algorithm's barriers; so a rank holds as many microbatches more than under 1F1B. Vocab-1
 * has the barriers C1 and C2, Vocab-2 only C1. */
#include "schedules/families.h"
#include "schedules/vocab_rows.h"

/* Where the vocabulary step stands in a steady interval: behind B, or behind F. */
typedef enum step_place { STEP_AFTER_B, STEP_AFTER_F } step_place;

/* The intervals' pattern of each row, and how many vocabulary steps it runs before its first B;
 * chosen so that all rows reach one S at nearly the same time. */
typedef struct vocab_plan {
    step_place *place; /* [pp] */
    int32_t *lead;     /* [pp] */
    int32_t barriers;
} vocab_plan;

static td_status plan_rows(const sched_request *q, int32_t barriers, td_arena *a, vocab_plan *out,
                           td_err *err)
{
    const int32_t p = q->pp;
    *out = (vocab_plan){
        .place = TD_NEW_N(a, step_place, p), .lead = TD_NEW_N(a, int32_t, p), .barriers = barriers};
    if (out->place == NULL || out->lead == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    int64_t f = q->times.pass_ns[PASS_F], b = q->times.pass_ns[PASS_B];
    if (f <= 0 || b < f) f = 1, b = 2;
    out->place[p - 1] = STEP_AFTER_B;
    int64_t early = 0; /* how far the row's step runs ahead of the last row's */
    for (int32_t r = p - 2; r >= 0;) {
        if (early + f <= b) {
            early += f;
        } else {
            out->place[r--] = STEP_AFTER_F;
            early -= b - f;
            if (r < 0) break;
        }
        out->place[r--] = STEP_AFTER_B;
    }
    for (int32_t r = p - 2; r >= 0; r--) {
        const bool turns = out->place[r + 1] == STEP_AFTER_F && out->place[r] == STEP_AFTER_B;
        out->lead[r] = out->lead[r + 1] + (turns ? 0 : 1);
    }
    return TD_OK;
}

/* Step u: T of the microbatch before, then S. */
static void add_step(vocab_row *r, int32_t *u)
{
    if (*u > 0) vocab_add(r, PASS_T);
    vocab_add(r, PASS_S);
    (*u)++;
}

/* The step of an interval, with the input layer's passes that go along. */
static void add_slot(vocab_row *r, const vocab_plan *t, int32_t *u, bool with_input)
{
    const int32_t extra = t->barriers - 1, at = *u;
    if (at < r->n + extra) add_step(r, u);
    if (with_input && at >= t->lead[0] + extra) vocab_add(r, PASS_E);
    if (at >= t->lead[0] + 2 + extra) vocab_add(r, PASS_G);
}

static void add_row(vocab_row *r, const vocab_plan *t, int32_t row, int32_t pp)
{
    const int32_t n = r->n, extra = t->barriers - 1;
    const int32_t own = pp - row < n ? pp - row : n;
    int32_t u = 0;
    for (int32_t i = 0; i <= (pp < n ? pp : n) - own; i++) vocab_add(r, PASS_E);
    for (int32_t i = 0; i < own; i++) {
        vocab_add(r, PASS_E);
        vocab_add(r, PASS_F);
    }
    add_step(r, &u);
    if (t->barriers == 2) vocab_add(r, PASS_E);
    vocab_add(r, PASS_F);
    if (t->barriers == 2) {
        add_step(r, &u);
        vocab_add(r, PASS_F);
    }
    for (int32_t i = 0; i < t->lead[row]; i++) {
        if (u < n + extra) add_step(r, &u);
        if (i + 1 >= t->lead[0]) vocab_add(r, PASS_E);
    }
    const int32_t steady = n - own - 1 - extra > 0 ? n - own - 1 - extra : 0;
    for (int32_t i = 0; i < n; i++) {
        vocab_add(r, PASS_B);
        if (i < steady && t->place[row] == STEP_AFTER_F) vocab_add(r, PASS_F);
        add_slot(r, t, &u, i < steady);
        if (i < steady && t->place[row] == STEP_AFTER_B) vocab_add(r, PASS_F);
    }
    for (int32_t i = 0; i < n; i++) vocab_add(r, PASS_G);
    if (t->barriers == 1) vocab_add(r, PASS_T);
}

static td_status generate(const sched_request *q, int32_t barriers, td_arena *a, schedule *out,
                          td_err *err)
{
    TD_TRY(vocab_new(q, a, out, err));
    if (q->microbatches < q->pp + barriers)
        return td_fail(err, TD_EUSAGE,
                       "vocab-%d with P=%d needs M >= P+%d microbatches (got %d); legal: "
                       "--microbatches %d or more, or --schedule 1f1b",
                       3 - barriers, q->pp, barriers, q->microbatches, q->pp + barriers);
    TD_TRY(vocab_edge(q, out, err));
    out->vocab = barriers == 2 ? VOCAB_1 : VOCAB_2;
    vocab_plan t;
    TD_TRY(plan_rows(q, barriers, a, &t, err));
    bool failed = false;
    for (int32_t row = 0; row < out->n_rows; row++) {
        vocab_row r = vocab_row_of(a, out, row, row);
        add_row(&r, &t, row, q->pp);
        failed |= r.w.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static td_status generate_1(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, 2, a, out, err);
}

static td_status generate_2(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, 1, a, out, err);
}

static const sched_option options[] = {VOCAB_EDGE_OPTION, {NULL, NULL, NULL}};

const sched_family family_vocab_1 = {
    .name = "vocab-1",
    .summary =
        "1F1B, vocabulary layers sharded over all ranks, two barriers; P + 2 - r activations",
    .constraints = "M >= P + 2, one chunk",
    .options = options,
    .generate = generate_1,
};

const sched_family family_vocab_2 = {
    .name = "vocab-2",
    .summary = "the same with the input gradient in S and one barrier; P + 1 - r activations",
    .constraints = "M >= P + 1, one chunk",
    .options = options,
    .generate = generate_2,
};
