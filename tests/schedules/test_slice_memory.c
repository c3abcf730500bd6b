/* Keys, values and their gradients in the memory plan: who touches them in which order, how long
 * they live, how large they are; and what slices save (sequence-level pipelines, section of
 * lifetimes and peaks). */
#include "schedules/plan.h"
#include "t.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 8, SEQ = 96, BATCH = 2 };

static const model_desc llama = {.name = "small",
                                 .family = MODEL_LLAMA,
                                 .n_layers = 12,
                                 .hidden = HEADS * DIM,
                                 .n_heads = HEADS,
                                 .n_kv_heads = KV_HEADS,
                                 .head_dim = DIM,
                                 .ffn = 64,
                                 .vocab = 64,
                                 .max_positions = SEQ,
                                 .gated = true,
                                 .rms_norm = true,
                                 .causal = true,
                                 .rope_theta = 1e4,
                                 .norm_eps = 1e-5};

typedef struct query {
    const char *name;
    int32_t pp, m, s, v;
    const int32_t *tokens;
    recompute_mode recompute;
} query;

typedef struct lowered {
    plan p;
    sizes z;
} lowered;

/* Layers as they come: 12 over the stages, the first ones take the rest. */
static void lower(td_arena *a, const query *q, lowered *out)
{
    const sched_request r = {.pp = q->pp,
                             .microbatches = q->m,
                             .chunks = q->v,
                             .slices = q->s,
                             .slice_tokens = q->tokens};
    schedule s;
    td_err err = {0};
    T_OK(sched_generate(q->name, &r, a, &s, &err), &err);
    stage_desc *const stages = TD_NEW_N(a, stage_desc, s.n_stages);
    for (int32_t i = 0, at = 0; i < s.n_stages; i++) {
        stages[i] = (stage_desc){.first_layer = at,
                                 .n_layers = 12 / s.n_stages + (i < 12 % s.n_stages),
                                 .embedding = i == 0,
                                 .head = i == s.n_stages - 1};
        at += (int32_t)stages[i].n_layers;
    }
    out->z = (sizes){
        .model = &llama,
        .run = {.micro_batch = BATCH, .seq_len = SEQ, .tp = 1, .dp = 1, .recompute = q->recompute},
        .stages = stages,
        .n_stages = s.n_stages,
        .chunks = s.n_stages / q->pp};
    const lower_options o = {.sizes = &out->z, .dp = 1, .tp = 1, .lookahead = 1};
    T_OK(plan_lower(&s, &o, a, &out->p, &err), &err);
}

static const plan_buffer *buffer_of(const plan *p, uint32_t rank, uint32_t use)
{
    return &p->buffers[p->ranks[rank].first_buffer + use_buffer_of(use)];
}

static int64_t bytes_of(const plan *p, const plan_buffer *b)
{
    return p->bclasses[b->bclass].bytes;
}

/* --- the contract with whoever runs the passes --- */

static bool is_backward(uint8_t kind) { return kind == PASS_B || kind == PASS_I; }

