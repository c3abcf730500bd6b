/* Samples and profiles: what is printed is read back, broken files are refused with their place,
 * and a profile's prices follow its terms. */
#include "t.h"

#include "costmodel/profile.h"
#include "costmodel/samples.h"

#include <math.h>

static sample random_sample(td_rng *r)
{
    sample x = {.what = (sample_what)td_rng_below(r, SAMPLE_WHAT_COUNT),
                .busy = (int32_t)(1 + td_rng_below(r, 4)),
                .ns = 1 + 1e9 * td_rng_unit(r)};
    if (x.what == SAMPLE_PASS) {
        x.pass = (pass_kind)td_rng_below(r, PASS_COUNT);
        x.part = (stage_part)td_rng_below(r, PART_COUNT);
        x.recompute = (recompute_mode)td_rng_below(r, 3);
        x.layers = x.part == PART_LAYERS ? 1 + td_rng_below(r, 9) : 0;
        x.micro_batch = 1 + td_rng_below(r, 9);
        x.slice_len = 1 + td_rng_below(r, 4096);
        x.prefix = td_rng_below(r, 4096);
    } else {
        x.amount = td_rng_below(r, 1 << 30);
        x.members = x.what == SAMPLE_ALL_REDUCE ? (int32_t)(2 + td_rng_below(r, 9)) : 0;
    }
    return x;
}

static bool same_sample(const sample *a, const sample *b)
{
    return a->what == b->what && a->pass == b->pass && a->part == b->part &&
           a->recompute == b->recompute && a->layers == b->layers &&
           a->micro_batch == b->micro_batch && a->slice_len == b->slice_len &&
           a->prefix == b->prefix && a->amount == b->amount && a->members == b->members &&
           a->busy == b->busy && a->ns >= b->ns && a->ns <= b->ns;
}

static void samples_round_trip(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    td_rng rng = td_rng_seed(3);
    samples s = samples_new(a), back;
    T_OK(samples_header(&s, "device", "some core, 2 of them", &err), &err);
    for (int i = 0; i < 500; i++) {
        const sample x = random_sample(&rng);
        T_OK(samples_add(&s, &x, &err), &err);
    }
    td_text t = {0};
    samples_print(&s, &t);
    T_OK(samples_parse(t.s, t.len, "s", a, &back, &err), &err);
    assert_true(back.n == s.n);
    assert_string_equal(samples_header_value(&back, "device"), "some core, 2 of them");
    for (size_t i = 0; i < s.n; i++) assert_true(same_sample(&s.items[i], &back.items[i]));
    td_text_free(&t);
}

static void bad_samples(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    samples s = samples_new(a);
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"pass\tF\tlayers\n", "s:1:1: has 3 columns"},
        {"# k v\npass F layers 1 1 x 0 none 0 0 1 5\n", "s:2:19: slice_len"},
        {"pass Q layers 1 1 8 0 none 0 0 1 5\n", "s:1:6: pass"},
        {"pass F wings 1 1 8 0 none 0 0 1 5\n", "layers, embedding, head"},
        {"pass F layers 0 1 8 0 none 0 0 1 5\n", "layers: wants at least 1"},
        {"message - - 0 0 0 0 - 9 0 1 -5\n", "ns"},
        {"all_reduce - - 0 0 0 0 - 9 1 1 5\n", "members"},
        {"# tandem-samples 9\n", "version"},
        {"# samples 2\nmessage - - 0 0 0 0 - 9 0 1 5\n", "1 of 2 samples; was it cut?"},
        {"# samples 1\nmessage - - 0 0 0 0 - 9 0 1 5", "no end; was it cut?"},
        {"# samples many\n", "their number"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(samples_parse(bad[i].text, strlen(bad[i].text), "s", a, &s, &err), TD_EPARSE, &err,
                bad[i].why);
    T_FAILS(samples_add(&s, &(sample){.what = SAMPLE_MESSAGE, .busy = 1}, &err), TD_EUSAGE, &err,
            "ns");
    T_FAILS(samples_header(&s, "two words", "v", &err), TD_EUSAGE, &err, "one word");
}

/* --- profiles --- */

static profile_fit fit(double c0, double c1, double c2)
{
    return (profile_fit){.n = 9, .error = 0.01, .c = {{c0, c0 / 7}, {c1, c1 / 9}, {c2, c2 / 11}}};
}

