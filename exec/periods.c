/* Periods of the plan, one behind another: each rank runs them in a thread of its own. Where the
 * plan validates steps later nothing joins the ranks between two periods but their messages: a rank
 * that has stepped goes on into the next period while others end this one. */
#include "exec/device_run.h"

#include <string.h>

/* --- the ring of periods --- */

exec_period *exec_period_at(const executor *x, int64_t number)
{
    return &x->periods[number % x->n_periods];
}

td_status exec_periods_open(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    const int32_t words = p->n_microbatches * p->dp + EXEC_STEP_WORDS;
    x->n_kept = x->options.kept_periods > 2 ? x->options.kept_periods : 2;
    /* a multiple of what is kept, so that a number's place in both rings agrees */
    const uint32_t strides = (EXEC_STRIDE + x->n_kept - 1) / x->n_kept;
    x->n_periods = x->n_kept * (x->options.team != NULL ? strides : 1);
    x->stride = 4;
    for (uint32_t r = 0; r < p->n_ranks; r++) x->n_here += exec_is_here(x, r);
    x->periods = TD_NEW_N(a, exec_period, x->n_periods);
    if (x->periods == NULL) return td_fail(err, TD_ENOMEM, "out of memory for periods");
    for (uint32_t i = 0; i < x->n_periods; i++) {
        exec_period *const at = &x->periods[i];
        at->number = -1;
        at->losses = TD_NEW_N(a, double, words);
        at->times = x->periods[i % x->n_kept].times;
        if (i < x->n_kept) {
            at->times.begin_ns = TD_NEW_N(a, int64_t, p->n_tasks);
            at->times.end_ns = TD_NEW_N(a, int64_t, p->n_tasks);
        }
        if (at->losses == NULL || at->times.begin_ns == NULL || at->times.end_ns == NULL)
            return td_fail(err, TD_ENOMEM, "out of memory for periods");
    }
    return pthread_mutex_init(&x->lock, NULL) == 0
               ? TD_OK
               : td_fail(err, TD_EDEVICE, "the machine gives no locks");
}

double exec_loss(const executor *x, const exec_period *p)
{
    const int32_t n = x->p->n_microbatches * x->p->dp;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += p->losses[i];
    return sum / n;
}

void exec_note_norm(executor *x, const exec_rank *r, double norm, bool again)
{
    /* all ranks find the same: one in each process says it */
    if (x->options.team == NULL && exec_rank_of(x, 0, 0) != r->index) return;
    (void)pthread_mutex_lock(&x->lock);
    x->grad_norm = norm;
    x->n_undone += again;
    x->n_settled++;
    if (x->feed != NULL && x->feed->settled != NULL) x->feed->settled(x->feed->self, norm);
    (void)pthread_mutex_unlock(&x->lock);
}

/* --- tokens --- */

/* Where a rank's tokens of a microbatch are to be put, or NULL. */
static int32_t *tokens_of(const executor *x, const exec_rank *r, int32_t microbatch)
{
    const uint32_t b = r->tokens[microbatch];
    if (b == PLAN_NONE) return NULL;
    const int64_t n = 2 * x->z->run.micro_batch * x->z->run.seq_len;
    return x->device == NULL ? (int32_t *)(void *)exec_place(x, r->index, b)
                             : x->device->tokens[r->index] + n * microbatch;
}

static void weigh_rows(const executor *x, const exec_rank *r, int32_t microbatch,
                       const int32_t *targets)
{
    const int64_t n = x->z->run.micro_batch * x->z->run.seq_len;
    long counted = 0;
    for (int64_t i = 0; i < n; i++) counted += targets[i] >= 0;
    r->row_weights[microbatch] = 1.0 / (double)(counted > 0 ? counted : 1);
}

void exec_tokens(executor *x, int32_t replica, int32_t microbatch, const int32_t *ids,
                 const int32_t *targets)
{
    const size_t n = (size_t)(x->z->run.micro_batch * x->z->run.seq_len);
    for (uint32_t i = 0; i < x->p->n_ranks; i++) {
        const exec_rank *const r = &x->ranks[i];
        if (x->p->ranks[i].replica != replica || !exec_is_here(x, i)) continue;
        int32_t *const at = tokens_of(x, r, microbatch);
        weigh_rows(x, r, microbatch, targets);
        if (at == NULL) continue;
        memcpy(at, ids, n * sizeof *ids);
        memcpy(at + n, targets, n * sizeof *targets);
    }
}

