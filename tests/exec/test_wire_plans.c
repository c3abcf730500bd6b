/* Random plans run over the wire of threads, a thread a stream, each task a rendezvous that holds
 * its stream: nothing is buffered. Gates and joins are messages too, so a run that is stuck has
 * every thread waiting in the wire, which sees that without a clock. Plans that the checker accepts
 * run to their end, under random delays, and every receive gets what its own send carried; of plans
 * that were bent, those get stuck that the checker refuses for a deadlock, and no others. */
#include "exec/wire.h"
#include "plan_bend.h"
#include "schedule_gen.h"
#include "schedules/plan.h"
#include "t.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

typedef struct play {
    const plan *p;
    wire *w;
    bool by_identity;      /* every message has a channel of its own */
    uint32_t n_channels;   /* of messages; the gates' and then the joins' come behind */
    uint32_t *first_gated; /* [n_tasks + 1] into gated */
    uint32_t *gated;       /* tasks by their gate */
    uint32_t *first_join;  /* [n_tasks + 1] into joined */
    uint32_t *joined;
    wire_op *gates, *joins, *got_gates, *got_joins, *messages; /* [n_tasks] */
    double *data;                                              /* [n_tasks] */
    int64_t jitter_ns;
} play;

typedef struct player {
    play *g;
    uint32_t stream;
    td_rng jitter;
    pthread_t thread;
    bool wrong; /* a receive got another send's data */
} player;

static void delay(player *y)
{
    if (y->g->jitter_ns == 0 || td_rng_below(&y->jitter, 4) != 0) return;
    const struct timespec ts = {.tv_nsec = (long)td_rng_below(&y->jitter, y->g->jitter_ns)};
    (void)nanosleep(&ts, NULL);
}

static bool has_join(const plan_task *t)
{
    return t->join != PLAN_NONE && (t->flags & TASK_FLAG_JOIN_NEXT) == 0;
}

static bool wait_for(play *g, wire_op *op)
{
    td_err err;
    return wire_wait(g->w, op, &err) == TD_OK;
}

/* A token: a message without bytes. Its send is posted and never waited for. */
static wire_op token(const play *g, uint32_t stream, uint32_t task)
{
    (void)g;
    return (wire_op){.rank = stream, .task = task};
}

static void send_token(play *g, wire_op *op, uint32_t channel, uint32_t stream, uint32_t task)
{
    *op = token(g, stream, task);
    wire_send(g->w, channel, op);
}

static bool take_token(play *g, wire_op *op, uint32_t channel, uint32_t stream, uint32_t task)
{
    *op = token(g, stream, task);
    wire_recv(g->w, channel, op);
    return wait_for(g, op);
}

static uint32_t gate_channel(const play *g, uint32_t task) { return g->n_channels + task; }

static uint32_t join_channel(const play *g, uint32_t task)
{
    return g->n_channels + g->p->n_tasks + task;
}

static bool play_compute(player *y, uint32_t task)
{
    play *const g = y->g;
    for (uint32_t i = g->first_join[task]; i < g->first_join[task + 1]; i++) {
        const uint32_t t = g->joined[i];
        if (!take_token(g, &g->got_joins[t], join_channel(g, t), y->stream, task)) return false;
    }
    delay(y);
    for (uint32_t i = g->first_gated[task]; i < g->first_gated[task + 1]; i++)
        send_token(g, &g->gates[g->gated[i]], gate_channel(g, g->gated[i]), y->stream, task);
    return true;
}

static uint32_t message_channel(const play *g, uint32_t task)
{
    const plan *const p = g->p;
    const plan_task *const t = &p->tasks[task];
    const uint32_t send = t->kind == TASK_SEND ? task : t->link;
    if (g->by_identity) return send;
    const uint32_t src = plan_task_rank(p, send), dst = plan_task_rank(p, p->tasks[send].link);
    for (uint32_t i = 0; i < p->n_channels; i++)
        if (p->channels[i].src == src && p->channels[i].dst == dst &&
            p->channels[i].cls == p->classes[t->cls].detail)
            return i;
    return 0;
}

