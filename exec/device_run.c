/* Streams, events and the wire's moves of a plan on a device. The k-th end of a transfer is given
 * to its streams only when all ends are posted, so every wait is for something that was issued
 * before it: what the device does has no cycles. */
#include "exec/device_run.h"

#include <math.h>
#include <string.h>

static void *compute_of(const executor *x, uint32_t rank)
{
    return x->device->streams[x->p->ranks[rank].first_stream];
}

static void *stream_of(const executor *x, uint32_t task)
{
    return x->device->streams[x->device->stream_of[task]];
}

/* --- the wire --- */

/* All ends' streams are held from here to move_end; the first one does the work. */
static void move_begin(void *self, wire_op *const *ops, uint32_t n)
{
    const executor *const x = self;
    const device_run *const v = x->device;
    const device_methods *const m = v->d->methods;
    void *const first = stream_of(x, ops[0]->task);
    for (uint32_t i = 0; i < n; i++) {
        void *const own = stream_of(x, ops[i]->task);
        m->wait(v->d, own, v->gates[ops[i]->task]);
        m->record(v->d, v->begins[ops[i]->task], own);
        if (i > 0) m->wait(v->d, first, v->begins[ops[i]->task]);
    }
}

static void move_copy(void *self, const wire_op *op, void *to, const void *from, int64_t bytes)
{
    const executor *const x = self;
    if (bytes > 0)
        x->device->d->methods->copy(x->device->d, stream_of(x, op->task), to, from, bytes);
}

static void move_combine(void *self, const wire_op *op, wire_kind kind, void *const *data,
                         uint32_t n, int64_t bytes, uint32_t only)
{
    const executor *const x = self;
    x->device->d->methods->combine(x->device->d, stream_of(x, op->task), kind, data, n, bytes,
                                   only);
}

static void move_end(void *self, wire_op *const *ops, uint32_t n)
{
    const executor *const x = self;
    const device_run *const v = x->device;
    const device_methods *const m = v->d->methods;
    m->record(v->d, v->ends[ops[0]->task], stream_of(x, ops[0]->task));
    for (uint32_t i = 1; i < n; i++) {
        void *const own = stream_of(x, ops[i]->task);
        m->wait(v->d, own, v->ends[ops[0]->task]);
        m->record(v->d, v->ends[ops[i]->task], own);
    }
}

/* --- opening --- */

static td_status open_events(device_run *v, const plan *p, td_err *err)
{
    const device_methods *const m = v->d->methods;
    for (uint32_t i = 0; i < p->n_streams; i++) {
        TD_TRY(m->stream(v->d, &v->streams[i], err));
        for (uint32_t k = 0; k < p->streams[i].n_tasks; k++) {
            const uint32_t task = p->streams[i].first_task + k;
            v->stream_of[task] = i;
            if (p->streams[i].kind != STREAM_COMPUTE) TD_TRY(m->event(v->d, &v->gates[task], err));
            TD_TRY(m->event(v->d, &v->begins[task], err));
            TD_TRY(m->event(v->d, &v->ends[task], err));
        }
    }
    return m->event(v->d, &v->start, err);
}

static td_status refuse(const executor *x, td_err *err)
{
    const plan *const p = x->p;
    const device *const d = x->options.device;
    if (x->options.team != NULL)
        return td_fail(err, TD_EUSAGE,
                       "--backend %s: ranks run as threads of one process on one device so far; "
                       "leave the processes out",
                       d->name);
    if (p->tp > 1)
        return td_fail(err, TD_EUSAGE,
                       "--tp %d: tensor parallelism is executed by --backend cpu so far", p->tp);
    if (x->z->vocab_shards > 0 && d->element_bytes != (int64_t)sizeof(float))
        return td_fail(err, TD_EUSAGE,
                       "--dtype bf16: sharded vocabulary layers are executed in fp32 so far");
    return TD_OK;
}

static int64_t n_losses_of(const plan *p)
{
    return (int64_t)p->dp * p->n_microbatches * p->n_slices;
}

