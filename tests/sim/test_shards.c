/* Tensor-parallel shards as ranks of their own: the same step as with one rank for all of them. */
#include "costmodel/segments.h"
#include "sim/sim.h"

#include "t.h"

typedef struct shard_case {
    const char *family, *model;
    int32_t pp, m, chunks, slices, tp, dp;
    recompute_mode recompute;
    bool fold, zero1, sequence_parallel;
    plan_mapping mapping;
} shard_case;

typedef struct shard_run {
    model_desc model;
    schedule s;
    sizes z;
    plan p;
    task_times t;
    plan_metrics m;
} shard_run;

static void lower_case(const shard_case *k, bool shards, td_arena *a, shard_run *out)
{
    td_err err = {0};
    const sched_request r = {
        .pp = k->pp, .microbatches = k->m, .chunks = k->chunks, .slices = k->slices};
    T_OK(model_load(k->model, &out->model, &err), &err);
    T_OK(sched_generate(k->family, &r, a, &out->s, &err), &err);
    stage_desc *const stages = TD_NEW_N(a, stage_desc, out->s.n_stages);
    const layer_request lr = {.n_stages = out->s.n_stages, .pp = k->pp};
    T_OK(layers_assign(&out->model, &lr, stages, &err), &err);
    out->z = (sizes){.model = &out->model,
                     .stages = stages,
                     .n_stages = out->s.n_stages,
                     .chunks = out->s.n_stages / k->pp,
                     .run = {.micro_batch = 2,
                             .seq_len = 32,
                             .tp = k->tp,
                             .dp = k->dp,
                             .zero1 = k->zero1,
                             .sequence_parallel = k->sequence_parallel,
                             .recompute = k->recompute}};
    const lower_options o = {.sizes = &out->z,
                             .dp = k->dp,
                             .tp = k->tp,
                             .fold = k->fold,
                             .shards = shards,
                             .zero1 = k->zero1,
                             .mapping = k->mapping,
                             .lookahead = 1};
    T_OK(plan_lower(&out->s, &o, a, &out->p, &err), &err);
}

static void simulate(const shard_case *k, bool shards, td_arena *a, shard_run *out)
{
    td_err err = {0};
    cluster_desc c;
    int64_t *ns = NULL;
    lower_case(k, shards, a, out);
    T_OK(cluster_load("a100-dgx x8", &c, &err), &err);
    const cost_model cost = {.sizes = &out->z, .cluster = &c, .chunks = out->z.chunks};
    const sim_options so = {.protocol = PROTOCOL_RENDEZVOUS, .cost = &cost};
    T_OK(sim_price(&out->p, &cost, a, &ns, &err), &err);
    out->t = (task_times){0};
    T_OK(sim_run(&out->p, ns, &so, a, &out->t, NULL, &err), &err);
    T_OK(metrics_of(&out->p, &out->t, (activation_deltas){1, 0, -1}, a, &out->m, &err), &err);
}

/* The rank of the folded plan that stands for one of its shards. */
static uint32_t stands_for(const plan *folded, const plan_rank *shard)
{
    for (uint32_t r = 0; r < folded->n_ranks; r++)
        if (folded->ranks[r].row == shard->row && folded->ranks[r].replica == shard->replica)
            return r;
    fail_msg("no rank of row %d", shard->row);
    return 0;
}

/* Sums inside the passes of a rank, and segments of them. */
static int64_t count_cuts(const plan *p, uint32_t rank)
{
    const plan_stream *const s = plan_compute(p, rank);
    int64_t n = 0;
    for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
        n += p->classes[p->tasks[t].cls].segment > 0;
    return n;
}

static void compare(const shard_case *k, td_arena *a)
{
    shard_run one, all;
    simulate(k, false, a, &one);
    simulate(k, true, a, &all);
    assert_true(one.p.folded_tp && !all.p.folded_tp);
    assert_int_equal(all.p.n_ranks, one.p.n_ranks * (uint32_t)k->tp);
    assert_int_equal(plan_devices(&all.p), plan_devices(&one.p));
    for (uint32_t r = 0; r < all.p.n_ranks; r++) {
        const plan_rank *const rank = &all.p.ranks[r];
        const uint32_t f = stands_for(&one.p, rank);
        const rank_metrics *const got = &all.m.ranks[r], *const want = &one.m.ranks[f];
        assert_int_equal(rank->device, one.p.ranks[f].device + rank->shard);
        assert_int_equal(got->peak_bytes, want->peak_bytes);
        T_CLOSE(got->peak_activations, want->peak_activations, 0, 1e-9);
        /* each cut and each pass rounds once; a full recompute is priced as a whole forward, but
         * the last sum of a layer is not needed again */
        const double cuts = (double)count_cuts(&all.p, r) + (double)one.p.n_tasks;
        const double least = k->recompute == RECOMPUTE_FULL ? 0.8 : 1;
        const double busy = (double)got->busy_ns, all_busy = (double)want->busy_ns;
        if (busy > all_busy + cuts || busy < all_busy * least - cuts)
            fail_msg("%s tp %d: rank %u is busy for %.0f ns, folded for %.0f", k->family, k->tp, r,
                     busy, all_busy);
    }
}

