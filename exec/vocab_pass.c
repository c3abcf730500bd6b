/* The passes of sharded vocabulary layers: S and T of the output layer, E and G of the input layer
 * (arXiv 2411.05288, sections 4 and 5). A rank computes with its rows of the tables; rows behind
 * the vocabulary's end are padding and take part in nothing. */
#include "exec/device_run.h"

#include <math.h>
#include <string.h>

static k_vocab_shard shard_of(const vocab_pass *v)
{
    return (k_vocab_shard){
        .first = v->first, .words = v->words, .ld = v->at.ld, .target = v->a->targets};
}

static float *stats_of(const vocab_pass *v) { return (float *)(void *)(v->joined + v->at.stats); }

/* The output layer's rows; a tied table has one place. */
static const float *head_rows(const stage_code *c, const float *weights)
{
    const int64_t own = c->own[PARAM_HEAD_WEIGHT];
    return weights + (own >= 0 ? own : c->own[PARAM_TOKEN_EMBEDDING]);
}

static const float *head_table(const vocab_pass *v) { return head_rows(v->c, v->a->weights); }

void vocab_logits(k_ctx *ctx, const stage_code *shard, const float *weights, int64_t words,
                  long rows, const float *x, float *logits, long ld)
{
    const long hidden = shard->m->hidden;
    if (words > 0)
        k_gemm_cpu(ctx, false, true, rows, words, hidden, 1.0f, x, hidden,
                   head_rows(shard, weights), hidden, 0.0f, logits, ld);
}

void vocab_look_up(const stage_code *shard, const float *weights, int64_t first, int64_t words,
                   long rows, const int32_t *ids, float *out)
{
    const float *const table = weights + shard->own[PARAM_TOKEN_EMBEDDING];
    const long hidden = shard->m->hidden;
    const size_t bytes = (size_t)hidden * sizeof *table;
    for (long r = 0; r < rows; r++) {
        const long word = (long)ids[r] - first;
        float *const to = out + r * hidden;
        if (word >= 0 && word < words)
            memcpy(to, table + word * hidden, bytes);
        else
            memset(to, 0, bytes);
    }
}

/* Weight of a counted row in what is differentiated. */
static float row_weight(const vocab_pass *v, double *in_mean)
{
    long counted = 0;
    for (long r = 0; r < v->rows; r++) counted += v->a->targets[r] >= 0;
    *in_mean = 1.0 / (double)(counted > 0 ? counted : 1);
    return (float)(*in_mean * (double)v->a->grad_scale);
}

/* --- the output layer --- */

/* The two parts of the input gradient that C1 joins: softmax times table, and the targets' rows. */
static void input_parts(const vocab_pass *v)
{
    double mean = 0;
    const float weight = row_weight(v, &mean), *const table = head_table(v);
    const long n = v->rows * v->hidden;
    float *const a = (float *)(void *)(v->joined + v->at.parts), *const g = a + n;
    memset(a, 0, 2 * (size_t)n * sizeof *a);
    if (v->words > 0)
        k_gemm_cpu(v->ctx, false, false, v->rows, v->hidden, v->words, weight, v->softmax, v->at.ld,
                   table, v->hidden, 0.0f, a, v->hidden);
    for (long r = 0; r < v->rows; r++) {
        const long target = (long)v->a->targets[r] - v->first;
        if (v->a->targets[r] < 0) {
            memset(a + r * v->hidden, 0, (size_t)v->hidden * sizeof *a);
            continue;
        }
        for (long c = 0; target >= 0 && target < v->words && c < v->hidden; c++)
            g[r * v->hidden + c] = weight * table[target * v->hidden + c];
    }
}

static void run_s(const vocab_pass *v)
{
    const k_vocab_shard shard = shard_of(v);
    const int64_t head[2] = {v->rows, v->at.parts >= 0 ? v->hidden : 0};
    memset(v->joined, 0, (size_t)v->at.bytes);
    memcpy(v->joined, head, sizeof head);
    vocab_logits(v->ctx, v->c, v->a->weights, v->words, v->rows, v->a->input, v->softmax, v->at.ld);
    k_vocab_softmax_cpu(v->ctx, v->rows, &shard, v->softmax, stats_of(v));
    if (v->at.parts >= 0) input_parts(v);
}

