/* The weight refresh of step: once a backward row has stepped, it sends its weights to the forward
 * row of the stage, which waits for them before the next period. The messages have streams of
 * their own under every mapping: nothing else runs beside them.
 *
 * A forward row of another degree (merged forward ranks) cannot take shards where they will be: it
 * keeps them beside its weights until its OPTIMIZER task puts them together. Where it steps itself,
 * it is sent the sums of gradients in the same way, once the backward row has taken their norm and
 * so added up a tied table's. */
#include "schedules/lower_collect.h"

#include <string.h>

/* A pair of rows that weights travel between. */
typedef struct refresh_pair {
    int32_t src, dst;
} refresh_pair;

static uint32_t last_compute(const plan *p, uint32_t rank)
{
    const plan_stream *const s = plan_compute(p, rank);
    return s->first_task + s->n_tasks - 1;
}

static bool is_sent(const lowering *l, const plan_inst *i)
{
    return i->forward_row != i->backward_row && (!i->all_step || lower_joins_shards(l, i));
}

static bool is_between(const lowering *l, const plan_inst *i, const refresh_pair *pair)
{
    return is_sent(l, i) && i->backward_row == pair->src && i->forward_row == pair->dst;
}

/* From the norm to the optimizer, or from the last compute task to the end. */
static void set_gate(const plan *p, uint32_t rank, bool before_step, plan_task *t)
{
    t->gate = last_compute(p, rank);
    t->join = PLAN_NONE;
    if (!before_step) return;
    while (p->tasks[t->gate].kind != TASK_OPTIMIZER) t->gate--;
    t->join = t->gate--;
}

/* Appends one end of each message of a pair. */
static td_status add_ends(const lowering *l, const plan *in, class_table *classes,
                          const refresh_pair *pair, uint32_t rank, task_kind kind, plan_task *tasks,
                          uint32_t *n, td_err *err)
{
    for (uint32_t i = 0; i < in->n_insts; i++) {
        const plan_inst *const inst = &in->insts[i];
        if (!is_between(l, inst, pair)) continue;
        const bool joins = lower_joins_shards(l, inst);
        const size_kind what = inst->all_step ? SIZE_GRAD_PARTS
                               : joins        ? SIZE_WEIGHT_PARTS
                                              : SIZE_WEIGHTS;
        plan_class c = {
            .kind = (uint8_t)kind, .detail = CHANNEL_WEIGHTS, .inst = i, .second = PLAN_NONE};
        TD_TRY(lower_bytes(l, what, inst->stage, pair->dst, 0, 0, &c.bytes, err));
        plan_task *const t = &tasks[(*n)++];
        *t = (plan_task){.kind = (uint8_t)kind, .microbatch = PLAN_NONE};
        set_gate(in, rank, inst->all_step || (joins && kind == TASK_RECV), t);
        TD_TRY(class_intern(classes, &c, &t->cls, err));
    }
    return TD_OK;
}

static td_status find_pairs(const lowering *l, const plan *p, refresh_pair **out, size_t *n,
                            td_err *err)
{
    *n = 0;
    *out = TD_NEW_N(l->a, refresh_pair, p->n_insts);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the weight refresh");
    for (uint32_t i = 0; i < p->n_insts; i++) {
        const plan_inst *const inst = &p->insts[i];
        size_t known = 0;
        if (!is_sent(l, inst)) continue;
        while (known < *n && !is_between(l, inst, &(*out)[known])) known++;
        if (known == *n)
            (*out)[(*n)++] = (refresh_pair){.src = inst->backward_row, .dst = inst->forward_row};
    }
    return TD_OK;
}

td_status lower_refresh(const lowering *l, const plan *in, plan *out, td_err *err)
{
    refresh_pair *pairs = NULL;
    size_t n_pairs = 0;
    *out = *in;
    if (l->o->sizes->model == NULL) return TD_OK; /* there are no weights */
    TD_TRY(find_pairs(l, in, &pairs, &n_pairs, err));
    if (n_pairs == 0) return TD_OK;
    const size_t n = n_pairs * (size_t)l->replicas;
    new_stream *const streams = TD_NEW_N(l->a, new_stream, 2 * n);
    plan_task *const tasks =
        TD_NEW_N(l->a, plan_task, 2 * (size_t)in->n_insts * (size_t)l->replicas);
    plan_channel *const channels = TD_NEW_N(l->a, plan_channel, in->n_channels + n);
    if (streams == NULL || tasks == NULL || channels == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the weight refresh");
    if (in->n_channels > 0) memcpy(channels, in->channels, in->n_channels * sizeof *channels);
    class_table classes;
    TD_TRY(class_table_open(&classes, l->a, in, err));
    const bool own = l->o->mapping == MAPPING_CHANNEL;
    uint32_t n_tasks = 0, n_streams = 0, channel = in->n_channels;
    for (size_t i = 0; i < n; i++, channel++) {
        const refresh_pair *const pair = &pairs[i / (size_t)l->replicas];
        const int32_t d = (int32_t)(i % (size_t)l->replicas);
        const uint32_t ranks[2] = {lower_rank(l, pair->src, d), lower_rank(l, pair->dst, d)};
        uint32_t first[2];
        for (int e = 0; e < 2; e++) {
            first[e] = n_tasks;
            TD_TRY(add_ends(l, in, &classes, pair, ranks[e], e == 0 ? TASK_SEND : TASK_RECV, tasks,
                            &n_tasks, err));
            streams[n_streams++] = (new_stream){.rank = ranks[e],
                                                .kind = !own     ? STREAM_BOTH
                                                        : e == 0 ? STREAM_SEND
                                                                 : STREAM_RECV,
                                                .channel = own ? channel : PLAN_NONE,
                                                .first = first[e],
                                                .n = n_tasks - first[e]};
        }
        for (uint32_t j = first[0]; j < first[1]; j++) {
            tasks[j].link = in->n_tasks + first[1] + j - first[0];
            tasks[first[1] + j - first[0]].link = in->n_tasks + j;
        }
        channels[channel] =
            (plan_channel){.src = ranks[0], .dst = ranks[1], .cls = CHANNEL_WEIGHTS};
    }
    TD_TRY(lower_add_streams(l->a, in, streams, n_streams, tasks, n_tasks, out, err));
    class_table_close(&classes, out);
    out->channels = channels;
    out->n_channels = channel;
    return TD_OK;
}