static profile sample_profile(void)
{
    profile p = {
        .source = "a \"bench\"", .date = "2026-11-21", .device = "core", .tp = 1, .cores = 2};
    td_err err = {0};
    model_desc m;
    T_OK(model_load("tiny-llama", &m, &err), &err);
    (void)snprintf(p.model.name, sizeof p.model.name, "%s", m.name);
    p.model.n_layers = m.n_layers;
    p.model.hidden = m.hidden;
    p.model.n_heads = m.n_heads;
    p.model.n_kv_heads = m.n_kv_heads;
    p.model.head_dim = m.head_dim;
    p.model.ffn = m.ffn;
    p.model.vocab = m.vocab;
    p.model.causal = true;
    p.pass[0][PASS_F][PART_LAYERS] = fit(1000, 10, 0.25);
    p.pass[0][PASS_B][PART_LAYERS] = fit(2000, 20, 0.5);
    p.pass[0][PASS_F][PART_EMBEDDING] = fit(100, 1, 0);
    p.pass[0][PASS_B][PART_EMBEDDING] = fit(200, 2, 0);
    p.pass[0][PASS_F][PART_HEAD] = fit(300, 3, 0);
    p.pass[0][PASS_B][PART_HEAD] = fit(600, 6, 0);
    p.message = fit(5000, 0.125, 0);
    p.optimizer = fit(50, 1.0 / 3, 0);
    p.busy[0] = (contention){2, {1.25, 0.01}, {1.75, 0.02}};
    p.n_busy = 1;
    return p;
}

static void profile_round_trip(void **state)
{
    (void)state;
    td_err err = {0};
    const profile p = sample_profile();
    profile back;
    td_text first = {0}, second = {0};
    profile_print(&p, &first);
    T_OK(profile_parse(first.s, first.len, "p.json", &back, &err), &err);
    profile_print(&back, &second);
    assert_string_equal(first.s, second.s);
    T_CLOSE(back.optimizer.c[1].value, 1.0 / 3, 0, 0);
    T_CLOSE(back.busy[0].memory.value, 1.75, 0, 0);
    /* a fit without samples to spare has no interval */
    profile bare = p;
    bare.optimizer.c[1].half = (double)INFINITY;
    td_text third = {0};
    profile_print(&bare, &third);
    assert_non_null(strstr(third.s, ",null]"));
    T_OK(profile_parse(third.s, third.len, "p.json", &back, &err), &err);
    assert_true(isinf(back.optimizer.c[1].half));
    T_CLOSE(back.optimizer.c[1].value, 1.0 / 3, 0, 0);
    td_text_free(&third);
    T_FAILS(profile_parse(first.s, first.len - 5, "p.json", &back, &err), TD_EPARSE, &err,
            "p.json:");
    td_text_free(&first);
    td_text_free(&second);
    const char *const odd =
        "{\"tandem_profile\":1,\"dtype\":\"fp32\",\n\"passes\":[{\"pass\":\"Q\"}]}";
    T_FAILS(profile_parse(odd, strlen(odd), "p.json", &back, &err), TD_EPARSE, &err,
            "p.json:2:12: pass");
}

typedef struct tiny_run {
    model_desc m;
    stage_desc stages[2];
    sizes z;
    profile p;
    cost_model cost;
} tiny_run;

static void tiny_start(tiny_run *r)
{
    td_err err = {0};
    T_OK(model_load("tiny-llama", &r->m, &err), &err);
    r->p = sample_profile();
    r->stages[0] = (stage_desc){.n_layers = 5, .embedding = true};
    r->stages[1] = (stage_desc){.first_layer = 5, .n_layers = 3, .head = true};
    r->z = (sizes){.model = &r->m,
                   .stages = r->stages,
                   .n_stages = 2,
                   .chunks = 1,
                   .run = {.micro_batch = 2, .seq_len = 64, .tp = 1, .dp = 1}};
    r->cost = (cost_model){.sizes = &r->z, .profile = &r->p, .chunks = 1, .busy = 1};
}

static double price(tiny_run *r, pass_kind pass, int32_t stage)
{
    td_err err = {0};
    int64_t ns = 0;
    const pass_query q = {pass, stage, 64, 0, 64};
    T_OK(cost_pass(&r->cost, &q, &ns, &err), &err);
    return (double)ns;
}

static void profile_prices(void **state)
{
    (void)state;
    tiny_run r;
    tiny_start(&r);
    const double tokens = 128, seen = tokens * 32.5;
    const double layer = 1000 + 10 * tokens + 0.25 * seen;
    T_CLOSE(price(&r, PASS_F, 0), 5 * layer + 100 + tokens, 0, 0.5);
    T_CLOSE(price(&r, PASS_F, 1), 3 * layer + 300 + 3 * tokens, 0, 0.5);
    T_CLOSE(price(&r, PASS_B, 1), 6 * layer + 600 + 6 * tokens, 0, 0.5);
    T_CLOSE(price(&r, PASS_I, 1) + price(&r, PASS_W, 1), price(&r, PASS_B, 1), 0, 1);
    T_CLOSE(price(&r, PASS_I, 0) + price(&r, PASS_W, 0), price(&r, PASS_B, 0), 0, 1);
    /* W: products alone, half of their backward; the embedding is done by I */
    T_CLOSE(price(&r, PASS_W, 0), 5 * (1000 + 10 * tokens), 0, 0.5);
    T_CLOSE(price(&r, PASS_W, 1), 3 * (1000 + 10 * tokens) + 300 + 3 * tokens, 0, 0.5);
    T_CLOSE(price(&r, PASS_R, 1), 3 * layer, 0, 0.5);
    const double b = price(&r, PASS_B, 0);
    r.z.run.recompute = RECOMPUTE_FULL;
    T_CLOSE(price(&r, PASS_B, 0), b + 5 * layer, 0, 1);
    T_CLOSE(price(&r, PASS_W, 1), 3 * (1000 + 10 * tokens), 0, 0.5); /* I does the head */
    T_CLOSE(price(&r, PASS_I, 1) + price(&r, PASS_W, 1), price(&r, PASS_B, 1), 0, 1);
    r.z.run.recompute = RECOMPUTE_SELECTIVE;
    T_CLOSE(price(&r, PASS_B, 0), b + 5 * 0.25 * seen, 0, 1);
    r.cost.recompute_placed = true;
    T_CLOSE(price(&r, PASS_B, 0), b, 0, 0);
    const double f = price(&r, PASS_F, 0);
    r.cost.busy = 2;
    T_CLOSE(price(&r, PASS_F, 0), 1.25 * f, 0, 1);
    r.cost.busy = 4; /* four ranks on two cores */
    T_CLOSE(price(&r, PASS_F, 0), 2.5 * f, 0, 1);
}

