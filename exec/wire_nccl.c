/* The wire over NCCL. Operations are given to the streams of the plan in the order in which the
 * rank posts them, and wait there for their other ends; the host waits for nothing inside a step.
 * That no sound plan gets stuck: schedules/plan_queues.c says what the checker proves, and these
 * are its conditions. One thread posts, so a communicator's order is its stream's order. Only what
 * the plan orders before an operation is posted before it on its stream; a post never waits for
 * another process, because all connections were made at the start. Operations that wait hold a few
 * multiprocessors each, and all that may wait at once leave some to what computes
 * (plan_streams_waiting).
 *
 * A thread watches what has not ended: the reasons of other processes, errors of communicators, and
 * a device that gets no further. It makes NCCL drop its work then, so that nobody waits for ever.
 */
#include "exec/wire_nccl.h"
#include "exec/wire_inside.h"

#if TD_HAVE_NCCL
#include "exec/nccl_queue.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

enum { LOOK_NS = 20000000, LOOK_OPS = 64, REASON_NS = 1000000000, STUCK_NS = 2000000000 };

typedef struct nccl_wire {
    wire base;
    wire_shape shape;
    nccl_options o;
    team *team;
    nccl_queue *queues;    /* [n_queues] */
    pthread_mutex_t lock;  /* around NCCL, and the list */
    wire_op *first, *last; /* given, and not seen to be over; oldest first */
    int64_t moved_ns;      /* when one of them was seen to be over, or the first was given */
    bool aborted, closing, started;
    pthread_t thread;
} nccl_wire;

static nccl_wire *nccl_of(wire *w) { return (nccl_wire *)(void *)w; }

/* --- posts --- */

typedef td_status give_fn(nccl_wire *w, wire_op *op, uint32_t at, bool send, void *stream,
                          td_err *err);

static td_status give_message(nccl_wire *w, wire_op *op, uint32_t channel, bool send, void *stream,
                              td_err *err)
{
    const wire_channel *const c = &w->shape.channels[channel];
    return nccl_queue_message(&w->queues[c->queue], send, send ? c->dst : c->src, op->data,
                              op->bytes, stream, err);
}

static td_status give_collective(nccl_wire *w, wire_op *op, uint32_t coll, bool send, void *stream,
                                 td_err *err)
{
    (void)send;
    const wire_coll *const c = &w->shape.colls[coll];
    const nccl_part part = {.kind = c->kind,
                            .root = c->root,
                            .ordered = w->o.ordered,
                            .data = op->data,
                            .bytes = op->bytes,
                            .stream = stream,
                            .mover = w->shape.mover,
                            .op = op};
    return nccl_queue_collective(&w->queues[w->shape.groups[c->group].queue], &part, err);
}

static void post(nccl_wire *w, wire_op *op, uint32_t at, bool send, give_fn *give)
{
    const wire_mover *const v = w->shape.mover;
    td_err err = {0};
    td_status st = TD_OK;
    op->done = false;
    op->next = NULL;
    op->begin_ns = op->end_ns = td_now_ns();
    (void)pthread_mutex_lock(&w->lock);
    if (!w->aborted) {
        v->begin(v->self, &op, 1);
        st = give(w, op, at, send, v->stream(v->self, op), &err);
        v->end(v->self, &op, 1);
        if (w->first == NULL) {
            w->first = op;
            w->moved_ns = td_now_ns();
        } else {
            w->last->next = op;
        }
        w->last = op;
    }
    (void)pthread_mutex_unlock(&w->lock);
    if (st == TD_OK) return;
    (void)v->name(v->self, op, &err);
    team_give_up(w->team, &err);
}

static void post_send(wire *w, uint32_t channel, wire_op *op)
{
    post(nccl_of(w), op, channel, true, give_message);
}

static void post_recv(wire *w, uint32_t channel, wire_op *op)
{
    post(nccl_of(w), op, channel, false, give_message);
}

static void post_collective(wire *w, uint32_t coll, uint32_t member, wire_op *op)
{
    (void)member; /* this process's */
    post(nccl_of(w), op, coll, false, give_collective);
}

