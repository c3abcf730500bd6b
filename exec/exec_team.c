/* What the processes of a run tell each other between its steps. */
#include "exec/device_run.h"
#include "exec/shard.h"

#include <string.h>

enum { CLOCK_ROUNDS = 20, PIECE = 1 << 20 };

/* As in NTP: of a question and its answer the fastest round says most about the difference. */
static td_status compare_clocks(executor *x, uint32_t with, double *stamp, td_err *err)
{
    team *const t = x->options.team;
    int64_t fastest = INT64_MAX;
    for (int i = 0; i < CLOCK_ROUNDS; i++) {
        const int64_t asked = td_now_ns();
        int64_t now = 0;
        if (team_index(t) == 0) {
            TD_TRY(team_recv(t, with, stamp, sizeof *stamp, err));
            now = td_now_ns();
            memcpy(stamp, &now, sizeof now);
            TD_TRY(team_send(t, with, stamp, sizeof *stamp, err));
            continue;
        }
        TD_TRY(team_send(t, 0, stamp, sizeof *stamp, err));
        TD_TRY(team_recv(t, 0, stamp, sizeof *stamp, err));
        const int64_t answered = td_now_ns(), took = answered - asked;
        memcpy(&now, stamp, sizeof now);
        if (took >= fastest) continue;
        fastest = took;
        x->clock_ns = asked + took / 2 - now;
    }
    return TD_OK;
}

td_status exec_team_open(executor *x, td_err *err)
{
    team *const t = x->options.team;
    for (uint32_t i = 1; i < team_size(t); i++)
        if (team_index(t) == 0 || team_index(t) == i)
            TD_TRY(compare_clocks(x, i, x->periods[0].losses, err));
    return TD_OK;
}

/* What a tensor-parallel shard handed out for the instance `to`, as its part of the stage. */
static td_status share_part(executor *x, uint32_t rank, const optimizer_share *s, uint32_t to,
                            td_err *err)
{
    const int32_t stage = x->p->insts[to].stage, shard = x->p->ranks[rank].shard;
    const stage_code *const whole = &x->whole[stage], *const part = &x->stages[stage];
    float *const out = x->now->step.grads_out[to];
    td_arena *const a = td_arena_new();
    float *const room = a == NULL ? NULL : td_alloc(a, (size_t)part->elements, sizeof *room);
    td_status st = room != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for gradients");
    if (st == TD_OK) shard_take(whole, part, shard, out, room);
    if (st == TD_OK)
        st = team_broadcast(x->options.team, rank, room, part->elements * (int64_t)sizeof *room,
                            err);
    for (int32_t k = 0; st == TD_OK && k < s->n; k++)
        shard_give_piece(whole, part, shard, room, s->pieces[k].first,
                         s->pieces[k].first + s->pieces[k].count, out);
    td_arena_free(a);
    return st;
}

/* To all processes, what a rank handed out. */
static td_status share_gradients(executor *x, uint32_t rank, td_err *err)
{
    const plan *const p = x->p;
    for (uint32_t i = 0; i < p->n_insts; i++) {
        if (!plan_trains(&p->insts[i], p->ranks[rank].row)) continue;
        const optimizer_share s = optimizer_share_of(x, rank, i);
        for (uint32_t to = 0; to < p->n_insts; to++) {
            if (!optimizer_hands_out(x, &x->now->step, &s, rank, i, to)) continue;
            if (x->whole != x->stages) {
                TD_TRY(share_part(x, rank, &s, to, err));
                continue;
            }
            for (int32_t k = 0; k < s.n; k++)
                TD_TRY(team_broadcast(x->options.team, rank,
                                      x->now->step.grads_out[to] + s.pieces[k].first,
                                      s.pieces[k].count * (int64_t)sizeof(float), err));
        }
    }
    return TD_OK;
}

/* One process has them, the others give 0. */
static void norm_words(const executor *x, double words[2])
{
    const bool has = exec_rank_of(x, 0, 0) == team_index(x->options.team);
    words[0] = has ? x->grad_norm : 0.0;
    words[1] = has ? (double)x->n_undone : 0.0;
}

