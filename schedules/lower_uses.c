/* What each kind of task does with which buffer. Order within a task is by role and fixed. */
#include "schedules/lower_memory.h"

/* A pass at hand. */
typedef struct pass_at {
    pass_kind kind;
    int32_t pipe, stage, inst, m, k;
    bool first, last;  /* of the stages */
    bool away;         /* forward and backward of the stage live on different rows */
    bool begins, ends; /* the first stage behind a sharded embedding, the last before such a head */
    bool split;        /* its backward is I and W */
} pass_at;

static pass_at pass_of(const memory *mem, const plan *p, uint32_t cls, uint8_t kind, uint32_t m,
                       uint16_t k)
{
    const plan_inst *const inst = &p->insts[p->classes[cls].inst];
    return (pass_at){.kind = (pass_kind)kind,
                     .pipe = inst->pipe,
                     .stage = inst->stage,
                     .inst = (int32_t)p->classes[cls].inst,
                     .m = (int32_t)m,
                     .k = k,
                     .first = inst->stage == 0,
                     .last = inst->stage == mem->l->s->n_stages - 1,
                     .away = inst->forward_row != inst->backward_row,
                     .begins = inst->stage == 0 && mem->l->ix->pos[PASS_E] != NULL,
                     .ends =
                         inst->stage == mem->l->s->n_stages - 1 && mem->l->s->vocab != VOCAB_NONE,
                     .split = kind < PASS_COUNT && !pass_is_sharded((pass_kind)kind) &&
                              memory_is_split(mem, inst->stage, (int32_t)m, k)};
}

static td_status use_tensor(memory *mem, use_mode mode, use_role role, memory_table table,
                            int32_t stage, const pass_at *p, td_err *err)
{
    uint32_t b = PLAN_NONE;
    TD_TRY(memory_tensor(mem, table, stage, p->m, p->k, &b, err));
    memory_use(mem, mode, role, b);
    return TD_OK;
}

static td_status use_run(memory *mem, use_mode mode, use_role role, size_kind what, int32_t inst,
                         td_err *err)
{
    uint32_t b = PLAN_NONE;
    TD_TRY(memory_of_run(mem, what, inst, &b, err));
    memory_use(mem, mode, role, b);
    return TD_OK;
}

static td_status use_scratch(memory *mem, const pass_at *p, td_err *err)
{
    uint32_t b = PLAN_NONE;
    const bool alone = p->away && p->kind == PASS_F; /* nothing is kept for a backward */
    TD_TRY(memory_scratch(mem, alone ? SIZE_FORWARD : SIZE_SCRATCH, p->inst, p->m, p->k, &b, err));
    memory_use(mem, USE_WRITE, ROLE_SCRATCH, b);
    return TD_OK;
}

/* The output of a stage: the next stage's input where that is on the same row. */
static td_status use_output(memory *mem, const pass_at *p, td_err *err)
{
    if (p->last && !p->ends) return TD_OK;
    if (p->last)
        return memory_vocab_use(mem, USE_WRITE, ROLE_OUTPUT, TABLE_VOCAB_X, p->m, p->k, err);
    const sched_pipe *const pipe = &mem->l->s->pipes[p->pipe];
    if (pipe->forward_row[p->stage + 1] == pipe->forward_row[p->stage])
        return use_tensor(mem, USE_WRITE, ROLE_OUTPUT, TABLE_ACT_IN, p->stage + 1, p, err);
    return use_tensor(mem, USE_WRITE, ROLE_OUTPUT, TABLE_ACT_OUT, p->stage, p, err);
}

static td_status use_doutput(memory *mem, const pass_at *p, td_err *err)
{
    if (p->ends && mem->l->s->vocab == VOCAB_2)
        return memory_vocab_use(mem, USE_READ, ROLE_VOCAB_STATS, TABLE_VOCAB_STATS, p->m, p->k,
                                err);
    if (p->ends)
        return memory_vocab_use(mem, USE_READ, ROLE_DOUTPUT, TABLE_VOCAB_DX, p->m, p->k, err);
    if (p->last) return TD_OK;
    return use_tensor(mem, USE_READ, ROLE_DOUTPUT, TABLE_GRAD_IN, p->stage, p, err);
}

static td_status use_dinput(memory *mem, const pass_at *p, td_err *err)
{
    if (p->begins)
        return memory_vocab_use(mem, USE_WRITE, ROLE_DINPUT, TABLE_EMBED_GRAD, p->m, p->k, err);
    if (p->first) return TD_OK;
    const sched_pipe *const pipe = &mem->l->s->pipes[p->pipe];
    if (pipe->backward_row[p->stage - 1] == pipe->backward_row[p->stage])
        return use_tensor(mem, USE_WRITE, ROLE_DINPUT, TABLE_GRAD_IN, p->stage - 1, p, err);
    return use_tensor(mem, USE_WRITE, ROLE_DINPUT, TABLE_GRAD_OUT, p->stage, p, err);
}

