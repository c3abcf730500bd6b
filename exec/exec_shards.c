/* Tensor-parallel shards at run time: the sums inside a pass meet on the wire, and a pass waits for
 * them. All shards of a row run the same passes in the same order, so the k-th sum of one is the
 * k-th of each. */
#include "exec/exec.h"
#include "exec/shard.h"

static int32_t shards_of(const plan *p) { return p->folded_tp ? 1 : p->tp; }

/* The most sums and gathers of one pass: two products forward, two backward, one made again, for
 * each layer; tables at both ends; the head's statistics by pieces. */
static void count_pass(const executor *x, const plan_class *k, uint32_t *sums, uint32_t *gathers)
{
    const stage_code *const c = &x->stages[x->p->insts[k->inst].stage];
    *sums += 5 * (uint32_t)c->at.n_layers + 2;
    if (c->at.head)
        *gathers += (uint32_t)((c->rows + c->scratch.logits_rows - 1) / c->scratch.logits_rows);
}

static void count_rank(const executor *x, uint32_t rank, uint32_t *sums, uint32_t *gathers)
{
    const plan *const p = x->p;
    const plan_stream *const s = plan_compute(p, rank);
    *sums = *gathers = 0;
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[i];
        if (t->kind < PASS_COUNT) count_pass(x, &p->classes[t->cls], sums, gathers);
        for (uint32_t j = 0; t->kind == TASK_PAIR && j < 2; j++)
            count_pass(x, &p->classes[p->members[t->link + j].cls], sums, gathers);
    }
}

