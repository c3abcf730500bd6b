/* shards: every tensor-parallel shard becomes a rank. Until here one rank stood for all shards of
 * its row, with the memory of one. Now a pass is cut where its shards wait for each other, and each
 * cut becomes a collective between two segments, on a stream of its own. A shard meets its like:
 * messages go from shard to shard of one number, gradients are summed among copies of one shard;
 * only the gradient norm is summed over all. A row that is not divided (merged forward ranks) sends
 * a message to each shard of a row that is, or takes one from each.
 *
 * Why nothing can deadlock that could not before: all shards of a row run the same tasks in the
 * same order, and a cut waits for nothing but its own pass in the others. */
#include "schedules/lower_unfold.h"

#include <string.h>

static uint32_t task_of(const unfold *u, uint32_t rank, uint32_t shard, uint32_t at)
{
    return u->ranks[rank].tasks + shard * u->ranks[rank].n_tasks + at;
}

/* --- tasks --- */

/* One shard being written. */
typedef struct shard_at {
    uint32_t rank, shard; /* the rank before */
} shard_at;

static uint32_t moved(const unfold *u, const shard_at *at, uint32_t task, bool to_end)
{
    if (task == PLAN_NONE) return PLAN_NONE;
    return task_of(u, at->rank, at->shard, to_end ? u->last[task] : u->first[task]);
}

/* Writes a task with the uses of `m` (or of task `from`) at its place. */
static void put_task(unfold *u, plan_task t, const uint32_t *uses, uint32_t n_uses)
{
    t.first_use = u->n_uses;
    u->out->tasks[u->n_tasks++] = t;
    if (n_uses > 0) memcpy(&u->out->uses[u->n_uses], uses, n_uses * sizeof *uses);
    u->n_uses += n_uses;
}

static td_status put_pass(unfold *u, const plan_member *m, uint8_t flags, td_err *err)
{
    class_cuts *k = NULL;
    TD_TRY(unfold_cuts_of(u, m, &k, err));
    for (int32_t i = 0; i <= k->n; i++) {
        plan_class c = u->in->classes[m->cls];
        if (k->n >= UINT16_MAX)
            return td_fail(err, TD_EUSAGE, "a pass of more than %d segments", UINT16_MAX);
        c.segment = (uint16_t)i;
        c.segments = k->n == 0 ? 0 : (uint16_t)(k->n + 1);
        plan_task t = {.kind = m->kind,
                       .flags = flags,
                       .slice = m->slice,
                       .microbatch = m->microbatch,
                       .link = PLAN_NONE,
                       .gate = PLAN_NONE,
                       .join = PLAN_NONE};
        TD_TRY(class_intern(&u->classes, &c, &t.cls, err));
        put_task(u, t, &u->in->uses[m->first_use], m->n_uses);
    }
    return TD_OK;
}

/* The end of a message with the copy-th shard of the other end. Where one of the ends has several
 * shards' data, each is an equal piece of it; or all shards have the whole tensor. */
static void link_message(const unfold *u, const shard_at *at, uint32_t copy, plan_class *c,
                         plan_task *t)
{
    const uint32_t other = u->rank_of[t->link];
    const uint32_t here = unfold_copies(u, at->rank, other);
    const uint32_t there = unfold_copies(u, other, at->rank);
    const uint32_t number = at->shard * here + copy;
    const bool pieces = c->detail == CHANNEL_WEIGHTS || u->l->o->sizes->run.sequence_parallel;
    t->link =
        task_of(u, other, number / there, u->first[t->link] + number % there * u->stride[t->link]);
    c->bytes /= (int64_t)here * there;
    if (here == 1 || !pieces) return;
    c->segment = (uint16_t)copy;
    c->segments = (uint16_t)here;
}

