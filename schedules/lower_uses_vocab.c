/* What the passes and barriers of sharded vocabulary layers do with which buffer. Every row has
 * buffers of its own: a copy of the last stage's output X and of the gradients, its words' softmax,
 * what C1 joins (in Vocab-2 with the input gradient), tokens, and its shard of the tables. */
#include "schedules/lower_memory.h"

td_status memory_vocab_use(memory *mem, use_mode mode, use_role role, memory_table table, int32_t m,
                           int32_t k, td_err *err)
{
    uint32_t b = PLAN_NONE;
    TD_TRY(memory_tensor(mem, table, mem->row, m, k, &b, err));
    memory_use(mem, mode, role, b);
    return TD_OK;
}

static td_status use_shard(memory *mem, use_mode mode, use_role role, size_kind what, td_err *err)
{
    uint32_t b = PLAN_NONE;
    TD_TRY(memory_of_run(mem, what, (int32_t)lower_shard_inst(mem->l, mem->row), &b, err));
    memory_use(mem, mode, role, b);
    return TD_OK;
}

static td_status uses_of_s(memory *mem, int32_t m, int32_t k, td_err *err)
{
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_INPUT, TABLE_VOCAB_X, m, k, err));
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_TOKENS, TABLE_VOCAB_TOKENS, m, k, err));
    TD_TRY(use_shard(mem, USE_READ, ROLE_WEIGHTS, SIZE_WEIGHTS, err));
    TD_TRY(memory_vocab_use(mem, USE_WRITE, ROLE_VOCAB_STATS, TABLE_VOCAB_STATS, m, k, err));
    return memory_vocab_use(mem, USE_WRITE, ROLE_VOCAB_STASH, TABLE_VOCAB_STASH, m, k, err);
}

static td_status uses_of_t(memory *mem, int32_t m, int32_t k, td_err *err)
{
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_INPUT, TABLE_VOCAB_X, m, k, err));
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_TOKENS, TABLE_VOCAB_TOKENS, m, k, err));
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_VOCAB_STATS, TABLE_VOCAB_STATS, m, k, err));
    TD_TRY(memory_vocab_use(mem, USE_ADD, ROLE_VOCAB_STASH, TABLE_VOCAB_STASH, m, k, err));
    TD_TRY(use_shard(mem, USE_ADD, ROLE_GRADS, SIZE_GRADS, err));
    if (mem->l->s->vocab == VOCAB_2) return TD_OK;
    TD_TRY(use_shard(mem, USE_READ, ROLE_WEIGHTS, SIZE_WEIGHTS, err));
    return memory_vocab_use(mem, USE_WRITE, ROLE_DINPUT, TABLE_VOCAB_DX, m, k, err);
}

td_status memory_vocab_pass(memory *mem, pass_kind kind, int32_t m, int32_t k, td_err *err)
{
    if (kind == PASS_S) return uses_of_s(mem, m, k, err);
    if (kind == PASS_T) return uses_of_t(mem, m, k, err);
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_TOKENS, TABLE_VOCAB_TOKENS, m, k, err));
    if (kind == PASS_E) {
        TD_TRY(use_shard(mem, USE_READ, ROLE_WEIGHTS, SIZE_WEIGHTS, err));
        return memory_vocab_use(mem, USE_WRITE, ROLE_OUTPUT, TABLE_EMBED, m, k, err);
    }
    TD_TRY(memory_vocab_use(mem, USE_READ, ROLE_DOUTPUT, TABLE_EMBED_GRAD, m, k, err));
    return use_shard(mem, USE_ADD, ROLE_GRADS, SIZE_GRADS, err);
}

td_status memory_vocab_barrier(memory *mem, const plan *p, uint32_t task, td_err *err)
{
    const plan_task *const t = &p->tasks[task];
    const plan_class *const c = &p->classes[t->cls];
    const plan_coll *const coll = &p->colls[t->link];
    const bool root = p->coll_tasks[coll->first_task + coll->root] == task;
    const int32_t m = (int32_t)t->microbatch, k = t->slice;
    const use_mode sent = root ? USE_READ : USE_WRITE; /* of a broadcast */
    const use_mode summed = root || c->detail == COLL_ALL_REDUCE ? USE_ADD : USE_READ;
    switch ((coll_purpose)c->purpose) {
    case PURPOSE_C0: return memory_vocab_use(mem, sent, ROLE_MESSAGE, TABLE_VOCAB_X, m, k, err);
    case PURPOSE_C1:
        return memory_vocab_use(mem, USE_ADD, ROLE_MESSAGE, TABLE_VOCAB_STATS, m, k, err);
    case PURPOSE_C2: return memory_vocab_use(mem, summed, ROLE_MESSAGE, TABLE_VOCAB_DX, m, k, err);
    case PURPOSE_EMBED_SUM:
        return memory_vocab_use(mem, summed, ROLE_MESSAGE, TABLE_EMBED, m, k, err);
    case PURPOSE_EMBED_GRAD:
        return memory_vocab_use(mem, sent, ROLE_MESSAGE, TABLE_EMBED_GRAD, m, k, err);
    default: return TD_OK;
    }
}
