/* Attention over slices whose keys and values lie in pieces: forward in order, backward from the
 * last slice to the first with the gradients of keys and values added up over the prefix. In double
 * precision slices equal the whole to 1e-12; the kernels are held against the double-precision
 * whole. */
#include "kernel_check.h"

#include <math.h>
#include <string.h>

enum { MOST_SLICES = 100 };

/* Tensors lie as in the executor: q, o, dout [batch, L, heads * d] of the whole sequence in double;
 * keys and values [batch, L, kv_heads * d]. */
typedef struct sliced {
    long batch, heads, kv_heads, d, length;
    long slices, cut[MOST_SLICES + 1]; /* slice k holds tokens cut[k] .. cut[k + 1] */
    const float *q, *k, *v, *dout;
    const double *q64, *k64, *v64, *dout64;
    long nq, nkv, nlse;
} sliced;

static sliced make_sliced(bench_top *t, long length, long longest)
{
    sliced p = {.batch = pick(t, 1, 3), .kv_heads = pick(t, 1, 3), .d = pick(t, 1, 24)};
    p.heads = p.kv_heads * pick(t, 1, 3);
    p.length = length;
    while (p.cut[p.slices] < length) {
        const long left = length - p.cut[p.slices], most = left < longest ? left : longest;
        const long n = p.slices == MOST_SLICES - 1 ? left : pick(t, 1, most);
        p.cut[p.slices + 1] = p.cut[p.slices] + n;
        p.slices++;
    }
    p.nq = p.batch * length * p.heads * p.d;
    p.nkv = p.batch * length * p.kv_heads * p.d;
    p.nlse = p.batch * length * p.heads;
    p.q = normals(t, p.nq, 1.5);
    p.k = normals(t, p.nkv, 1.5);
    p.v = normals(t, p.nkv, 1.0);
    p.dout = normals(t, p.nq, 1.0);
    p.q64 = widen(t, p.q, p.nq);
    p.k64 = widen(t, p.k, p.nkv);
    p.v64 = widen(t, p.v, p.nkv);
    p.dout64 = widen(t, p.dout, p.nq);
    return p;
}

/* --- the definition in double precision --- */

typedef struct doubles {
    double *o, *lse, *dq, *dk, *dv;
} doubles;

static doubles make_doubles(bench_top *t, const sliced *p)
{
    return (doubles){.o = zeros_f64(t, p->nq),
                     .lse = zeros_f64(t, p->nlse),
                     .dq = zeros_f64(t, p->nq),
                     .dk = zeros_f64(t, p->nkv),
                     .dv = zeros_f64(t, p->nkv)};
}

/* Row r of head h of batch b: o and lse over the keys up to its own. */
static void row_forward(const sliced *p, long b, long h, long r, const doubles *x)
{
    const long at = ((b * p->length + r) * p->heads + h) * p->d, kv_ld = p->kv_heads * p->d;
    const long kv = b * p->length * kv_ld + h / (p->heads / p->kv_heads) * p->d;
    const double scale = (double)(float)(1.0 / sqrt((double)p->d));
    double sum = 0.0, max = -HUGE_VAL;
    for (long c = 0; c <= r; c++)
        max = fmax(max, scale * dot(p->q64 + at, p->k64 + kv + c * kv_ld, p->d));
    for (long c = 0; c <= r; c++) {
        const double e = exp(scale * dot(p->q64 + at, p->k64 + kv + c * kv_ld, p->d) - max);
        sum += e;
        for (long i = 0; i < p->d; i++) x->o[at + i] += e * p->v64[kv + c * kv_ld + i];
    }
    for (long i = 0; i < p->d; i++) x->o[at + i] /= sum;
    x->lse[(b * p->length + r) * p->heads + h] = max + log(sum);
}

