/* Profiles: what is printed is read back, those of version 1 are read, broken ones refused with
 * their place, two become one, and prices follow the terms. */
#include "t.h"

#include "costmodel/profile.h"

#include <math.h>

static profile_fit fit(double c0, double c1, double c2)
{
    return (profile_fit){.n = 9, .error = 0.01, .c = {{c0, c0 / 7}, {c1, c1 / 9}, {c2, c2 / 11}}};
}

static profile sample_profile(void)
{
    profile p = {.sources = {{"a \"bench\"", "2026-11-21", "core", 12}},
                 .n_sources = 1,
                 .n_shards = 1,
                 .shard = {{.tp = 1}},
                 .cores = 2};
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
    p.shard[0].pass[0][PASS_F][PART_LAYERS] = fit(1000, 10, 0.25);
    p.shard[0].pass[0][PASS_B][PART_LAYERS] = fit(2000, 20, 0.5);
    p.shard[0].pass[0][PASS_F][PART_EMBEDDING] = fit(100, 1, 0);
    p.shard[0].pass[0][PASS_B][PART_EMBEDDING] = fit(200, 2, 0);
    p.shard[0].pass[0][PASS_F][PART_HEAD] = fit(300, 3, 0);
    p.shard[0].pass[0][PASS_B][PART_HEAD] = fit(600, 6, 0);
    p.message[0] = fit(5000, 0.125, 0);
    p.optimizer = fit(50, 1.0 / 3, 0);
    p.busy[0] = (contention){2, {1.25, 0.01}, {1.75, 0.02}};
    p.n_busy = 1;
    return p;
}

static void profile_round_trip(void **state)
{
    (void)state;
    td_err err = {0};
    profile p = sample_profile();
    p.product = fit(1, 2, 0.5);
    p.copy = fit(3, 4, 0);
    p.all_reduce[LINK_MPI] = fit(77, 0.5, 0);
    profile_fit *const t = &profile_shard_at(&p, 4)->pass[2][PASS_T][PART_FUSED_HEAD];
    *t = fit(8, 9, 10);
    t->spread = 0.07;
    p.message_curve[0] = (profile_curve){3, {8, 64, 1e6}, {50, 60, 1e5}};
    p.copy_curve = (profile_curve){2, {8, 64}, {50, 60}};
    profile back;
    td_text first = {0}, second = {0};
    profile_print(&p, &first);
    T_OK(profile_parse(first.s, first.len, "p.json", &back, &err), &err);
    profile_print(&back, &second);
    assert_string_equal(first.s, second.s);
    T_CLOSE(back.optimizer.c[1].value, 1.0 / 3, 0, 0);
    T_CLOSE(back.product.c[2].value, 0.5, 0, 0);
    assert_int_equal(back.copy_curve.n, 2);
    /* level, between, on, and behind the points */
    T_CLOSE(profile_between_ns(&back, true, 0), 50, 0, 0);
    T_CLOSE(profile_between_ns(&back, true, 36), 55, 0, 0);
    T_CLOSE(profile_between_ns(&back, true, 64), 60, 0, 0);
    T_CLOSE(profile_between_ns(&back, true, 2e6), 1e5 + 1e6 * (1e5 - 60) / (1e6 - 64), 1e-12, 0);
    T_CLOSE(back.all_reduce[LINK_MPI].c[0].value, 77, 0, 0);
    T_CLOSE(back.shard[1].pass[2][PASS_T][PART_FUSED_HEAD].spread, 0.07, 0, 0);
    assert_int_equal(back.sources[0].samples, 12);
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
    const pass_query q = {pass, stage, 64, 0, 64, false};
    T_OK(cost_pass(&r->cost, &q, &ns, &err), &err);
    return (double)ns;
}

/* A forward of a rank without backwards is priced as what was measured to keep nothing, and as any
 * other where none was. */
