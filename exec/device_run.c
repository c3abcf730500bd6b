/* Streams, events and the wire's moves of a plan on a device. The k-th end of a transfer is given
 * to its streams only when all ends are posted, so every wait is for something that was issued
 * before it: what the device does has no cycles.
 *
 * A step is not recorded as a CUDA graph. The rate of learning, AdamW's powers and the weights of
 * rows go to kernels by value and are others in every step, so a graph would have to be recorded
 * anew, or patched in as many places, each time: that costs the host what giving the work costs,
 * and the host is ahead of the device as it is, since nothing waits before the end of a step. */
#include "exec/device_run.h"

#include <math.h>
#include <string.h>

static void *compute_of(const executor *x, uint32_t rank)
{
    return x->device->streams[x->p->ranks[rank].first_stream];
}

static uint32_t first_here(const executor *x) { return team_index(x->options.team); }

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

static void *move_stream(void *self, const wire_op *op) { return stream_of(self, op->task); }

static td_status move_over(void *self, const wire_op *op, bool *out, td_err *err)
{
    const executor *const x = self;
    const device *const d = x->device->d;
    return d->methods->happened(x->device->d, x->device->ends[op->task], out, err);
}

static td_status move_name(void *self, const wire_op *op, td_err *err)
{
    const executor *const x = self;
    return exec_name_wait(x, &x->ranks[op->rank], op->task, err);
}

/* How far the compute streams of this process are: the device stands still, or is made to. */
static void move_note(void *self)
{
    executor *const x = self;
    device_run *const v = x->device;
    td_err ignored = {0};
    for (uint32_t r = 0; r < x->p->n_ranks && v->noted == NULL; r++) {
        const plan_stream *const s = plan_compute(x->p, r);
        bool over = true;
        if (!exec_is_here(x, r)) continue;
        uint32_t at = 0;
        while (at < x->ranks[r].at &&
               v->d->methods->happened(v->d, v->ends[s->first_task + at], &over, &ignored) ==
                   TD_OK &&
               over)
            at++;
        bool begun = false;
        if (at < s->n_tasks && at < x->ranks[r].at)
            (void)v->d->methods->happened(v->d, v->begins[s->first_task + at], &begun, &ignored);
        v->notes[r] = (device_note){.at = at, .computes = begun};
    }
    v->noted = v->notes;
}

/* --- opening --- */

