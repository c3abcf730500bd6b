/* DualPipe and DualPipeV (DeepSeek-AI, github.com/deepseek-ai/DualPipe; DeepSeek-V3 report, section
 * 3.2.1): eight phases a rank, with forwards of one direction overlapped with backwards of the
 * other. DualPipeV folds the upper half of DualPipe's ranks onto the lower: one pipe down and back.
 *
 * A row sees two directions. 0 is the one that enters nearer to it: the pipe that starts at its
 * side (DualPipe), the first half of the model (DualPipeV). */
#include "schedules/families.h"
#include "schedules/schedule_build.h"

typedef struct dual_row {
    row_writer w;
    int32_t stage[2], first[2];  /* of each direction: its stage here, its first microbatch */
    int32_t forward[2], back[2]; /* passes so far */
    bool overlap;
    sched_cell *waiting; /* weight gradients that are put off, oldest first */
    int32_t n_waiting, n_done;
} dual_row;

static sched_cell take(dual_row *d, pass_kind kind, int dir)
{
    int32_t *const count = kind == PASS_F ? &d->forward[dir] : &d->back[dir];
    return sched_cell_of(kind, d->stage[dir], d->first[dir] + (*count)++, 0);
}

static void forward(dual_row *d, int dir) { row_add_cell(&d->w, take(d, PASS_F, dir)); }

static void whole_backward(dual_row *d, int dir) { row_add_cell(&d->w, take(d, PASS_B, dir)); }

static void input_gradient(dual_row *d, int dir)
{
    const sched_cell c = take(d, PASS_I, dir);
    row_add_cell(&d->w, c);
    d->waiting[d->n_waiting++] = sched_cell_of(PASS_W, c.stage, c.microbatch, 0);
}

static void weight_gradient(dual_row *d) { row_add_cell(&d->w, d->waiting[d->n_done++]); }

static void pair(dual_row *d, int forward_dir)
{
    const sched_cell f = take(d, PASS_F, forward_dir), b = take(d, PASS_B, !forward_dir);
    if (d->overlap) {
        row_add_pair(&d->w, f, b);
    } else {
        row_add_cell(&d->w, f);
        row_add_cell(&d->w, b);
    }
}

/* The eight phases. half: rows until the turn (ranks/2, or all of DualPipeV's); n: microbatches of
 * a direction; q: how far the row is from where direction 0 enters. Requires 2 half <= n. */
static void phases(dual_row *d, int32_t half, int32_t n, int32_t q)
{
    const int32_t inner = half - q - 1;
    const bool at_turn = inner == 0;
    for (int32_t i = 0; i < 2 * inner; i++) forward(d, 0);
    for (int32_t i = 0; i <= q; i++) {
        forward(d, 0);
        forward(d, 1);
    }
    for (int32_t i = 0; i < inner; i++) {
        input_gradient(d, 1);
        weight_gradient(d);
        forward(d, 1);
    }
    for (int32_t i = 0; i < n - 2 * half + q + 1; i++) {
        if (at_turn && i == 0) {
            forward(d, 0);
            whole_backward(d, 1);
        } else {
            pair(d, 0);
        }
        pair(d, 1);
    }
    for (int32_t i = 0; i < inner; i++) {
        whole_backward(d, 1);
        pair(d, 1);
    }
    for (int32_t i = 0; i < 2 * (q + 1); i++) {
        const int dir = i % 2 == 0;
        if (i <= q)
            whole_backward(d, dir);
        else
            input_gradient(d, dir);
    }
    for (int32_t i = 0; i < inner; i++) {
        weight_gradient(d);
        input_gradient(d, 0);
    }
    for (int32_t i = 0; i <= q; i++) weight_gradient(d);
}

