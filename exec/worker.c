/* One rank's interpreter: at each compute position it posts the tasks whose gate has passed, waits
 * for those that join, and runs the pass. No line knows a schedule. */
#include "exec/device_run.h"

#include <time.h>

td_status worker_compute(executor *x, exec_rank *r, uint32_t task, td_err *err)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[task];
    switch (t->kind) {
    case PASS_F:
    case PASS_B:
    case PASS_I:
    case PASS_W:
    case PASS_R:
    case PASS_S:
    case PASS_T:
    case PASS_E:
    case PASS_G:
        return pass_run(x, r,
                        &(plan_member){.kind = t->kind,
                                       .slice = t->slice,
                                       .microbatch = t->microbatch,
                                       .cls = t->cls,
                                       .first_use = t->first_use,
                                       .n_uses = t[1].first_use - t->first_use},
                        err);
    case TASK_PAIR:
        TD_TRY(pass_run(x, r, &p->members[t->link], err));
        return pass_run(x, r, &p->members[t->link + 1], err);
    case TASK_NORM: optimizer_norm(x, r, task); return TD_OK;
    case TASK_OPTIMIZER:
        if (!x->validates) return optimizer_step(x, r, task, err);
        return validate_step(x, r, task, err);
    case TASK_MERGE: validate_merge(x, r, task); return TD_OK;
    default: return TD_OK; /* marks; worker_run verifies */
    }
}

/* --- messages --- */

char *worker_payload(const executor *x, const exec_rank *r, uint32_t task)
{
    const plan_task *const t = &x->p->tasks[task];
    const plan_class *const c = &x->p->classes[t->cls];
    if (t->first_use == t[1].first_use) return NULL;
    return pass_buffer(x, r, x->p->uses[t->first_use]) + c->segment * c->bytes;
}

int64_t worker_bytes(const executor *x, uint32_t task)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[task];
    const plan_class *const c = &p->classes[t->cls];
    if (t->kind != TASK_COLL || c->purpose != PURPOSE_C1 || t->first_use == t[1].first_use)
        return c->bytes;
    const uint32_t rank = plan_task_rank(p, task), b = use_buffer_of(p->uses[t->first_use]);
    return p->bclasses[p->buffers[p->ranks[rank].first_buffer + b].bclass].bytes;
}

void worker_post(executor *x, const exec_rank *r, exec_post *o)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[o->task];
    const plan_class *const c = &p->classes[t->cls];
    char *const at = worker_payload(x, r, o->task);
    o->posted_ns = td_now_ns();
    device_run_post(x, r, o->task);
    o->op = (wire_op){.data = at,
                      .bytes = at == NULL ? 0 : worker_bytes(x, o->task),
                      .rank = r->index,
                      .task = o->task};
    if (t->kind == TASK_SEND) {
        wire_send(x->wire, o->channel, &o->op);
        return;
    }
    if (t->kind == TASK_RECV) {
        wire_recv(x->wire, o->channel, &o->op);
        return;
    }
    const int64_t first = c->purpose == PURPOSE_TIED
                              ? stage_tied_offset(exec_code(x, r->index, p->insts[c->inst].stage))
                              : (int64_t)c->prefix * SYNC_ALIGN;
    const int64_t size =
        c->purpose == PURPOSE_WEIGHTS ? data_type_bytes(x->z->run.dtype) : (int64_t)sizeof(float);
    if (at != NULL) o->op.data = at + first * size;
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

td_status exec_name_wait(const executor *x, const exec_rank *r, uint32_t task, td_err *err)
{
    const plan *const p = x->p;
    const plan_task *const t = &p->tasks[task];
    td_text name = {0};
    plan_task_text(p, task, &name);
    if (t->kind == TASK_SEND || t->kind == TASK_RECV)
        td_text_addf(&name, " %s rank %u", t->kind == TASK_SEND ? "to" : "from",
                     plan_task_rank(p, t->link));
    const td_status st =
        td_wrap(err, "step %ld: %s", r->now->step.number, name.s == NULL ? "" : name.s);
    td_text_free(&name);
    return st;
}

static bool is_repeated(const executor *x, uint32_t task)
{
    return (x->p->tasks[task].flags & TASK_FLAG_PREFIX) != 0;
}

/* Whether a message of a period is joined in the next one. */
static bool is_carried(const executor *x, uint32_t task)
{
    return (x->p->tasks[task].flags & TASK_FLAG_JOIN_NEXT) != 0;
}

static td_status wait_for(executor *x, const exec_rank *r, exec_post *o, td_err *err)
{
    const td_status st = wire_wait(x->wire, &o->op, err);
    /* when others gave up, the reason is the wire's */
    return st == TD_OK || st == TD_EINTR ? st : exec_name_wait(x, r, o->task, err);
}

static void note_times(const exec_period *of, const exec_post *o)
{
    of->times.begin_ns[o->task] = o->op.begin_ns - of->start_ns;
    of->times.end_ns[o->task] = o->op.end_ns - of->start_ns;
}