/* --- a run of steps --- */

typedef struct run {
    const exec_feed *feed;
    int64_t first; /* number of its first period */
    int64_t n;     /* periods; fewer when the process is asked to stop */
    bool live;     /* ranks tell of a period's end as it comes */
} run;

static void load_tokens(const executor *x, const run *s, const exec_rank *r, int64_t i)
{
    const plan *const p = x->p;
    const int64_t n = x->z->run.micro_batch * x->z->run.seq_len;
    for (int32_t m = 0; m < p->n_microbatches; m++) {
        int32_t *const at = tokens_of(x, r, m);
        if (at == NULL) continue;
        s->feed->tokens(s->feed->self, i, p->ranks[r->index].replica * p->n_microbatches + m, at,
                        at + n);
        weigh_rows(x, r, m, at + n);
    }
}

/* With the lock held, by the first rank that comes to period i of the run. */
static td_status open_period(executor *x, const run *s, int64_t i, td_err *err)
{
    const int64_t number = s->first + i;
    exec_period *const at = exec_period_at(x, number);
    /* its place among the times was that of the period but one before */
    const exec_period *const old =
        number < x->n_kept ? NULL : exec_period_at(x, number - x->n_kept);
    if (old != NULL && old->n_ended < x->n_here)
        return td_fail(err, TD_EPLAN,
                       "plan: a rank is %u steps ahead of another: nothing in it holds them "
                       "together",
                       x->n_kept);
    at->number = number;
    at->n_ended = 0;
    at->start_ns = td_now_ns();
    memset(at->losses, 0, (size_t)(x->p->n_microbatches * x->p->dp) * sizeof *at->losses);
    s->feed->begin(s->feed->self, i, &at->step);
    x->now = at;
    x->n_begun = number + 1;
    return TD_OK;
}

static td_status enter(executor *x, run *s, exec_rank *r, int64_t i, bool *more, td_err *err)
{
    td_status st = TD_OK;
    (void)pthread_mutex_lock(&x->lock);
    if (x->n_begun == s->first + i) { /* nobody came here before */
        if (i < s->n && s->live && s->feed->stops != NULL && s->feed->stops(s->feed->self))
            s->n = i;
        if (i < s->n) st = open_period(x, s, i, err);
    }
    *more = i < s->n;
    (void)pthread_mutex_unlock(&x->lock);
    if (st != TD_OK || !*more) return st;
    if (i > 0) r->before = r->now;
    r->now = exec_period_at(x, s->first + i);
    r->spoilt = false;
    r->ahead = r->before != NULL;
    return TD_OK;
}

static void end_period(executor *x, const run *s, const exec_rank *r)
{
    exec_period *const at = r->now;
    const int64_t i = at->number - s->first;
    (void)pthread_mutex_lock(&x->lock);
    if (++at->n_ended == x->n_here) {
        at->end_ns = td_now_ns();
        at->step_ns =
            at->end_ns - (i > 0 ? exec_period_at(x, at->number - 1)->end_ns : at->start_ns);
        if (s->live && s->feed->ended != NULL) s->feed->ended(s->feed->self, i, at);
    }
    (void)pthread_mutex_unlock(&x->lock);
}

static td_status run_rank(executor *x, exec_rank *r, void *arg, td_err *err)
{
    run *const s = arg;
    bool more = true;
    for (int64_t i = 0; more; i++) {
        TD_TRY(enter(x, s, r, i, &more, err));
        if (!more) break;
        if (i > 0 && s->feed->tokens != NULL) load_tokens(x, s, r, i);
        TD_TRY(worker_run(x, r, err));
        end_period(x, s, r);
    }
    return worker_leave(x, r, err);
}

/* The first period is opened, and its tokens are there, before any rank's thread begins. */
static td_status begin_run(executor *x, run *s, td_err *err)
{
    wire_next_step(x->wire);
    exec_period *const last = x->unsettled ? exec_period_at(x, s->first - 1) : NULL;
    TD_TRY(open_period(x, s, 0, err));
    for (uint32_t i = 0; i < x->p->n_ranks; i++) {
        exec_rank *const r = &x->ranks[i];
        r->skipped = 0;
        r->before = last;
        r->now = x->now;
        r->spoilt = false;
        r->ahead = last != NULL;
        if (exec_is_here(x, i) && s->feed->tokens != NULL) load_tokens(x, s, r, 0);
    }
    return TD_OK;
}

