/* The wire between threads: whoever posts the last end moves the data. One lock guards the queues;
 * data moves outside it. Since nothing happens but by a post, a run is stuck for ever at the moment
 * when every rank waits or has left: that is seen without a clock. */
#include "exec/wire_inside.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef struct channel_queue {
    wire_op *first, *last; /* posts that lack their other end, oldest first */
    bool sends;            /* what they are */
} channel_queue;

typedef struct coll_slot {
    wire_op **ops; /* [members] */
    void **data;   /* [members] */
    uint32_t members, arrived, root;
    wire_kind kind;
} coll_slot;

typedef struct wire_rank {
    pthread_cond_t changed;
    const wire_op *waits_for; /* NULL: it is at work */
    bool left;                /* for this step */
} wire_rank;

typedef struct threads_wire {
    wire base;
    pthread_mutex_t lock;
    wire_rank *ranks;
    channel_queue *channels;
    coll_slot *colls;
    uint32_t n_ranks, n_channels;
    uint32_t n_at_work; /* ranks that neither wait nor have left */
    int64_t deadline_ns;
    const wire_mover *mover;
    td_err why; /* code TD_OK: nobody gave up */
} threads_wire;

static threads_wire *threads_of(wire *w) { return (threads_wire *)(void *)w; }

static void close_threads(wire *base)
{
    threads_wire *const w = threads_of(base);
    for (uint32_t i = 0; i < w->n_ranks; i++) (void)pthread_cond_destroy(&w->ranks[i].changed);
    (void)pthread_mutex_destroy(&w->lock);
}

static void next_step(wire *base)
{
    threads_wire *const w = threads_of(base);
    for (uint32_t i = 0; i < w->n_ranks; i++) w->ranks[i].left = false;
    w->n_at_work = w->n_ranks;
}

/* With the lock held. */
static void give_up(threads_wire *w, const td_err *why)
{
    if (w->why.code == TD_OK) w->why = *why;
    for (uint32_t i = 0; i < w->n_ranks; i++) (void)pthread_cond_broadcast(&w->ranks[i].changed);
}

static void abort_threads(wire *base, const td_err *why)
{
    threads_wire *const w = threads_of(base);
    (void)pthread_mutex_lock(&w->lock);
    give_up(w, why);
    (void)pthread_mutex_unlock(&w->lock);
}

static td_err error_threads(wire *base)
{
    threads_wire *const w = threads_of(base);
    (void)pthread_mutex_lock(&w->lock);
    const td_err why = w->why;
    (void)pthread_mutex_unlock(&w->lock);
    return why;
}

/* With the lock held. */
static void finish(threads_wire *w, wire_op *op, int64_t begin_ns, int64_t end_ns)
{
    wire_rank *const r = &w->ranks[op->rank];
    op->begin_ns = begin_ns;
    op->end_ns = end_ns;
    op->done = true;
    if (r->waits_for == op) {
        r->waits_for = NULL;
        w->n_at_work++;
    }
    (void)pthread_cond_signal(&r->changed);
}

/* Takes the other end off the channel, or queues this one and returns NULL. */
static wire_op *meet(threads_wire *w, uint32_t channel, wire_op *op, bool send)
{
    channel_queue *const q = &w->channels[channel];
    op->next = NULL;
    op->done = false;
    (void)pthread_mutex_lock(&w->lock);
    wire_op *other = NULL;
    if (q->first != NULL && q->sends != send) {
        other = q->first;
        q->first = other->next;
    } else {
        if (q->first == NULL)
            q->first = op;
        else
            q->last->next = op;
        q->last = op;
        q->sends = send;
    }
    (void)pthread_mutex_unlock(&w->lock);
    return other;
}

