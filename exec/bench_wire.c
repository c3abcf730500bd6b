/* What messages and sums between ranks take: threads of this machine, or the processes of a team.
 * The leader, rank 0, measures; a mark in the data tells the others which round is the last. */
#include "exec/bench.h"

#include <pthread.h>
#include <string.h>

enum { DEADLINE_S = 60, RANKS_MAX = 16 };
static const int64_t second_ns = 1000000000;

typedef struct wire_bench {
    bench *b;
    wire *w;
    int64_t bytes;
    char *memory[RANKS_MAX]; /* of the ranks that are here */
    bench_series *series;
    const sample *what;
} wire_bench;

typedef struct participant {
    wire_bench *of;
    uint32_t rank;
    td_status status;
    td_err err;
    pthread_t thread;
    bool started;
} participant;

static td_status pass_message(wire *w, uint32_t channel, bool send, char *data, int64_t bytes,
                              uint32_t rank, td_err *err)
{
    wire_op op = {.data = data, .bytes = bytes, .rank = rank};
    if (send)
        wire_send(w, channel, &op);
    else
        wire_recv(w, channel, &op);
    return wire_wait(w, &op, err);
}

static td_status lead_messages(wire_bench *s, td_err *err)
{
    char *const data = s->memory[0];
    for (bool last = false; !last;) {
        last = s->series->enough;
        data[0] = last;
        const int64_t begin = td_now_ns();
        TD_TRY(pass_message(s->w, 0, true, data, s->bytes, 0, err));
        TD_TRY(pass_message(s->w, 1, false, data, s->bytes, 0, err));
        if (!last) bench_note(s->series, &s->b->limits, (td_now_ns() - begin) / 2);
    }
    return TD_OK;
}

static td_status echo_messages(wire_bench *s, td_err *err)
{
    char *const data = s->memory[1];
    for (bool last = false; !last;) {
        TD_TRY(pass_message(s->w, 0, false, data, s->bytes, 1, err));
        last = data[0] != 0;
        TD_TRY(pass_message(s->w, 1, true, data, s->bytes, 1, err));
    }
    return TD_OK;
}

/* Sums of zeros stay finite; the leader's first element becomes everybody's. */
static td_status take_part_in_sums(wire_bench *s, uint32_t rank, td_err *err)
{
    float *const data = (float *)(void *)s->memory[rank];
    bool last = false;
    for (uint32_t i = 0; !last; i++) {
        data[0] = rank == 0 && (s->series->enough || i + 1 == BENCH_ROUNDS) ? 1.0f : 0.0f;
        wire_op op = {.data = data, .bytes = s->bytes, .rank = rank};
        const int64_t begin = td_now_ns();
        wire_collective(s->w, i, rank, &op);
        TD_TRY(wire_wait(s->w, &op, err));
        last = data[0] > 0;
        if (rank == 0 && !last && i > 0) /* the first one warms up */
            bench_note(s->series, &s->b->limits, td_now_ns() - begin);
    }
    return TD_OK;
}

static void *participant_main(void *arg)
{
    participant *const p = arg;
    if (p->of->what->what == SAMPLE_ALL_REDUCE)
        p->status = take_part_in_sums(p->of, p->rank, &p->err);
    else
        p->status = p->rank == 0 ? lead_messages(p->of, &p->err) : echo_messages(p->of, &p->err);
    if (p->status != TD_OK) wire_abort(p->of->w, &p->err);
    return NULL;
}

/* Ranks [0, n) of this machine as threads, or of the team this process's. */
static td_status take_part(wire_bench *s, uint32_t n, td_err *err)
{
    participant all[RANKS_MAX];
    const uint32_t mine = team_index(s->b->team);
    td_status st = TD_OK;
    for (uint32_t i = 0; i < n; i++) all[i] = (participant){.of = s, .rank = i};
    if (s->b->team != NULL) {
        if (mine >= n) return TD_OK;
        (void)participant_main(&all[mine]);
        return all[mine].status == TD_OK ? TD_OK
                                         : td_fail(err, all[mine].status, "%s", all[mine].err.msg);
    }
    for (uint32_t i = 1; i < n && st == TD_OK; i++) {
        all[i].started = pthread_create(&all[i].thread, NULL, participant_main, &all[i]) == 0;
        if (!all[i].started) st = td_fail(err, TD_EDEVICE, "a thread could not be started");
    }
    if (st == TD_OK) (void)participant_main(&all[0]);
    if (st != TD_OK) wire_abort(s->w, err);
    for (uint32_t i = 1; i < n; i++)
        if (all[i].started) (void)pthread_join(all[i].thread, NULL);
    const td_err why = wire_error(s->w);
    return st != TD_OK || why.code == TD_OK ? st : td_fail(err, why.code, "%s", why.msg);
}

