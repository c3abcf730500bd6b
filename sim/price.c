/* Prices of a plan's classes, and where its ranks stand on a cluster. */
#include "base/text.h"
#include "costmodel/profile.h"
#include "sim/sim.h"

#include <string.h>

const char *sim_protocol_name(sim_protocol protocol)
{
    return protocol == PROTOCOL_EAGER ? "eager" : "rendezvous";
}

td_status sim_protocol_parse(const char *name, sim_protocol *out, td_err *err)
{
    static const char *const names[] = {"eager", "rendezvous"};
    for (int i = 0; i < 2; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (sim_protocol)i;
            return TD_OK;
        }
    return td_fail(err, TD_EUSAGE, "--protocol %s: legal: eager, rendezvous", name);
}

int32_t sim_device_of(const plan *p, uint32_t rank) { return p->ranks[rank].device; }

static int32_t tp_of_row(const plan *p, int32_t row)
{
    uint32_t r = 0;
    while (r < p->n_ranks && p->ranks[r].row != row) r++;
    return r < p->n_ranks ? p->ranks[r].tp : p->tp;
}

/* A cost model as a row of another tensor-parallel degree sees it. */
typedef struct row_cost {
    sizes z;
    cost_model c;
} row_cost;

static const cost_model *cost_at(const plan *p, int32_t row, const cost_model *cost, row_cost *at)
{
    if (p->tp <= 1 || cost->sizes == NULL) return cost;
    const int32_t tp = tp_of_row(p, row);
    if (tp == p->tp) return cost;
    at->z = *cost->sizes;
    at->z.run.tp = tp;
    at->c = *cost;
    at->c.sizes = &at->z;
    at->c.unit_tp = p->tp;
    return &at->c;
}

/* A recompute on a row that has run no forward is a whole forward, ends of the model included. */
static pass_query query_of(const plan *p, const plan_class *c, const cost_model *cost)
{
    const plan_inst *const i = &p->insts[c->inst];
    const bool whole = c->kind == PASS_R && i->forward_row != i->backward_row;
    return (pass_query){.pass = whole && cost->units == NULL ? PASS_F : (pass_kind)c->kind,
                        .stage = i->stage,
                        .slice_len = c->slice_len,
                        .prefix = c->prefix,
                        .seq_len = p->seq_len,
                        .keeps_nothing = c->kind == PASS_F && i->forward_row != i->backward_row};
}

/* An overlapped cell: in a plan's class, bytes and second name the members' classes. */
static td_status price_pair(const plan *p, const plan_class *c, const cost_model *cost, int64_t *ns,
                            td_err *err)
{
    const pass_query x = query_of(p, &p->classes[c->bytes], cost);
    const pass_query y = query_of(p, &p->classes[c->second], cost);
    const bool forward_first = x.pass == PASS_F;
    return cost_pair(cost, forward_first ? &x : &y, forward_first ? &y : &x, ns, err);
}