static void transfer(threads_wire *w, wire_op *send, wire_op *recv)
{
    const int64_t begin = td_now_ns();
    const bool fits = send->bytes == recv->bytes;
    if (fits && w->mover != NULL) {
        wire_op *const ends[] = {send, recv};
        w->mover->begin(w->mover->self, ends, 2);
        w->mover->copy(w->mover->self, send, recv->data, send->data, send->bytes);
        w->mover->end(w->mover->self, ends, 2);
    } else if (fits && send->bytes > 0) {
        memcpy(recv->data, send->data, (size_t)send->bytes);
    }
    const int64_t end = td_now_ns();
    if (!fits) {
        td_err why;
        (void)td_fail(&why, TD_EPLAN,
                      "wire: rank %u sends %lld bytes (task %u), rank %u receives "
                      "%lld (task %u)",
                      send->rank, (long long)send->bytes, send->task, recv->rank,
                      (long long)recv->bytes, recv->task);
        abort_threads(&w->base, &why);
        return;
    }
    (void)pthread_mutex_lock(&w->lock);
    finish(w, send, begin, end);
    finish(w, recv, begin, end);
    (void)pthread_mutex_unlock(&w->lock);
}

static void post_send(wire *base, uint32_t channel, wire_op *op)
{
    wire_op *const recv = meet(threads_of(base), channel, op, true);
    if (recv != NULL) transfer(threads_of(base), op, recv);
}

static void post_recv(wire *base, uint32_t channel, wire_op *op)
{
    wire_op *const send = meet(threads_of(base), channel, op, false);
    if (send != NULL) transfer(threads_of(base), send, op);
}

static void combine(const wire_mover *v, const coll_slot *c, int64_t bytes, uint32_t only)
{
    if (v != NULL)
        v->combine(v->self, c->ops[0], c->kind, c->data, c->members, bytes, only);
    else
        wire_combine(c->kind, c->data, c->members, bytes, only);
}

static void copy(const wire_mover *v, const coll_slot *c, void *to, const void *from, int64_t bytes)
{
    if (v != NULL)
        v->copy(v->self, c->ops[0], to, from, bytes);
    else
        memcpy(to, from, (size_t)bytes);
}

/* One owner's part: combined, and then in all members or in the owner alone. */
static void do_part(const wire_mover *v, const coll_slot *c, uint32_t owner, int64_t first,
                    int64_t bytes)
{
    const bool spreads = wire_kind_spreads(c->kind);
    if (bytes == 0) return;
    for (uint32_t m = 0; m < c->members; m++) c->data[m] = (char *)c->ops[m]->data + first;
    if (wire_kind_combines(c->kind))
        combine(v, c, bytes, spreads ? UINT32_MAX : owner);
    else
        for (uint32_t m = 0; m < c->members; m++)
            if (m != owner) copy(v, c, c->data[m], c->data[owner], bytes);
}

static void do_parts(const wire_mover *v, const coll_slot *c)
{
    const int64_t bytes = c->ops[0]->bytes;
    if (!wire_kind_in_pieces(c->kind)) {
        do_part(v, c, c->root, 0, bytes);
        return;
    }
    for (uint32_t m = 0; m < c->members; m++) {
        int64_t first = 0, count = 0;
        wire_piece(c->kind, bytes, c->members, m, &first, &count);
        do_part(v, c, m, first, count);
    }
}

static void do_collective(const wire_mover *v, const coll_slot *c)
{
    if (v != NULL) v->begin(v->self, c->ops, c->members);
    do_parts(v, c);
    if (v != NULL) v->end(v->self, c->ops, c->members);
}

static void collective(wire *base, uint32_t coll, uint32_t member, wire_op *op)
{
    threads_wire *const w = threads_of(base);
    coll_slot *const c = &w->colls[coll];
    op->done = false;
    (void)pthread_mutex_lock(&w->lock);
    c->ops[member] = op;
    const bool all = ++c->arrived == c->members;
    if (all) c->arrived = 0; /* nobody posts it again before it is done */
    (void)pthread_mutex_unlock(&w->lock);
    if (!all) return;
    const int64_t begin = td_now_ns();
    bool fits = true;
    for (uint32_t m = 1; m < c->members; m++) fits = fits && c->ops[m]->bytes == c->ops[0]->bytes;
    if (!fits) {
        td_err why;
        (void)td_fail(&why, TD_EPLAN, "wire: members of a collective differ in size (task %u)",
                      op->task);
        abort_threads(base, &why);
        return;
    }
    do_collective(w->mover, c);
    const int64_t end = td_now_ns();
    (void)pthread_mutex_lock(&w->lock);
    for (uint32_t m = 0; m < c->members; m++) finish(w, c->ops[m], begin, end);
    (void)pthread_mutex_unlock(&w->lock);
}

