/* How fast schedules become plans: generation, lowering with its checks, tasks a second, from 10^3
 * to 10^max tasks (first argument, default 6). */
#include "schedules/plan.h"

#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 16, TASKS_PER_MICROBATCH = 6 };

static td_status round_of(int64_t n_tasks, td_err *err)
{
    td_arena *const a = td_arena_new(), *const b = td_arena_new();
    if (a == NULL || b == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    const int64_t m = n_tasks / (RANKS * TASKS_PER_MICROBATCH) + 1;
    const sched_request q = {.pp = RANKS, .microbatches = (int32_t)m, .chunks = 1};
    const sizes unit = {.n_stages = RANKS, .chunks = 1};
    const lower_options o = {.sizes = &unit, .dp = 1, .tp = 1, .lookahead = 1, .no_step = true};
    schedule s = {0};
    plan p = {0};
    const int64_t t0 = td_now_ns();
    td_status st = sched_generate("1f1b", &q, a, &s, err);
    const int64_t t1 = td_now_ns();
    if (st == TD_OK) st = plan_lower(&s, &o, a, &p, err);
    const int64_t t2 = td_now_ns();
    if (st == TD_OK) st = plan_check(&p, b, err);
    const int64_t t3 = td_now_ns();
    if (st == TD_OK)
        printf("%9u tasks  generate %7.2f  lower and check %7.2f  check alone %7.2f M tasks/s  "
               "%5.1f bytes a task\n",
               p.n_tasks, (double)p.n_tasks * 1e3 / (double)(t1 - t0),
               (double)p.n_tasks * 1e3 / (double)(t2 - t1),
               (double)p.n_tasks * 1e3 / (double)(t3 - t2), (double)td_arena_used(a) / p.n_tasks);
    td_arena_free(a);
    td_arena_free(b);
    return st;
}

int main(int argc, char **argv)
{
    const int digits = argc > 1 ? atoi(argv[1]) : 6;
    td_err err = {0};
    int64_t n = 1000;
    for (int d = 3; d <= digits; d++, n *= 10)
        if (round_of(n, &err) != TD_OK) {
            fprintf(stderr, "bench_lower: %s\n", err.msg);
            return td_exit_code(err.code);
        }
    return 0;
}
