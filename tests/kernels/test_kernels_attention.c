/* Attention: against a double-precision softmax, its gradients against central differences, and
 * slices against the whole. */
#include "kernel_check.h"

#include <math.h>
#include <string.h>

/* One problem, its inputs in both precisions. Everything is contiguous but for the gaps that ld and
 * batch strides leave. */
typedef struct attn_problem {
    k_attn a;
    bool accumulate;
    long nq, nkv, ndq, ndkv, nlse; /* elements of q (and o), k (and v), dq, dk (and dv), lse */
    const float *q, *k, *v, *o, *lse, *dout, *dk0;
    double *q64, *k64, *v64, *w64; /* w: the weights of the scalar, that is dout */
} attn_problem;

static attn_problem make_problem(bench_top *t, bool causal, long s_q, long s_kv, long most_d)
{
    attn_problem p = {
        .a = {.batch = pick(t, 1, 2), .kv_heads = pick(t, 1, 2), .d = pick(t, 1, most_d)}};
    k_attn *a = &p.a;
    a->heads = a->kv_heads * pick(t, 1, 3);
    a->s_q = s_q;
    a->s_kv = s_kv;
    a->causal = causal;
    a->scale = 1.0f / sqrtf((float)a->d);
    a->q_ld = a->o_ld = a->heads * a->d + pick(t, 0, 2);
    a->kv_ld = a->kv_heads * a->d + pick(t, 0, 2);
    a->q_batch = a->o_batch = a->q_ld * s_q;
    a->kv_batch = a->kv_ld * (s_kv + pick(t, 0, 3));
    a->dq_ld = a->heads * a->d;
    a->dq_batch = a->dq_ld * s_q;
    a->dkv_ld = a->kv_heads * a->d;
    a->dkv_batch = a->dkv_ld * s_kv;
    p.nq = a->batch * a->q_batch;
    p.nkv = a->batch * a->kv_batch;
    p.ndq = a->batch * a->dq_batch;
    p.ndkv = a->batch * a->dkv_batch;
    p.nlse = a->batch * a->heads * s_q;
    p.q = normals(t, p.nq, 1.5);
    p.k = normals(t, p.nkv, 1.5);
    p.v = normals(t, p.nkv, 1.0);
    p.dout = normals(t, p.nq, 1.0);
    p.dk0 = normals(t, p.ndkv, 1.0);
    p.q64 = widen(t, p.q, p.nq);
    p.k64 = widen(t, p.k, p.nkv);
    p.v64 = widen(t, p.v, p.nkv);
    p.w64 = widen(t, p.dout, p.nq);
    return p;
}

static long seen(const k_attn *a, long b, long r)
{
    const long all = a->kv_len ? a->kv_len[b] : a->s_kv;
    const long past = r + 1 + a->s_kv - a->s_q;
    return a->causal && past < all ? past : all;
}

/* One row of the definition: o[0..d) and the log of the sum of exponentials. */
static double ref_row(const attn_problem *p, long b, long h, long r, double *o)
{
    const k_attn *a = &p->a;
    const double *q = p->q64 + b * a->q_batch + r * a->q_ld + h * a->d;
    const long kv = b * a->kv_batch + h / (a->heads / a->kv_heads) * a->d, n = seen(a, b, r);
    double max = -HUGE_VAL, sum = 0.0;
    for (long c = 0; c < n; c++) {
        max = fmax(max, dot(q, p->k64 + kv + c * a->kv_ld, a->d) * (double)a->scale);
    }
    memset(o, 0, (size_t)a->d * sizeof *o);
    for (long c = 0; c < n; c++) {
        const double s = dot(q, p->k64 + kv + c * a->kv_ld, a->d) * (double)a->scale;
        const double e = exp(s - max);
        sum += e;
        for (long i = 0; i < a->d; i++) o[i] += e * p->v64[kv + c * a->kv_ld + i];
    }
    for (long i = 0; i < a->d; i++) o[i] /= sum;
    return max + log(sum);
}

/* o with o_ld (gaps stay zero) and lse, one after the other. */
static void ref_forward(const attn_problem *p, double *o, double *lse)
{
    const k_attn *a = &p->a;
    for (long b = 0; b < a->batch; b++) {
        for (long h = 0; h < a->heads; h++) {
            for (long r = 0; r < a->s_q; r++) {
                lse[(b * a->heads + h) * a->s_q + r] =
                    ref_row(p, b, h, r, o + b * a->o_batch + r * a->o_ld + h * a->d);
            }
        }
    }
}

static double ref_scalar(const void *problem)
{
    const attn_problem *p = (const attn_problem *)problem;
    const k_attn *a = &p->a;
    double sum = 0.0, o[256];
    for (long b = 0; b < a->batch; b++) {
        for (long h = 0; h < a->heads; h++) {
            for (long r = 0; r < a->s_q; r++) {
                ref_row(p, b, h, r, o);
                sum += dot(o, p->w64 + b * a->o_batch + r * a->o_ld + h * a->d, a->d);
            }
        }
    }
    return sum;
}

