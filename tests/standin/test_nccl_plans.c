/* Random plans over NCCL's wire, a process a rank, on hosts that stand in for GPUs and NCCL, where
 * nothing is buffered and operations end late at random. Plans that the checker accepts run to
 * their end under every mapping, each receive with what its own send carried, whatever the size;
 * plans that it refuses for a deadlock do not: they stand still, or data goes to others. */
#include "exec/spawn.h"
#include "exec/wire_nccl.h"
#include "plan_bend.h"
#include "schedule_gen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STREAMS_MOST = 64 };

typedef struct player {
    const plan *p;
    uint32_t rank;
    device *d;
    wire *w;
    int64_t bytes;                             /* of a message */
    void **streams, **gates, **begins, **ends; /* [n_streams], [n_tasks] */
    uint32_t *stream_of;                       /* [n_tasks] */
    void **data;                               /* [n_tasks] */
    wire_op *ops;                              /* [n_tasks] */
} player;

/* --- the mover --- */

static void *stream_of(void *self, const wire_op *op)
{
    const player *const y = self;
    return y->streams[y->stream_of[op->task]];
}

static void begin(void *self, wire_op *const *ops, uint32_t n)
{
    player *const y = self;
    (void)n;
    y->d->methods->wait(y->d, stream_of(y, ops[0]), y->gates[ops[0]->task]);
    y->d->methods->record(y->d, y->begins[ops[0]->task], stream_of(y, ops[0]));
}

static void end(void *self, wire_op *const *ops, uint32_t n)
{
    player *const y = self;
    (void)n;
    y->d->methods->record(y->d, y->ends[ops[0]->task], stream_of(y, ops[0]));
}

static void combine(void *self, const wire_op *first, wire_kind kind, void *const *data, uint32_t n,
                    int64_t bytes, uint32_t only)
{
    player *const y = self;
    y->d->methods->combine(y->d, stream_of(y, first), kind, data, n, bytes, only);
}

static td_status over(void *self, const wire_op *op, bool *out, td_err *err)
{
    player *const y = self;
    return y->d->methods->happened(y->d, y->ends[op->task], out, err);
}

static td_status name(void *self, const wire_op *op, td_err *err)
{
    (void)self;
    return td_wrap(err, "task %u", op->task);
}

static void note(void *self) { (void)self; }

/* --- a plan --- */

static plan lower(td_arena *a, uint64_t seed)
{
    schedule *const s = TD_NEW(a, schedule);
    *s = gen_schedule(a, seed);
    const sizes z = {.n_stages = s->n_stages, .chunks = (s->n_stages + s->n_rows - 1) / s->n_rows};
    const lower_options o = {.sizes = &z,
                             .dp = seed % 5 == 0 && s->n_rows < 4 ? 2 : 1,
                             .tp = 1,
                             .mapping = (plan_mapping)(seed % (MAPPING_SINGLE + 1)),
                             .lookahead = (int32_t)(seed / 7 % 4),
                             .after = "step"};
    plan p = {0};
    td_err err = {0};
    if (plan_lower(s, &o, a, &p, &err) != TD_OK) (void)fprintf(stderr, "%s\n", err.msg);
    return p;
}

static uint32_t channel_of(const plan *p, uint32_t task)
{
    const plan_task *const t = &p->tasks[task];
    const uint32_t send = t->kind == TASK_SEND ? task : t->link;
    uint32_t c = 0;
    while (p->channels[c].src != plan_task_rank(p, send) ||
           p->channels[c].dst != plan_task_rank(p, p->tasks[send].link) ||
           p->channels[c].cls != p->classes[t->cls].detail)
        c++;
    return c;
}

static td_status open_wire(player *y, team *t, const wire_mover *v, bool ordered, double deadline_s,
                           td_arena *a, td_err *err)
{
    const plan *const p = y->p;
    plan_queues q;
    TD_TRY(plan_find_queues(p, a, &q, err));
    wire_channel *const channels = TD_NEW_N(a, wire_channel, p->n_channels);
    wire_group *const groups = TD_NEW_N(a, wire_group, p->n_groups);
    wire_coll *const colls = TD_NEW_N(a, wire_coll, p->n_colls);
    wire_queue *const queues = TD_NEW_N(a, wire_queue, q.n_queues);
    for (uint32_t i = 0; i < q.n_queues; i++)
        queues[i] = (wire_queue){q.members + q.queues[i].first_member, q.queues[i].n_members,
                                 q.queues[i].collective};
    for (uint32_t i = 0; i < p->n_channels; i++)
        channels[i] = (wire_channel){p->channels[i].src, p->channels[i].dst, PLAN_NONE};
    for (uint32_t i = 0; i < p->n_tasks; i++)
        if (p->tasks[i].kind == TASK_SEND)
            channels[channel_of(p, i)].queue = q.of_stream[y->stream_of[i]];
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const uint32_t first = p->coll_tasks[p->colls[i].first_task], g = p->colls[i].group;
        groups[g] = (wire_group){&p->group_members[p->groups[g].first_member],
                                 p->groups[g].n_members, q.of_stream[y->stream_of[first]]};
        colls[i] = (wire_coll){.group = g, .kind = WIRE_SUM_DOUBLE, .bytes = sizeof(double)};
    }
    const wire_shape s = {.n_ranks = p->n_ranks,
                          .n_channels = p->n_channels,
                          .n_groups = p->n_groups,
                          .n_colls = p->n_colls,
                          .n_queues = q.n_queues,
                          .channels = channels,
                          .groups = groups,
                          .colls = colls,
                          .queues = queues,
                          .mover = v,
                          .deadline_ns = (int64_t)(deadline_s * 1e9)};
    const nccl_options o = {.ordered = ordered};
    return wire_open_nccl(&s, &o, t, y->d, a, &y->w, err);
}