/* With the lock held, after a rank stopped working. */
static void see_stall(threads_wire *w)
{
    if (w->n_at_work > 0 || w->why.code != TD_OK) return;
    char who[600];
    size_t at = 0;
    for (uint32_t i = 0; i < w->n_ranks && at + 40 < sizeof who; i++)
        if (w->ranks[i].waits_for != NULL)
            at += (size_t)snprintf(who + at, sizeof who - at, "%s rank %u in task %u",
                                   at == 0 ? "" : ",", i, w->ranks[i].waits_for->task);
    if (at == 0) return; /* all have left */
    td_err why;
    (void)td_fail(&why, TD_EPLAN, "wire: the run is stuck, every rank waits for another:%s", who);
    give_up(w, &why);
}

static void leave(wire *base, uint32_t rank)
{
    threads_wire *const w = threads_of(base);
    (void)pthread_mutex_lock(&w->lock);
    w->ranks[rank].left = true;
    w->n_at_work--;
    see_stall(w);
    (void)pthread_mutex_unlock(&w->lock);
}

static td_status wait_threads(wire *base, wire_op *op, td_err *err)
{
    threads_wire *const w = threads_of(base);
    wire_rank *const r = &w->ranks[op->rank];
    const int64_t until = td_now_ns() + w->deadline_ns;
    const struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
                                .tv_nsec = (long)(until % 1000000000)};
    bool late = false;
    (void)pthread_mutex_lock(&w->lock);
    if (!op->done) {
        r->waits_for = op;
        w->n_at_work--;
        see_stall(w);
        while (!op->done && w->why.code == TD_OK && !late)
            late = pthread_cond_timedwait(&r->changed, &w->lock, &ts) != 0;
        if (r->waits_for == op) {
            r->waits_for = NULL;
            w->n_at_work++;
        }
    }
    const bool done = op->done;
    (void)pthread_mutex_unlock(&w->lock);
    if (done) return TD_OK;
    if (!late) return td_fail(err, TD_EINTR, "another rank gave up");
    return wire_late(w->deadline_ns, err);
}

static td_status open_colls(const wire_shape *s, td_arena *a, threads_wire *w, td_err *err)
{
    w->colls = TD_NEW_N(a, coll_slot, s->n_colls);
    if (w->colls == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    for (uint32_t i = 0; i < s->n_colls; i++) {
        coll_slot *const c = &w->colls[i];
        c->kind = s->colls[i].kind;
        c->root = s->colls[i].root;
        c->members = s->groups[s->colls[i].group].n_members;
        c->ops = TD_NEW_N(a, wire_op *, c->members);
        c->data = TD_NEW_N(a, void *, c->members);
        if (c->ops == NULL || c->data == NULL)
            return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    }
    return TD_OK;
}

static td_status open_locks(threads_wire *w, td_err *err)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0 ||
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
        pthread_mutex_init(&w->lock, NULL) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    for (uint32_t i = 0; i < w->n_ranks; i++)
        if (pthread_cond_init(&w->ranks[i].changed, &attr) != 0)
            return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    (void)pthread_condattr_destroy(&attr);
    return TD_OK;
}

td_status wire_open_threads(const wire_shape *s, td_arena *a, wire **out, td_err *err)
{
    static const wire_methods methods = {.close = close_threads,
                                         .send = post_send,
                                         .recv = post_recv,
                                         .collective = collective,
                                         .wait = wait_threads,
                                         .leave = leave,
                                         .give_up = abort_threads,
                                         .error = error_threads,
                                         .next_step = next_step};
    threads_wire *const w = TD_NEW(a, threads_wire);
    if (w == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    w->base.methods = &methods;
    w->n_ranks = s->n_ranks;
    w->n_channels = s->n_channels;
    w->deadline_ns = s->deadline_ns;
    w->mover = s->mover;
    w->ranks = TD_NEW_N(a, wire_rank, s->n_ranks);
    w->channels = TD_NEW_N(a, channel_queue, s->n_channels);
    if (w->ranks == NULL || w->channels == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    TD_TRY(open_colls(s, a, w, err));
    TD_TRY(open_locks(w, err));
    next_step(&w->base);
    *out = &w->base;
    return TD_OK;
}