static bool play_meeting(player *y, uint32_t task)
{
    play *const g = y->g;
    const plan *const p = g->p;
    const plan_task *const t = &p->tasks[task];
    if (t->gate != PLAN_NONE &&
        !take_token(g, &g->got_gates[task], gate_channel(g, task), y->stream, task))
        return false;
    delay(y);
    wire_op *const op = &g->messages[task];
    g->data[task] = t->kind == TASK_SEND ? (double)task : 1.0;
    *op =
        (wire_op){.data = &g->data[task], .bytes = sizeof(double), .rank = y->stream, .task = task};
    double want = (double)t->link;
    if (t->kind == TASK_SEND) {
        wire_send(g->w, message_channel(g, task), op);
    } else if (t->kind == TASK_RECV) {
        wire_recv(g->w, message_channel(g, task), op);
    } else {
        const plan_coll *const c = &p->colls[t->link];
        uint32_t member = 0;
        while (p->coll_tasks[c->first_task + member] != task) member++;
        want = (double)p->groups[c->group].n_members;
        wire_collective(g->w, t->link, member, op);
    }
    if (!wait_for(g, op)) return false;
    if (t->kind != TASK_SEND && fabs(g->data[task] - want) > 0) y->wrong = true;
    if (has_join(t)) send_token(g, &g->joins[task], join_channel(g, task), y->stream, task);
    return true;
}

static void *play_stream(void *arg)
{
    player *const y = arg;
    const plan_stream *const s = &y->g->p->streams[y->stream];
    bool on = true;
    for (uint32_t i = s->first_task; on && i < s->first_task + s->n_tasks; i++)
        on = s->kind == STREAM_COMPUTE ? play_compute(y, i) : play_meeting(y, i);
    wire_leave(y->g->w, y->stream);
    return NULL;
}

/* Lists of tasks by the task that `key` gives. */
static void sort_by(const plan *p, td_arena *a, bool by_gate, uint32_t **first, uint32_t **list)
{
    *first = TD_NEW_N(a, uint32_t, p->n_tasks + 2);
    *list = TD_NEW_N(a, uint32_t, p->n_tasks);
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < p->n_tasks; i++) {
            const plan_task *const t = &p->tasks[i];
            const bool counts =
                t->kind == TASK_SEND || t->kind == TASK_RECV || t->kind == TASK_COLL;
            const bool has = by_gate ? t->gate != PLAN_NONE : has_join(t);
            if (!counts || !has) continue;
            const uint32_t key = by_gate ? t->gate : t->join;
            if (round == 0)
                (*first)[key + 2]++;
            else
                (*list)[(*first)[key + 1]++] = i;
        }
        for (uint32_t i = 0; round == 0 && i < p->n_tasks; i++) (*first)[i + 2] += (*first)[i + 1];
    }
}

static void open_wire(play *g, td_arena *a)
{
    const plan *const p = g->p;
    wire_channel *const channels = TD_NEW_N(a, wire_channel, g->n_channels + 2 * p->n_tasks);
    wire_group *const groups = TD_NEW_N(a, wire_group, p->n_groups);
    wire_coll *const colls = TD_NEW_N(a, wire_coll, p->n_colls);
    for (uint32_t i = 0; i < p->n_groups; i++)
        groups[i] = (wire_group){.members = &p->group_members[p->groups[i].first_member],
                                 .n_members = p->groups[i].n_members};
    for (uint32_t i = 0; i < p->n_colls; i++)
        colls[i] = (wire_coll){
            .group = p->colls[i].group, .kind = WIRE_SUM_DOUBLE, .bytes = sizeof(double)};
    const wire_shape shape = {.n_ranks = p->n_streams,
                              .n_channels = g->n_channels + 2 * p->n_tasks,
                              .n_groups = p->n_groups,
                              .n_colls = p->n_colls,
                              .channels = channels,
                              .groups = groups,
                              .colls = colls,
                              .deadline_ns = INT64_C(1) << 50};
    td_err err = {0};
    T_OK(wire_open_threads(&shape, a, &g->w, &err), &err);
}

typedef struct outcome {
    bool stuck, wrong;
} outcome;

