/* pexec train: real text in, falling loss out. */
#include "base/text.h"
#include "exec/checkpoint.h"
#include "exec/data.h"
#include "exec/device_run.h"
#include "exec/pexec.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted; /* set by the handler, nothing else may be */

static void on_interrupt(int sig)
{
    (void)sig;
    interrupted = 1;
}

enum { KEPT_STEPS = 5 };

typedef struct training {
    const pexec_options *o;
    train_engine *engine; /* or NULL */
    run_setup setup;      /* outlives the executor, which points into it */
    launch who;
    team *team;
    bool speaks; /* one process does */
    executor *x;
    corpus text;
    eval_room eval;
    device *device;         /* NULL: the cores */
    int32_t *ids, *targets; /* one microbatch */
    exec_feed feed;
    cli_progress progress;
    int64_t began_ns, done;
    checkpoint_state state;
    int64_t first; /* the step before the first one: 0, or the checkpoint's */
    int64_t begun; /* the first of the steps at hand */
    double loss, val_loss, tokens_per_s;
    int64_t best_ns;             /* the fastest step */
    int64_t kept_ns[KEPT_STEPS]; /* of the last steps, in a ring */
    int64_t traced;              /* of the kept ones */
    int64_t settled;             /* steps whose norm is known */
    int64_t skipped;             /* state.skipped when the steps at hand began */
    int64_t too_many;            /* the step whose numbers --skip-limit does not allow; 0: none */
} training;

/* Steps are counted as skipped once their norm is known. */
static void note_norm(void *self, double norm)
{
    training *const t = self;
    t->settled++;
    if (!isfinite(norm) && ++t->state.skipped > t->o->skip_limit && t->too_many == 0)
        t->too_many = t->first + t->settled;
}

static td_status check_skipped(const training *t, td_err *err)
{
    if (t->too_many == 0) return TD_OK;
    return td_fail(err, TD_EMISMATCH,
                   "step %lld: loss or gradient is not finite, as in %lld steps before; "
                   "--skip-limit is %lld; a lower --lr or --clip may help",
                   (long long)t->too_many, (long long)t->o->skip_limit,
                   (long long)t->o->skip_limit);
}

/* Before weights are looked at. */
static td_status settle(training *t, td_err *err)
{
    TD_TRY(exec_settle(t->x, err));
    return check_skipped(t, err);
}

static td_status validate(training *t, td_err *err)
{
    TD_TRY(settle(t, err));
    const run_shape *const r = &t->x->z->run;
    double sum = 0;
    for (int64_t i = 0; i < t->o->val_batches; i++) {
        double loss = 0;
        corpus_batch(&t->text, 0, 0, i, true, r->micro_batch, r->seq_len, t->ids, t->targets);
        TD_TRY(exec_eval(t->x, &t->eval, t->ids, t->targets, &loss, err));
        sum += loss;
    }
    t->val_loss = sum / (double)t->o->val_batches;
    return TD_OK;
}

/* The trace is of the median of the last steps: warm, and not the one that something disturbed.
 * Returns the number of its period. */
static int64_t median_step(const training *t)
{
    const int64_t ran = t->x->n_begun, n = ran < KEPT_STEPS ? ran : KEPT_STEPS;
    for (int64_t i = ran - n; i < ran; i++) {
        const int64_t mine = t->kept_ns[i % KEPT_STEPS];
        int64_t before = 0, equal = 0;
        for (int64_t k = 0; k < n; k++) {
            before += t->kept_ns[k] < mine;
            equal += t->kept_ns[k] == mine;
        }
        if (before <= n / 2 && n / 2 < before + equal) return i;
    }
    return ran - 1;
}

/* --- what the executor asks for --- */

static void step_numbers(void *self, int64_t i, exec_step *out)
{
    const training *const t = self;
    const int64_t step = t->begun + i;
    *out = (exec_step){.lr = (float)optimizer_rate(t->o->lr, step, t->o->warmup, t->o->steps),
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .weight_decay = (float)t->o->weight_decay,
                       .clip = t->o->clip,
                       .number = step - t->skipped,
                       .skip = t->o->skip_limit > 0};
}

static void step_tokens(void *self, int64_t i, int32_t index, int32_t *ids, int32_t *targets)
{
    const training *const t = self;
    const run_shape *const r = &t->x->z->run;
    corpus_batch(&t->text, t->state.seed, t->begun + i, index, false, r->micro_batch, r->seq_len,
                 ids, targets);
}

