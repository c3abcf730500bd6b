#include "cudnn_graph.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIGS_MAX = 8, ALIGNMENT = 16 };

typedef cudnnBackendDescriptor_t desc;

/* --- opening --- */

static bool find(void *library, const char *name, void *out, char *why)
{
    void *const at = dlsym(library, name);
    if (at == NULL) snprintf(why, CUDNN_WHY, "cuDNN has no %s", name);
    memcpy(out, &at, sizeof at);
    return at != NULL;
}

static bool load(cudnn_api *api, const char *driver, char *why)
{
    /* first, and for all: cuDNN asks for it by the name that this one bears */
    if (dlopen(driver, RTLD_NOW | RTLD_GLOBAL) == NULL) {
        snprintf(why, CUDNN_WHY, "no driver to put in place: %s", dlerror());
        return false;
    }
    void *const library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(why, CUDNN_WHY, "cuDNN 9 is not here: %s", dlerror());
        return false;
    }
    __typeof__(&cudnnGetVersion) version;
    if (!find(library, "cudnnGetVersion", &version, why) ||
        !find(library, "cudnnBackendCreateDescriptor", &api->create, why) ||
        !find(library, "cudnnBackendSetAttribute", &api->set, why) ||
        !find(library, "cudnnBackendGetAttribute", &api->get, why) ||
        !find(library, "cudnnBackendFinalize", &api->finalize, why) ||
        !find(library, "cudnnBackendDestroyDescriptor", &api->destroy, why) ||
        !find(library, "cudnnGetLastErrorString", &api->last_error, why) ||
        !find(library, "cudnnGetErrorString", &api->error_name, why))
        return false;
    api->version = version();
    return true;
}

bool cudnn_open(cudnn_api *api, const char *driver, const char *json, char why[CUDNN_WHY])
{
    memset(api, 0, sizeof *api);
    if (!load(api, driver, why)) return false;
    /* before 9.6 lengths are multiples of 64; 9.10.0 and 9.10.1 have wrong attention */
    if (api->version < 90600 || api->version == 91000 || api->version == 91001) {
        snprintf(why, CUDNN_WHY, "cuDNN %zu is not a version to use", api->version);
        return false;
    }
    cudnnStatus_t bad = api->create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &api->device);
    if (!bad)
        bad = api->set(api->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                       (int64_t)strlen(json), json);
    if (!bad) bad = api->finalize(api->device);
    if (bad) {
        char told[CUDNN_WHY / 2] = "";
        api->last_error(told, sizeof told);
        snprintf(why, CUDNN_WHY, "cuDNN takes no properties of a device: %s: %s",
                 api->error_name(bad), told);
    }
    return !bad;
}

/* --- building --- */

void cudnn_graph_open(cudnn_graph *g, const cudnn_api *api)
{
    memset(g, 0, sizeof *g);
    g->api = api;
    g->next_id = 1;
}

static void refuse(cudnn_graph *g, const char *what, cudnnStatus_t status)
{
    if (g->refused) return;
    char told[CUDNN_WHY / 2] = "";
    g->api->last_error(told, sizeof told);
    g->refused = true;
    snprintf(g->plan.why, CUDNN_WHY, "%s: %s: %s", what, g->api->error_name(status), told);
}

static desc make(cudnn_graph *g, cudnnBackendDescriptorType_t type)
{
    desc d = NULL;
    if (g->refused) return NULL;
    if (g->n_made == CUDNN_MADE_MAX) abort();
    const cudnnStatus_t bad = g->api->create(type, &d);
    if (bad)
        refuse(g, "a descriptor", bad);
    else
        g->made[g->n_made++] = d;
    return d;
}

static void set(cudnn_graph *g, desc d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t t, int64_t n, const void *value)
{
    if (g->refused) return;
    const cudnnStatus_t bad = g->api->set(d, name, t, n, value);
    if (bad) refuse(g, "an attribute", bad);
}

