/* The laws of a plan: structure, and how ranks meet. */
#include "schedules/plan_check.h"

#include <string.h>

uint32_t plan_task_rank(const plan *p, uint32_t task)
{
    for (uint32_t i = 0; i < p->n_streams; i++)
        if (task - p->streams[i].first_task < p->streams[i].n_tasks) return p->streams[i].rank;
    return PLAN_NONE;
}

static const char *class_word(const plan_class *c)
{
    static const char *const channels[] = {"activation", "gradient", "hand-off", "weights",
                                           "norm so far"};
    static const char *const purposes[] = {
        "gradient sync", "tied gradients", "gradient norm",          "vocabulary C0",
        "vocabulary C1", "vocabulary C2",  "embedding sum",          "embedding gradient",
        "loss",          "weights",        "tensor-parallel shards", "gradients of shards"};
    if (c->kind == TASK_COLL) return purposes[c->purpose];
    return channels[c->detail];
}

static void describe(const plan *p, const plan_class *c, uint8_t kind, uint32_t microbatch,
                     uint16_t slice, td_text *out)
{
    static const char *const others[] = {"pair",      "SEND",  "RECV",   "collective", "NORM",
                                         "OPTIMIZER", "MERGE", "VERIFY", "MARK"};
    if (kind < PASS_COUNT)
        td_text_addf(out, "%c", pass_letter((pass_kind)kind));
    else
        td_text_add(out, others[kind - TASK_PAIR]);
    if (microbatch != PLAN_NONE) td_text_addf(out, " %u", microbatch);
    if (microbatch != PLAN_NONE && p->n_slices > 1) td_text_addf(out, ".%u", (unsigned)slice);
    if (kind == TASK_SEND || kind == TASK_RECV || kind == TASK_COLL)
        td_text_addf(out, " (%s)", class_word(c));
    if (c->inst != PLAN_NONE && p->insts[c->inst].stage == p->n_stages) {
        td_text_add(out, " of the tables' shard");
    } else if (c->inst != PLAN_NONE) {
        td_text_addf(out, " of stage %d", p->insts[c->inst].stage);
        if (p->n_pipes > 1) td_text_addf(out, " pipe %d", p->insts[c->inst].pipe);
    }
}

void plan_task_text(const plan *p, uint32_t task, td_text *out)
{
    const plan_task *const t = &p->tasks[task];
    td_text_addf(out, "rank %u ", plan_task_rank(p, task));
    if (t->kind == TASK_PAIR) {
        for (uint32_t i = t->link; i < t->link + 2; i++) {
            if (i > t->link) td_text_add(out, " & ");
            const plan_member *const m = &p->members[i];
            describe(p, &p->classes[m->cls], m->kind, m->microbatch, m->slice, out);
        }
        return;
    }
    describe(p, &p->classes[t->cls], t->kind, t->microbatch, t->slice, out);
}

td_status check_fail(const plan_map *m, uint32_t task, td_err *err, const char *rule)
{
    td_text t = {0};
    plan_task_text(m->p, task, &t);
    const td_status st =
        td_fail(err, TD_EPLAN, "%s (task %u): %s", t.s == NULL ? "" : t.s, task, rule);
    td_text_free(&t);
    return st;
}

/* --- structure --- */

static bool in_range(uint32_t first, uint32_t n, uint32_t total)
{
    return first <= total && n <= total - first;
}

static bool is_pass_class(const plan *p, int64_t cls)
{
    return cls >= 0 && cls < p->n_classes && p->classes[cls].kind < PASS_COUNT;
}

/* What is known of the norm is of no stage. */
static bool is_state(const plan_class *c)
{
    return (c->kind == TASK_SEND || c->kind == TASK_RECV) && c->detail == CHANNEL_STATE;
}