static void forward_that_keeps_nothing(void **state)
{
    (void)state;
    tiny_run r;
    tiny_start(&r);
    td_err err = {0};
    const pass_query q = {PASS_F, 1, 64, 0, 64, true};
    int64_t ns = 0;
    T_OK(cost_pass(&r.cost, &q, &ns, &err), &err);
    const double usual = price(&r, PASS_F, 1);
    T_CLOSE((double)ns, usual, 0, 0.5);
    r.p.shard[0].pass[RECOMPUTE_FULL][PASS_F][PART_LAYERS] =
        (profile_fit){.n = 5, .c = {{700, 1}, {9, 1}, {0.25, 1}}};
    T_OK(cost_pass(&r.cost, &q, &ns, &err), &err);
    T_CLOSE((double)ns, usual - 3 * (300 + 128), 0, 0.5);
    T_CLOSE(price(&r, PASS_F, 1), usual, 0, 0.5);
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
    r.z.run.tp = r.p.shard[0].tp = 2;
    r.p.all_reduce[0] = (profile_fit){.n = 2, .c = {{.value = 1000}, {.value = 0.5}}};
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
    r.z.run.recompute = RECOMPUTE_FULL; /* S and T keep their halves */
    T_CLOSE(price(&r, PASS_T, 1), share * b / 2, 0, 0.5);
    r.z.run.recompute = RECOMPUTE_NONE;
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
    const pass_query f = {PASS_F, 0, 64, 0, 64, false}, s = {PASS_S, 1, 64, 0, 64, false};
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

/* A file of the first version: one degree for all passes, one link, one source. */
static void profile_version_1(void **state)
{
    (void)state;
    static const char text[] =
        "{\"tandem_profile\":1,\"source\":\"old "
        "bench\",\"date\":\"2026-01-02\",\"device\":\"core\","
        "\"cores\":2,\"dtype\":\"fp32\",\"tp\":2,\"passes\":[{\"pass\":\"F\",\"part\":\"layers\","
        "\"recompute\":\"none\",\"samples\":5,\"relative_error\":0.5,\"ns\":[[10,1],[2,null],[0,0]]"
        "}],"
        "\"message\":{\"samples\":4,\"ns\":[[500,1],[0.5,0],[0,0]]}}";
    td_err err = {0};
    profile p;
    T_OK(profile_parse(text, sizeof text - 1, "old.json", &p, &err), &err);
    assert_int_equal(p.n_shards, 1);
    assert_true(p.shard[0].tp == 2 && p.shard[0].pass[0][PASS_F][PART_LAYERS].n == 5);
    assert_int_equal(p.n_sources, 1);
    assert_string_equal(p.sources[0].source, "old bench");
    T_CLOSE(profile_between_ns(&p, true, 0), 500, 0, 0);
    /* how much passes vary is not what their fit is off by */
    T_CLOSE(profile_spread(&p, PASS_F), 0, 0, 0);
    static const char newer[] = "{\"tandem_profile\":3,\"dtype\":\"fp32\"}";
    T_FAILS(profile_parse(newer, sizeof newer - 1, "p.json", &p, &err), TD_EPARSE, &err,
            "tandem_profile");
    static const char mixed[] = "{\"tandem_profile\":2,\"dtype\":\"fp32\",\"message\":{}}";
    T_FAILS(profile_parse(mixed, sizeof mixed - 1, "p.json", &p, &err), TD_EPARSE, &err, "message");
}

static void profiles_merge(void **state)
{
    (void)state;
    td_err err = {0};
    profile a = sample_profile(), b = sample_profile();
    td_text report = {0};
    b.shard[0] = (profile_shard){.tp = 2};
    b.shard[0].pass[0][PASS_F][PART_LAYERS] = fit(7, 8, 9);
    b.message[0] = (profile_fit){0};
    b.message[LINK_TCP] = fit(70, 80, 0);
    b.optimizer = fit(60, 1, 0);
    (void)snprintf(b.sources[0].source, sizeof b.sources[0].source, "second");
    T_OK(profile_merge(&a, &b, &report, &err), &err);
    assert_int_equal(a.n_shards, 2);
    T_CLOSE(profile_shard_of(&a, 1)->pass[0][PASS_F][PART_LAYERS].c[0].value, 1000, 0, 0);
    T_CLOSE(profile_shard_of(&a, 2)->pass[0][PASS_F][PART_LAYERS].c[0].value, 7, 0, 0);
    T_CLOSE(a.message[LINK_THREADS].c[0].value, 5000, 0, 0);
    T_CLOSE(a.message[LINK_TCP].c[0].value, 70, 0, 0);
    T_CLOSE(a.optimizer.c[0].value, 60, 0, 0); /* of the later one, and it says so */
    assert_non_null(strstr(report.s, "optimizer: both have it; that of second"));
    assert_int_equal(a.n_sources, 2);
    assert_string_equal(a.sources[0].source, "a \"bench\"");
    assert_string_equal(a.sources[1].source, "second");
    (void)snprintf(b.sources[0].device, sizeof b.sources[0].device, "another");
    T_FAILS(profile_merge(&a, &b, &report, &err), TD_EUSAGE, &err, "two devices");
    b = sample_profile();
    b.model.hidden++;
    T_FAILS(profile_merge(&a, &b, &report, &err), TD_EUSAGE, &err, "hidden size");
    td_text_free(&report);
}

/* Shards of the vocabulary that were measured: by tokens and words, fused or not. */
static void measured_shards(void **state)
{
    (void)state;
    tiny_run r;
    tiny_start(&r);
    r.z.vocab_shards = 2;
    const double tokens = 128, words = (double)sizes_vocab_rows(&r.z);
    profile_shard *const s = &r.p.shard[0];
    s->pass[0][PASS_S][PART_HEAD] = fit(11, 3, 0.125);
    s->pass[0][PASS_S][PART_FUSED_HEAD] = fit(13, 3, 0.25);
    s->pass[0][PASS_E][PART_EMBEDDING] = fit(17, 5, 0);
    T_CLOSE(price(&r, PASS_S, 1), 11 + 3 * tokens + 0.125 * tokens * words, 0, 0.5);
    T_CLOSE(price(&r, PASS_E, 0), 17 + 5 * tokens, 0, 0.5);
    r.z.run.recompute = RECOMPUTE_FULL; /* not of the softmax */
    r.z.vocab_fused = true;
    T_CLOSE(price(&r, PASS_S, 1), 13 + 3 * tokens + 0.25 * tokens * words, 0, 0.5);
}

static void links_and_degrees(void **state)
{
    (void)state;
    td_err err = {0};
    tiny_run r;
    tiny_start(&r);
    message_cost m;
    int64_t ns = 0;
    r.p.message[LINK_TCP] = fit(9000, 1, 0);
    T_OK(cost_message(&r.cost, 0, 1, 8, &m, &err), &err);
    assert_int_equal(m.latency_ns, 5000);
    r.p.link = LINK_TCP;
    T_OK(cost_message(&r.cost, 0, 1, 8, &m, &err), &err);
    assert_int_equal(m.latency_ns, 9000);
    r.p.link = LINK_MPI; /* not measured: what was */
    T_OK(cost_message(&r.cost, 0, 1, 8, &m, &err), &err);
    assert_int_equal(m.latency_ns, 5000);
    r.z.run.tp = 2;
    T_FAILS(cost_pass(&r.cost, &(pass_query){PASS_F, 0, 64, 0, 64, false}, &ns, &err), TD_EUSAGE,
            &err, "measured with tensor-parallel degree 1, this run has 2");
    /* noise: of the kind, else the largest of all */
    r.p.shard[0].pass[0][PASS_F][PART_LAYERS].spread = 0.02;
    r.p.shard[0].pass[0][PASS_F][PART_HEAD].spread = 0.03;
    r.p.shard[0].pass[0][PASS_B][PART_HEAD].spread = 0.05;
    T_CLOSE(profile_spread(&r.p, PASS_F), 0.03, 0, 0);
    T_CLOSE(profile_spread(&r.p, PASS_W), 0.05, 0, 0);
    T_CLOSE(profile_spread(&r.p, PASS_COUNT), 0.05, 0, 0);
    /* the fit that is furthest off, of the run's degree */
    char what[64] = "";
    r.p.shard[0].pass[1][PASS_B][PART_HEAD] = fit(1, 2, 3);
    r.p.shard[0].pass[1][PASS_B][PART_HEAD].error = 0.4;
    T_CLOSE(profile_worst(&r.p, 1, what, sizeof what), 0.4, 0, 0);
    assert_string_equal(what, "backward of head");
    T_CLOSE(profile_worst(&r.p, 2, what, sizeof what), 0, 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(profile_version_1),
        cmocka_unit_test(profiles_merge),
        cmocka_unit_test(measured_shards),
        cmocka_unit_test(links_and_degrees),
        cmocka_unit_test(profile_round_trip),
        cmocka_unit_test(profile_prices),
        cmocka_unit_test(forward_that_keeps_nothing),
        cmocka_unit_test(profile_refusals),
        cmocka_unit_test(profile_sums),
        cmocka_unit_test(profile_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
