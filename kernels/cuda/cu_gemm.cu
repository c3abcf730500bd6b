/* Matrix products through cuBLASLt. Our matrices are row-major, the library's column-major: it is
 * asked for the transpose of C, op(B)^T op(A)^T, whose operands lie in memory as ours do. */
#include "kernels/cuda/cu_common.cuh"

#include <cstring>

/* What one product needs of the library; destroyed with it. */
struct product {
    cublasLtMatmulDesc_t op = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulPreference_t wish = nullptr;

    ~product()
    {
        if (wish) cublasLtMatmulPreferenceDestroy(wish);
        if (a) cublasLtMatrixLayoutDestroy(a);
        if (b) cublasLtMatrixLayoutDestroy(b);
        if (c) cublasLtMatrixLayoutDestroy(c);
        if (op) cublasLtMatmulDescDestroy(op);
    }
};

/* The largest power of two up to 256 that divides the address. */
static uint32_t alignment(const void *p)
{
    uint32_t n = 256;
    while ((uintptr_t)p % n != 0) n /= 2;
    return n;
}

static cublasStatus_t wish_for(product *w, const void *a, const void *b, const void *c)
{
    const uint64_t room = CU_WORKSPACE;
    /* sums in place use counters, whose order is a race */
    const uint32_t sums =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    const uint32_t at_a = alignment(a), at_b = alignment(b), at_c = alignment(c);
    cublasStatus_t st = cublasLtMatmulPreferenceCreate(&w->wish);
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } all[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &at_a, sizeof at_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &at_b, sizeof at_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &at_c, sizeof at_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &at_c, sizeof at_c},
    };
    for (const auto &one : all)
        if (st == CUBLAS_STATUS_SUCCESS)
            st = cublasLtMatmulPreferenceSetAttribute(w->wish, one.name, one.value, one.bytes);
    return st;
}

/* The first algorithm that the library recommends, the same one ever after. */
static cublasStatus_t find(k_cuda_lane *lane, product *w, const long key[10], const void *a,
                           const void *b, const void *c, const cublasLtMatmulAlgo_t **out)
{
    for (int i = 0; i < lane->n_algos; i++)
        if (memcmp(lane->algos[i].key, key, sizeof lane->algos[i].key) == 0) {
            *out = &lane->algos[i].algo;
            return CUBLAS_STATUS_SUCCESS;
        }
    cublasStatus_t st = wish_for(w, a, b, c);
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmulAlgoGetHeuristic(lane->lt, w->op, w->a, w->b, w->c, w->c, w->wish, 1,
                                            &found, &n);
    if (st == CUBLAS_STATUS_SUCCESS && n == 0) st = CUBLAS_STATUS_NOT_SUPPORTED;
    if (st != CUBLAS_STATUS_SUCCESS) return st;
    cu_algo *const to = &lane->algos[lane->n_algos < CU_ALGOS ? lane->n_algos++ : CU_ALGOS - 1];
    memcpy(to->key, key, sizeof to->key);
    to->algo = found.algo;
    *out = &to->algo;
    return CUBLAS_STATUS_SUCCESS;
}

static void multiply(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                     const void *a, long lda, const void *b, long ldb, float beta, void *c,
                     long ldc, bool wide)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    if (m <= 0 || n <= 0) return;
    const cudaDataType_t in = lane->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t out = lane->bf16 && !wide ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t first = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const long kinds = trans_a | trans_b << 1 | wide << 2 | (beta != 0.0f) << 3;
    const long key[10] = {m, n, k, lda, ldb, ldc, kinds, alignment(a), alignment(b), alignment(c)};
    product w;
    const cublasLtMatmulAlgo_t *algo = nullptr;
    cublasStatus_t st = cublasLtMatmulDescCreate(&w.op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (st == CUBLAS_STATUS_SUCCESS)
        st =
            cublasLtMatmulDescSetAttribute(w.op, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmulDescSetAttribute(w.op, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                            sizeof second);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatrixLayoutCreate(&w.a, in, trans_b ? k : n, trans_b ? n : k, ldb);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatrixLayoutCreate(&w.b, in, trans_a ? m : k, trans_a ? k : m, lda);
    if (st == CUBLAS_STATUS_SUCCESS) st = cublasLtMatrixLayoutCreate(&w.c, out, n, m, ldc);
    if (st == CUBLAS_STATUS_SUCCESS) st = find(lane, &w, key, b, a, c, &algo);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmul(lane->lt, w.op, &alpha, b, w.a, a, w.b, &beta, c, w.c, c, w.c, algo,
                            lane->workspace, CU_WORKSPACE, lane->stream);
    if (st != CUBLAS_STATUS_SUCCESS) cu_fail(lane, "cuBLASLt", cublasLtGetStatusString(st));
}

void cu_gemm(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
             const float *a, long lda, const float *b, long ldb, float beta, float *c, long ldc)
{
    multiply(ctx, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, false);
}

void cu_gemm_grad(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                  const float *a, long lda, const float *b, long ldb, float beta, float *c,
                  long ldc)
{
    multiply(ctx, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, true);
}
