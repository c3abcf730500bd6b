/* The wire between processes, and their talk: three members that meet over TCP. Here each is a
 * thread with a team of its own, which shares nothing with the others but its connections. */
#include "exec/team.h"
#include "exec/wire.h"
#include "t.h"

#include <pthread.h>
#include <unistd.h>

enum { MEMBERS = 3, LARGE = 3 << 20 };

typedef struct member {
    uint32_t index;
    uint16_t port;
    void (*act)(struct member *m);
    td_arena *a;
    transport t;
    team *team;
    wire *wire;
    wire_kind kind;
    bool leaves; /* without a goodbye */
    char wrong[200];
    td_err err;
} member;

static void wait_in_vain(member *m);

/* Assertions belong to the test's thread: a member notes the first thing that is wrong. */
static bool expect(member *m, bool holds, const char *what)
{
    if (!holds && m->wrong[0] == '\0')
        (void)snprintf(m->wrong, sizeof m->wrong, "member %u: not so: %.80s (%.80s)", m->index,
                       what, m->err.msg);
    return holds;
}

static td_status open_member(member *m)
{
    launch l = {.by = LAUNCHED_BY_TORCHRUN,
                .rank = m->index,
                .size = MEMBERS,
                .host = "127.0.0.1",
                .port = m->port,
                .key = 7};
    static const uint32_t ranks[MEMBERS] = {0, 1, 2};
    static const wire_channel channels[2] = {{0, 1, 0}, {2, 0, 0}};
    static const wire_group all = {.members = ranks, .n_members = MEMBERS};
    wire_coll *const coll = TD_NEW(m->a, wire_coll);
    *coll = (wire_coll){.root = 1, .kind = m->kind, .bytes = 7 * sizeof(float)};
    const wire_shape shape = {.n_ranks = MEMBERS,
                              .n_channels = 2,
                              .n_groups = 1,
                              .n_colls = 1,
                              .channels = channels,
                              .groups = &all,
                              .colls = coll,
                              .deadline_ns = m->act == wait_in_vain ? 300000000 : 20000000000};
    TD_TRY(transport_open_tcp(&l, 20000000000, m->a, &m->t, &m->err));
    TD_TRY(team_open(&m->t, 20000000000, m->a, &m->team, &m->err));
    return wire_open_team(&shape, m->team, m->a, &m->wire, &m->err);
}

static void *be_member(void *arg)
{
    member *const m = arg;
    m->a = td_arena_new();
    if (expect(m, open_member(m) == TD_OK, "it joins")) m->act(m);
    wire_close(m->wire);
    if (m->leaves)
        m->t.methods->close(&m->t, true);
    else
        team_close(m->team);
    td_arena_free(m->a);
    return NULL;
}

static void run(void (*act)(member *m), wire_kind kind, uint32_t leaver)
{
    member m[MEMBERS];
    pthread_t t[MEMBERS];
    static uint16_t used;
    const uint16_t port = (uint16_t)(20000 + ((uint32_t)getpid() * 16 + used++) % 20000);
    for (uint32_t i = 0; i < MEMBERS; i++) {
        m[i] = (member){.index = i, .port = port, .act = act, .kind = kind, .leaves = i == leaver};
        assert_int_equal(pthread_create(&t[i], NULL, be_member, &m[i]), 0);
    }
    for (uint32_t i = 0; i < MEMBERS; i++) (void)pthread_join(t[i], NULL);
    for (uint32_t i = 0; i < MEMBERS; i++)
        if (m[i].wrong[0] != '\0') fail_msg("%s", m[i].wrong);
}

/* --- collectives --- */