static td_status open_all(wire_bench *s, wire_shape *shape, uint32_t n, td_arena *a, td_err *err)
{
    const team *const t = s->b->team;
    shape->n_ranks = t == NULL ? n : team_size(t);
    shape->deadline_ns = DEADLINE_S * second_ns;
    TD_TRY(t == NULL ? wire_open_threads(shape, a, &s->w, err)
                     : wire_open_team(shape, s->b->team, a, &s->w, err));
    s->series = TD_NEW(a, bench_series);
    for (uint32_t i = 0; i < n; i++)
        if (t == NULL || i == team_index(t)) s->memory[i] = TD_NEW_N(a, char, (size_t)s->bytes);
    for (uint32_t i = 0; i < n; i++)
        if ((t == NULL || i == team_index(t)) && s->memory[i] == NULL)
            return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    return s->series == NULL ? td_fail(err, TD_ENOMEM, "out of memory for the bench") : TD_OK;
}

/* Measures with the first n ranks; the leader's process adds the sample. */
static td_status measure(bench *b, const sample *what, wire_shape *shape, uint32_t n, td_arena *a,
                         td_err *err)
{
    wire_bench s = {.b = b, .bytes = what->amount, .what = what};
    td_status st = open_all(&s, shape, n, a, err);
    if (b->team != NULL) st = team_agree(b->team, st, err);
    if (st == TD_OK) st = take_part(&s, n, err);
    if (b->team != NULL) st = team_agree(b->team, st, err);
    wire_close(s.w);
    if (st != TD_OK || team_index(b->team) > 0) return st;
    return bench_add(what, s.series, &b->limits, &b->out, &b->count, err);
}

td_status bench_message(bench *b, int64_t bytes, td_err *err)
{
    static const wire_channel channels[] = {{0, 1, 0}, {1, 0, 0}};
    wire_shape shape = {.n_channels = 2, .channels = channels};
    const sample what = {.what = SAMPLE_MESSAGE, .amount = bytes, .busy = 1, .link = b->link};
    td_arena *const a = td_arena_new();
    const td_status st = a == NULL ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
                                   : measure(b, &what, &shape, 2, a, err);
    td_arena_free(a);
    return st;
}

td_status bench_sum(bench *b, int32_t members, int64_t bytes, td_err *err)
{
    uint32_t ranks[RANKS_MAX];
    const uint32_t n = (uint32_t)(members < RANKS_MAX ? members : RANKS_MAX);
    for (uint32_t i = 0; i < n; i++) ranks[i] = i;
    const wire_group group = {.members = ranks, .n_members = n};
    td_arena *const a = td_arena_new();
    wire_coll *const colls = a == NULL ? NULL : TD_NEW_N(a, wire_coll, BENCH_ROUNDS);
    td_status st = TD_OK;
    if (colls == NULL) {
        st = td_fail(err, TD_ENOMEM, "out of memory for the bench");
    } else {
        for (int i = 0; i < BENCH_ROUNDS; i++)
            colls[i] = (wire_coll){.kind = WIRE_SUM_FLOAT, .bytes = bytes};
        wire_shape shape = {
            .n_groups = 1, .n_colls = BENCH_ROUNDS, .groups = &group, .colls = colls};
        const sample what = {.what = SAMPLE_ALL_REDUCE,
                             .amount = bytes,
                             .members = (int32_t)n,
                             .busy = 1,
                             .link = b->link};
        st = measure(b, &what, &shape, n, a, err);
    }
    td_arena_free(a);
    return st;
}