static void take_norm(executor *x, const double words[2])
{
    x->grad_norm = words[0];
    x->n_undone = (int64_t)words[1];
}

td_status exec_team_norm(executor *x, td_err *err)
{
    double words[2];
    if (x->options.team == NULL) return TD_OK;
    norm_words(x, words);
    TD_TRY(team_fold(x->options.team, TEAM_SUM, words, 2, err));
    take_norm(x, words);
    return TD_OK;
}

/* Times of this process's tasks from the start of rank 0's step, which began at `origin`. */
static void shift_times(const executor *x, exec_period *at, int64_t origin)
{
    const plan *const p = x->p;
    const int64_t late = at->start_ns - x->clock_ns - origin;
    at->start_ns = origin;
    const plan_rank *const r = &p->ranks[team_index(x->options.team)];
    for (uint32_t s = r->first_stream; s < r->first_stream + r->n_streams; s++)
        for (uint32_t i = 0; i < p->streams[s].n_tasks; i++) {
            at->times.begin_ns[p->streams[s].first_task + i] += late;
            at->times.end_ns[p->streams[s].first_task + i] += late;
        }
}

/* As many as take ten seconds, so that a wish to stop is heard in time. */
static int64_t next_stride(double step_ns)
{
    const double n = step_ns > 0 ? 10e9 / step_ns : EXEC_STRIDE;
    return n < 4 ? 4 : n > EXEC_STRIDE ? EXEC_STRIDE : (int64_t)n;
}

static td_status fold_period(executor *x, exec_period *at, double wish, td_err *err)
{
    team *const t = x->options.team;
    const int32_t n = x->p->n_microbatches * x->p->dp;
    /* of every loss one process has the value and the others zero: sums are exact */
    double *const words = at->losses + n;
    const bool first = team_index(t) == 0;
    words[0] = first ? (double)(at->start_ns / 1000000000) : 0.0;
    words[1] = first ? (double)(at->start_ns % 1000000000) : 0.0;
    words[2] = wish;
    words[3] = first ? (double)at->step_ns : 0.0;
    norm_words(x, words + 4);
    TD_TRY(team_fold(t, TEAM_SUM, at->losses, n + EXEC_STEP_WORDS, err));
    x->stop = words[2] > 0.0;
    x->stride = next_stride(words[3]);
    take_norm(x, words + 4);
    if (at->number + x->n_kept >= x->n_begun)
        shift_times(x, at, (int64_t)words[0] * 1000000000 + (int64_t)words[1]);
    return TD_OK;
}

td_status exec_team_steps(executor *x, int64_t n, td_err *err)
{
    const bool stops = x->feed != NULL && x->feed->stops != NULL && x->feed->stops(x->feed->self);
    x->stop = stops;
    if (x->options.team == NULL) return TD_OK;
    for (int64_t i = x->n_begun - n; i < x->n_begun; i++)
        TD_TRY(fold_period(x, exec_period_at(x, i), stops ? 1.0 : 0.0, err));
    for (uint32_t k = 0; x->now->step.grads_out != NULL && k < x->p->n_ranks; k++)
        TD_TRY(share_gradients(x, k, err));
    return TD_OK;
}

/* Bytes at a place of a rank's memory, from its process to all. */
static td_status share_bytes(const executor *x, uint32_t rank, char *at, int64_t bytes, td_err *err)
{
    team *const t = x->options.team;
    if (x->device == NULL) return team_broadcast(t, rank, at, bytes, err);
    /* what goes out has to be in memory of the host, and lives as long as the process if that fails
     */
    td_arena *const a = td_arena_new();
    char *const room = a == NULL ? NULL : td_alloc(a, 1, (size_t)(bytes < PIECE ? bytes : PIECE));
    td_status st = room == NULL ? td_fail(err, TD_ENOMEM, "out of memory for the check") : TD_OK;
    for (int64_t first = 0; st == TD_OK && first < bytes; first += PIECE) {
        const int64_t n = bytes - first < PIECE ? bytes - first : PIECE;
        if (team_index(t) == rank) st = device_run_read(x, room, at + first, n, err);
        if (st == TD_OK) st = team_broadcast(t, rank, room, n, err);
        if (st == TD_OK && team_index(t) != rank) memcpy(at + first, room, (size_t)n);
    }
    if (st == TD_OK) td_arena_free(a);
    return st;
}