/* Member m starts with 10 m + i; pieces are of 3, 2 and 2 elements; the root is 1. */
static const float left[][MEMBERS][7] = {
    [WIRE_SUM_FLOAT] = {{30, 33, 36, 39, 42, 45, 48},
                        {30, 33, 36, 39, 42, 45, 48},
                        {30, 33, 36, 39, 42, 45, 48}},
    [WIRE_SUM_PIECES_FLOAT] = {{30, 33, 36, 3, 4, 5, 6},
                               {10, 11, 12, 39, 42, 15, 16},
                               {20, 21, 22, 23, 24, 45, 48}},
    [WIRE_SUM_ROOT_FLOAT] = {{0, 1, 2, 3, 4, 5, 6},
                             {30, 33, 36, 39, 42, 45, 48},
                             {20, 21, 22, 23, 24, 25, 26}},
    [WIRE_GATHER_FLOAT] = {{0, 1, 2, 13, 14, 25, 26},
                           {0, 1, 2, 13, 14, 25, 26},
                           {0, 1, 2, 13, 14, 25, 26}},
    [WIRE_BROADCAST] = {{10, 11, 12, 13, 14, 15, 16},
                        {10, 11, 12, 13, 14, 15, 16},
                        {10, 11, 12, 13, 14, 15, 16}},
};

static void do_collective(member *m)
{
    float *const data = TD_NEW_N(m->a, float, 8);
    for (int i = 0; i < 8; i++) data[i] = (float)(10 * (int)m->index + i);
    wire_op *const op = TD_NEW(m->a, wire_op);
    *op = (wire_op){.data = data, .bytes = 7 * sizeof(float), .rank = m->index};
    wire_collective(m->wire, 0, m->index, op);
    if (!expect(m, wire_wait(m->wire, op, &m->err) == TD_OK, "the collective ends")) return;
    (void)expect(m, memcmp(data, left[m->kind][m->index], 7 * sizeof *data) == 0, "its outcome");
    (void)expect(m, (int)data[7] == 10 * (int)m->index + 7, "nothing behind it is touched");
}

static void test_collectives(void **state)
{
    (void)state;
    static const wire_kind kinds[] = {WIRE_SUM_FLOAT, WIRE_SUM_PIECES_FLOAT, WIRE_SUM_ROOT_FLOAT,
                                      WIRE_GATHER_FLOAT, WIRE_BROADCAST};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) run(do_collective, kinds[i], MEMBERS);
}

/* In any other order than the members' these sums are 1: a one is lost beside 1e8. */
static void sum_in_order(member *m)
{
    float *const data = TD_NEW_N(m->a, float, 7);
    static const float start[MEMBERS] = {1e8f, 1.0f, -1e8f};
    for (int i = 0; i < 7; i++) data[i] = start[m->index];
    wire_op *const op = TD_NEW(m->a, wire_op);
    *op = (wire_op){.data = data, .bytes = 7 * sizeof(float), .rank = m->index};
    wire_collective(m->wire, 0, m->index, op);
    if (!expect(m, wire_wait(m->wire, op, &m->err) == TD_OK, "the sum ends")) return;
    for (int i = 0; i < 7; i++) (void)expect(m, (int)data[i] == 0, "it adds in member order");
}

static void test_member_order(void **state)
{
    (void)state;
    run(sum_in_order, WIRE_SUM_FLOAT, MEMBERS);
}

/* --- messages --- */

static void pass_messages(member *m)
{
    enum { N = 4 };
    char *data[N];
    wire_op *const op = TD_NEW_N(m->a, wire_op, N);
    for (int i = 0; i < N; i++) { /* the last one is more than a socket holds */
        const size_t bytes = i == N - 1 ? LARGE : 4;
        data[i] = td_alloc(m->a, 1, bytes);
        memset(data[i], m->index == 0 ? 'a' + i : 0, bytes);
        op[i] = (wire_op){.data = data[i], .bytes = (int64_t)bytes, .rank = m->index};
        if (m->index == 0) wire_send(m->wire, 0, &op[i]);
        if (m->index == 1) wire_recv(m->wire, 0, &op[i]);
    }
    for (int i = N - 1; m->index < 2 && i >= 0; i--) {
        if (!expect(m, wire_wait(m->wire, &op[i], &m->err) == TD_OK, "a message comes")) return;
        (void)expect(m, data[i][0] == 'a' + i && data[i][op[i].bytes - 1] == 'a' + i, "in order");
    }
}

static void mismatch(member *m)
{
    wire_op *const op = TD_NEW(m->a, wire_op);
    *op = (wire_op){.data = td_alloc(m->a, 1, 8), .bytes = m->index == 0 ? 4 : 8, .rank = m->index};
    if (m->index == 0) wire_send(m->wire, 0, op);
    if (m->index == 1) wire_recv(m->wire, 0, op);
    if (m->index != 1) return;
    (void)expect(m, wire_wait(m->wire, op, &m->err) == TD_EINTR, "sizes that differ end the run");
    const td_err why = wire_error(m->wire);
    (void)expect(m, strstr(why.msg, "4 bytes came from rank 0 where 8") != NULL, why.msg);
}

