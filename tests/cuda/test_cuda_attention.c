/* Attention with prefix pieces, grouped heads, both masks: CUDA against the cores. */
#include "tests/cuda/cuda_check.h"

#include <math.h>
#include <stdio.h>

typedef struct shape {
    long batch, heads, kv_heads, d, s_q;
    long pieces[3]; /* rows of each, the last one holds the queries' own; 0: none */
    bool causal, accumulate;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 8, 1, {1, 0, 0}, true, false},         {2, 3, 3, 20, 37, {37, 0, 0}, true, false},
    {1, 4, 2, 64, 129, {129, 0, 0}, true, false},    {2, 4, 1, 64, 65, {65, 0, 0}, false, false},
    {1, 2, 2, 128, 200, {200, 0, 0}, true, false},   {1, 2, 1, 256, 70, {70, 0, 0}, true, false},
    {1, 4, 2, 64, 50, {30, 1, 50}, true, true},      {2, 2, 2, 128, 33, {64, 33, 0}, true, true},
    {1, 8, 2, 128, 512, {512, 512, 0}, true, false}, {1, 6, 6, 64, 384, {384, 0, 0}, true, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

typedef struct case_data {
    k_attn a;
    k_keys cpu[3], gpu[3];
    cuda_tensor q, o, lse, dout, delta, dq, dk, dv;
} case_data;

static void open_case(cuda_pair *p, const shape *s, case_data *c)
{
    const long kv = s->kv_heads * s->d, q = s->heads * s->d;
    long s_kv = 0, n = 0;
    for (; n < 3 && s->pieces[n] > 0; n++) {
        const long rows = s->pieces[n];
        const cuda_tensor k = cuda_random(p, s->batch * rows * kv, false);
        const cuda_tensor v = cuda_random(p, s->batch * rows * kv, false);
        c->cpu[n] = (k_keys){k.cpu, v.cpu, rows, kv, rows * kv};
        c->gpu[n] = (k_keys){k.gpu, v.gpu, rows, kv, rows * kv};
        s_kv += rows;
    }
    c->a = (k_attn){.batch = s->batch,
                    .heads = s->heads,
                    .kv_heads = s->kv_heads,
                    .d = s->d,
                    .s_q = s->s_q,
                    .s_kv = s_kv,
                    .causal = s->causal,
                    .scale = (float)(1.0 / sqrt((double)s->d)),
                    .q_ld = q,
                    .q_batch = s->s_q * q,
                    .o_ld = q,
                    .o_batch = s->s_q * q,
                    .dq_ld = q,
                    .dq_batch = s->s_q * q,
                    .dkv_ld = kv,
                    .dkv_batch = s_kv * kv,
                    .n_pieces = n,
                    .float_dkv = s->accumulate};
    const long rows = s->batch * s->s_q, stats = rows * s->heads;
    c->q = cuda_random(p, rows * q, false);
    c->dout = cuda_random(p, rows * q, false);
    c->o = cuda_output(p, rows * q, false);
    c->lse = cuda_output(p, stats, true);
    c->delta = cuda_output(p, stats, true);
    c->dq = cuda_output(p, rows * q, false);
    const long n_kv = s->batch * s_kv * kv;
    c->dk = s->accumulate ? cuda_random(p, n_kv, true) : cuda_output(p, n_kv, false);
    c->dv = s->accumulate ? cuda_random(p, n_kv, true) : cuda_output(p, n_kv, false);
}

static void on_gpu(cuda_pair *p, const shape *s, case_data *c)
{
    c->a.pieces = c->gpu;
    k_ops_of(p->gpu)->attn_fwd(p->gpu, &c->a, cuda_at(&c->q), NULL, NULL, cuda_at(&c->o),
                               cuda_at(&c->lse));
    k_ops_of(p->gpu)->attn_bwd(
        p->gpu, &c->a, s->accumulate, cuda_at(&c->q), NULL, NULL, cuda_at(&c->o), cuda_at(&c->dout),
        cuda_at(&c->lse), cuda_at(&c->delta), cuda_at(&c->dq), cuda_at(&c->dk), cuda_at(&c->dv));
}

static void one(cuda_pair *p, const shape *s)
{
    char name[120];
    case_data c = {.a = {0}};
    open_case(p, s, &c);
    on_gpu(p, s, &c);
    c.a.pieces = c.cpu;
    k_attn_fwd_cpu(p->cpu, &c.a, c.q.cpu, NULL, NULL, c.o.cpu, c.lse.cpu);
    k_attn_bwd_cpu(p->cpu, &c.a, s->accumulate, c.q.cpu, NULL, NULL, c.o.cpu, c.dout.cpu, c.lse.cpu,
                   c.delta.cpu, c.dq.cpu, c.dk.cpu, c.dv.cpu);
    const struct {
        const char *name;
        const cuda_tensor *t;
    } all[] = {{"o", &c.o}, {"lse", &c.lse}, {"dq", &c.dq}, {"dk", &c.dk}, {"dv", &c.dv}};
    for (int i = 0; i < 5; i++) {
        (void)snprintf(name, sizeof name, "b%ld h%ld/%ld d%ld %ldx%ld%s%s %s", s->batch, s->heads,
                       s->kv_heads, s->d, s->s_q, c.a.s_kv, s->causal ? " causal" : "",
                       s->accumulate ? " +=" : "", all[i].name);
        cuda_report(p, name, cuda_error(p, all[i].t), true);
    }
    if (!s->accumulate) {
        const uint64_t o = cuda_bits(p, &c.o), dq = cuda_bits(p, &c.dq), dk = cuda_bits(p, &c.dk);
        on_gpu(p, s, &c);
        cuda_report(p, "  again", 0,
                    o == cuda_bits(p, &c.o) && dq == cuda_bits(p, &c.dq) &&
                        dk == cuda_bits(p, &c.dk));
    }
    cuda_pair_clear(p);
}

/* Products in a forward pass. */
static double work(const shape *s)
{
    double keys = 0;
    for (int i = 0; i < 3; i++) keys += (double)s->pieces[i];
    return 2.0 * (double)(s->batch * s->heads * s->s_q * s->d) * keys;
}

static void test(cuda_pair *p)
{
    for (int i = 0; i < SHAPES; i++)
        if (!p->slow || work(&shapes[i]) < 3e7) one(p, &shapes[i]);
}

int main(void) { return cuda_main(test, "attention"); }