td_status exec_run_steps(executor *x, const exec_feed *feed, int64_t n, int64_t *done, td_err *err)
{
    run s = {.feed = feed, .first = x->n_begun, .n = 1};
    if (x->validates && x->period == NULL && x->device == NULL)
        s.n = x->options.team != NULL && n > x->stride ? x->stride : n;
    s.live = s.n > 1 && x->options.team == NULL;
    x->feed = feed;
    TD_TRY(begin_run(x, &s, err));
    device_run_begin(x);
    if (x->period != NULL) {
        TD_TRY(x->period(x->period_self, &x->now->step_ns, err));
        x->now->n_ended = x->n_here;
        TD_TRY(device_run_end(x, err));
    } else {
        TD_TRY(exec_each_rank(x, true, run_rank, &s, err));
        TD_TRY(device_run_end(x, err));
        if (x->device != NULL) x->now->step_ns = td_now_ns() - x->now->start_ns;
        device_run_times(x);
    }
    *done = s.n;
    x->unsettled = x->validates;
    TD_TRY(exec_team_steps(x, s.n, err));
    if (!x->validates) {
        x->n_settled++;
        if (feed->settled != NULL) feed->settled(feed->self, x->grad_norm);
    }
    for (int64_t i = 0; !s.live && feed->ended != NULL && i < s.n; i++)
        feed->ended(feed->self, i, exec_period_at(x, s.first + i));
    /* an emulated period has nobody who could go back in time */
    return x->period != NULL ? exec_settle(x, err) : TD_OK;
}

static void one_step(void *self, int64_t i, exec_step *out)
{
    (void)i;
    *out = *(const exec_step *)self;
}

td_status exec_run_step(executor *x, const exec_step *s, double *loss, td_err *err)
{
    exec_step step = *s;
    const exec_feed feed = {.self = &step, .begin = one_step};
    int64_t done = 0;
    const td_status st = exec_run_steps(x, &feed, 1, &done, err);
    x->feed = NULL; /* it ends here */
    if (st == TD_OK) *loss = exec_loss(x, x->now);
    return st;
}

static td_status settle_rank(executor *x, exec_rank *r, void *arg, td_err *err)
{
    (void)arg;
    r->before = x->now;
    r->skipped = 0;
    return worker_settle(x, r, err);
}

td_status exec_settle(executor *x, td_err *err)
{
    if (!x->unsettled) return TD_OK;
    wire_next_step(x->wire);
    TD_TRY(exec_each_rank(x, true, settle_rank, NULL, err));
    x->unsettled = false;
    return exec_team_norm(x, err);
}

/* --- threads --- */

typedef struct rank_thread {
    executor *x;
    exec_rank *rank;
    exec_job *job;
    void *arg;
    pthread_t thread;
    bool started;
} rank_thread;

static void *rank_main(void *arg)
{
    const rank_thread *const t = arg;
    td_err err = {0};
    device_run_enter(t->x);
    if (t->job(t->x, t->rank, t->arg, &err) != TD_OK) wire_abort(t->x->wire, &err);
    return NULL;
}

enum { MAX_RANKS_IN_PROCESS = 1024 };

td_status exec_each_rank(executor *x, bool here, exec_job *job, void *arg, td_err *err)
{
    const uint32_t n = x->p->n_ranks;
    if (n > MAX_RANKS_IN_PROCESS)
        return td_fail(err, TD_EUSAGE, "%u ranks: one process runs at most %d", n,
                       (int)MAX_RANKS_IN_PROCESS);
    rank_thread threads[MAX_RANKS_IN_PROCESS];
    bool failed = false;
    for (uint32_t i = 0; i < n; i++) {
        threads[i] = (rank_thread){.x = x, .rank = &x->ranks[i], .job = job, .arg = arg};
        if (here && !exec_is_here(x, i)) continue;
        threads[i].started =
            !failed && pthread_create(&threads[i].thread, NULL, rank_main, &threads[i]) == 0;
        failed = failed || !threads[i].started;
    }
    td_err why = {0};
    if (failed) {
        (void)td_fail(&why, TD_EDEVICE, "a thread for each of %u ranks could not be started", n);
        wire_abort(x->wire, &why);
    }
    for (uint32_t i = 0; i < n; i++)
        if (threads[i].started) (void)pthread_join(threads[i].thread, NULL);
    why = wire_error(x->wire);
    return why.code == TD_OK ? TD_OK : td_fail(err, why.code, "%s", why.msg);
}
