/* The wire between processes, over any transport. A message is one request. A collective runs in
 * two rounds: parts go to their owners, who combine them in member order, and outcomes go to all;
 * those of one group go one after another, as on one stream. A thread keeps messages moving while
 * the rank computes. */
#include "exec/team.h"
#include "exec/wire_inside.h"

#include <string.h>
#include <time.h>

typedef enum coll_round { ROUND_NONE, ROUND_PARTS, ROUND_OUTCOMES } coll_round;

typedef struct remote_group {
    const uint32_t *members;
    uint32_t n, me, lane;
    wire_op *first, *last; /* posted collectives, oldest first; the first one is under way */
    coll_round round;
    char *staging;               /* [n][staging_stride] parts of others */
    int64_t staging_stride;      /* bytes */
    void **parts;                /* [n] */
    transport_request *requests; /* [2 n] */
    uint32_t n_requests;
} remote_group;

typedef struct remote_wire {
    wire base;
    team *team;
    const wire_channel *channels;
    const wire_coll *colls;
    remote_group *groups; /* [n_groups]; those without this rank have n == 0 */
    uint32_t n_channels, n_groups;
    wire_op *messages; /* under way */
    uint32_t n_active; /* messages and collectives */
    int64_t deadline_ns;
    pthread_t thread;
    pthread_cond_t changed;
    bool started, closing;
} remote_wire;

static remote_wire *remote_of(wire *w) { return (remote_wire *)(void *)w; }

/* --- all with the team's lock held --- */

static void finish(remote_wire *w, wire_op *op)
{
    op->end_ns = td_now_ns();
    op->done = true;
    w->n_active--;
}

static void start(remote_wire *w, transport_request *r, bool send)
{
    transport *const t = &w->team->t;
    td_err err = {0};
    const td_status st = send ? t->methods->send(t, r, &err) : t->methods->recv(t, r, &err);
    if (st != TD_OK) team_fail(w->team, &err);
}

static bool arrived(remote_wire *w, transport_request *r)
{
    td_err err = {0};
    if (w->team->t.methods->test(&w->team->t, r, &err) != TD_OK) {
        team_fail(w->team, &err);
        return false;
    }
    return r->done;
}

static void look_at_messages(remote_wire *w)
{
    wire_op **at = &w->messages;
    while (*at != NULL) {
        wire_op *const op = *at;
        if (arrived(w, &op->request)) {
            *at = op->next;
            finish(w, op);
        } else {
            at = &op->next;
        }
    }
}

/* What member m owns of a collective's data. */
static void owned(const wire_coll *c, const remote_group *g, int64_t bytes, uint32_t m,
                  int64_t *first, int64_t *count)
{
    if (wire_kind_in_pieces(c->kind)) {
        wire_piece(c->kind, bytes, g->n, m, first, count);
        return;
    }
    *first = 0;
    *count = m == c->root ? bytes : 0;
}

static void exchange(remote_wire *w, remote_group *g, uint32_t peer, char *data, int64_t bytes,
                     bool send)
{
    if (bytes == 0) return;
    transport_request *const r = &g->requests[g->n_requests++];
    *r = (transport_request){
        .peer = g->members[peer], .lane = g->lane, .data = data, .bytes = bytes};
    start(w, r, send);
}

static void begin_parts(remote_wire *w, remote_group *g, const wire_coll *c)
{
    const wire_op *const op = g->first;
    int64_t first = 0, count = 0, mine = 0, mine_at = 0;
    owned(c, g, op->bytes, g->me, &mine_at, &mine);
    for (uint32_t m = 0; m < g->n; m++) {
        g->parts[m] = g->staging + (int64_t)m * g->staging_stride;
        if (m == g->me) {
            g->parts[m] = (char *)op->data + mine_at;
            continue;
        }
        owned(c, g, op->bytes, m, &first, &count);
        exchange(w, g, m, g->parts[m], mine, false);
        exchange(w, g, m, (char *)op->data + first, count, true);
    }
}

static void begin_outcomes(remote_wire *w, remote_group *g, const wire_coll *c)
{
    const wire_op *const op = g->first;
    int64_t first = 0, count = 0, mine = 0, mine_at = 0;
    owned(c, g, op->bytes, g->me, &mine_at, &mine);
    for (uint32_t m = 0; m < g->n; m++) {
        if (m == g->me) continue;
        owned(c, g, op->bytes, m, &first, &count);
        exchange(w, g, m, (char *)op->data + first, count, false);
        /* a combined part lies where member m's came to: each member may get another outcome */
        char *const outcome =
            wire_kind_combines(c->kind) ? g->parts[m] : (char *)op->data + mine_at;
        exchange(w, g, m, outcome, mine, true);
    }
}