/* again: of a prefix that is repeated, which leaves the times of its first run alone. */
static td_status join_at(executor *x, exec_rank *r, uint32_t position, bool again, td_err *err)
{
    for (uint32_t j = r->first_join[position]; j < r->first_join[position + 1]; j++) {
        exec_post *const o = &r->posts[r->joins[j]];
        const bool carried = is_carried(x, o->task);
        if ((again && !is_repeated(x, o->task)) || (carried && !r->carries)) continue;
        TD_TRY(wait_for(x, r, o, err));
        if (again) continue;
        device_run_join(x, r, o->task);
        note_times(carried ? r->before : r->now, o);
    }
    return TD_OK;
}

/* The forwards before VERIFY, and their messages, with other weights. */
static td_status repeat_prefix(executor *x, exec_rank *r, uint32_t verify, td_err *err)
{
    const plan_stream *const s = plan_compute(x->p, r->index);
    uint32_t next = 0;
    for (uint32_t at = 0; at <= verify; at++) {
        for (; next < r->n_posts && r->posts[next].post_at <= at; next++) {
            if (!is_repeated(x, r->posts[next].task)) continue;
            delay(x, r);
            worker_post(x, r, &r->posts[next]);
        }
        TD_TRY(join_at(x, r, at, true, err));
        if (at == verify || !is_repeated(x, s->first_task + at)) continue;
        delay(x, r);
        TD_TRY(worker_compute(x, r, s->first_task + at, err));
    }
    return TD_OK;
}

/* VERIFY: the last step is finished, and what ran ahead of that is made good. */
static td_status verify(executor *x, exec_rank *r, uint32_t at, td_err *err)
{
    bool again = false;
    TD_TRY(validate_last(x, r, plan_compute(x->p, r->index)->first_task + at, &again, err));
    const bool spoilt = r->ahead && r->spoilt && !r->now->step.skip;
    r->ahead = false;
    if (again) {
        r->spoilt = false;
        return repeat_prefix(x, r, at, err);
    }
    if (!spoilt) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %ld: the output of a forward is not finite (rank %u); a lower --lr or "
                   "--clip may help",
                   r->now->step.number, r->index);
}

td_status worker_settle(executor *x, exec_rank *r, td_err *err)
{
    const plan *const p = x->p;
    const plan_stream *const s = plan_compute(p, r->index);
    uint32_t task = s->first_task;
    bool again = false;
    while (p->tasks[task].kind != TASK_VERIFY) task++;
    /* the norm arrives, and then goes on */
    for (int send = 0; send < 2; send++)
        for (uint32_t i = 0; i < r->n_posts; i++) {
            exec_post *const o = &r->posts[i];
            const plan_task *const t = &p->tasks[o->task];
            const uint32_t at = send ? t->gate : t->join; /* PLAN_NONE is behind every task */
            if (t->kind != (send ? TASK_SEND : TASK_RECV) || at > task ||
                p->classes[t->cls].detail != CHANNEL_STATE)
                continue;
            worker_post(x, r, o);
            TD_TRY(wire_wait(x->wire, &o->op, err));
        }
    const td_status st = validate_last(x, r, task, &again, err);
    wire_leave(x->wire, r->index);
    return st;
}

td_status worker_run(executor *x, exec_rank *r, td_err *err)
{
    const plan_stream *const s = plan_compute(x->p, r->index);
    exec_period *const now = r->now;
    r->n_posted = 0;
    for (uint32_t i = 0; i < r->n_posts; i++)
        if (!is_carried(x, r->posts[i].task)) r->posts[i].op.done = false;
    for (uint32_t at = 0; at <= s->n_tasks; at++) {
        r->at = at;
        r->computes = false;
        while (r->n_posted < r->n_posts && r->posts[r->n_posted].post_at <= at) {
            delay(x, r);
            worker_post(x, r, &r->posts[r->n_posted++]);
        }
        TD_TRY(join_at(x, r, at, false, err));
        if (at == s->n_tasks) break;
        if (wire_aborted(x->wire)) return td_fail(err, TD_EINTR, "another rank gave up");
        delay(x, r);
        const uint32_t task = s->first_task + at;
        if (x->options.before != NULL)
            x->options.before(x->options.before_self, r->index, now->number, task);
        now->times.begin_ns[task] = td_now_ns() - now->start_ns;
        r->computes = true;
        device_run_task(x, r, task, true);
        if (x->p->tasks[task].kind == TASK_VERIFY)
            TD_TRY(verify(x, r, at, err));
        else
            TD_TRY(worker_compute(x, r, task, err));
        device_run_task(x, r, task, false);
        now->times.end_ns[task] = td_now_ns() - now->start_ns;
    }
    r->carries = true;
    return TD_OK;
}

td_status worker_leave(executor *x, exec_rank *r, td_err *err)
{
    for (uint32_t i = 0; i < r->n_posts && r->carries; i++) {
        if (!is_carried(x, r->posts[i].task)) continue;
        TD_TRY(wait_for(x, r, &r->posts[i], err));
        note_times(r->now, &r->posts[i]);
    }
    r->carries = false;
    wire_leave(x->wire, r->index);
    return TD_OK;
}