static td_status check_tables(const plan *p, td_err *err)
{
    const char *wrong = NULL;
    if (p->n_ranks == 0 || p->n_stages < 1 || p->n_microbatches < 1 || p->n_slices < 1 ||
        p->n_pipes < 1 || p->n_rows < 1 || p->dp < 1 || p->tp < 1)
        wrong = "sizes must be at least 1";
    for (uint32_t i = 0; i < p->n_ranks; i++)
        if (p->ranks[i].n_streams == 0 ||
            !in_range(p->ranks[i].first_stream, p->ranks[i].n_streams, p->n_streams) ||
            !in_range(p->ranks[i].first_buffer, p->ranks[i].n_buffers, p->n_buffers) ||
            p->streams[p->ranks[i].first_stream].kind != STREAM_COMPUTE)
            wrong = "a rank without a compute stream of its own, or with buffers out of range";
    for (uint32_t i = 0; i < p->n_insts; i++)
        if (p->insts[i].stage < 0 || p->insts[i].stage > p->n_stages || p->insts[i].pipe < 0 ||
            p->insts[i].pipe >= p->n_pipes)
            wrong = "a stage instance out of range";
    for (uint32_t i = 0; i < p->n_classes; i++) {
        const plan_class *const c = &p->classes[i];
        if (c->kind >= TASK_KIND_COUNT || (c->inst != PLAN_NONE && c->inst >= p->n_insts) ||
            (c->kind == TASK_COLL && c->purpose >= PURPOSE_COUNT) ||
            ((c->kind == TASK_SEND || c->kind == TASK_RECV) && c->detail > CHANNEL_STATE) ||
            (c->kind < TASK_COLL && !is_state(c) &&
             (c->inst == PLAN_NONE || p->insts[c->inst].stage == p->n_stages)))
            wrong = "a task class out of range";
        const bool cut = c->kind < PASS_COUNT || c->kind == TASK_SEND || c->kind == TASK_RECV;
        if (c->segments == 0 ? c->segment != 0 : c->segment >= c->segments || !cut)
            wrong = "a segment of no pass";
        if (c->kind != TASK_PAIR && c->bytes < 0) wrong = "a task class of less than no bytes";
        if (c->kind == TASK_PAIR && !(is_pass_class(p, c->bytes) && is_pass_class(p, c->second)))
            wrong = "a pair of other things than passes";
    }
    for (uint32_t i = 0; i < p->n_members; i++)
        if (p->members[i].cls >= p->n_classes || p->members[i].kind >= PASS_COUNT ||
            !in_range(p->members[i].first_use, p->members[i].n_uses, p->n_uses))
            wrong = "a member of a pair out of range";
    for (uint32_t i = 0; i < p->n_groups; i++)
        if (!in_range(p->groups[i].first_member, p->groups[i].n_members, p->n_group_members))
            wrong = "a group out of range";
    for (uint32_t i = 0; i < p->n_colls; i++)
        if (p->colls[i].group >= p->n_groups ||
            !in_range(p->colls[i].first_task, p->groups[p->colls[i].group].n_members,
                      p->n_coll_tasks))
            wrong = "a collective out of range";
    for (uint32_t i = 0; i < p->n_bclasses; i++)
        if (p->bclasses[i].what >= SIZE_KIND_COUNT || p->bclasses[i].bytes < 0)
            wrong = "a buffer class out of range";
    for (uint32_t i = 0; i < p->n_buffers; i++)
        if (p->buffers[i].bclass >= p->n_bclasses) wrong = "a buffer of no class";
    return wrong == NULL ? TD_OK : td_fail(err, TD_EPLAN, "malformed plan: %s", wrong);
}

