/* The stand-in's cuBLASLt against products in double, one element at a time; and what it refuses.
 */
#include "standin_case.h"

#include <cublasLt.h>

#include <cmath>
#include <cstdlib>
#include <vector>

static uint64_t state;
static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / (double)(1 << 24) - 0.5;
}

static void good(cublasStatus_t st)
{
    if (st != CUBLAS_STATUS_SUCCESS) exit(CASE_ERROR);
}

/* A matrix in pinned memory, which both sides may read. */
struct matrix {
    cudaDataType type;
    long rows, cols, ld, batch, stride;
    void *at;
    cublasLtMatrixLayout_t layout;

    double value(long b, long r, long c) const
    {
        const long i = b * stride + c * ld + r;
        return type == CUDA_R_32F ? (double)((float *)at)[i]
                                  : (double)__bfloat162float(((__nv_bfloat16 *)at)[i]);
    }
};

static matrix new_matrix(cudaDataType type, long rows, long cols, long batch)
{
    matrix m = {type, rows, cols, rows + 3, batch, 0, nullptr, nullptr};
    m.stride = m.ld * cols + 5;
    const long n = m.stride * batch;
    m.at = pinned_array<float>((size_t)n);
    for (long i = 0; i < n; i++)
        if (type == CUDA_R_32F)
            ((float *)m.at)[i] = (float)uniform();
        else
            ((__nv_bfloat16 *)m.at)[i] = __float2bfloat16_rn((float)uniform());
    good(cublasLtMatrixLayoutCreate(&m.layout, type, (uint64_t)rows, (uint64_t)cols, m.ld));
    const int32_t count = (int32_t)batch;
    const int64_t stride = m.stride;
    good(cublasLtMatrixLayoutSetAttribute(m.layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                          sizeof count));
    good(cublasLtMatrixLayoutSetAttribute(m.layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                          &stride, sizeof stride));
    return m;
}

struct product {
    long m, n, k, batch;
    cublasOperation_t ta, tb;
    cudaDataType in, out;
    float alpha, beta;
    cublasLtEpilogue_t epilogue;
};

/* What a product needs. */
struct set_up {
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t op;
    cublasLtMatmulPreference_t wish;
    matrix a, b, c;
    float *bias, *aux;
    long aux_ld;
    void *workspace;
    cublasLtMatmulHeuristicResult_t found;
};

enum { ROOM = 8192 };

template <typename T> static void set(set_up *s, cublasLtMatmulDescAttributes_t what, T value)
{
    good(cublasLtMatmulDescSetAttribute(s->op, what, &value, sizeof value));
}

static cublasStatus_t find(set_up *s)
{
    int n = 0;
    return cublasLtMatmulAlgoGetHeuristic(s->lt, s->op, s->a.layout, s->b.layout, s->c.layout,
                                          s->c.layout, s->wish, 1, &s->found, &n);
}

