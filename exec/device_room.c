/* Memory of a plan on a device, and what goes between it and the host's. */
#include "base/text.h"
#include "exec/device_run.h"

#include <string.h>

enum { PIECE = 1 << 20 }; /* bytes, or elements, that are in the host's hands at a time */

td_status device_run_arena(executor *x, exec_rank *r, td_err *err)
{
    device_run *const v = x->device;
    const int64_t bytes = x->p->ranks[r->index].arena_bytes, room = rank_arena_room(bytes);
    v->arena_bytes += room;
    if (r->arena.base == NULL) {
        void *at = NULL;
        TD_TRY(v->d->methods->alloc(v->d, room, &at, err));
        TD_TRY(v->d->methods->fill(v->d, at, rank_arena_canary(), room / 8, err));
        rank_arena_use(at, bytes, &r->arena);
    }
    void *const stream = v->streams[x->p->ranks[r->index].first_stream];
    return v->d->methods->compute(v->d, r->ctx, stream, err);
}

td_status device_run_tables(executor *x, td_err *err)
{
    if (x->device == NULL || x->stages[0].rope == NULL) return TD_OK;
    const device_run *const v = x->device;
    const int64_t n = x->z->run.seq_len * x->z->model->head_dim, bytes = n * (int64_t)sizeof(float);
    void *at = NULL;
    TD_TRY(v->d->methods->alloc(v->d, bytes, &at, err));
    TD_TRY(v->d->methods->write(v->d, at, x->stages[0].rope, bytes, err));
    for (int32_t s = 0; s < x->z->n_stages; s++) x->stages[s].rope = x->whole[s].rope = at;
    return TD_OK;
}

td_status device_run_tokens(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    const int64_t n = 2 * x->z->run.micro_batch * x->z->run.seq_len;
    device_run *const v = x->device;
    if (v == NULL) return TD_OK;
    v->tokens = TD_NEW_N(a, int32_t *, p->n_ranks);
    if (v->tokens == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the tokens");
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        bool reads = false;
        void *at = NULL;
        for (int32_t m = 0; m < p->n_microbatches; m++)
            reads = reads || x->ranks[r].tokens[m] != PLAN_NONE;
        if (!reads || !exec_is_here(x, r)) continue;
        TD_TRY(v->d->methods->alloc_host(v->d, p->n_microbatches * n * (int64_t)sizeof(int32_t),
                                         &at, err));
        v->tokens[r] = at;
    }
    return TD_OK;
}

td_status device_run_memory(const executor *x, td_arena *a, int64_t bytes, void **out, td_err *err)
{
    if (x->device != NULL) return x->device->d->methods->alloc(x->device->d, bytes, out, err);
    *out = td_alloc(a, 1, (size_t)bytes);
    return *out != NULL || bytes == 0 ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory");
}

td_status device_run_more(const executor *x, td_arena *a, int64_t bytes, void **out, td_err *err)
{
    if (x->device != NULL) x->device->first_allocs++;
    return device_run_memory(x, a, bytes, out, err);
}

td_status device_run_read(const executor *x, void *to, const void *at, int64_t bytes, td_err *err)
{
    if (x->device != NULL) return x->device->d->methods->read(x->device->d, to, at, bytes, err);
    if (bytes > 0) memmove(to, at, (size_t)bytes);
    return TD_OK;
}

td_status device_run_write(const executor *x, void *at, const void *from, int64_t bytes,
                           td_err *err)
{
    if (x->device != NULL) return x->device->d->methods->write(x->device->d, at, from, bytes, err);
    if (bytes > 0) memmove(at, from, (size_t)bytes);
    return TD_OK;
}

td_status device_run_clear(const executor *x, char *at, int64_t bytes, td_err *err)
{
    const int64_t words = x->device == NULL ? 0 : bytes / 8;
    static const char zeros[8];
    if (words > 0) TD_TRY(x->device->d->methods->fill(x->device->d, at, 0, words, err));
    if (x->device != NULL) return device_run_write(x, at + 8 * words, zeros, bytes % 8, err);
    memset(at, 0, (size_t)bytes);
    return TD_OK;
}

/* --- elements --- */

static bool is_narrow(const executor *x)
{
    return x->device != NULL && x->device->d->element_bytes != (int64_t)sizeof(float);
}

td_status device_run_narrow(const executor *x, void *at, const float *from, int64_t n, td_err *err)
{
    if (!is_narrow(x)) return device_run_write(x, at, from, n * (int64_t)sizeof *from, err);
    td_arena *const a = td_arena_new();
    uint16_t *const room =
        a == NULL ? NULL : td_alloc(a, (size_t)(n < PIECE ? n : PIECE), sizeof *room);
    td_status st = room == NULL ? td_fail(err, TD_ENOMEM, "out of memory for weights") : TD_OK;
    for (int64_t first = 0; st == TD_OK && first < n; first += PIECE) {
        const int64_t count = n - first < PIECE ? n - first : PIECE;
        for (int64_t i = 0; i < count; i++) room[i] = td_bf16_of_float(from[first + i]);
        st = device_run_write(x, (uint16_t *)at + first, room, count * (int64_t)sizeof *room, err);
    }
    td_arena_free(a);
    return st;
}

