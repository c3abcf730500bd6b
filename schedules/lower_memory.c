/* memory: which buffers each task reads, writes or adds to, how long each lives, and where in the
 * rank's arena it lies.
 *
 * A buffer lives from the gate of its first use to the join of its last, in compute positions: a
 * task off the compute stream may touch it from just after its gate until its join is over. Two
 * buffers whose lives do not meet may share bytes, whatever the streams do. */
#include "schedules/lower_memory.h"
#include "base/text.h"

#include <string.h>

/* --- buffers --- */

/* k < 0: of the whole microbatch; m < 0: of none */
static td_status memory_class(memory *mem, size_kind what, int32_t inst, int32_t m, int32_t k,
                              uint32_t *out, td_err *err)
{
    const schedule *const s = mem->l->s;
    int32_t stage = inst < 0 ? 0 : inst % s->n_stages;
    if (inst >= s->n_pipes * s->n_stages) stage = s->n_stages; /* a shard of the tables */
    plan_class key = {
        .kind = (uint8_t)what, .inst = inst < 0 ? PLAN_NONE : (uint32_t)inst, .second = PLAN_NONE};
    if (m >= 0 && k >= 0) lower_slice(mem->l, m, k, &key.slice_len, &key.prefix);
    if (m >= 0 && k < 0) key.slice_len = mem->seq_len;
    key.bytes = mem->l->row_tp[mem->row]; /* rows of other degrees hold other shards */
    const size_t known = mem->classes.n;
    TD_TRY(class_intern(&mem->classes, &key, out, err));
    if (mem->classes.n == known) return TD_OK;
    TD_TRY(TD_GROW(mem->l->a, mem->class_bytes, mem->cap_class_bytes, *out + 1, err));
    return lower_bytes(mem->l, what, stage, mem->row, key.slice_len, key.prefix,
                       &mem->class_bytes[*out], err);
}

/* A new buffer of the row at hand; PLAN_NONE when it would hold nothing. */
static td_status memory_new(memory *mem, uint32_t bclass, bool whole_run, uint32_t *out,
                            td_err *err)
{
    *out = PLAN_NONE;
    if (mem->class_bytes[bclass] == 0) return TD_OK;
    if (!mem->opens)
        return td_fail(err, TD_EPLAN, "row %d: no pass uses the buffer of a message or collective",
                       mem->row);
    TD_TRY(TD_GROW(mem->l->a, mem->buffers, mem->cap_buffers, mem->n_buffers + 1, err));
    *out = (uint32_t)(mem->n_buffers - mem->row_first[mem->row]);
    if (*out > MEMORY_BUFFER_MAX)
        return td_fail(err, TD_EUSAGE, "row %d: more buffers than a plan can number", mem->row);
    mem->buffers[mem->n_buffers++] = (plan_buffer){
        .birth = whole_run ? 0 : UINT32_MAX, .death = whole_run ? UINT32_MAX : 0, .bclass = bclass};
    return TD_OK;
}

bool memory_is_split(const memory *mem, int32_t stage, int32_t m, int32_t k)
{
    return index_find(mem->l->ix, PASS_W, stage, m, k) != NODE_NONE;
}

td_status memory_tensor(memory *mem, memory_table table, int32_t stage, int32_t m, int32_t k,
                        uint32_t *out, td_err *err)
{
    static const size_kind kinds[TABLE_COUNT] = {
        SIZE_BOUNDARY,    SIZE_BOUNDARY,    SIZE_BOUNDARY, SIZE_BOUNDARY, SIZE_BOUNDARY,
        SIZE_STASH,       SIZE_STASH_W,     SIZE_WSTASH,   SIZE_TOKENS,   SIZE_TOKENS,
        SIZE_KV,          SIZE_KV,          SIZE_DKV,      SIZE_BOUNDARY, SIZE_BOUNDARY,
        SIZE_VOCAB_STATS, SIZE_VOCAB_STASH, SIZE_TOKENS,   SIZE_BOUNDARY, SIZE_BOUNDARY};
    const bool tokens =
        table == TABLE_TOKENS || table == TABLE_TOKENS_AGAIN || table == TABLE_VOCAB_TOKENS;
    const bool whole = tokens || table == TABLE_DKV;
    const size_t slot = index_slot(mem->l->s, stage, m, whole ? 0 : k);
    uint32_t *const known = &mem->tables[table][slot];
    if (*known != MEMORY_UNKNOWN) {
        *out = *known;
        return TD_OK;
    }
    /* the tensor at a border has the size of the later stage's input */
    const bool at_output = table == TABLE_ACT_OUT || table == TABLE_GRAD_IN;
    int32_t border = at_output ? stage + 1 : stage;
    if (table >= TABLE_VOCAB_X) border = table < TABLE_VOCAB_TOKENS ? mem->l->s->n_stages - 1 : 0;
    const int32_t inst = (int32_t)lower_inst(mem->l, m, border);
    const bool for_i = table == TABLE_STASH && memory_is_split(mem, stage, m, k);
    uint32_t bclass = 0;
    TD_TRY(memory_class(mem, for_i ? SIZE_STASH_I : kinds[table], inst, m, whole ? -1 : k, &bclass,
                        err));
    TD_TRY(memory_new(mem, bclass, tokens, out, err));
    *known = *out;
    return TD_OK;
}

