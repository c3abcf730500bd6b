/* The passes of sharded vocabulary layers: S and T of the output layer, E and G of the input layer
 * (arXiv 2411.05288, sections 4 and 5). A rank computes with its rows of the tables; rows behind
 * the vocabulary's end are padding and take part in nothing. */
#include "exec/exec.h"
#include "exec/stage_inside.h"

#include <math.h>
#include <string.h>

static k_vocab_shard shard_of(const vocab_pass *v)
{
    return (k_vocab_shard){.words = v->words, .ld = v->at.ld, .target = v->a->targets};
}

static float *stats_of(const vocab_pass *v) { return (float *)(void *)(v->joined + v->at.stats); }

/* Elements of the context, which for evaluations are floats whatever the run's are. */
static const float *rows_at(const k_ctx *ctx, const float *weights, int64_t n)
{
    const char *const at = (const char *)weights + n * k_ctx_element_bytes(ctx);
    return (const float *)(const void *)at;
}

/* The output layer's rows; a tied table has one place. */
static const float *head_rows(const k_ctx *ctx, const stage_code *c, const float *weights)
{
    const int64_t own = c->own[PARAM_HEAD_WEIGHT];
    return rows_at(ctx, weights, own >= 0 ? own : c->own[PARAM_TOKEN_EMBEDDING]);
}

static const float *head_table(const vocab_pass *v)
{
    return head_rows(v->ctx, v->c, v->a->weights);
}

void vocab_logits(k_ctx *ctx, const stage_code *shard, const float *weights, k_words words,
                  long rows, const float *x, float *logits, long ld)
{
    const long hidden = shard->m->hidden;
    if (words.count > 0)
        k_ops_of(ctx)->gemm(ctx, false, true, rows, words.count, hidden, 1.0f, x, hidden,
                            head_rows(ctx, shard, weights), hidden, 0.0f, logits, ld);
}

void vocab_look_up(k_ctx *ctx, const stage_code *shard, const float *weights, k_words words,
                   long rows, const int32_t *ids, float *out)
{
    k_ops_of(ctx)->embed_fwd(ctx, rows, rows, 0, shard->m->hidden, ids, words,
                             rows_at(ctx, weights, shard->own[PARAM_TOKEN_EMBEDDING]), NULL, NULL,
                             out);
}

/* Weight of a counted row in what is differentiated. */
static float row_weight(const vocab_pass *v)
{
    return (float)(v->a->row_weight * (double)v->a->grad_scale);
}

/* --- the output layer --- */

/* The two parts of the input gradient that C1 joins: softmax times table, and the targets' rows. */
static void input_parts(const vocab_pass *v)
{
    k_ctx *const ctx = v->ctx;
    const k_vocab_shard shard = shard_of(v);
    const float *const table = head_table(v);
    const float weight = row_weight(v);
    float *const a = (float *)(void *)(v->joined + v->at.parts);
    if (v->words.count > 0)
        k_ops_of(ctx)->gemm(ctx, false, false, v->rows, v->hidden, v->words.count, weight,
                            v->softmax, v->at.ld, table, v->hidden, 0.0f, a, v->hidden);
    k_ops_of(ctx)->vocab_inputs(ctx, v->rows, v->hidden, &shard, weight, table, a,
                                stage_skip(v->c, a, v->rows * v->hidden));
}

static void run_s(const vocab_pass *v)
{
    k_ctx *const ctx = v->ctx;
    const k_vocab_shard shard = shard_of(v);
    k_ops_of(ctx)->zero(ctx, v->joined, (size_t)v->at.bytes);
    k_ops_of(ctx)->put_pair(ctx, (int64_t *)(void *)v->joined, v->rows,
                            v->at.parts >= 0 ? v->hidden : 0);
    vocab_logits(ctx, v->c, v->a->weights, v->words, v->rows, v->a->input, v->softmax, v->at.ld);
    k_ops_of(ctx)->vocab_softmax(ctx, v->rows, &shard, v->softmax, stats_of(v));
    if (v->at.parts >= 0) input_parts(v);
}

/* The gradient of the shard's rows; without a part in C1 also what it gives to the input's. The
 * loss: where that is not NULL. */
static void run_t(const vocab_pass *v, double *loss)
{
    k_ctx *const ctx = v->ctx;
    const k_vocab_shard shard = shard_of(v);
    const size_t bytes = (size_t)(v->rows * v->hidden * v->c->element_bytes);
    if (loss != NULL)
        k_ops_of(ctx)->vocab_loss(ctx, v->rows, v->a->targets, stats_of(v), v->a->row_weight, loss);
    k_ops_of(ctx)->vocab_gradient(ctx, v->rows, &shard, row_weight(v), stats_of(v), v->softmax);
    if (v->words.count > 0)
        k_ops_of(ctx)->gemm_grad(ctx, true, false, v->words.count, v->hidden, v->rows, 1.0f,
                                 v->softmax, v->at.ld, v->a->input, v->hidden, 1.0f,
                                 v->a->grads + stage_head_grad(v->c), v->hidden);
    if (v->at.parts >= 0) return;
    if (v->words.count == 0)
        k_ops_of(ctx)->zero(ctx, v->a->dinput, bytes);
    else
        k_ops_of(ctx)->gemm(ctx, false, false, v->rows, v->hidden, v->words.count, 1.0f, v->softmax,
                            v->at.ld, head_table(v), v->hidden, 0.0f, v->a->dinput, v->hidden);
}

/* --- the input layer --- */

static void run_e(const vocab_pass *v)
{
    vocab_look_up(v->ctx, v->c, v->a->weights, v->words, v->rows, v->a->ids, v->a->output);
}

static void run_g(const vocab_pass *v)
{
    k_ops_of(v->ctx)->embed_bwd(v->ctx, v->rows, v->rows, 0, v->hidden, v->a->ids, v->words,
                                v->a->doutput, v->a->grads + v->c->own[PARAM_TOKEN_EMBEDDING], NULL,
                                NULL);
}

/* --- */

k_words vocab_words(const stage_code *shard, int32_t row)
{
    const int64_t rows = shard->at.vocab_rows, left = shard->m->vocab - rows * row;
    return (k_words){rows * row, left < 0 ? 0 : left < rows ? left : rows};
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
                    .words = vocab_words(&x->stages[p->n_stages], row),
                    .softmax = softmax};
    TD_TRY(vocab_layout_of(x->z, x->z->run.seq_len, &v.at, err));
    double loss = 0;
    const bool tells = last->backward_row == row;
    if (x->device != NULL) { /* nobody knows the loss yet */
        vocab_pass_compute(&v, (pass_kind)m->kind, tells ? a->loss_at : NULL);
        return TD_OK;
    }
    vocab_pass_compute(&v, (pass_kind)m->kind, &loss);
    if (m->kind != PASS_T) return TD_OK;
    if (tells)
        r->now->losses[p->ranks[r->index].replica * p->n_microbatches + (int32_t)m->microbatch] =
            loss;
    if (isfinite(loss)) return TD_OK;
    r->spoilt = r->now->step.skip;
    if (r->spoilt) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the loss of microbatch %u is not finite (rank %u); a lower --lr or "
                   "--clip may help",
                   r->now->step.number, m->microbatch, r->index);
}
