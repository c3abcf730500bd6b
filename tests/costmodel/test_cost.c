/* Clusters and prices: unit times rule exactly, work counts equal the published formulas,
 * collectives obey their closed forms. */
#include "t.h"

#include "costmodel/cluster_presets.h"
#include "costmodel/cost.h"
#include "costmodel/network_cost.h"

#include <stdlib.h>
#include <unistd.h>

/* Every number of a preset has its source beside it. */
static void presets_cite(void **state)
{
    (void)state;
    static const char *const keys[] = {
        "matrix_tflops", "vector_tflops",         "memory_gb_per_s",
        "memory_gb",     "matrix_efficiency",     "memory_efficiency",
        "launch_us",     "all_reduce_fraction",   "intra",
        "inter",         "node_network_gb_per_s",
    };
    size_t n = 0;
    const char *const *const names = cluster_preset_names(&n);
    for (size_t i = 0; i < n; i++) {
        const char *const json = cluster_preset_json(names[i]);
        if (json == NULL) continue;
        const char *const sources = strstr(json, "\"sources\":{");
        assert_non_null(sources);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            char said[64];
            snprintf(said, sizeof said, "\"%s\":\"", keys[k]);
            if (strstr(sources, said) == NULL) fail_msg("%s: no source of %s", names[i], keys[k]);
        }
    }
}

static void cluster_names(void **state)
{
    (void)state;
    td_err err = {0};
    cluster_desc c;
    size_t n = 0;
    const char *const *const names = cluster_preset_names(&n);
    for (size_t i = 0; i < n; i++) {
        T_OK(cluster_load(names[i], &c, &err), &err);
        assert_string_equal(c.name, names[i]);
        assert_true(cluster_size(&c) >= 1 && c.matrix_flops_per_s > 1e9 && c.memory_bytes > 0);
    }
    T_OK(cluster_load("h100-dgx x4", &c, &err), &err);
    assert_int_equal(cluster_size(&c), 32);
    T_OK(cluster_load("h100-dgx:4", &c, &err), &err);
    assert_int_equal(c.n_nodes, 4);
    assert_int_equal(cluster_node_of(&c, 15), 1);
    T_FAILS(cluster_load("h10-dgx", &c, &err), TD_EUSAGE, &err, "did you mean 'h100-dgx'");
    T_FAILS(cluster_load("h100-dgx:0", &c, &err), TD_EUSAGE, &err, "nodes");
    const char *const odd = "{\"name\":\"a\",\n\"latncy\":1}";
    T_FAILS(cluster_parse(odd, strlen(odd), "c.json", &c, &err), TD_EPARSE, &err,
            "c.json:2:1: latncy");
    const char *const curve = "{\"name\":\"a\",\"devices_per_node\":1,\"matrix_tflops\":1,"
                              "\"memory_gb_per_s\":1,\"memory_gb\":1,"
                              "\"matrix_efficiency\":[[2,0.5],[1,0.6]]}";
    T_FAILS(cluster_parse(curve, strlen(curve), "c.json", &c, &err), TD_EPARSE, &err, "ascend");
}

static void efficiency_between_points(void **state)
{
    (void)state;
    const efficiency_curve e = {.n = 2, .size = {1e6, 1e8}, .frac = {0.5, 0.9}};
    T_CLOSE(efficiency_at(&e, 1), 0.5, 0, 0);
    T_CLOSE(efficiency_at(&e, 1e7), 0.7, 1e-12, 0);
    T_CLOSE(efficiency_at(&e, 1e12), 0.9, 0, 0);
}

/* --- unit times --- */

static int64_t unit_ns(td_arena *a, const char *text, pass_kind pass, int32_t chunks, int64_t len)
{
    td_err err = {0};
    unit_times u;
    int64_t ns = -1;
    T_OK(unit_times_parse(text, a, &u, &err), &err);
    const cost_model c = {.units = &u, .chunks = chunks};
    const pass_query q = {.pass = pass, .slice_len = len, .seq_len = 8};
    T_OK(cost_pass(&c, &q, &ns, &err), &err);
    return ns;
}

