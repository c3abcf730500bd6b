/* Collectives in the alpha-beta model: alpha a message's latency, beta ns a byte. Algorithms and
 * their costs: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in
 * MPICH", IJHPCA 19(1), 2005; for n members and N bytes
 *   reduce-scatter, all-gather   ring: (n-1) alpha; halving or doubling: ceil(log2 n) alpha;
 *                                both (n-1)/n N beta
 *   all-reduce                   a reduce-scatter, then an all-gather
 *   broadcast, reduce            tree: ceil(log2 n) (alpha + N beta); long ones: scatter and
 *                                all-gather, (ceil(log2 n) + n-1) alpha + 2 (n-1)/n N beta
 * Halving needs a power of two; other sizes fold first, which costs 2 alpha + N beta more, or take
 * the ring. A group on several nodes first reduces within each node; then every member sums its
 * share with its peers on the other nodes, over its own share of the network. */
#include "costmodel/network_cost.h"

#include <math.h>

group_shape group_shape_of(const cluster_desc *c, const int32_t *ranks, int32_t n_ranks, int32_t n)
{
    /* members of one node come together in rank order, so counting changes of node is enough; a
     * group in another order only looks more spread than it is */
    double nodes = 0;
    for (int32_t i = 0; i < n_ranks; i++)
        if (i == 0 || cluster_node_of(c, ranks[i]) != cluster_node_of(c, ranks[i - 1])) nodes++;
    if (nodes < 1) nodes = 1;
    const double members = (n_ranks > 0 ? n_ranks : n) / nodes;
    if (n <= n_ranks || n_ranks == 0) return (group_shape){nodes, members};
    const double room = floor(c->devices_per_node / members);
    const double known = nodes * members;
    /* folded replicas: they fill the rest of a node first, as consecutive ranks would */
    const double copies = n / known, per_node = copies < room ? copies : room;
    return (group_shape){ceil(n / (members * per_node)), members * per_node};
}

/* One half of an all-reduce among n members over one kind of link. */
static double scatter_ns(double n, double bytes, double alpha, double beta)
{
    if (n <= 1) return 0;
    const double ring = (n - 1) * alpha + (n - 1) / n * bytes * beta, steps = ceil(log2(n));
    const bool power = exp2(steps) == n;
    const double halving =
        steps * alpha + (n - 1) / n * bytes * beta + (power ? 0 : alpha + bytes / 2 * beta);
    return ring < halving ? ring : halving;
}

static double tree_ns(double n, double bytes, double alpha, double beta)
{
    if (n <= 1) return 0;
    const double steps = ceil(log2(n));
    const double tree = steps * (alpha + bytes * beta);
    const double split = (steps + n - 1) * alpha + 2 * (n - 1) / n * bytes * beta;
    return tree < split ? tree : split;
}

double network_collective_ns(const cluster_desc *c, coll_kind kind, group_shape g, double bytes)
{
    const double frac = c->all_reduce_frac > 0 ? c->all_reduce_frac : 1;
    double wide = c->inter.bytes_per_s;
    if (c->node_network_bytes_per_s > 0 && c->node_network_bytes_per_s / g.members < wide)
        wide = c->node_network_bytes_per_s / g.members;
    const double near_beta = 1e9 / (c->intra.bytes_per_s * frac), far_beta = 1e9 / (wide * frac);
    const double share = bytes / g.members;
    const double near = scatter_ns(g.members, bytes, c->intra.latency_ns, near_beta);
    const double far = scatter_ns(g.nodes, share, c->inter.latency_ns, far_beta);
    switch (kind) {
    case COLL_REDUCE_SCATTER:
    case COLL_ALL_GATHER: return near + far;
    case COLL_BROADCAST:
    case COLL_REDUCE:
        /* over the network one member of each node takes part, with the node's whole vector */
        return tree_ns(g.members, bytes, c->intra.latency_ns, near_beta) +
               tree_ns(g.nodes, bytes, c->inter.latency_ns, 1e9 / (c->inter.bytes_per_s * frac));
    case COLL_VOCAB_STATS:
        /* maxima first, then sums: each half of the payload is an all-reduce */
        return 4 * (scatter_ns(g.members, bytes / 2, c->intra.latency_ns, near_beta) +
                    scatter_ns(g.nodes, share / 2, c->inter.latency_ns, far_beta));
    case COLL_ALL_REDUCE:
    default: return 2 * (near + far);
    }
}