static outcome play_plan(const plan *p, bool by_identity, int64_t jitter_ns, uint64_t seed)
{
    td_arena *const a = td_arena_new();
    play g = {.p = p,
              .by_identity = by_identity,
              .n_channels = by_identity ? p->n_tasks : p->n_channels,
              .gates = TD_NEW_N(a, wire_op, p->n_tasks),
              .joins = TD_NEW_N(a, wire_op, p->n_tasks),
              .got_gates = TD_NEW_N(a, wire_op, p->n_tasks),
              .got_joins = TD_NEW_N(a, wire_op, p->n_tasks),
              .messages = TD_NEW_N(a, wire_op, p->n_tasks),
              .data = TD_NEW_N(a, double, p->n_tasks),
              .jitter_ns = jitter_ns};
    player *const players = TD_NEW_N(a, player, p->n_streams);
    sort_by(p, a, true, &g.first_gated, &g.gated);
    sort_by(p, a, false, &g.first_join, &g.joined);
    open_wire(&g, a);
    for (uint32_t i = 0; i < p->n_streams; i++) {
        players[i] = (player){.g = &g, .stream = i, .jitter = td_rng_seed(seed * 1000 + i)};
        assert_int_equal(pthread_create(&players[i].thread, NULL, play_stream, &players[i]), 0);
    }
    outcome out = {0};
    for (uint32_t i = 0; i < p->n_streams; i++) {
        (void)pthread_join(players[i].thread, NULL);
        out.wrong |= players[i].wrong;
    }
    const td_err why = wire_error(g.w);
    out.stuck = why.code != TD_OK;
    if (out.stuck && strstr(why.msg, "stuck") == NULL) fail_msg("%s", why.msg);
    wire_close(g.w);
    td_arena_free(a);
    return out;
}

/* --- plans --- */

static plan lower(td_arena *a, uint64_t seed)
{
    schedule *const s = TD_NEW(a, schedule);
    *s = gen_schedule(a, seed);
    const sizes z = {.n_stages = s->n_stages, .chunks = (s->n_stages + s->n_rows - 1) / s->n_rows};
    const lower_options o = {.sizes = &z,
                             .dp = seed % 5 == 0 ? 2 : 1,
                             .tp = 1,
                             .mapping = (plan_mapping)(seed % (MAPPING_SINGLE + 1)),
                             .lookahead = (int32_t)(seed / 7 % 4),
                             .after = "step"};
    plan p;
    td_err err = {0};
    T_OK(plan_lower(s, &o, a, &p, &err), &err);
    return p;
}

static int rounds(void)
{
    const char *const n = getenv("TANDEM_PLANS");
    return n == NULL ? 60 : atoi(n);
}

static void test_sound_plans_end(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < (uint64_t)rounds(); seed++) {
        td_arena *const a = td_arena_new();
        const plan p = lower(a, seed);
        const outcome o = play_plan(&p, false, seed % 4 == 0 ? 30000 : 0, seed);
        if (o.stuck || o.wrong)
            fail_msg("seed %llu: %s", (unsigned long long)seed, o.stuck ? "stuck" : "wrong data");
        td_arena_free(a);
    }
}

static void test_the_checker_knows_what_gets_stuck(void **state)
{
    (void)state;
    int sound = 0, stuck = 0;
    for (uint64_t seed = 0; stuck < rounds(); seed++) {
        td_arena *const a = td_arena_new();
        plan p = lower(a, seed);
        td_rng r = td_rng_seed(seed + 77);
        plan_bend(&p, &r);
        td_err err = {0};
        const bool ok = plan_check(&p, a, &err) == TD_OK;
        const bool deadlock = !ok && strstr(err.msg, "deadlock") != NULL;
        if (ok || deadlock) {
            const outcome o = play_plan(&p, true, seed % 4 == 0 ? 20000 : 0, seed);
            if (o.stuck != deadlock)
                fail_msg("seed %llu: the checker says %s, the run %s", (unsigned long long)seed,
                         ok ? "sound" : err.msg, o.stuck ? "got stuck" : "ended");
            sound += ok;
            stuck += deadlock;
        }
        td_arena_free(a);
    }
    assert_true(sound > rounds() / 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_plans_end),
        cmocka_unit_test(test_the_checker_knows_what_gets_stuck),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