/* A task that is not cut. */
static td_status put_other(unfold *u, const shard_at *at, uint32_t task, uint32_t copy, td_err *err)
{
    const plan *const p = u->in;
    plan_task t = p->tasks[task];
    plan_class cls = p->classes[t.cls];
    const uint32_t id = u->n_tasks;
    t.gate = moved(u, at, t.gate, true);
    t.join = moved(u, at, t.join, false);
    if (t.kind == TASK_SEND || t.kind == TASK_RECV) {
        link_message(u, at, copy, &cls, &t);
    } else if (t.kind == TASK_COLL) {
        const plan_coll *const c = &p->colls[t.link];
        const unfold_meeting meeting = unfold_meeting_of(p, &p->tasks[task]);
        uint32_t member = 0, shards = 0;
        for (; p->coll_tasks[c->first_task + member] != task; member++)
            shards += u->ranks[p->group_members[p->groups[c->group].first_member + member]].shards;
        const uint32_t near = meeting == MEET_NEAR ? (uint32_t)cls.slice_len : 1;
        t.link = u->coll[t.link] + (meeting == MEET_ALL ? 0 : at->shard / near);
        if (meeting == MEET_ALL) member = shards + at->shard;
        if (meeting == MEET_NEAR) member = at->shard % near;
        u->out->coll_tasks[u->out->colls[t.link].first_task + member] = id;
    }
    TD_TRY(class_intern(&u->classes, &cls, &t.cls, err));
    put_task(u, t, &p->uses[p->tasks[task].first_use],
             p->tasks[task + 1].first_use - p->tasks[task].first_use);
    return TD_OK;
}

static void put_stream(unfold *u, const shard_at *at, const plan_stream *s, uint32_t first_task,
                       uint32_t channel)
{
    plan *const out = u->out;
    plan_rank *const r = &out->ranks[u->ranks[at->rank].first + at->shard];
    out->streams[r->first_stream + r->n_streams++] =
        (plan_stream){.kind = s->kind,
                      .rank = u->ranks[at->rank].first + at->shard,
                      .first_task = first_task,
                      .n_tasks = u->n_tasks - first_task,
                      .channel = channel};
}

/* Messages to each shard of the other ends. */
static td_status put_messages(unfold *u, const shard_at *at, const plan_stream *s, td_err *err)
{
    const plan *const p = u->in;
    const uint32_t end = s->first_task + s->n_tasks;
    if (s->kind != STREAM_BOTH) {
        const plan_channel *const c = &p->channels[s->channel];
        const uint32_t n = unfold_copies(u, at->rank, c->src == at->rank ? c->dst : c->src);
        for (uint32_t copy = 0; copy < n; copy++) {
            const uint32_t first = u->n_tasks;
            for (uint32_t t = s->first_task; t < end; t++) TD_TRY(put_other(u, at, t, copy, err));
            put_stream(u, at, s, first, u->channel[s->channel] + at->shard * n + copy);
        }
        return TD_OK;
    }
    const uint32_t first = u->n_tasks;
    for (uint32_t t = s->first_task; t < end; t++) {
        const uint32_t n = unfold_copies(u, at->rank, u->rank_of[p->tasks[t].link]);
        for (uint32_t copy = 0; copy < n; copy++) TD_TRY(put_other(u, at, t, copy, err));
    }
    put_stream(u, at, s, first, s->channel);
    return TD_OK;
}

/* One stream of a shard; of collectives those of the norm go to a stream of their own. */
static td_status put_old_stream(unfold *u, const shard_at *at, const plan_stream *s, td_err *err)
{
    const plan *const p = u->in;
    const bool coll = s->kind == STREAM_COLL;
    for (int meeting = 0; meeting < (coll ? MEETINGS : 1); meeting++) {
        const uint32_t first = u->n_tasks;
        uint32_t channel = s->channel;
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            plan_member m[2];
            const int n = unfold_passes_of(p, t, m);
            if (coll && unfold_meeting_of(p, &p->tasks[t]) != (unfold_meeting)meeting) continue;
            for (int j = 0; j < n; j++) TD_TRY(put_pass(u, &m[j], p->tasks[t].flags, err));
            if (n == 0) TD_TRY(put_other(u, at, t, 0, err));
            if (coll) channel = unfold_group_of(u, s->channel, &p->tasks[t], at->shard);
        }
        if (coll && u->n_tasks == first) continue;
        put_stream(u, at, s, first, channel);
    }
    return TD_OK;
}

/* The buffer of a pass that a cut is in. */
static uint32_t buffer_of(const plan *p, const plan_member *m, cut_buffer in)
{
    static const use_role roles[] = {ROLE_STASH, ROLE_STASH_W, ROLE_WSTASH, ROLE_SCRATCH,
                                     ROLE_OUTPUT};
    for (uint32_t i = m->first_use; i < m->first_use + m->n_uses; i++)
        if (use_role_of(p->uses[i]) == roles[in]) return use_buffer_of(p->uses[i]);
    return PLAN_NONE;
}

