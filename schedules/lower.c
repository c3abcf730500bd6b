/* From Schedule to Plan: the passes in their order, and the first of them, place. */
#include "schedules/lower.h"

#include <string.h>

/* --- shared helpers --- */

static uint64_t class_hash(const plan_class *c)
{
    uint64_t h = (uint64_t)c->kind | (uint64_t)c->detail << 8 | (uint64_t)c->purpose << 16 |
                 (uint64_t)c->inst << 24;
    h = (h ^ (uint64_t)c->second) * 0x9e3779b97f4a7c15u;
    h = (h ^ (uint32_t)c->slice_len ^ (uint64_t)(uint32_t)c->prefix << 32) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (uint64_t)c->bytes) * 0x94d049bb133111ebu;
    h += ((uint64_t)c->segment << 16 | c->segments) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

static bool class_same(const plan_class *a, const plan_class *b)
{
    return a->kind == b->kind && a->detail == b->detail && a->purpose == b->purpose &&
           a->inst == b->inst && a->second == b->second && a->slice_len == b->slice_len &&
           a->prefix == b->prefix && a->segment == b->segment && a->segments == b->segments &&
           a->bytes == b->bytes;
}

static void class_file(class_table *t, uint32_t i)
{
    size_t at = class_hash(&t->items[i]) & (t->n_slots - 1);
    while (t->slots[at] != 0) at = (at + 1) & (t->n_slots - 1);
    t->slots[at] = i + 1;
}

static td_status class_rehash(class_table *t, td_err *err)
{
    t->n_slots = t->n_slots == 0 ? 1024 : t->n_slots * 2;
    while (t->n_slots < 2 * (t->n + 1)) t->n_slots *= 2;
    t->slots = TD_NEW_N(t->a, uint32_t, t->n_slots);
    if (t->slots == NULL) return td_fail(err, TD_ENOMEM, "out of memory for task classes");
    for (uint32_t i = 0; i < t->n; i++) class_file(t, i);
    return TD_OK;
}

td_status class_table_open(class_table *t, td_arena *a, const plan *from, td_err *err)
{
    *t = (class_table){.a = a};
    if (from != NULL && from->n_classes > 0) {
        TD_TRY(TD_GROW(a, t->items, t->cap, from->n_classes, err));
        memcpy(t->items, from->classes, from->n_classes * sizeof *t->items);
        t->n = from->n_classes;
    }
    return class_rehash(t, err);
}

td_status class_intern(class_table *t, const plan_class *c, uint32_t *out, td_err *err)
{
    uint32_t *const latest = &t->latest[c->kind % CLASS_KINDS];
    if (*latest < t->n && class_same(&t->items[*latest], c)) {
        *out = *latest;
        return TD_OK;
    }
    size_t at = class_hash(c) & (t->n_slots - 1);
    for (; t->slots[at] != 0; at = (at + 1) & (t->n_slots - 1))
        if (class_same(&t->items[t->slots[at] - 1], c)) {
            *out = *latest = t->slots[at] - 1;
            return TD_OK;
        }
    TD_TRY(TD_GROW(t->a, t->items, t->cap, t->n + 1, err));
    t->items[t->n] = *c;
    *out = *latest = (uint32_t)t->n++;
    if (2 * t->n > t->n_slots) return class_rehash(t, err);
    class_file(t, *out);
    return TD_OK;
}

void class_table_close(const class_table *t, plan *p)
{
    p->classes = t->items;
    p->n_classes = (uint32_t)t->n;
}

void lower_slice(const lowering *l, int32_t m, int32_t k, int32_t *len, int32_t *prefix)
{
    const schedule *const s = l->s;
    if (s->slice_tokens != NULL) {
        const int32_t *const tokens = &s->slice_tokens[(size_t)m * (size_t)s->n_slices];
        *prefix = 0;
        for (int32_t i = 0; i < k; i++) *prefix += tokens[i];
        *len = tokens[k];
        return;
    }
    const int64_t total = l->o->sizes->model != NULL ? l->o->sizes->run.seq_len : s->n_slices;
    const int64_t base = total / s->n_slices, rest = total % s->n_slices;
    *len = (int32_t)(base + (k < rest ? 1 : 0));
    *prefix = (int32_t)(base * k + (k < rest ? k : rest));
}