td_status device_run_open(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    if (x->options.device == NULL) return TD_OK;
    TD_TRY(refuse(x, err));
    device_run *const v = TD_NEW(a, device_run);
    if (v == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device's streams");
    const int64_t n_losses = n_losses_of(p) + p->n_ranks;
    *v = (device_run){.d = x->options.device,
                      .mover = {x, move_begin, move_copy, move_combine, move_end},
                      .streams = TD_NEW_N(a, void *, p->n_streams),
                      .gates = TD_NEW_N(a, void *, p->n_tasks),
                      .begins = TD_NEW_N(a, void *, p->n_tasks),
                      .ends = TD_NEW_N(a, void *, p->n_tasks),
                      .stream_of = TD_NEW_N(a, uint32_t, p->n_tasks)};
    if (v->streams == NULL || v->gates == NULL || v->begins == NULL || v->ends == NULL ||
        v->stream_of == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the device's streams");
    TD_TRY(open_events(v, p, err));
    void *at = NULL;
    TD_TRY(v->d->methods->alloc(v->d, n_losses * (int64_t)sizeof(double), &at, err));
    v->losses = at;
    TD_TRY(v->d->methods->alloc(v->d, (int64_t)(2 * p->n_ranks * sizeof(double)), &at, err));
    v->scales = at;
    memset(v->losses, 0, (size_t)n_losses * sizeof(double));
    x->device = v;
    return TD_OK;
}

td_status device_run_arena(executor *x, exec_rank *r, td_err *err)
{
    const device_run *const v = x->device;
    const int64_t bytes = x->p->ranks[r->index].arena_bytes, room = rank_arena_room(bytes);
    void *at = NULL;
    TD_TRY(v->d->methods->alloc(v->d, room, &at, err));
    TD_TRY(v->d->methods->fill(v->d, at, rank_arena_canary(), room / 8, err));
    rank_arena_use(at, bytes, &r->arena);
    return v->d->methods->compute(v->d, r->ctx, compute_of(x, r->index), err);
}

td_status device_run_tables(executor *x, td_err *err)
{
    if (x->device == NULL || x->stages[0].rope == NULL) return TD_OK;
    const device_run *const v = x->device;
    const size_t bytes = (size_t)(x->z->run.seq_len * x->z->model->head_dim) * sizeof(float);
    void *at = NULL;
    TD_TRY(v->d->methods->alloc(v->d, (int64_t)bytes, &at, err));
    memcpy(at, x->stages[0].rope, bytes);
    for (int32_t s = 0; s < x->z->n_stages; s++) x->stages[s].rope = at;
    return TD_OK;
}

td_status device_run_memory(const executor *x, td_arena *a, int64_t bytes, void **out, td_err *err)
{
    if (x->device != NULL) return x->device->d->methods->alloc(x->device->d, bytes, out, err);
    *out = td_alloc(a, 1, (size_t)bytes);
    return *out != NULL || bytes == 0 ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory");
}

td_status device_run_clear(const executor *x, char *at, int64_t bytes, td_err *err)
{
    const int64_t words = x->device == NULL ? 0 : bytes / 8;
    if (words > 0) TD_TRY(x->device->d->methods->fill(x->device->d, at, 0, words, err));
    memset(at + 8 * words, 0, (size_t)(bytes - 8 * words));
    return TD_OK;
}

void device_run_settle(const executor *x)
{
    for (uint32_t i = 0; x->device != NULL && i < x->p->n_ranks; i++)
        x->device->d->methods->settle(x->device->d, x->ranks[i].arena.base,
                                      x->ranks[i].arena.bytes);
}

/* To the nearest, halves to even; weights are finite. */
static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void device_run_narrow(const k_adamw_stage *updates, int64_t n, const float *weights, uint16_t *to)
{
    for (int64_t i = 0; i < n; i++) to[i] = bf16_of(weights[i]);
    for (long i = 0; updates->m != NULL && i < updates->n_pieces; i++) {
        const k_adamw_piece *const p = &updates->pieces[i];
        memcpy(updates->m + 2 * updates->moments + p->moment, weights + p->first,
               (size_t)p->count * sizeof *weights);
    }
}

/* --- a step --- */

void device_run_begin(executor *x)
{
    if (x->device == NULL) return;
    device_run *const v = x->device;
    v->d->methods->record(v->d, v->start, compute_of(x, 0));
    for (uint32_t r = 1; r < x->p->n_ranks; r++)
        v->d->methods->wait(v->d, compute_of(x, r), v->start);
}

void device_run_post(executor *x, const exec_rank *r, uint32_t task)
{
    const device_run *const v = x->device;
    if (v != NULL) v->d->methods->record(v->d, v->gates[task], compute_of(x, r->index));
}

void device_run_join(executor *x, const exec_rank *r, uint32_t task)
{
    const device_run *const v = x->device;
    if (v != NULL) v->d->methods->wait(v->d, compute_of(x, r->index), v->ends[task]);
}

void device_run_task(executor *x, const exec_rank *r, uint32_t task, bool begins)
{
    const device_run *const v = x->device;
    if (v == NULL) return;
    v->d->methods->record(v->d, begins ? v->begins[task] : v->ends[task], compute_of(x, r->index));
}

td_status device_run_wait(const executor *x, const exec_rank *r, td_err *err)
{
    const device_run *const v = x->device;
    return v == NULL ? TD_OK : v->d->methods->synchronize(v->d, compute_of(x, r->index), err);
}

double *device_run_loss(const executor *x, const exec_rank *r, const plan_member *m)
{
    const plan *const p = x->p;
    if (x->device == NULL) return NULL;
    if (m->kind == PASS_R) return &x->device->losses[n_losses_of(p) + r->index];
    const int64_t at = (int64_t)p->ranks[r->index].replica * p->n_microbatches + m->microbatch;
    return &x->device->losses[at * p->n_slices + m->slice];
}

static td_status find_losses(executor *x, td_err *err)
{
    const plan *const p = x->p;
    for (int32_t i = 0; x->z->vocab_shards == 0 && i < p->n_microbatches * p->dp; i++) {
        x->losses[i] = 0;
        for (int32_t s = 0; s < p->n_slices; s++)
            x->losses[i] += x->device->losses[(int64_t)i * p->n_slices + s];
        if (!isfinite(x->losses[i]) && !x->step.skip)
            return td_fail(err, TD_EMISMATCH,
                           "step %ld: the loss of microbatch %d is not finite; a lower --lr or "
                           "--clip may help",
                           x->step.number, i);
    }
    const uint32_t first = exec_rank_of(x, 0, 0);
    x->grad_norm = x->device->scales[2 * first];
    if (isfinite(x->grad_norm) || x->step.skip) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the gradient is not finite; a lower --lr or --clip may help",
                   x->step.number);
}

td_status device_run_end(executor *x, td_err *err)
{
    if (x->device == NULL) return TD_OK;
    const device_run *const v = x->device;
    TD_TRY(v->d->methods->synchronize(v->d, NULL, err));
    for (uint32_t i = 0; i < x->p->n_tasks; i++) {
        x->times.begin_ns[i] = v->d->methods->elapsed_ns(v->d, v->start, v->begins[i]);
        x->times.end_ns[i] = v->d->methods->elapsed_ns(v->d, v->start, v->ends[i]);
    }
    return find_losses(x, err);
}