static td_status open_events(const executor *x, td_err *err)
{
    device_run *const v = x->device;
    const plan *const p = x->p;
    const device_methods *const m = v->d->methods;
    for (uint32_t i = 0; i < p->n_streams; i++) {
        if (!exec_is_here(x, p->streams[i].rank)) continue;
        const bool urgent = p->streams[i].kind != STREAM_COMPUTE;
        TD_TRY(m->stream(v->d, urgent, &v->streams[i], err));
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

/* Whether a pass leaves the loss of its microbatch. */
static bool gives_loss(const executor *x, const plan_rank *r, uint8_t kind, uint32_t cls)
{
    const plan_class *const k = &x->p->classes[cls];
    if (kind == PASS_T) return x->p->insts[k->inst].backward_row == r->row;
    if (kind != PASS_F && kind != PASS_R) return false;
    const stage_desc *const s = &x->stages[x->p->insts[k->inst].stage].at;
    return s->head && s->vocab_rows == 0;
}

static void note_loss(executor *x, uint32_t rank, uint8_t kind, uint32_t cls, uint32_t microbatch)
{
    const plan *const p = x->p;
    const plan_rank *const r = &p->ranks[rank];
    device_run *const v = x->device;
    if (!gives_loss(x, r, kind, cls)) return;
    if (v->losses[rank] < 0) {
        v->losses[rank] = v->n_found;
        v->n_found += (int64_t)p->n_microbatches * p->n_slices + 1;
    }
    if (kind != PASS_R && r->shard == 0)
        v->loss_rank[r->replica * p->n_microbatches + (int32_t)microbatch] = rank;
}

static void find_losses_of(executor *x, uint32_t rank)
{
    const plan *const p = x->p;
    const plan_stream *const s = plan_compute(p, rank);
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[i];
        if (t->kind < PASS_COUNT) note_loss(x, rank, t->kind, t->cls, t->microbatch);
        for (uint32_t k = t->link; t->kind == TASK_PAIR && k < t->link + 2; k++)
            note_loss(x, rank, p->members[k].kind, p->members[k].cls, p->members[k].microbatch);
    }
}

/* Where a step's results go. */
static td_status open_found(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    device_run *const v = x->device;
    v->losses = TD_NEW_N(a, int64_t, p->n_ranks);
    v->loss_rank = TD_NEW_N(a, uint32_t, p->dp * p->n_microbatches);
    if (v->losses == NULL || v->loss_rank == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the losses");
    for (int32_t i = 0; i < p->dp * p->n_microbatches; i++) v->loss_rank[i] = PLAN_NONE;
    v->n_found = 2 * (int64_t)p->n_ranks;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        v->losses[r] = -1;
        find_losses_of(x, r);
    }
    const int64_t bytes = v->n_found * (int64_t)sizeof *v->found;
    void *at = NULL;
    TD_TRY(v->d->methods->alloc_host(v->d, bytes, &at, err));
    v->seen = at;
    TD_TRY(v->d->methods->alloc(v->d, bytes, &at, err));
    v->found = at;
    return v->d->methods->fill(v->d, at, 0, v->n_found, err);
}

td_status device_run_open(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    if (x->options.device == NULL) return TD_OK;
    device_run *const v = TD_NEW(a, device_run);
    if (v == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device's streams");
    *v = (device_run){.d = x->options.device,
                      .mover = {x, move_begin, move_copy, move_combine, move_end, move_stream,
                                move_over, move_name, move_note},
                      .streams = TD_NEW_N(a, void *, p->n_streams),
                      .gates = TD_NEW_N(a, void *, p->n_tasks),
                      .begins = TD_NEW_N(a, void *, p->n_tasks),
                      .ends = TD_NEW_N(a, void *, p->n_tasks),
                      .stream_of = TD_NEW_N(a, uint32_t, p->n_tasks),
                      .notes = TD_NEW_N(a, device_note, p->n_ranks),
                      .first_allocs = -1};
    if (v->streams == NULL || v->gates == NULL || v->begins == NULL || v->ends == NULL ||
        v->stream_of == NULL || v->notes == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the device's streams");
    x->device = v;
    TD_TRY(open_events(x, err));
    return open_found(x, a, err);
}

/* --- a step --- */

/* The tokens of a step's microbatches, which exec_tokens left in memory of the host. */
static void bring_tokens(const executor *x, uint32_t rank)
{
    const plan *const p = x->p;
    const device_run *const v = x->device;
    const int64_t n = 2 * x->z->run.micro_batch * x->z->run.seq_len;
    for (int32_t m = 0; v->tokens[rank] != NULL && m < p->n_microbatches; m++) {
        const uint32_t b = x->ranks[rank].tokens[m];
        if (b == PLAN_NONE) continue;
        v->d->methods->copy(v->d, compute_of(x, rank), exec_place(x, rank, b),
                            v->tokens[rank] + m * n, n * (int64_t)sizeof(int32_t));
    }
}

void device_run_enter(const executor *x)
{
    if (x->device != NULL) x->device->d->methods->enter(x->device->d);
}

void device_run_begin(executor *x)
{
    if (x->device == NULL) return;
    device_run *const v = x->device;
    if (v->first_allocs < 0) v->first_allocs = v->d->n_allocs;
    const uint32_t first = first_here(x);
    v->d->methods->record(v->d, v->start, compute_of(x, first));
    for (uint32_t r = first; r < x->p->n_ranks; r++) {
        if (!exec_is_here(x, r)) continue;
        if (r > first) v->d->methods->wait(v->d, compute_of(x, r), v->start);
        bring_tokens(x, r);
    }
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
    if (v == NULL) return TD_OK;
    return v->d->methods->synchronize(v->d, r == NULL ? NULL : compute_of(x, r->index), err);
}

void device_run_idle(const executor *x, const exec_rank *r, int64_t ns)
{
    x->device->d->methods->idle(x->device->d, compute_of(x, r->index), ns);
}

int64_t device_run_took(const executor *x, uint32_t task)
{
    const device_run *const v = x->device;
    return v->d->methods->elapsed_ns(v->d, v->begins[task], v->ends[task]);
}

void device_run_copy(const executor *x, uint32_t task, void *to, const void *from, int64_t bytes)
{
    x->device->d->methods->copy(x->device->d, stream_of(x, task), to, from, bytes);
}

double *device_run_loss(const executor *x, const exec_rank *r, const plan_member *m)
{
    const plan *const p = x->p;
    const device_run *const v = x->device;
    if (v == NULL || v->losses[r->index] < 0) return NULL;
    const int64_t n = (int64_t)p->n_microbatches * p->n_slices;
    const int64_t own = (int64_t)m->microbatch * p->n_slices + m->slice;
    return v->found + v->losses[r->index] + (m->kind == PASS_R ? n : own);
}

void device_run_spoil(const executor *x, const exec_rank *r, double *table)
{
    const plan *const p = x->p;
    const device_run *const v = x->device;
    if (v == NULL || v->losses[r->index] < 0) return;
    k_ops_of(r->ctx)->loss_sum(r->ctx, (long)p->n_microbatches * p->n_slices,
                               v->found + v->losses[r->index], 0.0, table);
}

static td_status take_losses(executor *x, td_err *err)
{
    const plan *const p = x->p;
    const device_run *const v = x->device;
    for (int32_t i = 0; i < p->n_microbatches * p->dp; i++) {
        if (v->loss_rank[i] == PLAN_NONE) continue;
        const double *const from =
            v->seen + v->losses[v->loss_rank[i]] + (int64_t)(i % p->n_microbatches) * p->n_slices;
        x->now->losses[i] = 0;
        for (int32_t s = 0; s < p->n_slices; s++) x->now->losses[i] += from[s];
        if (!isfinite(x->now->losses[i]) && !x->now->step.skip)
            return td_fail(err, TD_EMISMATCH,
                           "step %ld: the loss of microbatch %d is not finite; a lower --lr or "
                           "--clip may help",
                           x->now->step.number, i);
    }
    x->grad_norm = v->seen[2 * exec_rank_of(x, 0, 0)];
    if (isfinite(x->grad_norm) || x->now->step.skip) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the gradient is not finite; a lower --lr or --clip may help",
                   x->now->step.number);
}

/* The results are copied behind all ranks' work, and then waited for: once a step. */
td_status device_run_end(executor *x, td_err *err)
{
    if (x->device == NULL) return TD_OK;
    device_run *const v = x->device;
    const device_methods *const m = v->d->methods;
    const uint32_t first = first_here(x);
    for (uint32_t r = first + 1; r < x->p->n_ranks; r++) {
        const plan_stream *const s = plan_compute(x->p, r);
        if (s->n_tasks > 0 && exec_is_here(x, r))
            m->wait(v->d, compute_of(x, first), v->ends[s->first_task + s->n_tasks - 1]);
    }
    if (wire_drain(x->wire, err) != TD_OK) {
        const td_err why = wire_error(x->wire);
        return td_fail(err, why.code, "%s", why.msg);
    }
    m->copy(v->d, compute_of(x, first), v->seen, v->found, v->n_found * (int64_t)sizeof *v->seen);
    TD_TRY(m->synchronize(v->d, NULL, err));
    return take_losses(x, err);
}

void device_run_times(executor *x)
{
    const device_run *const v = x->device;
    if (x->options.kept_periods == 0) return; /* nobody looks, and it takes two calls a task */
    for (uint32_t i = 0; v != NULL && i < x->p->n_tasks; i++) {
        if (v->begins[i] == NULL) continue; /* another process's */
        x->now->times.begin_ns[i] = v->d->methods->elapsed_ns(v->d, v->start, v->begins[i]);
        x->now->times.end_ns[i] = v->d->methods->elapsed_ns(v->d, v->start, v->ends[i]);
    }
}
