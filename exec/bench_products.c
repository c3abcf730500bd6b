/* What single kernels take: the matrix products of the model by shape, and copies by size. */
#include "exec/bench.h"

/* --- matrix products --- */

enum { PRODUCTS_MAX = 3 * 5 };

/* y = op(a) op(b): m x k and k x n. */
typedef struct product {
    bool trans_a, trans_b;
    long m, n, k;
} product;

typedef struct product_bench {
    bench *of_bench;
    product of[PRODUCTS_MAX];
    int n;
    float *a, *b, *y;
} product_bench;

static int64_t run_product(void *self, int worker, int piece)
{
    product_bench *const s = self;
    const product *const p = &s->of[piece];
    (void)worker;
    bench *const b = s->of_bench;
    const k_ops *const ops = k_ops_of(b->ctx[0]);
    const int64_t begin = bench_begin(b);
    /* gradients of weights are floats */
    (p->trans_a ? ops->gemm_grad : ops->gemm)(b->ctx[0], p->trans_a, p->trans_b, p->m, p->n, p->k,
                                              1.0f, s->a, p->trans_a ? p->m : p->k, s->b,
                                              p->trans_b ? p->k : p->n, 0.0f, s->y, p->n);
    return bench_end(b, begin);
}

/* A linear layer's three products: its output, the gradients of its input and of its weights. */
static void add_layer(product_bench *s, long rows, long in, long out)
{
    s->of[s->n++] = (product){false, true, rows, out, in};
    s->of[s->n++] = (product){false, false, rows, in, out};
    s->of[s->n++] = (product){true, false, out, in, rows};
}

td_status bench_products(bench *b, int64_t rows, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    const model_desc m = model_shard(b->m, b->run.tp);
    const int64_t attn = m.n_heads * m.head_dim, kv = m.n_kv_heads * m.head_dim;
    enum { HEAD_ROWS = 256 }; /* the head works in pieces */
    product_bench s = {.of_bench = b};
    add_layer(&s, rows, m.hidden, attn + 2 * kv);
    add_layer(&s, rows, attn, m.hidden);
    add_layer(&s, rows, m.hidden, (m.gated ? 2 : 1) * m.ffn);
    add_layer(&s, rows, m.ffn, m.hidden);
    add_layer(&s, rows < HEAD_ROWS ? rows : HEAD_ROWS, m.hidden, m.vocab);
    int64_t most[3] = {0};
    sample what[PRODUCTS_MAX];
    for (int i = 0; i < s.n; i++) {
        const product *const p = &s.of[i];
        const int64_t sizes_of[] = {p->m * p->k, p->k * p->n, p->m * p->n};
        for (int k = 0; k < 3; k++) most[k] = sizes_of[k] > most[k] ? sizes_of[k] : most[k];
        what[i] = (sample){.what = SAMPLE_PRODUCT, .shape = {p->m, p->n, p->k}};
    }
    s.a = bench_elements(b, a, most[0]);
    s.b = bench_elements(b, a, most[1]);
    s.y = bench_numbers(b, a, most[2]);
    const bench_set set = {.what = what, .n = s.n, .workers = 1, .run = run_product, .self = &s};
    const td_status st = s.a == NULL || s.b == NULL || s.y == NULL
                             ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
                             : bench_measure(&set, &b->limits, &b->out, &b->count, err);
    bench_place_clear(b);
    td_arena_free(a);
    return st;
}

/* --- copies --- */

enum { COPIES = 6 };
static const int64_t copy_bytes[COPIES] = {
    (int64_t)4 << 10, (int64_t)32 << 10, (int64_t)256 << 10,
    (int64_t)2 << 20, (int64_t)16 << 20, (int64_t)64 << 20,
};

typedef struct copy_bench {
    bench *b;
    char *from, *to;
} copy_bench;

static int64_t run_copy(void *self, int worker, int piece)
{
    copy_bench *const s = self;
    (void)worker;
    k_ctx *const ctx = s->b->ctx[0];
    const int64_t begin = bench_begin(s->b);
    k_ops_of(ctx)->copy(ctx, s->to, s->from, (size_t)copy_bytes[piece]);
    return bench_end(s->b, begin);
}

td_status bench_copies(bench *b, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    const int64_t most = copy_bytes[COPIES - 1];
    copy_bench s = {b, (char *)bench_numbers(b, a, most / 4),
                    (char *)bench_numbers(b, a, most / 4)};
    sample what[COPIES];
    for (int i = 0; i < COPIES; i++)
        what[i] = (sample){.what = SAMPLE_COPY, .amount = copy_bytes[i]};
    const bench_set set = {.what = what, .n = COPIES, .workers = 1, .run = run_copy, .self = &s};
    const td_status st = s.from == NULL || s.to == NULL
                             ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
                             : bench_measure(&set, &b->limits, &b->out, &b->count, err);
    bench_place_clear(b);
    td_arena_free(a);
    return st;
}
