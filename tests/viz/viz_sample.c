/* Sample traces: see the header. */
#include "viz_sample.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { F_NS = 1000000, B_NS = 2000000 };

typedef struct sample {
    int p, m;
    int64_t comm;
    int64_t *f_begin, *b_begin; /* [p * m] */
} sample;

/* The i-th pass of a rank under 1F1B: positive 1 + m for F, negative for B. */
static int pass_at(const sample *s, int rank, int i)
{
    const int warm = s->p - 1 - rank < s->m ? s->p - 1 - rank : s->m;
    if (i < warm) return 1 + i;
    const int k = i - warm, steady = 2 * (s->m - warm);
    if (k < steady) return k % 2 == 0 ? 1 + warm + k / 2 : -(1 + k / 2);
    return -(1 + (s->m - warm) + (k - steady));
}

static void solve(sample *s)
{
    /* relaxing to a fixed point: start times only grow and settle after at most all passes */
    for (bool changed = true; changed;) {
        changed = false;
        for (int r = 0; r < s->p; r++) {
            int64_t now = 0;
            for (int i = 0; i < 2 * s->m; i++) {
                const int pass = pass_at(s, r, i);
                const int mb = (pass > 0 ? pass : -pass) - 1;
                int64_t begin = now;
                int64_t ready = 0;
                if (pass > 0 && r > 0) ready = s->f_begin[(r - 1) * s->m + mb] + F_NS + s->comm;
                if (pass < 0 && r < s->p - 1)
                    ready = s->b_begin[(r + 1) * s->m + mb] + B_NS + s->comm;
                if (ready > begin) begin = ready;
                int64_t *const slot = (pass > 0 ? s->f_begin : s->b_begin) + r * s->m + mb;
                if (*slot != begin) changed = true;
                *slot = begin;
                now = begin + (pass > 0 ? F_NS : B_NS);
            }
        }
    }
}

static trace_record *add(trace *t, int64_t begin, int64_t end, uint8_t kind, int stage, int mb)
{
    trace_record *const r = &t->records[t->n_records];
    *r = (trace_record){.begin_ns = begin,
                        .end_ns = end,
                        .kind = kind,
                        .stage = stage,
                        .microbatch = mb,
                        .pipe = 0,
                        .peer = -1,
                        .microbatch2 = -1,
                        .stage2 = -1,
                        .pipe2 = -1,
                        .kind2 = PASS_COUNT,
                        .stream = t->n_streams - 1,
                        .task = (uint32_t)t->n_records};
    t->n_records++;
    t->streams[t->n_streams - 1].n++;
    return r;
}

static trace_stream *open_stream(trace *t, int rank, uint8_t kind, const char *name)
{
    trace_stream *const s = &t->streams[t->n_streams++];
    *s = (trace_stream){.rank = (uint32_t)rank, .kind = kind, .first = (uint32_t)t->n_records};
    (void)snprintf(s->name, sizeof s->name, "%s", name);
    return s;
}

static void messages(const sample *s, trace *t, int rank, int peer, bool send, bool forward)
{
    if (peer < 0 || peer >= s->p) return;
    open_stream(t, rank, send ? STREAM_SEND : STREAM_RECV, send ? "send" : "recv");
    const int from = send ? rank : peer;
    for (int mb = 0; mb < s->m; mb++) {
        const int64_t at =
            forward ? s->f_begin[from * s->m + mb] + F_NS : s->b_begin[from * s->m + mb] + B_NS;
        trace_record *const r = add(t, at, at + s->comm, send ? TASK_SEND : TASK_RECV, rank, mb);
        r->peer = peer;
        r->bytes = 1 << 20;
        r->detail = forward ? CHANNEL_ACT : CHANNEL_GRAD;
    }
}

