/* On what it is trained: devices, nodes and links. GB is 1e9 bytes everywhere. */
#ifndef COSTMODEL_CLUSTER_H
#define COSTMODEL_CLUSTER_H

#include "base/base.h"

enum { CLUSTER_CURVE_MAX = 12 };

/* Efficiency by operation size: linear between points in log(size), flat outside. */
typedef struct efficiency_curve {
    int32_t n;
    double size[CLUSTER_CURVE_MAX]; /* FLOPs or bytes, ascending */
    double frac[CLUSTER_CURVE_MAX];
} efficiency_curve;

typedef struct link_desc {
    double latency_ns;
    double bytes_per_s; /* per direction */
} link_desc;

typedef struct cluster_desc {
    char name[64], device[64];
    int32_t n_nodes, devices_per_node;
    double matrix_flops_per_s; /* dense peak in the preset's training dtype */
    double vector_flops_per_s;
    double memory_bytes_per_s;
    int64_t memory_bytes;
    efficiency_curve matrix_efficiency, memory_efficiency;
    double launch_ns;       /* fixed cost of one kernel */
    link_desc intra, inter; /* within a node; between nodes, one device's share of the network */
    /* Flows of one node that leave it share this, when > 0. */
    double node_network_bytes_per_s;
    double all_reduce_frac; /* share of the link's bandwidth that ring collectives attain */
} cluster_desc;

/* A preset by name, or a JSON file by path; "h100-dgx x4" and "h100-dgx:4" are four nodes of it. */
TD_MUST_USE td_status cluster_load(const char *name_or_path, cluster_desc *out, td_err *err);
/* The same from JSON text in memory; `file` is for messages. */
TD_MUST_USE td_status cluster_parse(const char *text, size_t len, const char *file,
                                    cluster_desc *out, td_err *err);
const char *const *cluster_preset_names(size_t *n);
/* The cores of this machine: n_ranks devices that share memory bandwidth. */
TD_MUST_USE td_status cluster_local(int32_t n_ranks, cluster_desc *out, td_err *err);

/* Devices of all nodes; the node of a device, which are numbered node by node. */
int32_t cluster_size(const cluster_desc *c);
int32_t cluster_node_of(const cluster_desc *c, int32_t rank);

/* Efficiency at a size. */
double efficiency_at(const efficiency_curve *e, double size);

#endif
