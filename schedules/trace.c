/* A Trace from a Plan and the times of its tasks, and the pairing of its messages. */
#include "schedules/trace.h"

#include <stdio.h>
#include <string.h>

#define NOT_FOUND UINT32_MAX

/* --- names --- */

static const char *const kind_names[TASK_KIND_COUNT] = {
#define X(kind, letter, name, forward) [kind] = (const char[]){letter, '\0'},
    TD_PASSES(X)
#undef X
        [TASK_PAIR] = "PAIR",
    [TASK_SEND] = "SEND",
    [TASK_RECV] = "RECV",
    [TASK_COLL] = "COLL",
    [TASK_NORM] = "NORM",
    [TASK_OPTIMIZER] = "OPTIMIZER",
    [TASK_MERGE] = "MERGE",
    [TASK_VERIFY] = "VERIFY",
    [TASK_MARK] = "MARK",
};

const char *trace_kind_name(uint8_t kind)
{
    return kind < TASK_KIND_COUNT ? kind_names[kind] : "?";
}

uint8_t trace_kind_of(const char *name)
{
    for (int k = 0; k < TASK_KIND_COUNT; k++)
        if (strcmp(kind_names[k], name) == 0) return (uint8_t)k;
    return TASK_KIND_COUNT;
}

const char *trace_class_name(uint8_t channel)
{
    static const char *const names[] = {"activations", "gradients", "hand-off", "weights",
                                        "norm so far"};
    return channel < sizeof names / sizeof *names ? names[channel] : "messages";
}

const char *trace_purpose_name(uint8_t purpose)
{
    static const char *const names[PURPOSE_COUNT] = {
        [PURPOSE_GRAD_SYNC] = "gradient sync",
        [PURPOSE_TIED] = "tied embedding",
        [PURPOSE_NORM] = "norm",
        [PURPOSE_C0] = "C0",
        [PURPOSE_C1] = "C1",
        [PURPOSE_C2] = "C2",
        [PURPOSE_EMBED_SUM] = "embedding sum",
        [PURPOSE_EMBED_GRAD] = "embedding gradient",
        [PURPOSE_LOSS] = "loss",
        [PURPOSE_WEIGHTS] = "weights",
        [PURPOSE_SHARDS] = "tensor-parallel sum",
        [PURPOSE_SHARD_GRADS] = "gradients of shards",
    };
    return purpose < PURPOSE_COUNT ? names[purpose] : "collective";
}

const char *trace_meta_get(const trace *t, const char *key)
{
    for (uint32_t i = 0; i < t->n_meta; i++)
        if (strcmp(t->meta[i].key, key) == 0) return t->meta[i].value;
    return NULL;
}

static void name_stream(const plan *p, const plan_stream *s, trace_stream *out)
{
    const bool channel = s->kind == STREAM_SEND || s->kind == STREAM_RECV;
    const plan_channel *const c =
        channel && s->channel < p->n_channels ? &p->channels[s->channel] : NULL;
    char *const name = out->name;
    const size_t size = sizeof out->name;
    if (s->kind == STREAM_COMPUTE) {
        (void)snprintf(name, size, "compute");
    } else if (c != NULL && s->kind == STREAM_SEND) {
        (void)snprintf(name, size, "send ->%u %s", c->dst, trace_class_name(c->cls));
    } else if (c != NULL) {
        (void)snprintf(name, size, "recv <-%u %s", c->src, trace_class_name(c->cls));
    } else if (s->kind == STREAM_COLL) {
        (void)snprintf(name, size, "collectives %u", s->channel);
    } else {
        (void)snprintf(name, size, "messages");
    }
}

/* --- records --- */

static void place_of(const plan *p, uint32_t cls, int32_t *stage, int32_t *pipe)
{
    const uint32_t inst = p->classes[cls].inst;
    const bool of_stage = inst < p->n_insts && p->insts[inst].stage < p->n_stages; /* or a shard */
    *stage = of_stage ? p->insts[inst].stage : -1;
    *pipe = of_stage ? p->insts[inst].pipe : -1;
}