static void set_desc(cudnn_graph *g, desc d, cudnnBackendAttributeName_t name, desc value)
{
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void set_type(cudnn_graph *g, desc d, cudnnBackendAttributeName_t name, cudnnDataType_t type)
{
    set(g, d, name, CUDNN_TYPE_DATA_TYPE, 1, &type);
}

static void finish(cudnn_graph *g, desc d, const char *what)
{
    if (g->refused) return;
    const cudnnStatus_t bad = g->api->finalize(d);
    if (bad) refuse(g, what, bad);
}

desc cudnn_tensor(cudnn_graph *g, cudnnDataType_t type, const cudnn_layout *l, cudnn_place where)
{
    const desc d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t id = g->next_id++, alignment = ALIGNMENT;
    const bool between = where == CUDNN_BETWEEN, number = where == CUDNN_NUMBER;
    set_type(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, l->n);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, l->stride);
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &between);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &number);
    finish(g, d, "a tensor");
    if (where == CUDNN_SCRATCH)
        g->plan.beside_bytes +=
            l->n[0] * l->n[1] * l->n[2] * l->n[3] * (type == CUDNN_DATA_FLOAT ? 4 : 2);
    return d;
}

static void keep(cudnn_graph *g, desc operation, const char *what)
{
    finish(g, operation, what);
    if (g->refused) return;
    if (g->n_ops == CUDNN_OPS_MAX) abort();
    g->ops[g->n_ops++] = operation;
}

void cudnn_add_pointwise(cudnn_graph *g, const cudnn_pointwise *p)
{
    const desc rule = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, rule, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &p->mode);
    set_type(g, rule, CUDNN_ATTR_POINTWISE_MATH_PREC, p->precision);
    if (p->mode == CUDNN_POINTWISE_GEN_INDEX)
        set(g, rule, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &p->axis);
    finish(g, rule, "a pointwise rule");
    const desc op = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, rule);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, p->x);
    if (p->with != NULL) set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, p->with);
    if (p->where != NULL) set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, p->where);
    set_desc(g, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, p->y);
    keep(g, op, "a pointwise operation");
}

void cudnn_add_float(cudnn_graph *g, cudnnPointwiseMode_t mode, desc x, desc with, desc y)
{
    cudnn_add_pointwise(
        g, &(cudnn_pointwise){
               .mode = mode, .precision = CUDNN_DATA_FLOAT, .x = x, .with = with, .y = y});
}

void cudnn_add_reduction(cudnn_graph *g, cudnnReduceTensorOp_t how, desc x, desc y)
{
    const desc rule = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, rule, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how);
    set_type(g, rule, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
    finish(g, rule, "a reduction's rule");
    const desc op = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, rule);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    keep(g, op, "a reduction");
}

void cudnn_add_product(cudnn_graph *g, desc left, desc right, desc y)
{
    const desc rule = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set_type(g, rule, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
    finish(g, rule, "a product's rule");
    const desc op = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, rule);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, left);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, right);
    set_desc(g, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, y);
    keep(g, op, "a product");
}

void cudnn_add_transpose(cudnn_graph *g, desc x, desc y)
{
    const desc op = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_desc(g, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    keep(g, op, "a transpose");
}

/* --- planning --- */

/* The first of the configurations that becomes a plan, as the heuristics rank them. */
static void choose(cudnn_graph *g, desc *configs)
{
    cudnn_plan *const out = &g->plan;
    for (int64_t i = 0; i < out->configurations && !out->accepted; i++) {
        desc plan = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set_desc(g, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
        set_desc(g, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, g->api->device);
        finish(g, plan, "a plan");
        int64_t n = 0;
        cudnnStatus_t bad = CUDNN_STATUS_SUCCESS;
        if (!g->refused)
            bad = g->api->get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                              &n, &out->workspace_bytes);
        if (bad) refuse(g, "a plan's workspace", bad);
        out->accepted = !g->refused;
        out->chosen = i;
        /* the next one is asked all the same; the last one's reason stays */
        g->refused = false;
    }
    if (out->accepted) out->why[0] = '\0';
}

void cudnn_plan_graph(cudnn_graph *g)
{
    cudnn_plan *const out = &g->plan;
    out->operations = g->n_ops;
    const desc whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->n_ops, g->ops);
    finish(g, whole, "the graph");
    const desc ask = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    set_desc(g, ask, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    set(g, ask, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    set_desc(g, ask, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, g->api->device);
    finish(g, ask, "the heuristics");
    desc configs[CONFIGS_MAX];
    for (int i = 0; i < CONFIGS_MAX; i++) configs[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (g->refused) return;
    const cudnnStatus_t bad =
        g->api->get(ask, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS_MAX,
                    &out->configurations, configs);
    if (bad)
        refuse(g, "the heuristics' results", bad);
    else if (out->configurations == 0)
        snprintf(out->why, CUDNN_WHY, "the heuristics propose nothing");
    else
        choose(g, configs);
}

void cudnn_graph_close(cudnn_graph *g)
{
    while (g->n_made > 0) g->api->destroy(g->made[--g->n_made]);
}