static void row_backward(const sliced *p, long b, long h, long r, const doubles *x)
{
    const long at = ((b * p->length + r) * p->heads + h) * p->d, kv_ld = p->kv_heads * p->d;
    const long kv = b * p->length * kv_ld + h / (p->heads / p->kv_heads) * p->d;
    const double scale = (double)(float)(1.0 / sqrt((double)p->d));
    const double delta = dot(x->o + at, p->dout64 + at, p->d);
    for (long c = 0; c <= r; c++) {
        const long key = kv + c * kv_ld;
        const double pr = exp(scale * dot(p->q64 + at, p->k64 + key, p->d) -
                              x->lse[(b * p->length + r) * p->heads + h]);
        const double ds = pr * (dot(p->dout64 + at, p->v64 + key, p->d) - delta) * scale;
        for (long i = 0; i < p->d; i++) {
            x->dv[key + i] += pr * p->dout64[at + i];
            x->dq[at + i] += ds * p->k64[key + i];
            x->dk[key + i] += ds * p->q64[at + i];
        }
    }
}

/* Tokens from .. to of every batch and head. */
static void rows_of(const sliced *p, long from, long to, const doubles *x,
                    void (*row)(const sliced *, long, long, long, const doubles *))
{
    for (long b = 0; b < p->batch; b++)
        for (long h = 0; h < p->heads; h++)
            for (long r = from; r < to; r++) row(p, b, h, r, x);
}

static void assert_near(const double *x, const double *y, long n)
{
    for (long i = 0; i < n; i++)
        if (!(fabs(x[i] - y[i]) <= 1e-12 * fmax(1.0, fabs(y[i]))))
            fail_msg("[%ld] is %.17g in slices, %.17g in the whole", i, x[i], y[i]);
}

static doubles check_doubles(bench_top *t, const sliced *p)
{
    const doubles whole = make_doubles(t, p), parts = make_doubles(t, p);
    rows_of(p, 0, p->length, &whole, row_forward);
    rows_of(p, 0, p->length, &whole, row_backward);
    for (long k = 0; k < p->slices; k++) rows_of(p, p->cut[k], p->cut[k + 1], &parts, row_forward);
    for (long k = p->slices; k-- > 0;) rows_of(p, p->cut[k], p->cut[k + 1], &parts, row_backward);
    assert_near(parts.o, whole.o, p->nq);
    assert_near(parts.lse, whole.lse, p->nlse);
    assert_near(parts.dq, whole.dq, p->nq);
    assert_near(parts.dk, whole.dk, p->nkv);
    assert_near(parts.dv, whole.dv, p->nkv);
    return whole;
}

/* --- the kernels --- */

/* Copies tokens from .. to of [batch, L, width] into [batch, to - from, width]. */
static void take_rows(const sliced *p, long from, long to, long width, const float *x, float *y)
{
    const long n = to - from;
    for (long b = 0; b < p->batch; b++)
        memcpy(y + b * n * width, x + (b * p->length + from) * width,
               (size_t)(n * width) * sizeof *y);
}

static void put_rows(const sliced *p, long from, long to, long width, const float *x, float *y)
{
    const long n = to - from;
    for (long b = 0; b < p->batch; b++)
        memcpy(y + (b * p->length + from) * width, x + b * n * width,
               (size_t)(n * width) * sizeof *y);
}

static k_attn shape_of(const sliced *p, long k, const k_keys *pieces)
{
    const long n = p->cut[k + 1] - p->cut[k], q = p->heads * p->d, kv = p->kv_heads * p->d;
    return (k_attn){.batch = p->batch,
                    .heads = p->heads,
                    .kv_heads = p->kv_heads,
                    .d = p->d,
                    .s_q = n,
                    .s_kv = p->cut[k + 1],
                    .causal = true,
                    .scale = (float)(1.0 / sqrt((double)p->d)),
                    .q_ld = q,
                    .q_batch = n * q,
                    .o_ld = q,
                    .o_batch = n * q,
                    .dq_ld = q,
                    .dq_batch = n * q,
                    .dkv_ld = kv,
                    .dkv_batch = p->length * kv,
                    .pieces = pieces,
                    .n_pieces = k + 1};
}