static td_status open_rank(player *y, td_arena *a, td_err *err)
{
    const plan *const p = y->p;
    const device_methods *const m = y->d->methods;
    y->streams = TD_NEW_N(a, void *, p->n_streams);
    y->gates = TD_NEW_N(a, void *, p->n_tasks);
    y->begins = TD_NEW_N(a, void *, p->n_tasks);
    y->ends = TD_NEW_N(a, void *, p->n_tasks);
    y->stream_of = TD_NEW_N(a, uint32_t, p->n_tasks);
    y->data = TD_NEW_N(a, void *, p->n_tasks);
    y->ops = TD_NEW_N(a, wire_op, p->n_tasks);
    for (uint32_t s = 0; s < p->n_streams; s++) {
        const plan_stream *const st = &p->streams[s];
        for (uint32_t i = st->first_task; i < st->first_task + st->n_tasks; i++)
            y->stream_of[i] = s;
        if (st->rank != y->rank) continue;
        TD_TRY(m->stream(y->d, st->kind != STREAM_COMPUTE, &y->streams[s], err));
        for (uint32_t i = st->first_task; i < st->first_task + st->n_tasks; i++) {
            if (st->kind == STREAM_COMPUTE) continue;
            TD_TRY(m->event(y->d, &y->gates[i], err));
            TD_TRY(m->event(y->d, &y->begins[i], err));
            TD_TRY(m->event(y->d, &y->ends[i], err));
            const int64_t bytes = p->tasks[i].kind == TASK_COLL ? 8 : y->bytes;
            const double one = 1.0;
            uint64_t word = p->tasks[i].kind == TASK_SEND ? i : UINT64_MAX;
            if (p->tasks[i].kind == TASK_COLL) memcpy(&word, &one, sizeof word);
            TD_TRY(m->alloc(y->d, bytes, &y->data[i], err));
            TD_TRY(m->fill(y->d, y->data[i], word, bytes / 8, err));
        }
    }
    return TD_OK;
}

/* --- running --- */

static void post(player *y, uint32_t task)
{
    const plan *const p = y->p;
    const plan_task *const t = &p->tasks[task];
    const bool coll = t->kind == TASK_COLL;
    void *const compute = y->streams[p->ranks[y->rank].first_stream];
    y->d->methods->record(y->d, y->gates[task], compute);
    y->ops[task] = (wire_op){
        .data = y->data[task], .bytes = coll ? 8 : y->bytes, .rank = y->rank, .task = task};
    if (coll)
        wire_collective(y->w, t->link, 0, &y->ops[task]);
    else if (t->kind == TASK_SEND)
        wire_send(y->w, channel_of(p, task), &y->ops[task]);
    else
        wire_recv(y->w, channel_of(p, task), &y->ops[task]);
}

static td_status run(player *y, td_err *err)
{
    const plan *const p = y->p;
    const plan_rank *const r = &p->ranks[y->rank];
    const plan_stream *const c = plan_compute(p, y->rank);
    uint32_t next[STREAMS_MOST] = {0};
    for (uint32_t at = 0; at <= c->n_tasks; at++) {
        for (uint32_t s = 1; s < r->n_streams; s++) {
            const plan_stream *const st = &p->streams[r->first_stream + s];
            for (; next[s] < st->n_tasks; next[s]++) {
                const plan_task *const t = &p->tasks[st->first_task + next[s]];
                if (t->gate != PLAN_NONE && t->gate - c->first_task + 1 > at) break;
                post(y, st->first_task + next[s]);
            }
        }
        for (uint32_t i = 0; i < p->n_tasks && at < c->n_tasks; i++) {
            if (y->ends[i] == NULL || p->tasks[i].join != c->first_task + at) continue;
            if (y->ops[i].data == NULL)
                return td_fail(err, TD_EPLAN, "task %u is waited for before it is posted", i);
            y->d->methods->wait(y->d, y->streams[r->first_stream], y->ends[i]);
        }
    }
    return wire_drain(y->w, err);
}

