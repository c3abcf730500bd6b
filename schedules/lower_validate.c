/* Post-validation: no rank waits for the norm of the whole gradient before it steps (Qi et al.,
 * arXiv 2401.10241, section 4).
 *
 * At the end of a period the norm grows along the rows: each merges what comes from the row before
 * into its own, sends it on, and steps at once when nothing known so far speaks against it. The
 * last row then knows the whole norm, which in the next period travels back to the first. A rank
 * that has it verifies its step; where the step was wrong, it is taken back and done as it should
 * have been, and the forwards that ran ahead with the wrong weights, the prefix, are repeated.
 *
 * Row r of P has at most P - 1 - r forwards before its VERIFY, all of the first stage that it runs:
 * a wave of forwards goes down the rows while the norm goes up, and the two meet there. A message
 * belongs to the prefix where both its ends do; what a prefix makes for others waits for VERIFY, so
 * that nothing of it ever has to be taken back from another rank. */
#include "schedules/lower.h"

#include <string.h>

enum { ADDED = 3, ENDS = 4 }; /* tasks a rank; messages' ends between two rows */

td_status lower_check_validate(const schedule *s, const lower_options *o, td_err *err)
{
    const char *why = NULL;
    if (!s->validate) return TD_OK;
    if (s->vocab != VOCAB_NONE) why = "a sharded vocabulary: its input layer meets before VERIFY";
    if (sched_is_disaggregated(s)) why = "forward rows of their own: they wait for new weights";
    if (o->zero1) why = "--zero1: ranks wait for each other's share of the new weights";
    if (o->shards && (o->tp > 1 || s->tp_backward > 1))
        why = "tensor-parallel shards as ranks: each knows a part of its row's norm";
    if (o->send_window == 1 && o->lookahead == 0)
        why = "--send-window 1 --lookahead 0: calls that block hold all ranks together";
    if (o->shards && o->tp > 1)
        why = "tensor-parallel shards as ranks: their forwards meet before VERIFY";
    if (why == NULL) return TD_OK;
    return td_fail(err, TD_EUSAGE, "post-validation does not go with %s; leave one of them out",
                   why);
}

/* --- where --- */

static bool may_run_ahead(const lowering *l, const sched_cell *c, const sched_cell *first)
{
    return c->kind == PASS_F && !c->overlaps && c->stage == first->stage &&
           c->stage < l->s->n_stages - 1; /* the last stage's forward makes the loss */
}

/* Nodes of a row before its VERIFY. */
static uint32_t lead_of(const lowering *l, int32_t row)
{
    const sched_index *const ix = l->ix;
    const uint32_t n = ix->row_first[row + 1] - ix->row_first[row];
    const sched_cell *first = NULL;
    int32_t left = l->s->n_rows - 1 - row;
    uint32_t lead = 0;
    for (uint32_t i = 0; i < n && left > 0; i++) {
        const sched_cell *const c = ix->cell[ix->row_first[row] + i];
        if (c->kind == CELL_IDLE) continue;
        if (first == NULL) first = c;
        if (!may_run_ahead(l, c, first)) break;
        lead = i + 1;
        left--;
    }
    return lead;
}

/* Whether the input of a forward is made within the prefix of its row. */
static bool is_fed(const lowering *l, const sched_cell *c, const uint32_t *lead)
{
    if (c->kind != PASS_F || c->stage == 0) return true;
    const uint32_t made = index_find(l->ix, PASS_F, c->stage - 1, c->microbatch, c->slice);
    const int32_t row = index_row(l->ix, made);
    return made - l->ix->row_first[row] < lead[row];
}

