/* Graphs of cuDNN's backend interface, and what cuDNN makes of them for a device that need not be
 * there. Nothing is executed. cuDNN is opened at run time. */
#ifndef TESTS_CUDA_CUDNN_GRAPH_H
#define TESTS_CUDA_CUDNN_GRAPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cudnn.h>

enum { CUDNN_WHY = 512, CUDNN_MADE_MAX = 160, CUDNN_OPS_MAX = 40 };
enum { CUDNN_ROW_AXIS = 2, CUDNN_COLUMN_AXIS = 3 };

typedef struct cudnn_api {
    size_t version;                  /* 10000 major + 100 minor + patch */
    cudnnBackendDescriptor_t device; /* what it compiles for */
    __typeof__(&cudnnBackendCreateDescriptor) create;
    __typeof__(&cudnnBackendSetAttribute) set;
    __typeof__(&cudnnBackendGetAttribute) get;
    __typeof__(&cudnnBackendFinalize) finalize;
    __typeof__(&cudnnBackendDestroyDescriptor) destroy;
    __typeof__(&cudnnGetLastErrorString) last_error;
    __typeof__(&cudnnGetErrorString) error_name;
} cudnn_api;

/* Opens cuDNN, with the driver in the file `driver` in place of the machine's own, for a device
 * with the properties in `json` (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION). False: it is not here,
 * or a version with known defects, or does not know this way; `why` says which. */
bool cudnn_open(cudnn_api *api, const char *driver, const char *json, char why[CUDNN_WHY]);

typedef struct cudnn_plan {
    bool accepted;
    int operations;
    int64_t configurations;  /* that the heuristics propose */
    int64_t chosen;          /* the first of them that becomes a plan */
    int64_t workspace_bytes; /* of the plan */
    int64_t beside_bytes;    /* scratch tensors that the graph itself names */
    char why[CUDNN_WHY];     /* why not accepted */
} cudnn_plan;

/* A graph under construction. What is refused first is kept in plan.why, and what is added
 * afterwards does nothing. */
typedef struct cudnn_graph {
    const cudnn_api *api;
    cudnn_plan plan;
    cudnnBackendDescriptor_t made[CUDNN_MADE_MAX], ops[CUDNN_OPS_MAX];
    int n_made, n_ops;
    int64_t next_id;
    bool refused;
} cudnn_graph;

void cudnn_graph_open(cudnn_graph *g, const cudnn_api *api);
void cudnn_graph_close(cudnn_graph *g);

typedef struct cudnn_layout {
    int64_t n[4], stride[4]; /* in elements */
} cudnn_layout;

/* Memory of the caller; nowhere, between two operations; memory of the caller that only the graph
 * uses; one number, given by value. */
typedef enum cudnn_place { CUDNN_GIVEN, CUDNN_BETWEEN, CUDNN_SCRATCH, CUDNN_NUMBER } cudnn_place;

cudnnBackendDescriptor_t cudnn_tensor(cudnn_graph *g, cudnnDataType_t type, const cudnn_layout *l,
                                      cudnn_place where);

typedef struct cudnn_pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t precision;
    cudnnBackendDescriptor_t x, with, where, y; /* with, where: NULL for none */
    int64_t axis;                               /* of CUDNN_POINTWISE_GEN_INDEX */
} cudnn_pointwise;

void cudnn_add_pointwise(cudnn_graph *g, const cudnn_pointwise *p);
/* y = mode(x, with), computed in fp32; with: NULL for none */
void cudnn_add_float(cudnn_graph *g, cudnnPointwiseMode_t mode, cudnnBackendDescriptor_t x,
                     cudnnBackendDescriptor_t with, cudnnBackendDescriptor_t y);
void cudnn_add_reduction(cudnn_graph *g, cudnnReduceTensorOp_t how, cudnnBackendDescriptor_t x,
                         cudnnBackendDescriptor_t y);
void cudnn_add_product(cudnn_graph *g, cudnnBackendDescriptor_t left,
                       cudnnBackendDescriptor_t right, cudnnBackendDescriptor_t y);
void cudnn_add_transpose(cudnn_graph *g, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y);

/* Asks for a plan of all operations so far; the answer is in g->plan. */
void cudnn_plan_graph(cudnn_graph *g);

#endif
