/* A simulator that is slow and obvious: what the engine must agree with. */
#ifndef TESTS_SIM_SIM_REFERENCE_H
#define TESTS_SIM_SIM_REFERENCE_H

#include "sim/sim.h"

/* Same contract as sim_run; false when the plan cannot finish. With `pairs` messages are priced by
 * pair of ranks and share the links of its cluster, else they are pure latencies. */
bool reference_run(const plan *p, const int64_t *class_ns, sim_protocol protocol,
                   const cost_model *pairs, td_arena *a, task_times *out);

/* A flow through links of a device, for the network's reference. */
typedef struct reference_flow {
    int32_t src, dst;
    int64_t start_ns, transfer_ns, end_ns;
} reference_flow;

/* Fills end_ns of n flows that all lie within one node: global max-min sharing, event by event. */
void reference_share(reference_flow *f, int n, int n_devices);

/* A random plan of a registered family; the description goes to `what`. */
void random_plan(td_rng *rng, td_arena *a, plan *out, char *what, size_t size);
/* Random durations of all classes, many of them zero. */
int64_t *random_times(td_rng *rng, const plan *p, td_arena *a);

#endif