td_status device_run_widen(const executor *x, float *to, const void *at, int64_t n, td_err *err)
{
    if (!is_narrow(x)) return device_run_read(x, to, at, n * (int64_t)sizeof *to, err);
    /* into the second half, which is overtaken only at its end */
    uint16_t *const narrow = (uint16_t *)(void *)to + n;
    TD_TRY(device_run_read(x, narrow, at, n * (int64_t)sizeof *narrow, err));
    for (int64_t i = 0; i < n; i++) {
        uint16_t word;
        memcpy(&word, narrow + i, sizeof word);
        to[i] = td_float_of_bf16(word);
    }
    return TD_OK;
}

td_status device_run_weights(const executor *x, uint32_t rank, uint32_t inst, const float *weights,
                             void *at, td_err *err)
{
    const k_adamw_stage *const u = &x->ranks[rank].updates[inst];
    const optimizer_share share = optimizer_share_of(x, rank, inst);
    TD_TRY(device_run_narrow(x, at, weights, x->stages[x->p->insts[inst].stage].elements, err));
    for (int32_t i = 0; is_narrow(x) && u->m != NULL && i < share.n; i++)
        TD_TRY(device_run_write(x, u->m + 2 * share.moments + share.pieces[i].moment,
                                weights + share.pieces[i].first,
                                share.pieces[i].count * (int64_t)sizeof *weights, err));
    return TD_OK;
}

/* --- what was touched --- */

td_status device_run_touched(const executor *x, uint32_t rank, int64_t *bytes, td_err *err)
{
    const rank_arena *const m = &x->ranks[rank].arena;
    *bytes = 0;
    if (x->device == NULL) {
        *bytes = rank_arena_touched(m);
        return TD_OK;
    }
    td_arena *const a = td_arena_new();
    char *const room = a == NULL ? NULL : td_alloc(a, 1, PIECE);
    td_status st = room == NULL ? td_fail(err, TD_ENOMEM, "out of memory") : TD_OK;
    for (int64_t end = rank_arena_room(m->bytes); st == TD_OK && end > 0 && *bytes == 0;) {
        const int64_t first = end > PIECE ? end - PIECE : 0;
        rank_arena piece;
        rank_arena_use(room, end - first, &piece);
        st = device_run_read(x, room, m->base + first, end - first, err);
        const int64_t touched = st == TD_OK ? rank_arena_touched(&piece) : 0;
        if (touched > 0) *bytes = first + touched;
        end = first;
    }
    td_arena_free(a);
    return st;
}

/* --- what was taken --- */

device_use device_run_use(const executor *x)
{
    const device_run *const v = x->device;
    if (v == NULL) return (device_use){.known = false};
    /* ranks that are away are not in use there */
    const int64_t in_use = x->options.offload != NULL ? -1 : v->d->methods->in_use(v->d);
    device_use u = {.known = true,
                    .arenas = v->arena_bytes,
                    .beside = v->d->room_bytes - v->arena_bytes,
                    .work = v->d->lane_bytes,
                    .outside = in_use < 0 ? -1 : in_use - v->d->room_bytes - v->d->lane_bytes,
                    .n_allocs = v->d->n_allocs,
                    .in_steps = v->first_allocs < 0 ? 0 : v->d->n_allocs - v->first_allocs};
    for (uint32_t r = 0; r < x->p->n_ranks; r++)
        if (exec_is_here(x, r)) u.predicted += rank_arena_room(x->p->ranks[r].arena_bytes);
    return u;
}

void device_use_words(const device_use *u, td_text *out)
{
    char arenas[40], beside[40], work[40], outside[40];
    td_text_addf(out, "device memory: arenas %s%s, beside them %s, workspaces %s",
                 td_print_bytes(arenas, sizeof arenas, u->arenas),
                 u->arenas == u->predicted ? " as predicted" : " NOT as predicted",
                 td_print_bytes(beside, sizeof beside, u->beside),
                 td_print_bytes(work, sizeof work, u->work));
    if (u->outside >= 0)
        td_text_addf(out, ", outside (context, kernels, libraries, other programs) %s",
                     td_print_bytes(outside, sizeof outside, u->outside));
    td_text_addf(out, "; %lld allocations, %lld of them in steps", (long long)u->n_allocs,
                 (long long)u->in_steps);
}

void device_use_json(const device_use *u, td_text *out)
{
    td_text_addf(out,
                 "{\"predicted_bytes\": %lld, \"arena_bytes\": %lld, \"beside_bytes\": %lld, "
                 "\"workspace_bytes\": %lld, ",
                 (long long)u->predicted, (long long)u->arenas, (long long)u->beside,
                 (long long)u->work);
    if (u->outside >= 0)
        td_text_addf(out, "\"outside_bytes\": %lld, ", (long long)u->outside);
    else
        td_text_add(out, "\"outside_bytes\": null, ");
    td_text_addf(out, "\"allocations\": %lld, \"allocations_in_steps\": %lld}",
                 (long long)u->n_allocs, (long long)u->in_steps);
}
