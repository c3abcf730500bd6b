/* Laws of trace files: what was written is read; what is damaged is refused, with its place. */
#include "t.h"
#include "viz_sample.h"

#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>

static void written_equals_read(void **state)
{
    (void)state;
    td_err err = {0};
    for (uint64_t seed = 0; seed < 300; seed++) {
        td_arena *const a = td_arena_new();
        const char *const path = seed % 2 == 0 ? "test_trace.json" : "test_trace.json.gz";
        trace t, back;
        viz_random(seed, a, &t);
        T_OK(trace_write(&t, path, &err), &err);
        T_OK(trace_read(path, a, &back, &err), &err);
        if (!viz_trace_equal(&t, &back)) fail_msg("seed %llu differs", (unsigned long long)seed);
        assert_int_equal(unlink(path), 0);
        td_arena_free(a);
    }
}

static void gzip_is_gzip(void **state)
{
    trace t;
    td_err err = {0};
    viz_sample(4, 8, 0, *state, &t);
    T_OK(trace_write(&t, "test_gzip.json.gz", &err), &err);
    char *bytes = NULL;
    size_t n = 0;
    T_OK(td_read_file(*state, "test_gzip.json.gz", 1 << 20, &bytes, &n, &err), &err);
    assert_true(n > 2 && (unsigned char)bytes[0] == 0x1f && (unsigned char)bytes[1] == 0x8b);
    assert_int_equal(unlink("test_gzip.json.gz"), 0);
}

/* A sample as text. */
static char *sample_text(td_arena *a, size_t *n)
{
    trace t;
    td_err err = {0};
    char *bytes = NULL;
    viz_sample(2, 3, 5, a, &t);
    T_OK(trace_write(&t, "test_text.json", &err), &err);
    T_OK(td_read_file(a, "test_text.json", 1 << 20, &bytes, n, &err), &err);
    assert_int_equal(unlink("test_text.json"), 0);
    return bytes;
}

static void every_cut_is_refused(void **state)
{
    size_t n = 0;
    char *const bytes = sample_text(*state, &n);
    td_err err = {0};
    trace t;
    T_OK(trace_read_bytes(bytes, n, "x.json", *state, &t, &err), &err);
    for (size_t cut = 0; cut + 2 < n; cut++) {
        td_arena *const a = td_arena_new();
        T_FAILS(trace_read_bytes(bytes, cut, "x.json", a, &t, &err), TD_EPARSE, &err, "x.json:");
        td_arena_free(a);
    }
}

/* A line of its own holds each event: one that is missing, and what is added, are found. */
static void counts_are_kept(void **state)
{
    size_t n = 0;
    char *const bytes = sample_text(*state, &n);
    static const char *const kinds[] = {"{\"ph\":\"X\"", "{\"ph\":\"C\""};
    td_err err = {0};
    trace t;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char *const copy = td_strdup(*state, bytes);
        char *const from = strstr(copy, kinds[i]);
        assert_non_null(from);
        char *const to = strchr(from, '\n') + 1;
        memmove(from, to, strlen(to) + 1);
        T_FAILS(trace_read_bytes(copy, strlen(copy), "x.json", *state, &t, &err), TD_EPARSE, &err,
                "events are missing");
    }
    char *const more = td_sprintf(*state, "%s{}", bytes);
    T_FAILS(trace_read_bytes(more, strlen(more), "x.json", *state, &t, &err), TD_EPARSE, &err,
            "follows the end");
}

/* Whatever single byte changes, the reader returns, and never with an index out of range. */
static void damage_stays_in_bounds(void **state)
{
    size_t n = 0;
    char *const bytes = sample_text(*state, &n);
    td_rng g = td_rng_seed(7);
    for (int i = 0; i < 4000; i++) {
        td_arena *const a = td_arena_new();
        td_err err = {0};
        trace t;
        const size_t at = (size_t)td_rng_below(&g, (int64_t)n);
        const char old = bytes[at];
        bytes[at] = (char)td_rng_below(&g, 256);
        if (trace_read_bytes(bytes, n, "x.json", a, &t, &err) == TD_OK) {
            for (uint64_t k = 0; k < t.n_records; k++)
                assert_true(t.records[k].stream < t.n_streams &&
                            t.streams[t.records[k].stream].rank < t.n_ranks);
        } else {
            assert_true(err.msg[0] != '\0');
        }
        bytes[at] = old;
        td_arena_free(a);
    }
}

static void errors_name_their_place(void **state)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "x.json:1:1: the file ends"},
        {"[]", "x.json:1:1: expected '{'"},
        {"{\"traceEvents\":[]}", "not a trace of this project"},
        {"{\"otherData\":{\"tandem_trace\":1,\n\"ranks\":1.5}}",
         "x.json:2:10: expected an integer"},
        {"{\"otherData\":{\"tandem_trace\":1,\"records\":99999999}, \"traceEvents\":[]}",
         "too short for the counts"},
        {"{\"otherData\":{\"tandem_trace\":1,\"ranks\":99999999999999999999}}", "64 bits"},
        {"{\"otherData\":{\"tandem_trace\":2}}", "out of range"},
        {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "nested too deeply"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        trace t;
        td_err err = {0};
        T_FAILS(trace_read_bytes(cases[i].text, strlen(cases[i].text), "x.json", *state, &t, &err),
                TD_EPARSE, &err, cases[i].part);
    }
    trace t;
    td_err err = {0};
    T_FAILS(trace_read("no/such/file.json", *state, &t, &err), TD_EUSAGE, &err, "cannot open");
    viz_sample(2, 2, 0, *state, &t);
    T_FAILS(trace_write(&t, "no/such/file.json", &err), TD_EIO, &err, "cannot write");
}

static void messages_pair_up(void **state)
{
    trace t;
    td_err err = {0};
    uint32_t *partner = NULL;
    viz_sample(4, 8, 3, *state, &t);
    T_OK(trace_match_messages(&t, *state, &partner, &err), &err);
    int pairs = 0;
    for (uint32_t i = 0; i < t.n_records; i++) {
        const trace_record *const r = &t.records[i];
        if (r->kind != TASK_SEND && r->kind != TASK_RECV) {
            assert_int_equal(partner[i], UINT32_MAX);
            continue;
        }
        const trace_record *const other = &t.records[partner[i]];
        assert_int_equal(partner[partner[i]], i);
        assert_int_equal(other->microbatch, r->microbatch);
        assert_int_equal(other->detail, r->detail);
        assert_int_equal(t.streams[other->stream].rank, r->peer);
        pairs += r->kind == TASK_SEND;
    }
    assert_int_equal(pairs, 2 * 3 * 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(written_equals_read),     T_TEST(gzip_is_gzip),
        T_TEST(every_cut_is_refused),    T_TEST(damage_stays_in_bounds),
        T_TEST(errors_name_their_place), T_TEST(messages_pair_up),
        T_TEST(counts_are_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
