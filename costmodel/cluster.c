/* Reading clusters; where a rank stands; efficiency by size. */
#include "costmodel/cluster.h"

#include "base/text.h"
#include "costmodel/cluster_presets.h"
#include "costmodel/json_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NODES_MAX = 1 << 20, NODE_DEVICES_MAX = 1 << 14 };

int32_t cluster_size(const cluster_desc *c) { return c->n_nodes * c->devices_per_node; }

int32_t cluster_node_of(const cluster_desc *c, int32_t rank) { return rank / c->devices_per_node; }

double efficiency_at(const efficiency_curve *e, double size)
{
    if (e->n == 0) return 1;
    if (size <= e->size[0]) return e->frac[0];
    for (int32_t i = 1; i < e->n; i++) {
        if (size > e->size[i]) continue;
        const double x = log(size / e->size[i - 1]) / log(e->size[i] / e->size[i - 1]);
        return e->frac[i - 1] + x * (e->frac[i] - e->frac[i - 1]);
    }
    return e->frac[e->n - 1];
}

/* --- JSON --- */

static td_status read_curve(const json_view *v, const char *key, efficiency_curve *out, td_err *err)
{
    const json_t *const list = json_object_get(v->object, key);
    if (list == NULL) return TD_OK;
    const size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 1 || n > CLUSTER_CURVE_MAX)
        return json_fail(v, key, err, "wants 1 to %d pairs [size, share]", CLUSTER_CURVE_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *const pair = json_array_get(list, i);
        const double size = json_number_value(json_array_get(pair, 0));
        const double share = json_number_value(json_array_get(pair, 1));
        if (json_array_size(pair) != 2 || !(size > 0) || !(share > 0 && share <= 1))
            return json_fail(v, key, err, "pair %zu wants a size above 0 and a share in (0, 1]", i);
        if (i > 0 && size <= out->size[i - 1])
            return json_fail(v, key, err, "sizes must ascend, pair %zu does not", i);
        out->size[i] = size;
        out->frac[i] = share;
    }
    out->n = (int32_t)n;
    return TD_OK;
}

static td_status read_link(const json_view *v, const char *key, bool needed, link_desc *out,
                           td_err *err)
{
    json_view link;
    bool found = false;
    double latency_us = 0, gb = 0;
    TD_TRY(json_object_in(v, key, needed, &link, &found, err));
    if (!found) return TD_OK;
    TD_TRY(json_only(&link, "latency_us gb_per_s", err));
    TD_TRY(json_f64(&link, "latency_us", true, 0, 1e9, &latency_us, err));
    TD_TRY(json_f64(&link, "gb_per_s", true, 1e-6, 1e9, &gb, err));
    *out = (link_desc){latency_us * 1e3, gb * 1e9};
    return TD_OK;
}

static td_status read_device(const json_view *v, cluster_desc *c, td_err *err)
{
    double matrix = 0, vector = 0, sweep = 0, memory = 0, launch_us = 0;
    TD_TRY(json_text(v, "name", true, c->name, sizeof c->name, err));
    TD_TRY(json_text(v, "device", false, c->device, sizeof c->device, err));
    TD_TRY(json_f64(v, "matrix_tflops", true, 1e-6, 1e9, &matrix, err));
    TD_TRY(json_f64(v, "vector_tflops", false, 1e-6, 1e9, &vector, err));
    TD_TRY(json_f64(v, "memory_gb_per_s", true, 1e-6, 1e9, &sweep, err));
    TD_TRY(json_f64(v, "memory_gb", true, 1e-6, 1e9, &memory, err));
    TD_TRY(json_f64(v, "launch_us", false, 0, 1e6, &launch_us, err));
    TD_TRY(read_curve(v, "matrix_efficiency", &c->matrix_efficiency, err));
    TD_TRY(read_curve(v, "memory_efficiency", &c->memory_efficiency, err));
    c->matrix_flops_per_s = matrix * 1e12;
    c->vector_flops_per_s = (vector > 0 ? vector : matrix) * 1e12;
    c->memory_bytes_per_s = sweep * 1e9;
    c->memory_bytes = (int64_t)(memory * 1e9);
    c->launch_ns = launch_us * 1e3;
    return TD_OK;
}

static td_status read_cluster(const json_view *v, cluster_desc *c, td_err *err)
{
    int64_t nodes = 1, devices = 0;
    double gb = 0;
    TD_TRY(json_only(v,
                     "name device nodes devices_per_node matrix_tflops vector_tflops "
                     "memory_gb_per_s memory_gb matrix_efficiency memory_efficiency launch_us "
                     "intra inter node_network_gb_per_s all_reduce_fraction sources",
                     err));
    TD_TRY(read_device(v, c, err));
    TD_TRY(json_i64(v, "nodes", false, 1, NODES_MAX, &nodes, err));
    TD_TRY(json_i64(v, "devices_per_node", true, 1, NODE_DEVICES_MAX, &devices, err));
    if (nodes * devices > INT32_MAX)
        return json_fail(v, "nodes", err, "sizes overflow: over 2^31 devices");
    TD_TRY(read_link(v, "intra", true, &c->intra, err));
    c->inter = c->intra;
    TD_TRY(read_link(v, "inter", false, &c->inter, err));
    TD_TRY(json_f64(v, "node_network_gb_per_s", false, 0, 1e9, &gb, err));
    c->all_reduce_frac = 1;
    TD_TRY(json_f64(v, "all_reduce_fraction", false, 1e-3, 1, &c->all_reduce_frac, err));
    c->n_nodes = (int32_t)nodes;
    c->devices_per_node = (int32_t)devices;
    c->node_network_bytes_per_s = gb * 1e9;
    return TD_OK;
}