uint32_t lower_first_behind(const lowering *l, int32_t row, uint64_t when)
{
    uint32_t lo = l->ix->row_first[row], hi = l->ix->row_first[row + 1];
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (lower_when(l, mid, row) > when)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo < l->ix->row_first[row + 1] ? lo : NODE_NONE;
}

td_status lower_add_streams(td_arena *a, const plan *in, const new_stream *streams,
                            uint32_t n_streams, const plan_task *tasks, uint32_t n_tasks, plan *out,
                            td_err *err)
{
    *out = *in;
    if ((uint64_t)in->n_tasks + n_tasks >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more tasks than a plan can number");
    out->n_streams = in->n_streams + n_streams;
    out->n_tasks = in->n_tasks + n_tasks;
    out->streams = TD_NEW_N(a, plan_stream, out->n_streams);
    out->tasks = TD_NEW_N(a, plan_task, out->n_tasks + 1);
    out->ranks = TD_NEW_N(a, plan_rank, out->n_ranks);
    if (out->streams == NULL || out->tasks == NULL || out->ranks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", out->n_tasks);
    memcpy(out->tasks, in->tasks, in->n_tasks * sizeof *tasks);
    if (n_tasks > 0) memcpy(out->tasks + in->n_tasks, tasks, n_tasks * sizeof *tasks);
    memcpy(out->ranks, in->ranks, in->n_ranks * sizeof *out->ranks);
    for (uint32_t i = 0; i < n_streams; i++) out->ranks[streams[i].rank].n_streams++;
    uint32_t at = 0;
    for (uint32_t r = 0; r < in->n_ranks; r++) {
        plan_rank *const rank = &out->ranks[r];
        const plan_rank *const old = &in->ranks[r];
        rank->first_stream = at;
        at += rank->n_streams;
        rank->n_streams = old->n_streams;
        memcpy(&out->streams[rank->first_stream], &in->streams[old->first_stream],
               old->n_streams * sizeof *out->streams);
    }
    for (uint32_t i = 0; i < n_streams; i++) {
        plan_rank *const rank = &out->ranks[streams[i].rank];
        out->streams[rank->first_stream + rank->n_streams++] =
            (plan_stream){.kind = streams[i].kind,
                          .rank = streams[i].rank,
                          .first_task = in->n_tasks + streams[i].first,
                          .n_tasks = streams[i].n,
                          .channel = streams[i].channel};
    }
    return TD_OK;
}

/* --- place --- */

static td_status place_insts(const lowering *l, plan *p, td_err *err)
{
    const schedule *const s = l->s;
    p->n_insts = (uint32_t)(s->n_pipes * s->n_stages + lower_shards(l));
    p->insts = TD_NEW_N(l->a, plan_inst, p->n_insts);
    if (p->insts == NULL) return td_fail(err, TD_ENOMEM, "out of memory for stages");
    for (int32_t i = 0; i < s->n_pipes; i++)
        for (int32_t st = 0; st < s->n_stages; st++)
            p->insts[i * s->n_stages + st] = (plan_inst){
                .pipe = i,
                .stage = st,
                .forward_row = s->pipes[i].forward_row[st],
                .backward_row = s->pipes[i].backward_row[st],
                .all_step = s->weights == WEIGHTS_ALL_STEP &&
                            s->pipes[i].forward_row[st] != s->pipes[i].backward_row[st]};
    for (int32_t row = 0; row < lower_shards(l); row++)
        p->insts[lower_shard_inst(l, row)] =
            (plan_inst){.stage = s->n_stages, .forward_row = row, .backward_row = row};
    return TD_OK;
}

/* The class of one pass. */
static td_status place_class(const lowering *l, class_table *classes, const sched_cell *c,
                             uint32_t *cls, td_err *err)
{
    plan_class pc = {
        .kind = c->kind, .inst = lower_inst(l, c->microbatch, c->stage), .second = PLAN_NONE};
    lower_slice(l, c->microbatch, c->slice, &pc.slice_len, &pc.prefix);
    return class_intern(classes, &pc, cls, err);
}

/* The task of a node of a row; a pair's members go to p->members. */
static td_status place_task(const lowering *l, class_table *classes, int32_t row,
                            const sched_cell *c, plan *p, plan_task *t, td_err *err)
{
    *t = (plan_task){.kind = c->kind,
                     .slice = c->slice,
                     .microbatch = (uint32_t)c->microbatch,
                     .link = PLAN_NONE,
                     .gate = PLAN_NONE,
                     .join = PLAN_NONE};
    if (c->kind == CELL_IDLE) {
        const plan_class mark = {
            .kind = TASK_MARK, .inst = PLAN_NONE, .second = PLAN_NONE, .slice_len = row};
        t->kind = TASK_MARK;
        return class_intern(classes, &mark, &t->cls, err);
    }
    TD_TRY(place_class(l, classes, c, &t->cls, err));
    if (!c->overlaps) return TD_OK;
    const sched_cell *const d = c + 1;
    if (d->overlaps)
        return td_fail(err, TD_EPLAN, "an overlapped cell holds a forward and a backward, no more");
    uint32_t second = 0;
    TD_TRY(place_class(l, classes, d, &second, err));
    p->members[p->n_members] = (plan_member){
        .kind = c->kind, .slice = c->slice, .microbatch = t->microbatch, .cls = t->cls};
    p->members[p->n_members + 1] = (plan_member){
        .kind = d->kind, .slice = d->slice, .microbatch = (uint32_t)d->microbatch, .cls = second};
    t->kind = TASK_PAIR;
    t->link = p->n_members;
    p->n_members += 2;
    plan_class pair = classes->items[t->cls];
    pair.kind = TASK_PAIR;
    pair.bytes = t->cls; /* a pair's class names both members; it moves no bytes */
    pair.second = second;
    return class_intern(classes, &pair, &t->cls, err);
}

/* The position of a row among the rows, in the order of devices. */
static int32_t place_of(const lowering *l, int32_t row)
{
    return l->o->placement == PLACEMENT_FOLDED && row % 2 == 1 ? l->s->n_rows - row : row;
}

/* The first device of each row: rows in the order of their places, each with its replicas. */
static td_status row_devices(const lowering *l, int32_t **out, td_err *err)
{
    const int32_t n = l->s->n_rows;
    int32_t *const devices = TD_NEW_N(l->a, int32_t, n);
    int32_t *const row_at = TD_NEW_N(l->a, int32_t, n);
    if (devices == NULL || row_at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for rows");
    for (int32_t row = 0; row < n; row++) row_at[place_of(l, row)] = row;
    int64_t next = 0;
    for (int32_t i = 0; i < n; i++) {
        if (next > INT32_MAX) return td_fail(err, TD_EUSAGE, "more than %d devices", INT32_MAX);
        devices[row_at[i]] = (int32_t)next;
        next += (int64_t)l->row_tp[row_at[i]] * l->o->dp;
    }
    *out = devices;
    return TD_OK;
}

static td_status place_row(const lowering *l, class_table *classes, int32_t row,
                           int32_t first_device, plan *p, td_err *err)
{
    const sched_index *const ix = l->ix;
    const uint32_t n = ix->row_first[row + 1] - ix->row_first[row];
    for (int32_t d = 0; d < l->replicas; d++) {
        const uint32_t rank = lower_rank(l, row, d);
        const uint32_t first = p->n_tasks;
        p->ranks[rank] = (plan_rank){.row = row,
                                     .replica = d,
                                     .tp = l->row_tp[row],
                                     .device = first_device + d * l->row_tp[row],
                                     .first_stream = rank,
                                     .n_streams = 1};
        p->streams[rank] =
            (plan_stream){.kind = STREAM_COMPUTE, .rank = rank, .first_task = first, .n_tasks = n};
        for (uint32_t i = 0; i < n; i++)
            TD_TRY(place_task(l, classes, row, ix->cell[ix->row_first[row] + i], p,
                              &p->tasks[first + i], err));
        p->n_tasks += n;
    }
    return TD_OK;
}

td_status lower_place(const lowering *l, plan *out, td_err *err)
{
    const schedule *const s = l->s;
    const lower_options *const o = l->o;
    *out = (plan){.schedule_name = s->name,
                  .n_rows = s->n_rows,
                  .n_stages = s->n_stages,
                  .n_pipes = s->n_pipes,
                  .n_microbatches = s->n_microbatches,
                  .n_slices = s->n_slices,
                  .dp = o->dp,
                  .tp = l->tp,
                  .folded_dp = o->fold,
                  .folded_tp = l->tp > 1,
                  .mapping = o->mapping,
                  .lookahead = o->lookahead,
                  .send_window = o->send_window,
                  .chunks = o->sizes->chunks < 1 ? 1 : o->sizes->chunks};
    int32_t len = 0, prefix = 0;
    lower_slice(l, 0, s->n_slices - 1, &len, &prefix);
    out->seq_len = len + prefix;
    const int64_t n_ranks = (int64_t)s->n_rows * l->replicas;
    const int64_t n_tasks = (int64_t)l->ix->n_nodes * l->replicas;
    if (n_ranks > 1 << 24 || n_tasks >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "%lld ranks and %lld passes: more than a plan can number",
                       (long long)n_ranks, (long long)n_tasks);
    out->n_ranks = out->n_streams = (uint32_t)n_ranks;
    out->ranks = TD_NEW_N(l->a, plan_rank, n_ranks);
    out->streams = TD_NEW_N(l->a, plan_stream, n_ranks);
    out->tasks = TD_NEW_N(l->a, plan_task, n_tasks + 1);
    size_t n_pairs = 0;
    for (uint32_t i = 0; i < l->ix->n_nodes; i++) n_pairs += l->ix->cell[i]->overlaps;
    out->members = TD_NEW_N(l->a, plan_member, 2 * n_pairs * (size_t)l->replicas);
    if (out->ranks == NULL || out->streams == NULL || out->tasks == NULL || out->members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %lld tasks", (long long)n_tasks);
    TD_TRY(place_insts(l, out, err));
    if (o->sizes->stages != NULL) {
        out->stages = TD_NEW_N(l->a, stage_desc, s->n_stages);
        if (out->stages == NULL) return td_fail(err, TD_ENOMEM, "out of memory for stages");
        memcpy(out->stages, o->sizes->stages, (size_t)s->n_stages * sizeof *out->stages);
    }
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, NULL, err));
    int32_t *devices = NULL;
    TD_TRY(row_devices(l, &devices, err));
    for (int32_t row = 0; row < s->n_rows; row++)
        TD_TRY(place_row(l, &classes, row, devices[row], out, err));
    class_table_close(&classes, out);
    return TD_OK;
}

/* --- the passes in their order --- */

static const char *const pass_names[] = {"place",  "comm",   "collect", "step",
                                         "memory", "shards", NULL};

const char *const *plan_pass_names(void) { return pass_names; }

typedef td_status lower_pass(const lowering *l, const plan *in, plan *out, td_err *err);

/* The checker after a pass. */
static td_status check_pass(const lowering *l, const plan *p, td_err *err)
{
    td_arena_reset(l->scratch);
    return plan_check(p, l->scratch, err);
}

static td_status run_passes(const lowering *l, plan *out, td_err *err)
{
    static lower_pass *const passes[] = {lower_comm, lower_collect, lower_step, lower_memory,
                                         lower_unfold};
    const size_t n_passes = sizeof passes / sizeof *passes - (l->o->shards ? 0 : 1);
    TD_TRY(lower_place(l, out, err));
    out->stage_of_run = pass_names[0];
    TD_TRY(check_pass(l, out, err));
    for (size_t i = 0; i < n_passes; i++) {
        if (l->o->after != NULL && strcmp(l->o->after, out->stage_of_run) == 0) break;
        const plan in = *out;
        td_arena_reset(l->scratch);
        TD_TRY(passes[i](l, &in, out, err));
        out->stage_of_run = pass_names[i + 1];
        /* a pass that had nothing to do leaves what was checked already */
        if (out->tasks != in.tasks) TD_TRY(check_pass(l, out, err));
    }
    return TD_OK;
}

td_status plan_check_slices(const schedule *s, const sizes *z, td_err *err)
{
    if (z->model != NULL && !z->model->causal && s->n_slices > 1)
        return td_fail(err, TD_EUSAGE,
                       "bidirectional attention cannot be cut into slices: every "
                       "token needs every other; legal: --slices 1");
    const int64_t seq_len = z->model != NULL ? z->run.seq_len : 0;
    if (s->slice_tokens == NULL && seq_len > 0 && s->n_slices > seq_len)
        return td_fail(err, TD_EUSAGE, "%d slices of %lld tokens: a slice holds at least one",
                       s->n_slices, (long long)seq_len);
    for (int32_t m = 0; s->slice_tokens != NULL && m < s->n_microbatches; m++) {
        int64_t sum = 0;
        for (int32_t k = 0; k < s->n_slices; k++)
            sum += s->slice_tokens[(size_t)m * (size_t)s->n_slices + (size_t)k];
        if (seq_len > 0 && sum != seq_len)
            return td_fail(err, TD_EUSAGE,
                           "microbatch %d: its slices hold %lld tokens, a sequence %lld; slice "
                           "lengths must add up to --seq-len",
                           m, (long long)sum, (long long)seq_len);
    }
    return TD_OK;
}

/* Copies that share out an optimizer state must be as many for each stage. */
static td_status check_copies(const schedule *s, const lower_options *o, td_err *err)
{
    if (!o->zero1 || s->weights != WEIGHTS_ALL_STEP || !sched_is_disaggregated(s)) return TD_OK;
    for (int32_t p = 0; p < s->n_pipes; p++)
        for (int32_t i = 0; i < s->n_stages; i++)
            if (s->pipes[p].forward_row[i] == s->pipes[p].backward_row[i])
                return td_fail(err, TD_EUSAGE,
                               "--zero1: stage %d steps on one row and others on two; leave it out "
                               "or refresh the weights",
                               i);
    return TD_OK;
}

/* Shards of a backward row and a whole forward row have no pieces of an optimizer in common. */
static td_status check_degrees(const schedule *s, const lower_options *o, const int32_t *row_tp,
                               td_err *err)
{
    if (!o->zero1 || s->weights != WEIGHTS_ALL_STEP) return TD_OK;
    for (int32_t p = 0; p < s->n_pipes; p++)
        for (int32_t i = 0; i < s->n_stages; i++)
            if (row_tp[s->pipes[p].forward_row[i]] != row_tp[s->pipes[p].backward_row[i]])
                return td_fail(err, TD_EUSAGE,
                               "--zero1: stage %d steps on a row of tensor-parallel degree %d and "
                               "on one of %d; leave it out or refresh the weights",
                               i, row_tp[s->pipes[p].forward_row[i]],
                               row_tp[s->pipes[p].backward_row[i]]);
    return TD_OK;
}

static td_status check_options(const schedule *s, const lower_options *o, td_err *err)
{
    if (o->sizes == NULL || o->dp < 1 || o->tp < 1 || o->lookahead < 0 || o->send_window < 0)
        return td_fail(
            err, TD_EUSAGE,
            "--dp and --tp must be at least 1, --lookahead and --send-window at least 0");
    if (o->sizes->model != NULL && o->sizes->n_stages != s->n_stages)
        return td_fail(err, TD_EUSAGE, "layers for %d stages, but the schedule has %d",
                       o->sizes->n_stages, s->n_stages);
    TD_TRY(plan_check_slices(s, o->sizes, err));
    TD_TRY(check_copies(s, o, err));
    TD_TRY(lower_check_validate(s, o, err));
    if (o->placement == PLACEMENT_FOLDED && s->n_rows % 2 != 0)
        return td_fail(err, TD_EUSAGE,
                       "--placement folded puts two rows beside each other; there are %d: legal: "
                       "straight, or an even number of ranks",
                       s->n_rows);
    for (const char *const *n = pass_names; o->after != NULL; n++) {
        if (*n == NULL)
            return td_fail(err, TD_EUSAGE,
                           "--after=%s: no such pass; legal: place, comm, collect, "
                           "step, memory, shards",
                           o->after);
        if (strcmp(*n, o->after) == 0) break;
    }
    return TD_OK;
}

/* With a model: tables lie in shards on all rows, or whole on the end stages. */
static td_status check_vocab(const sched_index *ix, const lower_options *o, td_err *err)
{
    const schedule *const s = ix->s;
    const int32_t shards = s->vocab == VOCAB_NONE ? 0 : s->n_rows;
    if (o->sizes->model == NULL) return TD_OK;
    if (o->sizes->vocab_shards != shards)
        return td_fail(err, TD_EUSAGE,
                       "the schedule has its vocabulary layers in %d shards, the sizes in %d",
                       shards, o->sizes->vocab_shards);
    if (shards > 0 && ix->pos[PASS_E] == NULL)
        return td_fail(err, TD_EUSAGE,
                       "S and T without E and G: with a model both vocabulary layers are sharded; "
                       "give the schedule E and G, or --times without --model");
    return TD_OK;
}

/* Lowers with two arenas of its own: what the passes leave behind goes with `a`. */
static td_status lower_with(const schedule *s, const lower_options *o, td_arena *a,
                            td_arena *scratch, plan *out, td_err *err)
{
    sched_index ix;
    int32_t *row_tp = NULL, tp = 1;
    TD_TRY(sched_check_index(s, a, &ix, err));
    TD_TRY(lower_roles(s, o->tp, a, &row_tp, &tp, err));
    TD_TRY(check_degrees(s, o, row_tp, err));
    TD_TRY(check_vocab(&ix, o, err));
    sizes z = *o->sizes; /* what the plan is of rules, so that sizes cannot contradict it */
    z.twins = sched_copies(s);
    z.run.dp = o->dp;
    z.run.tp = tp;
    z.run.zero1 = o->zero1;
    lower_options options = *o;
    options.sizes = &z;
    const lowering l = {.s = s,
                        .o = &options,
                        .ix = &ix,
                        .a = a,
                        .scratch = scratch,
                        .replicas = o->fold ? 1 : o->dp,
                        .row_tp = row_tp,
                        .tp = tp};
    return run_passes(&l, out, err);
}

td_status plan_lower(const schedule *s, const lower_options *o, td_arena *a, plan *out, td_err *err)
{
    TD_TRY(check_options(s, o, err));
    td_arena *const own = td_arena_new(), *const scratch = td_arena_new();
    td_status st = TD_OK;
    plan lowered;
    if (own == NULL || scratch == NULL)
        st = td_fail(err, TD_ENOMEM, "out of memory");
    else
        st = lower_with(s, o, own, scratch, &lowered, err);
    if (st == TD_OK) st = plan_copy(&lowered, a, out, err);
    td_arena_free(own);
    td_arena_free(scratch);
    return st;
}
