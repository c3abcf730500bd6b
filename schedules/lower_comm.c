/* comm: a SEND and a RECV for each tensor that crosses ranks.
 *
 * Why the result cannot deadlock. The levels of the schedule's own dependencies give a total order
 * of all passes (lower_when). Put each message right before its consumer in that order. Its
 * producer is earlier (the consumer needs it), the receive's gate is earlier on the consumer's
 * rank, and a sender joins at its first pass behind the consumer. Every stream keeps its messages
 * in the order of their consumers. So each edge of the plan points forward in one total order,
 * under pure rendezvous and under each mapping. An explicit --send-window joins earlier than that;
 * then the checker decides.
 *
 * A communication trail has places and an order of its own, and both are kept. Where each SEND
 * stands right behind its pass, as torch writes them, channels cannot deadlock either: of two
 * messages of a channel the earlier is ready at both ends before the later one's consumer runs, so
 * it can be put right before that. Other trails, and trails on shared streams, are left to the
 * checker. */
#include "schedules/lower.h"

#include <stdlib.h>
#include <string.h>

typedef struct message {
    uint32_t src_node, dst_node; /* producer and consumer passes */
    int32_t src_row, dst_row;
    int32_t m;
    uint16_t k;
    uint8_t cls;      /* channel_class */
    int32_t stage;    /* the stage that receives */
    uint32_t channel; /* row-level */
} message;

typedef struct row_channel {
    int32_t src, dst;
    uint8_t cls;
    uint32_t n; /* messages */
} row_channel;

typedef struct comm {
    const lowering *l;
    message *messages;
    size_t n_messages, cap_messages;
    row_channel *channels;
    size_t n_channels, cap_channels;
    uint32_t *channel_of; /* [CHANNEL_WEIGHTS + 1][n_rows] of the row at hand, index + 1 */
} comm;

static td_status comm_channel(comm *c, int32_t src, int32_t dst, channel_class cls, uint32_t *out,
                              td_err *err)
{
    uint32_t *const known = &c->channel_of[(int32_t)cls * c->l->s->n_rows + src];
    if (*known == 0) {
        TD_TRY(TD_GROW(c->l->scratch, c->channels, c->cap_channels, c->n_channels + 1, err));
        c->channels[c->n_channels] = (row_channel){.src = src, .dst = dst, .cls = (uint8_t)cls};
        *known = (uint32_t)++c->n_channels;
    }
    *out = *known - 1;
    return TD_OK;
}

static td_status comm_add(comm *c, const sched_cell *cell, uint32_t src_node, int32_t src_row,
                          uint32_t dst_node, int32_t dst_row, channel_class cls, td_err *err)
{
    if (src_row == dst_row || src_node == NODE_NONE) return TD_OK;
    uint32_t channel = 0;
    TD_TRY(comm_channel(c, src_row, dst_row, cls, &channel, err));
    TD_TRY(TD_GROW(c->l->scratch, c->messages, c->cap_messages, c->n_messages + 1, err));
    c->messages[c->n_messages++] = (message){.src_node = src_node,
                                             .dst_node = dst_node,
                                             .src_row = src_row,
                                             .dst_row = dst_row,
                                             .m = cell->microbatch,
                                             .k = cell->slice,
                                             .cls = (uint8_t)cls,
                                             .stage = cell->stage,
                                             .channel = channel};
    c->channels[channel].n++;
    return TD_OK;
}

static td_status comm_of_cell(comm *c, const sched_cell *cell, uint32_t node, int32_t row,
                              td_err *err)
{
    const schedule *const s = c->l->s;
    const sched_index *const ix = c->l->ix;
    const int32_t stage = cell->stage, m = cell->microbatch, k = cell->slice;
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[m]];
    if (cell->kind == CELL_IDLE) /* a mark takes the input in place of its forward */
        return comm_add(c, cell, index_find(ix, PASS_F, stage - 1, m, k), p->forward_row[stage - 1],
                        node, row, CHANNEL_ACT, err);
    switch ((pass_kind)cell->kind) {
    case PASS_F:
        if (stage == 0 || index_arrival(ix, stage, m, k) != NODE_NONE) return TD_OK;
        return comm_add(c, cell, index_find(ix, PASS_F, stage - 1, m, k), p->forward_row[stage - 1],
                        node, row, CHANNEL_ACT, err);
    case PASS_B:
    case PASS_I:
        if (stage + 1 == s->n_stages) return TD_OK;
        return comm_add(c, cell, index_find_backward(ix, stage + 1, m, k),
                        p->backward_row[stage + 1], node, row, CHANNEL_GRAD, err);
    case PASS_R: {
        if (stage == 0 || p->forward_row[stage] == p->backward_row[stage]) return TD_OK;
        int32_t src_row = 0;
        const uint32_t src = index_handoff(ix, stage, m, k, &src_row);
        return comm_add(c, cell, src, src_row, node, row, CHANNEL_HANDOFF, err);
    }
    default: return TD_OK;
    }
}

