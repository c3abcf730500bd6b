/* The wire that a plan asks for. */
#include "exec/device_run.h"
#include "exec/wire_nccl.h"

/* The wire's word for a collective of the plan; exec_open refused what has none. */
static wire_kind kind_of(const executor *x, const plan_class *c)
{
    /* activations and weights are elements, gradients of weights floats */
    const bool elements = c->purpose == PURPOSE_WEIGHTS || c->purpose == PURPOSE_C2 ||
                          c->purpose == PURPOSE_EMBED_SUM || c->purpose == PURPOSE_SHARDS;
    if (elements && x->z->run.dtype == TYPE_BF16) {
        if (c->detail == COLL_ALL_GATHER) return WIRE_GATHER_BF16;
        if (c->detail == COLL_REDUCE) return WIRE_SUM_ROOT_BF16;
        if (c->detail == COLL_ALL_REDUCE) return WIRE_SUM_BF16;
        if (c->detail == COLL_REDUCE_SCATTER) return WIRE_SUM_PIECES_BF16;
    }
    switch (c->detail) {
    case COLL_REDUCE_SCATTER: return WIRE_SUM_PIECES_FLOAT;
    case COLL_ALL_GATHER: return WIRE_GATHER_FLOAT;
    case COLL_BROADCAST: return WIRE_BROADCAST;
    case COLL_REDUCE: return WIRE_SUM_ROOT_FLOAT;
    case COLL_VOCAB_STATS: return WIRE_VOCAB;
    default: return c->purpose == PURPOSE_NORM ? WIRE_SUM_DOUBLE : WIRE_SUM_FLOAT;
    }
}

/* --- NCCL --- */

/* CUDA's hardware queues (CUDA_DEVICE_MAX_CONNECTIONS): streams beyond share them and then wait for
 * each other where the plan does not. A collective is worth more multiprocessors than a message,
 * which waits for most of its time. */
enum { STREAMS_MAX = 32, MESSAGE_CTAS = 4, COLLECTIVE_CTAS = 8 };

/* How many multiprocessors an operation may hold, so that those that may wait at once hold a
 * quarter of the device at most, or one each. */
static td_status bound_ctas(const executor *x, td_arena *a, nccl_options *o, td_err *err)
{
    const plan *const p = x->p;
    const int64_t units = x->device->d->units;
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        uint32_t at = 0;
        int32_t *const change = TD_NEW_N(a, int32_t, (size_t)plan_compute(p, r)->n_tasks + 2);
        if (change == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
        const int64_t n = plan_streams_waiting(p, r, change, &at);
        if (p->ranks[r].n_streams > STREAMS_MAX || n >= units)
            return td_fail(err, TD_EUSAGE,
                           "--wire nccl: rank %u has %u streams, %lld of which may wait at once; a "
                           "device has %d queues for streams and %lld multiprocessors; --mapping "
                           "direction or single shares streams",
                           r, p->ranks[r].n_streams, (long long)n, (int)STREAMS_MAX,
                           (long long)units);
        const int64_t share = n == 0 ? units : units / (4 * n);
        if (share < o->message_ctas) o->message_ctas = share < 1 ? 1 : (int)share;
        if (2 * share < o->collective_ctas) o->collective_ctas = share < 1 ? 1 : (int)(2 * share);
    }
    return TD_OK;
}

/* The queue of each channel and group. */
static td_status name_queues(const plan *p, const plan_queues *q, wire_channel *channels,
                             wire_group *groups, td_err *err)
{
    for (uint32_t i = 0; i < p->n_channels; i++) channels[i].queue = PLAN_NONE;
    for (uint32_t s = 0; s < p->n_streams; s++) {
        const plan_stream *const st = &p->streams[s];
        const uint32_t queue = q->of_stream[s];
        if (queue == PLAN_NONE) continue;
        for (uint32_t t = st->first_task; t < st->first_task + st->n_tasks; t++) {
            const plan_task *const k = &p->tasks[t];
            if (k->kind == TASK_COLL) groups[p->colls[k->link].group].queue = queue;
            if (k->kind != TASK_SEND) continue;
            uint32_t c = 0;
            while (c < p->n_channels && (p->channels[c].src != st->rank ||
                                         p->channels[c].dst != plan_task_rank(p, k->link) ||
                                         p->channels[c].cls != p->classes[k->cls].detail))
                c++;
            if (c < p->n_channels && channels[c].queue == PLAN_NONE) channels[c].queue = queue;
            if (c == p->n_channels || channels[c].queue != queue)
                return td_fail(err, TD_EPLAN, "plan: messages of one channel are on two streams");
        }
    }
    return TD_OK;
}