static void clear_gaps(float *x, long rows, long ld, long used)
{
    for (long r = 0; r < rows; r++) {
        for (long c = used; c < ld; c++) x[r * ld + c] = 0.0f;
    }
}

static void run_forward(k_ctx *ctx, const void *problem, float *out)
{
    const attn_problem *p = (const attn_problem *)problem;
    clear_gaps(out, p->a.batch * p->a.s_q, p->a.o_ld, p->a.heads * p->a.d);
    k_attn_fwd_cpu(ctx, &p->a, p->q, p->k, p->v, out, out + p->nq);
}

/* out: dq, dk, dv, delta. */
static void run_backward(k_ctx *ctx, const void *problem, float *out)
{
    const attn_problem *p = (const attn_problem *)problem;
    float *dk = out + p->ndq, *dv = dk + p->ndkv;
    if (p->accumulate) {
        memcpy(dk, p->dk0, (size_t)p->ndkv * sizeof *dk);
        memcpy(dv, p->dk0, (size_t)p->ndkv * sizeof *dv);
    }
    k_attn_bwd_cpu(ctx, &p->a, p->accumulate, p->q, p->k, p->v, p->o, p->dout, p->lse, dv + p->ndkv,
                   out, dk, dv);
}

static void check_forward(bench_top *t, attn_problem *p)
{
    double *o = zeros_f64(t, p->nq), *lse = zeros_f64(t, p->nlse);
    float *out = zeros(t, p->nq + p->nlse);
    run_everywhere(t, run_forward, p, out, p->nq + p->nlse);
    ref_forward(p, o, lse);
    check_close("o", out, o, p->nq, 1e-5);
    check_close("lse", out + p->nq, lse, p->nlse, 1e-5);
    p->o = out;
    p->lse = out + p->nq;
}

static void test_forward(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 24; i++) {
        const bool causal = i % 2 == 0;
        const long s_q = i < 16 ? pick(t, 1, 70) : pick(t, 100, 700);
        attn_problem p =
            make_problem(t, causal, s_q, s_q + pick(t, 0, i < 16 ? 300 : 40), i < 16 ? 70 : 20);
        int32_t lengths[2] = {(int32_t)pick(t, 1, p.a.s_kv), (int32_t)pick(t, 1, p.a.s_kv)};
        if (i % 4 == 1 || i % 4 == 2) p.a.kv_len = lengths;
        check_forward(t, &p);
    }
}

/* The gradient with respect to x (with ld and batch strides) as contiguous rows. */
static double *gathered(bench_top *t, const double *x, const k_attn *a, long rows, long width,
                        long ld, long batch)
{
    double *y = zeros_f64(t, a->batch * rows * width);
    for (long b = 0; b < a->batch; b++) {
        for (long r = 0; r < rows; r++) {
            memcpy(y + (b * rows + r) * width, x + b * batch + r * ld, (size_t)width * sizeof *y);
        }
    }
    return y;
}

static void check_backward(bench_top *t, attn_problem *p)
{
    const k_attn *a = &p->a;
    const long qw = a->heads * a->d, kw = a->kv_heads * a->d;
    float *out = zeros(t, p->ndq + 2 * p->ndkv + p->nlse);
    run_everywhere(t, run_backward, p, out, p->ndq + 2 * p->ndkv + p->nlse);
    double *dq = differences(t, ref_scalar, p, p->q64, p->nq);
    double *dk = differences(t, ref_scalar, p, p->k64, p->nkv);
    double *dv = differences(t, ref_scalar, p, p->v64, p->nkv);
    dq = gathered(t, dq, a, a->s_q, qw, a->q_ld, a->q_batch);
    dk = gathered(t, dk, a, a->s_kv, kw, a->kv_ld, a->kv_batch);
    dv = gathered(t, dv, a, a->s_kv, kw, a->kv_ld, a->kv_batch);
    for (long i = 0; p->accumulate && i < p->ndkv; i++) {
        dk[i] += (double)p->dk0[i];
        dv[i] += (double)p->dk0[i];
    }
    check_close("dq", out, dq, p->ndq, 2e-5);
    check_close("dk", out + p->ndq, dk, p->ndkv, 2e-5);
    check_close("dv", out + p->ndq + p->ndkv, dv, p->ndkv, 2e-5);
}

static void test_backward(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 16; i++) {
        const bool causal = i % 2 == 0;
        const long s_q = pick(t, 1, 9);
        attn_problem p = make_problem(t, causal, s_q, s_q + pick(t, 0, 8), 5);
        int32_t lengths[2] = {(int32_t)pick(t, 1, p.a.s_kv), (int32_t)pick(t, 1, p.a.s_kv)};
        p.accumulate = i % 3 == 0;
        if (i % 4 == 1 || i % 4 == 2) p.a.kv_len = lengths;
        check_forward(t, &p);
        check_backward(t, &p);
    }
}