/* Whether everything that came is what the plan says, from the first to the last word. */
static bool is_right(const player *y)
{
    const plan *const p = y->p;
    td_err err = {0};
    for (uint32_t i = 0; i < p->n_tasks; i++) {
        if (y->data[i] == NULL || p->tasks[i].kind == TASK_SEND) continue;
        const bool coll = p->tasks[i].kind == TASK_COLL;
        const int64_t last = coll ? 0 : y->bytes - 8;
        uint64_t first_word = 0, last_word = 0, want = p->tasks[i].link;
        const double sum = coll ? p->groups[p->colls[p->tasks[i].link].group].n_members : 0;
        if (coll) memcpy(&want, &sum, sizeof want);
        if (y->d->methods->read(y->d, &first_word, y->data[i], 8, &err) != TD_OK ||
            y->d->methods->read(y->d, &last_word, (char *)y->data[i] + last, 8, &err) != TD_OK ||
            first_word != want || last_word != want)
            return false;
    }
    return true;
}

/* One rank's process. 0: the plan ran to its end as it should have; 1: it did not. */
static int play(const plan *p, const launch *who, int64_t bytes, bool ordered, double deadline_s)
{
    td_arena *const a = td_arena_new();
    td_err err = {0};
    transport t;
    team *together = NULL;
    device d;
    uint32_t sharing = 0;
    player y = {.p = p, .rank = who->rank, .d = &d, .bytes = bytes};
    const wire_mover v = {&y, begin, NULL, combine, end, stream_of, over, name, note};
    td_status st = transport_open_tcp(who, 20000000000, a, &t, &err);
    if (st == TD_OK) st = team_open(&t, 20000000000, a, &together, &err);
    if (st == TD_OK) st = device_open_cuda(0, false, a, &d, &err);
    if (st == TD_OK) st = nccl_share(together, d.place, a, &sharing, &err);
    if (st == TD_OK) st = open_rank(&y, a, &err);
    if (st == TD_OK) st = open_wire(&y, together, &v, ordered, deadline_s, a, &err);
    if (st == TD_OK) st = team_agree(together, st, &err);
    if (st != TD_OK) {
        (void)fprintf(stderr, "rank %u: %s\n", who->rank, err.msg);
        return 2;
    }
    st = run(&y, &err);
    const bool right = st == TD_OK && is_right(&y);
    wire_close(y.w);
    team_close(together);
    return right ? 0 : 1;
}

/* Whether the plan ran as it should have, in processes; exits on what is no answer. */
static bool plays(const plan *p, int64_t bytes, bool ordered, double deadline_s)
{
    launch who;
    bool watched = false;
    td_err err = {0};
    const td_status st = spawn_processes(p->n_ranks, &who, &watched, &err);
    if (watched) _exit(play(p, &who, bytes, ordered, deadline_s));
    if (st == TD_OK || st == TD_EMISMATCH) return st == TD_OK;
    (void)fprintf(stderr, "FAIL: %s %s\n", td_status_text(st), err.msg);
    exit(1);
}

int main(void)
{
    const int64_t large = (int64_t)65 << 20;
    const int n = getenv("TANDEM_PLANS") == NULL ? 18 : atoi(getenv("TANDEM_PLANS"));
    int stuck = 0, bad = 0, played = 0;
    (void)setenv("TD_NCCL_DELAY_US", "300", 0);
    for (uint64_t seed = 1; played < n || stuck < n / 3; seed++) {
        td_arena *const a = td_arena_new();
        plan p = lower(a, seed);
        const bool huge = seed % 9 == 4 && p.n_tasks < 60;
        if (p.n_ranks < 2 || p.n_ranks > 6 || p.n_tasks > 400) {
            td_arena_free(a);
            continue;
        }
        if (played < n) {
            played++;
            if (!plays(&p, huge ? large : 64, seed % 2 == 0, 60)) {
                printf("FAIL: seed %d: a sound plan does not run\n", (int)seed);
                bad = 1;
            }
        }
        td_rng r = td_rng_seed(seed + 77);
        td_err err = {0};
        plan_bend(&p, &r);
        const bool deadlock =
            plan_check(&p, a, &err) != TD_OK && strstr(err.msg, "deadlock") != NULL;
        if (deadlock && stuck < n / 3) {
            stuck++;
            if (plays(&p, 64, false, 1)) {
                printf("FAIL: seed %d: a plan runs that is refused: %s\n", (int)seed, err.msg);
                bad = 1;
            }
        }
        td_arena_free(a);
    }
    if (!bad) printf("%d sound plans ran to their end, %d that deadlock did not\n", played, stuck);
    return bad;
}