static void unit_rules(void **state)
{
    td_arena *const a = *state;
    assert_true(unit_ns(a, "F=1,B=2", PASS_F, 1, 8) == 1000000);
    assert_true(unit_ns(a, "F=1,B=2", PASS_B, 4, 8) == 500000);
    assert_true(unit_ns(a, "F=1,B=2", PASS_B, 1, 2) == 500000);
    assert_true(unit_ns(a, "F=1,B=3", PASS_I, 1, 8) == 1500000);
    assert_true(unit_ns(a, "F=1,B=3,W=1", PASS_I, 1, 8) == 2000000);
    assert_true(unit_ns(a, "F=1,I=1.5,W=1", PASS_B, 1, 8) == 2500000);
    assert_true(unit_ns(a, "F=1.25,B=2", PASS_R, 1, 8) == 1250000);
    assert_true(unit_ns(a, "F=1,B=2", PASS_F, 3, 8) == 333333);
    assert_true(unit_ns(a, "F=0.0000015,B=2", PASS_F, 1, 8) == 2); /* half a ns goes up */
}

/* Full recompute: b becomes b + f, in the half that needs the activations first; not where the
 * schedule places it. */
static void unit_recompute(void **state)
{
    static const struct {
        pass_kind pass;
        int64_t none, selective, full; /* ns */
    } want[] = {{PASS_F, 500000, 500000, 500000},
                {PASS_B, 1000000, 1000000, 1600000},
                {PASS_I, 600000, 600000, 1200000},
                {PASS_W, 400000, 400000, 400000},
                {PASS_R, 600000, 600000, 600000}};
    td_err err = {0};
    unit_times u;
    int64_t ns = 0;
    T_OK(unit_times_parse("F=1,B=2,W=0.8,R=1.2", *state, &u, &err), &err);
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
        const sizes z = {.run = {.tp = 1, .recompute = (recompute_mode)mode}};
        cost_model c = {.units = &u, .chunks = 2, .sizes = &z};
        const pass_query f = {.pass = PASS_F, .slice_len = 8, .seq_len = 8};
        const pass_query b = {.pass = PASS_B, .slice_len = 8, .seq_len = 8};
        for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
            const pass_query q = {.pass = want[i].pass, .slice_len = 8, .seq_len = 8};
            T_OK(cost_pass(&c, &q, &ns, &err), &err);
            assert_true(ns == (mode == RECOMPUTE_NONE        ? want[i].none
                               : mode == RECOMPUTE_SELECTIVE ? want[i].selective
                                                             : want[i].full));
        }
        T_OK(cost_pair(&c, &f, &b, &ns, &err), &err);
        assert_true(ns == (mode == RECOMPUTE_FULL ? 2100000 : 1500000));
        u.pair_given = true;
        u.pair_ms = 2;
        T_OK(cost_pair(&c, &f, &b, &ns, &err), &err);
        assert_true(ns == (mode == RECOMPUTE_FULL ? 1600000 : 1000000));
        u.pair_given = false;
        c.recompute_placed = true;
        T_OK(cost_pass(&c, &b, &ns, &err), &err);
        assert_true(ns == 1000000);
    }
}

static void unit_refusals(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    unit_times u;
    int64_t ns = 0;
    T_FAILS(unit_times_parse("F=1,X=2", a, &u, &err), TD_EUSAGE, &err, "'X'");
    T_FAILS(unit_times_parse("F=-1", a, &u, &err), TD_EUSAGE, &err, "F=-1");
    T_FAILS(unit_times_parse("F=1,F=2", a, &u, &err), TD_EUSAGE, &err, "twice");
    T_FAILS(unit_times_parse("F=1,B=1,W=2", a, &u, &err), TD_EUSAGE, &err, "halves");
    T_OK(unit_times_parse("F=1", a, &u, &err), &err);
    const cost_model c = {.units = &u, .chunks = 1};
    const pass_query q = {.pass = PASS_W, .slice_len = 8, .seq_len = 8};
    T_FAILS(cost_pass(&c, &q, &ns, &err), TD_EUSAGE, &err, "W=MS");
    const cost_model none = {.chunks = 1};
    T_FAILS(cost_pass(&none, &q, &ns, &err), TD_EUSAGE, &err, "--times");
}

