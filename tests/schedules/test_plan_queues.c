/* Queues: each is one stream of each of its ranks, messages and collectives stay inside one, and a
 * plan that gives a rank two streams in one queue is refused. */
#include "schedule_gen.h"
#include "schedules/plan.h"
#include "t.h"

static plan lower(td_arena *a, uint64_t seed, plan_mapping mapping)
{
    schedule *const s = TD_NEW(a, schedule);
    *s = gen_schedule(a, seed);
    const sizes z = {.n_stages = s->n_stages, .chunks = 1};
    const lower_options o = {
        .sizes = &z, .dp = 1 + (int32_t)(seed % 2), .tp = 1, .mapping = mapping, .after = "step"};
    plan p;
    td_err err = {0};
    T_OK(plan_lower(s, &o, a, &p, &err), &err);
    return p;
}

static uint32_t stream_of(const plan *p, uint32_t task)
{
    uint32_t s = 0;
    while (task - p->streams[s].first_task >= p->streams[s].n_tasks) s++;
    return s;
}

static void check_members(const plan *p, const plan_queues *q)
{
    for (uint32_t i = 0; i < q->n_queues; i++) {
        const plan_queue *const it = &q->queues[i];
        for (uint32_t k = 0; k < it->n_members; k++) {
            const uint32_t rank = q->members[it->first_member + k];
            uint32_t streams = 0;
            for (uint32_t s = 0; s < p->n_streams; s++)
                streams += p->streams[s].rank == rank && q->of_stream[s] == i;
            assert_int_equal(streams, 1);
        }
    }
    for (uint32_t s = 0; s < p->n_streams; s++) {
        const bool has = p->streams[s].kind != STREAM_COMPUTE && p->streams[s].n_tasks > 0;
        assert_int_equal(q->of_stream[s] != PLAN_NONE, has);
    }
}

static void check_meetings(const plan *p, const plan_queues *q)
{
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (p->tasks[t].kind == TASK_SEND)
            assert_int_equal(q->of_stream[stream_of(p, t)],
                             q->of_stream[stream_of(p, p->tasks[t].link)]);
    for (uint32_t c = 0; c < p->n_colls; c++) {
        const plan_group *const g = &p->groups[p->colls[c].group];
        const uint32_t *const tasks = &p->coll_tasks[p->colls[c].first_task];
        const plan_queue *const it = &q->queues[q->of_stream[stream_of(p, tasks[0])]];
        assert_true(it->collective);
        assert_int_equal(it->n_members, g->n_members);
        for (uint32_t i = 0; i < g->n_members; i++) {
            assert_int_equal(q->members[it->first_member + i],
                             p->group_members[g->first_member + i]);
            assert_ptr_equal(it, &q->queues[q->of_stream[stream_of(p, tasks[i])]]);
        }
    }
}

static void test_queues_of_random_plans(void **state)
{
    (void)state;
    uint32_t most[3] = {0};
    for (uint64_t seed = 0; seed < 240; seed++) {
        td_arena *const a = td_arena_new();
        const plan_mapping mapping = (plan_mapping)(seed % 3);
        const plan p = lower(a, seed / 3, mapping);
        plan_queues q;
        td_err err = {0};
        T_OK(plan_find_queues(&p, a, &q, &err), &err);
        check_members(&p, &q);
        check_meetings(&p, &q);
        uint32_t messages = 0;
        for (uint32_t i = 0; i < q.n_queues; i++) {
            messages += !q.queues[i].collective;
            if (mapping == MAPPING_CHANNEL && !q.queues[i].collective)
                assert_int_equal(q.queues[i].n_members, 2);
        }
        if (mapping == MAPPING_CHANNEL) assert_int_equal(messages, p.n_channels);
        if (messages > most[mapping]) most[mapping] = messages;
        td_arena_free(a);
    }
    assert_true(most[MAPPING_CHANNEL] > most[MAPPING_DIRECTION]);
    assert_true(most[MAPPING_DIRECTION] > most[MAPPING_SINGLE]);
}

/* Cuts a stream of messages in two, behind its first task. */
static void cut(plan *p, td_arena *a, uint32_t s)
{
    plan_stream *const streams = TD_NEW_N(a, plan_stream, p->n_streams + 1);
    memcpy(streams, p->streams, (s + 1) * sizeof *streams);
    memcpy(streams + s + 1, p->streams + s, (p->n_streams - s) * sizeof *streams);
    streams[s].n_tasks = 1;
    streams[s + 1].first_task++;
    streams[s + 1].n_tasks--;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        if (p->ranks[r].first_stream > s) p->ranks[r].first_stream++;
        if (r == p->streams[s].rank) p->ranks[r].n_streams++;
    }
    p->streams = streams;
    p->n_streams++;
}

static void test_two_streams_in_one_queue_are_refused(void **state)
{
    (void)state;
    int n = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        td_arena *const a = td_arena_new();
        plan p = lower(a, seed, MAPPING_SINGLE);
        uint32_t s = 0;
        while (s < p.n_streams && (p.streams[s].kind != STREAM_BOTH || p.streams[s].n_tasks < 2))
            s++;
        if (s < p.n_streams) {
            cut(&p, a, s);
            plan_queues q;
            td_err err = {0};
            /* where both halves still meet the same streams they are one queue */
            if (plan_find_queues(&p, a, &q, &err) != TD_OK) {
                assert_int_equal(err.code, TD_EPLAN);
                assert_non_null(strstr(err.msg, "its rank has two streams in one queue"));
                assert_int_equal(plan_check(&p, a, &err), TD_EPLAN);
                n++;
            }
        }
        td_arena_free(a);
    }
    assert_true(n > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queues_of_random_plans),
        cmocka_unit_test(test_two_streams_in_one_queue_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
