/* Gradient norm, clipping, AdamW, the learning rate's course. */
#include "exec/device_run.h"
#include "exec/shard.h"

#include <math.h>
#include <string.h>

float optimizer_clip(double norm, double clip)
{
    return clip > 0 && norm > clip ? (float)(clip / norm) : 1.0f;
}

bool optimizer_decays(const param_tensor *t) { return t->cols > 1; }

double optimizer_rate(double peak, int64_t step, int64_t warmup, int64_t total)
{
    if (step <= warmup) return peak * (double)step / (double)(warmup < 1 ? 1 : warmup);
    if (step >= total || total <= warmup) return 0.1 * peak;
    const double done = (double)(step - warmup) / (double)(total - warmup);
    const double pi = 3.14159265358979323846;
    return peak * (0.1 + 0.45 * (1.0 + cos(pi * done)));
}

/* One use of a task's, looked up. */
typedef struct held {
    uint32_t inst;
    use_role role;
    char *at;
} held;

static held held_at(const executor *x, const exec_rank *r, uint32_t use)
{
    const plan *const p = x->p;
    const uint32_t buffer = use_buffer_of(p->uses[use]);
    const plan_buffer *const b = &p->buffers[p->ranks[r->index].first_buffer + buffer];
    return (held){.inst = p->bclasses[b->bclass].inst,
                  .role = use_role_of(p->uses[use]),
                  .at = exec_place(x, r->index, buffer)};
}

/* Adds what `rank` owns of the part that one reduce-scatter of its sums. */
static void add_piece(const plan *p, uint32_t rank, const plan_task *t, int64_t elements,
                      optimizer_share *s)
{
    const int64_t word = (int64_t)sizeof(float);
    const plan_class *const c = &p->classes[t->cls];
    const plan_group *const g = &p->groups[p->colls[t->link].group];
    const int64_t begin = (int64_t)c->prefix * SYNC_ALIGN;
    s->whole = false;
    if (begin >= elements || s->n == SYNC_PARTS_MAX) return; /* accumulators without weights */
    uint32_t member = 0;
    while (p->group_members[g->first_member + member] != rank) member++;
    int64_t first = 0, count = 0, most = 0;
    wire_piece(WIRE_SUM_PIECES_FLOAT, c->bytes, g->n_members, 0, &first, &most);
    wire_piece(WIRE_SUM_PIECES_FLOAT, c->bytes, g->n_members, member, &first, &count);
    s->pieces[s->n].first = begin + first / word;
    s->pieces[s->n].count = count / word;
    s->pieces[s->n++].moment = s->moments;
    s->moments += most / word;
}

optimizer_share optimizer_share_of(const executor *x, uint32_t rank, uint32_t inst)
{
    const plan *const p = x->p;
    const plan_rank *const r = &p->ranks[rank];
    const int64_t elements = exec_code(x, rank, p->insts[inst].stage)->elements;
    optimizer_share s = {.whole = true};
    for (uint32_t i = r->first_stream; i < r->first_stream + r->n_streams; i++)
        for (uint32_t k = 0; p->streams[i].kind == STREAM_COLL && k < p->streams[i].n_tasks; k++) {
            const plan_task *const t = &p->tasks[p->streams[i].first_task + k];
            const plan_class *const c = &p->classes[t->cls];
            if (c->purpose == PURPOSE_GRAD_SYNC && c->detail == COLL_REDUCE_SCATTER &&
                c->inst == inst)
                add_piece(p, rank, t, elements, &s);
        }
    if (!s.whole) return s;
    s.pieces[0].count = s.moments = elements;
    s.n = 1;
    return s;
}

/* Where a tensor and the i-th piece of a share meet: *first in elements of the stage, and how many.
 */
static int64_t meet(const param_tensor *t, const optimizer_share *s, int32_t i, int64_t *first)
{
    const int64_t begin = s->pieces[i].first, end = begin + s->pieces[i].count;
    const int64_t tensor_end = t->offset + t->rows * t->cols;
    *first = t->offset > begin ? t->offset : begin;
    const int64_t last = tensor_end < end ? tensor_end : end;
    return last > *first ? last - *first : 0;
}

/* Whether a collective adds the two uses' gradients of a tied table for this instance. */
static bool tied_by_message(const executor *x, const exec_rank *r, uint32_t inst)
{
    const plan *const p = x->p;
    for (uint32_t i = 0; i < r->n_posts; i++) {
        const plan_class *const c = &p->classes[p->tasks[r->posts[i].task].cls];
        if (c->kind == TASK_COLL && c->purpose == PURPOSE_TIED && c->inst == inst) return true;
    }
    return false;
}