static td_status open_nccl(executor *x, wire_shape *shape, wire_channel *channels,
                           wire_group *groups, td_arena *a, td_err *err)
{
    plan_queues q;
    TD_TRY(plan_find_queues(x->p, a, &q, err));
    TD_TRY(name_queues(x->p, &q, channels, groups, err));
    wire_queue *const queues = TD_NEW_N(a, wire_queue, q.n_queues);
    if (queues == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    for (uint32_t i = 0; i < q.n_queues; i++)
        queues[i] = (wire_queue){.members = q.members + q.queues[i].first_member,
                                 .n_members = q.queues[i].n_members,
                                 .collective = q.queues[i].collective};
    shape->queues = queues;
    shape->n_queues = q.n_queues;
    nccl_options o = {.ordered = x->options.ordered_sums,
                      .message_ctas = MESSAGE_CTAS,
                      .collective_ctas = COLLECTIVE_CTAS};
    TD_TRY(bound_ctas(x, a, &o, err));
    return wire_open_nccl(shape, &o, x->options.team, x->device->d, a, &x->wire, err);
}

void exec_register_memory(executor *x)
{
    team *const t = x->options.team;
    if (x->device == NULL || t == NULL || x->options.device_is_shared) return;
    const rank_arena *const m = &x->ranks[team_index(t)].arena;
    wire_nccl_memory(x->wire, m->base, m->bytes);
}

/* --- all wires --- */

td_status exec_open_wire(executor *x, td_arena *a, td_err *err)
{
    const plan *const p = x->p;
    wire_channel *const channels = TD_NEW_N(a, wire_channel, p->n_channels);
    wire_group *const groups = TD_NEW_N(a, wire_group, p->n_groups);
    wire_coll *const colls = TD_NEW_N(a, wire_coll, p->n_colls);
    if (channels == NULL || groups == NULL || colls == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the wire");
    for (uint32_t i = 0; i < p->n_channels; i++)
        channels[i] = (wire_channel){.src = p->channels[i].src, .dst = p->channels[i].dst};
    for (uint32_t i = 0; i < p->n_groups; i++)
        groups[i] = (wire_group){.members = &p->group_members[p->groups[i].first_member],
                                 .n_members = p->groups[i].n_members};
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const uint32_t first = p->coll_tasks[p->colls[i].first_task];
        const plan_class *const c = &p->classes[p->tasks[first].cls];
        colls[i] = (wire_coll){.group = p->colls[i].group,
                               .root = p->colls[i].root,
                               .kind = kind_of(x, c),
                               .bytes = worker_bytes(x, first)};
    }
    const int64_t deadline = x->options.deadline_ns > 0 ? x->options.deadline_ns : 120000000000;
    wire_shape shape = {.mover = x->device == NULL ? NULL : &x->device->mover,
                        .n_ranks = p->n_ranks,
                        .n_channels = p->n_channels,
                        .n_groups = p->n_groups,
                        .n_colls = p->n_colls,
                        .channels = channels,
                        .groups = groups,
                        .colls = colls,
                        .deadline_ns = deadline};
    team *const t = x->options.team;
    if (t == NULL) return wire_open_threads(&shape, a, &x->wire, err);
    return x->device == NULL ? wire_open_team(&shape, t, a, &x->wire, err)
                             : open_nccl(x, &shape, channels, groups, a, err);
}
