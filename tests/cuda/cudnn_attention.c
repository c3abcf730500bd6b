#include "cudnn_attention.h"

typedef cudnnBackendDescriptor_t desc;

/* The tensors' layouts; keys and values also with rows and columns exchanged. */
typedef struct layouts {
    cudnn_layout q, o, keys, keys_t, scores, scores_t, rows, one, full_keys, sums;
} layouts;

/* [batch, s, heads, d] in rows of ld elements, seen as [batch, heads, s, d] */
static cudnn_layout rows_of(int64_t batch, int64_t heads, int64_t s, int64_t d, int64_t ld)
{
    return (cudnn_layout){{batch, heads, s, d}, {s * ld, d, ld, 1}};
}

static cudnn_layout dense(int64_t batch, int64_t heads, int64_t r, int64_t c)
{
    return (cudnn_layout){{batch, heads, r, c}, {heads * r * c, r * c, c, 1}};
}

static cudnn_layout transposed(cudnn_layout l)
{
    return (cudnn_layout){{l.n[0], l.n[1], l.n[3], l.n[2]},
                          {l.stride[0], l.stride[1], l.stride[3], l.stride[2]}};
}

static layouts layouts_of(const attention_shape *s)
{
    const bool one_projection = s->s_q == s->s_kv;
    const int64_t wide = (s->heads + 2 * s->kv_heads) * s->d;
    layouts l;
    l.q = rows_of(s->batch, s->heads, s->s_q, s->d, one_projection ? wide : s->heads * s->d);
    l.o = rows_of(s->batch, s->heads, s->s_q, s->d, s->heads * s->d);
    l.keys =
        rows_of(s->batch, s->kv_heads, s->s_kv, s->d, one_projection ? wide : s->kv_heads * s->d);
    l.keys_t = transposed(l.keys);
    l.scores = dense(s->batch, s->heads, s->s_q, s->s_kv);
    l.scores_t = transposed(l.scores);
    l.rows = dense(s->batch, s->heads, s->s_q, 1);
    l.one = dense(1, 1, 1, 1);
    l.full_keys = dense(s->batch, s->heads, s->s_kv, s->d);
    l.sums = dense(s->batch, s->heads, s->s_q, s->d);
    return l;
}

static desc between(cudnn_graph *g, cudnnDataType_t type, const cudnn_layout *l)
{
    return cudnn_tensor(g, type, l, CUDNN_BETWEEN);
}

/* y = mode(x, with) in the layout l; with: NULL for none */
static desc then(cudnn_graph *g, cudnnPointwiseMode_t mode, desc x, desc with,
                 const cudnn_layout *l)
{
    const desc y = between(g, CUDNN_DATA_FLOAT, l);
    cudnn_add_float(g, mode, x, with, y);
    return y;
}

static desc integer(cudnn_graph *g, cudnnPointwiseMode_t mode, desc x, desc with,
                    const cudnn_layout *l)
{
    const desc y = between(g, CUDNN_DATA_INT32, l);
    cudnn_add_pointwise(
        g, &(cudnn_pointwise){
               .mode = mode, .precision = CUDNN_DATA_INT32, .x = x, .with = with, .y = y});
    return y;
}

static desc index_along(cudnn_graph *g, desc x, int64_t axis, const cudnn_layout *l)
{
    const desc y = between(g, CUDNN_DATA_INT32, l);
    cudnn_add_pointwise(g, &(cudnn_pointwise){.mode = CUDNN_POINTWISE_GEN_INDEX,
                                              .precision = CUDNN_DATA_FLOAT,
                                              .x = x,
                                              .y = y,
                                              .axis = axis});
    return y;
}