static void unit_pairs_and_messages(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    unit_times u;
    message_cost m;
    int64_t ns = 0;
    T_OK(unit_times_parse("F=1,B=2,comm=0.1,coll=0.2", a, &u, &err), &err);
    const cost_model c = {.units = &u, .chunks = 2};
    const pass_query f = {.pass = PASS_F, .slice_len = 8, .seq_len = 8};
    const pass_query b = {.pass = PASS_B, .slice_len = 8, .seq_len = 8};
    T_OK(cost_pair(&c, &f, &b, &ns, &err), &err);
    assert_true(ns == 1500000);
    u.pair_given = true;
    u.pair_ms = 2.5;
    T_OK(cost_pair(&c, &f, &b, &ns, &err), &err);
    assert_true(ns == 1250000);
    T_OK(cost_message(&c, 0, 1, 1 << 20, &m, &err), &err);
    assert_true(m.latency_ns == 100000 && m.transfer_ns == 0);
    T_OK(cost_message(&c, 1, 1, 1 << 20, &m, &err), &err);
    assert_true(m.latency_ns == 0 && m.transfer_ns == 0);
    T_OK(cost_collective(&c, COLL_ALL_REDUCE, NULL, 0, 4, 8, &ns, &err), &err);
    assert_true(ns == 200000);
}

static void unit_file(void **state)
{
    td_arena *const a = *state;
    td_err err = {0};
    unit_times u;
    int64_t ns = 0;
    char path[] = "/tmp/test_cost_XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
    const char text[] = "# measured\ncomm=0.5\nstage 0: F=1,B=2\nF=3,B=4\n";
    T_OK(td_write_file(path, text, sizeof text - 1, &err), &err);
    T_OK(unit_times_parse(path, a, &u, &err), &err);
    (void)remove(path);
    assert_int_equal(u.n_stages, 2);
    const cost_model c = {.units = &u, .chunks = 2};
    pass_query q = {.pass = PASS_I, .stage = 1, .slice_len = 8, .seq_len = 8};
    T_OK(cost_pass(&c, &q, &ns, &err), &err);
    assert_true(ns == 2000000); /* unscaled by chunks */
    q.stage = 2;
    T_FAILS(cost_pass(&c, &q, &ns, &err), TD_EUSAGE, &err, "stage 2");
}

/* --- work --- */

typedef struct gpt3_run {
    model_desc m;
    stage_desc stage;
    sizes z;
} gpt3_run;

static void gpt3_start(gpt3_run *r, recompute_mode recompute, int64_t tp)
{
    td_err err = {0};
    T_OK(model_load("gpt3-175b", &r->m, &err), &err);
    r->m.causal = false; /* the published formulas count the whole square of attention */
    r->stage = (stage_desc){.n_layers = 12};
    r->z = (sizes){.model = &r->m, .stages = &r->stage, .n_stages = 1, .chunks = 1};
    r->z.run = (run_shape){.micro_batch = 1,
                           .seq_len = 2048,
                           .tp = tp,
                           .dp = 1,
                           .dtype = TYPE_BF16,
                           .grad_dtype = TYPE_FP32,
                           .recompute = recompute};
}

static double gflops(gpt3_run *r, pass_kind pass, recompute_mode recompute, int64_t tp)
{
    td_err err = {0};
    pass_work w;
    gpt3_start(r, recompute, tp);
    const pass_query q = {.pass = pass, .slice_len = 2048, .seq_len = 2048};
    T_OK(pass_work_of(&r->z, &q, &w, &err), &err);
    assert_true(w.bytes > 0);
    return w.flops;
}

/* Narayanan et al. 2021, appendix: 24 B s h^2 + 4 B s^2 h a layer forward, twice that backward, the
 * forward once more with full recompute; Korthikanti et al. 2022: 4 B s^2 h more with selective.
 * Half of that core on top, since backward makes the scores again that attention does not store. */