static bool is_stopped(void *self)
{
    const training *const t = self;
    return interrupted != 0 || t->too_many > 0;
}

static void report(training *t, int64_t step)
{
    const plan *const p = t->x->p;
    const run_shape *const r = &t->x->z->run;
    const double seconds = (double)(td_now_ns() - t->began_ns) / 1e9;
    const double tokens = (double)(step - t->first) * (double)(p->n_microbatches * p->dp) *
                          (double)(r->micro_batch * r->seq_len);
    t->tokens_per_s = tokens / seconds;
    char bar[32];
    (void)cli_progress_show(&t->progress,
                            "%s step %lld/%lld  loss %.4f  |g| %.3f  %.0f tokens/s  "
                            "%.0f s left",
                            cli_bar(bar, sizeof bar, 20, (double)step / (double)t->o->steps),
                            (long long)step, (long long)t->o->steps, t->loss, t->x->grad_norm,
                            t->tokens_per_s,
                            seconds / (double)(step - t->first) * (double)(t->o->steps - step));
}

static void end_step(void *self, int64_t i, const exec_period *p)
{
    training *const t = self;
    const double loss = exec_loss(t->x, p);
    const int64_t step = t->begun + i;
    if (isfinite(loss) && (t->x->validates || isfinite(t->x->grad_norm))) t->loss = loss;
    if (t->best_ns == 0 || p->step_ns < t->best_ns) t->best_ns = p->step_ns;
    t->kept_ns[p->number % KEPT_STEPS] = p->step_ns;
    report(t, step);
}

/* A checkpoint of the step just done. */
static td_status save(training *t, td_err *err)
{
    TD_TRY(settle(t, err));
    td_arena *const a = td_arena_new();
    const char *const path = a == NULL ? NULL : checkpoint_path(a, t->o->save, t->done);
    td_status st = TD_OK;
    if (path == NULL) {
        st = td_fail(err, TD_ENOMEM, "out of memory for a checkpoint");
    } else {
        t->state.step = t->done;
        st = checkpoint_write(t->x, &t->state, path, err);
        if (st == TD_OK && t->speaks) st = checkpoint_prune(t->o->save, t->o->keep, a, err);
    }
    td_arena_free(a);
    return st;
}

static td_status after_step(training *t, int64_t step, td_err *err)
{
    const int64_t every = t->o->save_every;
    const bool due = every > 0 && step % every == 0;
    if (t->o->save != NULL && (due || t->x->stop || step == t->o->steps)) TD_TRY(save(t, err));
    if (t->x->stop)
        return td_fail(err, TD_EINTR, "interrupted after step %lld%s%s", (long long)step,
                       t->o->save != NULL ? "; its checkpoint is in " : "",
                       t->o->save != NULL ? t->o->save : "");
    return TD_OK;
}

/* Steps until weights are looked at. */
static int64_t steps_ahead(const training *t)
{
    const int64_t every[] = {t->o->val_every, t->o->save_every};
    int64_t n = t->o->steps - t->done;
    for (int k = 0; k < 2; k++)
        if (every[k] > 0 && every[k] - t->done % every[k] < n) n = every[k] - t->done % every[k];
    return n;
}

static td_status train_steps(training *t, td_err *err)
{
    int64_t done = 0;
    t->begun = t->done + 1;
    t->skipped = t->state.skipped;
    TD_TRY(exec_run_steps(t->x, &t->feed, steps_ahead(t), &done, err));
    t->done += done;
    return check_skipped(t, err);
}

static td_status loop(training *t, td_err *err)
{
    const int64_t every = t->o->val_every;
    t->began_ns = td_now_ns();
    while (t->done < t->o->steps) {
        TD_TRY(train_steps(t, err));
        const int64_t step = t->done;
        if (every > 0 && step % every == 0 && step != t->o->steps) {
            TD_TRY(validate(t, err));
            cli_progress_end(&t->progress);
            if (!t->o->quiet && t->speaks)
                (void)fprintf(stderr, "step %lld  loss %.4f  validation %.4f  %.0f tokens/s\n",
                              (long long)step, t->loss, t->val_loss, t->tokens_per_s);
        }
        TD_TRY(after_step(t, step, err));
    }
    return validate(t, err);
}