/* The devices of a group: all replicas where they are folded. */
static td_status price_collective(const plan *p, uint32_t coll, const plan_class *c,
                                  const cost_model *cost, td_arena *scratch, int64_t *ns,
                                  td_err *err)
{
    const plan_group *const g = &p->groups[p->colls[coll].group];
    const int32_t copies = p->folded_dp && g->true_size > (int32_t)g->n_members
                               ? g->true_size / (int32_t)g->n_members
                               : 1;
    int32_t *const devices = TD_NEW_N(scratch, int32_t, (size_t)g->n_members * (size_t)copies);
    if (devices == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a group");
    int32_t n = 0;
    for (uint32_t i = 0; i < g->n_members; i++)
        for (int32_t d = 0; d < copies; d++)
            devices[n++] = p->ranks[p->group_members[g->first_member + i]].device +
                           d * p->ranks[p->group_members[g->first_member + i]].tp;
    /* a rank that stands for its shards meets them */
    const bool folded = c->purpose == PURPOSE_SHARD_GRADS && p->folded_tp;
    const int32_t shards = !folded            ? 1
                           : c->slice_len > 0 ? c->slice_len
                                              : p->ranks[p->group_members[g->first_member]].tp;
    return cost_collective(cost, (coll_kind)c->detail, devices, n, g->true_size * shards, c->bytes,
                           ns, err);
}

/* Whether a row's optimizer begins with what shards of a backward row have sent. */
static bool joins_shards(const plan *p, const plan_inst *i, int32_t row)
{
    return i->forward_row == row && tp_of_row(p, row) != tp_of_row(p, i->backward_row);
}

/* Norm and optimizer run over all stages whose gradients a row holds; their class says the row. */
static td_status price_step(const plan *p, const plan_class *c, const cost_model *cost, int64_t *ns,
                            td_err *err)
{
    const int32_t row = c->slice_len;
    const bool norm = c->kind == TASK_NORM; /* weights count once, where their gradient was made */
    const bool keeps = !norm && plan_validates(p);
    row_cost at;
    const cost_model *const here = cost_at(p, row, cost, &at);
    *ns = 0;
    for (uint32_t i = 0; i < p->n_insts; i++) {
        const plan_inst *const inst = &p->insts[i];
        int64_t one = 0;
        if (!norm && joins_shards(p, inst, row)) {
            TD_TRY(cost_join(here, inst->stage, !inst->all_step, &one, err));
            *ns += one;
        }
        if (norm ? inst->backward_row != row : !plan_trains(inst, row)) continue;
        TD_TRY(norm ? cost_norm(here, inst->stage, &one, err)
                    : cost_optimizer(here, inst->stage, &one, err));
        *ns += one;
        if (!keeps) continue;
        TD_TRY(cost_snapshot(here, inst->stage, &one, err));
        *ns += one;
    }
    return TD_OK;
}

/* A segment is an even part of its pass without the sums; parts add up to the nanosecond. */
static int64_t segment_ns(const plan_class *c, int64_t ns)
{
    if (c->segments == 0) return ns;
    return ns * (c->segment + 1) / c->segments - ns * c->segment / c->segments;
}

static td_status price_class(const plan *p, const plan_class *c, uint32_t coll,
                             const cost_model *cost, td_arena *scratch, int64_t *ns, td_err *err)
{
    if (c->kind < PASS_COUNT) {
        row_cost at;
        const pass_query q = query_of(p, c, cost);
        cost_model here = *cost_at(p, plan_home(&p->insts[c->inst], c->kind), cost, &at);
        here.sums_apart = c->segments > 0;
        TD_TRY(cost_pass(&here, &q, ns, err));
        *ns = segment_ns(c, *ns);
        return TD_OK;
    }
    message_cost m = {0};
    switch ((task_kind)c->kind) {
    case TASK_PAIR: return price_pair(p, c, cost, ns, err);
    case TASK_SEND:
    case TASK_RECV:
        if (cost->units != NULL) TD_TRY(cost_message(cost, 0, 1, c->bytes, &m, err));
        *ns = m.latency_ns + m.transfer_ns;
        return TD_OK;
    case TASK_COLL:
        *ns = 0; /* unit times hold the sums inside a pass */
        if (c->purpose == PURPOSE_SHARDS && cost->units != NULL) return TD_OK;
        return price_collective(p, coll, c, cost, scratch, ns, err);
    case TASK_NORM:
    case TASK_OPTIMIZER: return price_step(p, c, cost, ns, err);
    default: *ns = 0; return TD_OK;
    }
}

/* Groups of equal size may lie differently on the nodes, so a class of collectives takes the
 * longest of its groups. `seen` remembers the last group of each class, plus 1. */
static td_status price_all(const plan *p, const cost_model *cost, td_arena *scratch,
                           int64_t *class_ns, td_err *err)
{
    uint32_t *const seen = TD_NEW_N(scratch, uint32_t, p->n_classes);
    if (seen == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %u classes", p->n_classes);
    for (uint32_t i = 0; i < p->n_classes; i++)
        if (p->classes[i].kind != TASK_COLL)
            TD_TRY(price_class(p, &p->classes[i], 0, cost, scratch, &class_ns[i], err));
    for (uint32_t i = 0; i < p->n_colls; i++) {
        const uint32_t cls = p->tasks[p->coll_tasks[p->colls[i].first_task]].cls;
        if (seen[cls] == p->colls[i].group + 1) continue;
        seen[cls] = p->colls[i].group + 1;
        int64_t ns = 0;
        TD_TRY(price_class(p, &p->classes[cls], i, cost, scratch, &ns, err));
        if (class_ns[cls] < ns) class_ns[cls] = ns;
    }
    return TD_OK;
}

td_status sim_price(const plan *p, const cost_model *cost, td_arena *a, int64_t **class_ns,
                    td_err *err)
{
    *class_ns = TD_NEW_N(a, int64_t, p->n_classes);
    td_arena *const scratch = td_arena_new();
    const td_status st = *class_ns == NULL || scratch == NULL
                             ? td_fail(err, TD_ENOMEM, "out of memory for %u classes", p->n_classes)
                             : price_all(p, cost, scratch, *class_ns, err);
    td_arena_free(scratch);
    return st;
}

td_status sim_share_cores(const plan *p, const cost_model *c, td_arena *a, sim_options *o,
                          td_err *err)
{
    if (c->profile == NULL || c->units != NULL) return TD_OK;
    const int64_t all = plan_devices(p), node = c->cluster->devices_per_node;
    const int32_t most = (int32_t)(node < all ? node : all);
    double *const slow = TD_NEW_N(a, double, (size_t)most + 1);
    if (slow == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %d ranks", most);
    for (int32_t k = 1; k <= most; k++) slow[k] = profile_contention(c->profile, k, false);
    /* a folded rank stands for others that are at work when it is */
    const int32_t copies = (p->folded_dp ? p->dp : 1) * (p->folded_tp ? p->tp : 1);
    for (int32_t k = 1; copies > 1 && k <= most; k++)
        slow[k] = profile_contention(c->profile, k * copies < most ? k * copies : most, false);
    o->slowdown = slow;
    o->n_slowdown = most;
    return TD_OK;
}