static td_status add_row(td_arena *a, schedule *s, dual_row d, int32_t row, int32_t half, int32_t n,
                         int32_t q, td_err *err)
{
    d.waiting = TD_NEW_N(a, sched_cell, 2 * half);
    if (d.waiting == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a schedule");
    d.w = row_writer_of(a, s, row);
    phases(&d, half, n, q);
    return d.w.failed ? td_fail(err, TD_ENOMEM, "out of memory for a schedule") : TD_OK;
}

/* What the two share: chunks, enough microbatches. */
static td_status check(const sched_request *q, const char *name, int32_t chunks, td_err *err)
{
    if (q->chunks != 0 && q->chunks != chunks)
        return td_fail(err, TD_EUSAGE, "--chunks %d: %s has %d a rank and pipe; legal: %d",
                       q->chunks, name, chunks, chunks);
    if (q->microbatches < 2 * q->pp)
        return td_fail(err, TD_EUSAGE,
                       "--microbatches %d with --pp %d: %s needs at least 2P; legal: %d or more",
                       q->microbatches, q->pp, name, 2 * q->pp);
    return TD_OK;
}

static const char *const sync_names[] = {"eager", "end", NULL};

static td_status read_options(const sched_request *q, bool *overlap, sched_sync *sync, td_err *err)
{
    int64_t on = 1;
    int64_t choice = 0;
    TD_TRY(sched_option_i64(q, "overlap", 0, 1, 1, &on, err));
    TD_TRY(sched_option_choice(q, "sync", sync_names, &choice, err));
    *overlap = on != 0;
    *sync = (sched_sync)choice;
    return TD_OK;
}

static td_status generate_dualpipe(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    const int32_t p = q->pp, n = q->microbatches / 2;
    TD_TRY(sched_need_even_ranks(q, "dualpipe", err));
    TD_TRY(check(q, "dualpipe", 1, err));
    if (q->microbatches % 2 != 0)
        return td_fail(err, TD_EUSAGE,
                       "--microbatches %d: dualpipe sends half of them each way; legal: %d or %d",
                       q->microbatches, q->microbatches - 1, q->microbatches + 1);
    dual_row d = {0};
    sched_sync sync = SYNC_EAGER;
    TD_TRY(read_options(q, &d.overlap, &sync, err));
    TD_TRY(sched_new(a, p, p, 2, q->microbatches, 1, out, err));
    out->sync = sync;
    for (int32_t m = n; m < 2 * n; m++) out->microbatch_pipe[m] = 1;
    for (int32_t r = 0; r < p; r++) {
        sched_place(out, 0, r, r);
        sched_place(out, 1, p - 1 - r, r);
        const int up = r >= p / 2; /* the pipe that is direction 0 here */
        d.stage[up] = r;
        d.stage[!up] = p - 1 - r;
        d.first[up] = 0;
        d.first[!up] = n;
        TD_TRY(add_row(a, out, d, r, p / 2, n, r < p - 1 - r ? r : p - 1 - r, err));
    }
    return TD_OK;
}

static td_status generate_dualpipev(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    const int32_t p = q->pp;
    dual_row d = {0};
    sched_sync sync = SYNC_EAGER;
    TD_TRY(check(q, "dualpipev", 2, err));
    TD_TRY(read_options(q, &d.overlap, &sync, err));
    TD_TRY(sched_new(a, p, 2 * (int64_t)p, 1, q->microbatches, 1, out, err));
    out->sync = sync;
    for (int32_t r = 0; r < p; r++) {
        d.stage[0] = r;
        d.stage[1] = 2 * p - 1 - r;
        for (int i = 0; i < 2; i++) sched_place(out, 0, d.stage[i], r);
        TD_TRY(add_row(a, out, d, r, p, q->microbatches, r, err));
    }
    return TD_OK;
}

static const sched_option options[] = {
    {"overlap", "1|0", "a forward and a backward at once; 0: one after the other"},
    {"sync", "eager|end", "a stage's gradients are summed once it is done, or at the end"},
    {NULL, NULL, NULL},
};

const sched_family family_dualpipe = {
    .name = "dualpipe",
    .summary = "two pipes, forwards overlapped with the other's backwards; weights twice",
    .constraints = "P even, M even and >= 2P, one chunk",
    .options = options,
    .generate = generate_dualpipe,
};

const sched_family family_dualpipev = {
    .name = "dualpipev",
    .summary = "dualpipe folded in half: one pipe down and back, two chunks a rank, weights once",
    .constraints = "P >= 1, M >= 2P, V = 2",
    .options = options,
    .generate = generate_dualpipev,
};