/* The stage's input, where this pass finds it. */
static td_status use_input(memory *mem, const pass_at *p, td_err *err)
{
    if (p->begins && p->kind == PASS_F)
        return memory_vocab_use(mem, USE_READ, ROLE_INPUT, TABLE_EMBED, p->m, p->k, err);
    if (p->first) return TD_OK;
    const memory_table table = p->away && p->kind != PASS_F ? TABLE_HANDOFF_IN : TABLE_ACT_IN;
    return use_tensor(mem, USE_READ, ROLE_INPUT, table, p->stage, p, err);
}

static td_status use_tokens(memory *mem, const pass_at *p, td_err *err)
{
    const bool embeds = p->first && !p->begins, head = p->last && !p->ends;
    if (!embeds && !head) return TD_OK;
    /* one row's first and last stage share the microbatch's tokens */
    const sched_pipe *const pipe = &mem->l->s->pipes[p->pipe];
    const int32_t last = mem->l->s->n_stages - 1;
    const int32_t *const rows =
        p->away && p->kind != PASS_F ? pipe->backward_row : pipe->forward_row;
    const int32_t stage = p->last && rows[0] == rows[last] ? 0 : p->stage;
    const memory_table table = p->away && p->kind != PASS_F ? TABLE_TOKENS_AGAIN : TABLE_TOKENS;
    return use_tensor(mem, USE_READ, ROLE_TOKENS, table, stage, p, err);
}

/* With slices, a slice's attention needs the keys and values of all slices before it: F keeps its
 * own, and backward, which runs from the last slice to the first, adds up their gradients. Uncut
 * microbatches have them inside the stash. */
static td_status use_cache(memory *mem, const pass_at *p, td_err *err)
{
    const schedule *const s = mem->l->s;
    if (s->n_slices == 1) return TD_OK;
    const bool forward = p->kind == PASS_F || p->kind == PASS_R;
    const memory_table table = p->away && p->kind != PASS_F ? TABLE_KV_AGAIN : TABLE_KV;
    pass_at at = *p;
    for (at.k = 0; at.k <= p->k; at.k++) {
        const use_mode mode = forward && at.k == p->k ? USE_WRITE : USE_READ;
        TD_TRY(use_tensor(mem, mode, ROLE_KV, table, p->stage, &at, err));
    }
    if (forward) return TD_OK;
    const use_mode mode = p->k == s->n_slices - 1 ? USE_WRITE : USE_ADD;
    return use_tensor(mem, mode, ROLE_DKV, TABLE_DKV, p->stage, p, err);
}

/* What F keeps. I writes over the part that lives on. */
static td_status use_stash(memory *mem, use_mode mode, use_mode of_w, const pass_at *p, td_err *err)
{
    TD_TRY(use_tensor(mem, mode, ROLE_STASH, TABLE_STASH, p->stage, p, err));
    if (!p->split) return TD_OK;
    return use_tensor(mem, of_w, ROLE_STASH_W, TABLE_STASH_W, p->stage, p, err);
}

static td_status uses_of_forward(memory *mem, const pass_at *p, td_err *err)
{
    const bool keeps = p->kind == PASS_R || !p->away; /* a forward row keeps nothing */
    TD_TRY(use_input(mem, p, err));
    TD_TRY(use_tokens(mem, p, err));
    TD_TRY(use_run(mem, USE_READ, ROLE_WEIGHTS, SIZE_WEIGHTS, p->inst, err));
    if (keeps) TD_TRY(use_stash(mem, USE_WRITE, USE_WRITE, p, err));
    if (p->kind == PASS_F) TD_TRY(use_output(mem, p, err));
    TD_TRY(use_cache(mem, p, err));
    return use_scratch(mem, p, err);
}

static td_status uses_of_backward(memory *mem, const pass_at *p, td_err *err)
{
    TD_TRY(use_input(mem, p, err));
    TD_TRY(use_tokens(mem, p, err));
    TD_TRY(use_run(mem, USE_READ, ROLE_WEIGHTS, SIZE_WEIGHTS, p->inst, err));
    TD_TRY(use_stash(mem, USE_READ, USE_ADD, p, err));
    TD_TRY(use_doutput(mem, p, err));
    TD_TRY(use_dinput(mem, p, err));
    TD_TRY(use_run(mem, USE_ADD, ROLE_GRADS, SIZE_GRADS, p->inst, err));
    if (p->split) TD_TRY(use_tensor(mem, USE_WRITE, ROLE_WSTASH, TABLE_WSTASH, p->stage, p, err));
    TD_TRY(use_cache(mem, p, err));
    return use_scratch(mem, p, err);
}

