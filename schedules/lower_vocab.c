/* The barriers of vocabulary layers that are sharded over all rows (specs: Vocabulary Parallelism,
 * arXiv 2411.05288): C0 brings the last stage's output to all, C1 joins the softmax statistics
 * (and, in Vocab-2, the input gradient), C2 sums the input gradient (Vocab-1, interlaced). The
 * sharded input layer sums its partial embeddings and broadcasts their gradient. */
#include "schedules/lower_collect.h"

typedef struct vocab_at {
    int32_t m, k, replica;
    uint32_t group;
    int64_t boundary_bytes, stats_bytes;
} vocab_at;

static uint32_t sharded(const collect *c, pass_kind kind, int32_t row, const vocab_at *v)
{
    return index_find(c->l->ix, kind, row, v->m, v->k);
}

/* The same pass of the next microbatch, a moment by which a result nobody needs has been written.
 */
static uint32_t sharded_next(const collect *c, pass_kind kind, int32_t row, const vocab_at *v)
{
    if (v->m + 1 >= c->l->s->n_microbatches) return NODE_NONE;
    return index_find(c->l->ix, kind, row, v->m + 1, v->k);
}

/* As late as the look-ahead allows before `node` of a row. */
static uint32_t before(const collect *c, int32_t row, uint32_t node)
{
    const uint32_t back = (uint32_t)c->l->o->lookahead + 1;
    if (node == NODE_NONE || node - c->l->ix->row_first[row] < back) return NODE_NONE;
    return node - back;
}

static uint32_t earlier(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Gate and join nodes of one row for one barrier. */
static void vocab_ends(const collect *c, coll_purpose purpose, int32_t row, const vocab_at *v,
                       uint32_t *gate, uint32_t *join)
{
    const schedule *const s = c->l->s;
    const sched_index *const ix = c->l->ix;
    const sched_pipe *const pipe = &s->pipes[s->microbatch_pipe[v->m]];
    const int32_t last = s->n_stages - 1;
    const bool loses = row == pipe->backward_row[last]; /* runs the last stage's backward */
    switch (purpose) {
    case PURPOSE_C0:
        *join = sharded(c, PASS_S, row, v);
        *gate = row == pipe->forward_row[last] ? index_find(ix, PASS_F, last, v->m, v->k)
                                               : before(c, row, *join);
        return;
    case PURPOSE_C1:
        *gate = sharded(c, PASS_S, row, v);
        *join = sharded(c, PASS_T, row, v);
        if (loses && s->vocab == VOCAB_2)
            *join = earlier(*join, index_find_backward(ix, last, v->m, v->k));
        return;
    case PURPOSE_C2:
        *gate = sharded(c, PASS_T, row, v);
        *join = loses ? index_find_backward(ix, last, v->m, v->k) : sharded_next(c, PASS_T, row, v);
        return;
    case PURPOSE_EMBED_SUM:
        *gate = sharded(c, PASS_E, row, v);
        *join = row == pipe->forward_row[0] ? index_find(ix, PASS_F, 0, v->m, v->k)
                                            : sharded_next(c, PASS_E, row, v);
        return;
    default: /* PURPOSE_EMBED_GRAD */
        *join = sharded(c, PASS_G, row, v);
        *gate = row == pipe->backward_row[0] ? index_find_backward(ix, 0, v->m, v->k)
                                             : before(c, row, *join);
        return;
    }
}

static td_status vocab_add(collect *c, coll_purpose purpose, coll_kind kind, int32_t root_row,
                           int64_t bytes, const vocab_at *v, td_err *err)
{
    const lowering *const l = c->l;
    collective item = {.group = v->group,
                       .root = (uint32_t)root_row,
                       .kind = kind,
                       .purpose = purpose,
                       .bytes = bytes,
                       .m = v->m,
                       .k = v->k};
    for (int32_t row = 0; row < l->s->n_rows; row++) {
        uint32_t gate = NODE_NONE, join = NODE_NONE;
        vocab_ends(c, purpose, row, v, &gate, &join);
        const uint64_t when = gate == NODE_NONE ? 0 : lower_when(l, gate, row);
        if (when > item.when) item.when = when;
    }
    TD_TRY(collect_begin(c, item, err));
    const uint32_t inst =
        lower_inst(l, v->m, purpose >= PURPOSE_EMBED_SUM ? 0 : l->s->n_stages - 1);
    for (int32_t row = 0; row < l->s->n_rows; row++) {
        uint32_t gate = NODE_NONE, join = NODE_NONE;
        vocab_ends(c, purpose, row, v, &gate, &join);
        TD_TRY(collect_member(c, lower_task(l, c->in, gate, row, v->replica),
                              lower_task(l, c->in, join, row, v->replica), inst, err));
    }
    return TD_OK;
}

static td_status vocab_microbatch(collect *c, const vocab_at *v, td_err *err)
{
    const schedule *const s = c->l->s;
    const sched_pipe *const pipe = &s->pipes[s->microbatch_pipe[v->m]];
    const int32_t last = s->n_stages - 1;
    const bool second = s->vocab == VOCAB_2;
    TD_TRY(vocab_add(c, PURPOSE_C0, COLL_BROADCAST, pipe->forward_row[last], v->boundary_bytes, v,
                     err));
    TD_TRY(vocab_add(c, PURPOSE_C1, COLL_VOCAB_STATS, 0,
                     v->stats_bytes + (second ? v->boundary_bytes : 0), v, err));
    if (!second) TD_TRY(vocab_add(c, PURPOSE_C2, COLL_ALL_REDUCE, 0, v->boundary_bytes, v, err));
    if (c->l->ix->pos[PASS_E] == NULL) return TD_OK;
    TD_TRY(vocab_add(c, PURPOSE_EMBED_SUM, COLL_ALL_REDUCE, 0, v->boundary_bytes, v, err));
    return vocab_add(c, PURPOSE_EMBED_GRAD, COLL_BROADCAST, pipe->backward_row[0],
                     v->boundary_bytes, v, err);
}

td_status collect_vocab(collect *c, td_err *err)
{
    const lowering *const l = c->l;
    const schedule *const s = l->s;
    if (s->vocab == VOCAB_NONE) return TD_OK;
    uint32_t *const ranks = TD_NEW_N(l->a, uint32_t, s->n_rows);
    if (ranks == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (vocab_at v = {0}; v.replica < l->replicas; v.replica++) {
        for (int32_t row = 0; row < s->n_rows; row++) ranks[row] = lower_rank(l, row, v.replica);
        TD_TRY(collect_group(c, ranks, (uint32_t)s->n_rows, s->n_rows, &v.group, err));
        for (v.m = 0; v.m < s->n_microbatches; v.m++)
            for (v.k = 0; v.k < s->n_slices; v.k++) {
                int32_t len = 0, prefix = 0;
                lower_slice(l, v.m, v.k, &len, &prefix);
                const int32_t last = s->n_stages - 1;
                TD_TRY(sizes_bytes(l->o->sizes, SIZE_BOUNDARY, last, len, prefix, &v.boundary_bytes,
                                   err));
                TD_TRY(sizes_bytes(l->o->sizes, SIZE_VOCAB_STATS, last, len, prefix, &v.stats_bytes,
                                   err));
                TD_TRY(vocab_microbatch(c, &v, err));
            }
    }
    return TD_OK;
}
