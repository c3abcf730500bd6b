/* Sharing of links: known cases, and random flows against a reference that recomputes everything
 * at every event. Does not pin what a message costs. */
#include "sim/network.h"
#include "sim_reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const cluster_desc one_node = {.n_nodes = 1, .devices_per_node = 16};

static void run(const cluster_desc *c, reference_flow *f, int n, int devices)
{
    td_arena *const a = td_arena_new();
    network *net = NULL;
    td_err err = {0};
    assert_int_equal(network_open(c, devices, 1, a, &net, &err), TD_OK);
    for (int i = 0; i < n; i++)
        assert_int_equal(network_add(net, (uint32_t)i, f[i].src, f[i].dst, f[i].start_ns,
                                     f[i].transfer_ns, &err),
                         TD_OK);
    uint32_t tag = 0;
    int64_t end = 0, last = 0;
    int done = 0;
    for (; network_next(net, INT64_MAX, &tag, &end); done++) {
        assert_true(end >= last);
        last = end;
        f[tag].end_ns = end;
    }
    assert_int_equal(done, n);
    assert_int_equal(network_flows(net), n);
    td_arena_free(a);
}

static void known_cases(void **state)
{
    (void)state;
    reference_flow alone[] = {{0, 1, 5, 100, 0}, {2, 3, 7, 50, 0}};
    run(&one_node, alone, 2, 4);
    assert_int_equal(alone[0].end_ns, 105);
    assert_int_equal(alone[1].end_ns, 57);
    reference_flow same_source[] = {{0, 1, 0, 100, 0}, {0, 2, 0, 100, 0}};
    run(&one_node, same_source, 2, 4);
    assert_int_equal(same_source[0].end_ns, 200);
    assert_int_equal(same_source[1].end_ns, 200);
    /* The second comes half-way: 50 alone, then 100 at half speed each, then 50 alone. */
    reference_flow later[] = {{0, 1, 0, 100, 0}, {2, 1, 50, 100, 0}};
    run(&one_node, later, 2, 4);
    assert_int_equal(later[0].end_ns, 150);
    assert_int_equal(later[1].end_ns, 200);
    /* Out and in are separate links. */
    reference_flow both_ways[] = {{0, 1, 0, 100, 0}, {1, 0, 0, 100, 0}};
    run(&one_node, both_ways, 2, 4);
    assert_int_equal(both_ways[0].end_ns, 100);
    assert_int_equal(both_ways[1].end_ns, 100);
}

/* Two devices of a node to two of another, where the node's link is as wide as one device's. */
static void node_link_is_shared(void **state)
{
    (void)state;
    const cluster_desc c = {.n_nodes = 2,
                            .devices_per_node = 2,
                            .inter = {.bytes_per_s = 1e9},
                            .node_network_bytes_per_s = 1e9};
    reference_flow f[] = {{0, 2, 0, 100, 0}, {1, 3, 0, 100, 0}};
    run(&c, f, 2, 4);
    assert_int_equal(f[0].end_ns, 200);
    cluster_desc wide = c;
    wide.node_network_bytes_per_s = 2e9;
    run(&wide, f, 2, 4);
    assert_int_equal(f[0].end_ns, 100);
    assert_int_equal(f[1].end_ns, 100);
}

/* Three devices on two cores: two run as if alone, a third takes its share from when it comes. */
static void cores_are_shared(void **state)
{
    (void)state;
    static const double slow[] = {1, 1, 1, 1.5};
    static const int64_t start[] = {0, 0, 50}, want[] = {125, 125, 175};
    td_arena *const a = td_arena_new();
    network *net = NULL;
    td_err err = {0};
    assert_int_equal(network_open(&one_node, 3, 1, a, &net, &err), TD_OK);
    assert_int_equal(network_share_cores(net, slow, 3, &err), TD_OK);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(network_add_work(net, i, (int32_t)i, start[i], 100, &err), TD_OK);
    /* a message is on other links, and no core */
    assert_int_equal(network_add(net, 3, 0, 1, 0, 100, &err), TD_OK);
    uint32_t tag = 0;
    int64_t end = 0;
    while (network_next(net, INT64_MAX, &tag, &end)) {
        if (tag == 3)
            assert_int_equal(end, 100);
        else
            assert_in_range(end, want[tag] - 1, want[tag] + 1);
    }
    assert_int_equal(network_flows(net), 1);
    td_arena_free(a);
}

static void random_flows(void **state)
{
    (void)state;
    td_rng rng = td_rng_seed(3);
    for (int round = 0; round < 400; round++) {
        const int n = 1 + (int)td_rng_below(&rng, 40), devices = 2 + (int)td_rng_below(&rng, 10);
        reference_flow f[64] = {{0}}, want[64];
        for (int i = 0; i < n; i++) {
            const int32_t src = (int32_t)td_rng_below(&rng, devices);
            const int32_t hop = 1 + (int32_t)td_rng_below(&rng, devices - 1);
            f[i] = (reference_flow){.src = src,
                                    .dst = (src + hop) % devices,
                                    .start_ns = td_rng_below(&rng, 500),
                                    .transfer_ns = 1 + td_rng_below(&rng, 300)};
        }
        memcpy(want, f, sizeof f);
        run(&one_node, f, n, devices);
        reference_share(want, n, devices);
        for (int i = 0; i < n; i++)
            if (f[i].end_ns != want[i].end_ns)
                fail_msg("round %d flow %d of %d: %lld, reference %lld", round, i, n,
                         (long long)f[i].end_ns, (long long)want[i].end_ns);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_cases), cmocka_unit_test(node_link_is_shared),
        cmocka_unit_test(cores_are_shared), cmocka_unit_test(random_flows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
