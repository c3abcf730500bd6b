/* Prices of messages and collectives on a cluster, in double. */
#ifndef COSTMODEL_NETWORK_COST_H
#define COSTMODEL_NETWORK_COST_H

#include "costmodel/cost.h"

/* How a group lies on the machine: `members` on each of `nodes` nodes. */
typedef struct group_shape {
    double nodes, members;
} group_shape;

/* The shape of a group of n true members, of which `ranks` are known; unknown ones are spread as
 * the known ones are. */
group_shape group_shape_of(const cluster_desc *c, const int32_t *ranks, int32_t n_ranks, int32_t n);

/* ns of one collective of `bytes` (the whole vector). */
double network_collective_ns(const cluster_desc *c, coll_kind kind, group_shape g, double bytes);

#endif