static td_status find_leads(const lowering *l, uint32_t **out, td_err *err)
{
    uint32_t *const lead = TD_NEW_N(l->a, uint32_t, l->s->n_rows);
    if (lead == NULL) return td_fail(err, TD_ENOMEM, "out of memory for rows");
    for (int32_t row = 0; row < l->s->n_rows; row++) lead[row] = lead_of(l, row);
    for (bool changed = true; changed;) {
        changed = false;
        for (int32_t row = 0; row < l->s->n_rows; row++)
            for (uint32_t i = 0; i < lead[row]; i++)
                if (!is_fed(l, l->ix->cell[l->ix->row_first[row] + i], lead)) {
                    lead[row] = i;
                    changed = true;
                }
    }
    *out = lead;
    return TD_OK;
}

/* --- what is added --- */

/* Places in a rank's compute stream. */
typedef struct places {
    uint32_t mark, verify;      /* the norm is here; the last step is verified */
    uint32_t sums, norm, merge; /* gradients are summed; their norm is taken, and merged */
} places;

static places places_of(const plan *p, const uint32_t *lead, uint32_t rank)
{
    const plan_stream *const s = plan_compute(p, rank);
    const uint32_t end = s->first_task + s->n_tasks;
    const uint32_t mark = s->first_task + lead[p->ranks[rank].row];
    return (places){
        .mark = mark, .verify = mark + 1, .sums = end - 4, .norm = end - 3, .merge = end - 2};
}

static td_status add_tasks(const lowering *l, const plan *in, const uint32_t *lead, plan *out,
                           td_err *err)
{
    insertion *const items = TD_NEW_N(l->a, insertion, (size_t)in->n_ranks * ADDED);
    if (items == NULL) return td_fail(err, TD_ENOMEM, "out of memory for post-validation");
    for (uint32_t r = 0; r < in->n_ranks; r++) {
        const uint32_t at = lead[in->ranks[r].row], step = plan_compute(in, r)->n_tasks - 1;
        const insertion here[ADDED] = {{at, TASK_MARK}, {at, TASK_VERIFY}, {step, TASK_MERGE}};
        memcpy(&items[r * ADDED], here, sizeof here);
    }
    return lower_insert(l, in, items, ADDED, out, err);
}

/* --- the prefix --- */

/* Whether the pass that a message is for belongs to a prefix. */
static bool is_repeated(const plan *p, const plan_task *t)
{
    const plan_task *const recv = t->kind == TASK_SEND ? &p->tasks[t->link] : t;
    if (t->kind == TASK_COLL || recv->join == PLAN_NONE) return false;
    return (p->tasks[recv->join].flags & TASK_FLAG_PREFIX) != 0;
}

/* What is repeated ends before VERIFY; what is not begins behind it. */
static void hold_back(const plan *p, const places *at, plan_task *t)
{
    if (is_repeated(p, t)) {
        t->flags |= TASK_FLAG_PREFIX;
        if (t->join == PLAN_NONE || t->join > at->verify) t->join = at->verify;
        return;
    }
    if (t->gate == PLAN_NONE || t->gate < at->verify) t->gate = at->verify;
    if (t->join != PLAN_NONE && t->join <= t->gate) t->join = t->gate + 1;
}

static void mark_prefix(plan *p, const uint32_t *lead)
{
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        const places at = places_of(p, lead, r);
        for (uint32_t t = plan_compute(p, r)->first_task; t < at.mark; t++)
            p->tasks[t].flags |= TASK_FLAG_PREFIX;
    }
    for (uint32_t i = 0; i < p->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        const places at = places_of(p, lead, s->rank);
        for (uint32_t j = 0; s->kind != STREAM_COMPUTE && j < s->n_tasks; j++)
            hold_back(p, &at, &p->tasks[s->first_task + j]);
    }
}

/* --- the chains --- */

/* One message between neighbouring ranks, as two streams of their own. */
typedef struct chain {
    const lowering *l;
    const plan *in;
    plan_channel *channels;
    new_stream *streams;
    plan_task *tasks;
    uint32_t n_channels, n_streams, n_tasks;
    uint32_t send_class, recv_class;
} chain;

