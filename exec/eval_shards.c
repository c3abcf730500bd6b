/* The ends of an evaluation where the tables lie in shards: every rank of the first replica looks
 * up its words, and gives the statistics of its logits. */
#include "exec/device_run.h"
#include "exec/eval.h"

#include <string.h>

/* In work: two tensors of rows, one of logits, the statistics of all shards. */
typedef struct shards_work {
    float *rows, *sum, *logits, *stats;
    void **data; /* [n_rows] */
    vocab_layout at;
    long n, hidden;
} shards_work;

static int64_t rounded(int64_t bytes) { return (bytes + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN; }

/* Offsets of rows, sum, logits, stats, data and the end. */
static void parts_of(const executor *x, int64_t at[6])
{
    const stage_code *const c = &x->stages[0];
    const int64_t ranks = x->p->n_rows, word = (int64_t)sizeof(float);
    at[0] = 0;
    at[1] = rounded(c->rows * c->m->hidden * word);
    at[2] = 2 * at[1];
    at[3] = at[2] + rounded(c->rows * c->stash.logits_ld * word);
    at[4] = at[3] + rounded(ranks * 3 * c->rows * word);
    at[5] = at[4] + rounded(ranks * (int64_t)sizeof(void *));
}

int64_t eval_shards_bytes(const executor *x)
{
    int64_t at[6];
    if (x->z->vocab_shards < 1) return 0;
    parts_of(x, at);
    return at[5];
}

static td_status open_work(const executor *x, char *work, shards_work *w, td_err *err)
{
    int64_t at[6];
    parts_of(x, at);
    *w = (shards_work){.rows = (float *)(void *)(work + at[0]),
                       .sum = (float *)(void *)(work + at[1]),
                       .logits = (float *)(void *)(work + at[2]),
                       .stats = (float *)(void *)(work + at[3]),
                       .data = (void **)(void *)(work + at[4]),
                       .n = x->stages[0].rows,
                       .hidden = x->z->model->hidden};
    return vocab_layout_of(x->z, x->z->run.seq_len, &w->at, err);
}

/* The shard's instance of a row. */
static uint32_t shard_inst(const executor *x, int32_t row)
{
    uint32_t i = 0;
    while (x->p->insts[i].stage != x->p->n_stages || x->p->insts[i].backward_row != row) i++;
    return i;
}

/* The rows of one shard's table into w->rows. */
static td_status look_up(const executor *x, uint32_t inst, const shards_work *w, const int32_t *ids,
                         td_err *err)
{
    const stage_code *const c = &x->stages[x->p->n_stages];
    const int32_t row = x->p->insts[inst].backward_row;
    td_arena *const a = td_arena_new();
    const float *table = NULL;
    const td_status st = a == NULL
                             ? td_fail(err, TD_ENOMEM, "out of memory for evaluations")
                             : exec_weights(x, exec_rank_of(x, inst, 0), inst, a, &table, err);
    if (st == TD_OK) vocab_look_up(x->ctx, c, table, vocab_words(c, row), w->n, ids, w->rows);
    td_arena_free(a);
    return st;
}

td_status eval_embed(const executor *x, char *work, uint32_t owner, const int32_t *ids, float *out,
                     td_err *err)
{
    team *const t = x->options.team;
    shards_work w;
    TD_TRY(open_work(x, work, &w, err));
    const int64_t n = w.n * w.hidden, bytes = n * (int64_t)sizeof *w.sum;
    memset(w.sum, 0, (size_t)bytes);
    for (int32_t row = 0; row < x->p->n_rows; row++) {
        const uint32_t inst = shard_inst(x, row), rank = exec_rank_of(x, inst, 0);
        if (exec_is_here(x, rank)) {
            TD_TRY(look_up(x, inst, &w, ids, err));
            if (rank != owner) TD_TRY(team_send(t, owner, w.rows, bytes, err));
        }
        if (!exec_is_here(x, owner)) continue;
        if (rank != owner) TD_TRY(team_recv(t, rank, w.rows, bytes, err));
        k_add_cpu(x->ctx, n, w.sum, w.rows, w.sum);
    }
    return exec_is_here(x, owner) ? device_run_narrow(x, out, w.sum, n, err) : TD_OK;
}

/* The statistics of one shard's logits. */
static td_status look_at(const executor *x, uint32_t inst, const shards_work *w,
                         const int32_t *targets, float *stats, td_err *err)
{
    const stage_code *const c = &x->stages[x->p->n_stages];
    td_arena *const a = td_arena_new();
    const float *table = NULL;
    const k_words words = vocab_words(c, x->p->insts[inst].backward_row);
    const k_vocab_shard shard = {words, w->at.ld, targets};
    const td_status st = a == NULL
                             ? td_fail(err, TD_ENOMEM, "out of memory for evaluations")
                             : exec_weights(x, exec_rank_of(x, inst, 0), inst, a, &table, err);
    if (st == TD_OK) {
        vocab_logits(x->ctx, c, table, words, w->n, w->sum, w->logits, w->at.ld);
        k_vocab_softmax_cpu(x->ctx, w->n, &shard, w->logits, stats);
    }
    td_arena_free(a);
    return st;
}

td_status eval_loss(const executor *x, char *work, uint32_t owner, const float *normed,
                    const int32_t *targets, double *loss, td_err *err)
{
    team *const t = x->options.team;
    shards_work w;
    TD_TRY(open_work(x, work, &w, err));
    const int64_t n = w.n * w.hidden;
    if (exec_is_here(x, owner)) TD_TRY(device_run_widen(x, w.sum, normed, n, err));
    TD_TRY(team_broadcast(t, owner, w.sum, n * (int64_t)sizeof *w.sum, err));
    for (int32_t row = 0; row < x->p->n_rows; row++) {
        const uint32_t inst = shard_inst(x, row), rank = exec_rank_of(x, inst, 0);
        float *const stats = w.stats + (int64_t)row * 3 * w.n;
        const int64_t bytes = 3 * w.n * (int64_t)sizeof *stats;
        w.data[row] = stats;
        if (exec_is_here(x, rank)) {
            TD_TRY(look_at(x, inst, &w, targets, stats, err));
            if (rank != owner) TD_TRY(team_send(t, owner, stats, bytes, err));
        }
        if (exec_is_here(x, owner) && rank != owner) TD_TRY(team_recv(t, rank, stats, bytes, err));
    }
    *loss = 0;
    if (!exec_is_here(x, owner)) return TD_OK;
    long counted = 0;
    for (long r = 0; r < w.n; r++) counted += targets[r] >= 0;
    k_vocab_join(&(k_vocab_parts){.data = w.data, .n = x->p->n_rows, .rows = w.n});
    *loss = k_vocab_loss(w.n, targets, w.stats) / (double)(counted > 0 ? counted : 1);
    return TD_OK;
}