void viz_sample(int p, int m, int64_t comm_ns, td_arena *a, trace *out)
{
    const size_t n = (size_t)p * (size_t)m;
    sample s = {.p = p,
                .m = m,
                .comm = comm_ns,
                .f_begin = TD_NEW_N(a, int64_t, n),
                .b_begin = TD_NEW_N(a, int64_t, n)};
    *out = (trace){.n_ranks = (uint32_t)p,
                   .n_stages = p,
                   .n_pipes = 1,
                   .n_slices = 1,
                   .n_microbatches = m,
                   .chunks = 1,
                   .records = TD_NEW_N(a, trace_record, n * 6),
                   .streams = TD_NEW_N(a, trace_stream, p * 5),
                   .memory = TD_NEW_N(a, trace_memory, n * 2 + 1),
                   .peak_bytes = TD_NEW_N(a, int64_t, p),
                   .meta = TD_NEW_N(a, trace_meta, 2),
                   .n_meta = 2};
    assert(s.f_begin && s.b_begin && out->records && out->streams && out->memory && out->meta);
    out->meta[0] = (trace_meta){"schedule", "1F1B"};
    out->meta[1] = (trace_meta){"times", "F=1,B=2"};
    solve(&s);
    for (int r = 0; r < p; r++) {
        open_stream(out, r, STREAM_COMPUTE, "compute");
        int64_t live = 0;
        for (int i = 0; i < 2 * m; i++) {
            const int pass = pass_at(&s, r, i), mb = (pass > 0 ? pass : -pass) - 1;
            const int64_t at = (pass > 0 ? s.f_begin : s.b_begin)[r * m + mb];
            const int64_t end = at + (pass > 0 ? F_NS : B_NS);
            (void)add(out, at, end, pass > 0 ? PASS_F : PASS_B, r, mb);
            live += pass > 0 ? 1 << 20 : -(1 << 20);
            if (live > out->peak_bytes[r]) out->peak_bytes[r] = live;
            out->memory[out->n_memory++] =
                (trace_memory){.at_ns = pass > 0 ? at : end, .bytes = live, .rank = (uint32_t)r};
            if (end > out->step_ns) out->step_ns = end;
        }
        messages(&s, out, r, r + 1, true, true);
        messages(&s, out, r, r - 1, false, true);
        messages(&s, out, r, r - 1, true, false);
        messages(&s, out, r, r + 1, false, false);
    }
}

bool viz_trace_equal(const trace *a, const trace *b)
{
    if (a->n_ranks != b->n_ranks || a->n_stages != b->n_stages || a->n_pipes != b->n_pipes ||
        a->n_slices != b->n_slices || a->n_microbatches != b->n_microbatches ||
        a->chunks != b->chunks || a->step_ns != b->step_ns || a->n_records != b->n_records ||
        a->n_streams != b->n_streams || a->n_memory != b->n_memory || a->n_meta != b->n_meta ||
        (a->peak_bytes == NULL) != (b->peak_bytes == NULL))
        return false;
    for (uint32_t i = 0; i < a->n_meta; i++)
        if (strcmp(a->meta[i].key, b->meta[i].key) != 0 ||
            strcmp(a->meta[i].value, b->meta[i].value) != 0)
            return false;
    for (uint32_t i = 0; i < a->n_streams; i++) {
        const trace_stream *const x = &a->streams[i], *const y = &b->streams[i];
        if (x->rank != y->rank || x->kind != y->kind || strcmp(x->name, y->name) != 0 ||
            x->first != y->first || x->n != y->n)
            return false;
    }
    for (uint64_t i = 0; i < a->n_records; i++) {
        const trace_record *const x = &a->records[i], *const y = &b->records[i];
        if (x->begin_ns != y->begin_ns || x->end_ns != y->end_ns || x->bytes != y->bytes ||
            x->task != y->task || x->stream != y->stream || x->microbatch != y->microbatch ||
            x->stage != y->stage || x->pipe != y->pipe || x->slice != y->slice ||
            x->kind != y->kind || x->detail != y->detail || x->peer != y->peer ||
            x->microbatch2 != y->microbatch2 || x->stage2 != y->stage2 || x->pipe2 != y->pipe2 ||
            x->slice2 != y->slice2 || x->kind2 != y->kind2)
            return false;
    }
    for (uint64_t i = 0; i < a->n_memory; i++)
        if (a->memory[i].at_ns != b->memory[i].at_ns || a->memory[i].bytes != b->memory[i].bytes ||
            a->memory[i].rank != b->memory[i].rank)
            return false;
    return a->peak_bytes == NULL ||
           memcmp(a->peak_bytes, b->peak_bytes, a->n_ranks * sizeof *a->peak_bytes) == 0;
}