td_status cluster_parse(const char *text, size_t len, const char *file, cluster_desc *out,
                        td_err *err)
{
    json_view v;
    TD_TRY(json_open(text, len, file, &v, err));
    *out = (cluster_desc){0};
    const td_status status = read_cluster(&v, out, err);
    json_close(&v);
    return status;
}

/* --- this machine --- */

td_status cluster_local(int32_t n_ranks, cluster_desc *out, td_err *err)
{
    if (n_ranks < 1 || n_ranks > NODE_DEVICES_MAX)
        return td_fail(err, TD_EUSAGE, "cluster local: %" PRId32 " ranks; wants 1 to %d", n_ranks,
                       NODE_DEVICES_MAX);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);
    const double n_cores = cores > 0 ? (double)cores : 1;
    /* guesses of a present-day server core, to be replaced by a profile: 60 GFLOP/s of fp32 in
     * products (AVX2 at 2.5 GHz, three quarters of 80), 20 GB/s of memory for all cores */
    const double share = n_ranks > n_cores ? n_cores / n_ranks : 1;
    *out = (cluster_desc){
        .name = "local",
        .device = "core of this machine (guessed speeds)",
        .n_nodes = 1,
        .devices_per_node = n_ranks,
        .matrix_flops_per_s = 60e9 * share,
        .vector_flops_per_s = 60e9 * share,
        .memory_bytes_per_s = 20e9 / n_ranks,
        .memory_bytes = pages > 0 ? pages * sysconf(_SC_PAGESIZE) / n_ranks : INT64_C(1) << 30,
        .launch_ns = 500,
        .intra = {.latency_ns = 5e3, .bytes_per_s = 10e9 / n_ranks},
        .inter = {.latency_ns = 5e3, .bytes_per_s = 10e9 / n_ranks},
        .all_reduce_frac = 1,
    };
    return TD_OK;
}

/* --- by name --- */

/* Splits "h100-dgx x4" or "h100-dgx:4" into name and count (0: none given). */
static td_status split_count(td_arena *a, const char *text, char **name, int64_t *nodes,
                             td_err *err)
{
    *name = td_strdup(a, text);
    *nodes = 0;
    if (*name == NULL) return td_fail(err, TD_ENOMEM, "cluster: out of memory");
    size_t at = strlen(*name);
    while (at > 0 && (*name)[at - 1] >= '0' && (*name)[at - 1] <= '9') at--;
    const bool digits = (*name)[at] != '\0';
    const bool colon = at > 0 && (*name)[at - 1] == ':';
    const bool cross = at > 1 && (*name)[at - 1] == 'x' && (*name)[at - 2] == ' ';
    if (!digits || !(colon || cross)) return TD_OK;
    TD_TRY(td_parse_i64(*name + at, 1, NODES_MAX, "cluster: number of nodes", nodes, err));
    at -= colon ? 1 : 2;
    while (at > 0 && (*name)[at - 1] == ' ') at--;
    (*name)[at] = '\0';
    return TD_OK;
}

static td_status unknown_cluster(const char *name, td_err *err)
{
    size_t n = 0;
    const char *const *const names = cluster_preset_names(&n);
    const char *const near = td_nearest(name, names, n);
    td_text list = {0};
    for (size_t i = 0; i < n; i++) td_text_addf(&list, "%s%s", i > 0 ? ", " : "", names[i]);
    const td_status status =
        near != NULL
            ? td_fail(err, TD_EUSAGE, "cluster '%s': no such preset or file; did you mean '%s'?",
                      name, near)
            : td_fail(err, TD_EUSAGE, "cluster '%s': no such preset or file; presets are %s", name,
                      list.s != NULL ? list.s : "many");
    td_text_free(&list);
    return status;
}

static td_status load_named(td_arena *a, const char *name, int64_t nodes, cluster_desc *out,
                            td_err *err)
{
    const char *const preset = cluster_preset_json(name);
    if (strcmp(name, "local") == 0) {
        const long cores = sysconf(_SC_NPROCESSORS_ONLN);
        const int32_t all = cores > 0 && cores < NODE_DEVICES_MAX ? (int32_t)cores : 1;
        /* there is one such machine: the number says how many ranks it holds */
        return cluster_local(nodes > 0 ? (int32_t)nodes : all, out, err);
    }
    if (preset != NULL) {
        TD_TRY(cluster_parse(preset, strlen(preset), name, out, err));
    } else {
        char *text = NULL;
        size_t len = 0;
        const bool file = strchr(name, '/') != NULL || strstr(name, ".json") != NULL ||
                          strcmp(name, "-") == 0 || access(name, F_OK) == 0;
        if (!file) return unknown_cluster(name, err);
        TD_TRY(td_read_file(a, name, JSON_READ_MAX, &text, &len, err));
        TD_TRY(cluster_parse(text, len, name, out, err));
    }
    if (nodes > 0 && nodes * out->devices_per_node > INT32_MAX)
        return td_fail(err, TD_EUSAGE, "cluster %s: %" PRId64 " nodes are over 2^31 devices", name,
                       nodes);
    if (nodes > 0) out->n_nodes = (int32_t)nodes;
    return TD_OK;
}

td_status cluster_load(const char *name_or_path, cluster_desc *out, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "cluster: out of memory");
    char *name = NULL;
    int64_t nodes = 0;
    td_status status = split_count(a, name_or_path, &name, &nodes, err);
    if (status == TD_OK) status = load_named(a, name, nodes, out, err);
    td_arena_free(a);
    return status;
}
