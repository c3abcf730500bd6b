/* The simulator: when does every task of a plan run? Integer nanoseconds in, integer nanoseconds
 * out; the same bytes in give the same bytes out. It knows no schedule, only plans. */
#ifndef SIM_SIM_H
#define SIM_SIM_H

#include "costmodel/cost.h"
#include "schedules/plan.h"
#include "schedules/trace.h"

/* How messages treat streams. Eager: a message leaves when its producer has ended, holds no stream
 * and blocks no sender; its RECV is done when the tensor has arrived, whenever it was posted.
 * Rendezvous: it leaves once both ends stand at the head of their streams with their gates ended,
 * and holds both streams until it is done. */
typedef enum sim_protocol { PROTOCOL_EAGER, PROTOCOL_RENDEZVOUS } sim_protocol;

/* "eager", and the protocol of such a name; TD_EUSAGE says which there are. */
const char *sim_protocol_name(sim_protocol protocol);
TD_MUST_USE td_status sim_protocol_parse(const char *name, sim_protocol *out, td_err *err);

/* Tasks that are done while they are simulated. */
typedef struct sim_live {
    void *self;
    /* How long does this compute task take? class_ns is the price of its class. Asked once for
     * each, in the order of the simulated times at which they begin, after everything that it waits
     * for. */
    td_status (*compute)(void *self, uint32_t rank, uint32_t task, int64_t class_ns, int64_t *ns,
                         td_err *err);
    /* The task's end of a message or collective is posted: its gate has ended and, in rendezvous,
     * it stands at the head of its stream. NULL: nobody wants to know. */
    td_status (*post)(void *self, uint32_t rank, uint32_t task, td_err *err);
} sim_live;

typedef struct sim_options {
    sim_protocol protocol;
    /* Prices messages by pair of ranks, and gives the links they share. NULL, or a model of unit
     * times: a message is a pure latency, class_ns of its class, and messages do not queue. */
    const cost_model *cost;
    /* Ranks of a node that share its cores: compute with k of them at work takes slowdown[k] times
     * as long as class_ns says, and changes pace whenever one starts or ends. [n_slowdown + 1], at
     * least the ranks of a node. NULL: nothing is shared. Requires a cost model with a cluster. */
    const double *slowdown;
    int32_t n_slowdown;
    const sim_live *live; /* NULL: every compute task takes what class_ns says */
} sim_options;

typedef struct sim_stats {
    int64_t end_ns;        /* end of the last task */
    uint64_t flows;        /* messages that went through the network's links */
    uint64_t shared_flows; /* of them those that ever shared a link */
    size_t scratch_bytes;  /* memory of the engine beyond plan and times */
} sim_stats;

/* Runs one period of a plan. class_ns: duration of each class, [p->n_classes]. Where out's arrays
 * are NULL they come from `a`; else they hold [n_tasks]. stats may be NULL.
 * Requires a plan that plan_check accepts. Edges into the next period are not followed.
 * A message has the same interval at both ends: from its departure to its arrival.
 * Errors: TD_EPLAN with the tasks that wait when the plan cannot finish; TD_EUSAGE when times
 * overflow; what cost_message fails with. */
TD_MUST_USE td_status sim_run(const plan *p, const int64_t *class_ns, const sim_options *o,
                              td_arena *a, task_times *out, sim_stats *stats, td_err *err);

/* Durations of all classes of a plan from a cost model: *class_ns is [p->n_classes], from `a`.
 * Messages get their unit time, or 0 on a cluster, where sim_run prices them by pair of ranks.
 * Marks and verifications take no time. */
TD_MUST_USE td_status sim_price(const plan *p, const cost_model *cost, td_arena *a,
                                int64_t **class_ns, td_err *err);

/* The device of the cluster that a rank of a plan stands on: tensor-parallel shards are innermost,
 * then replicas, then pipeline positions; a folded rank stands on its first device. */
int32_t sim_device_of(const plan *p, uint32_t rank);

/* Where prices are of a profile (on a cluster): how much longer passes take with k ranks of a node
 * at work, as it measured and, for more ranks than cores, by shares of the cores. Fills
 * o->slowdown; nothing to do for other prices. */
TD_MUST_USE td_status sim_share_cores(const plan *p, const cost_model *c, td_arena *a,
                                      sim_options *o, td_err *err);

#endif
