/* The wire between threads: whoever posts the last end moves the data. One lock guards the queues;
 * data moves outside it. */
#include "exec/wire.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

typedef struct channel_queue {
    wire_op *first, *last; /* posts that lack their other end, oldest first */
    bool sends;            /* what they are */
} channel_queue;

typedef struct coll_slot {
    wire_op **ops; /* [members] */
    uint32_t members, arrived;
} coll_slot;

typedef struct wire_rank {
    pthread_cond_t changed;
} wire_rank;

struct wire {
    pthread_mutex_t lock;
    wire_rank *ranks;
    channel_queue *channels;
    coll_slot *colls;
    uint32_t n_ranks, n_channels, n_colls;
    int64_t deadline_ns;
    bool aborted;
    td_err why;
};

td_status wire_open_threads(const wire_shape *s, td_arena *a, wire **out, td_err *err)
{
    wire *const w = TD_NEW(a, wire);
    if (w == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    w->n_ranks = s->n_ranks;
    w->n_channels = s->n_channels;
    w->n_colls = s->n_colls;
    w->deadline_ns = s->deadline_ns;
    w->ranks = TD_NEW_N(a, wire_rank, s->n_ranks);
    w->channels = TD_NEW_N(a, channel_queue, s->n_channels);
    w->colls = TD_NEW_N(a, coll_slot, s->n_colls);
    if (w->ranks == NULL || w->channels == NULL || w->colls == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    for (uint32_t i = 0; i < s->n_colls; i++) {
        w->colls[i].members = s->coll_members[i];
        w->colls[i].ops = TD_NEW_N(a, wire_op *, s->coll_members[i]);
        if (w->colls[i].ops == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    }
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0 ||
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
        pthread_mutex_init(&w->lock, NULL) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (pthread_cond_init(&w->ranks[i].changed, &attr) != 0)
            return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    (void)pthread_condattr_destroy(&attr);
    *out = w;
    return TD_OK;
}

void wire_close(wire *w)
{
    if (w == NULL) return;
    for (uint32_t i = 0; i < w->n_ranks; i++) (void)pthread_cond_destroy(&w->ranks[i].changed);
    (void)pthread_mutex_destroy(&w->lock);
}

void wire_next_step(wire *w)
{
    for (uint32_t i = 0; i < w->n_colls; i++) w->colls[i].arrived = 0;
}

/* With the lock held. */
static void finish(wire *w, wire_op *op, int64_t begin_ns, int64_t end_ns)
{
    op->begin_ns = begin_ns;
    op->end_ns = end_ns;
    op->done = true;
    (void)pthread_cond_signal(&w->ranks[op->rank].changed);
}

/* Takes the other end off the channel, or queues this one and returns NULL. */
static wire_op *meet(wire *w, uint32_t channel, wire_op *op, bool send)
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

static void transfer(wire *w, wire_op *send, wire_op *recv)
{
    const int64_t begin = td_now_ns();
    const bool fits = send->bytes == recv->bytes;
    if (fits) memcpy(recv->data, send->data, (size_t)send->bytes);
    const int64_t end = td_now_ns();
    if (!fits) {
        td_err why;
        (void)td_fail(&why, TD_EPLAN,
                      "wire: rank %u sends %lld bytes (task %u), rank %u receives "
                      "%lld (task %u)",
                      send->rank, (long long)send->bytes, send->task, recv->rank,
                      (long long)recv->bytes, recv->task);
        wire_abort(w, &why);
        return;
    }
    (void)pthread_mutex_lock(&w->lock);
    finish(w, send, begin, end);
    finish(w, recv, begin, end);
    (void)pthread_mutex_unlock(&w->lock);
}

void wire_send(wire *w, uint32_t channel, wire_op *op)
{
    wire_op *const recv = meet(w, channel, op, true);
    if (recv != NULL) transfer(w, op, recv);
}

void wire_recv(wire *w, uint32_t channel, wire_op *op)
{
    wire_op *const send = meet(w, channel, op, false);
    if (send != NULL) transfer(w, send, op);
}

enum { REDUCE_BLOCK = 1024 };

static void reduce_floats(const coll_slot *c)
{
    float sum[REDUCE_BLOCK];
    const size_t n = (size_t)c->ops[0]->bytes / sizeof *sum;
    for (size_t first = 0; first < n; first += REDUCE_BLOCK) {
        const size_t count = n - first < REDUCE_BLOCK ? n - first : REDUCE_BLOCK;
        memcpy(sum, (float *)c->ops[0]->data + first, count * sizeof *sum);
        for (uint32_t m = 1; m < c->members; m++) {
            const float *const x = (const float *)c->ops[m]->data + first;
            for (size_t i = 0; i < count; i++) sum[i] += x[i];
        }
        for (uint32_t m = 0; m < c->members; m++)
            memcpy((float *)c->ops[m]->data + first, sum, count * sizeof *sum);
    }
}

static void reduce_doubles(const coll_slot *c)
{
    const size_t n = (size_t)c->ops[0]->bytes / sizeof(double);
    for (size_t i = 0; i < n; i++) {
        double sum = ((const double *)c->ops[0]->data)[i];
        for (uint32_t m = 1; m < c->members; m++) sum += ((const double *)c->ops[m]->data)[i];
        for (uint32_t m = 0; m < c->members; m++) ((double *)c->ops[m]->data)[i] = sum;
    }
}

void wire_all_reduce(wire *w, uint32_t coll, uint32_t member, wire_type type, wire_op *op)
{
    coll_slot *const c = &w->colls[coll];
    op->done = false;
    (void)pthread_mutex_lock(&w->lock);
    c->ops[member] = op;
    const bool all = ++c->arrived == c->members;
    (void)pthread_mutex_unlock(&w->lock);
    if (!all) return;
    const int64_t begin = td_now_ns();
    bool fits = true;
    for (uint32_t m = 1; m < c->members; m++) fits = fits && c->ops[m]->bytes == c->ops[0]->bytes;
    if (!fits) {
        td_err why;
        (void)td_fail(&why, TD_EPLAN, "wire: members of a collective differ in size (task %u)",
                      op->task);
        wire_abort(w, &why);
        return;
    }
    if (type == WIRE_FLOAT)
        reduce_floats(c);
    else
        reduce_doubles(c);
    const int64_t end = td_now_ns();
    (void)pthread_mutex_lock(&w->lock);
    for (uint32_t m = 0; m < c->members; m++) finish(w, c->ops[m], begin, end);
    (void)pthread_mutex_unlock(&w->lock);
}

td_status wire_wait(wire *w, wire_op *op, td_err *err)
{
    const int64_t until = td_now_ns() + w->deadline_ns;
    const struct timespec ts = {.tv_sec = (time_t)(until / 1000000000),
                                .tv_nsec = (long)(until % 1000000000)};
    bool late = false;
    (void)pthread_mutex_lock(&w->lock);
    while (!op->done && !w->aborted && !late)
        late = pthread_cond_timedwait(&w->ranks[op->rank].changed, &w->lock, &ts) != 0;
    const bool done = op->done;
    (void)pthread_mutex_unlock(&w->lock);
    if (done) return TD_OK;
    if (!late) return td_fail(err, TD_EINTR, "another rank gave up");
    return td_fail(err, TD_EPLAN, "rank %u: task %u waited %lld s for its other end", op->rank,
                   op->task, (long long)(w->deadline_ns / 1000000000));
}

void wire_abort(wire *w, const td_err *why)
{
    (void)pthread_mutex_lock(&w->lock);
    if (!w->aborted) w->why = *why;
    w->aborted = true;
    for (uint32_t i = 0; i < w->n_ranks; i++) (void)pthread_cond_broadcast(&w->ranks[i].changed);
    (void)pthread_mutex_unlock(&w->lock);
}

bool wire_aborted(wire *w)
{
    (void)pthread_mutex_lock(&w->lock);
    const bool aborted = w->aborted;
    (void)pthread_mutex_unlock(&w->lock);
    return aborted;
}

td_err wire_error(wire *w)
{
    (void)pthread_mutex_lock(&w->lock);
    const td_err why = w->aborted ? w->why : (td_err){0};
    (void)pthread_mutex_unlock(&w->lock);
    return why;
}