/* Slice [from, to) of p's queries against its prefix. */
static attn_problem slice_of(const attn_problem *p, long from, long to)
{
    attn_problem s = *p;
    const long at = from * p->a.q_ld;
    s.a.s_q = to - from;
    s.a.s_kv = to;
    s.q += at;
    s.q64 += at;
    s.dout += at;
    s.w64 += at;
    return s;
}

/* Whole and in slices, forward and then backward last to first with dk, dv accumulated. */
static void check_slices(bench_top *t, long length, long most)
{
    attn_problem p = make_problem(t, true, length, length, 40);
    p.a.batch = 1;
    const k_attn *a = &p.a;
    const long no = a->s_q * a->o_ld, nlse = a->heads * a->s_q;
    float *o = zeros(t, no), *lse = zeros(t, nlse), *delta = zeros(t, nlse);
    float *grads = zeros(t, p.ndq + 2 * p.ndkv), *parts = zeros(t, p.ndq + 2 * p.ndkv);
    float *o_parts = zeros(t, no);
    double *o64 = zeros_f64(t, no), *lse64 = zeros_f64(t, nlse), *slice64 = zeros_f64(t, no);
    k_attn_fwd_cpu(t->three, a, p.q, p.k, p.v, o, lse);
    k_attn_bwd_cpu(t->three, a, false, p.q, p.k, p.v, o, p.dout, lse, delta, grads, grads + p.ndq,
                   grads + p.ndq + p.ndkv);
    ref_forward(&p, o64, lse64);
    for (long to = length, from; to > 0; to = from) {
        from = to - pick(t, 1, most < to ? most : to);
        const attn_problem s = slice_of(&p, from, to);
        float *so = o_parts + from * a->o_ld;
        k_attn_fwd_cpu(t->three, &s.a, s.q, s.k, s.v, so, lse);
        k_attn_bwd_cpu(t->three, &s.a, true, s.q, s.k, s.v, so, s.dout, lse, delta,
                       parts + from * a->dq_ld, parts + p.ndq, parts + p.ndq + p.ndkv);
        ref_forward(&s, slice64 + from * a->o_ld, lse64);
    }
    for (long i = 0; i < no; i++) assert_true(fabs(o64[i] - slice64[i]) <= 1e-12);
    check_close("o of slices", o_parts, widen(t, o, no), no, 1e-5);
    check_close("dq of slices", parts, widen(t, grads, p.ndq), p.ndq, 1e-5);
    check_close("dk of slices", parts + p.ndq, widen(t, grads + p.ndq, p.ndkv), p.ndkv, 1e-5);
    check_close("dv of slices", parts + p.ndq + p.ndkv, widen(t, grads + p.ndq + p.ndkv, p.ndkv),
                p.ndkv, 1e-5);
}

static void test_slices(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 10; i++) check_slices(t, pick(t, 2, 90), 40);
    check_slices(t, 610, 300);
    check_slices(t, 601, 601);
}

/* q, k, v, and dq, dk, dv as views of one fused buffer each: the same bits as apart. */
static void test_fused_views(void **state)
{
    bench_top *t = (bench_top *)*state;
    const long s = 37, heads = 3, d = 8, c = heads * d;
    k_attn a = {.batch = 2,
                .heads = heads,
                .kv_heads = heads,
                .d = d,
                .s_q = s,
                .s_kv = s,
                .causal = true,
                .scale = 0.3f,
                .q_ld = 3 * c,
                .q_batch = 3 * c * s,
                .kv_ld = 3 * c,
                .kv_batch = 3 * c * s,
                .o_ld = c,
                .o_batch = c * s,
                .dq_ld = 3 * c,
                .dq_batch = 3 * c * s,
                .dkv_ld = 3 * c,
                .dkv_batch = 3 * c * s};
    const float *qkv = normals(t, 2 * s * 3 * c, 1.0), *dout = normals(t, 2 * s * c, 1.0);
    float *o = zeros(t, 2 * s * c), *lse = zeros(t, 2 * heads * s),
          *delta = zeros(t, 2 * heads * s);
    float *fused = normals(t, 2 * s * 3 * c, 1.0), *apart = zeros(t, 3 * 2 * s * c);
    k_attn_fwd_cpu(t->one, &a, qkv, qkv + c, qkv + 2 * c, o, lse);
    k_attn_bwd_cpu(t->one, &a, false, qkv, qkv + c, qkv + 2 * c, o, dout, lse, delta, fused,
                   fused + c, fused + 2 * c);
    a.dq_ld = a.dkv_ld = c;
    a.dq_batch = a.dkv_batch = c * s;
    k_attn_bwd_cpu(t->one, &a, false, qkv, qkv + c, qkv + 2 * c, o, dout, lse, delta, apart,
                   apart + 2 * s * c, apart + 4 * s * c);
    for (long r = 0; r < 2 * s; r++) {
        for (long part = 0; part < 3; part++) {
            assert_memory_equal(fused + r * 3 * c + part * c, apart + (part * 2 * s + r) * c,
                                (size_t)c * sizeof(float));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_forward),
        KERNEL_TEST(test_backward),
        KERNEL_TEST(test_slices),
        KERNEL_TEST(test_fused_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
