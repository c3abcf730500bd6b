#include "schedule_gen.h"

#include "schedules/schedule_build.h"

#include <stdlib.h>

/* What of one (stage, microbatch, slice) has been emitted. */
typedef struct progress {
    bool f, back, w;
} progress;

typedef struct gen {
    schedule s;
    progress *done;
    bool *split; /* by stage: backward in two passes */
    td_rng rng;
} gen;

static progress *at(gen *g, int32_t stage, int32_t m, int32_t k)
{
    return &g->done[((size_t)stage * (size_t)g->s.n_microbatches + (size_t)m) *
                        (size_t)g->s.n_slices +
                    (size_t)k];
}

static bool can(gen *g, pass_kind kind, int32_t st, int32_t m, int32_t k)
{
    const progress *const p = at(g, st, m, k);
    switch (kind) {
    case PASS_F:
        return !p->f && (st == 0 || at(g, st - 1, m, k)->f) && (k == 0 || at(g, st, m, k - 1)->f);
    case PASS_B:
    case PASS_I:
        return p->f && !p->back && g->split[st] == (kind == PASS_I) &&
               (st + 1 == g->s.n_stages || at(g, st + 1, m, k)->back) &&
               (k + 1 == g->s.n_slices || at(g, st, m, k + 1)->back);
    case PASS_W: return g->split[st] && p->back && !p->w;
    default: return false;
    }
}

schedule gen_schedule(td_arena *a, uint64_t seed)
{
    gen g = {.rng = td_rng_seed(seed)};
    td_rng *const r = &g.rng;
    const int32_t rows = 1 + (int32_t)td_rng_below(r, 4);
    const int32_t stages = rows + (int32_t)td_rng_below(r, 5);
    const int32_t pipes = 1 + (int32_t)td_rng_below(r, rows > 1 ? 2 : 1);
    const int32_t m = 1 + (int32_t)td_rng_below(r, 5);
    const int32_t slices = 1 + (int32_t)td_rng_below(r, 3);
    if (sched_new(a, rows, stages, pipes, m, slices, &g.s, NULL) != TD_OK) abort();
    const size_t slots = (size_t)stages * (size_t)m * (size_t)slices;
    g.done = TD_NEW_N(a, progress, slots);
    g.split = TD_NEW_N(a, bool, stages);
    for (int32_t st = 0; st < stages; st++) {
        g.split[st] = td_rng_below(r, 2) == 0;
        const int32_t row = (int32_t)td_rng_below(r, rows);
        for (int32_t p = 0; p < pipes; p++) sched_place(&g.s, p, st, (row + p) % rows);
    }
    for (int32_t i = 0; i < m; i++) g.s.microbatch_pipe[i] = (int32_t)td_rng_below(r, pipes);
    if (slices > 1) {
        g.s.slice_tokens = TD_NEW_N(a, int32_t, (size_t)m * (size_t)slices);
        for (int32_t i = 0; i < m; i++) {
            int32_t left = 12; /* every microbatch has 12 tokens, cut anywhere */
            for (int32_t k = 0; k < slices; k++) {
                const int32_t most = left - (slices - 1 - k);
                const int32_t n = k + 1 == slices ? left : 1 + (int32_t)td_rng_below(r, most);
                g.s.slice_tokens[i * slices + k] = n;
                left -= n;
            }
        }
    }
    row_writer *const w = TD_NEW_N(a, row_writer, rows);
    for (int32_t i = 0; i < rows; i++) w[i] = row_writer_of(a, &g.s, i);
    static const pass_kind kinds[] = {PASS_F, PASS_B, PASS_I, PASS_W};
    for (;;) {
        /* take one of the passes that are possible now, each equally likely */
        int64_t seen = 0;
        sched_cell pick = {0};
        for (int32_t st = 0; st < stages; st++)
            for (int32_t i = 0; i < m; i++)
                for (int32_t k = 0; k < slices; k++)
                    for (size_t j = 0; j < 4; j++)
                        if (can(&g, kinds[j], st, i, k) && td_rng_below(r, ++seen) == 0)
                            pick = sched_cell_of(kinds[j], st, i, k);
        if (seen == 0) break;
        progress *const p = at(&g, pick.stage, pick.microbatch, pick.slice);
        p->f |= pick.kind == PASS_F;
        p->back |= pick.kind == PASS_B || pick.kind == PASS_I;
        p->w |= pick.kind == PASS_W;
        const int32_t pipe = g.s.microbatch_pipe[pick.microbatch];
        row_add_cell(&w[g.s.pipes[pipe].forward_row[pick.stage]], pick);
    }
    g.s.name = "random";
    return g.s;
}