td_status memory_of_run(memory *mem, size_kind what, int32_t inst, uint32_t *out, td_err *err)
{
    for (size_t i = mem->run_first[mem->row]; i < mem->run_end[mem->row]; i++)
        if (mem->run[i].what == what && mem->run[i].inst == inst) {
            *out = mem->run[i].buffer;
            return TD_OK;
        }
    uint32_t bclass = 0;
    const bool passes = what == SIZE_WEIGHT_PARTS || what == SIZE_GRAD_PARTS;
    TD_TRY(memory_class(mem, what, inst, -1, -1, &bclass, err));
    TD_TRY(memory_new(mem, bclass, !passes, out, err));
    TD_TRY(TD_GROW(mem->l->a, mem->run, mem->cap_run, mem->n_run + 1, err));
    mem->run[mem->n_run++] = (run_buffer){.what = what, .inst = inst, .buffer = *out};
    mem->run_end[mem->row] = mem->n_run;
    return TD_OK;
}

/* One workspace a rank, as large as its hungriest pass needs. */
td_status memory_scratch(memory *mem, size_kind what, int32_t inst, int32_t m, int32_t k,
                         uint32_t *out, td_err *err)
{
    uint32_t bclass = 0;
    *out = mem->scratch;
    if (!mem->opens) return TD_OK; /* a replica of a row that is done */
    TD_TRY(memory_class(mem, what, inst, m, k, &bclass, err));
    if (mem->scratch == PLAN_NONE) TD_TRY(memory_new(mem, bclass, true, &mem->scratch, err));
    *out = mem->scratch;
    if (*out == PLAN_NONE) return TD_OK;
    plan_buffer *const b = &mem->buffers[mem->row_first[mem->row] + *out];
    if (mem->class_bytes[bclass] > mem->class_bytes[b->bclass]) b->bclass = bclass;
    return TD_OK;
}

/* --- lives --- */

void memory_use(memory *mem, use_mode mode, use_role role, uint32_t buffer)
{
    if (buffer == PLAN_NONE) return;
    mem->uses[mem->n_uses++] = use_pack(mode, role, buffer);
    plan_buffer *const b = &mem->buffers[mem->row_first[mem->row] + buffer];
    if (b->death == UINT32_MAX && b->birth == 0) return; /* of the whole run */
    if (mem->from < b->birth) b->birth = mem->from;
    if (mem->to > b->death) b->death = mem->to;
}

/* The positions in which a task may touch its buffers. A join counts: what is posted just before it
 * may run while the join still waits. */
static void set_window(memory *mem, const plan *p, const plan_stream *s, uint32_t task)
{
    const plan_stream *const compute = plan_compute(p, s->rank);
    if (s->kind == STREAM_COMPUTE) {
        mem->from = mem->to = task - compute->first_task;
        return;
    }
    const plan_task *const t = &p->tasks[task];
    mem->from = t->gate == PLAN_NONE ? 0 : t->gate - compute->first_task + 1;
    const bool to_end = t->join == PLAN_NONE || (t->flags & TASK_FLAG_JOIN_NEXT) != 0;
    mem->to = to_end ? compute->n_tasks : t->join - compute->first_task;
}

/* --- the pass --- */

