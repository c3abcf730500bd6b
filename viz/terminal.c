/* The compute lanes as text, for the end of a run. */
#include "viz/viz.h"

#include <stdio.h>
#include <string.h>

/* In each column stands what took most of its time, idle counted as a kind. */
static void lane_text(const trace *t, const trace_stream *s, int64_t t0, int64_t span, int columns,
                      const char *idle, td_text *out)
{
    uint32_t at = s->first;
    const uint32_t end = s->first + s->n;
    for (int c = 0; c < columns; c++) {
        const int64_t from = t0 + (int64_t)((double)span * c / columns);
        const int64_t to = t0 + (int64_t)((double)span * (c + 1) / columns);
        int64_t share[TASK_KIND_COUNT] = {0}, busy = 0;
        while (at < end && t->records[at].end_ns <= from) at++;
        for (uint32_t i = at; i < end && t->records[i].begin_ns < to; i++) {
            const trace_record *const r = &t->records[i];
            const int64_t b = r->begin_ns > from ? r->begin_ns : from;
            const int64_t e = r->end_ns < to ? r->end_ns : to;
            if (e <= b || r->kind == TASK_MARK) continue;
            share[r->kind] += e - b;
            busy += e - b;
        }
        int best = -1;
        int64_t most = to - from - busy;
        for (int k = 0; k < TASK_KIND_COUNT; k++) {
            if (share[k] <= 0 || share[k] < most || (share[k] == most && best >= 0)) continue;
            most = share[k];
            best = k;
        }
        if (best < 0) {
            td_text_add(out, idle);
        } else {
            const char letter = best < PASS_COUNT   ? pass_letter((pass_kind)best)
                                : best == TASK_PAIR ? '='
                                                    : 'o';
            td_text_addn(out, &letter, 1);
        }
    }
    td_text_add(out, "\n");
}

void viz_terminal(const trace *t, int width, bool unicode, td_text *out)
{
    int64_t t0 = 0, t1 = 1;
    for (uint64_t i = 0; i < t->n_records; i++) {
        if (t->records[i].begin_ns < t0) t0 = t->records[i].begin_ns;
        if (t->records[i].end_ns > t1) t1 = t->records[i].end_ns;
    }
    char label[32];
    const int digits = snprintf(label, sizeof label, "%u", t->n_ranks > 0 ? t->n_ranks - 1 : 0);
    const int head = digits + 5;
    const int columns = width > head + 10 ? width - head : 10;
    for (uint32_t s = 0; s < t->n_streams; s++) {
        const trace_stream *const stream = &t->streams[s];
        if (stream->kind != STREAM_COMPUTE) continue;
        (void)snprintf(label, sizeof label, "r%u", stream->rank);
        td_text_addf(out, "  %-*s  ", digits + 1, label);
        lane_text(t, stream, t0, t1 - t0, columns, unicode ? "\xc2\xb7" : ".", out);
    }
}