static td_status comm_find(comm *c, td_err *err)
{
    const schedule *const s = c->l->s;
    const sched_index *const ix = c->l->ix;
    const size_t n_known = (size_t)(CHANNEL_WEIGHTS + 1) * (size_t)s->n_rows;
    c->channel_of = TD_NEW_N(c->l->scratch, uint32_t, n_known);
    if (c->channel_of == NULL) return td_fail(err, TD_ENOMEM, "out of memory for channels");
    /* a pass takes one message at most, and most do */
    size_t n_passes = ix->n_nodes;
    for (uint32_t i = 0; i < ix->n_nodes; i++) n_passes += ix->cell[i]->overlaps;
    TD_TRY(TD_GROW(c->l->scratch, c->messages, c->cap_messages, n_passes, err));
    for (int32_t row = 0; row < s->n_rows; row++) {
        memset(c->channel_of, 0, n_known * sizeof *c->channel_of);
        for (uint32_t node = ix->row_first[row]; node < ix->row_first[row + 1]; node++) {
            const sched_cell *cell = ix->cell[node];
            for (bool more = true; more; cell++) {
                TD_TRY(comm_of_cell(c, cell, node, row, err));
                more = cell->overlaps;
            }
        }
    }
    return TD_OK;
}

/* --- gates and joins --- */

/* Where a trail has an end of this message; its node is NODE_NONE where there is no trail. */
static trail_place trail_end(const lowering *l, const message *m, bool is_send)
{
    if (m->cls > CHANNEL_GRAD) return (trail_place){NODE_NONE, UINT32_MAX};
    const bool up = m->cls == CHANNEL_ACT;
    /* SEND actions name the stage that sends, RECV actions the one that receives */
    const int32_t sender = up ? m->stage - 1 : m->stage + 1;
    return is_send ? trail_find(l->ix, up ? CELL_SEND_F : CELL_SEND_B, sender, m->m, m->k)
                   : trail_find(l->ix, up ? CELL_RECV_F : CELL_RECV_B, m->stage, m->m, m->k);
}

static uint32_t send_gate(const lowering *l, const message *m)
{
    const uint32_t node = trail_end(l, m, true).node;
    return node == NODE_NONE ? m->src_node : node - 1;
}

static uint32_t send_join(const lowering *l, const message *m)
{
    const uint32_t end = l->ix->row_first[m->src_row + 1];
    const uint32_t gate = send_gate(l, m);
    const uint64_t at = (uint64_t)gate + (uint32_t)l->o->send_window;
    const uint32_t window = l->o->send_window > 0 && at < end ? (uint32_t)at : NODE_NONE;
    uint32_t join = NODE_NONE;
    if (m->cls == CHANNEL_HANDOFF && index_handoff_bound(l->ix, m->stage, m->m, m->k, &join))
        return window < join ? window : join;
    if (l->o->send_window > 0) return window;
    const uint32_t taken =
        lower_first_behind(l, m->src_row, lower_when(l, m->dst_node, m->dst_row));
    if (taken > gate) return taken; /* a trail may send later than its message could be taken */
    return gate + 1 < end ? gate + 1 : NODE_NONE;
}

/* Its gate stands `lookahead` passes before its join, as a send's join stands --send-window passes
 * behind its gate: 1 posts it when the pass before the consumer has ended. Or where the trail has
 * it.
 */
static uint32_t recv_gate(const lowering *l, const message *m)
{
    const uint32_t node = trail_end(l, m, false).node;
    if (node != NODE_NONE) return node > l->ix->row_first[m->dst_row] ? node - 1 : NODE_NONE;
    const uint32_t position = m->dst_node - l->ix->row_first[m->dst_row];
    const uint32_t back = l->o->lookahead < 1 ? 1 : (uint32_t)l->o->lookahead;
    return position >= back ? m->dst_node - back : NODE_NONE;
}