/* Nobody sends: the receiver's deadline. */
static void wait_in_vain(member *m)
{
    if (m->index != 1) return;
    wire_op *const op = TD_NEW(m->a, wire_op);
    *op = (wire_op){.data = td_alloc(m->a, 1, 8), .bytes = 8, .rank = 1};
    wire_recv(m->wire, 0, op);
    const td_status st = wire_wait(m->wire, op, &m->err);
    (void)expect(m, st == TD_EDEVICE && strstr(m->err.msg, "0.3 s") != NULL, "a deadline");
    wire_abort(m->wire, &m->err);
}

static void test_messages(void **state)
{
    (void)state;
    run(pass_messages, WIRE_SUM_FLOAT, MEMBERS);
    run(mismatch, WIRE_SUM_FLOAT, MEMBERS);
    run(wait_in_vain, WIRE_SUM_FLOAT, MEMBERS);
}

/* --- the end --- */

static void wait_for_reason(member *m, const char *reason)
{
    wire_op *const op = TD_NEW(m->a, wire_op);
    *op = (wire_op){.data = td_alloc(m->a, 1, 8), .bytes = 8, .rank = m->index};
    if (m->index == 1) wire_recv(m->wire, 0, op);
    if (m->index == 0) wire_recv(m->wire, 1, op);
    (void)expect(m, wire_wait(m->wire, op, &m->err) == TD_EINTR, "the wait ends");
    const td_err why = wire_error(m->wire);
    (void)expect(m, strstr(why.msg, reason) != NULL, why.msg);
}

static void give_up(member *m)
{
    if (m->index != 2) {
        wait_for_reason(m, "enough is enough");
        return;
    }
    (void)td_fail(&m->err, TD_EMISMATCH, "enough is enough");
    wire_abort(m->wire, &m->err);
}

static void leave(member *m)
{
    if (m->index != 2) wait_for_reason(m, "rank 2 (at 127.0.0.1) is gone");
}

static void test_ends(void **state)
{
    (void)state;
    run(give_up, WIRE_SUM_FLOAT, MEMBERS);
    run(leave, WIRE_SUM_FLOAT, 2);
}

/* --- talk --- */

static void talk(member *m)
{
    double x[2] = {1.5 * (m->index + 1), 0.25};
    uint64_t n[1] = {UINT64_MAX - m->index};
    td_err *const e = &m->err;
    (void)expect(m, team_fold(m->team, TEAM_SUM, x, 2, e) == TD_OK, "a sum");
    (void)expect(m, fabs(x[0] - 9.0) < 1e-12 && fabs(x[1] - 0.75) < 1e-12, "its value");
    (void)expect(m, team_fold(m->team, TEAM_ADD, n, 1, e) == TD_OK, "a sum that wraps");
    (void)expect(m, n[0] == 0 - (uint64_t)6, "its value");
    (void)expect(m, team_same(m->team, 42, "answer", e) == TD_OK, "the same number");
    (void)expect(m, team_agree(m->team, TD_OK, e) == TD_OK, "agreement");
    (void)expect(m, team_same(m->team, m->index == 2 ? 1 : 2, "answer", e) == TD_EUSAGE, "another");
    (void)expect(m, strstr(e->msg, "rank 2: answer: not the same as on rank 0") != NULL, e->msg);
    td_status st = TD_OK;
    if (m->index > 0) st = td_fail(e, TD_EIO, "no disk on %u", m->index);
    (void)expect(m, team_agree(m->team, st, e) == TD_EIO, "one error for all");
    (void)expect(m, strcmp(e->msg, "rank 1: no disk on 1") == 0, e->msg);
}

static void test_talk(void **state)
{
    (void)state;
    run(talk, WIRE_SUM_FLOAT, MEMBERS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives), cmocka_unit_test(test_member_order),
        cmocka_unit_test(test_messages),    cmocka_unit_test(test_ends),
        cmocka_unit_test(test_talk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