static void combine(remote_group *g, const wire_coll *c)
{
    int64_t first = 0, mine = 0;
    owned(c, g, g->first->bytes, g->me, &first, &mine);
    if (mine > 0)
        wire_combine(c->kind, g->parts, g->n, mine,
                     wire_kind_spreads(c->kind) ? UINT32_MAX : g->me);
}

/* Starts the next round of the group's first collective, or ends it. */
static void advance(remote_wire *w, remote_group *g)
{
    const wire_coll *const c = &w->colls[g->first->coll];
    g->n_requests = 0;
    if (g->round == ROUND_NONE) {
        g->round = ROUND_PARTS;
        if (wire_kind_combines(c->kind)) begin_parts(w, g, c);
    } else if (g->round == ROUND_PARTS) {
        if (wire_kind_combines(c->kind)) combine(g, c);
        g->round = ROUND_OUTCOMES;
        if (wire_kind_spreads(c->kind)) begin_outcomes(w, g, c);
    } else {
        wire_op *const op = g->first;
        g->first = op->next;
        g->round = ROUND_NONE;
        finish(w, op);
    }
}

static void look_at_group(remote_wire *w, remote_group *g)
{
    while (g->first != NULL && w->team->why.code == TD_OK) {
        bool all = true;
        for (uint32_t i = 0; i < g->n_requests && g->round != ROUND_NONE; i++)
            if (!g->requests[i].done && !arrived(w, &g->requests[i])) all = false;
        if (!all) return;
        advance(w, g);
    }
}

static void look(remote_wire *w)
{
    if (w->team->why.code != TD_OK) return;
    look_at_messages(w);
    for (uint32_t i = 0; i < w->n_groups; i++)
        if (w->groups[i].n > 0) look_at_group(w, &w->groups[i]);
}

/* --- posts --- */

static void post_message(wire *base, uint32_t channel, wire_op *op, bool send)
{
    remote_wire *const w = remote_of(base);
    const wire_channel *const c = &w->channels[channel];
    op->done = false;
    op->begin_ns = td_now_ns();
    op->request = (transport_request){.peer = send ? c->dst : c->src,
                                      .lane = LANE_WIRE + channel,
                                      .data = op->data,
                                      .bytes = op->bytes};
    (void)pthread_mutex_lock(&w->team->lock);
    op->next = w->messages;
    w->messages = op;
    w->n_active++;
    start(w, &op->request, send);
    (void)pthread_cond_signal(&w->changed);
    (void)pthread_mutex_unlock(&w->team->lock);
}

static void post_send(wire *w, uint32_t channel, wire_op *op)
{
    post_message(w, channel, op, true);
}

static void post_recv(wire *w, uint32_t channel, wire_op *op)
{
    post_message(w, channel, op, false);
}

static void collective(wire *base, uint32_t coll, uint32_t member, wire_op *op)
{
    remote_wire *const w = remote_of(base);
    remote_group *const g = &w->groups[w->colls[coll].group];
    (void)member; /* this process's */
    op->done = false;
    op->begin_ns = td_now_ns();
    op->coll = coll;
    op->next = NULL;
    (void)pthread_mutex_lock(&w->team->lock);
    if (g->first == NULL)
        g->first = op;
    else
        g->last->next = op;
    g->last = op;
    w->n_active++;
    look_at_group(w, g);
    (void)pthread_cond_signal(&w->changed);
    (void)pthread_mutex_unlock(&w->team->lock);
}

static td_status wait_remote(wire *base, wire_op *op, td_err *err)
{
    remote_wire *const w = remote_of(base);
    const int64_t until = td_now_ns() + w->deadline_ns;
    for (long turn = 0;; turn++) {
        (void)pthread_mutex_lock(&w->team->lock);
        look(w);
        if (!op->done && turn % 16 == 0) team_listen(w->team);
        const bool done = op->done, over = w->team->why.code != TD_OK;
        (void)pthread_mutex_unlock(&w->team->lock);
        if (done) return TD_OK;
        if (over) return td_fail(err, TD_EINTR, "another rank gave up");
        if (td_now_ns() > until) return wire_late(w->deadline_ns, err);
        team_pause(turn);
    }
}