static void add_end(chain *c, uint32_t rank, plan_task t)
{
    const bool own = c->l->o->mapping == MAPPING_CHANNEL, send = t.kind == TASK_SEND;
    t.microbatch = PLAN_NONE;
    t.cls = send ? c->send_class : c->recv_class;
    t.link = c->in->n_tasks + (c->n_tasks ^ 1); /* ends come in pairs */
    c->streams[c->n_streams++] = (new_stream){.rank = rank,
                                              .kind = !own   ? STREAM_BOTH
                                                      : send ? STREAM_SEND
                                                             : STREAM_RECV,
                                              .channel = own ? c->n_channels : PLAN_NONE,
                                              .first = c->n_tasks,
                                              .n = 1};
    c->tasks[c->n_tasks++] = t;
}

static void add_message(chain *c, uint32_t src, uint32_t dst, plan_task send, plan_task recv)
{
    send.kind = TASK_SEND;
    recv.kind = TASK_RECV;
    add_end(c, src, send);
    add_end(c, dst, recv);
    c->channels[c->n_channels++] = (plan_channel){.src = src, .dst = dst, .cls = CHANNEL_STATE};
}

/* The norm so far goes from `a` to the rank behind it, `b`, and the whole norm from `b` to `a`. */
static void join_ranks(chain *c, const uint32_t *lead, uint32_t a, uint32_t b)
{
    const places at = places_of(c->in, lead, a), to = places_of(c->in, lead, b);
    add_message(c, a, b,
                (plan_task){.gate = at.merge, .join = at.mark, .flags = TASK_FLAG_JOIN_NEXT},
                (plan_task){.gate = to.sums, .join = to.merge});
    add_message(c, b, a, (plan_task){.gate = to.mark, .join = to.norm},
                (plan_task){.gate = PLAN_NONE, .join = at.mark});
}

static td_status add_chains(const lowering *l, const plan *in, const uint32_t *lead, plan *out,
                            td_err *err)
{
    const size_t pairs = (size_t)(l->s->n_rows - 1) * (size_t)l->replicas;
    chain c = {.l = l,
               .in = in,
               .n_channels = in->n_channels,
               .channels = TD_NEW_N(l->a, plan_channel, in->n_channels + 2 * pairs),
               .streams = TD_NEW_N(l->a, new_stream, ENDS * pairs),
               .tasks = TD_NEW_N(l->a, plan_task, ENDS * pairs)};
    *out = *in;
    if (pairs == 0) return TD_OK;
    if (c.channels == NULL || c.streams == NULL || c.tasks == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for post-validation");
    if (in->n_channels > 0) memcpy(c.channels, in->channels, in->n_channels * sizeof *c.channels);
    plan_class pc = {.detail = CHANNEL_STATE, .inst = PLAN_NONE, .second = PLAN_NONE};
    TD_TRY(sizes_bytes(l->o->sizes, SIZE_NORM, 0, 0, 0, &pc.bytes, err));
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    pc.kind = TASK_SEND;
    TD_TRY(class_intern(&classes, &pc, &c.send_class, err));
    pc.kind = TASK_RECV;
    TD_TRY(class_intern(&classes, &pc, &c.recv_class, err));
    for (int32_t d = 0; d < l->replicas; d++)
        for (int32_t row = 0; row + 1 < l->s->n_rows; row++)
            join_ranks(&c, lead, lower_rank(l, row, d), lower_rank(l, row + 1, d));
    const plan marked = *in;
    TD_TRY(lower_add_streams(l->a, &marked, c.streams, c.n_streams, c.tasks, c.n_tasks, out, err));
    out->channels = c.channels;
    out->n_channels = c.n_channels;
    class_table_close(&classes, out);
    return TD_OK;
}

td_status lower_validate(const lowering *l, const plan *in, plan *out, td_err *err)
{
    uint32_t *lead = NULL;
    plan added;
    TD_TRY(find_leads(l, &lead, err));
    TD_TRY(add_tasks(l, in, lead, &added, err));
    mark_prefix(&added, lead);
    return add_chains(l, &added, lead, out, err);
}
