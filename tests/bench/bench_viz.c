/* How long a figure of 32 ranks and 512 microbatches takes, from trace to file (target: 0.3 s). */
#include "viz/viz.h"
#include "viz_sample.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RANKS = 32, MICROBATCHES = 512, REPEATS = 5 };

static double best_of(const trace *t, const viz_options *o, const char *path, td_err *err)
{
    double best = 1e30;
    for (int i = 0; i < REPEATS; i++) {
        const int64_t start = td_now_ns();
        if (viz_draw(t, 1, o, path, err) != TD_OK) return -1.0;
        const double seconds = (double)(td_now_ns() - start) / 1e9;
        if (seconds < best) best = seconds;
    }
    (void)unlink(path);
    return best;
}

int main(void)
{
    static const char *const files[] = {"bench_viz.svg", "bench_viz.pdf", "bench_viz.png"};
    td_arena *const a = td_arena_new();
    if (a == NULL) return 3;
    trace t;
    td_err err = {0};
    viz_sample(RANKS, MICROBATCHES, 0, a, &t);
    viz_options plain = viz_default_options(), full = plain;
    full.width_in = 7.0;
    full.comm = full.memory = true;
    printf("figure of %d ranks x %d microbatches, %llu records, best of %d, target 0.3 s\n", RANKS,
           MICROBATCHES, (unsigned long long)t.n_records, REPEATS);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const double column = best_of(&t, &plain, files[i], &err);
        const double page = column < 0.0 ? -1.0 : best_of(&t, &full, files[i], &err);
        if (page < 0.0)
            printf("  %s  %s\n", strrchr(files[i], '.') + 1, err.msg);
        else
            printf("  %s  column %.3f s   page with messages and memory %.3f s\n",
                   strrchr(files[i], '.') + 1, column, page);
    }
    const int64_t start = td_now_ns();
    trace back;
    td_status st = trace_write(&t, "bench_viz.json", &err);
    const int64_t written = td_now_ns();
    if (st == TD_OK) st = trace_read("bench_viz.json", a, &back, &err);
    const int64_t read = td_now_ns();
    if (st == TD_OK)
        printf("  trace file: written in %.3f s, read in %.3f s\n", (double)(written - start) / 1e9,
               (double)(read - written) / 1e9);
    else
        printf("  trace file: %s\n", err.msg);
    (void)unlink("bench_viz.json");
    td_arena_free(a);
    return st == TD_OK ? 0 : 3;
}