static td_status message_class(const lowering *l, class_table *classes, const message *m,
                               task_kind kind, uint32_t *out, td_err *err)
{
    plan_class c = {.kind = (uint8_t)kind,
                    .detail = m->cls,
                    .second = PLAN_NONE,
                    .inst = lower_inst(l, m->m, m->stage)};
    lower_slice(l, m->m, m->k, &c.slice_len, &c.prefix);
    /* the tensor at the border of two stages has the size of the later one's input */
    const int32_t border = m->cls == CHANNEL_GRAD ? m->stage + 1 : m->stage;
    TD_TRY(lower_message_bytes(l, m->src_row, m->dst_row, border, c.slice_len, c.prefix, &c.bytes,
                               err));
    return class_intern(classes, &c, out, err);
}

/* --- streams --- */

/* One end of a message, to be put into a stream. */
typedef struct comm_end {
    uint64_t when; /* of the consumer; with a trail, the action's place in its row */
    uint32_t message;
    uint32_t stream; /* stream_key */
    uint8_t is_send;
} comm_end;

static int compare_ends(const void *a, const void *b)
{
    const comm_end *const x = a, *const y = b;
    if (x->when != y->when) return x->when < y->when ? -1 : 1;
    if (x->message != y->message) return x->message < y->message ? -1 : 1;
    return (int)y->is_send - (int)x->is_send;
}

static uint32_t stream_key(const comm *c, const message *m, bool is_send)
{
    const uint32_t row = (uint32_t)(is_send ? m->src_row : m->dst_row);
    switch (c->l->o->mapping) {
    case MAPPING_CHANNEL: return 2 * m->channel + (is_send ? 0u : 1u);
    case MAPPING_DIRECTION: return row * (CHANNEL_WEIGHTS + 1) + m->cls;
    case MAPPING_SINGLE: break;
    }
    return row;
}

static size_t stream_keys(const comm *c)
{
    const size_t rows = (size_t)c->l->s->n_rows;
    switch (c->l->o->mapping) {
    case MAPPING_CHANNEL: return 2 * c->n_channels;
    case MAPPING_DIRECTION: return rows * (CHANNEL_WEIGHTS + 1);
    case MAPPING_SINGLE: break;
    }
    return rows;
}

static uint64_t end_when(const comm *c, const message *m, bool is_send)
{
    if (trail_exists(c->l->ix)) return trail_end(c->l, m, is_send).at;
    return lower_when(c->l, m->dst_node, m->dst_row);
}

/* Both ends of all messages, stream by stream, each in the order of the consumers or of the trail.
 * Messages were found in the order of their consumers' rows, so that the streams of the channel
 * mapping are in order as they come; shared streams and trails are sorted. */
