/* Flows that share links, and devices that share cores. A device has one link out and one in within
 * its node, and another pair to other nodes; a node may have a pair that all its devices share.
 * Concurrent flows on a link share it max-min fairly (progressive filling), in integer arithmetic,
 * so that results do not depend on the order in which flows were announced. */
#ifndef SIM_NETWORK_H
#define SIM_NETWORK_H

#include "base/base.h"
#include "costmodel/cluster.h"

typedef struct network network;

/* n_devices devices of the cluster take part. `copies`: a flow stands for so many equal ones that
 * share its node's links (folded replicas and shards). Lives in the arena. */
TD_MUST_USE td_status network_open(const cluster_desc *c, int32_t n_devices, int32_t copies,
                                   td_arena *a, network **out, td_err *err);

/* Announces a flow that starts at start_ns and takes transfer_ns when alone. `tag` names it and
 * breaks ties. Requires start_ns not before the last completion that network_next reported. */
TD_MUST_USE td_status network_add(network *n, uint32_t tag, int32_t src, int32_t dst,
                                  int64_t start_ns, int64_t transfer_ns, td_err *err);

/* Lets the devices of a node share its cores: with k of them at work each takes slowdown[k] times
 * as long as alone. slowdown is [most + 1]; no more than `most` work at once on a node. */
TD_MUST_USE td_status network_share_cores(network *n, const double *slowdown, int32_t most,
                                          td_err *err);

/* Announces work of a device that starts at start_ns and takes ns when alone on its node; as
 * network_add otherwise. Requires network_share_cores. */
TD_MUST_USE td_status network_add_work(network *n, uint32_t tag, int32_t device, int64_t start_ns,
                                       int64_t ns, td_err *err);

/* Goes on to the next completion, if it is at until_ns or before; false when there is none. All
 * flows that start before that completion must have been announced, except those that depend on a
 * flow not yet reported. */
bool network_next(network *n, int64_t until_ns, uint32_t *tag, int64_t *end_ns);

/* Flows announced, and of them those that ever shared a link. */
uint64_t network_flows(const network *n);
uint64_t network_shared_flows(const network *n);

#endif