/* The uses of one pass: its cache, then the workspace last. */
static void check_pass(const plan *p, uint32_t rank, uint32_t task, int64_t layers)
{
    const plan_task *const t = &p->tasks[task];
    const int32_t position = (int32_t)(task - plan_compute(p, rank)->first_task);
    const bool forward = t->kind == PASS_F, backward = is_backward(t->kind);
    int32_t k = 0, dkv = 0;
    uint32_t u = t->first_use;
    for (; u < t[1].first_use; u++) {
        const plan_buffer *const b = buffer_of(p, rank, p->uses[u]);
        const plan_bclass *const c = &p->bclasses[b->bclass];
        if (use_role_of(p->uses[u]) == ROLE_KV) {
            assert_int_equal(dkv, 0);
            assert_int_equal(c->what, SIZE_KV);
            assert_int_equal(bytes_of(p, b),
                             layers * 2 * BATCH * c->slice_len * KV_HEADS * DIM * 4);
            assert_int_equal(use_mode_of(p->uses[u]),
                             forward && k == t->slice ? USE_WRITE : USE_READ);
            if (forward && k == t->slice) assert_int_equal((int32_t)b->birth, position);
            if (backward && k == t->slice) assert_int_equal((int32_t)b->death, position);
            k++;
        } else if (use_role_of(p->uses[u]) == ROLE_DKV) {
            const bool first = t->slice == p->n_slices - 1;
            assert_int_equal(c->what, SIZE_DKV);
            assert_int_equal(bytes_of(p, b), layers * 2 * BATCH * SEQ * KV_HEADS * DIM * 4);
            assert_int_equal(use_mode_of(p->uses[u]), first ? USE_WRITE : USE_ADD);
            if (first) assert_int_equal((int32_t)b->birth, position);
            if (t->slice == 0) assert_int_equal((int32_t)b->death, position);
            dkv++;
        } else if (use_role_of(p->uses[u]) == ROLE_TOKENS) {
            assert_int_equal(bytes_of(p, b), BATCH * SEQ * 2 * 4); /* of the whole microbatch */
        }
    }
    const bool cached = p->n_slices > 1 && (forward || backward);
    assert_int_equal(k, cached ? t->slice + 1 : 0);
    assert_int_equal(dkv, cached && backward ? 1 : 0);
    if (cached) assert_int_equal(use_role_of(p->uses[u - 1]), ROLE_SCRATCH);
}

static void contract(void **state)
{
    (void)state;
    static const char *const names[] = {"seq1f1b", "seq1f1b-zb", "seq1f1b-i", "terapipe"};
    td_rng rng = td_rng_seed(31);
    for (int n = 0; n < 80; n++) {
        td_arena *const a = td_arena_new();
        int32_t tokens[6], left = SEQ;
        query q = {.name = names[n % 4],
                   .pp = 1 + (int32_t)td_rng_below(&rng, 4),
                   .m = 1 + (int32_t)td_rng_below(&rng, 4),
                   .s = 1 + (int32_t)td_rng_below(&rng, 6),
                   .v = n % 4 == 2 ? 2 : 0,
                   .recompute = (recompute_mode)td_rng_below(&rng, 3)};
        for (int32_t k = 0; k < q.s; k++) {
            tokens[k] = k == q.s - 1 ? left : 1 + (int32_t)td_rng_below(&rng, left - (q.s - 1 - k));
            left -= tokens[k];
        }
        if (n % 3 != 0) q.tokens = tokens;
        lowered l;
        lower(a, &q, &l);
        for (uint32_t r = 0; r < l.p.n_ranks; r++) {
            const plan_stream *const s = plan_compute(&l.p, r);
            for (uint32_t i = 0; i < s->n_tasks; i++) {
                const uint32_t task = s->first_task + i;
                if (l.p.tasks[task].kind > PASS_W) continue;
                const int32_t stage = l.p.insts[l.p.classes[l.p.tasks[task].cls].inst].stage;
                check_pass(&l.p, r, task, l.z.stages[stage].n_layers);
            }
        }
        td_arena_free(a);
    }
}

/* --- what it costs --- */

/* Most bytes of some kinds of buffers that live at once on a rank. */
static int64_t most_at_once(const plan *p, uint32_t rank, unsigned kinds)
{
    int64_t most = 0;
    const uint32_t n = plan_compute(p, rank)->n_tasks;
    for (uint32_t at = 0; at < n; at++) {
        int64_t sum = 0;
        for (uint32_t i = 0; i < p->ranks[rank].n_buffers; i++) {
            const plan_buffer *const b = &p->buffers[p->ranks[rank].first_buffer + i];
            if ((kinds >> p->bclasses[b->bclass].what & 1u) && b->birth <= at && at <= b->death)
                sum += bytes_of(p, b);
        }
        most = sum > most ? sum : most;
    }
    return most;
}

