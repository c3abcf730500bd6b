/* How fast the engine is: tasks a second and bytes a task, from 10^3 to 10^max tasks (first
 * argument, default 6), for 1F1B, for messages that share links, and for many collectives. */
#include "schedules/plan.h"
#include "sim/sim.h"

#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 16, TASKS_PER_MICROBATCH = 6 };

static const cluster_desc narrow = {.name = "bench",
                                    .n_nodes = 2,
                                    .devices_per_node = 8,
                                    .matrix_flops_per_s = 1e15,
                                    .vector_flops_per_s = 1e14,
                                    .memory_bytes_per_s = 1e12,
                                    .memory_bytes = (int64_t)80e9,
                                    .matrix_efficiency = {.n = 1, .size = {1}, .frac = {0.5}},
                                    .memory_efficiency = {.n = 1, .size = {1}, .frac = {0.8}},
                                    .launch_ns = 1000,
                                    .intra = {.latency_ns = 2000, .bytes_per_s = 5e9},
                                    .inter = {.latency_ns = 5000, .bytes_per_s = 2e9},
                                    .node_network_bytes_per_s = 3e9,
                                    .all_reduce_frac = 0.8};

static td_status lower_1f1b(int64_t n_tasks, const sizes *z, td_arena *a, plan *p, td_err *err)
{
    const int64_t m = n_tasks / (RANKS * TASKS_PER_MICROBATCH) + 1;
    const sched_request q = {.pp = RANKS, .microbatches = (int32_t)m, .chunks = 1};
    const lower_options o = {
        .sizes = z, .dp = 1, .tp = 1, .lookahead = 1, .send_window = 4, .no_step = true};
    schedule s = {0};
    TD_TRY(sched_generate("1f1b", &q, a, &s, err));
    return plan_lower(&s, &o, a, p, err);
}

