/* Schedules and whole lowered plans written by hand, from the papers' orders and the rules of
 * lowering: every stream with its tasks in order, each with (gate, join), and what ranks keep.
 * Messages are stage:microbatch of the stage that takes them, "-" is the start or the end of the
 * period, "rank R keeps" lists bytes(birth, death) of each buffer and the rank's peak. */
#include "schedules/plan.h"
#include "t.h"

#include <stdlib.h>

static const char *const files[] = {
    "bitpipe_p2_m2.txt",
    "seq1f1b_zb_p2_m2_s2.txt",
    "vocab2_p2_m3.txt",
    "fbd_merged_p2_m3.txt",
};

/* --- a plan as such lines --- */

static void put_pass(const plan *p, td_text *out, uint8_t kind, int32_t stage, uint32_t m,
                     uint16_t k)
{
    td_text_addf(out, "%d%c%u", stage, pass_letter((pass_kind)kind), m);
    if (p->n_slices > 1) td_text_addf(out, ".%u", (unsigned)k);
}

static void put_compute(const plan *p, td_text *out, uint32_t task)
{
    if (task == PLAN_NONE) {
        td_text_add(out, "-");
        return;
    }
    const plan_task *const t = &p->tasks[task];
    if (t->kind == TASK_MARK) td_text_add(out, "mark");
    if (t->kind == TASK_NORM) td_text_add(out, "norm");
    if (t->kind == TASK_OPTIMIZER) td_text_add(out, "step");
    if (t->kind >= PASS_COUNT) return;
    int32_t stage = p->insts[p->classes[t->cls].inst].stage;
    if (t->kind == PASS_S || t->kind == PASS_T) stage = p->n_stages - 1;
    if (t->kind == PASS_E || t->kind == PASS_G) stage = 0;
    put_pass(p, out, t->kind, stage, t->microbatch, t->slice);
}

static void put_ends(const plan *p, td_text *out, uint32_t gate, uint32_t join)
{
    td_text_add(out, "(");
    put_compute(p, out, gate);
    td_text_add(out, ",");
    put_compute(p, out, join);
    td_text_add(out, ")");
}

static void put_coll(const plan *p, td_text *out, const plan_task *t)
{
    static const char *const names[PURPOSE_COUNT] = {
        [PURPOSE_GRAD_SYNC] = "gradients",
        [PURPOSE_NORM] = "norm",
        [PURPOSE_C0] = "X",
        [PURPOSE_C1] = "statistics",
        [PURPOSE_EMBED_SUM] = "embedding",
        [PURPOSE_EMBED_GRAD] = "embedding-gradient",
    };
    const plan_class *const c = &p->classes[t->cls];
    if (names[c->purpose] == NULL) fail_msg("collective of purpose %d", c->purpose);
    td_text_addf(out, " %s", names[c->purpose]);
    if (c->purpose == PURPOSE_GRAD_SYNC) td_text_addf(out, " %d", p->insts[c->inst].stage);
    if (t->microbatch != PLAN_NONE) td_text_addf(out, " %u", t->microbatch);
}

static void put_stream(const plan *p, td_text *out, const plan_stream *s)
{
    static const char *const classes[] = {"activations", "gradients", "hand-offs", "weights",
                                          "state"};
    td_text_addf(out, "rank %u ", s->rank);
    const bool sends = s->kind == STREAM_SEND;
    if (s->kind == STREAM_COMPUTE) td_text_add(out, "compute:");
    if (sends || s->kind == STREAM_RECV) {
        const plan_channel *const c = &p->channels[s->channel];
        td_text_addf(out, "%s %s %s %u:", sends ? "sends" : "takes", classes[c->cls],
                     sends ? "to" : "from", sends ? c->dst : c->src);
    }
    if (s->kind == STREAM_COLL) {
        const plan_group *const g = &p->groups[s->channel];
        td_text_add(out, "with");
        for (uint32_t i = 0; i < g->n_members; i++) {
            const uint32_t member = p->group_members[g->first_member + i];
            if (member != s->rank) td_text_addf(out, " %u", member);
        }
        td_text_add(out, ":");
    }
    for (uint32_t i = s->first_task; i < s->first_task + s->n_tasks; i++) {
        const plan_task *const t = &p->tasks[i];
        if (s->kind == STREAM_COLL) put_coll(p, out, t);
        if (sends || s->kind == STREAM_RECV) {
            td_text_addf(out, " %d:%u", p->insts[p->classes[t->cls].inst].stage, t->microbatch);
            if (p->n_slices > 1) td_text_addf(out, ".%u", (unsigned)t->slice);
        }
        if (s->kind == STREAM_COMPUTE) {
            td_text_add(out, " ");
            put_compute(p, out, i);
            continue;
        }
        put_ends(p, out, t->gate, t->join);
    }
    td_text_add(out, "\n");
}