static void published_flops(void **state)
{
    (void)state;
    gpt3_run r;
    const double s = 2048, h = 12288, layers = 12;
    const double dense = layers * 24 * s * h * h, core = layers * 4 * s * s * h;
    const double f = dense + core, b = 2 * f + core / 2;
    T_CLOSE(gflops(&r, PASS_F, RECOMPUTE_NONE, 1), f, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_B, RECOMPUTE_NONE, 1), b, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_B, RECOMPUTE_FULL, 1), b + f, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_B, RECOMPUTE_SELECTIVE, 1), b + core, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_F, RECOMPUTE_NONE, 8), f / 8, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_W, RECOMPUTE_FULL, 1), dense, 1e-12, 0);
    T_CLOSE(gflops(&r, PASS_I, RECOMPUTE_NONE, 1) + gflops(&r, PASS_W, RECOMPUTE_NONE, 1),
            gflops(&r, PASS_B, RECOMPUTE_NONE, 1), 1e-12, 0);
}

/* Slices of a sequence do together the work of the whole, whatever their lengths. */
static void slices_add_up(void **state)
{
    (void)state;
    td_err err = {0};
    td_rng rng = td_rng_seed(7);
    gpt3_run r;
    gpt3_start(&r, RECOMPUTE_NONE, 1);
    r.m.causal = true;
    for (int round = 0; round < 50; round++) {
        pass_work w;
        double sum = 0, whole = 0;
        for (int64_t at = 0; at < 2048;) {
            int64_t len = 1 + td_rng_below(&rng, 700);
            if (at + len > 2048) len = 2048 - at;
            T_OK(pass_work_of(&r.z, &(pass_query){PASS_F, 0, len, at, 2048, false}, &w, &err),
                 &err);
            sum += w.flops;
            at += len;
        }
        T_OK(pass_work_of(&r.z, &(pass_query){PASS_F, 0, 2048, 0, 2048, false}, &w, &err), &err);
        whole = w.flops;
        T_CLOSE(sum, whole, 1e-9, 0);
    }
}

static double slice_flops(gpt3_run *r, pass_kind pass, int64_t len, int64_t prefix)
{
    td_err err = {0};
    pass_work w;
    const pass_query q = {pass, 0, len, prefix, 2048, false};
    T_OK(pass_work_of(&r->z, &q, &w, &err), &err);
    return w.flops;
}

/* A prefix of o tokens adds 4 b n o h FLOPs a layer to the forward of a slice of n tokens, 2.5
 * times that to the input gradient, once more where attention is computed again, and nothing to the
 * weight gradient, whose products are of the slice's own rows. */
static void prefix_adds_attention(void **state)
{
    (void)state;
    static const double again[] = {0, 1, 1}; /* by recompute_mode */
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++)
        for (int64_t tp = 1; tp <= 8; tp *= 8) {
            gpt3_run r;
            gpt3_start(&r, (recompute_mode)mode, tp);
            r.m.causal = true;
            r.z.run.micro_batch = 3;
            for (int64_t len = 1; len <= 512; len *= 8)
                for (int64_t o = 0; o <= 1024; o = 2 * o + 64) {
                    const double added =
                        12.0 * 4 * 3 * (double)len * (double)o * 12288 / (double)tp;
                    const struct {
                        pass_kind pass;
                        double times;
                    } rows[] = {{PASS_F, 1},
                                {PASS_I, 2.5 + again[mode]},
                                {PASS_W, 0},
                                {PASS_B, 2.5 + again[mode]},
                                {PASS_R, 1}};
                    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
                        const double first = slice_flops(&r, rows[i].pass, len, 0);
                        T_CLOSE(slice_flops(&r, rows[i].pass, len, o),
                                first + rows[i].times * added, 1e-12, 0);
                    }
                    /* without attention work goes with the tokens */
                    T_CLOSE(slice_flops(&r, PASS_W, len, o),
                            (double)len * slice_flops(&r, PASS_W, 1, 0), 1e-12, 0);
                }
        }
}