static int maybe(td_rng *g, int n) { return (int)td_rng_below(g, n + 1) - 1; }

void viz_random(uint64_t seed, td_arena *a, trace *out)
{
    td_rng g = td_rng_seed(seed);
    const uint32_t ranks = 1 + (uint32_t)td_rng_below(&g, 5);
    *out = (trace){.n_ranks = ranks,
                   .n_stages = 7,
                   .n_pipes = 2,
                   .chunks = 2,
                   .n_slices = 1 + (int32_t)td_rng_below(&g, 3),
                   .n_microbatches = 9,
                   .step_ns = td_rng_below(&g, 1000000),
                   .records = TD_NEW_N(a, trace_record, ranks * 4 * 30),
                   .streams = TD_NEW_N(a, trace_stream, ranks * 4),
                   .memory = TD_NEW_N(a, trace_memory, ranks * 10),
                   .meta = TD_NEW_N(a, trace_meta, 3),
                   .n_meta = (uint32_t)td_rng_below(&g, 4)};
    assert(out->records && out->streams && out->memory && out->meta);
    out->meta[0] = (trace_meta){"", "quote \" back \\ tab \t bell \a"};
    out->meta[1] = (trace_meta){"A & <b>", "\xc2\xb5s \xe2\x86\x92 \xf0\x9f\x98\x80"};
    out->meta[2] = (trace_meta){"empty", ""};
    if (td_rng_below(&g, 2) == 0) out->peak_bytes = TD_NEW_N(a, int64_t, ranks);
    for (uint32_t r = 0; r < ranks; r++) {
        const int streams = (int)td_rng_below(&g, 5);
        for (int s = 0; s < streams; s++) {
            open_stream(out, (int)r, (uint8_t)td_rng_below(&g, 5), s == 1 ? "\"\\\n" : "lane");
            const int n = (int)td_rng_below(&g, 30);
            for (int i = 0; i < n; i++) {
                const int64_t begin = td_rng_below(&g, 5000) - 100;
                trace_record *const x =
                    add(out, begin, begin + td_rng_below(&g, 3000),
                        (uint8_t)td_rng_below(&g, TASK_KIND_COUNT), maybe(&g, 7), maybe(&g, 9));
                x->pipe = maybe(&g, 2);
                x->slice = (uint16_t)td_rng_below(&g, 3);
                x->detail = (uint8_t)td_rng_below(&g, 3);
                x->bytes = td_rng_below(&g, 1000);
                x->peer = maybe(&g, (int)ranks);
                if (x->kind == TASK_PAIR) {
                    x->kind2 = (uint8_t)td_rng_below(&g, PASS_COUNT);
                    x->stage2 = maybe(&g, 7);
                    x->microbatch2 = maybe(&g, 9);
                    x->slice2 = (uint16_t)td_rng_below(&g, 3);
                    x->pipe2 = maybe(&g, 2);
                }
            }
        }
        const int points = (int)td_rng_below(&g, 10);
        for (int i = 0; i < points; i++)
            out->memory[out->n_memory++] = (trace_memory){.at_ns = i * 1000 + td_rng_below(&g, 999),
                                                          .bytes = td_rng_below(&g, 99999),
                                                          .rank = r};
    }
}