/* Only products have weights that wait for W; norms and embeddings are done in I. */
static td_status uses_of_weight_gradient(memory *mem, const pass_at *p, td_err *err)
{
    const sizes *const z = mem->l->o->sizes;
    const stage_desc *const s = z->model == NULL ? NULL : &z->stages[p->stage];
    if (s != NULL && weight_pass_reads_input(z->model, s)) TD_TRY(use_input(mem, p, err));
    TD_TRY(use_tensor(mem, USE_READ, ROLE_STASH_W, TABLE_STASH_W, p->stage, p, err));
    if (s != NULL && weight_pass_reads_doutput(z->model, s))
        TD_TRY(use_tensor(mem, USE_READ, ROLE_DOUTPUT, TABLE_GRAD_IN, p->stage, p, err));
    TD_TRY(use_run(mem, USE_ADD, ROLE_GRADS, SIZE_GRADS, p->inst, err));
    TD_TRY(use_tensor(mem, USE_READ, ROLE_WSTASH, TABLE_WSTASH, p->stage, p, err));
    /* where shards bring rows together */
    return z->run.sequence_parallel && mem->l->tp > 1 ? use_scratch(mem, p, err) : TD_OK;
}

static td_status uses_of_pass(memory *mem, const pass_at *p, td_err *err)
{
    switch (p->kind) {
    case PASS_F:
    case PASS_R: return uses_of_forward(mem, p, err);
    case PASS_B:
    case PASS_I: return uses_of_backward(mem, p, err);
    case PASS_W: return uses_of_weight_gradient(mem, p, err);
    case PASS_S:
    case PASS_T:
    case PASS_E:
    case PASS_G: return memory_vocab_pass(mem, p->kind, p->m, p->k, err);
    default: return TD_OK;
    }
}

/* What is known of the norm: what comes from the rank before is merged; what comes from behind is
 * the whole of it. */
static td_status uses_of_state(memory *mem, const plan *p, const plan_task *t, td_err *err)
{
    const bool merges = t->join != PLAN_NONE && p->tasks[t->join].kind == TASK_MERGE;
    return use_run(mem, t->kind == TASK_SEND ? USE_READ : USE_WRITE, ROLE_MESSAGE,
                   merges && t->kind == TASK_RECV ? SIZE_NORM_BEFORE : SIZE_NORM, -1, err);
}

/* Weights to a forward row; where it steps itself, the sums of gradients that it steps with. */
static td_status uses_of_weights(memory *mem, const plan_inst *i, use_mode mode, int32_t inst,
                                 td_err *err)
{
    const bool parts = mode == USE_WRITE && lower_joins_shards(mem->l, i);
    const size_kind what = i->all_step ? parts ? SIZE_GRAD_PARTS : SIZE_GRADS
                           : parts     ? SIZE_WEIGHT_PARTS
                                       : SIZE_WEIGHTS;
    return use_run(mem, mode, ROLE_MESSAGE, what, inst, err);
}

static td_status uses_of_message(memory *mem, const plan *p, const plan_task *t, td_err *err)
{
    const plan_class *const c = &p->classes[t->cls];
    if (c->detail == CHANNEL_STATE) return uses_of_state(mem, p, t, err);
    const pass_at at = pass_of(mem, p, t->cls, t->kind, t->microbatch, t->slice);
    const bool send = t->kind == TASK_SEND;
    const use_mode mode = send ? USE_READ : USE_WRITE;
    memory_table table = TABLE_ACT_IN;
    int32_t stage = at.stage; /* the one that receives */
    switch ((channel_class)c->detail) {
    case CHANNEL_ACT:
        table = send ? TABLE_ACT_OUT : TABLE_ACT_IN;
        stage -= send;
        break;
    case CHANNEL_GRAD:
        table = send ? TABLE_GRAD_OUT : TABLE_GRAD_IN;
        stage += send;
        break;
    case CHANNEL_HANDOFF:
        if (!send) {
            table = TABLE_HANDOFF_IN;
        } else if (mem->l->s->handoff != HANDOFF_LAGGED) {
            table = TABLE_ACT_OUT;
            stage -= 1;
        }
        break;
    case CHANNEL_WEIGHTS: return uses_of_weights(mem, &p->insts[at.inst], mode, at.inst, err);
    case CHANNEL_STATE: break; /* uses_of_state */
    }
    return use_tensor(mem, mode, ROLE_MESSAGE, table, stage, &at, err);
}