static td_status check_task(const plan_map *m, uint32_t task, td_err *err)
{
    const plan *const p = m->p;
    const plan_task *const t = &p->tasks[task];
    const plan_stream *const s = &p->streams[m->stream_of[task]];
    const bool computes = s->kind == STREAM_COMPUTE;
    const bool meets = t->kind == TASK_SEND || t->kind == TASK_RECV || t->kind == TASK_COLL;
    if (t->kind >= TASK_KIND_COUNT || t->cls >= p->n_classes ||
        p->classes[t->cls].kind != t->kind || computes == meets ||
        t->first_use > p->tasks[task + 1].first_use)
        return td_fail(err, TD_EPLAN, "malformed plan: task %u is of no known kind or class", task);
    if (t->kind < TASK_SEND &&
        (t->microbatch >= (uint32_t)p->n_microbatches || t->slice >= p->n_slices))
        return td_fail(err, TD_EPLAN, "malformed plan: task %u: no such microbatch", task);
    if (t->kind == TASK_PAIR && (t->link >= p->n_members || t->link + 1 >= p->n_members))
        return td_fail(err, TD_EPLAN, "malformed plan: task %u: a pair without members", task);
    if (!meets) return TD_OK;
    const plan_stream *const c = plan_compute(p, s->rank);
    if ((t->gate != PLAN_NONE && t->gate - c->first_task >= c->n_tasks) ||
        (t->join != PLAN_NONE && t->join - c->first_task >= c->n_tasks))
        return check_fail(m, task, err, "gate and join must be compute tasks of its rank");
    if (t->gate != PLAN_NONE && t->join != PLAN_NONE && t->gate >= t->join &&
        !(t->flags & TASK_FLAG_JOIN_NEXT))
        return check_fail(m, task, err, "its gate must come before its join");
    if (t->kind == TASK_COLL ? t->link >= p->n_colls : t->link >= p->n_tasks)
        return check_fail(m, task, err, "its other end does not exist");
    return TD_OK;
}

td_status check_structure(const plan *p, td_arena *a, plan_map *out, td_err *err)
{
    TD_TRY(check_tables(p, err));
    *out = (plan_map){.p = p, .stream_of = TD_NEW_N(a, uint32_t, p->n_tasks)};
    if (out->stream_of == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    memset(out->stream_of, 0xff, p->n_tasks * sizeof(uint32_t));
    uint32_t n_assigned = 0;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t i = p->ranks[r].first_stream;
             i < p->ranks[r].first_stream + p->ranks[r].n_streams; i++) {
            const plan_stream *const s = &p->streams[i];
            if (s->rank != r || !in_range(s->first_task, s->n_tasks, p->n_tasks) ||
                s->kind > STREAM_COLL ||
                (s->kind == STREAM_COMPUTE) != (i == p->ranks[r].first_stream))
                return td_fail(err, TD_EPLAN, "malformed plan: stream %u out of range", i);
            for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
                if (out->stream_of[t] != UINT32_MAX)
                    return td_fail(err, TD_EPLAN, "malformed plan: task %u is in two streams", t);
                out->stream_of[t] = i;
                n_assigned++;
            }
        }
    if (n_assigned != p->n_tasks)
        return td_fail(err, TD_EPLAN, "malformed plan: %u tasks are in no stream",
                       p->n_tasks - n_assigned);
    if (p->tasks[p->n_tasks].first_use > p->n_uses)
        return td_fail(err, TD_EPLAN, "malformed plan: buffer uses out of range");
    for (uint32_t t = 0; t < p->n_tasks; t++) TD_TRY(check_task(out, t, err));
    return TD_OK;
}

/* --- meetings --- */

static td_status check_message(const plan_map *m, uint32_t task, td_err *err)
{
    const plan *const p = m->p;
    const plan_task *const t = &p->tasks[task], *const other = &p->tasks[t->link];
    const uint8_t opposite = t->kind == TASK_SEND ? TASK_RECV : TASK_SEND;
    if (other->kind != opposite || other->link != task)
        return check_fail(m, task, err, "it and its other end do not name each other");
    const plan_class *const c = &p->classes[t->cls], *const d = &p->classes[other->cls];
    if (c->bytes != d->bytes || c->detail != d->detail || t->microbatch != other->microbatch ||
        t->slice != other->slice)
        return check_fail(m, task, err, "it and its other end carry different tensors");
    const plan_stream *const s = &p->streams[m->stream_of[task]];
    if (s->kind == STREAM_BOTH) return TD_OK;
    if (s->channel >= p->n_channels || s->kind == STREAM_COLL)
        return check_fail(m, task, err, "its stream is of no channel");
    const plan_channel *const ch = &p->channels[s->channel];
    const uint32_t src = map_rank(m, t->kind == TASK_SEND ? task : t->link);
    const uint32_t dst = map_rank(m, t->kind == TASK_SEND ? t->link : task);
    if (ch->src != src || ch->dst != dst || ch->cls != c->detail)
        return check_fail(m, task, err, "its channel joins other ranks or carries another class");
    return TD_OK;
}