/* --- the thread --- */

static void *keep_moving(void *arg)
{
    remote_wire *const w = arg;
    (void)pthread_mutex_lock(&w->team->lock);
    while (!w->closing) {
        look(w);
        team_listen(w->team);
        struct timespec ts;
        const bool busy = w->n_active > 0 && w->team->why.code == TD_OK;
        const int64_t until = td_now_ns() + (busy ? 200000 : 100000000);
        ts = (struct timespec){.tv_sec = (time_t)(until / 1000000000),
                               .tv_nsec = (long)(until % 1000000000)};
        (void)pthread_cond_timedwait(&w->changed, &w->team->lock, &ts);
    }
    (void)pthread_mutex_unlock(&w->team->lock);
    return NULL;
}

static void close_remote(wire *base)
{
    remote_wire *const w = remote_of(base);
    if (w->started) {
        (void)pthread_mutex_lock(&w->team->lock);
        w->closing = true;
        (void)pthread_cond_signal(&w->changed);
        (void)pthread_mutex_unlock(&w->team->lock);
        (void)pthread_join(w->thread, NULL);
    }
    (void)pthread_cond_destroy(&w->changed);
}

static void give_up(wire *w, const td_err *why) { team_give_up(remote_of(w)->team, why); }

static td_err error_remote(wire *w) { return team_error(remote_of(w)->team); }

static void leave(wire *w, uint32_t rank)
{
    (void)w;
    (void)rank;
}

static void next_step(wire *w) { (void)w; }

/* --- opening --- */

static td_status open_group(const wire_shape *s, uint32_t group, remote_wire *w, td_arena *a,
                            td_err *err)
{
    const wire_group *const from = &s->groups[group];
    remote_group *const g = &w->groups[group];
    g->members = from->members;
    g->lane = LANE_WIRE + s->n_channels + group;
    for (uint32_t m = 0; m < from->n_members; m++)
        if (from->members[m] == team_index(w->team)) {
            g->me = m;
            g->n = from->n_members;
        }
    if (g->n == 0) return TD_OK;
    for (uint32_t i = 0; i < s->n_colls; i++) {
        const wire_coll *const c = &s->colls[i];
        int64_t first = 0, mine = 0;
        if (c->group == group) owned(c, g, c->bytes, g->me, &first, &mine);
        if (mine > g->staging_stride && wire_kind_combines(c->kind)) g->staging_stride = mine;
    }
    g->staging_stride = (g->staging_stride + 63) / 64 * 64;
    g->staging = td_alloc(a, g->n, (size_t)g->staging_stride);
    g->parts = TD_NEW_N(a, void *, g->n);
    g->requests = TD_NEW_N(a, transport_request, 2 * g->n);
    if (g->staging == NULL || g->parts == NULL || g->requests == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    return TD_OK;
}

static td_status open_thread(remote_wire *w, td_err *err)
{
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0 ||
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) != 0 ||
        pthread_cond_init(&w->changed, &attr) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    (void)pthread_condattr_destroy(&attr);
    w->started = pthread_create(&w->thread, NULL, keep_moving, w) == 0;
    return w->started ? TD_OK : td_fail(err, TD_EDEVICE, "a thread could not be started");
}

td_status wire_open_team(const wire_shape *s, team *t, td_arena *a, wire **out, td_err *err)
{
    static const wire_methods methods = {.close = close_remote,
                                         .send = post_send,
                                         .recv = post_recv,
                                         .collective = collective,
                                         .wait = wait_remote,
                                         .leave = leave,
                                         .give_up = give_up,
                                         .error = error_remote,
                                         .next_step = next_step};
    if (s->n_ranks != team_size(t))
        return td_fail(err, TD_EUSAGE, "the plan has %u ranks, but %u processes were started",
                       s->n_ranks, team_size(t));
    remote_wire *const w = TD_NEW(a, remote_wire);
    if (w == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    *w = (remote_wire){.base = {&methods},
                       .team = t,
                       .channels = s->channels,
                       .colls = s->colls,
                       .n_channels = s->n_channels,
                       .n_groups = s->n_groups,
                       .deadline_ns = s->deadline_ns,
                       .groups = TD_NEW_N(a, remote_group, s->n_groups)};
    if (w->groups == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    for (uint32_t i = 0; i < s->n_groups; i++) TD_TRY(open_group(s, i, w, a, err));
    TD_TRY(open_thread(w, err));
    *out = &w->base;
    return TD_OK;
}