static td_status uses_of_collective(memory *mem, const plan *p, uint32_t task, td_err *err)
{
    const plan_task *const t = &p->tasks[task];
    const plan_class *const c = &p->classes[t->cls];
    switch ((coll_purpose)c->purpose) {
    case PURPOSE_GRAD_SYNC:
    case PURPOSE_SHARD_GRADS:
    case PURPOSE_TIED:
        return use_run(mem, USE_ADD, ROLE_MESSAGE, SIZE_GRADS, (int32_t)c->inst, err);
    case PURPOSE_NORM: return use_run(mem, USE_ADD, ROLE_MESSAGE, SIZE_NORM, -1, err);
    case PURPOSE_WEIGHTS:
        return use_run(mem, USE_ADD, ROLE_MESSAGE, SIZE_WEIGHTS, (int32_t)c->inst, err);
    default: return memory_vocab_barrier(mem, p, task, err);
    }
}

/* The optimizer of a row begins with what shards of other rows have sent it: weights, which it then
 * has, or gradients. */
static td_status uses_of_joining(memory *mem, const plan_inst *i, int32_t inst, td_err *err)
{
    if (i->forward_row != mem->row || !lower_joins_shards(mem->l, i)) return TD_OK;
    if (i->all_step) return use_run(mem, USE_READ, ROLE_PARTS, SIZE_GRAD_PARTS, inst, err);
    TD_TRY(use_run(mem, USE_WRITE, ROLE_WEIGHTS, SIZE_WEIGHTS, inst, err));
    return use_run(mem, USE_READ, ROLE_PARTS, SIZE_WEIGHT_PARTS, inst, err);
}

/* The gradient norm, the optimizer step and its validation see every stage that trains on the row.
 * A step that is validated later leaves a snapshot and keeps the gradients, so that it can be taken
 * back and done again. */
static td_status uses_of_step(memory *mem, const plan *p, const plan_task *t, td_err *err)
{
    const bool norm = t->kind == TASK_NORM, validate = mem->l->s->validate;
    const use_mode snapshot = t->kind == TASK_VERIFY ? USE_READ : USE_WRITE;
    bool trains = false;
    for (uint32_t i = 0; i < p->n_insts; i++) {
        const int32_t inst = (int32_t)i;
        if (t->kind == TASK_OPTIMIZER) TD_TRY(uses_of_joining(mem, &p->insts[i], inst, err));
        if (!plan_trains(&p->insts[i], mem->row)) continue;
        trains = true;
        if (!norm) TD_TRY(use_run(mem, USE_WRITE, ROLE_WEIGHTS, SIZE_WEIGHTS, inst, err));
        TD_TRY(use_run(mem, norm ? USE_READ : USE_ADD, ROLE_GRADS, SIZE_GRADS, inst, err));
        if (!norm) TD_TRY(use_run(mem, USE_ADD, ROLE_OPTIMIZER, SIZE_OPTIMIZER, inst, err));
        if (!norm && validate)
            TD_TRY(use_run(mem, snapshot, ROLE_SNAPSHOT, SIZE_SNAPSHOT, inst, err));
    }
    if (!trains) return TD_OK;
    return use_run(mem, norm ? USE_WRITE : USE_READ, ROLE_NORM, SIZE_NORM, -1, err);
}

static td_status uses_of_merge(memory *mem, td_err *err)
{
    if (mem->row > 0) TD_TRY(use_run(mem, USE_READ, ROLE_NORM_BEFORE, SIZE_NORM_BEFORE, -1, err));
    return use_run(mem, USE_ADD, ROLE_NORM, SIZE_NORM, -1, err);
}

td_status memory_task_uses(memory *mem, plan *p, uint32_t task, td_err *err)
{
    const plan_task *const t = &p->tasks[task];
    switch ((task_kind)t->kind) {
    case TASK_SEND:
    case TASK_RECV: return uses_of_message(mem, p, t, err);
    case TASK_COLL: return uses_of_collective(mem, p, task, err);
    case TASK_NORM:
    case TASK_OPTIMIZER:
    case TASK_VERIFY: return uses_of_step(mem, p, t, err);
    case TASK_MERGE: return uses_of_merge(mem, err);
    case TASK_MARK:
    case TASK_KIND_COUNT: return TD_OK;
    case TASK_PAIR:
        for (uint32_t i = t->link; i < t->link + 2; i++) {
            plan_member *const mb = &p->members[i];
            const pass_at at = pass_of(mem, p, mb->cls, mb->kind, mb->microbatch, mb->slice);
            mb->first_use = (uint32_t)mem->n_uses;
            TD_TRY(uses_of_pass(mem, &at, err));
            mb->n_uses = (uint32_t)mem->n_uses - mb->first_use;
        }
        return TD_OK;
    }
    const pass_at at = pass_of(mem, p, t->cls, t->kind, t->microbatch, t->slice);
    return uses_of_pass(mem, &at, err);
}
