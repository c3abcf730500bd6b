/* Products, vectors, sums in member order, the optimizer: CUDA against the cores. */
#include "tests/cuda/cuda_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void product(cuda_pair *p, bool ta, bool tb, long m, long n, long k, bool grad)
{
    char name[100];
    const long lda = (ta ? m : k) + 8, ldb = (tb ? k : n) + 8, ldc = n + 8;
    const cuda_tensor a = cuda_random(p, (ta ? k : m) * lda, false);
    const cuda_tensor b = cuda_random(p, (tb ? n : k) * ldb, false);
    const cuda_tensor c = grad ? cuda_random(p, m * ldc, true) : cuda_output(p, m * ldc, false);
    const float beta = grad ? 1.0f : 0.0f;
    const k_ops *const ops = k_ops_of(p->gpu);
    uint64_t bits[2] = {0, 0};
    for (int i = 0; i < (grad ? 1 : 2); i++) {
        (grad ? ops->gemm_grad : ops->gemm)(p->gpu, ta, tb, m, n, k, 1.0f, cuda_at(&a), lda,
                                            cuda_at(&b), ldb, beta, cuda_at(&c), ldc);
        bits[i] = cuda_bits(p, &c);
    }
    k_gemm_cpu(p->cpu, ta, tb, m, n, k, 1.0f, a.cpu, lda, b.cpu, ldb, beta, c.cpu, ldc);
    (void)snprintf(name, sizeof name, "product %c%c %ld x %ld x %ld%s", ta ? 'T' : 'N',
                   tb ? 'T' : 'N', m, n, k, grad ? " +=" : "");
    cuda_report(p, name, cuda_error_rows(p, &c, m, n, ldc), grad || bits[0] == bits[1]);
    cuda_pair_clear(p);
}

/* With its bias; `off` elements into it, where the library may have no such product. */
static void product_bias(cuda_pair *p, long rows, long out, long in, long off)
{
    char name[100];
    const long ldy = out + 8;
    const cuda_tensor x = cuda_random(p, rows * in, false), w = cuda_random(p, out * in, false);
    const cuda_tensor bias = cuda_random(p, out + off, false);
    const cuda_tensor y = cuda_output(p, rows * ldy, false);
    uint64_t bits[2];
    for (int i = 0; i < 2; i++) {
        k_ops_of(p->gpu)->gemm_bias(p->gpu, rows, out, in, cuda_at(&x), cuda_at(&w),
                                    cuda_skip(p, &bias, off), cuda_at(&y), ldy);
        bits[i] = cuda_bits(p, &y);
    }
    k_gemm_cpu(p->cpu, false, true, rows, out, in, 1.0f, x.cpu, in, w.cpu, in, 0.0f, y.cpu, ldy);
    k_bias_add_cpu(p->cpu, rows, out, y.cpu, ldy, bias.cpu + off);
    (void)snprintf(name, sizeof name, "product and bias %ld x %ld x %ld, %ld in", rows, out, in,
                   off);
    cuda_report(p, name, cuda_error_rows(p, &y, rows, out, ldy), bits[0] == bits[1]);
    cuda_pair_clear(p);
}

static void vectors(cuda_pair *p, long n)
{
    const cuda_tensor x = cuda_random(p, n, false), y = cuda_random(p, n, false);
    const cuda_tensor z = cuda_output(p, n, false), f = cuda_random(p, n, true);
    const cuda_tensor g = cuda_random(p, n, true), t = cuda_output(p, n, false);
    const k_ops *const ops = k_ops_of(p->gpu);
    ops->add(p->gpu, n, cuda_at(&x), cuda_at(&y), cuda_at(&z));
    k_add_cpu(p->cpu, n, x.cpu, y.cpu, z.cpu);
    cuda_report(p, "add", cuda_error(p, &z), true);
    ops->take_rows(p->gpu, 1, n, cuda_at(&f), n, cuda_at(&t), n);
    memcpy(t.cpu, f.cpu, (size_t)n * sizeof(float));
    cuda_report(p, "take_rows", cuda_error(p, &t), true);
    ops->axpy(p->gpu, n, 0.7f, cuda_at(&f), cuda_at(&g));
    k_axpy_cpu(p->cpu, n, 0.7f, f.cpu, g.cpu);
    cuda_report(p, "axpy", cuda_error(p, &g), true);
    ops->copy(p->gpu, cuda_at(&g), cuda_at(&f), (size_t)n * sizeof(float));
    memcpy(g.cpu, f.cpu, (size_t)n * sizeof(float));
    cuda_report(p, "copy", cuda_error(p, &g), true);
    cuda_pair_clear(p);
}

/* Rows of bytes between two strides; what lies beside them stays. */
static void rows_of_bytes(cuda_pair *p, long rows, long bytes, long gap)
{
    const long ld = bytes + gap, n = rows * ld / 4 + 1;
    const cuda_tensor x = cuda_random(p, n, true), y = cuda_random(p, n, true);
    k_ops_of(p->gpu)->copy_rows(p->gpu, rows, (size_t)bytes, y.gpu, (size_t)ld, x.gpu, (size_t)ld);
    k_ops_of(p->cpu)->copy_rows(p->cpu, rows, (size_t)bytes, y.cpu, (size_t)ld, x.cpu, (size_t)ld);
    (void)cuda_bits(p, &y); /* when all work is done */
    cuda_report(p, "copy_rows", 0, memcmp(y.cpu, y.gpu, (size_t)n * 4) == 0);
    cuda_pair_clear(p);
}

