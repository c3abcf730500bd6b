/* The interlaced pipeline (nnScaler's, the baseline of arXiv 2411.05288, section 6): the vocabulary
 * layers are sharded over all ranks, but every output layer is one synchronous step of all of them,
 * as under tensor parallelism. 1F1B with half as many warm-up forwards more. */
#include "schedules/families.h"
#include "schedules/vocab_rows.h"

/* S and T of one microbatch; the input layer's passes that ride along follow it. */
static void add_step(vocab_row *r, int32_t pp, bool with_gradient)
{
    const int32_t k = r->next[PASS_S];
    vocab_add(r, PASS_S);
    vocab_add(r, PASS_T);
    if (k >= pp - 1) vocab_add(r, PASS_E);
    if (with_gradient && k >= pp + 1) vocab_add(r, PASS_G);
}

static void add_row(vocab_row *r, int32_t row, int32_t pp)
{
    const int32_t n = r->n, most = 3 * pp / 2 < n ? 3 * pp / 2 : n;
    const int32_t own = 3 * pp / 2 - row < n ? 3 * pp / 2 - row : n;
    const int32_t last = pp - row; /* backwards behind the last step */
    const int32_t waits = own - last - (pp - row - 1) / 2;
    const int32_t wait = waits > 0 ? waits : 0;
    const bool forward_first = row % 2 == pp % 2;
    for (int32_t i = 0; i <= most - own; i++) vocab_add(r, PASS_E);
    for (int32_t i = 0; i < own; i++) {
        vocab_add(r, PASS_E);
        vocab_add(r, PASS_F);
    }
    for (int32_t i = 0; i < last; i++) add_step(r, pp, false);
    for (int32_t i = 0; i < wait; i++) {
        vocab_add(r, PASS_B);
        add_step(r, pp, true);
    }
    for (int32_t i = 0; i < n - own; i++) {
        vocab_add(r, forward_first ? PASS_F : PASS_B);
        vocab_add(r, forward_first ? PASS_B : PASS_F);
        add_step(r, pp, true);
    }
    for (int32_t i = 0; i < own - last - wait; i++) {
        vocab_add(r, PASS_B);
        vocab_add(r, PASS_S);
        vocab_add(r, PASS_T);
        vocab_add(r, PASS_G);
    }
    for (int32_t i = 0; i < last; i++) {
        vocab_add(r, PASS_B);
        vocab_add(r, PASS_G);
    }
    for (int32_t i = 0; i < n; i++) vocab_add(r, PASS_G);
}

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    TD_TRY(vocab_new(q, a, out, err));
    if (q->pp % 2 != 0)
        return td_fail(
            err, TD_EUSAGE,
            "interlaced with P=%d: its order is known for even P only; legal: --pp %d or "
            "%d, or --schedule vocab-2",
            q->pp, q->pp < 2 ? 2 : q->pp - 1, q->pp + 1);
    if (q->microbatches < 3 * (int64_t)q->pp / 2)
        return td_fail(err, TD_EUSAGE,
                       "interlaced with P=%d needs M >= 3P/2 microbatches (got %d); legal: "
                       "--microbatches %d or more",
                       q->pp, q->microbatches, 3 * q->pp / 2);
    int64_t edge = 0;
    TD_TRY(sched_option_i64(q, "repo-edge", 0, 1, 0, &edge, err));
    out->vocab = VOCAB_INTERLACED;
    bool failed = false;
    for (int32_t row = 0; row < out->n_rows; row++) {
        vocab_row r = vocab_row_of(a, out, row, row);
        add_row(&r, row, q->pp);
        failed |= r.w.failed;
    }
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

static const sched_option options[] = {
    {"repo-edge", "0|1",
     "as for vocab-1 and vocab-2; here T follows its S at once, and nothing changes"},
    {NULL, NULL, NULL},
};

const sched_family family_interlaced = {
    .name = "interlaced",
    .summary = "1F1B, each output layer one synchronous step of all ranks; 3P/2 - r activations",
    .constraints = "P even, M >= 3P/2, one chunk",
    .options = options,
    .generate = generate,
};