/* The plan and times to show: of one step, or of the last ones behind each other. */
static td_status shown(training *t, td_arena *a, plan *p, task_times *times, td_err *err)
{
    const int64_t ran = t->x->n_begun, n = ran < t->o->periods ? ran : t->o->periods;
    task_times *const of = TD_NEW_N(a, task_times, n);
    int64_t *const begin_ns = TD_NEW_N(a, int64_t, n);
    if (of == NULL || begin_ns == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a trace");
    t->traced = n > 1 ? ran - n : median_step(t);
    TD_TRY(team_broadcast(t->team, 0, &t->traced, sizeof t->traced, err));
    /* one more than is shown was kept, and is not looked at any more */
    const task_times *const room = &exec_period_at(t->x, t->traced + n)->times;
    for (int64_t i = 0; i < n; i++) {
        const exec_period *const at = exec_period_at(t->x, t->traced + i);
        of[i] = at->times;
        begin_ns[i] = at->start_ns;
        TD_TRY(exec_gather_times(t->x, &of[i], room, err));
    }
    *p = *t->x->p;
    *times = of[0];
    if (n == 1) return TD_OK;
    TD_TRY(plan_repeat(t->x->p, (uint32_t)n, a, p, err));
    return plan_repeat_times(t->x->p, (uint32_t)n, of, begin_ns, a, times, err);
}

static td_status write_trace(training *t, const cli_args *args, td_arena *a, td_err *err)
{
    plan p;
    task_times times;
    TD_TRY(shown(t, a, &p, &times, err));
    if (!t->speaks) return TD_OK;
    const trace_meta meta[] = {
        {"producer", t->engine == NULL ? "pexec train" : t->engine->producer},
        {"schedule", p.schedule_name == NULL ? "" : p.schedule_name},
        {"protocol", t->engine == NULL ? "rendezvous" : t->engine->protocol},
        {"model", t->x->z->model->name},
        {"blas", k_blas_info(&t->x->blas)},
        {"command", cli_line(a, args)},
    };
    trace tr;
    TD_TRY(trace_build(&p, &times, p.n_tasks == t->x->p->n_tasks, meta, sizeof meta / sizeof *meta,
                       a, &tr, err));
    return trace_write(&tr, t->o->trace, err);
}

static void print_device(const training *t, const char *before,
                         void (*print)(const device_use *u, td_text *out))
{
    const device_use use = device_run_use(t->x);
    td_text text = {0};
    if (!use.known) return;
    print(&use, &text);
    (void)printf("%s%s", before, text.s == NULL ? "" : text.s);
    td_text_free(&text);
}

static void print_result(const training *t)
{
    const double bits = t->val_loss / log(2.0) / t->text.bytes_per_token;
    if (t->o->json) {
        (void)printf("{\"schema\": 1, \"steps\": %lld, \"skipped\": %lld, \"loss\": %.17g, "
                     "\"validation_loss\": %.17g, "
                     "\"validation_bits_per_byte\": %.9g, \"tokens_per_s\": %.6g, "
                     "\"seconds\": %.6g, \"best_step_s\": %.6g, \"median_step_ns\": %lld, "
                     "\"emulated\": %s, \"rss_bytes\": %lld",
                     (long long)t->done, (long long)t->state.skipped, t->loss, t->val_loss, bits,
                     t->tokens_per_s, (double)(td_now_ns() - t->began_ns) / 1e9,
                     (double)t->best_ns / 1e9, (long long)t->kept_ns[median_step(t) % KEPT_STEPS],
                     t->engine == NULL ? "false" : "true", (long long)process_rss_bytes());
        print_device(t, ", \"device_memory\": ", device_use_json);
        (void)printf("}\n");
        return;
    }
    if (t->engine != NULL) {
        char step[40];
        (void)printf("emulated step %s (median of the last %d), %u ranks\n",
                     td_print_ns(step, sizeof step, t->kept_ns[median_step(t) % KEPT_STEPS]),
                     t->done - t->first < KEPT_STEPS ? (int)(t->done - t->first) : KEPT_STEPS,
                     t->x->p->n_ranks);
    }
    (void)printf("step %lld  loss %.4f  validation %.4f (%.3f bits a byte)  %.0f tokens/s\n",
                 (long long)t->done, t->loss, t->val_loss, bits, t->tokens_per_s);
    if (t->device != NULL) {
        print_device(t, "", device_use_words);
        (void)printf("\n");
    }
}

static td_status prepare(training *t, const run_setup *s, td_arena *a, td_err *err)
{
    const pexec_options *const o = t->o;
    const run_shape *const r = &s->sizes.run;
    const size_t tokens = (size_t)(r->micro_batch * r->seq_len);
    exec_options run = {.device = t->device,
                        .offload = t->engine == NULL ? NULL : t->engine->offload,
                        .threads_per_rank = (int)o->threads_per_rank,
                        .blas = pexec_blas(o),
                        .deadline_ns = o->timeout * 1000000000,
                        .kept_periods = o->trace == NULL           ? 0
                                        : o->periods >= KEPT_STEPS ? (uint32_t)o->periods + 1
                                                                   : KEPT_STEPS,
                        .team = t->team};
    TD_TRY(pexec_share(o, t->team, t->device, a, &run, err));
    TD_TRY(exec_open(&s->plan, &s->sizes, &run, a, &t->x, err));
    t->ids = TD_NEW_N(a, int32_t, tokens);
    t->targets = TD_NEW_N(a, int32_t, tokens);
    TD_TRY(exec_eval_room(t->x, a, &t->eval, err));
    if (t->ids == NULL || t->targets == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for batches");
    t->state = (checkpoint_state){.seed = (uint64_t)o->seed,
                                  .text = corpus_hash(&t->text),
                                  .microbatches = s->plan.n_microbatches * s->plan.dp,
                                  .micro_batch = r->micro_batch,
                                  .seq_len = r->seq_len};
    t->feed = (exec_feed){.self = t,
                          .begin = step_numbers,
                          .tokens = step_tokens,
                          .settled = note_norm,
                          .ended = end_step,
                          .stops = is_stopped};
    exec_init(t->x, t->state.seed);
    return TD_OK;
}

/* Goes on where a checkpoint ends. */
static td_status resume(training *t, const cli_args *args, td_arena *a, td_err *err)
{
    const pexec_options *const o = t->o;
    const char *path = NULL;
    checkpoint_state was;
    TD_TRY(team_agree(t->team, checkpoint_newest(o->resume, a, &path, err), err));
    TD_TRY(checkpoint_read(t->x, path, &was, err));
    TD_TRY(team_same(t->team, (uint64_t)was.step, "step of the newest checkpoint", err));
    td_status st = TD_OK;
    if (cli_given(args, "seed") && was.seed != (uint64_t)o->seed)
        st = td_fail(err, TD_EUSAGE, "--seed %lld: %s was trained with seed %llu; leave --seed out",
                     (long long)o->seed, path, (unsigned long long)was.seed);
    else if (was.text != t->state.text)
        st = td_fail(err, TD_EUSAGE, "--data %s: %s was trained on another text", o->data, path);
    else if (was.step >= o->steps)
        st = td_fail(err, TD_EUSAGE, "--steps %lld: %s has %lld steps behind it; ask for more",
                     (long long)o->steps, path, (long long)was.step);
    TD_TRY(team_agree(t->team, st, err));
    const bool same = was.microbatches == t->state.microbatches &&
                      was.micro_batch == t->state.micro_batch && was.seq_len == t->state.seq_len;
    if (!o->quiet && t->speaks)
        (void)fprintf(stderr, "going on from step %lld of %s%s\n", (long long)was.step, path,
                      same ? "" : "; its steps had other batches");
    t->first = t->done = was.step;
    t->state.seed = was.seed;
    t->state.skipped = was.skipped;
    return TD_OK;
}

static td_status check_save(const char *folder, td_err *err)
{
    if (folder == NULL) return TD_OK;
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        return td_fail(err, TD_EIO, "--save %s: cannot make the folder: %s", folder,
                       strerror(errno));
    struct stat is;
    if (stat(folder, &is) != 0 || !S_ISDIR(is.st_mode) || access(folder, W_OK | X_OK) != 0)
        return td_fail(err, TD_EIO, "--save %s: no folder that can be written into", folder);
    return TD_OK;
}

/* What every process finds out for itself; all of them then agree on it. */
static td_status find_inputs(training *t, const cli_args *args, td_arena *a, run_setup *s,
                             td_err *err)
{
    const pexec_options *const o = t->o;
    if (o->data == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--data is missing: any text file, such as "
                       "/usr/share/common-licenses/GPL-3");
    TD_TRY(cli_check_outputs(args, err));
    if (o->save_every > 0 && o->save == NULL)
        return td_fail(err, TD_EUSAGE, "--save-every: --save says into which folder");
    TD_TRY(check_save(o->save, err));
    request q = o->what;
    cost_model prices = {0};
    q.shards = true;
    q.prices = &prices;
    TD_TRY(request_machine(o->cluster, o->profile, o->link, q.pp, a, &prices, err));
    TD_TRY(request_plan(&q, TYPE_FP32, NULL, a, s, err));
    TD_TRY(plan_check_periods(&s->plan, o->periods, err));
    if (t->engine != NULL && o->periods > 1)
        return td_fail(err, TD_EUSAGE,
                       "--periods %lld: an emulated step is validated before the next one begins; "
                       "leave --periods out",
                       (long long)o->periods);
    const bool bf16 = s->sizes.run.dtype == TYPE_BF16;
    TD_TRY(pexec_device(o, &t->who, bf16, a, &t->device, err));
    if (t->engine != NULL) t->engine->device = t->device;
    return corpus_open(o->data, o->vocab, o->merges, s->model.vocab, !s->model.causal,
                       s->sizes.run.seq_len, a, &t->text, err);
}

static td_status train(training *t, const cli_args *args, td_arena *a, td_err *err)
{
    run_setup *const setup = &t->setup;
    TD_TRY(team_agree(t->team, find_inputs(t, args, a, setup, err), err));
    TD_TRY(pexec_same(t->team, setup, args, err));
    TD_TRY(team_same(t->team, corpus_hash(&t->text), "text of --data", err));
    TD_TRY(prepare(t, setup, a, err));
    if (t->o->resume != NULL) TD_TRY(resume(t, args, a, err));
    if (t->engine != NULL) TD_TRY(t->engine->open(t->engine->self, setup, t->x, a, err));
    t->progress = cli_progress_begin(t->o->quiet || !t->speaks ? CLI_NEVER : CLI_AUTO);
    if (!t->o->quiet && t->speaks)
        (void)fprintf(stderr, "%s: %u ranks, %d microbatches of %lld x %lld tokens, %s\n",
                      setup->model.name, setup->plan.n_ranks, setup->plan.n_microbatches,
                      (long long)setup->sizes.run.micro_batch, (long long)setup->sizes.run.seq_len,
                      t->device == NULL ? k_blas_info(&t->x->blas) : t->device->name);
    const td_status st = loop(t, err);
    cli_progress_end(&t->progress);
    pexec_report(t->x, st);
    TD_TRY(st);
    if (t->o->trace != NULL) TD_TRY(write_trace(t, args, a, err));
    if (t->o->out != NULL) TD_TRY(checkpoint_write(t->x, NULL, t->o->out, err));
    if (t->speaks) print_result(t);
    return TD_OK;
}

td_status cmd_train(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    return pexec_train(a, args, options, NULL, err);
}

td_status pexec_train(td_arena *a, const cli_args *args, const pexec_options *o,
                      train_engine *engine, td_err *err)
{
    training *const t = TD_NEW(a, training);
    if (t == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the training");
    t->o = o;
    t->engine = engine;
    TD_TRY(pexec_join(t->o, a, &t->who, &t->team, err));
    if (t->who.size == 0) return TD_OK;
    t->speaks = team_index(t->team) == 0;
    if (engine != NULL && team_size(t->team) > 1)
        return td_fail(err, TD_EUSAGE,
                       "%s: one process emulates all ranks; start it without a launcher",
                       engine->producer);
    struct sigaction now = {.sa_handler = on_interrupt}, before[2];
    (void)signal(SIGXFSZ, SIG_IGN); /* a file too large is an error like a full disk */
    (void)sigaction(SIGINT, &now, &before[0]);
    (void)sigaction(SIGTERM, &now, &before[1]);
    const td_status st = train(t, args, a, err);
    exec_close(t->x);
    if (t->device != NULL) t->device->methods->close(t->device);
    (void)sigaction(SIGINT, &before[0], NULL);
    (void)sigaction(SIGTERM, &before[1], NULL);
    return pexec_leave(t->team, st, err);
}