/* A pass is never faster than the peak, and slower with recompute and with sums between shards. */
static void machine_prices(void **state)
{
    (void)state;
    td_err err = {0};
    gpt3_run r;
    cluster_desc c;
    int64_t plain = 0, full = 0, again = 0, forward = 0;
    T_OK(cluster_load("a100-dgx x8", &c, &err), &err);
    const cost_model cost = {.sizes = &r.z, .cluster = &c, .chunks = 1};
    const pass_query b = {.pass = PASS_B, .slice_len = 2048, .seq_len = 2048};
    const pass_query f = {.pass = PASS_F, .slice_len = 2048, .seq_len = 2048};
    const double flops = gflops(&r, PASS_B, RECOMPUTE_NONE, 8);
    T_OK(cost_pass(&cost, &b, &plain, &err), &err);
    T_OK(cost_pass(&cost, &f, &forward, &err), &err);
    const double share = flops / (double)plain * 1e9 / c.matrix_flops_per_s;
    if (share < 0.3 || share > 0.95) fail_msg("%.2f of the peak is not credible", share);
    gpt3_start(&r, RECOMPUTE_FULL, 8);
    T_OK(cost_pass(&cost, &b, &full, &err), &err);
    T_CLOSE((double)full, (double)(plain + forward), 1e-6, 2);
    cost_model placed = cost;
    placed.recompute_placed = true;
    T_OK(cost_pass(&placed, &b, &again, &err), &err);
    assert_true(again == plain);
}

/* What shards of a stage of twelve layers do together: Korthikanti et al. 2022, section 4.2, with
 * the inputs of products gathered again for the weights' gradients. */
static void shards_meet(void **state)
{
    (void)state;
    static const struct {
        pass_kind pass;
        recompute_mode recompute;
        int32_t sums, gathers, scatters; /* a layer: without, with sequence parallelism */
    } cases[] = {
        {PASS_F, RECOMPUTE_NONE, 2, 2, 2}, {PASS_R, RECOMPUTE_NONE, 2, 2, 2},
        {PASS_B, RECOMPUTE_NONE, 2, 4, 2}, {PASS_I, RECOMPUTE_NONE, 2, 2, 2},
        {PASS_W, RECOMPUTE_NONE, 0, 4, 0}, {PASS_B, RECOMPUTE_FULL, 4, 6, 4},
    };
    const int64_t bytes = 2048LL * 12288 * 2;
    td_err err = {0};
    gpt3_run r;
    cluster_desc c;
    T_OK(cluster_load("a100-dgx x8", &c, &err), &err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int sp = 0; sp < 2; sp++) {
            int64_t all = 0, alone = 0, sum = 0, gather = 0, scatter = 0;
            gpt3_start(&r, cases[i].recompute, 8);
            r.z.run.sequence_parallel = sp == 1;
            cost_model cost = {.sizes = &r.z, .cluster = &c, .chunks = 1};
            const pass_query q = {.pass = cases[i].pass, .slice_len = 2048, .seq_len = 2048};
            T_OK(cost_pass(&cost, &q, &all, &err), &err);
            cost.sums_apart = true;
            T_OK(cost_pass(&cost, &q, &alone, &err), &err);
            T_OK(cost_collective(&cost, COLL_ALL_REDUCE, NULL, 0, 8, bytes, &sum, &err), &err);
            T_OK(cost_collective(&cost, COLL_ALL_GATHER, NULL, 0, 8, bytes, &gather, &err), &err);
            T_OK(cost_collective(&cost, COLL_REDUCE_SCATTER, NULL, 0, 8, bytes, &scatter, &err),
                 &err);
            assert_true(gather > 0 && sum > gather);
            const int64_t want = sp == 0 ? cases[i].sums * sum
                                         : cases[i].gathers * gather + cases[i].scatters * scatter;
            T_CLOSE((double)(all - alone), 12.0 * (double)want, 1e-6, 60);
        }
}

