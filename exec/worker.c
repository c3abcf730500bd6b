/* One rank's interpreter: at each compute position it posts the tasks whose gate has passed, waits
 * for those that join, and runs the pass. No line knows a schedule. */
#include "exec/exec.h"

#include <math.h>
#include <time.h>

static char *buffer_at(const executor *x, const exec_rank *r, uint32_t use)
{
    const plan *const p = x->p;
    const plan_buffer *const b = &p->buffers[p->ranks[r->index].first_buffer + use_buffer_of(use)];
    return r->arena.base + (int64_t)b->offset * PLAN_ALIGN;
}

/* --- passes --- */

static void bind(const executor *x, const exec_rank *r, uint32_t first, uint32_t end, stage_args *a)
{
    for (uint32_t i = first; i < end; i++) {
        char *const at = buffer_at(x, r, x->p->uses[i]);
        float *const f = (float *)(void *)at;
        switch (use_role_of(x->p->uses[i])) {
        case ROLE_INPUT: a->input = f; break;
        case ROLE_OUTPUT: a->output = f; break;
        case ROLE_DOUTPUT: a->doutput = f; break;
        case ROLE_DINPUT: a->dinput = f; break;
        case ROLE_WEIGHTS: a->weights = f; break;
        case ROLE_GRADS: a->grads = f; break;
        case ROLE_STASH: a->stash = at; break;
        case ROLE_SCRATCH: a->scratch = at; break;
        case ROLE_TOKENS:
            a->ids = (const int32_t *)(void *)at;
            a->targets = a->ids + x->z->run.micro_batch * x->z->run.seq_len;
            break;
        default: break;
        }
    }
}

static td_status check_finite(executor *x, const exec_rank *r, const stage_code *c, int32_t stage,
                              uint32_t m, const stage_args *a, td_err *err)
{
    if (c->at.head) {
        if (isfinite(a->loss)) return TD_OK;
        return td_fail(err, TD_EMISMATCH,
                       "step %ld: the loss of microbatch %u is not finite (stage "
                       "%d, rank %u); a lower --lr or --clip may help",
                       x->step.number, m, stage, r->index);
    }
    if (isfinite(k_sumsq_cpu(r->ctx, c->rows * c->m->hidden, a->output))) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the output of stage %d for microbatch %u is not "
                   "finite (rank %u); a lower --lr or --clip may help",
                   x->step.number, stage, m, r->index);
}

static td_status run_pass(executor *x, exec_rank *r, uint8_t kind, uint32_t cls, uint32_t m,
                          uint32_t first_use, uint32_t end_use, td_err *err)
{
    const plan *const p = x->p;
    const plan_inst *const inst = &p->insts[p->classes[cls].inst];
    const stage_code *const c = &x->stages[inst->stage];
    const int32_t microbatches = p->n_microbatches * p->dp;
    stage_args a = {.grad_scale = (float)(1.0 / (double)microbatches)};
    bind(x, r, first_use, end_use, &a);
    if (kind == PASS_F) {
        stage_forward(r->ctx, c, &a);
        if (c->at.head)
            x->losses[p->ranks[r->index].replica * p->n_microbatches + (int32_t)m] = a.loss;
        return check_finite(x, r, c, inst->stage, m, &a, err);
    }
    stage_backward(r->ctx, c, &a);
    return TD_OK;
}

td_status worker_compute(executor *x, exec_rank *r, uint32_t task, td_err *err)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[task];
    switch (t->kind) {
    case PASS_F:
    case PASS_B:
        return run_pass(x, r, t->kind, t->cls, t->microbatch, t->first_use, t[1].first_use, err);
    case TASK_PAIR:
        for (uint32_t i = t->link; i < t->link + 2; i++) {
            const plan_member *const mb = &p->members[i];
            TD_TRY(run_pass(x, r, mb->kind, mb->cls, mb->microbatch, mb->first_use,
                            mb->first_use + mb->n_uses, err));
        }
        return TD_OK;
    case TASK_NORM: optimizer_norm(x, r, task); return TD_OK;
    case TASK_OPTIMIZER: return optimizer_step(x, r, task, err);
    default: return TD_OK; /* marks; exec_open refused the rest */
    }
}

/* --- messages --- */

char *worker_payload(const executor *x, const exec_rank *r, uint32_t task)
{
    const plan_task *const t = &x->p->tasks[task];
    return t->first_use < t[1].first_use ? buffer_at(x, r, x->p->uses[t->first_use]) : NULL;
}

void worker_post(executor *x, const exec_rank *r, exec_post *o)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[o->task];
    const plan_class *const c = &p->classes[t->cls];
    char *const at = worker_payload(x, r, o->task);
    o->op = (wire_op){
        .data = at, .bytes = at == NULL ? 0 : c->bytes, .rank = r->index, .task = o->task};
    if (t->kind == TASK_SEND) {
        wire_send(x->wire, o->channel, &o->op);
        return;
    }
    if (t->kind == TASK_RECV) {
        wire_recv(x->wire, o->channel, &o->op);
        return;
    }
    if (c->purpose == PURPOSE_TIED)
        o->op.data =
            at + stage_tied_offset(&x->stages[p->insts[c->inst].stage]) * (int64_t)sizeof(float);
    wire_collective(x->wire, t->link, o->channel, &o->op);
}

static void delay(executor *x, exec_rank *r)
{
    if (x->options.jitter_ns <= 0) return;
    const int64_t ns = td_rng_below(&r->jitter, x->options.jitter_ns);
    const struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000),
                                .tv_nsec = (long)(ns % 1000000000)};
    (void)nanosleep(&ts, NULL);
}

static td_status join_at(executor *x, exec_rank *r, uint32_t position, td_err *err)
{
    for (uint32_t j = r->first_join[position]; j < r->first_join[position + 1]; j++) {
        exec_post *const o = &r->posts[r->joins[j]];
        TD_TRY(wire_wait(x->wire, &o->op, err));
        x->times.begin_ns[o->task] = o->op.begin_ns - x->start_ns;
        x->times.end_ns[o->task] = o->op.end_ns - x->start_ns;
    }
    return TD_OK;
}

td_status worker_run(executor *x, exec_rank *r, td_err *err)
{
    const plan_stream *const s = plan_compute(x->p, r->index);
    uint32_t posted = 0;
    for (uint32_t i = 0; i < r->n_posts; i++) r->posts[i].op.done = false;
    for (uint32_t at = 0; at <= s->n_tasks; at++) {
        while (posted < r->n_posts && r->posts[posted].post_at <= at) {
            delay(x, r);
            worker_post(x, r, &r->posts[posted++]);
        }
        TD_TRY(join_at(x, r, at, err));
        if (at == s->n_tasks) break;
        if (wire_aborted(x->wire)) return td_fail(err, TD_EINTR, "another rank gave up");
        delay(x, r);
        const uint32_t task = s->first_task + at;
        x->times.begin_ns[task] = td_now_ns() - x->start_ns;
        TD_TRY(worker_compute(x, r, task, err));
        x->times.end_ns[task] = td_now_ns() - x->start_ns;
    }
    wire_leave(x->wire, r->index);
    return TD_OK;
}
