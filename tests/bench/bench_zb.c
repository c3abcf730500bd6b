/* How fast orders of the zero-bubble family are made, against the reference schedulers' times on a
 * machine like this one (specification, section 13). Best of several runs; a run makes the whole
 * schedule and checks it. */
#include "schedules/schedule.h"

#include <stdio.h>
#include <string.h>

enum { RUNS = 7, SIZES = 3 };

typedef struct measured {
    const char *title, *family, *option, *value;
    double limit_of_p;
    double reference_s[SIZES];
} measured;

static const measured rows[] = {
    {"ZB-1p heuristic", "zb-auto", "search", "heuristic", 1, {0.017, 0.054, 0.25}},
    {"ZB-2p heuristic", "zb-auto", "search", "heuristic", 2, {0.018, 0.069, 0.25}},
    {"ZB-2p, our search", "zb-auto", "search", "local", 2, {0, 0, 0}},
    {"ZB-V", "zb-v", "form", "auto", 0, {0.021, 0.092, 0.46}},
    {"ZB-V by hand", "zb-v", "form", "hand", 0, {0.002, 0.010, 0.04}},
    {"V-Half", "v-half", NULL, NULL, 0, {0.16, 1.3, 12.6}},
    {"V-Min", "v-min", NULL, NULL, 0, {0.10, 0.81, 7.3}},
    {"1F1B-V", "1f1b-v", NULL, NULL, 0, {0.005, 0.034, 0.17}},
};

static td_status measure(const measured *x, int size, td_err *err)
{
    const int32_t p = 8 << size, m = 4 * p;
    const sched_option_value option = {x->option, x->value};
    sched_request q = {.pp = p,
                       .microbatches = m,
                       .options = &option,
                       .n_options = x->option != NULL,
                       .activation_limit = x->limit_of_p * p};
    q.times.pass_ns[PASS_F] = 10400000;
    q.times.pass_ns[PASS_I] = 10200000;
    q.times.pass_ns[PASS_W] = 7700000;
    q.times.comm_ns = 400000;
    int64_t best = INT64_MAX;
    for (int i = 0; i < RUNS; i++) {
        td_arena *const a = td_arena_new();
        if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
        schedule s;
        const int64_t begin = td_now_ns();
        const td_status st = sched_generate(x->family, &q, a, &s, err);
        const int64_t ns = td_now_ns() - begin;
        td_arena_free(a);
        if (st != TD_OK) return st;
        if (ns < best) best = ns;
    }
    const double s = (double)best / 1e9;
    printf("%-18s p=%-3d m=%-4d %9.3f ms", x->title, p, m, s * 1e3);
    if (x->reference_s[size] > 0)
        printf("   reference %7.0f ms   %6.0f times faster", x->reference_s[size] * 1e3,
               x->reference_s[size] / s);
    printf("\n");
    return TD_OK;
}

int main(void)
{
    td_err err = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int size = 0; size < SIZES; size++)
            if (measure(&rows[i], size, &err) != TD_OK) {
                fprintf(stderr, "bench_zb: %s\n", err.msg);
                return td_exit_code(err.code);
            }
    return 0;
}