/* The gradient of the shard's rows; without a part in C1 also what it gives to the input's. */
static void run_t(const vocab_pass *v, double *loss)
{
    const k_vocab_shard shard = shard_of(v);
    double mean = 0;
    const float weight = row_weight(v, &mean);
    *loss = k_vocab_loss(v->rows, v->a->targets, stats_of(v)) * mean;
    k_vocab_gradient_cpu(v->ctx, v->rows, &shard, weight, stats_of(v), v->softmax);
    if (v->words > 0)
        k_gemm_cpu(v->ctx, true, false, v->words, v->hidden, v->rows, 1.0f, v->softmax, v->at.ld,
                   v->a->input, v->hidden, 1.0f, v->a->grads + stage_head_grad(v->c), v->hidden);
    if (v->at.parts >= 0) return;
    if (v->words == 0)
        memset(v->a->dinput, 0, (size_t)(v->rows * v->hidden) * sizeof *v->a->dinput);
    else
        k_gemm_cpu(v->ctx, false, false, v->rows, v->hidden, v->words, 1.0f, v->softmax, v->at.ld,
                   head_table(v), v->hidden, 0.0f, v->a->dinput, v->hidden);
}

/* --- the input layer --- */

static void run_e(const vocab_pass *v)
{
    vocab_look_up(v->c, v->a->weights, v->first, v->words, v->rows, v->a->ids, v->a->output);
}

static void run_g(const vocab_pass *v)
{
    float *const table = v->a->grads + v->c->own[PARAM_TOKEN_EMBEDDING];
    for (long r = 0; r < v->rows; r++) {
        const long word = (long)v->a->ids[r] - v->first;
        if (word < 0 || word >= v->words) continue;
        const float *const from = v->a->doutput + r * v->hidden;
        for (long c = 0; c < v->hidden; c++) table[word * v->hidden + c] += from[c];
    }
}

/* --- */

int64_t vocab_words(const stage_code *shard, int32_t row, int64_t *first)
{
    const int64_t rows = shard->at.vocab_rows, left = shard->m->vocab - rows * row;
    *first = rows * row;
    return left < 0 ? 0 : left < rows ? left : rows;
}

void vocab_pass_compute(const vocab_pass *v, pass_kind kind, double *loss)
{
    if (kind == PASS_E) run_e(v);
    if (kind == PASS_G) run_g(v);
    if (kind == PASS_S) run_s(v);
    if (kind == PASS_T) run_t(v, loss);
}

td_status vocab_pass_run(executor *x, exec_rank *r, const plan_member *m, const stage_args *a,
                         char *joined, float *softmax, td_err *err)
{
    const plan *const p = x->p;
    const plan_inst *const last = &p->insts[p->classes[m->cls].inst];
    const int32_t row = p->ranks[r->index].row;
    vocab_pass v = {.ctx = r->ctx,
                    .c = &x->stages[p->n_stages],
                    .a = a,
                    .rows = x->z->run.micro_batch * x->z->run.seq_len,
                    .hidden = x->z->model->hidden,
                    .joined = joined,
                    .softmax = softmax};
    int64_t first = 0;
    double loss = 0;
    v.words = vocab_words(v.c, row, &first);
    v.first = first;
    TD_TRY(vocab_layout_of(x->z, x->z->run.seq_len, &v.at, err));
    vocab_pass_compute(&v, (pass_kind)m->kind, &loss);
    if (m->kind != PASS_T) return TD_OK;
    if (last->backward_row == row)
        r->now->losses[p->ranks[r->index].replica * p->n_microbatches + (int32_t)m->microbatch] =
            loss;
    if (a->loss_at != NULL) TD_TRY(device_run_write(x, a->loss_at, &loss, sizeof loss, err));
    if (isfinite(loss)) return TD_OK;
    r->spoilt = r->now->step.skip;
    if (r->spoilt) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the loss of microbatch %u is not finite (rank %u); a lower --lr or "
                   "--clip may help",
                   r->now->step.number, m->microbatch, r->index);
}