/* Every rank computes, then all meet, and so on: the extreme of tensor-parallel segments. */
static td_status make_meetings(int64_t n_tasks, td_arena *a, plan *p, td_err *err)
{
    const uint32_t rounds = (uint32_t)(n_tasks / (2 * RANKS)) + 1;
    *p = (plan){.n_ranks = RANKS,
                .n_streams = 2 * RANKS,
                .n_tasks = 2 * RANKS * rounds,
                .n_classes = 2,
                .n_groups = 1,
                .n_colls = rounds,
                .n_coll_tasks = RANKS * rounds,
                .dp = 1,
                .tp = 1};
    p->ranks = TD_NEW_N(a, plan_rank, RANKS);
    p->streams = TD_NEW_N(a, plan_stream, 2 * RANKS);
    p->tasks = TD_NEW_N(a, plan_task, p->n_tasks + 1);
    p->classes = TD_NEW_N(a, plan_class, 2);
    p->groups = TD_NEW_N(a, plan_group, 1);
    p->colls = TD_NEW_N(a, plan_coll, rounds);
    p->coll_tasks = TD_NEW_N(a, uint32_t, p->n_coll_tasks);
    if (p->ranks == NULL || p->streams == NULL || p->tasks == NULL || p->classes == NULL ||
        p->groups == NULL || p->colls == NULL || p->coll_tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory");
    p->groups[0] = (plan_group){.n_members = RANKS, .true_size = RANKS};
    for (uint32_t r = 0; r < RANKS; r++) {
        const uint32_t compute = 2 * r * rounds, meet = compute + rounds;
        p->ranks[r] = (plan_rank){.row = (int32_t)r,
                                  .tp = 1,
                                  .device = (int32_t)r,
                                  .first_stream = 2 * r,
                                  .n_streams = 2};
        p->streams[2 * r] = (plan_stream){.rank = r, .first_task = compute, .n_tasks = rounds};
        p->streams[2 * r + 1] =
            (plan_stream){.kind = STREAM_COLL, .rank = r, .first_task = meet, .n_tasks = rounds};
        for (uint32_t i = 0; i < rounds; i++) {
            p->tasks[compute + i] =
                (plan_task){.link = PLAN_NONE, .gate = PLAN_NONE, .join = PLAN_NONE};
            p->tasks[meet + i] = (plan_task){.kind = TASK_COLL,
                                             .cls = 1,
                                             .link = i,
                                             .gate = compute + i,
                                             .join = i + 1 < rounds ? compute + i + 1 : PLAN_NONE};
            p->coll_tasks[i * RANKS + r] = meet + i;
            p->colls[i] = (plan_coll){.first_task = i * RANKS};
        }
    }
    return TD_OK;
}

static td_status measure(const char *name, const plan *p, const sim_options *o, td_arena *a,
                         td_err *err)
{
    int64_t *const ns = TD_NEW_N(a, int64_t, p->n_classes);
    if (ns == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < p->n_classes; i++)
        ns[i] = p->classes[i].kind == PASS_B   ? 200000
                : p->classes[i].kind == PASS_F ? 100000
                                               : 1000;
    int64_t best = INT64_MAX;
    sim_stats stats = {0};
    task_times times = {0};
    for (int i = 0; i < 5; i++) {
        const int64_t begin = td_now_ns();
        TD_TRY(sim_run(p, ns, o, a, &times, &stats, err));
        const int64_t took = td_now_ns() - begin;
        if (took < best) best = took;
    }
    printf("%-22s %9u tasks  %7.2f M tasks/s  %5.1f bytes a task beyond plan and times", name,
           p->n_tasks, (double)p->n_tasks * 1e3 / (double)best,
           (double)stats.scratch_bytes / p->n_tasks);
    if (stats.flows > 0)
        printf("  %llu flows, %llu shared", (unsigned long long)stats.flows,
               (unsigned long long)stats.shared_flows);
    printf("\n");
    return TD_OK;
}

static td_status round_of(int64_t n_tasks, const sizes *unit, const sizes *model, td_err *err)
{
    const sim_options eager = {.protocol = PROTOCOL_EAGER};
    const sim_options meet = {.protocol = PROTOCOL_RENDEZVOUS};
    const cost_model cost = {.sizes = model, .cluster = &narrow, .chunks = 1};
    const sim_options contended = {.protocol = PROTOCOL_RENDEZVOUS, .cost = &cost};
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    plan p;
    td_status st = lower_1f1b(n_tasks, unit, a, &p, err);
    if (st == TD_OK) st = measure("1f1b eager", &p, &eager, a, err);
    if (st == TD_OK) st = measure("1f1b rendezvous", &p, &meet, a, err);
    if (st == TD_OK) st = lower_1f1b(n_tasks, model, a, &p, err);
    if (st == TD_OK) st = measure("1f1b on shared links", &p, &contended, a, err);
    td_arena_free(a);
    td_arena *const b = td_arena_new();
    if (b == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    if (st == TD_OK) st = make_meetings(n_tasks, b, &p, err);
    if (st == TD_OK) st = measure("collectives", &p, &eager, b, err);
    td_arena_free(b);
    return st;
}

int main(int argc, char **argv)
{
    const int digits = argc > 1 ? atoi(argv[1]) : 6;
    td_err err = {0};
    model_desc m;
    stage_desc stages[RANKS];
    if (model_load("gpt3-175b", &m, &err) != TD_OK) goto failed;
    const layer_request q = {.n_stages = RANKS, .pp = RANKS};
    if (layers_assign(&m, &q, stages, &err) != TD_OK) goto failed;
    const sizes unit = {.n_stages = RANKS, .chunks = 1};
    const sizes model = {
        .model = &m,
        .stages = stages,
        .n_stages = RANKS,
        .chunks = 1,
        .run = {.micro_batch = 1, .seq_len = 512, .tp = 1, .dp = 1, .dtype = TYPE_BF16}};
    int64_t n = 1000;
    for (int d = 3; d <= digits; d++, n *= 10)
        if (round_of(n, &unit, &model, &err) != TD_OK) goto failed;
    return 0;
failed:
    fprintf(stderr, "bench_sim: %s\n", err.msg);
    return td_exit_code(err.code);
}
