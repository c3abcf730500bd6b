/* Attention in the form in which cuDNN's engines recognise it: single operations, in this order.
 * cuDNN 9.19 takes masks in this form alone. */
#ifndef TESTS_CUDA_CUDNN_ATTENTION_H
#define TESTS_CUDA_CUDNN_ATTENTION_H

#include "cudnn_graph.h"

/* Queries s_q against keys s_kv; heads is a multiple of kv_heads. causal: query r sees the keys
 * 0 .. r + s_kv - s_q. Where s_q = s_kv q, k and v are views of one projection's rows
 * [batch, s, (heads + 2 kv_heads) d], as are their gradients; else those of keys and values are
 * [batch, s_kv, kv_heads, d]. */
typedef struct attention_shape {
    int64_t batch, heads, kv_heads, s_q, s_kv, d;
    bool causal;
    cudnnDataType_t type; /* of q, k, v, o and their gradients */
    cudnnDataType_t dkv;  /* of dk, dv */
} attention_shape;

/* o = softmax(scale q k^T + mask) v, and the logarithms of the sums as statistics. */
void attention_forward(const cudnn_api *api, const attention_shape *s, cudnn_plan *out);

/* dq, dk, dv from do, o and the statistics. deterministic: dq comes straight out of its product,
 * which selects the engine with a fixed order; else through sums in fp32. */
void attention_backward(const cudnn_api *api, const attention_shape *s, bool deterministic,
                        cudnn_plan *out);

#endif