/* The scores with a number, given at run time, where row + s_kv - s_q < column. */
static desc masked(cudnn_graph *g, desc scores, const layouts *l)
{
    const desc s_kv = cudnn_tensor(g, CUDNN_DATA_INT32, &l->one, CUDNN_NUMBER);
    const desc s_q = cudnn_tensor(g, CUDNN_DATA_INT32, &l->one, CUDNN_NUMBER);
    const desc hidden = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l->one, CUDNN_NUMBER);
    const desc row = index_along(g, scores, CUDNN_ROW_AXIS, &l->scores);
    const desc column = index_along(g, scores, CUDNN_COLUMN_AXIS, &l->scores);
    const desc below = integer(g, CUDNN_POINTWISE_ADD, row, s_kv, &l->scores);
    const desc last = integer(g, CUDNN_POINTWISE_SUB, below, s_q, &l->scores);
    const desc seen = between(g, CUDNN_DATA_BOOLEAN, &l->scores);
    cudnn_add_pointwise(g, &(cudnn_pointwise){.mode = CUDNN_POINTWISE_CMP_GE,
                                              .precision = CUDNN_DATA_BOOLEAN,
                                              .x = last,
                                              .with = column,
                                              .y = seen});
    const desc y = between(g, CUDNN_DATA_FLOAT, &l->scores);
    cudnn_add_pointwise(g, &(cudnn_pointwise){.mode = CUDNN_POINTWISE_BINARY_SELECT,
                                              .precision = CUDNN_DATA_FLOAT,
                                              .x = scores,
                                              .with = hidden,
                                              .where = seen,
                                              .y = y});
    return y;
}

void attention_forward(const cudnn_api *api, const attention_shape *s, cudnn_plan *out)
{
    const layouts l = layouts_of(s);
    cudnn_graph graph, *const g = &graph;
    cudnn_graph_open(g, api);
    const desc q = cudnn_tensor(g, s->type, &l.q, CUDNN_GIVEN);
    const desc k = cudnn_tensor(g, s->type, &l.keys_t, CUDNN_GIVEN);
    const desc v = cudnn_tensor(g, s->type, &l.keys, CUDNN_GIVEN);
    const desc o = cudnn_tensor(g, s->type, &l.o, CUDNN_GIVEN);
    const desc statistics = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.rows, CUDNN_GIVEN);
    const desc scale = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.one, CUDNN_NUMBER);

    const desc product = between(g, CUDNN_DATA_FLOAT, &l.scores);
    cudnn_add_product(g, q, k, product);
    desc scores = then(g, CUDNN_POINTWISE_MUL, product, scale, &l.scores);
    if (s->causal) scores = masked(g, scores, &l);
    const desc most = between(g, CUDNN_DATA_FLOAT, &l.rows);
    cudnn_add_reduction(g, CUDNN_REDUCE_TENSOR_MAX, scores, most);
    const desc less = then(g, CUDNN_POINTWISE_SUB, scores, most, &l.scores);
    const desc powers = then(g, CUDNN_POINTWISE_EXP, less, NULL, &l.scores);
    const desc sum = between(g, CUDNN_DATA_FLOAT, &l.rows);
    cudnn_add_reduction(g, CUDNN_REDUCE_TENSOR_ADD, powers, sum);
    const desc logarithm = then(g, CUDNN_POINTWISE_LOG, sum, NULL, &l.rows);
    cudnn_add_float(g, CUDNN_POINTWISE_ADD, most, logarithm, statistics);
    const desc shares = between(g, s->type, &l.scores);
    cudnn_add_float(g, CUDNN_POINTWISE_DIV, powers, sum, shares);
    cudnn_add_product(g, shares, v, o);
    cudnn_plan_graph(g);
    *out = g->plan;
    cudnn_graph_close(g);
}

/* left^T right into the gradient of keys or values, summed over the query heads of a group. */
static void add_key_gradient(cudnn_graph *g, const attention_shape *s, const layouts *l, desc left,
                             desc right, desc y)
{
    const desc turned = between(g, s->type, &l->scores_t);
    cudnn_add_transpose(g, left, turned);
    if (s->heads == s->kv_heads) {
        cudnn_add_product(g, turned, right, y);
        return;
    }
    const desc full = cudnn_tensor(g, s->type, &l->full_keys, CUDNN_SCRATCH);
    cudnn_add_product(g, turned, right, full);
    cudnn_add_reduction(g, CUDNN_REDUCE_TENSOR_ADD, full, y);
}