td_status exec_shards_shape(const executor *x, td_arena *a, wire_shape *shape, td_err *err)
{
    const plan *const p = x->p;
    const uint32_t tp = (uint32_t)shards_of(p);
    if (tp == 1) return TD_OK;
    uint32_t n_colls = shape->n_colls, n_groups = shape->n_groups;
    for (uint32_t r = 0; r < p->n_ranks; r += tp) {
        uint32_t sums = 0, gathers = 0;
        count_rank(x, r, &sums, &gathers);
        n_colls += sums + gathers;
    }
    wire_group *const groups = TD_NEW_N(a, wire_group, n_groups + p->n_ranks / tp);
    wire_coll *const colls = TD_NEW_N(a, wire_coll, n_colls);
    uint32_t *const members = TD_NEW_N(a, uint32_t, p->n_ranks);
    if (groups == NULL || colls == NULL || members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the shards");
    for (uint32_t i = 0; i < n_groups; i++) groups[i] = shape->groups[i];
    for (uint32_t i = 0; i < shape->n_colls; i++) colls[i] = shape->colls[i];
    uint32_t at = shape->n_colls;
    const int64_t word = (int64_t)sizeof(float), rows = x->stages[0].rows;
    const int64_t sum_bytes = rows * x->z->model->hidden * word,
                  gather_bytes = 3 * tp * rows * word;
    for (uint32_t r = 0; r < p->n_ranks; r += tp, n_groups++) {
        uint32_t sums = 0, gathers = 0;
        count_rank(x, r, &sums, &gathers);
        groups[n_groups] = (wire_group){.members = &members[r], .n_members = tp};
        for (uint32_t k = 0; k < tp; k++) {
            members[r + k] = r + k;
            x->ranks[r + k].shards = (exec_shards){.first_sum = at, .first_gather = at + sums};
        }
        for (uint32_t i = 0; i < sums + gathers; i++)
            colls[at++] = (wire_coll){.group = n_groups,
                                      .kind = i < sums ? WIRE_SUM_FLOAT : WIRE_GATHER_FLOAT,
                                      .bytes = i < sums ? sum_bytes : gather_bytes};
    }
    shape->groups = groups;
    shape->n_groups = n_groups;
    shape->colls = colls;
    shape->n_colls = at;
    return TD_OK;
}

/* A rank's view of its shards. */
typedef struct shard_call {
    executor *x;
    exec_rank *r;
} shard_call;

static void meet(shard_call *s, uint32_t coll, float *data, int64_t n)
{
    exec_shards *const at = &s->r->shards;
    const plan_rank *const rank = &s->x->p->ranks[s->r->index];
    if (at->why.code != TD_OK) return; /* the pass goes on with what it has, and then fails */
    at->op = (wire_op){.data = data,
                       .bytes = n * (int64_t)sizeof *data,
                       .rank = s->r->index,
                       .task = plan_compute(s->x->p, s->r->index)->first_task + s->r->at};
    wire_collective(s->x->wire, coll, (uint32_t)rank->shard, &at->op);
    const td_status st = wire_wait(s->x->wire, &at->op, &at->why);
    at->why.code = st;
}

static void sum(void *self, float *data, int64_t n)
{
    shard_call *const s = self;
    meet(s, s->r->shards.first_sum + s->r->shards.n_sums++, data, n);
}

static void gather(void *self, float *data, int64_t each)
{
    shard_call *const s = self;
    meet(s, s->r->shards.first_gather + s->r->shards.n_gathers++, data, each * shards_of(s->x->p));
}

void exec_shards_begin(exec_rank *r)
{
    r->shards.n_sums = r->shards.n_gathers = 0;
    r->shards.why.code = TD_OK;
}

td_status exec_shards_pass(executor *x, exec_rank *r, stage_args *a,
                           void (*pass)(k_ctx *ctx, const stage_code *c, stage_args *p),
                           const stage_code *c, td_err *err)
{
    shard_call call = {.x = x, .r = r};
    const stage_shards shards = {.index = x->p->ranks[r->index].shard,
                                 .size = shards_of(x->p),
                                 .self = &call,
                                 .sum = sum,
                                 .gather = gather};
    a->shards = shards.size > 1 ? &shards : NULL;
    pass(r->ctx, c, a);
    a->shards = NULL;
    const td_err *const why = &r->shards.why;
    return why->code == TD_OK ? TD_OK : td_fail(err, why->code, "%s", why->msg);
}

float *exec_whole_weights(const executor *x, uint32_t inst, int32_t replica, float *room)
{
    const plan *const p = x->p;
    const int32_t stage = p->insts[inst].stage;
    const uint32_t first = exec_rank_of(x, inst, replica);
    if (shards_of(p) == 1) return exec_buffer(x, first, SIZE_WEIGHTS, inst);
    for (int32_t k = 0; k < shards_of(p); k++)
        shard_give(&x->whole[stage], &x->stages[stage], k,
                   exec_buffer(x, first + (uint32_t)k, SIZE_WEIGHTS, inst), room);
    return room;
}

td_status exec_bring_weights(const executor *x, uint32_t inst, float *room, const float **out,
                             td_err *err)
{
    const plan *const p = x->p;
    team *const t = x->options.team;
    const stage_code *const whole = &x->whole[p->insts[inst].stage];
    const stage_code *const part = &x->stages[p->insts[inst].stage];
    const uint32_t first = exec_rank_of(x, inst, 0);
    const int64_t bytes = part->elements * (int64_t)sizeof *room;
    *out = shards_of(p) == 1 ? exec_buffer(x, first, SIZE_WEIGHTS, inst) : room;
    for (int32_t k = 0; shards_of(p) > 1 && k < shards_of(p); k++) {
        const uint32_t from = first + (uint32_t)k;
        const float *own = exec_buffer(x, from, SIZE_WEIGHTS, inst);
        if (k > 0 && exec_is_here(x, from) && !exec_is_here(x, first))
            TD_TRY(team_send(t, first, own, bytes, err));
        if (!exec_is_here(x, first)) continue;
        if (!exec_is_here(x, from)) {
            TD_TRY(team_recv(t, from, room + whole->elements, bytes, err));
            own = room + whole->elements;
        }
        shard_give(whole, part, k, own, room);
    }
    return TD_OK;
}

td_status exec_shards_init(const executor *x, uint32_t rank, int32_t stage, uint64_t seed,
                           float *weights, td_err *err)
{
    const stage_code *const whole = &x->whole[stage], *const part = &x->stages[stage];
    if (shards_of(x->p) == 1) {
        params_init(part->m, part->params, part->n_params, seed, weights);
        return TD_OK;
    }
    td_arena *const a = td_arena_new();
    float *const all = a == NULL ? NULL : td_alloc(a, (size_t)whole->elements, sizeof *all);
    if (all != NULL) {
        params_init(whole->m, whole->params, whole->n_params, seed, all);
        shard_take(whole, part, x->p->ranks[rank].shard, all, weights);
    }
    td_arena_free(a);
    return all != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for first weights");
}
