/* Laws of trace_build over lowered plans: each task once with its times, messages paired as the
 * plan links them, and a memory curve that equals a count of the live buffers. */
#include "t.h"
#include "viz_sample.h"

/* Times without meaning, but in the order of each stream. */
static task_times times_of(td_arena *a, const plan *p, uint64_t seed)
{
    td_rng g = td_rng_seed(seed);
    task_times t = {TD_NEW_N(a, int64_t, p->n_tasks), TD_NEW_N(a, int64_t, p->n_tasks)};
    assert_true(t.begin_ns != NULL && t.end_ns != NULL);
    for (uint32_t s = 0; s < p->n_streams; s++) {
        int64_t now = 0;
        for (uint32_t i = 0; i < p->streams[s].n_tasks; i++) {
            const uint32_t task = p->streams[s].first_task + i;
            t.begin_ns[task] = now += td_rng_below(&g, 3);
            t.end_ns[task] = now += td_rng_below(&g, 50);
        }
    }
    return t;
}

static int64_t live_bytes(const plan *p, uint32_t rank, uint32_t position)
{
    const plan_rank *const r = &p->ranks[rank];
    int64_t sum = 0;
    for (uint32_t i = 0; i < r->n_buffers; i++) {
        const plan_buffer *const b = &p->buffers[r->first_buffer + i];
        if (b->birth <= position && position <= b->death) sum += p->bclasses[b->bclass].bytes;
    }
    return sum;
}

static void check_memory(const plan *p, const task_times *times, const trace *t)
{
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const plan_stream *const c = plan_compute(p, r);
        for (uint32_t i = 0; i < c->n_tasks; i++) {
            const uint32_t task = c->first_task + i;
            const int64_t at = times->begin_ns[task];
            if (times->end_ns[task] == at) continue;
            int64_t bytes = 0;
            for (uint64_t k = 0; k < t->n_memory; k++)
                if (t->memory[k].rank == r && t->memory[k].at_ns <= at) bytes = t->memory[k].bytes;
            assert_int_equal(bytes, live_bytes(p, r, i));
            assert_true(bytes <= t->peak_bytes[r]);
        }
    }
}

static void check_records(td_arena *a, const plan *p, const task_times *times, const trace *t)
{
    td_err err = {0};
    uint32_t *partner = NULL;
    bool *const seen = TD_NEW_N(a, bool, p->n_tasks);
    T_OK(trace_match_messages(t, a, &partner, &err), &err);
    assert_int_equal(t->n_records, p->n_tasks);
    for (uint32_t i = 0; i < t->n_records; i++) {
        const trace_record *const r = &t->records[i];
        const plan_task *const k = &p->tasks[r->task];
        assert_false(seen[r->task]);
        seen[r->task] = true;
        assert_int_equal(r->begin_ns, times->begin_ns[r->task]);
        assert_int_equal(r->end_ns, times->end_ns[r->task]);
        assert_int_equal(t->streams[r->stream].rank, plan_task_rank(p, r->task));
        assert_int_equal(r->kind, k->kind);
        if (k->kind == TASK_SEND || k->kind == TASK_RECV)
            assert_int_equal(t->records[partner[i]].task, k->link);
        else
            assert_int_equal(partner[i], UINT32_MAX);
    }
}

static void plans_become_traces(void **state)
{
    static const char *const names[] = {"gpipe", "1f1b", "interleaved-1f1b"};
    td_err err = {0};
    for (int seed = 0; seed < 18; seed++) {
        const bool chunked = seed % 3 == 2;
        sched_request q = {.pp = 2 + seed % 3, .chunks = chunked ? 2 : 1};
        q.microbatches = q.pp * 2;
        schedule s = {0};
        T_OK(sched_generate(names[seed % 3], &q, *state, &s, &err), &err);
        const sizes z = {.n_stages = q.pp * q.chunks, .chunks = q.chunks};
        const lower_options o = {
            .sizes = &z, .dp = 1 + seed % 2, .tp = 1, .mapping = (plan_mapping)(seed / 6)};
        plan p;
        trace t;
        T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
        const task_times times = times_of(*state, &p, (uint64_t)seed);
        const trace_meta meta = {"times", "F=1"};
        T_OK(trace_build(&p, &times, true, &meta, 1, *state, &t, &err), &err);
        check_records(*state, &p, &times, &t);
        check_memory(&p, &times, &t);
        assert_string_equal(trace_meta_get(&t, "times"), "F=1");
        assert_null(trace_meta_get(&t, "nothing"));
    }
}

/* Every allocation that fails is an error, not a crash. */
static void exhaustion_is_an_error(void **state)
{
    td_err err = {0};
    trace t, back;
    viz_sample(2, 2, 0, *state, &t);
    T_OK(trace_write(&t, "test_oom.json", &err), &err);
    td_status st = TD_ENOMEM;
    for (long n = 1; st != TD_OK; n++) {
        td_arena *const a = td_arena_new();
        td_arena_fail_at(a, n);
        st = trace_read("test_oom.json", a, &back, &err);
        assert_true(st == TD_OK || st == TD_ENOMEM);
        assert_true(n < 100);
        td_arena_free(a);
    }
    assert_int_equal(remove("test_oom.json"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(plans_become_traces),
        T_TEST(exhaustion_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