/* The cuts of a pass whose first segment is task `id`. */
static td_status put_cuts(unfold *u, const shard_at *at, const plan_member *m, uint32_t id,
                          uint32_t *coll, td_err *err)
{
    static const coll_kind kinds[] = {[CUT_SUM] = COLL_ALL_REDUCE,
                                      [CUT_SOFTMAX] = COLL_VOCAB_STATS,
                                      [CUT_GATHER] = COLL_ALL_GATHER,
                                      [CUT_SCATTER] = COLL_REDUCE_SCATTER};
    class_cuts *k = NULL;
    TD_TRY(unfold_cuts_of(u, m, &k, err));
    for (int32_t i = 0; i < k->n; i++, (*coll)++, id++) {
        const pass_cut *const cut = &k->cuts[i];
        const plan_class c = {.kind = TASK_COLL,
                              .detail = (uint8_t)kinds[cut->kind],
                              .purpose = PURPOSE_SHARDS,
                              .inst = u->in->classes[m->cls].inst,
                              .second = PLAN_NONE,
                              .prefix = (int32_t)(cut->at / PLAN_CUT_ALIGN),
                              .bytes = cut->bytes};
        plan_task t = {.kind = TASK_COLL,
                       .slice = m->slice,
                       .microbatch = m->microbatch,
                       .link = *coll,
                       .gate = id,
                       .join = id + 1};
        if (cut->at / PLAN_CUT_ALIGN > INT32_MAX)
            return td_fail(err, TD_EUSAGE, "a buffer of a pass is larger than a plan can number");
        TD_TRY(class_intern(&u->classes, &c, &t.cls, err));
        const uint32_t buffer = buffer_of(u->in, m, cut->in);
        const uint32_t use = use_pack(USE_ADD, ROLE_MESSAGE, buffer == PLAN_NONE ? 0 : buffer);
        u->out->coll_tasks[u->out->colls[*coll].first_task + at->shard] = u->n_tasks;
        put_task(u, t, &use, buffer == PLAN_NONE ? 0 : 1);
    }
    return TD_OK;
}

static td_status put_all_cuts(unfold *u, const shard_at *at, td_err *err)
{
    const plan_stream *const s = plan_compute(u->in, at->rank);
    const uint32_t first = u->n_tasks;
    uint32_t coll = u->ranks[at->rank].first_cut;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
        plan_member m[2];
        uint32_t id = moved(u, at, t, false);
        for (int j = 0, n = unfold_passes_of(u->in, t, m); j < n; j++) {
            class_cuts *k = NULL;
            TD_TRY(unfold_cuts_of(u, &m[j], &k, err));
            TD_TRY(put_cuts(u, at, &m[j], id, &coll, err));
            id += (uint32_t)k->n + 1;
        }
    }
    if (u->n_tasks == first) return TD_OK;
    put_stream(u, at, &(plan_stream){.kind = STREAM_COLL}, first, u->ranks[at->rank].cut_group);
    return TD_OK;
}

/* --- memory: the same for each shard, its lives counted in segments --- */

static uint32_t position(const unfold *u, uint32_t rank, uint32_t at, bool to_end)
{
    const plan_stream *const s = plan_compute(u->in, rank);
    if (at >= s->n_tasks)
        return s->n_tasks == 0 ? at : u->last[s->first_task + s->n_tasks - 1] + 1 + at - s->n_tasks;
    return to_end ? u->last[s->first_task + at] : u->first[s->first_task + at];
}

static void put_buffers(unfold *u, const shard_at *at)
{
    const plan_rank *const from = &u->in->ranks[at->rank];
    plan_rank *const to = &u->out->ranks[u->ranks[at->rank].first + at->shard];
    to->first_buffer = u->out->n_buffers;
    for (uint32_t i = 0; i < from->n_buffers; i++) {
        plan_buffer b = u->in->buffers[from->first_buffer + i];
        if (b.death != UINT32_MAX) {
            b.birth = position(u, at->rank, b.birth, false);
            b.death = position(u, at->rank, b.death, true);
        }
        u->out->buffers[u->out->n_buffers++] = b;
    }
}

/* --- the pass --- */

static td_status put_rank(unfold *u, const shard_at *at, uint32_t *n_streams, td_err *err)
{
    const plan_rank *const from = &u->in->ranks[at->rank];
    const uint32_t rank = u->ranks[at->rank].first + at->shard;
    plan_rank *const to = &u->out->ranks[rank];
    *to = *from;
    to->shard = (int32_t)at->shard;
    to->device = from->device + (int32_t)at->shard;
    to->first_stream = *n_streams;
    to->n_streams = 0;
    for (uint32_t i = from->first_stream; i < from->first_stream + from->n_streams; i++) {
        const plan_stream *const s = &u->in->streams[i];
        const bool talks = s->kind != STREAM_COMPUTE && s->kind != STREAM_COLL;
        TD_TRY(talks ? put_messages(u, at, s, err) : put_old_stream(u, at, s, err));
    }
    TD_TRY(put_all_cuts(u, at, err));
    *n_streams += to->n_streams;
    put_buffers(u, at);
    return TD_OK;
}