static td_status wait_nccl(wire *base, wire_op *op, td_err *err)
{
    (void)op; /* the device waits for it */
    return team_error(nccl_of(base)->team).code == TD_OK
               ? TD_OK
               : td_fail(err, TD_EINTR, "another rank gave up");
}

/* --- what is over; with the lock held --- */

static td_status sweep(nccl_wire *w, td_err *err)
{
    const wire_mover *const v = w->shape.mover;
    wire_op **at = &w->first, *before = NULL;
    for (int looked = 0; *at != NULL && looked < LOOK_OPS;) {
        wire_op *const op = *at;
        bool over = false;
        TD_TRY(v->over(v->self, op, &over, err));
        if (!over) {
            looked++;
            before = op;
            at = &op->next;
            continue;
        }
        *at = op->next;
        if (w->last == op) w->last = before;
        op->done = true;
        w->moved_ns = td_now_ns();
    }
    return TD_OK;
}

static td_status drain(wire *base, td_err *err)
{
    nccl_wire *const w = nccl_of(base);
    for (long turn = 0;; turn++) {
        td_err why = {0};
        (void)pthread_mutex_lock(&w->lock);
        const td_status st = w->aborted ? TD_OK : sweep(w, &why);
        const bool dropped = w->aborted, over = w->first == NULL && !dropped;
        (void)pthread_mutex_unlock(&w->lock);
        if (st != TD_OK) team_give_up(w->team, &why);
        /* whoever gives up has its work dropped by the watch, which first notes how far it was */
        if (dropped) return td_fail(err, TD_EINTR, "another rank gave up");
        if (over && team_error(w->team).code == TD_OK) return TD_OK;
        team_pause(turn);
    }
}

/* --- the watch --- */

/* Another thread may be caught in a call for ever; its work is then dropped under its hands, which
 * is what frees it. */
static bool take_lock(nccl_wire *w, int64_t patience_ns)
{
    const int64_t until = td_now_ns() + patience_ns;
    while (pthread_mutex_trylock(&w->lock) != 0) {
        if (td_now_ns() > until) return false;
        team_pause(100);
    }
    return true;
}

static void drop_all(nccl_wire *w)
{
    td_err ignored = {0};
    const bool mine = take_lock(w, STUCK_NS);
    if (mine) (void)sweep(w, &ignored);
    w->shape.mover->note(w->shape.mover->self);
    w->aborted = true;
    for (uint32_t i = 0; i < w->shape.n_queues; i++) nccl_queue_abort(&w->queues[i]);
    if (mine) (void)pthread_mutex_unlock(&w->lock);
}

/* With the lock held: what is wrong here. */
static td_status look_here(nccl_wire *w, td_err *err)
{
    TD_TRY(sweep(w, err));
    for (uint32_t i = 0; i < w->shape.n_queues; i++) {
        nccl_queue *const q = &w->queues[i];
        ncclResult_t r = ncclSuccess;
        if (q->comm == NULL || ncclCommGetAsyncError(q->comm, &r) != ncclSuccess) continue;
        if (r != ncclSuccess && r != ncclInProgress) return nccl_queue_settle(q, r, err);
    }
    if (w->first == NULL || td_now_ns() - w->moved_ns <= w->shape.deadline_ns) return TD_OK;
    (void)wire_late(w->shape.deadline_ns, err);
    return w->shape.mover->name(w->shape.mover->self, w->first, err);
}

static void *watch(void *arg)
{
    nccl_wire *const w = arg;
    const struct timespec turn = {.tv_nsec = LOOK_NS};
    int64_t wrong_ns = 0;
    bool closing = false;
    while (!closing) {
        (void)nanosleep(&turn, NULL);
        td_err why = team_look(w->team), here = {0};
        if (why.code != TD_OK) {
            drop_all(w);
            return NULL;
        }
        if (!take_lock(w, w->shape.deadline_ns + STUCK_NS)) {
            (void)td_fail(&here, TD_EDEVICE, "rank %u: a call of NCCL or CUDA does not return",
                          team_index(w->team));
            team_give_up(w->team, &here);
            continue;
        }
        const td_status st = look_here(w, &here);
        closing = w->closing;
        (void)pthread_mutex_unlock(&w->lock);
        if (st == TD_OK) continue;
        /* the process that is the reason is known by name a moment later, if it is gone */
        if (wrong_ns == 0) wrong_ns = td_now_ns();
        if (td_now_ns() - wrong_ns > REASON_NS) team_give_up(w->team, &here);
    }
    return NULL;
}

