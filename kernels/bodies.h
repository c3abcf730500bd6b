/* All bodies as one table. Each bodies_*.c defines BODIES (the table's name) and BODIES_ISA (its
 * instruction set as text), and is compiled for that instruction set. */
#include "kernels/k_internal.h"

#include "kernels/body_math.h"

#include "kernels/body_rows.h"

#include "kernels/body_act.h"

#include "kernels/body_tokens.h"

#include "kernels/body_vectors.h"

const k_isa BODIES = {
    .name = BODIES_ISA,
    .layernorm_fwd = layernorm_fwd,
    .layernorm_dx = layernorm_dx,
    .layernorm_dgamma = layernorm_dgamma,
    .rmsnorm_fwd = rmsnorm_fwd,
    .rmsnorm_dx = rmsnorm_dx,
    .rmsnorm_dgamma = rmsnorm_dgamma,
    .bias_add = bias_add,
    .colsum = colsum,
    .gelu_tanh_fwd = gelu_tanh_fwd,
    .gelu_tanh_bwd = gelu_tanh_bwd,
    .gelu_erf_fwd = gelu_erf_fwd,
    .gelu_erf_bwd = gelu_erf_bwd,
    .swiglu_fwd = swiglu_fwd,
    .swiglu_bwd = swiglu_bwd,
    .rope = rope,
    .embed_fwd = embed_fwd,
    .embed_bwd = embed_bwd,
    .xent = xent,
    .xent_bwd = xent_bwd,
    .fill = fill,
    .scale = scale,
    .axpy = axpy,
    .add = add,
    .sumsq = sumsq,
    .adamw = adamw,
    .softmax_tile = softmax_tile,
    .softmax_end = softmax_end,
    .softmax_bwd = softmax_bwd,
    .row_dots = row_dots,
};