/* Tensor parallelism: what one shard was measured to take alone, and its sums as collectives. */
static void profile_sums(void **state)
{
    (void)state;
    td_err err = {0};
    tiny_run r;
    tiny_start(&r);
    r.z.run.tp = r.p.tp = 2;
    r.p.all_reduce = (profile_fit){.n = 2, .c = {{.value = 1000}, {.value = 0.5}}};
    int64_t sum = 0;
    T_OK(cost_collective(&r.cost, COLL_ALL_REDUCE, NULL, 0, 2, 128 * 64 * 4, &sum, &err), &err);
    assert_true(sum > 0);
    const double with_f = price(&r, PASS_F, 0), with_b = price(&r, PASS_B, 1);
    const double with_w = price(&r, PASS_W, 0);
    r.cost.sums_apart = true;
    T_CLOSE(with_f - price(&r, PASS_F, 0), (2 * 5 + 1) * (double)sum, 0, 1); /* the embedding's */
    T_CLOSE(with_b - price(&r, PASS_B, 1), (2 * 3 + 1) * (double)sum, 0, 1); /* the head's */
    T_CLOSE(with_w, price(&r, PASS_W, 0), 0, 0);
}

/* Shards that were not measured: their words' share of the head's passes, whose backward has two
 * halves; the embedding's rows are written whole. */
static void profile_shards(void **state)
{
    (void)state;
    tiny_run r;
    tiny_start(&r);
    r.z.vocab_shards = 2;
    const double tokens = 128, f = 300 + 3 * tokens, b = 600 + 6 * tokens;
    const double share = (double)sizes_vocab_rows(&r.z) / (double)r.m.vocab;
    T_CLOSE(share, 0.5, 0, 1e-9);
    T_CLOSE(price(&r, PASS_S, 1), share * f, 0, 0.5);
    T_CLOSE(price(&r, PASS_T, 1), share * b, 0, 0.5);
    T_CLOSE(price(&r, PASS_E, 0), 100 + tokens, 0, 0.5);
    r.z.run.recompute = RECOMPUTE_FULL; /* not of the softmax */
    T_CLOSE(price(&r, PASS_T, 1), share * b, 0, 0.5);
    r.z.run.recompute = RECOMPUTE_NONE;
    r.z.vocab_fused = true;
    T_CLOSE(price(&r, PASS_S, 1), share * (f + b / 2), 0, 0.5);
    T_CLOSE(price(&r, PASS_T, 1), share * b / 2, 0, 0.5);
    /* layers alone are left to the stages */
    const double layer = 1000 + 10 * tokens + 0.25 * tokens * 32.5;
    T_CLOSE(price(&r, PASS_F, 1), 3 * layer, 0, 0.5);
}

static void profile_refusals(void **state)
{
    (void)state;
    td_err err = {0};
    tiny_run r;
    int64_t ns = 0;
    const pass_query f = {PASS_F, 0, 64, 0, 64}, s = {PASS_S, 1, 64, 0, 64};
    tiny_start(&r);
    T_FAILS(cost_pass(&r.cost, &s, &ns, &err), TD_EUSAGE, &err, "pass S of the head");
    r.m.hidden = 128;
    T_FAILS(cost_pass(&r.cost, &f, &ns, &err), TD_EUSAGE, &err, "hidden size 64");
    r.m.hidden = 64;
    r.z.run.dtype = TYPE_BF16;
    T_FAILS(cost_pass(&r.cost, &f, &ns, &err), TD_EUSAGE, &err, "fp32");
    r.z.run.dtype = TYPE_FP32;
    message_cost m;
    T_OK(cost_message(&r.cost, 0, 1, 8000, &m, &err), &err);
    assert_true(m.latency_ns == 5000 && m.transfer_ns == 1000);
}

#define WITH_ARENA(f) cmocka_unit_test_setup_teardown(f, t_arena_setup, t_arena_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_ARENA(samples_round_trip),       WITH_ARENA(bad_samples),
        cmocka_unit_test(profile_round_trip), cmocka_unit_test(profile_prices),
        cmocka_unit_test(profile_refusals),   cmocka_unit_test(profile_sums),
        cmocka_unit_test(profile_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