static int32_t microbatch_of(uint32_t m) { return m == PLAN_NONE ? -1 : (int32_t)m; }

static trace_record record_of(const plan *p, const task_times *times, uint32_t task,
                              const uint32_t *rank_of)
{
    const plan_task *const k = &p->tasks[task];
    const plan_class *const c = &p->classes[k->cls];
    trace_record r = {.begin_ns = times->begin_ns[task],
                      .end_ns = times->end_ns[task],
                      .bytes = c->bytes,
                      .task = task,
                      .microbatch = microbatch_of(k->microbatch),
                      .slice = k->slice,
                      .kind = k->kind,
                      .peer = -1,
                      .microbatch2 = -1,
                      .stage2 = -1,
                      .pipe2 = -1,
                      .kind2 = PASS_COUNT};
    place_of(p, k->cls, &r.stage, &r.pipe);
    if (k->kind == TASK_SEND || k->kind == TASK_RECV) {
        r.detail = c->detail;
        if (k->link < p->n_tasks) r.peer = (int32_t)rank_of[k->link];
    } else if (k->kind == TASK_COLL) {
        r.detail = c->purpose;
    } else if (k->kind == TASK_PAIR) {
        const plan_member *const first = &p->members[k->link];
        const plan_member *const second = first + 1;
        r.detail = first->kind;
        r.microbatch = microbatch_of(first->microbatch);
        r.slice = first->slice;
        place_of(p, first->cls, &r.stage, &r.pipe);
        r.kind2 = second->kind;
        r.microbatch2 = microbatch_of(second->microbatch);
        r.slice2 = second->slice;
        place_of(p, second->cls, &r.stage2, &r.pipe2);
    }
    return r;
}

static td_status build_records(const plan *p, const task_times *times, td_arena *scratch,
                               trace *out, td_err *err)
{
    uint32_t *const rank_of = TD_NEW_N(scratch, uint32_t, p->n_tasks);
    if (rank_of == NULL) return td_fail(err, TD_ENOMEM, "trace: out of memory");
    for (uint32_t s = 0; s < p->n_streams; s++)
        for (uint32_t i = 0; i < p->streams[s].n_tasks; i++)
            rank_of[p->streams[s].first_task + i] = p->streams[s].rank;
    uint32_t n = 0, at = 0;
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        const plan_rank *const pr = &p->ranks[rank];
        for (uint32_t s = pr->first_stream; s < pr->first_stream + pr->n_streams; s++) {
            const plan_stream *const from = &p->streams[s];
            trace_stream *const to = &out->streams[n];
            *to = (trace_stream){.rank = rank, .kind = from->kind, .first = at};
            name_stream(p, from, to);
            for (uint32_t i = 0; i < from->n_tasks; i++) {
                const uint32_t task = from->first_task + i;
                const bool goes_on = !plan_begins_pass(p, &p->tasks[task]);
                trace_record *const r = &out->records[goes_on ? at - 1 : at++];
                if (goes_on) /* a segment belongs to its pass */
                    r->end_ns = times->end_ns[task];
                else
                    *r = record_of(p, times, task, rank_of);
                r->stream = n;
                if (r->begin_ns < first) first = r->begin_ns;
                if (r->end_ns > last) last = r->end_ns;
            }
            to->n = at - to->first;
            n++;
        }
    }
    out->n_streams = n;
    out->n_records = at;
    out->step_ns = at > 0 ? last - first : 0;
    return TD_OK;
}

/* --- memory --- */

static void memory_point(trace *out, uint32_t rank, int64_t at_ns, int64_t bytes)
{
    trace_memory *const last = out->n_memory > 0 ? &out->memory[out->n_memory - 1] : NULL;
    if (last != NULL && last->rank == rank) {
        if (last->bytes == bytes) return;
        /* what is born and dies in one instant cancels out */
        if (last->at_ns >= at_ns) {
            last->bytes = bytes;
            return;
        }
    }
    out->memory[out->n_memory++] = (trace_memory){.at_ns = at_ns, .bytes = bytes, .rank = rank};
}