/* Sums in member order have the bits of the cores. */
static void members(cuda_pair *p, long n)
{
    cuda_tensor t[3];
    void *data[3];
    for (int i = 0; i < 3; i++) {
        t[i] = cuda_random(p, n, true);
        data[i] = t[i].gpu;
    }
    const bool given = k_cuda_sum(p->stream, K_CUDA_FLOAT, data, 3, n * 4, UINT32_MAX);
    for (long i = 0; i < n; i++) t[0].cpu[i] = (t[0].cpu[i] + t[1].cpu[i]) + t[2].cpu[i];
    const double e = cuda_error(p, &t[0]);
    cuda_report(p, "sum of members", e, given && memcmp(t[0].cpu, t[0].gpu, (size_t)n * 4) == 0);
    cuda_report(p, "  in all", 0, cuda_bits(p, &t[0]) == cuda_bits(p, &t[2]));
    cuda_pair_clear(p);
}

/* bf16 is added as floats. */
static void short_members(cuda_pair *p, long n)
{
    cuda_tensor t[3];
    void *data[3];
    if (!p->bf16) return;
    for (int i = 0; i < 3; i++) {
        t[i] = cuda_random(p, n, false);
        data[i] = t[i].gpu;
    }
    uint16_t *const want = td_alloc(p->arena, (size_t)n, sizeof *want);
    for (long i = 0; i < n; i++)
        want[i] = td_bf16_of_float((t[0].cpu[i] + t[1].cpu[i]) + t[2].cpu[i]);
    const bool given = k_cuda_sum(p->stream, K_CUDA_BF16, data, 3, n * 2, 1);
    const uint64_t before = cuda_bits(p, &t[0]);
    cuda_report(p, "sum of bf16 members in one", 0,
                given && before != cuda_bits(p, &t[1]) &&
                    memcmp(want, t[1].gpu, (size_t)n * sizeof *want) == 0);
    cuda_pair_clear(p);
}

static void optimizer(cuda_pair *p, long n)
{
    const long half = n / 2;
    const cuda_tensor w = cuda_random(p, n, false), g = cuda_random(p, n, true);
    const cuda_tensor m = cuda_random(p, 3 * n, true), table = cuda_output(p, 8, true);
    const cuda_tensor scale = cuda_output(p, 8, true);
    const cuda_tensor list = cuda_output(p, 2 * (long)(sizeof(k_adamw_piece) / 4), true);
    k_adamw_piece *const pieces = list.gpu;
    const long blocks = (half + K_ADAMW_BLOCK - 1) / K_ADAMW_BLOCK;
    for (long i = n; i < 2 * n; i++) m.cpu[i] = ((float *)m.gpu)[i] = fabsf(m.cpu[i]);
    memcpy((float *)m.gpu + 2 * n, w.cpu, (size_t)n * sizeof(float));
    pieces[0] = (k_adamw_piece){.first = 0, .count = half, .moment = 0, .decays = true};
    pieces[1] = (k_adamw_piece){
        .first = half, .count = n - half, .moment = half, .entry = 1, .first_block = blocks};
    k_adamw_stage s = {.pieces = pieces,
                       .n_pieces = 2,
                       .n_blocks = blocks + (n - half + K_ADAMW_BLOCK - 1) / K_ADAMW_BLOCK,
                       .moments = n,
                       .weights = cuda_at(&w),
                       .grads = cuda_at(&g),
                       .m = cuda_at(&m)};
    const k_adamw a = {.lr = 0.1f,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-6f,
                       .weight_decay = 0.1f,
                       .step = 3,
                       .clear_grad = true};
    double cpu_table[2] = {0, 0}, cpu_scale[2];
    memset(table.gpu, 0, 32);
    for (int cpu = 0; cpu < 2; cpu++) {
        k_ctx *const ctx = cpu == 1 ? p->cpu : p->gpu;
        double *const t = cpu == 1 ? cpu_table : table.gpu, *const c =
                                                                cpu == 1 ? cpu_scale : scale.gpu;
        if (cpu == 1) s.weights = w.cpu, s.grads = g.cpu, s.m = m.cpu;
        k_ops_of(ctx)->norms(ctx, &s, t);
        k_ops_of(ctx)->clip(ctx, 2, t, 1.0, c);
        k_ops_of(ctx)->adamw(ctx, &a, &s, c);
    }
    cuda_report(p, "adamw weights", cuda_error(p, &w), true);
    cuda_report(p, "  moments", cuda_error_rows(p, &m, 1, 2 * n, 2 * n), true);
    cuda_report(p, "  cleared gradients", cuda_error(p, &g), true);
    const double *const got = scale.gpu;
    cuda_report(p, "  norm", fabs(got[0] / cpu_scale[0] - 1), true);
    cuda_report(p, "  clip", fabs(got[1] / cpu_scale[1] - 1), true);
    cuda_pair_clear(p);
}

static void test(cuda_pair *p)
{
    static const long sizes[][3] = {{1, 1, 1}, {33, 17, 65}, {128, 256, 64}, {130, 1600, 100}};
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < 4; t++)
            for (int grad = 0; grad < 2; grad++)
                product(p, t % 2 == 1, t / 2 == 1, sizes[i][0], sizes[i][1], sizes[i][2],
                        grad == 1);
    for (int i = 0; i < 4; i++)
        for (long off = 0; off < 3; off++)
            product_bias(p, sizes[i][0], sizes[i][1], sizes[i][2], off);
    rows_of_bytes(p, 7, 64, 16);
    rows_of_bytes(p, 30, 12, 4);
    rows_of_bytes(p, 5, 7, 3);
    for (long n = 1; n < 100000; n = n * 7 + 3) {
        vectors(p, n);
        members(p, n);
        short_members(p, n);
        optimizer(p, n + 1);
    }
}

int main(void) { return cuda_main(test, "vectors"); }