/* How many buffers a task uses at most; a pass on a slice those of all slices before it too. */
static size_t most_uses(const lowering *l, const plan *in, const plan_task *t)
{
    const bool cached = l->s->n_slices > 1 && l->o->sizes->model != NULL;
    if (t->kind == TASK_PAIR)
        return 2 * (MEMORY_PASS_USES + (cached ? (size_t)l->s->n_slices + 1 : 0));
    if (t->kind < PASS_COUNT) return MEMORY_PASS_USES + (cached ? (size_t)t->slice + 2 : 0);
    const bool step = t->kind == TASK_NORM || t->kind == TASK_OPTIMIZER || t->kind == TASK_VERIFY;
    return MEMORY_MEETING_USES + (step ? 5 * (size_t)in->n_insts : 0);
}

static td_status open_memory(memory *mem, const lowering *l, const plan *in, td_err *err)
{
    *mem = (memory){.l = l, .scratch = PLAN_NONE, .seq_len = (int32_t)in->seq_len};
    TD_TRY(class_table_open(&mem->classes, l->a, NULL, err));
    const int tables = l->s->vocab == VOCAB_NONE ? TABLE_VOCAB_X : TABLE_COUNT;
    const int32_t most = l->s->n_stages > l->s->n_rows ? l->s->n_stages : l->s->n_rows;
    const size_t slots = index_slot(l->s, most, 0, 0);
    for (int t = 0; t < tables; t++) {
        mem->tables[t] = TD_NEW_N(l->scratch, uint32_t, slots);
        if (mem->tables[t] == NULL) return td_fail(err, TD_ENOMEM, "out of memory for buffers");
        for (size_t i = 0; i < slots; i++) mem->tables[t][i] = MEMORY_UNKNOWN;
    }
    size_t bound = 0;
    for (uint32_t i = 0; i < in->n_tasks; i++) bound += most_uses(l, in, &in->tasks[i]);
    if (bound >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE,
                       "up to %zu uses of buffers: more than a plan can number; fewer "
                       "--microbatches or slices",
                       bound);
    mem->row_first = TD_NEW_N(l->a, size_t, l->s->n_rows + 1);
    mem->uses = TD_NEW_N(l->a, uint32_t, bound);
    mem->run_first = TD_NEW_N(l->a, size_t, l->s->n_rows);
    mem->run_end = TD_NEW_N(l->a, size_t, l->s->n_rows);
    if (mem->row_first == NULL || mem->uses == NULL || mem->run_first == NULL ||
        mem->run_end == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for buffer uses");
    return TD_OK;
}

/* Streams by first task, so that a walk over them meets tasks in order of their ids. */
static const plan_stream **streams_by_task(td_arena *a, const plan *p)
{
    const plan_stream **const order = TD_NEW_N(a, const plan_stream *, p->n_streams);
    uint32_t *const at = TD_NEW_N(a, uint32_t, p->n_tasks + 1);
    if (order == NULL || at == NULL) return NULL;
    for (uint32_t i = 0; i < p->n_streams; i++)
        if (p->streams[i].n_tasks > 0) at[p->streams[i].first_task] = i + 1;
    uint32_t n = 0;
    for (uint32_t t = 0; t < p->n_tasks;) {
        const plan_stream *const s = &p->streams[at[t] - 1];
        order[n++] = s;
        t += s->n_tasks;
    }
    for (; n < p->n_streams; n++) order[n] = NULL;
    return order;
}

static td_status walk(memory *mem, const plan *in, plan *out, td_err *err)
{
    const plan_stream **const order = streams_by_task(mem->l->scratch, in);
    if (order == NULL) return td_fail(err, TD_ENOMEM, "out of memory for streams");
    for (uint32_t i = 0; i < in->n_streams && order[i] != NULL; i++) {
        const plan_stream *const s = order[i];
        const plan_rank *const rank = &in->ranks[s->rank];
        const bool opens_row = s->kind == STREAM_COMPUTE && rank->replica == 0;
        mem->row = rank->row;
        if (opens_row) {
            mem->row_first[rank->row] = mem->n_buffers;
            mem->run_first[rank->row] = mem->run_end[rank->row] = mem->n_run;
            mem->scratch = PLAN_NONE;
        }
        mem->opens = opens_row;
        for (uint32_t j = 0; j < s->n_tasks; j++) {
            const uint32_t task = s->first_task + j;
            out->tasks[task].first_use = (uint32_t)mem->n_uses;
            set_window(mem, in, s, task);
            TD_TRY(memory_task_uses(mem, out, task, err));
        }
        if (opens_row) mem->row_first[rank->row + 1] = mem->n_buffers;
    }
    out->tasks[out->n_tasks].first_use = (uint32_t)mem->n_uses;
    return TD_OK;
}

/* Every replica of a row has the row's buffers. */
static td_status copy_buffers(memory *mem, plan *out, td_err *err)
{
    const int32_t replicas = mem->l->replicas;
    const size_t n = mem->n_buffers * (size_t)replicas;
    if (n >= PLAN_NONE) return td_fail(err, TD_EUSAGE, "more buffers than a plan can number");
    out->n_buffers = (uint32_t)n;
    out->buffers = replicas == 1 ? mem->buffers : TD_NEW_N(mem->l->a, plan_buffer, n);
    out->n_bclasses = (uint32_t)mem->classes.n;
    out->bclasses = TD_NEW_N(mem->l->a, plan_bclass, out->n_bclasses);
    if ((n > 0 && out->buffers == NULL) || out->bclasses == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for buffers");
    for (uint32_t i = 0; i < out->n_bclasses; i++) {
        const plan_class *const c = &mem->classes.items[i];
        out->bclasses[i] = (plan_bclass){.what = c->kind,
                                         .inst = c->inst,
                                         .slice_len = c->slice_len,
                                         .prefix = c->prefix,
                                         .bytes = mem->class_bytes[i]};
    }
    uint32_t at = 0;
    for (uint32_t r = 0; r < out->n_ranks; r++) {
        const size_t first = mem->row_first[out->ranks[r].row];
        const size_t count = mem->row_first[out->ranks[r].row + 1] - first;
        out->ranks[r].first_buffer = at;
        out->ranks[r].n_buffers = (uint32_t)count;
        if (replicas > 1 && count > 0)
            memcpy(&out->buffers[at], &mem->buffers[first], count * sizeof *out->buffers);
        at += (uint32_t)count;
    }
    return TD_OK;
}

td_status plan_check_limit(const plan *p, int64_t limit, td_err *err)
{
    uint32_t n_over = 0, worst = 0;
    for (uint32_t r = 0; r < p->n_ranks && limit > 0; r++) {
        n_over += p->ranks[r].arena_bytes > limit;
        if (p->ranks[r].arena_bytes > p->ranks[worst].arena_bytes) worst = r;
    }
    if (n_over == 0) return TD_OK;
    const plan_rank *const k = &p->ranks[worst];
    char need[32], over[32], most[32], fixed[32];
    return td_fail(err, TD_EPLAN,
                   "rank %u needs %s, %s over the limit of %s (%s of it weights, gradients and "
                   "optimizer; %u of %u ranks are over); legal: --memory-limit %lld or more; more "
                   "--pp or --tp, --recompute, or a schedule with fewer microbatches in flight "
                   "would help",
                   worst, td_print_bytes(need, sizeof need, k->arena_bytes),
                   td_print_bytes(over, sizeof over, k->arena_bytes - limit),
                   td_print_bytes(most, sizeof most, limit),
                   td_print_bytes(fixed, sizeof fixed, k->persistent_bytes), n_over, p->n_ranks,
                   (long long)k->arena_bytes);
}

td_status lower_memory(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    memory mem;
    TD_TRY(open_memory(&mem, l, in, err));
    out->tasks = TD_NEW_N(l->a, plan_task, in->n_tasks + 1);
    out->ranks = TD_NEW_N(l->a, plan_rank, in->n_ranks);
    out->members = TD_NEW_N(l->a, plan_member, in->n_members);
    if (out->tasks == NULL || out->ranks == NULL || out->members == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks", in->n_tasks);
    memcpy(out->tasks, in->tasks, in->n_tasks * sizeof *out->tasks);
    memcpy(out->ranks, in->ranks, in->n_ranks * sizeof *out->ranks);
    if (in->n_members > 0) memcpy(out->members, in->members, in->n_members * sizeof *out->members);
    TD_TRY(walk(&mem, in, out, err));
    out->uses = mem.uses;
    out->n_uses = (uint32_t)mem.n_uses;
    TD_TRY(copy_buffers(&mem, out, err));
    for (uint32_t r = 0; r < out->n_ranks; r++) {
        td_arena_reset(l->scratch); /* bounds it by the largest rank */
        TD_TRY(memory_place(l->scratch, out, r, err));
    }
    return plan_check_limit(out, l->o->memory_limit, err);
}