/* A buffer lives from the begin of the compute task at its birth to the end of the one at its
 * death; births and deaths beyond the last compute task belong to the whole period. */
static td_status rank_memory(const plan *p, const task_times *times, uint32_t rank,
                             td_arena *scratch, trace *out, td_err *err)
{
    const plan_rank *const pr = &p->ranks[rank];
    const plan_stream *const c = plan_compute(p, rank);
    int64_t *const born = TD_NEW_N(scratch, int64_t, (size_t)c->n_tasks * 2 + 1);
    if (born == NULL) return td_fail(err, TD_ENOMEM, "trace: out of memory");
    int64_t *const dead = born + c->n_tasks;
    int64_t bytes = 0;
    for (uint32_t i = 0; i < pr->n_buffers; i++) {
        const plan_buffer *const b = &p->buffers[pr->first_buffer + i];
        const int64_t size = p->bclasses[b->bclass].bytes;
        if (b->death == UINT32_MAX && b->birth == 0) {
            bytes += size;
            continue;
        }
        if (b->birth >= c->n_tasks) continue;
        born[b->birth] += size;
        if (b->death < c->n_tasks) dead[b->death] += size;
    }
    memory_point(out, rank, 0, bytes);
    for (uint32_t i = 0; i < c->n_tasks; i++) {
        const uint32_t task = c->first_task + i;
        bytes += born[i];
        memory_point(out, rank, times->begin_ns[task], bytes);
        bytes -= dead[i];
        memory_point(out, rank, times->end_ns[task], bytes);
    }
    return TD_OK;
}

static td_status build_memory(const plan *p, const task_times *times, td_arena *scratch,
                              td_arena *a, trace *out, td_err *err)
{
    size_t cap = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++) cap += 2 * (size_t)plan_compute(p, r)->n_tasks + 1;
    trace_memory *const all = TD_NEW_N(scratch, trace_memory, cap);
    out->peak_bytes = TD_NEW_N(a, int64_t, p->n_ranks);
    if (all == NULL || out->peak_bytes == NULL)
        return td_fail(err, TD_ENOMEM, "trace: out of memory");
    out->memory = all;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        TD_TRY(rank_memory(p, times, r, scratch, out, err));
        out->peak_bytes[r] = p->ranks[r].arena_bytes;
    }
    out->memory = TD_NEW_N(a, trace_memory, out->n_memory);
    if (out->memory == NULL) return td_fail(err, TD_ENOMEM, "trace: out of memory");
    memcpy(out->memory, all, (size_t)out->n_memory * sizeof *all);
    return TD_OK;
}

/* --- build --- */

static td_status copy_meta(const trace_meta *meta, uint32_t n, td_arena *a, trace *out, td_err *err)
{
    out->meta = TD_NEW_N(a, trace_meta, n);
    if (out->meta == NULL) return td_fail(err, TD_ENOMEM, "trace: out of memory");
    for (uint32_t i = 0; i < n; i++) {
        out->meta[i].key = td_strdup(a, meta[i].key);
        out->meta[i].value = td_strdup(a, meta[i].value);
        if (out->meta[i].key == NULL || out->meta[i].value == NULL)
            return td_fail(err, TD_ENOMEM, "trace: out of memory");
    }
    out->n_meta = n;
    return TD_OK;
}

td_status trace_build(const plan *p, const task_times *t, bool with_memory, const trace_meta *meta,
                      uint32_t n_meta, td_arena *a, trace *out, td_err *err)
{
    *out = (trace){.n_ranks = p->n_ranks,
                   .n_stages = p->n_stages,
                   .n_pipes = p->n_pipes,
                   .n_slices = p->n_slices,
                   .n_microbatches = p->n_microbatches,
                   .chunks = p->chunks};
    out->records = TD_NEW_N(a, trace_record, p->n_tasks);
    out->streams = TD_NEW_N(a, trace_stream, p->n_streams);
    td_arena *const scratch = td_arena_new();
    if (out->records == NULL || out->streams == NULL || scratch == NULL) {
        td_arena_free(scratch);
        return td_fail(err, TD_ENOMEM, "trace: out of memory for %u tasks", p->n_tasks);
    }
    td_status st = copy_meta(meta, n_meta, a, out, err);
    if (st == TD_OK) st = build_records(p, t, scratch, out, err);
    if (st == TD_OK && with_memory) st = build_memory(p, t, scratch, a, out, err);
    td_arena_free(scratch);
    return st;
}