static void put_memory(const plan *p, td_text *out, uint32_t rank)
{
    const plan_rank *const r = &p->ranks[rank];
    const uint32_t first = plan_compute(p, rank)->first_task;
    if (r->n_buffers == 0) return;
    td_text_addf(out, "rank %u keeps:", rank);
    for (uint32_t b = r->first_buffer; b < r->first_buffer + r->n_buffers; b++) {
        td_text_addf(out, " %lld", (long long)p->bclasses[p->buffers[b].bclass].bytes);
        put_ends(p, out, first + p->buffers[b].birth, first + p->buffers[b].death);
    }
    td_text_addf(out, " = %lld\n", (long long)r->arena_bytes);
}

/* The lines of a rank: compute, then each class of messages, then collectives, then memory. */
static void put_rank(const plan *p, td_text *out, uint32_t rank)
{
    static const stream_kind kinds[] = {STREAM_SEND, STREAM_RECV};
    const plan_rank *const r = &p->ranks[rank];
    const plan_stream *const s = &p->streams[r->first_stream];
    uint32_t left = r->n_streams;
    for (uint32_t i = 0; i < r->n_streams; i++)
        if (s[i].kind == STREAM_COMPUTE) put_stream(p, out, &s[i]), left--;
    for (int cls = CHANNEL_ACT; cls <= CHANNEL_STATE; cls++)
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
            for (uint32_t i = 0; i < r->n_streams; i++)
                if (s[i].kind == kinds[k] && p->channels[s[i].channel].cls == cls)
                    put_stream(p, out, &s[i]), left--;
    for (uint32_t i = 0; i < r->n_streams; i++)
        if (s[i].kind == STREAM_COLL) put_stream(p, out, &s[i]), left--;
    assert_int_equal(left, 0);
    put_memory(p, out, rank);
}

/* --- the files --- */

typedef struct hand_case {
    char family[32];
    int32_t pp, microbatches, slices, tp, tokens;
    char key[32], value[32]; /* an option; empty: none */
    const char *csv, *plan;  /* two parts of the file */
    size_t csv_len;
} hand_case;

static void read_flags(hand_case *h, char *line)
{
    char *save = NULL;
    (void)snprintf(h->family, sizeof h->family, "%s", strtok_r(line, " ", &save));
    for (char *flag = strtok_r(NULL, " ", &save); flag != NULL; flag = strtok_r(NULL, " ", &save)) {
        char *const value = strtok_r(NULL, " ", &save);
        assert_non_null(value);
        if (strcmp(flag, "--pp") == 0) h->pp = atoi(value);
        if (strcmp(flag, "--microbatches") == 0) h->microbatches = atoi(value);
        if (strcmp(flag, "--slices") == 0) h->slices = atoi(value);
        if (strcmp(flag, "--opt") == 0)
            assert_int_equal(sscanf(value, "%31[^=]=%31s", h->key, h->value), 2);
    }
}

static hand_case read_case(td_arena *a, const char *file)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/by_hand/%s", TD_FIXTURES, file);
    hand_case h = {.tp = 1};
    char *text = NULL;
    size_t len = 0;
    td_err err = {0};
    T_OK(td_read_file(a, path, 1 << 20, &text, &len, &err), &err);
    for (char *line = text; line != NULL && h.plan == NULL;) {
        char *const end = strchr(line, '\n');
        assert_non_null(end);
        *end = '\0';
        if (strncmp(line, "generate ", 9) == 0) read_flags(&h, line + 9);
        if (strncmp(line, "tp ", 3) == 0) h.tp = atoi(line + 3);
        if (strncmp(line, "tokens ", 7) == 0) h.tokens = atoi(line + 7);
        if (strcmp(line, "schedule") == 0) {
            h.csv = end + 1;
            char *const plan_line = strstr(end + 1, "\nplan\n");
            assert_non_null(plan_line);
            h.csv_len = (size_t)(plan_line + 1 - h.csv);
            h.plan = plan_line + 6;
        }
        line = end + 1;
    }
    assert_non_null(h.plan);
    return h;
}

static void check_case(td_arena *a, const char *file)
{
    const hand_case h = read_case(a, file);
    td_err err = {0};
    schedule written, made;
    T_OK(sched_parse(h.csv, h.csv_len, file, a, &written, &err), &err);
    T_OK(sched_check(&written, &err), &err);
    const sched_option_value option = {h.key, h.value};
    const sched_request q = {.pp = h.pp,
                             .microbatches = h.microbatches,
                             .slices = h.slices,
                             .options = &option,
                             .n_options = h.key[0] == '\0' ? 0 : 1};
    T_OK(sched_generate(h.family, &q, a, &made, &err), &err);
    if (!sched_equal(&written, &made)) fail_msg("%s: %s makes another schedule", file, h.family);

    const sizes z = {.n_stages = written.n_stages,
                     .chunks = written.n_stages / h.pp,
                     .run = {.seq_len = h.tokens}};
    const lower_options o = {.sizes = &z, .dp = 1, .tp = h.tp, .lookahead = 1};
    plan p;
    T_OK(plan_lower(&written, &o, a, &p, &err), &err);
    td_text got = {0};
    for (uint32_t r = 0; r < p.n_ranks; r++) put_rank(&p, &got, r);
    assert_false(got.failed);
    assert_string_equal(got.s, h.plan);
    td_text_free(&got);
}

static void test_plans_by_hand(void **state)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) check_case(*state, files[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {T_TEST(test_plans_by_hand)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