static void optimizer_prices(void **state)
{
    (void)state;
    td_err err = {0};
    gpt3_run r;
    cluster_desc c;
    int64_t ns = 0, part = 0;
    gpt3_start(&r, RECOMPUTE_NONE, 8);
    T_OK(cluster_load("a100-dgx", &c, &err), &err);
    c.launch_ns = 0;
    const cost_model cost = {.sizes = &r.z, .cluster = &c, .chunks = 1};
    T_OK(cost_optimizer(&cost, 0, &ns, &err), &err);
    const double params = 12 * (12.0 * 12288 * 12288 + 13.0 * 12288) / 8;
    T_CLOSE((double)ns, params * 34 / (2039e9 * 0.9) * 1e9, 1e-6, 1);
    T_OK(cost_snapshot(&cost, 0, &part, &err), &err); /* bf16 weights, fp32 ones, two moments */
    T_CLOSE((double)part, params * 2 * 14 / (2039e9 * 0.9) * 1e9, 1e-6, 1);
    r.z.run.zero1 = true;
    r.z.run.dp = 4;
    T_OK(cost_optimizer(&cost, 0, &part, &err), &err);
    T_CLOSE((double)part, (double)ns / 4, 1e-6, 1);
}

/* --- network --- */

static void collectives(void **state)
{
    (void)state;
    const double alpha = 1000, beta = 0.01, bytes = 1 << 26; /* 100 GB/s */
    const cluster_desc c = {.n_nodes = 4,
                            .devices_per_node = 8,
                            .all_reduce_frac = 1,
                            .intra = {alpha, 1e9 / beta},
                            .inter = {5 * alpha, 1e8 / beta}};
    for (int32_t n = 2; n <= 8; n *= 2) {
        int32_t ranks[8];
        for (int32_t i = 0; i < n; i++) ranks[i] = i;
        const group_shape g = group_shape_of(&c, ranks, n, n);
        const double all = network_collective_ns(&c, COLL_ALL_REDUCE, g, bytes);
        T_CLOSE(all, 2 * (log2(n) * alpha + (n - 1.0) / n * bytes * beta), 1e-12, 0);
        T_CLOSE(all,
                network_collective_ns(&c, COLL_REDUCE_SCATTER, g, bytes) +
                    network_collective_ns(&c, COLL_ALL_GATHER, g, bytes),
                1e-12, 0);
    }
    const int32_t spread[] = {0, 8, 16, 24}, pair[] = {0, 1, 8, 9};
    const group_shape wide = group_shape_of(&c, spread, 4, 4),
                      both = group_shape_of(&c, pair, 4, 4);
    assert_true(wide.nodes == 4 && wide.members == 1 && both.nodes == 2 && both.members == 2);
    T_CLOSE(network_collective_ns(&c, COLL_ALL_REDUCE, wide, bytes),
            2 * (2 * 5 * alpha + 0.75 * bytes * beta * 10), 1e-12, 0);
    assert_true(network_collective_ns(&c, COLL_ALL_REDUCE, both, bytes) <
                network_collective_ns(&c, COLL_ALL_REDUCE, wide, bytes));
}

static void messages_by_link(void **state)
{
    (void)state;
    td_err err = {0};
    cluster_desc c;
    gpt3_run r;
    message_cost near, far;
    gpt3_start(&r, RECOMPUTE_NONE, 1);
    T_OK(cluster_load("h100-dgx x2", &c, &err), &err);
    const cost_model cost = {.sizes = &r.z, .cluster = &c, .chunks = 1};
    T_OK(cost_message(&cost, 0, 7, 361600000, &near, &err), &err);
    T_OK(cost_message(&cost, 7, 8, 48500000, &far, &err), &err);
    assert_true(near.latency_ns == 8000 && near.transfer_ns == 1000000);
    assert_true(far.latency_ns == 7100 && far.transfer_ns == 1000000);
}

#define WITH_ARENA(f) cmocka_unit_test_setup_teardown(f, t_arena_setup, t_arena_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cluster_names),
        cmocka_unit_test(presets_cite),
        cmocka_unit_test(efficiency_between_points),
        WITH_ARENA(unit_rules),
        WITH_ARENA(unit_recompute),
        WITH_ARENA(unit_refusals),
        WITH_ARENA(unit_pairs_and_messages),
        WITH_ARENA(unit_file),
        cmocka_unit_test(published_flops),
        cmocka_unit_test(slices_add_up),
        cmocka_unit_test(prefix_adds_attention),
        cmocka_unit_test(machine_prices),
        cmocka_unit_test(shards_meet),
        cmocka_unit_test(optimizer_prices),
        cmocka_unit_test(collectives),
        cmocka_unit_test(messages_by_link),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