/* Adds the gradients of the two uses of a tied table when this rank holds both and is to do so. */
static void add_tied(const executor *x, const exec_rank *r, uint32_t task)
{
    const plan *const p = x->p;
    const k_ops *const ops = k_ops_of(r->ctx);
    const uint32_t end = p->tasks[task + 1].first_use;
    for (uint32_t i = p->tasks[task].first_use; i < end; i++) {
        const held first = held_at(x, r, i);
        if (first.role != ROLE_GRADS) continue;
        const stage_code *const c = exec_code(x, r->index, p->insts[first.inst].stage);
        if (!c->at.embedding || c->own[PARAM_TOKEN_EMBEDDING] < 0 ||
            tied_by_message(x, r, first.inst))
            continue;
        const long n = (c->at.shard ? c->at.vocab_rows : c->m->vocab) * c->m->hidden;
        float *const table = (float *)(void *)first.at + c->own[PARAM_TOKEN_EMBEDDING];
        if (c->at.head) {
            float *const head = (float *)(void *)first.at + c->elements;
            ops->axpy(r->ctx, n, 1.0f, head, table);
            ops->zero(r->ctx, head, (size_t)n * sizeof *head);
            continue;
        }
        for (uint32_t j = p->tasks[task].first_use; j < end; j++) {
            const held last = held_at(x, r, j);
            if (last.role != ROLE_GRADS || p->insts[last.inst].stage != p->n_stages - 1) continue;
            float *const head =
                (float *)(void *)last.at + stage_head_grad(exec_code(x, r->index, p->n_stages - 1));
            ops->axpy(r->ctx, n, 1.0f, head, table);
            ops->copy(r->ctx, head, table, (size_t)n * sizeof *head);
        }
    }
}

/* The pieces of one instance that a rank updates; returns how many there are. */
static long list_pieces(const executor *x, const exec_rank *r, uint32_t inst, k_adamw_piece *out,
                        k_adamw_stage *s)
{
    const plan *const p = x->p;
    const plan_rank *const rank = &p->ranks[r->index];
    const stage_code *const c = exec_code(x, r->index, p->insts[inst].stage);
    const optimizer_share share = optimizer_share_of(x, r->index, inst);
    /* without a norm for all, each replica finds its own */
    const bool counts =
        !share.whole || (p->insts[inst].pipe == 0 && (x->validates || rank->replica == 0) &&
                         p->insts[inst].backward_row == rank->row);
    long found = 0;
    s->n_blocks = 0;
    s->moments = share.moments;
    for (int64_t t = 0; t < c->n_params; t++)
        for (int32_t k = 0; k < 2 * share.n; k++) {
            const param_tensor *const tensor = &c->params[t];
            int64_t first = 0, entry = stage_tensor_entry(c, t);
            int64_t end = meet(tensor, &share, k / 2, &first) + first;
            /* first what counts in the norm, then what another shard has too */
            const bool again = k % 2 == 1;
            const int64_t counted = tensor->offset + shard_counted(c, rank->shard, t);
            if (!again && end > counted) end = counted;
            if (again && first < counted) first = counted;
            if (first >= end) continue;
            if (!counts || entry >= x->n_tensors || again) entry = -1;
            if (out != NULL)
                out[found] = (k_adamw_piece){.first = first,
                                             .count = end - first,
                                             .moment = share.pieces[k / 2].moment + first -
                                                       share.pieces[k / 2].first,
                                             .entry = entry,
                                             .first_block = s->n_blocks,
                                             .decays = optimizer_decays(tensor)};
            s->n_blocks += (end - first + K_ADAMW_BLOCK - 1) / K_ADAMW_BLOCK;
            found++;
        }
    return found;
}

