/* What the memory of ranks begins with. */
#include "exec/device_run.h"

/* The weights of an instance: made where they are to lie, or for a device in memory of the host. */
static td_status init_weights(const executor *x, uint32_t rank, uint32_t inst, uint64_t seed,
                              void *at, td_err *err)
{
    const plan_inst *const i = &x->p->insts[inst];
    const stage_code *const c = exec_code(x, rank, i->stage);
    td_arena *const a = td_arena_new();
    float *const to = x->device == NULL ? at
                      : a == NULL       ? NULL
                                        : td_alloc(a, (size_t)c->elements, sizeof *to);
    td_status st = TD_OK;
    if (to == NULL) st = td_fail(err, TD_ENOMEM, "out of memory for first weights");
    const k_words words = vocab_words(c, x->p->ranks[rank].row);
    if (st == TD_OK && c->at.shard)
        params_init_shard(c->m, c->params, c->n_params, seed, words.first, words.count, to);
    else if (st == TD_OK)
        st = exec_shards_init(x, rank, i->stage, seed, to, err);
    if (st == TD_OK && x->device != NULL) st = device_run_weights(x, rank, inst, to, at, err);
    td_arena_free(a);
    return st;
}

static td_status init_buffers(const executor *x, uint32_t rank, uint64_t seed, td_err *err)
{
    const plan *const p = x->p;
    const plan_rank *const r = &p->ranks[rank];
    for (uint32_t i = 0; i < r->n_buffers; i++) { /* before the weights fill some of the third */
        const plan_bclass *const c = &p->bclasses[p->buffers[r->first_buffer + i].bclass];
        if (c->what == SIZE_WEIGHTS || c->what == SIZE_GRADS || c->what == SIZE_OPTIMIZER)
            TD_TRY(device_run_clear(x, exec_place(x, rank, i), c->bytes, err));
    }
    for (uint32_t i = 0; i < r->n_buffers; i++) {
        const plan_bclass *const c = &p->bclasses[p->buffers[r->first_buffer + i].bclass];
        if (c->what == SIZE_WEIGHTS)
            TD_TRY(init_weights(x, rank, c->inst, seed, exec_place(x, rank, i), err));
    }
    return TD_OK;
}

void exec_init_rank(const executor *x, uint32_t rank, uint64_t seed)
{
    td_err why = {0};
    offload_touch(x->options.offload, rank);
    if (init_buffers(x, rank, seed, &why) != TD_OK) wire_abort(x->wire, &why);
}
