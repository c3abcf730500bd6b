/* The barriers of vocabulary layers that are sharded over all rows (specs: Vocabulary Parallelism,
 * arXiv 2411.05288): C0 brings the last stage's output to all, C1 joins the softmax statistics
 * (and, in Vocab-2, the input gradient), C2 sums the input gradient (Vocab-1, interlaced). The
 * sharded input layer sums its partial embeddings and broadcasts their gradient. */
#include "schedules/lower_collect.h"

typedef struct vocab_at {
    int32_t m, k, replica;
    uint32_t group;
    int64_t boundary_bytes, stats_bytes;
    struct vocab_end *ends; /* [n_rows] of the barrier at hand */
} vocab_at;

static uint32_t sharded(const collect *c, pass_kind kind, int32_t row, const vocab_at *v)
{
    return index_find(c->l->ix, kind, row, v->m, v->k);
}

/* As late as the look-ahead allows before `node` of a row: it counts the stages' passes, because
 * those of the vocabulary are too short to hide anything behind. */
static uint32_t before(const collect *c, int32_t row, uint32_t node)
{
    const sched_index *const ix = c->l->ix;
    for (int32_t left = c->l->o->lookahead; left > 0 && node > ix->row_first[row]; node--)
        if (!pass_is_sharded((pass_kind)ix->cell[node - 1]->kind)) left--;
    return node > ix->row_first[row] ? node - 1 : NODE_NONE;
}

/* The nodes next to one of the same row. */
static uint32_t previous(const collect *c, int32_t row, uint32_t node)
{
    return node > c->l->ix->row_first[row] ? node - 1 : NODE_NONE;
}

static uint32_t following(const collect *c, int32_t row, uint32_t node)
{
    return node + 1 < c->l->ix->row_first[row + 1] ? node + 1 : NODE_NONE;
}

