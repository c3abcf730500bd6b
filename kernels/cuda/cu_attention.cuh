/* What the attention kernels share: the shape as the device sees it. */
#ifndef KERNELS_CUDA_CU_ATTENTION_CUH
#define KERNELS_CUDA_CU_ATTENTION_CUH

#include "kernels/cuda/cu_common.cuh"

/* A k_attn with its pieces by value. */
struct cu_attn {
    long batch, heads, kv_heads, d, s_q, s_kv;
    bool causal;
    float scale;
    const int32_t *kv_len;
    long q_ld, q_batch, o_ld, o_batch, dq_ld, dq_batch, dkv_ld, dkv_batch;
    k_keys pieces[K_CUDA_PIECES_MAX];
    long first[K_CUDA_PIECES_MAX]; /* the piece's first key */
    int n_pieces;
};

/* Keys of batch b that query r sees. */
static __device__ __forceinline__ long cu_seen(const cu_attn &a, long b, long r)
{
    const long n = a.causal ? r + 1 + a.s_kv - a.s_q : a.s_kv;
    const long all = a.kv_len ? min((long)a.kv_len[b], a.s_kv) : a.s_kv;
    return min(n, all);
}

/* The piece that holds key c. */
static __device__ __forceinline__ int cu_piece(const cu_attn &a, long c)
{
    int i = 0;
    while (i + 1 < a.n_pieces && c >= a.first[i + 1]) i++;
    return i;
}

/* Where key c of batch b, head h lies in its piece, in elements. */
static __device__ __forceinline__ long cu_key_at(const cu_attn &a, int piece, long b, long h,
                                                 long c)
{
    const k_keys &p = a.pieces[piece];
    return b * p.batch + (c - a.first[piece]) * p.ld + h * a.d;
}

/* False, with the lane's error, where the shape is beyond the kernels. */
bool cu_attn_of(k_cuda_lane *lane, const k_attn *s, const float *k, const float *v, cu_attn *out);

struct cu_attn_bwd_args {
    const void *q, *dout;
    const float *lse, *delta;
    void *dq, *dk, *dv;
    bool accumulate;
};

/* bf16 on tensor cores; false, with nothing done, where the shape is not for them: heads of 64 or
 * 128 whose rows can be read 16 bytes at a time. */
bool cu_attn_fwd_mma(k_cuda_lane *lane, const cu_attn &a, const bf16 *q, bf16 *o, float *lse);
bool cu_attn_bwd_mma(k_cuda_lane *lane, const cu_attn &a, const cu_attn_bwd_args &w,
                     bool float_dkv);

#endif
