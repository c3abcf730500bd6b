/* Ranks that share the cores of their node: laws of the whole engine on random plans. Does not pin
 * how a profile gives the slowdowns. */
#include "sim_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { ROUNDS = 150, RANKS_MAX = 256 };

static int64_t run(const plan *p, const int64_t *ns, int protocol, const double *slow, td_arena *a,
                   task_times *t, int64_t *work)
{
    const cluster_desc c = {.n_nodes = 1,
                            .devices_per_node = RANKS_MAX,
                            .intra = {.latency_ns = 7, .bytes_per_s = 1e9}};
    const cost_model pairs = {.cluster = &c, .chunks = 1};
    const sim_options o = {.protocol = (sim_protocol)protocol,
                           .cost = &pairs,
                           .slowdown = slow,
                           .n_slowdown = slow != NULL ? RANKS_MAX : 0};
    sim_stats stats = {0};
    td_err err = {0};
    if (sim_run(p, ns, &o, a, t, &stats, &err) != TD_OK) fail_msg("%s", err.msg);
    *work = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const plan_stream *const s = plan_compute(p, r);
        for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++)
            *work += ns[p->tasks[i].cls];
    }
    return stats.end_ns;
}

/* With a core for each rank nothing changes, to the nanosecond. With one core for all of them no
 * two nanoseconds of work are done in one, and no task is quicker than alone. */
static void sharing_laws(void **state)
{
    (void)state;
    double none[RANKS_MAX + 1], one[RANKS_MAX + 1];
    for (int k = 0; k <= RANKS_MAX; k++) {
        none[k] = 1;
        one[k] = k > 1 ? k : 1;
    }
    td_rng rng = td_rng_seed(9);
    bool slower = false;
    for (int i = 0; i < ROUNDS; i++) {
        td_arena *const a = td_arena_new();
        char what[160];
        plan p;
        random_plan(&rng, a, &p, what, sizeof what);
        const int64_t *const ns = random_times(&rng, &p, a);
        task_times alone = {0}, same = {0}, shared = {0};
        int64_t work = 0;
        const int64_t before = run(&p, ns, i % 2, NULL, a, &alone, &work);
        if (run(&p, ns, i % 2, none, a, &same, &work) != before) fail_msg("%s", what);
        for (uint32_t t = 0; t < p.n_tasks; t++)
            if (alone.begin_ns[t] != same.begin_ns[t] || alone.end_ns[t] != same.end_ns[t])
                fail_msg("%s: task %u: %lld..%lld, alone %lld..%lld", what, t,
                         (long long)same.begin_ns[t], (long long)same.end_ns[t],
                         (long long)alone.begin_ns[t], (long long)alone.end_ns[t]);
        const int64_t after = run(&p, ns, i % 2, one, a, &shared, &work);
        if (after < work) fail_msg("%s: %lld of %lld", what, (long long)after, (long long)work);
        for (uint32_t r = 0; r < p.n_ranks; r++) {
            const plan_stream *const s = plan_compute(&p, r);
            for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
                assert_true(shared.end_ns[t] - shared.begin_ns[t] >= ns[p.tasks[t].cls]);
        }
        slower = slower || after > before;
        td_arena_free(a);
    }
    assert_true(slower);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sharing_laws)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