td_status exec_mirror(executor *x, bool whole, td_err *err)
{
    team *const t = x->options.team;
    const plan *const p = x->p;
    for (uint32_t r = 0; t != NULL && r < p->n_ranks; r++) {
        char *const base = x->ranks[r].arena.base;
        if (whole) {
            const int64_t bytes = (x->ranks[r].arena.bytes + PLAN_ALIGN - 1) / PLAN_ALIGN;
            TD_TRY(share_bytes(x, r, base, bytes * PLAN_ALIGN, err));
            continue;
        }
        for (uint32_t i = 0; i < p->ranks[r].n_buffers; i++) {
            const plan_buffer *const b = &p->buffers[p->ranks[r].first_buffer + i];
            const plan_bclass *const c = &p->bclasses[b->bclass];
            if (c->what == SIZE_WEIGHTS)
                TD_TRY(share_bytes(x, r, base + (int64_t)b->offset * PLAN_ALIGN, c->bytes, err));
        }
    }
    return TD_OK;
}

/* --- times --- */

static void take_times(const plan *p, uint32_t rank, const task_times *from, task_times *to)
{
    const plan_rank *const r = &p->ranks[rank];
    for (uint32_t s = r->first_stream; s < r->first_stream + r->n_streams; s++) {
        const uint32_t first = p->streams[s].first_task;
        const size_t bytes = p->streams[s].n_tasks * sizeof *to->begin_ns;
        memcpy(to->begin_ns + first, from->begin_ns + first, bytes);
        memcpy(to->end_ns + first, from->end_ns + first, bytes);
    }
}

static void meet(const task_times *t, uint32_t a, uint32_t b)
{
    const int64_t begin = t->begin_ns[a] > t->begin_ns[b] ? t->begin_ns[a] : t->begin_ns[b];
    t->begin_ns[a] = t->begin_ns[b] = begin;
    if (t->end_ns[a] < begin) t->end_ns[a] = begin;
    if (t->end_ns[b] < begin) t->end_ns[b] = begin;
}

td_status exec_gather_times(const executor *x, task_times *times, const task_times *room,
                            td_err *err)
{
    team *const t = x->options.team;
    const plan *const p = x->p;
    const int64_t bytes = (int64_t)(p->n_tasks * sizeof *times->begin_ns);
    for (uint32_t i = 1; i < team_size(t); i++) {
        if (team_index(t) == i) {
            TD_TRY(team_send(t, 0, times->begin_ns, bytes, err));
            TD_TRY(team_send(t, 0, times->end_ns, bytes, err));
        } else if (team_index(t) == 0) {
            TD_TRY(team_recv(t, i, room->begin_ns, bytes, err));
            TD_TRY(team_recv(t, i, room->end_ns, bytes, err));
            take_times(p, i, room, times);
        }
    }
    if (t == NULL || team_index(t) != 0) return TD_OK;
    for (uint32_t i = 0; i < p->n_tasks; i++)
        if (p->tasks[i].kind == TASK_SEND) meet(times, i, p->tasks[i].link);
    for (uint32_t c = 0; c < p->n_colls; c++) {
        const uint32_t *const members = &p->coll_tasks[p->colls[c].first_task];
        const uint32_t n = p->groups[p->colls[c].group].n_members;
        for (uint32_t m = 1; m < n; m++) meet(times, members[m - 1], members[m]);
        for (uint32_t m = n; m-- > 1;) meet(times, members[m - 1], members[m]);
    }
    return TD_OK;
}