static uint32_t earlier(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* A member's compute passes around a barrier. */
typedef struct vocab_end {
    uint32_t gate, join; /* nodes */
    bool gives, gets;    /* its gate makes what goes out; its join needs what comes in */
} vocab_end;

/* X leaves its owner after the forward, and the owner goes on: its own T is behind everybody's
 * arrival. In an interlaced pipeline all meet, each when it has nothing else to do. */
static vocab_end end_of_c0(const collect *c, int32_t row, const vocab_at *v)
{
    const schedule *const s = c->l->s;
    const int32_t last = s->n_stages - 1;
    const bool owns = row == s->pipes[s->microbatch_pipe[v->m]].forward_row[last];
    const uint32_t own_s = sharded(c, PASS_S, row, v);
    if (s->vocab == VOCAB_INTERLACED)
        return (vocab_end){previous(c, row, own_s), own_s, false, true};
    if (owns)
        return (vocab_end){index_find(c->l->ix, PASS_F, last, v->m, v->k),
                           sharded(c, PASS_T, row, v), true, false};
    uint32_t join = own_s;
    if (s->vocab_edge && v->m > 0)
        join = earlier(join, index_find(c->l->ix, PASS_T, row, v->m - 1, v->k));
    return (vocab_end){before(c, row, join), join, false, true};
}

static vocab_end end_of_c1(const collect *c, int32_t row, const vocab_at *v)
{
    const schedule *const s = c->l->s;
    const int32_t last = s->n_stages - 1;
    uint32_t join = sharded(c, PASS_T, row, v);
    if (row == s->pipes[s->microbatch_pipe[v->m]].backward_row[last] && s->vocab == VOCAB_2)
        join = earlier(join, index_find_backward(c->l->ix, last, v->m, v->k));
    return (vocab_end){sharded(c, PASS_S, row, v), join, true, true};
}

/* A sum for the row of `needs`: the others let go of what they gave once it is there. */
static vocab_end end_of_sum(const collect *c, int32_t row, uint32_t gate, int32_t root,
                            uint32_t needs)
{
    const uint32_t join =
        row == root ? needs : lower_first_behind(c->l, row, lower_when(c->l, needs, root));
    return (vocab_end){gate, join, true, row == root};
}

static vocab_end end_of_c2(const collect *c, int32_t row, const vocab_at *v)
{
    const schedule *const s = c->l->s;
    const int32_t last = s->n_stages - 1;
    const uint32_t gate = sharded(c, PASS_T, row, v);
    if (s->vocab == VOCAB_INTERLACED) return (vocab_end){gate, following(c, row, gate), true, true};
    return end_of_sum(c, row, gate, s->pipes[s->microbatch_pipe[v->m]].backward_row[last],
                      index_find_backward(c->l->ix, last, v->m, v->k));
}

/* The gradient leaves after the first stage's backward, and its row goes on until all have it. */
static vocab_end end_of_embed_grad(const collect *c, int32_t row, const vocab_at *v)
{
    const schedule *const s = c->l->s;
    if (row != s->pipes[s->microbatch_pipe[v->m]].backward_row[0]) {
        const uint32_t join = sharded(c, PASS_G, row, v);
        return (vocab_end){before(c, row, join), join, false, true};
    }
    uint64_t when = 0;
    for (int32_t r = 0; r < s->n_rows; r++) {
        const uint64_t g = lower_when(c->l, sharded(c, PASS_G, r, v), r);
        if (g > when) when = g;
    }
    return (vocab_end){index_find_backward(c->l->ix, 0, v->m, v->k),
                       lower_first_behind(c->l, row, when), true, false};
}

static vocab_end vocab_end_of(const collect *c, coll_purpose purpose, int32_t row,
                              const vocab_at *v)
{
    const schedule *const s = c->l->s;
    switch (purpose) {
    case PURPOSE_C0: return end_of_c0(c, row, v);
    case PURPOSE_C1: return end_of_c1(c, row, v);
    case PURPOSE_C2: return end_of_c2(c, row, v);
    case PURPOSE_EMBED_SUM:
        return end_of_sum(c, row, sharded(c, PASS_E, row, v),
                          s->pipes[s->microbatch_pipe[v->m]].forward_row[0],
                          index_find(c->l->ix, PASS_F, 0, v->m, v->k));
    default: return end_of_embed_grad(c, row, v);
    }
}

/* Behind the last pass that gives where all do; else right before the first that needs it. */
static uint64_t place_of(const collect *c, const vocab_end *ends, int32_t n_rows)
{
    uint64_t last_gate = 0, first_join = UINT64_MAX;
    bool all_give = true;
    for (int32_t row = 0; row < n_rows; row++) {
        const vocab_end *const e = &ends[row];
        all_give = all_give && e->gives;
        if (e->gives && lower_when(c->l, e->gate, row) > last_gate)
            last_gate = lower_when(c->l, e->gate, row);
        if (e->gets && e->join != NODE_NONE && lower_when(c->l, e->join, row) < first_join)
            first_join = lower_when(c->l, e->join, row);
    }
    return all_give || first_join == UINT64_MAX ? last_gate : first_join - 1;
}

static td_status vocab_add(collect *c, coll_purpose purpose, coll_kind kind, int32_t root_row,
                           int64_t bytes, const vocab_at *v, td_err *err)
{
    const lowering *const l = c->l;
    const schedule *const s = l->s;
    for (int32_t row = 0; row < s->n_rows; row++) v->ends[row] = vocab_end_of(c, purpose, row, v);
    const collective item = {.when = place_of(c, v->ends, s->n_rows),
                             .group = v->group,
                             .root = (uint32_t)root_row,
                             .kind = kind,
                             .purpose = purpose,
                             .bytes = bytes,
                             .meet = s->vocab == VOCAB_INTERLACED && purpose == PURPOSE_C0,
                             .m = v->m,
                             .k = v->k};
    TD_TRY(collect_begin(c, item, err));
    const uint32_t inst = lower_inst(l, v->m, purpose >= PURPOSE_EMBED_SUM ? 0 : s->n_stages - 1);
    for (int32_t row = 0; row < s->n_rows; row++) {
        uint32_t gate = v->ends[row].gate;
        /* whoever only gets is ready when the others are, not as late as it could be */
        const uint32_t behind = lower_first_behind(l, row, item.when);
        const uint32_t ready =
            behind == NODE_NONE ? l->ix->row_first[row + 1] - 1 : previous(c, row, behind);
        if (gate != NODE_NONE && !v->ends[row].gives && (ready == NODE_NONE || gate > ready))
            gate = ready;
        TD_TRY(collect_member(c, lower_task(l, c->in, gate, row, v->replica),
                              lower_task(l, c->in, v->ends[row].join, row, v->replica), inst, err));
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
    /* only the last stage's backward needs the sum; an interlaced step is like tensor parallelism
     */
    if (s->vocab == VOCAB_1)
        TD_TRY(vocab_add(c, PURPOSE_C2, COLL_REDUCE, pipe->backward_row[last], v->boundary_bytes, v,
                         err));
    if (s->vocab == VOCAB_INTERLACED)
        TD_TRY(vocab_add(c, PURPOSE_C2, COLL_ALL_REDUCE, 0, v->boundary_bytes, v, err));
    if (c->l->ix->pos[PASS_E] == NULL) return TD_OK;
    TD_TRY(vocab_add(c, PURPOSE_EMBED_SUM, COLL_REDUCE, pipe->forward_row[0], v->boundary_bytes, v,
                     err));
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
    vocab_end *const ends = TD_NEW_N(l->a, vocab_end, s->n_rows);
    if (ends == NULL) return td_fail(err, TD_ENOMEM, "out of memory for collectives");
    for (vocab_at v = {.ends = ends}; v.replica < l->replicas; v.replica++) {
        for (int32_t row = 0; row < s->n_rows; row++) ranks[row] = lower_rank(l, row, v.replica);
        TD_TRY(collect_group(c, ranks, (uint32_t)s->n_rows, s->n_rows, &v.group, err));
        for (v.m = 0; v.m < s->n_microbatches; v.m++)
            for (v.k = 0; v.k < s->n_slices; v.k++) {
                int32_t len = 0, prefix = 0;
                lower_slice(l, v.m, v.k, &len, &prefix);
                const int32_t last = s->n_stages - 1;
                TD_TRY(sizes_bytes(l->o->sizes, SIZE_BOUNDARY, last, len, prefix, &v.boundary_bytes,
                                   err));
                /* three fp32 numbers a token: maximum, sum, the target's logit */
                if (l->o->sizes->model != NULL)
                    v.stats_bytes = 3 * (int64_t)sizeof(float) * l->o->sizes->run.micro_batch * len;
                TD_TRY(vocab_microbatch(c, &v, err));
            }
    }
    return TD_OK;
}