static td_status comm_ends(const comm *c, comm_end **out, td_err *err)
{
    const size_t n_keys = stream_keys(c);
    comm_end *const ends = TD_NEW_N(c->l->scratch, comm_end, 2 * c->n_messages);
    size_t *const at = TD_NEW_N(c->l->scratch, size_t, n_keys + 1);
    if (ends == NULL || at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for messages");
    for (size_t i = 0; i < c->n_messages; i++)
        for (int e = 0; e < 2; e++) at[stream_key(c, &c->messages[i], e == 0) + 1]++;
    for (size_t k = 0; k < n_keys; k++) at[k + 1] += at[k];
    for (size_t i = 0; i < c->n_messages; i++) {
        const message *const m = &c->messages[i];
        for (int e = 0; e < 2; e++) {
            const uint32_t key = stream_key(c, m, e == 0);
            ends[at[key]++] = (comm_end){.when = end_when(c, m, e == 0),
                                         .message = (uint32_t)i,
                                         .stream = key,
                                         .is_send = e == 0};
        }
    }
    if (c->l->o->mapping != MAPPING_CHANNEL || trail_exists(c->l->ix))
        for (size_t k = 0; k < n_keys; k++) {
            const size_t first = k == 0 ? 0 : at[k - 1]; /* `at` has moved on by one stream */
            qsort(ends + first, at[k] - first, sizeof *ends, compare_ends);
        }
    *out = ends;
    return TD_OK;
}

typedef struct comm_output {
    new_stream *streams;
    uint32_t n_streams;
    plan_task *tasks;
    uint32_t n_tasks;
    uint32_t *end_task; /* [2 * n_messages] of the replica at hand: task of each end */
} comm_output;

static td_status emit_end(const comm *c, const plan *in, class_table *classes, const comm_end *e,
                          int32_t replica, comm_output *o, td_err *err)
{
    const lowering *const l = c->l;
    const message *const m = &c->messages[e->message];
    plan_task *const t = &o->tasks[o->n_tasks];
    const bool send = e->is_send;
    *t = (plan_task){
        .kind = send ? TASK_SEND : TASK_RECV, .slice = m->k, .microbatch = (uint32_t)m->m};
    TD_TRY(message_class(l, classes, m, (task_kind)t->kind, &t->cls, err));
    const int32_t row = send ? m->src_row : m->dst_row;
    t->gate = lower_task(l, in, send ? send_gate(l, m) : recv_gate(l, m), row, replica);
    t->join = lower_task(l, in, send ? send_join(l, m) : m->dst_node, row, replica);
    o->end_task[2 * e->message + (send ? 0 : 1)] = in->n_tasks + o->n_tasks++;
    return TD_OK;
}

static td_status emit_replica(const comm *c, const plan *in, class_table *classes,
                              const comm_end *ends, int32_t replica, comm_output *o, td_err *err)
{
    const lowering *const l = c->l;
    const uint32_t first_channel = (uint32_t)c->n_channels * (uint32_t)replica;
    for (size_t i = 0; i < 2 * c->n_messages; i++) {
        const comm_end *const e = &ends[i];
        const message *const m = &c->messages[e->message];
        if (i == 0 || ends[i - 1].stream != e->stream) {
            const bool own = l->o->mapping == MAPPING_CHANNEL;
            const uint8_t kind = !own ? STREAM_BOTH : e->is_send ? STREAM_SEND : STREAM_RECV;
            o->streams[o->n_streams++] =
                (new_stream){.rank = lower_rank(l, e->is_send ? m->src_row : m->dst_row, replica),
                             .kind = kind,
                             .channel = own ? first_channel + m->channel : PLAN_NONE,
                             .first = o->n_tasks};
        }
        o->streams[o->n_streams - 1].n++;
        TD_TRY(emit_end(c, in, classes, e, replica, o, err));
    }
    for (size_t i = 0; i < c->n_messages; i++) {
        const uint32_t s = o->end_task[2 * i], r = o->end_task[2 * i + 1];
        o->tasks[s - in->n_tasks].link = r;
        o->tasks[r - in->n_tasks].link = s;
    }
    return TD_OK;
}

static td_status comm_channels(const comm *c, plan *out, td_err *err)
{
    const uint32_t n = (uint32_t)c->n_channels;
    out->n_channels = n * (uint32_t)c->l->replicas;
    out->channels = TD_NEW_N(c->l->a, plan_channel, out->n_channels);
    if (out->channels == NULL) return td_fail(err, TD_ENOMEM, "out of memory for channels");
    for (int32_t d = 0; d < c->l->replicas; d++)
        for (uint32_t i = 0; i < n; i++)
            out->channels[(uint32_t)d * n + i] =
                (plan_channel){.src = lower_rank(c->l, c->channels[i].src, d),
                               .dst = lower_rank(c->l, c->channels[i].dst, d),
                               .cls = c->channels[i].cls};
    return TD_OK;
}

td_status lower_comm(const lowering *l, const plan *in, plan *out, td_err *err)
{
    comm c = {.l = l};
    TD_TRY(comm_find(&c, err));
    comm_end *ends = NULL;
    TD_TRY(comm_ends(&c, &ends, err));
    const uint64_t n_ends = 2 * (uint64_t)c.n_messages * (uint64_t)l->replicas;
    if (n_ends + in->n_tasks >= PLAN_NONE)
        return td_fail(err, TD_EUSAGE, "more messages than a plan can number");
    comm_output o = {.streams =
                         TD_NEW_N(l->scratch, new_stream, 2 * c.n_channels * (size_t)l->replicas),
                     .tasks = TD_NEW_N(l->scratch, plan_task, n_ends),
                     .end_task = TD_NEW_N(l->scratch, uint32_t, 2 * c.n_messages)};
    if (o.streams == NULL || o.tasks == NULL || o.end_task == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for messages");
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    for (int32_t d = 0; d < l->replicas; d++)
        TD_TRY(emit_replica(&c, in, &classes, ends, d, &o, err));
    TD_TRY(lower_add_streams(l->a, in, o.streams, o.n_streams, o.tasks, o.n_tasks, out, err));
    class_table_close(&classes, out);
    return comm_channels(&c, out, err);
}