static void shards_are_as_busy(void **state)
{
    static const shard_case cases[] = {
        {.family = "1f1b", .model = "tiny-gpt2", .pp = 4, .m = 8, .tp = 4, .dp = 2},
        {.family = "1f1b", .model = "tiny-llama", .pp = 2, .m = 4, .tp = 2, .dp = 2, .fold = true},
        {.family = "gpipe", .model = "tiny-llama", .pp = 1, .m = 2, .tp = 2, .dp = 1},
        {.family = "gpipe",
         .model = "tiny-gpt2",
         .pp = 2,
         .m = 3,
         .tp = 2,
         .dp = 1,
         .mapping = MAPPING_SINGLE},
        {.family = "zb-v", .model = "tiny-gpt2", .pp = 2, .m = 6, .tp = 2, .dp = 2, .zero1 = true},
        {.family = "interleaved-1f1b",
         .model = "tiny-llama",
         .pp = 2,
         .m = 4,
         .chunks = 2,
         .tp = 2,
         .dp = 1,
         .recompute = RECOMPUTE_FULL},
        {.family = "seq1f1b",
         .model = "tiny-gpt2",
         .pp = 2,
         .m = 4,
         .slices = 2,
         .tp = 2,
         .dp = 1,
         .recompute = RECOMPUTE_SELECTIVE},
        {.family = "fbd", .model = "tiny-gpt2", .pp = 2, .m = 4, .tp = 2, .dp = 1},
        {.family = "fbd",
         .model = "tiny-gpt2",
         .pp = 2,
         .m = 4,
         .tp = 2,
         .dp = 1,
         .sequence_parallel = true},
        {.family = "1f1b",
         .model = "tiny-llama",
         .pp = 2,
         .m = 4,
         .tp = 2,
         .dp = 2,
         .sequence_parallel = true},
        {.family = "1f1b", .model = "tiny-llama", .pp = 2, .m = 4, .tp = 4, .dp = 2, .fold = true},
        {.family = "1f1b",
         .model = "tiny-gpt2",
         .pp = 2,
         .m = 4,
         .tp = 4,
         .dp = 1,
         .recompute = RECOMPUTE_FULL,
         .sequence_parallel = true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) compare(&cases[i], *state);
}

/* A pair runs its passes one behind the other on shards. */
static void pairs_are_unfolded(void **state)
{
    const shard_case k = {
        .family = "dualpipe", .model = "tiny-gpt2", .pp = 4, .m = 8, .tp = 2, .dp = 1};
    compare(&k, *state);
}

static void text_keeps_segments(void **state)
{
    const shard_case k = {
        .family = "1f1b", .model = "tiny-gpt2", .pp = 2, .m = 2, .tp = 2, .dp = 1};
    shard_run r;
    plan again;
    td_text t = {0};
    td_err err = {0};
    lower_case(&k, true, *state, &r);
    plan_print(&r.p, &t);
    T_OK(plan_parse(t.s, strlen(t.s), "plan", *state, &again, &err), &err);
    assert_true(plan_equal(&r.p, &again));
    td_text_free(&t);
}

static uint32_t find_cut(const plan *p)
{
    for (uint32_t t = 0; t < p->n_tasks; t++)
        if (p->tasks[t].kind == TASK_COLL && p->classes[p->tasks[t].cls].purpose == PURPOSE_SHARDS)
            return t;
    return PLAN_NONE;
}

static void broken_cuts_are_found(void **state)
{
    const shard_case k = {
        .family = "1f1b", .model = "tiny-gpt2", .pp = 2, .m = 2, .tp = 2, .dp = 1};
    shard_run r;
    td_err err = {0};
    lower_case(&k, true, *state, &r);
    T_OK(plan_check(&r.p, *state, &err), &err);
    plan_task *const cut = &r.p.tasks[find_cut(&r.p)];
    cut->join++;
    T_FAILS(plan_check(&r.p, *state, &err), TD_EPLAN, &err, "not between two segments");
    cut->join--;
    const uint32_t cls = r.p.tasks[cut->join].cls;
    r.p.tasks[cut->join].cls = r.p.tasks[cut->gate].cls;
    T_FAILS(plan_check(&r.p, *state, &err), TD_EPLAN, &err, "");
    r.p.tasks[cut->join].cls = cls;
    r.p.classes[cls].segment = r.p.classes[cls].segments;
    T_FAILS(plan_check(&r.p, *state, &err), TD_EPLAN, &err, "a segment of no pass");
}

static void refusals(void **state)
{
    td_err err = {0};
    shard_run r;
    shard_case k = {.family = "1f1b", .model = "tiny-gpt2", .pp = 2, .m = 2, .tp = 2, .dp = 1};
    lower_case(&k, false, *state, &r);
    lower_options o = {.sizes = &r.z, .dp = 1, .tp = 2, .shards = true, .lookahead = 1};
    plan p;
    r.z.run.sequence_parallel = true;
    r.z.run.micro_batch = 1;
    r.z.run.seq_len = 31;
    T_FAILS(plan_lower(&r.s, &o, *state, &p, &err), TD_EUSAGE, &err, "31 tokens (1 sequences)");
    r.z.run.seq_len = 32;
    r.z.run.micro_batch = 2;
    r.z.run.sequence_parallel = false;
    r.s.validate = true;
    T_FAILS(plan_lower(&r.s, &o, *state, &p, &err), TD_EUSAGE, &err, "their forwards meet");
    r.s.validate = false;
    const sizes units = {.n_stages = r.s.n_stages, .chunks = 1};
    o.sizes = &units;
    o.no_step = true;
    T_FAILS(plan_lower(&r.s, &o, *state, &p, &err), TD_EUSAGE, &err, "--model");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(shards_are_as_busy, t_arena_setup, t_arena_teardown),
        cmocka_unit_test_setup_teardown(pairs_are_unfolded, t_arena_setup, t_arena_teardown),
        cmocka_unit_test_setup_teardown(text_keeps_segments, t_arena_setup, t_arena_teardown),
        cmocka_unit_test_setup_teardown(broken_cuts_are_found, t_arena_setup, t_arena_teardown),
        cmocka_unit_test_setup_teardown(refusals, t_arena_setup, t_arena_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
