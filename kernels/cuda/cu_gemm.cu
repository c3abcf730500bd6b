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

static cublasStatus_t wish_for(product *w, uint32_t at_a, uint32_t at_b, uint32_t at_c)
{
    const uint64_t room = CU_WORKSPACE;
    /* sums in place use counters, whose order is a race */
    const uint32_t sums =
        CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
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

/* The first algorithm that the library recommends, or its refusal; the same one ever after. */
static cublasStatus_t find(k_cuda_lane *lane, product *w, const long key[10],
                           const cublasLtMatmulAlgo_t **out)
{
    for (int i = 0; i < lane->n_algos; i++)
        if (memcmp(lane->algos[i].key, key, sizeof lane->algos[i].key) == 0) {
            *out = &lane->algos[i].algo;
            return lane->algos[i].found;
        }
    cublasStatus_t st = wish_for(w, (uint32_t)key[7], (uint32_t)key[8], (uint32_t)key[9]);
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmulAlgoGetHeuristic(lane->lt, w->op, w->a, w->b, w->c, w->c, w->wish, 1,
                                            &found, &n);
    if (st == CUBLAS_STATUS_SUCCESS && n == 0) st = CUBLAS_STATUS_NOT_SUPPORTED;
    cu_algo *const to = &lane->algos[lane->n_algos < CU_ALGOS ? lane->n_algos++ : CU_ALGOS - 1];
    memcpy(to->key, key, sizeof to->key);
    to->found = st;
    if (st == CUBLAS_STATUS_SUCCESS) to->algo = found.algo;
    *out = &to->algo;
    return st;
}

/* Rows of bias are added to C in the product itself; the library sees C as columns. */
static cublasStatus_t add_bias(product *w, const void *bias)
{
    const cublasLtEpilogue_t kind = CUBLASLT_EPILOGUE_BIAS;
    const cublasStatus_t st =
        cublasLtMatmulDescSetAttribute(w->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &kind, sizeof kind);
    if (st != CUBLAS_STATUS_SUCCESS) return st;
    return cublasLtMatmulDescSetAttribute(w->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                          sizeof bias);
}

/* What the library says, e.g. that it has no such product. bias: [n] elements of C, or null. */
static cublasStatus_t multiply(k_cuda_lane *lane, bool trans_a, bool trans_b, long m, long n,
                               long k, float alpha, const void *a, long lda, const void *b,
                               long ldb, float beta, void *c, long ldc, bool wide, const void *bias)
{
    if (m <= 0 || n <= 0) return CUBLAS_STATUS_SUCCESS;
    const cudaDataType_t in = lane->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t out = lane->bf16 && !wide ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t first = trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const long kinds =
        trans_a | trans_b << 1 | wide << 2 | (beta != 0.0f) << 3 | (bias != nullptr) << 4;
    /* the library knows no alignment of a bias: it counts as the output's */
    const uint32_t at_c =
        bias != nullptr && alignment(bias) < alignment(c) ? alignment(bias) : alignment(c);
    const long key[10] = {m, n, k, lda, ldb, ldc, kinds, alignment(b), alignment(a), at_c};
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
    if (st == CUBLAS_STATUS_SUCCESS && bias != nullptr) st = add_bias(&w, bias);
    if (st == CUBLAS_STATUS_SUCCESS) st = find(lane, &w, key, &algo);
    if (st == CUBLAS_STATUS_SUCCESS)
        st = cublasLtMatmul(lane->lt, w.op, &alpha, b, w.a, a, w.b, &beta, c, w.c, c, w.c, algo,
                            lane->workspace, CU_WORKSPACE, lane->stream);
    return st;
}

static void succeed(k_cuda_lane *lane, cublasStatus_t st)
{
    if (st != CUBLAS_STATUS_SUCCESS) cu_fail(lane, "cuBLASLt", cublasLtGetStatusString(st));
}

void cu_gemm(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
             const float *a, long lda, const float *b, long ldb, float beta, float *c, long ldc)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    succeed(lane, multiply(lane, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                           false, nullptr));
}

void cu_gemm_grad(k_ctx *ctx, bool trans_a, bool trans_b, long m, long n, long k, float alpha,
                  const float *a, long lda, const float *b, long ldb, float beta, float *c,
                  long ldc)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    succeed(lane, multiply(lane, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                           true, nullptr));
}

void cu_gemm_bias(k_ctx *ctx, long rows, long out, long in, const float *x, const float *w,
                  const float *bias, float *y, long ldy)
{
    k_cuda_lane *const lane = cu_lane(ctx);
    const cublasStatus_t st =
        multiply(lane, false, true, rows, out, in, 1.0f, x, in, w, in, 0.0f, y, ldy, false, bias);
    if (st != CUBLAS_STATUS_NOT_SUPPORTED) {
        succeed(lane, st);
        return;
    }
    cu_gemm(ctx, false, true, rows, out, in, 1.0f, x, in, w, in, 0.0f, y, ldy);
    cu_bias_add(ctx, rows, out, y, ldy, bias);
}