/* out: o, dq, dk, dv of the whole sequence. */
static void run_slices(k_ctx *ctx, const void *problem, float *out)
{
    const sliced *p = (const sliced *)problem;
    const long qw = p->heads * p->d, kw = p->kv_heads * p->d;
    td_arena *a = td_arena_new();
    k_keys pieces[MOST_SLICES];
    float *o[MOST_SLICES], *lse[MOST_SLICES], *q[MOST_SLICES];
    float *const tmp = TD_NEW_N(a, float, p->nq), *const delta = TD_NEW_N(a, float, p->nlse);
    float *const dout = TD_NEW_N(a, float, p->nq);
    for (long k = 0; k < p->slices; k++) {
        const long from = p->cut[k], to = p->cut[k + 1], rows = p->batch * (to - from);
        float *const keys = TD_NEW_N(a, float, 2 * rows * kw);
        q[k] = TD_NEW_N(a, float, rows *qw);
        o[k] = TD_NEW_N(a, float, rows *qw);
        lse[k] = TD_NEW_N(a, float, rows * p->heads);
        take_rows(p, from, to, qw, p->q, q[k]);
        take_rows(p, from, to, kw, p->k, keys);
        take_rows(p, from, to, kw, p->v, keys + rows * kw);
        pieces[k] = (k_keys){.k = keys,
                             .v = keys + rows * kw,
                             .rows = to - from,
                             .ld = kw,
                             .batch = (to - from) * kw};
        const k_attn s = shape_of(p, k, pieces);
        k_attn_fwd_cpu(ctx, &s, q[k], NULL, NULL, o[k], lse[k]);
        put_rows(p, from, to, qw, o[k], out);
    }
    for (long k = p->slices; k-- > 0;) {
        const long from = p->cut[k], to = p->cut[k + 1];
        const k_attn s = shape_of(p, k, pieces);
        take_rows(p, from, to, qw, p->dout, dout);
        k_attn_bwd_cpu(ctx, &s, k < p->slices - 1, q[k], NULL, NULL, o[k], dout, lse[k], delta, tmp,
                       out + 2 * p->nq, out + 2 * p->nq + p->nkv);
        put_rows(p, from, to, qw, tmp, out + p->nq);
    }
    td_arena_free(a);
}

static void check_sliced(bench_top *t, long length, long longest)
{
    const sliced p = make_sliced(t, length, longest);
    const doubles whole = check_doubles(t, &p);
    float *out = zeros(t, 2 * p.nq + 2 * p.nkv);
    run_everywhere(t, run_slices, &p, out, 2 * p.nq + 2 * p.nkv);
    check_close("o", out, whole.o, p.nq, 1e-5);
    check_close("dq", out + p.nq, whole.dq, p.nq, 2e-5);
    check_close("dk", out + 2 * p.nq, whole.dk, p.nkv, 2e-5);
    check_close("dv", out + 2 * p.nq + p.nkv, whole.dv, p.nkv, 2e-5);
}

static void test_random_slices(void **state)
{
    bench_top *t = (bench_top *)*state;
    for (int i = 0; i < 12; i++) check_sliced(t, pick(t, 1, 70), pick(t, 1, 40));
}

/* Slices of one token, and slices longer than a tile of keys. */
static void test_short_and_long_slices(void **state)
{
    bench_top *t = (bench_top *)*state;
    check_sliced(t, 40, 1);
    check_sliced(t, 330, 300);
}

/* One piece that holds all keys gives the bits of k and v given apart. */
static void test_one_piece(void **state)
{
    bench_top *t = (bench_top *)*state;
    sliced p = make_sliced(t, 45, 45);
    p.slices = 1;
    p.cut[1] = p.length;
    float *out = zeros(t, 2 * p.nq + 2 * p.nkv), *o = zeros(t, p.nq), *lse = zeros(t, p.nlse);
    run_slices(t->one, &p, out);
    k_attn s = shape_of(&p, 0, NULL);
    s.n_pieces = 0;
    s.kv_ld = s.dkv_ld;
    s.kv_batch = s.dkv_batch;
    k_attn_fwd_cpu(t->three, &s, p.q, p.k, p.v, o, lse);
    assert_memory_equal(o, out, (size_t)p.nq * sizeof *o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(test_random_slices),
        KERNEL_TEST(test_short_and_long_slices),
        KERNEL_TEST(test_one_piece),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