static set_up prepared(const product &p)
{
    set_up s;
    const uint64_t room = ROOM;
    const uint32_t align = 4;
    const bool ta = p.ta == CUBLAS_OP_T, tb = p.tb == CUBLAS_OP_T;
    good(cublasLtCreate(&s.lt));
    good(cublasLtMatmulDescCreate(&s.op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    s.a = new_matrix(p.in, ta ? p.k : p.m, ta ? p.m : p.k, p.batch);
    s.b = new_matrix(p.in, tb ? p.n : p.k, tb ? p.k : p.n, p.batch);
    s.c = new_matrix(p.out, p.m, p.n, p.batch);
    s.aux_ld = p.m + 1;
    s.bias = pinned_array<float>((size_t)(p.m + p.n));
    s.aux = pinned_array<float>((size_t)(s.aux_ld * p.n));
    for (long i = 0; i < p.m + p.n; i++) s.bias[i] = (float)uniform();
    for (long i = 0; i < s.aux_ld * p.n; i++) s.aux[i] = (float)uniform();
    set(&s, CUBLASLT_MATMUL_DESC_TRANSA, p.ta);
    set(&s, CUBLASLT_MATMUL_DESC_TRANSB, p.tb);
    set(&s, CUBLASLT_MATMUL_DESC_EPILOGUE, p.epilogue);
    set(&s, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (void *)s.bias);
    set(&s, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
    set(&s, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (void *)s.aux);
    set(&s, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)s.aux_ld);
    set(&s, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, CUDA_R_32F);
    good(cublasLtMatmulPreferenceCreate(&s.wish));
    good(cublasLtMatmulPreferenceSetAttribute(s.wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &room, sizeof room));
    for (int i = 0; i < 4; i++)
        good(cublasLtMatmulPreferenceSetAttribute(
            s.wish,
            (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i),
            &align, sizeof align));
    s.workspace = device_array<char>(ROOM);
    return s;
}

static cublasStatus_t multiply(const set_up &s, const product &p, size_t room)
{
    return cublasLtMatmul(s.lt, s.op, &p.alpha, s.a.at, s.a.layout, s.b.at, s.b.layout, &p.beta,
                          s.c.at, s.c.layout, s.c.at, s.c.layout, &s.found.algo, s.workspace, room,
                          nullptr);
}

/* --- the same in double --- */

static double gelu(double u)
{
    return 0.5 * u * (1 + tanh(sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
}
static double gelu_slope(double u)
{
    const double h = 1e-5;
    return (gelu(u + h) - gelu(u - h)) / (2 * h);
}

static double of_a(const set_up &s, const product &p, long b, long i, long k)
{
    return p.ta == CUBLAS_OP_T ? s.a.value(b, k, i) : s.a.value(b, i, k);
}
static double of_b(const set_up &s, const product &p, long b, long k, long j)
{
    return p.tb == CUBLAS_OP_T ? s.b.value(b, j, k) : s.b.value(b, k, j);
}

struct expected {
    std::vector<double> c, bias, aux;
};

static expected plain(const set_up &s, const product &p)
{
    expected e;
    const int kind = p.epilogue;
    const bool biased = kind == CUBLASLT_EPILOGUE_BIAS || kind == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
                        kind == CUBLASLT_EPILOGUE_GELU_BIAS;
    const bool slope = kind == CUBLASLT_EPILOGUE_DGELU || kind == CUBLASLT_EPILOGUE_DGELU_BGRAD;
    const bool bent = kind == CUBLASLT_EPILOGUE_GELU || kind == CUBLASLT_EPILOGUE_GELU_BIAS;
    const bool kept = kind == CUBLASLT_EPILOGUE_GELU_AUX || kind == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    for (long i = 0; i < p.m + p.n; i++) e.bias.push_back((double)s.bias[i]);
    for (long i = 0; i < s.aux_ld * p.n; i++) e.aux.push_back((double)s.aux[i]);
    if (kind == CUBLASLT_EPILOGUE_DGELU_BGRAD)
        for (long i = 0; i < p.m; i++) e.bias[(size_t)i] = 0;
    for (long b = 0; b < p.batch; b++)
        for (long j = 0; j < p.n; j++)
            for (long i = 0; i < p.m; i++) {
                double x = 0;
                double *const aux = &e.aux[(size_t)(j * s.aux_ld + i)];
                for (long k = 0; k < p.k; k++) x += of_a(s, p, b, i, k) * of_b(s, p, b, k, j);
                x = (double)p.alpha * x + (double)p.beta * s.c.value(b, i, j);
                if (biased) x += (double)s.bias[i];
                if (slope) x *= gelu_slope(*aux);
                if (kept) *aux = x;
                if (kept || bent) x = gelu(x);
                if (kind == CUBLASLT_EPILOGUE_DGELU_BGRAD) e.bias[(size_t)i] += x;
                e.c.push_back(x);
            }
    for (long i = 0; kind == CUBLASLT_EPILOGUE_BGRADA && i < p.m; i++) {
        e.bias[(size_t)i] = 0;
        for (long k = 0; k < p.k; k++) e.bias[(size_t)i] += of_a(s, p, 0, i, k);
    }
    for (long j = 0; kind == CUBLASLT_EPILOGUE_BGRADB && j < p.n; j++) {
        e.bias[(size_t)j] = 0;
        for (long k = 0; k < p.k; k++) e.bias[(size_t)j] += of_b(s, p, 0, k, j);
    }
    return e;
}

static bool near(double x, double y, double limit) { return fabs(x - y) <= limit * (1 + fabs(y)); }

static bool same(const product &p)
{
    set_up s = prepared(p);
    const expected e = plain(s, p);
    good(find(&s));
    good(multiply(s, p, ROOM));
    fine(cudaDeviceSynchronize());
    const double limit = p.out == CUDA_R_16BF ? 1e-2 : 1e-4;
    size_t at = 0;
    bool right = true;
    for (long b = 0; b < p.batch; b++)
        for (long j = 0; j < p.n; j++)
            for (long i = 0; i < p.m; i++)
                right = right && near(s.c.value(b, i, j), e.c[at++], limit);
    for (long i = 0; i < p.m + p.n; i++)
        right = right && near((double)s.bias[i], e.bias[(size_t)i], limit);
    for (long i = 0; i < s.aux_ld * p.n; i++)
        right = right && near((double)s.aux[i], e.aux[(size_t)i], limit);
    return right;
}

static int products(void)
{
    const cudaDataType types[][2] = {
        {CUDA_R_32F, CUDA_R_32F}, {CUDA_R_16BF, CUDA_R_16BF}, {CUDA_R_16BF, CUDA_R_32F}};
    for (int i = 0; i < 24; i++) {
        const product p = {i % 5 + 1,
                           i % 7 + 2,
                           i * 3 % 23 + 1,
                           i % 3 == 0 ? 2 : 1,
                           i & 1 ? CUBLAS_OP_T : CUBLAS_OP_N,
                           i & 2 ? CUBLAS_OP_T : CUBLAS_OP_N,
                           types[i / 4 % 3][0],
                           types[i / 4 % 3][1],
                           i % 2 == 0 ? 1.0f : -0.5f,
                           i % 4 == 0 ? 0.0f : 1.5f,
                           CUBLASLT_EPILOGUE_DEFAULT};
        if (!same(p)) return CASE_WRONG;
    }
    return CASE_RIGHT;
}

static int epilogues(void)
{
    const cublasLtEpilogue_t all[] = {
        CUBLASLT_EPILOGUE_BIAS,     CUBLASLT_EPILOGUE_GELU,          CUBLASLT_EPILOGUE_GELU_BIAS,
        CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
        CUBLASLT_EPILOGUE_BGRADA,   CUBLASLT_EPILOGUE_BGRADB,        CUBLASLT_EPILOGUE_DGELU_BGRAD};
    for (const cublasLtEpilogue_t one : all)
        for (int i = 0; i < 4; i++)
            if (!same({9, 7, 13, 1, i & 1 ? CUBLAS_OP_T : CUBLAS_OP_N,
                       i & 2 ? CUBLAS_OP_T : CUBLAS_OP_N, CUDA_R_32F, CUDA_R_32F, 1.0f, 0.0f, one}))
                return CASE_WRONG;
    return CASE_RIGHT;
}

static const product some = {
    6, 5, 8, 1, CUBLAS_OP_N, CUBLAS_OP_N, CUDA_R_32F, CUDA_R_32F, 1, 0, CUBLASLT_EPILOGUE_DEFAULT};

static int other_algorithm(void)
{
    product longer = some;
    longer.k = 7;
    set_up s = prepared(some), other = prepared(longer);
    good(find(&s));
    other.found = s.found;
    good(multiply(other, longer, ROOM));
    return CASE_RIGHT;
}

static int small_workspace(void)
{
    set_up s = prepared(some);
    good(find(&s));
    good(multiply(s, some, 64));
    return CASE_RIGHT;
}

static int not_aligned(void)
{
    set_up s = prepared(some);
    const uint32_t align = 16;
    good(cublasLtMatmulPreferenceSetAttribute(s.wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                              &align, sizeof align));
    good(find(&s));
    s.a.at = (char *)((uintptr_t)s.a.at / 16 * 16) + 4;
    good(multiply(s, some, ROOM));
    return CASE_RIGHT;
}

static int fused_not_aligned(void)
{
    product biased = some;
    biased.epilogue = CUBLASLT_EPILOGUE_BIAS;
    set_up s = prepared(biased);
    const uint32_t align = 2;
    good(cublasLtMatmulPreferenceSetAttribute(s.wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                                              &align, sizeof align));
    return find(&s) == CUBLAS_STATUS_NOT_SUPPORTED ? CASE_RIGHT : CASE_WRONG;
}

static int do_not_fit(void)
{
    set_up s = prepared(some);
    set(&s, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    good(find(&s));
    return CASE_RIGHT;
}

static int workspace_used(void)
{
    set_up s = prepared(some);
    unsigned *const x = pinned_array<unsigned>(1);
    good(find(&s));
    fine(cudaMemset(s.workspace, 0, ROOM));
    good(multiply(s, some, ROOM));
    fine(cudaMemcpy(x, s.workspace, sizeof *x, cudaMemcpyDeviceToHost));
    return *x != 0 ? CASE_RIGHT : CASE_WRONG;
}

int main(void)
{
    typedef standin_case c;
    const standin_case all[] = {
        {"products", products, c::ALL_RIGHT, nullptr},
        {"epilogues", epilogues, c::ALL_RIGHT, nullptr},
        {"nothing fused for odd addresses", fused_not_aligned, c::ALL_RIGHT, nullptr},
        {"a product leaves nothing in its workspace", workspace_used, c::ALL_RIGHT, nullptr},
        {"another product's algorithm", other_algorithm, c::REFUSED, "another product"},
        {"a workspace too small", small_workspace, c::REFUSED, "too small"},
        {"less aligned than promised", not_aligned, c::REFUSED, "less aligned"},
        {"matrices that do not fit", do_not_fit, c::REFUSED, nullptr},
    };
    return standin_cases(all, sizeof all / sizeof *all);
}