/* Both ends of a channel see the same messages in the same order. */
static td_status check_channel_order(const plan_map *m, const plan_stream *s, td_err *err)
{
    const plan *const p = m->p;
    for (uint32_t i = 0; i + 1 < s->n_tasks; i++) {
        const uint32_t a = p->tasks[s->first_task + i].link;
        const uint32_t b = p->tasks[s->first_task + i + 1].link;
        if (m->stream_of[a] == m->stream_of[b] ? b != a + 1 : true)
            return check_fail(m, s->first_task + i + 1, err,
                              "the other end of the channel has its messages in another order");
    }
    return TD_OK;
}

static td_status check_collective_order(const plan_map *m, const plan_stream *s, td_err *err)
{
    const plan *const p = m->p;
    for (uint32_t i = 0; i < s->n_tasks; i++) {
        const uint32_t task = s->first_task + i;
        const plan_coll *const c = &p->colls[p->tasks[task].link];
        const plan_group *const g = &p->groups[c->group];
        if (s->channel != c->group || p->tasks[task].kind != TASK_COLL)
            return check_fail(m, task, err, "its stream is of another group");
        bool member = false;
        for (uint32_t j = 0; j < g->n_members; j++) {
            const uint32_t t = p->coll_tasks[c->first_task + j];
            if (t >= p->n_tasks || p->tasks[t].kind != TASK_COLL ||
                p->tasks[t].link != p->tasks[task].link ||
                map_rank(m, t) != p->group_members[g->first_member + j])
                return check_fail(m, task, err, "a member of its collective is elsewhere");
            if (p->classes[p->tasks[t].cls].bytes != p->classes[p->tasks[task].cls].bytes)
                return check_fail(m, task, err, "members of its collective differ in size");
            if (t - p->streams[m->stream_of[t]].first_task != i)
                return check_fail(m, task, err,
                                  "members of its group issue collectives in different orders");
            member |= t == task;
        }
        if (!member) return check_fail(m, task, err, "it is no member of its collective");
    }
    return TD_OK;
}

td_status check_meetings(const plan_map *m, td_arena *a, td_err *err)
{
    (void)a;
    const plan *const p = m->p;
    for (uint32_t i = 0; i < p->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        if (s->kind == STREAM_COMPUTE) continue;
        if (s->kind == STREAM_COLL) {
            TD_TRY(check_collective_order(m, s, err));
            continue;
        }
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++) {
            if (p->tasks[t].kind == TASK_COLL)
                return check_fail(m, t, err, "a collective in a stream of messages");
            TD_TRY(check_message(m, t, err));
        }
        if (s->kind != STREAM_BOTH) TD_TRY(check_channel_order(m, s, err));
    }
    return TD_OK;
}

/* --- all together --- */

td_status plan_check(const plan *p, td_arena *a, td_err *err)
{
    plan_map m;
    TD_TRY(check_structure(p, a, &m, err));
    TD_TRY(check_meetings(&m, a, err));
    TD_TRY(check_prefix(&m, err));
    TD_TRY(check_deadlock(&m, a, err));
    TD_TRY(check_waiting(&m, a, err));
    TD_TRY(check_queues(&m, a, err));
    const bool has_messages = p->stage_of_run == NULL || strcmp(p->stage_of_run, "place") != 0;
    const bool has_barriers =
        has_messages && (p->stage_of_run == NULL || strcmp(p->stage_of_run, "comm") != 0);
    if (has_messages) TD_TRY(check_flow(&m, a, err));
    if (has_barriers) TD_TRY(check_vocab_flow(&m, a, err));
    return p->n_buffers > 0 ? check_buffers(&m, a, err) : TD_OK;
}