static td_status open_unfold(unfold *u, td_err *err)
{
    td_arena *const a = u->l->a;
    const plan *const p = u->in;
    u->cuts = td_alloc(a, p->n_classes, sizeof *u->cuts);
    u->ranks = TD_NEW_N(a, old_rank, p->n_ranks);
    u->rank_of = TD_NEW_N(a, uint32_t, p->n_tasks);
    u->first = TD_NEW_N(a, uint32_t, p->n_tasks);
    u->last = TD_NEW_N(a, uint32_t, p->n_tasks);
    u->stride = TD_NEW_N(a, uint32_t, p->n_tasks);
    u->channel = TD_NEW_N(a, uint32_t, p->n_channels);
    u->group = TD_NEW_N(a, uint32_t, p->n_groups);
    u->apart = TD_NEW_N(a, uint32_t, p->n_groups);
    u->near = TD_NEW_N(a, uint32_t, p->n_groups);
    u->coll = TD_NEW_N(a, uint32_t, p->n_colls);
    if (u->cuts == NULL || u->ranks == NULL || u->rank_of == NULL || u->first == NULL ||
        u->last == NULL || u->stride == NULL || u->channel == NULL || u->group == NULL ||
        u->apart == NULL || u->near == NULL || u->coll == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for shards");
    return class_table_open(&u->classes, a, NULL, err);
}

/* Room for what is written task by task. */
static td_status open_output(unfold *u, td_err *err)
{
    td_arena *const a = u->l->a;
    const plan *const p = u->in;
    plan *const out = u->out;
    uint64_t uses = 0, buffers = 0;
    for (uint32_t t = 0; t < p->n_tasks; t++) {
        const uint32_t end = p->tasks[t + 1].first_use, n = end - p->tasks[t].first_use;
        const bool talks = p->tasks[t].kind == TASK_SEND || p->tasks[t].kind == TASK_RECV;
        const uint64_t pieces = talks
                                    ? unfold_copies(u, u->rank_of[t], u->rank_of[p->tasks[t].link])
                                    : u->last[t] - u->first[t] + 1;
        uses += pieces * (n + 1) * u->ranks[u->rank_of[t]].shards;
    }
    for (uint32_t r = 0; r < p->n_ranks; r++)
        buffers += (uint64_t)p->ranks[r].n_buffers * u->ranks[r].shards;
    if (uses >= PLAN_NONE || buffers >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more buffers of shards than a plan can number");
    out->tasks = TD_NEW_N(a, plan_task, out->n_tasks + 1);
    out->streams = TD_NEW_N(a, plan_stream, out->n_streams);
    out->ranks = TD_NEW_N(a, plan_rank, out->n_ranks);
    out->uses = TD_NEW_N(a, uint32_t, uses);
    out->buffers = TD_NEW_N(a, plan_buffer, buffers);
    if (out->tasks == NULL || out->streams == NULL || out->ranks == NULL || out->uses == NULL ||
        out->buffers == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %u tasks of shards", out->n_tasks);
    return TD_OK;
}

td_status lower_unfold(const lowering *l, const plan *in, plan *out, td_err *err)
{
    *out = *in;
    if (!in->folded_tp) return TD_OK;
    if (l->o->sizes->model == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--shards: where passes are cut depends on the model; give "
                       "--model");
    unfold u = {.l = l, .in = in, .out = out};
    TD_TRY(open_unfold(&u, err));
    TD_TRY(unfold_number(&u, err));
    TD_TRY(unfold_channels(&u, err));
    TD_TRY(unfold_groups(&u, err));
    TD_TRY(unfold_colls(&u, err));
    TD_TRY(open_output(&u, err));
    out->folded_tp = false;
    out->n_members = 0;
    out->n_buffers = 0;
    uint32_t n_streams = 0;
    for (shard_at at = {0}; at.rank < in->n_ranks; at.rank++)
        for (at.shard = 0; at.shard < u.ranks[at.rank].shards; at.shard++)
            TD_TRY(put_rank(&u, &at, &n_streams, err));
    out->tasks[out->n_tasks].first_use = out->n_uses = u.n_uses;
    class_table_close(&u.classes, out);
    return TD_OK;
}
