/* How many streams may wait at once: against a count position by position, and the limit. */
#include "schedule_gen.h"
#include "schedules/plan.h"
#include "t.h"

/* Counted position by position and stream by stream. */
static uint32_t waiting_slowly(const plan *p, uint32_t rank)
{
    const plan_stream *const compute = plan_compute(p, rank);
    uint32_t most = 0;
    for (uint32_t at = 0; at <= compute->n_tasks; at++) {
        uint32_t n = 0;
        for (uint32_t s = 1; s < p->ranks[rank].n_streams; s++) {
            const plan_stream *const st = &p->streams[p->ranks[rank].first_stream + s];
            bool waits = false;
            uint32_t after = 0; /* a task is behind those before it on its stream */
            for (uint32_t i = st->first_task; i < st->first_task + st->n_tasks; i++) {
                const plan_task *const t = &p->tasks[i];
                const uint32_t gate = t->gate == PLAN_NONE ? 0 : t->gate - compute->first_task + 1;
                const uint32_t join =
                    t->join == PLAN_NONE ? compute->n_tasks : t->join - compute->first_task;
                waits |= at >= (gate > after ? gate : after) && at <= join;
                if (join + 1 > after) after = join + 1;
            }
            n += waits;
        }
        most = n > most ? n : most;
    }
    return most;
}

static void test_waiting_streams_are_counted(void **state)
{
    (void)state;
    uint32_t most = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        td_arena *const a = td_arena_new();
        const schedule s = gen_schedule(a, seed);
        const sizes z = {.n_stages = s.n_stages, .chunks = 1};
        const lower_options o = {.sizes = &z,
                                 .dp = 1 + (int32_t)(seed % 2),
                                 .tp = 1,
                                 .mapping = (plan_mapping)(seed % 3),
                                 .lookahead = (int32_t)(seed / 3 % 5)};
        plan p;
        td_err err = {0};
        T_OK(plan_lower(&s, &o, a, &p, &err), &err);
        for (uint32_t r = 0; r < p.n_ranks; r++) {
            const size_t n = plan_compute(&p, r)->n_tasks;
            uint32_t at = 0;
            const uint32_t got = plan_streams_waiting(&p, r, TD_NEW_N(a, int32_t, n + 2), &at);
            const uint32_t want = waiting_slowly(&p, r);
            if (got != want) fail_msg("seed %d rank %u: %u, want %u", (int)seed, r, got, want);
            most = got > most ? got : most;
        }
        td_arena_free(a);
    }
    assert_true(most > 3);
}

/* A star: row 0 holds every other stage, so it talks to all other rows. When it looks far ahead it
 * posts all its receives at once. */
static void test_too_many_waiting_streams(void **state)
{
    (void)state;
    enum { POINTS = 70, STAGES = 2 * POINTS + 1 };
    td_arena *const a = td_arena_new();
    td_text t = {0};
    for (int i = 0; i < STAGES; i += 2) td_text_addf(&t, "%dF0,", i);
    for (int i = STAGES - 1; i >= 0; i -= 2) td_text_addf(&t, i > 0 ? "%dB0," : "%dB0", i);
    for (int i = 1; i < STAGES; i += 2) td_text_addf(&t, "\n%dF0,%dB0", i, i);
    schedule s;
    td_err err = {0};
    T_OK(sched_parse(t.s, t.len, "star", a, &s, &err), &err);
    const sizes z = {.n_stages = STAGES, .chunks = 1};
    lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    plan p;
    T_OK(plan_lower(&s, &o, a, &p, &err), &err);
    o.lookahead = 500;
    assert_int_equal(plan_lower(&s, &o, a, &p, &err), TD_EPLAN);
    assert_non_null(strstr(err.msg, "rank 0: "));
    assert_non_null(strstr(err.msg, "streams may wait at once"));
    td_text_free(&t);
    td_arena_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(test_waiting_streams_are_counted),
        T_TEST(test_too_many_waiting_streams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