/* On ranks between the ends: held slices times the bytes of a slice, which are a microbatch's over
 * S, keys and values included; the accumulators come on top once. */
static void peaks(void **state)
{
    (void)state;
    const unsigned kept = 1u << SIZE_STASH | 1u << SIZE_KV;
    for (int32_t s = 2; s <= 6; s++)
        for (int32_t m = 1; m <= 6; m++) {
            if (SEQ % s != 0 || SEQ / s % 8 != 0) continue; /* rows of statistics fill 64 bytes */
            td_arena *const a = td_arena_new();
            const query whole = {.name = "1f1b", .pp = 4, .m = m, .s = 1};
            const query cut = {.name = "seq1f1b", .pp = 4, .m = m, .s = s};
            const query all = {.name = "terapipe", .pp = 4, .m = m, .s = s};
            lowered w, c, t;
            lower(a, &whole, &w);
            lower(a, &cut, &c);
            lower(a, &all, &t);
            for (uint32_t r = 1; r < 3; r++) {
                const int64_t held = m < 4 - (int32_t)r ? m : 4 - (int32_t)r;
                const int64_t one = most_at_once(&w.p, r, kept) / held;
                const int64_t units =
                    4 - (int64_t)r + s - 1 < m * s ? 4 - (int64_t)r + s - 1 : m * s;
                assert_int_equal(most_at_once(&c.p, r, kept) * s, units * one);
                assert_int_equal(most_at_once(&t.p, r, kept), m * one);
                assert_int_equal(most_at_once(&c.p, r, 1u << SIZE_DKV),
                                 3 * 2 * BATCH * SEQ * KV_HEADS * DIM * 4);
                assert_int_equal(most_at_once(&w.p, r, 1u << SIZE_KV | 1u << SIZE_DKV), 0);
            }
            td_arena_free(a);
        }
}

/* One set of accumulators at a time also with chunks. */
static void one_accumulator(void **state)
{
    for (int32_t s = 2; s <= 4; s++) {
        const query q = {.name = "seq1f1b-i", .pp = 3, .m = 5, .s = s, .v = 2};
        lowered l;
        lower(*state, &q, &l);
        for (uint32_t r = 0; r < 3; r++)
            assert_int_equal(most_at_once(&l.p, r, 1u << SIZE_DKV),
                             2 * 2 * BATCH * SEQ * KV_HEADS * DIM * 4);
    }
}

static void refused(void **state)
{
    td_err err = {0};
    static const int32_t tokens[] = {40, 50};
    const sched_request r = {.pp = 2, .microbatches = 2, .slices = 2, .slice_tokens = tokens};
    const stage_desc stages[] = {{.n_layers = 6, .embedding = true},
                                 {.first_layer = 6, .n_layers = 6, .head = true}};
    model_desc m = llama;
    sizes z = {.model = &m,
               .run = {.micro_batch = BATCH, .seq_len = SEQ, .tp = 1, .dp = 1},
               .stages = stages,
               .n_stages = 2};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = 1, .lookahead = 1};
    schedule s;
    plan p;
    T_OK(sched_generate("seq1f1b", &r, *state, &s, &err), &err);
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "must add up to --seq-len");
    z.run.seq_len = 90;
    T_OK(plan_lower(&s, &o, *state, &p, &err), &err);
    m.causal = false;
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "bidirectional");
    m.causal = true;
    z.run.seq_len = 3;
    const sched_request many = {.pp = 2, .microbatches = 2, .slices = 4};
    T_OK(sched_generate("terapipe", &many, *state, &s, &err), &err);
    T_FAILS(plan_lower(&s, &o, *state, &p, &err), TD_EUSAGE, &err, "at least one");
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(contract), T_TEST(peaks), T_TEST(one_accumulator),
                                       T_TEST(refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