/* --- opening and closing --- */

static void close_nccl(wire *base)
{
    nccl_wire *const w = nccl_of(base);
    if (w->started) {
        (void)pthread_mutex_lock(&w->lock);
        w->closing = true;
        (void)pthread_mutex_unlock(&w->lock);
        (void)pthread_join(w->thread, NULL);
    }
    const bool broken = w->aborted || team_error(w->team).code != TD_OK;
    for (uint32_t i = 0; i < w->shape.n_queues; i++) {
        if (broken)
            nccl_queue_abort(&w->queues[i]);
        else
            nccl_queue_close(&w->queues[i]);
    }
    (void)pthread_mutex_destroy(&w->lock);
}

static void give_up(wire *w, const td_err *why) { team_give_up(nccl_of(w)->team, why); }

static td_err error_nccl(wire *w) { return team_error(nccl_of(w)->team); }

static void leave(wire *w, uint32_t rank) { (void)w, (void)rank; }

static void next_step(wire *w) { (void)w; }

td_status wire_open_nccl(const wire_shape *s, const nccl_options *o, team *t, device *d,
                         td_arena *a, wire **out, td_err *err)
{
    static const wire_methods methods = {.close = close_nccl,
                                         .send = post_send,
                                         .recv = post_recv,
                                         .collective = post_collective,
                                         .wait = wait_nccl,
                                         .drain = drain,
                                         .leave = leave,
                                         .give_up = give_up,
                                         .error = error_nccl,
                                         .next_step = next_step};
    if (s->n_ranks != team_size(t))
        return td_fail(err, TD_EUSAGE, "the plan has %u ranks, but %u processes were started",
                       s->n_ranks, team_size(t));
    nccl_wire *const w = TD_NEW(a, nccl_wire);
    if (w == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    *w = (nccl_wire){.base = {&methods},
                     .shape = *s,
                     .o = *o,
                     .team = t,
                     .queues = TD_NEW_N(a, nccl_queue, s->n_queues)};
    if (w->queues == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    if (pthread_mutex_init(&w->lock, NULL) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    td_status st = nccl_start(s, o, t, d, a, w->queues, err);
    if (st == TD_OK) {
        w->started = pthread_create(&w->thread, NULL, watch, w) == 0;
        if (!w->started) st = td_fail(err, TD_EDEVICE, "a thread could not be started");
    }
    if (st == TD_OK) {
        *out = &w->base;
        return TD_OK;
    }
    for (uint32_t i = 0; i < s->n_queues; i++) nccl_queue_abort(&w->queues[i]);
    (void)pthread_mutex_destroy(&w->lock);
    return st;
}

void wire_nccl_memory(wire *base, void *at, int64_t bytes)
{
    nccl_wire *const w = nccl_of(base);
    for (uint32_t i = 0; i < w->shape.n_queues; i++)
        if (!w->queues[i].from->collective) nccl_queue_register(&w->queues[i], at, bytes);
}

#else

td_status wire_open_nccl(const wire_shape *s, const nccl_options *o, team *t, device *d,
                         td_arena *a, wire **out, td_err *err)
{
    (void)s, (void)o, (void)t, (void)d, (void)a, (void)out;
    return td_fail(err, TD_EUSAGE,
                   "--wire nccl: this build has no NCCL; install its development package "
                   "(libnccl-dev) and configure again, or leave the processes out: ranks are then "
                   "threads that share one GPU");
}

void wire_nccl_memory(wire *w, void *at, int64_t bytes) { (void)w, (void)at, (void)bytes; }

#endif