static td_status open_updates(executor *x, exec_rank *r, td_arena *a, td_err *err)
{
    r->updates = TD_NEW_N(a, k_adamw_stage, x->p->n_insts);
    if (r->updates == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the optimizer");
    for (uint32_t i = 0; i < x->p->n_insts; i++) {
        k_adamw_stage *const s = &r->updates[i];
        float *const g = exec_buffer(x, r->index, SIZE_GRADS, i);
        if (g == NULL) continue;
        s->grads = g;
        s->weights = exec_buffer(x, r->index, SIZE_WEIGHTS, i);
        s->m = exec_buffer(x, r->index, SIZE_OPTIMIZER, i);
        const long n = list_pieces(x, r, i, NULL, s);
        const int64_t bytes = n * (int64_t)sizeof *s->pieces;
        k_adamw_piece *const list = TD_NEW_N(a, k_adamw_piece, n);
        if (list == NULL && n > 0)
            return td_fail(err, TD_ENOMEM, "out of memory for the optimizer");
        s->n_pieces = list_pieces(x, r, i, list, s);
        s->pieces = list;
        if (x->device == NULL || n == 0) continue;
        void *room = NULL;
        TD_TRY(device_run_memory(x, a, bytes, &room, err));
        TD_TRY(device_run_write(x, room, list, bytes, err));
        s->pieces = room;
    }
    return TD_OK;
}

td_status optimizer_open(executor *x, td_arena *a, td_err *err)
{
    for (uint32_t i = 0; i < x->p->n_ranks; i++)
        if (x->ranks[i].ctx != NULL) TD_TRY(open_updates(x, &x->ranks[i], a, err));
    return TD_OK;
}

double *optimizer_table(const executor *x, const exec_rank *r, uint32_t task, use_role role)
{
    const plan *const p = x->p;
    for (uint32_t i = p->tasks[task].first_use; i < p->tasks[task + 1].first_use; i++) {
        const held h = held_at(x, r, i);
        if (h.role == role) return (double *)(void *)h.at;
    }
    return NULL;
}

void optimizer_norm(executor *x, exec_rank *r, uint32_t task)
{
    const plan *const p = x->p;
    const k_ops *const ops = k_ops_of(r->ctx);
    const uint32_t end = p->tasks[task + 1].first_use;
    if (x->z->model->tied) add_tied(x, r, task);
    double *const table = optimizer_table(x, r, task, ROLE_NORM);
    if (table == NULL) return;
    ops->zero(r->ctx, table, (size_t)x->n_tensors * sizeof *table);
    if (r->spoilt) table[0] = (double)NAN; /* a loss can be infinite while its gradient is not */
    device_run_spoil(x, r, table);
    for (uint32_t i = p->tasks[task].first_use; i < end; i++) {
        const held h = held_at(x, r, i);
        if (h.role == ROLE_GRADS) ops->norms(r->ctx, &r->updates[h.inst], table);
    }
}

td_status optimizer_refuses(const executor *x, const exec_rank *r, const double *table, long number,
                            td_err *err)
{
    for (int32_t s = 0; s < x->p->n_stages + (x->z->vocab_shards > 0 ? 1 : 0); s++)
        for (int64_t t = 0; t < x->stages[s].n_params; t++) {
            const int64_t entry = stage_tensor_entry(&x->stages[s], t);
            if (entry < x->n_tensors && !isfinite(table[entry]))
                return td_fail(err, TD_EMISMATCH,
                               "step %ld: the gradient of %s (stage %d) is not "
                               "finite; seen on rank %u; a lower --lr or --clip may help",
                               number, x->stages[s].params[t].name, s, r->index);
        }
    return td_fail(err, TD_EMISMATCH, "step %ld: the gradient is not finite", number);
}

bool optimizer_hands_out(const executor *x, const exec_step *step, const optimizer_share *s,
                         uint32_t rank, uint32_t inst, uint32_t to)
{
    const plan *const p = x->p;
    if (step->grads_out == NULL || step->grads_out[to] == NULL) return false;
    if (s->whole)
        return to == inst && p->ranks[rank].replica == 0 &&
               p->insts[inst].backward_row == p->ranks[rank].row;
    /* shards of the tables are no copies of each other */
    return to == inst ||
           (p->insts[to].stage == p->insts[inst].stage && p->insts[to].stage < p->n_stages);
}

static void hand_out(const executor *x, const exec_rank *r, const exec_step *step, uint32_t inst,
                     const optimizer_share *share, const float *g)
{
    const int32_t stage = x->p->insts[inst].stage;
    for (uint32_t to = 0; to < x->p->n_insts; to++)
        for (int32_t k = 0; optimizer_hands_out(x, step, share, r->index, inst, to) && k < share->n;
             k++)
            if (x->whole != x->stages)
                shard_give_piece(&x->whole[stage], &x->stages[stage], x->p->ranks[r->index].shard,
                                 g, share->pieces[k].first,
                                 share->pieces[k].first + share->pieces[k].count,
                                 step->grads_out[to]);
            else
                memcpy(step->grads_out[to] + share->pieces[k].first, g + share->pieces[k].first,
                       (size_t)share->pieces[k].count * sizeof *g);
}

/* hand_out of what the device has summed; a check's business, so it may wait. */
static td_status show(const executor *x, const exec_rank *r, const exec_step *step, uint32_t inst,
                      const optimizer_share *share, const float *g, td_err *err)
{
    const int64_t n = exec_code(x, r->index, x->p->insts[inst].stage)->elements;
    if (x->device == NULL) {
        hand_out(x, r, step, inst, share, g);
        return TD_OK;
    }
    TD_TRY(device_run_wait(x, r, err));
    td_arena *const a = td_arena_new();
    float *const room = a == NULL ? NULL : td_alloc(a, (size_t)n, sizeof *room);
    td_status st = room == NULL ? td_fail(err, TD_ENOMEM, "out of memory for gradients")
                                : device_run_read(x, room, g, n * (int64_t)sizeof *g, err);
    if (st == TD_OK) hand_out(x, r, step, inst, share, room);
    td_arena_free(a);
    return st;
}

/* Weights, then moments, to or from the snapshot. */
static void copy_state(const executor *x, const exec_rank *r, uint32_t inst, bool back)
{
    const k_ops *const ops = k_ops_of(r->ctx);
    const k_adamw_stage *const u = &r->updates[inst];
    const size_t n =
        (size_t)exec_code(x, r->index, x->p->insts[inst].stage)->elements * sizeof(float);
    char *const kept = (char *)(void *)exec_buffer(x, r->index, SIZE_SNAPSHOT, inst);
    ops->copy(r->ctx, back ? (char *)(void *)u->weights : kept,
              back ? kept : (char *)(void *)u->weights, n);
    ops->copy(r->ctx, back ? (char *)(void *)u->m : kept + n,
              back ? kept + n : (char *)(void *)u->m, 2 * n);
}

static td_status apply(executor *x, exec_rank *r, uint32_t inst, const exec_step *s, unsigned what,
                       const double *scale, td_err *err)
{
    const k_ops *const ops = k_ops_of(r->ctx);
    const k_adamw_stage *const u = &r->updates[inst];
    const optimizer_share share = optimizer_share_of(x, r->index, inst);
    const bool clear = (what & OPTIMIZER_CLEAR) != 0;
    const k_adamw a = {.lr = s->lr,
                       .beta1 = s->beta1,
                       .beta2 = s->beta2,
                       .eps = s->eps,
                       .weight_decay = s->weight_decay,
                       .step = s->number,
                       .clear_grad = clear};
    if ((what & OPTIMIZER_SHOW) != 0 && s->grads_out != NULL)
        TD_TRY(show(x, r, s, inst, &share, u->grads, err));
    if ((what & OPTIMIZER_RESTORE) != 0) copy_state(x, r, inst, true);
    if ((what & OPTIMIZER_KEEP) != 0) copy_state(x, r, inst, false);
    if ((what & OPTIMIZER_UPDATE) != 0) ops->adamw(r->ctx, &a, u, scale);
    /* what other members own still holds this rank's own sums */
    if (clear && (!share.whole || (what & OPTIMIZER_UPDATE) == 0))
        ops->zero(r->ctx, u->grads,
                  (size_t)exec_code(x, r->index, x->p->insts[inst].stage)->grad_elements *
                      sizeof *u->grads);
    return TD_OK;
}

td_status optimizer_apply(executor *x, exec_rank *r, uint32_t task, const exec_step *s,
                          unsigned what, const double *scale, td_err *err)
{
    const plan *const p = x->p;
    for (uint32_t i = p->tasks[task].first_use; i < p->tasks[task + 1].first_use; i++) {
        const held w = held_at(x, r, i);
        if (w.role == ROLE_WEIGHTS && r->updates[w.inst].grads != NULL &&
            r->updates[w.inst].m != NULL)
            TD_TRY(apply(x, r, w.inst, s, what, scale, err));
    }
    return TD_OK;
}

td_status optimizer_step(executor *x, exec_rank *r, uint32_t task, td_err *err)
{
    const double *const table = optimizer_table(x, r, task, ROLE_NORM);
    double here[2] = {0, 1};
    double *const scale = x->device == NULL ? here : &x->device->found[2 * r->index];
    if (table != NULL)
        k_ops_of(r->ctx)->clip(r->ctx, x->n_tensors, table, r->now->step.clip, scale);
    if (x->device == NULL) {
        if (!isfinite(scale[0]) && !r->now->step.skip)
            return optimizer_refuses(x, r, table, r->now->step.number, err);
        if (exec_rank_of(x, 0, 0) == r->index) x->grad_norm = scale[0]; /* everywhere the same */
    }
    exec_join_shards(x, r, task);
    return optimizer_apply(x, r, task, &r->now->step,
                           OPTIMIZER_SHOW | OPTIMIZER_UPDATE | OPTIMIZER_CLEAR, scale, err);
}