void attention_backward(const cudnn_api *api, const attention_shape *s, bool deterministic,
                        cudnn_plan *out)
{
    const layouts l = layouts_of(s);
    cudnn_graph graph, *const g = &graph;
    cudnn_graph_open(g, api);
    const desc q = cudnn_tensor(g, s->type, &l.q, CUDNN_GIVEN);
    const desc k = cudnn_tensor(g, s->type, &l.keys_t, CUDNN_GIVEN);
    const desc v = cudnn_tensor(g, s->type, &l.keys_t, CUDNN_GIVEN);
    const desc o = cudnn_tensor(g, s->type, &l.o, CUDNN_GIVEN);
    const desc dout = cudnn_tensor(g, s->type, &l.o, CUDNN_GIVEN);
    const desc statistics = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.rows, CUDNN_GIVEN);
    const desc dq = cudnn_tensor(g, s->type, &l.q, CUDNN_GIVEN);
    const desc dk = cudnn_tensor(g, s->dkv, &l.keys, CUDNN_GIVEN);
    const desc dv = cudnn_tensor(g, s->dkv, &l.keys, CUDNN_GIVEN);
    const desc scale = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.one, CUDNN_NUMBER);
    const desc kept = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.one, CUDNN_NUMBER);

    /* delta: each row's sum of dout o */
    const desc both = then(g, CUDNN_POINTWISE_MUL, dout, o, &l.sums);
    const desc plain = between(g, CUDNN_DATA_FLOAT, &l.rows);
    cudnn_add_reduction(g, CUDNN_REDUCE_TENSOR_ADD, both, plain);
    const desc delta = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.rows, CUDNN_SCRATCH);
    cudnn_add_float(g, CUDNN_POINTWISE_MUL, plain, kept, delta);

    /* the shares once more, and dv */
    const desc product = between(g, CUDNN_DATA_FLOAT, &l.scores);
    cudnn_add_product(g, q, k, product);
    const desc scaled = then(g, CUDNN_POINTWISE_MUL, product, scale, &l.scores);
    desc less = then(g, CUDNN_POINTWISE_SUB, scaled, statistics, &l.scores);
    if (s->causal) less = masked(g, less, &l);
    const desc shares = then(g, CUDNN_POINTWISE_EXP, less, NULL, &l.scores);
    add_key_gradient(g, s, &l, shares, dout, dv);

    /* the gradient of the scores, then dk and dq */
    const desc dshares = between(g, CUDNN_DATA_FLOAT, &l.scores);
    cudnn_add_product(g, dout, v, dshares);
    const desc centred = then(g, CUDNN_POINTWISE_SUB, dshares, delta, &l.scores);
    const desc weighed = then(g, CUDNN_POINTWISE_MUL, centred, shares, &l.scores);
    const desc dscores = between(g, s->type, &l.scores);
    cudnn_add_float(g, CUDNN_POINTWISE_MUL, weighed, scale, dscores);
    add_key_gradient(g, s, &l, dscores, q, dk);
    const desc upright = between(g, s->type, &l.keys);
    cudnn_add_transpose(g, k, upright);
    if (deterministic) {
        cudnn_add_product(g, dscores, upright, dq);
    } else {
        const desc sums = cudnn_tensor(g, CUDNN_DATA_FLOAT, &l.sums, CUDNN_SCRATCH);
        cudnn_add_product(g, dscores, upright, sums);
        cudnn_add_float(g, CUDNN_POINTWISE_IDENTITY, sums, NULL, dq);
    }
    cudnn_plan_graph(g);
    *out = g->plan;
    cudnn_graph_close(g);
}