/* --- messages --- */

/* A channel's sends in order, found again by its key. */
typedef struct msg_channel {
    uint64_t key; /* 0: free */
    uint32_t n_sends, n_recvs, first;
} msg_channel;

typedef struct msg_table {
    msg_channel *slots;
    size_t size; /* a power of two */
} msg_table;

static uint64_t msg_key(const trace *t, const trace_record *r)
{
    const uint64_t here = t->streams[r->stream].rank;
    const uint64_t there = (uint32_t)r->peer;
    const uint64_t src = r->kind == TASK_SEND ? here : there;
    const uint64_t dst = r->kind == TASK_SEND ? there : here;
    return (src << 34 | dst << 4 | r->detail) + 1;
}

static msg_channel *msg_find(const msg_table *table, uint64_t key)
{
    size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (table->size - 1);
    while (table->slots[i].key != 0 && table->slots[i].key != key) i = (i + 1) & (table->size - 1);
    table->slots[i].key = key;
    return &table->slots[i];
}

static bool is_message(const trace_record *r)
{
    return (r->kind == TASK_SEND || r->kind == TASK_RECV) && r->peer >= 0;
}

static void match(const trace *t, const msg_table *table, uint32_t *sends, uint32_t *partner)
{
    for (uint64_t i = 0; i < t->n_records; i++) {
        partner[i] = NOT_FOUND;
        if (t->records[i].kind == TASK_SEND && is_message(&t->records[i]))
            msg_find(table, msg_key(t, &t->records[i]))->n_sends++;
    }
    uint32_t at = 0;
    for (size_t i = 0; i < table->size; i++) {
        table->slots[i].first = at;
        at += table->slots[i].n_sends;
        table->slots[i].n_sends = 0;
    }
    for (uint64_t i = 0; i < t->n_records; i++) {
        if (t->records[i].kind != TASK_SEND || !is_message(&t->records[i])) continue;
        msg_channel *const c = msg_find(table, msg_key(t, &t->records[i]));
        sends[c->first + c->n_sends++] = (uint32_t)i;
    }
    for (uint64_t i = 0; i < t->n_records; i++) {
        if (t->records[i].kind != TASK_RECV || !is_message(&t->records[i])) continue;
        msg_channel *const c = msg_find(table, msg_key(t, &t->records[i]));
        if (c->n_recvs >= c->n_sends) continue;
        const uint32_t send = sends[c->first + c->n_recvs++];
        partner[i] = send;
        partner[send] = (uint32_t)i;
    }
}

td_status trace_match_messages(const trace *t, td_arena *a, uint32_t **partner, td_err *err)
{
    /* a stream on a shared mapping can carry several channels: bound them by messages */
    size_t messages = 0;
    for (uint64_t i = 0; i < t->n_records; i++) messages += is_message(&t->records[i]);
    msg_table table = {.size = 16};
    while (table.size < 2 * messages) table.size *= 2;
    *partner = TD_NEW_N(a, uint32_t, t->n_records);
    td_arena *const scratch = td_arena_new();
    uint32_t *const sends = scratch != NULL ? TD_NEW_N(scratch, uint32_t, messages) : NULL;
    table.slots = scratch != NULL ? TD_NEW_N(scratch, msg_channel, table.size) : NULL;
    td_status st = TD_OK;
    if (*partner == NULL || sends == NULL || table.slots == NULL)
        st = td_fail(err, TD_ENOMEM, "trace: out of memory for %zu messages", messages);
    else
        match(t, &table, sends, *partner);
    td_arena_free(scratch);
    return st;
}
