/* Products of cuBLASLt. An algorithm remembers for which product it was found, with what workspace
 * and alignment, and refuses others; a product leaves its workspace poisoned. */
#include "cublasLt.h"
#include "cuda_bf16.h"
#include "standin_block.h"

#include <cstdio>
#include <cstring>
#include <vector>

struct standin_lt_handle {
    int nothing;
};

struct standin_lt_desc {
    cublasOperation_t trans_a, trans_b;
    cublasLtEpilogue_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
    cudaDataType bias_type, aux_type;
    bool bias_typed, aux_typed;
};

struct standin_lt_layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t batch;
};

struct standin_lt_wish {
    uint64_t workspace;
    uint32_t schemes, align[4]; /* of A, B, C, D */
};

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown status";
}

size_t cublasLtGetVersion(void) { return 130000; }

/* --- descriptions --- */

template <typename T> static cublasStatus_t drop(T *it)
{
    delete it;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    *h = new standin_lt_handle();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return drop(h); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = new standin_lt_desc();
    (*d)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return drop(d); }

template <typename T> static cublasStatus_t take(T *to, const void *value, size_t bytes)
{
    if (bytes != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy((void *)to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes)
{
    switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(&d->trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(&d->trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(&d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return take(&d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return take(&d->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        d->bias_typed = true;
        return take(&d->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        d->aux_typed = true;
        return take(&d->aux_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    if (rows == 0 || cols == 0 || ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *l = new standin_lt_layout{type, rows, cols, ld, 0, 1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return drop(l); }

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t what,
                                                const void *value, size_t bytes)
{
    if (what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return take(&l->batch, value, bytes);
    if (what == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) return take(&l->stride, value, bytes);
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = new standin_lt_wish{0, 0xffffffffu, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return drop(p); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void *value, size_t bytes)
{
    switch (what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return take(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return take(&p->schemes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(&p->align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(&p->align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(&p->align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(&p->align[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* --- algorithms --- */

/* The product: C is m x n, the inner dimension is k. */
struct product_shape {
    uint64_t m, n, k;
};

static bool shape_of(const standin_lt_desc *d, const standin_lt_layout *a,
                     const standin_lt_layout *b, const standin_lt_layout *c, product_shape *out)
{
    const bool ta = d->trans_a == CUBLAS_OP_T, tb = d->trans_b == CUBLAS_OP_T;
    *out = {ta ? a->cols : a->rows, tb ? b->rows : b->cols, ta ? a->rows : a->cols};
    return (tb ? b->cols : b->rows) == out->k && c->rows == out->m && c->cols == out->n &&
           a->batch == b->batch && a->batch == c->batch;
}

/* Elements that the library has products for. */
static bool types_fit(const standin_lt_layout *a, const standin_lt_layout *b,
                      const standin_lt_layout *c, const standin_lt_layout *out)
{
    return a->type == b->type && c->type == out->type &&
           (a->type == CUDA_R_16BF || out->type == CUDA_R_32F);
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x;
    return standin_next(&h);
}

static uint64_t hash_of(const standin_lt_desc *d, const standin_lt_layout *const l[4])
{
    uint64_t h = mix(mix(mix(1, d->trans_a), d->trans_b), d->epilogue);
    for (int i = 0; i < 4; i++) {
        h = mix(mix(mix(h, (uint64_t)l[i]->type), l[i]->rows), l[i]->cols);
        h = mix(mix(mix(h, (uint64_t)l[i]->ld), (uint64_t)l[i]->stride), (uint64_t)l[i]->batch);
    }
    return h;
}

/* What an algorithm remembers. */
struct standin_algo {
    uint64_t hash, workspace;
    uint32_t align[4], in_place, unused;
};
static_assert(sizeof(standin_algo) <= sizeof(cublasLtMatmulAlgo_t), "fits the library's");

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t wish, int wanted,
                                              cublasLtMatmulHeuristicResult_t *found, int *n)
{
    const standin_lt_layout *const all[] = {a, b, c, out};
    product_shape shape;
    *n = 0;
    if (wanted < 1 || !shape_of(d, a, b, c, &shape)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!types_fit(a, b, c, out)) return CUBLAS_STATUS_NOT_SUPPORTED;
    /* as a library may: who asks for what is fused must be able to go without */
    if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT && wish->align[3] < 4)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < wanted && i < 3; i++) {
        standin_algo algo = {hash_of(d, all), 0, {0, 0, 0, 0}, 0, 0};
        algo.workspace = wish->workspace < 4096 ? wish->workspace : 4096;
        memcpy(algo.align, wish->align, sizeof algo.align);
        memset((void *)&found[i], 0, sizeof found[i]);
        memcpy(found[i].algo.data, &algo, sizeof algo);
        found[i].workspaceSize = algo.workspace;
        found[i].wavesCount = 1;
        *n = i + 1;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* --- arithmetic --- */

static float read_at(cudaDataType type, const void *at, int64_t i)
{
    return type == CUDA_R_32F ? ((const float *)at)[i]
                              : __bfloat162float(((const __nv_bfloat16 *)at)[i]);
}

static void write_at(cudaDataType type, void *at, int64_t i, float x)
{
    if (type == CUDA_R_32F)
        ((float *)at)[i] = x;
    else
        ((__nv_bfloat16 *)at)[i] = __float2bfloat16_rn(x);
}

static const void *element(cudaDataType type, const void *at, int64_t i)
{
    return (const char *)at + i * (type == CUDA_R_32F ? 4 : 2);
}

static float gelu(float u)
{
    return 0.5f * u * (1.0f + tanhf(0.79788456f * (u + 0.044715f * u * u * u)));
}

static float gelu_slope(float u)
{
    const float t = tanhf(0.79788456f * (u + 0.044715f * u * u * u));
    return 0.5f * (1.0f + t) + 0.5f * u * (1.0f - t * t) * 0.79788456f * (1.0f + 0.134145f * u * u);
}

struct product_call {
    standin_lt_desc d;
    standin_lt_layout a, b, c;
    product_shape shape;
    float alpha, beta;
    const void *pa, *pb, *pc;
    void *out;
};

/* Rows of op(A) as floats, m x k; columns of op(B) as floats, n x k. */
static std::vector<float> packed(const standin_lt_layout &l, bool by_column, const void *p,
                                 uint64_t rows, uint64_t k)
{
    std::vector<float> out(rows * k);
    for (uint64_t i = 0; i < rows; i++)
        for (uint64_t j = 0; j < k; j++)
            out[i * k + j] = read_at(l.type, p,
                                     by_column ? (int64_t)j + (int64_t)i * l.ld
                                               : (int64_t)i + (int64_t)j * l.ld);
    return out;
}

/* Sums over the columns of a row, in the order of columns: gradients of a bias. */
static void put_bias_gradient(const standin_lt_desc &d, cudaDataType other, uint64_t i, float sum)
{
    write_at(d.bias_typed ? d.bias_type : other, d.bias, (int64_t)i, sum);
}

static float finish(const product_call &p, uint64_t i, uint64_t j, float x)
{
    const standin_lt_desc &d = p.d;
    const int kind = d.epilogue;
    const cudaDataType bias_type = d.bias_typed ? d.bias_type : p.c.type;
    const cudaDataType aux_type = d.aux_typed ? d.aux_type : p.c.type;
    const int64_t at = (int64_t)i + (int64_t)j * d.aux_ld;
    const bool biased = kind == CUBLASLT_EPILOGUE_BIAS || kind == CUBLASLT_EPILOGUE_GELU_BIAS ||
                        kind == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    if (biased) x += read_at(bias_type, d.bias, (int64_t)i);
    switch (kind) {
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS: write_at(aux_type, d.aux, at, x); return gelu(x);
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS: return gelu(x);
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_DGELU_BGRAD: return x * gelu_slope(read_at(aux_type, d.aux, at));
    default: return x;
    }
}

/* Four partial sums, so that the compiler may use vectors; any order is allowed. */
static float dot(const float *x, const float *y, uint64_t n)
{
    float sum[8] = {};
    uint64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++) sum[l] += x[i + (uint64_t)l] * y[i + (uint64_t)l];
    for (; i < n; i++) sum[0] += x[i] * y[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

static void multiply_one(const product_call &p, int32_t batch)
{
    const product_shape &s = p.shape;
    const std::vector<float> a = packed(p.a, p.d.trans_a == CUBLAS_OP_T,
                                        element(p.a.type, p.pa, batch * p.a.stride), s.m, s.k);
    const std::vector<float> b = packed(p.b, p.d.trans_b == CUBLAS_OP_N,
                                        element(p.b.type, p.pb, batch * p.b.stride), s.n, s.k);
    const void *const c = element(p.c.type, p.pc, batch * p.c.stride);
    void *const out = (void *)(uintptr_t)element(p.c.type, p.out, batch * p.c.stride);
    std::vector<float> sums(s.m);
    for (uint64_t j = 0; j < s.n; j++)
        for (uint64_t i = 0; i < s.m; i++) {
            const int64_t at = (int64_t)i + (int64_t)j * p.c.ld;
            float x = p.alpha * dot(&a[i * s.k], &b[j * s.k], s.k);
            if (p.beta != 0.0f) x += p.beta * read_at(p.c.type, c, at);
            x = finish(p, i, j, x);
            sums[i] += x;
            write_at(p.c.type, out, at, x);
        }
    if (p.d.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
        for (uint64_t i = 0; i < s.m; i++) put_bias_gradient(p.d, p.c.type, i, sums[i]);
    const bool of_a = p.d.epilogue == CUBLASLT_EPILOGUE_BGRADA;
    if (!of_a && p.d.epilogue != CUBLASLT_EPILOGUE_BGRADB) return;
    for (uint64_t i = 0; i < (of_a ? s.m : s.n); i++) {
        float sum = 0;
        for (uint64_t j = 0; j < s.k; j++) sum += of_a ? a[i * s.k + j] : b[i * s.k + j];
        put_bias_gradient(p.d, p.c.type, i, sum);
    }
}

static bool aligned(const void *p, uint32_t to) { return to > 0 && (uintptr_t)p % to == 0; }

static cublasStatus_t refuse(const char *why)
{
    (void)fprintf(stderr, "stand-in: cublasLtMatmul: %s\n", why);
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t s)
{
    const standin_lt_layout *const all[] = {la, lb, lc, lout};
    product_call p = {*d, *la, *lb, *lout, {0, 0, 0}, 0, 0, a, b, c, out};
    standin_algo known;
    if (!shape_of(d, la, lb, lc, &p.shape)) return refuse("the matrices do not fit");
    if (algo == nullptr) return refuse("no algorithm; the library would look for one every time");
    memcpy(&known, algo->data, sizeof known);
    if (known.hash != hash_of(d, all)) return refuse("the algorithm is for another product");
    if (known.workspace > workspace_bytes || (known.workspace > 0 && workspace == nullptr))
        return refuse("the workspace is too small");
    if (!aligned(a, known.align[0]) || !aligned(b, known.align[1]) || !aligned(c, known.align[2]) ||
        !aligned(out, known.align[3]))
        return refuse("less aligned than the algorithm was told");
    if (lc->ld != lout->ld || lc->stride != lout->stride) return refuse("C and D differ");
    memcpy(&p.alpha, alpha, sizeof p.alpha);
    memcpy(&p.beta, beta, sizeof p.beta);
    const uint64_t scribbles = known.workspace;
    standin_queue(s, [p, workspace, scribbles] {
        standin_poison(workspace, scribbles);
        for (int32_t i = 0; i < p.a.batch; i++) multiply_one(p, i);
        standin_poison(workspace, scribbles);
    });
    return CUBLAS_STATUS_SUCCESS;
}
