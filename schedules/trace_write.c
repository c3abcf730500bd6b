/* Traces as Chrome Trace Event JSON, one event a line, written as a stream. Perfetto colours a
 * slice by its name without digits, hence "F 12". Process = rank, thread = stream. */
#include "schedules/trace.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

/* --- buffered output: one zlib handle serves plain and compressed files --- */

enum { OUT_BYTES = 1 << 16, LANES = 16 };

typedef struct trace_out {
    gzFile file;
    size_t n;
    bool failed;
    char buf[OUT_BYTES];
} trace_out;

static void flush(trace_out *o)
{
    if (o->n > 0 && !o->failed && gzwrite(o->file, o->buf, (unsigned)o->n) != (int)o->n)
        o->failed = true;
    o->n = 0;
}

static void put_n(trace_out *o, const char *s, size_t n)
{
    while (n > 0) {
        if (o->n == OUT_BYTES) flush(o);
        const size_t room = OUT_BYTES - o->n;
        const size_t part = n < room ? n : room;
        memcpy(o->buf + o->n, s, part);
        o->n += part;
        s += part;
        n -= part;
    }
}

static void put(trace_out *o, const char *s) { put_n(o, s, strlen(s)); }

static void put_int(trace_out *o, int64_t v)
{
    char digits[24];
    size_t at = sizeof digits;
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do {
        digits[--at] = (char)('0' + u % 10);
        u /= 10;
    } while (u > 0);
    if (v < 0) digits[--at] = '-';
    put_n(o, digits + at, sizeof digits - at);
}

/* Nanoseconds as the microseconds that the format asks for, exactly. */
static void put_us(trace_out *o, int64_t ns)
{
    const uint64_t u = ns < 0 ? 0 - (uint64_t)ns : (uint64_t)ns;
    if (ns < 0) put(o, "-");
    put_int(o, (int64_t)(u / 1000));
    const unsigned part = (unsigned)(u % 1000);
    if (part == 0) return;
    const char frac[4] = {'.', (char)('0' + part / 100), (char)('0' + part / 10 % 10),
                          (char)('0' + part % 10)};
    put_n(o, frac, sizeof frac);
}

static void put_json(trace_out *o, const char *s)
{
    td_text t = {0};
    td_text_json(&t, s);
    if (t.failed)
        o->failed = true;
    else
        put_n(o, t.s, t.len);
    td_text_free(&t);
}

static void put_field(trace_out *o, const char *key, int64_t value)
{
    put(o, ",\"");
    put(o, key);
    put(o, "\":");
    put_int(o, value);
}

/* --- head --- */

static void write_head(trace_out *o, const trace *t)
{
    put(o, "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"tandem_trace\":1");
    put_field(o, "ranks", t->n_ranks);
    put_field(o, "stages", t->n_stages);
    put_field(o, "pipes", t->n_pipes);
    put_field(o, "slices", t->n_slices);
    put_field(o, "microbatches", t->n_microbatches);
    put_field(o, "chunks", t->chunks);
    put_field(o, "step_ns", t->step_ns);
    put_field(o, "streams", t->n_streams);
    put_field(o, "records", (int64_t)t->n_records);
    put_field(o, "memory_points", (int64_t)t->n_memory);
    if (t->peak_bytes != NULL) {
        put(o, ",\n\"peak_bytes\":[");
        for (uint32_t r = 0; r < t->n_ranks; r++) {
            if (r > 0) put(o, ",");
            put_int(o, t->peak_bytes[r]);
        }
        put(o, "]");
    }
    put(o, ",\n\"meta\":{");
    for (uint32_t i = 0; i < t->n_meta; i++) {
        put(o, i > 0 ? ",\n" : "\n");
        put_json(o, t->meta[i].key);
        put(o, ":");
        put_json(o, t->meta[i].value);
    }
    put(o, "}},\n\"traceEvents\":[\n");
}

/* Events of one thread must not overlap, but eager messages may: each record of a stream takes the
 * first free of its lanes, and a lane is a thread of its own. */
typedef struct lane_set {
    int64_t free_at[LANES];
    int n;
} lane_set;

static int lane_of(lane_set *l, const trace_record *r)
{
    for (int i = 0; i < l->n; i++) {
        if (l->free_at[i] > r->begin_ns) continue;
        l->free_at[i] = r->end_ns;
        return i;
    }
    if (l->n < LANES) {
        l->free_at[l->n] = r->end_ns;
        return l->n++;
    }
    return LANES - 1;
}

static void put_event(trace_out *o, const char *phase, uint32_t pid, uint32_t tid)
{
    put(o, ",\n{\"ph\":\"");
    put(o, phase);
    put(o, "\",\"pid\":");
    put_int(o, pid);
    put(o, ",\"tid\":");
    put_int(o, tid);
}

/* Thread 0 is the idle thread to Perfetto, so threads count from 1: lane by lane, in each lane the
 * rank's streams. */
static uint32_t tid_of(uint32_t n_streams, uint32_t stream, int lane)
{
    return 1 + stream + n_streams * (uint32_t)lane;
}

static void write_thread(trace_out *o, const trace_stream *s, uint32_t in_rank, uint32_t n_streams,
                         int lane)
{
    const uint32_t tid = tid_of(n_streams, in_rank, lane);
    put_event(o, "M", s->rank, tid);
    put(o, ",\"name\":\"thread_name\",\"args\":{\"name\":");
    put_json(o, s->name);
    if (lane == 0) put_field(o, "kind", s->kind);
    put(o, "}}");
    put_event(o, "M", s->rank, tid);
    put(o, ",\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":");
    put_int(o, in_rank * LANES + (uint32_t)lane);
    put(o, "}}");
}

static uint32_t rank_streams(const trace *t, uint32_t first)
{
    uint32_t n = first;
    while (n < t->n_streams && t->streams[n].rank == t->streams[first].rank) n++;
    return n - first;
}

static void write_names(trace_out *o, const trace *t)
{
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        char name[32];
        (void)snprintf(name, sizeof name, "rank %u", r);
        if (r > 0) put(o, ",\n");
        put(o, "{\"ph\":\"M\",\"pid\":");
        put_int(o, r);
        put(o, ",\"name\":\"process_name\",\"args\":{\"name\":");
        put_json(o, name);
        put(o, "}},\n{\"ph\":\"M\",\"pid\":");
        put_int(o, r);
        put(o, ",\"name\":\"process_sort_index\",\"args\":{\"sort_index\":");
        put_int(o, r);
        put(o, "}}");
    }
    for (uint32_t first = 0; first < t->n_streams;) {
        const uint32_t n = rank_streams(t, first);
        for (uint32_t i = 0; i < n; i++) {
            const trace_stream *const s = &t->streams[first + i];
            lane_set lanes = {.n = 1, .free_at = {INT64_MIN}};
            for (uint32_t k = 0; k < s->n; k++) (void)lane_of(&lanes, &t->records[s->first + k]);
            for (int lane = 0; lane < lanes.n; lane++) write_thread(o, s, i, n, lane);
        }
        first += n;
    }
}

/* --- records --- */

static void put_pass(trace_out *o, const trace *t, uint8_t kind, int32_t microbatch, uint16_t slice)
{
    put(o, trace_kind_name(kind));
    if (microbatch < 0) return;
    put(o, " ");
    put_int(o, microbatch);
    if (t->n_slices <= 1) return;
    put(o, ".");
    put_int(o, slice);
}

static void write_name(trace_out *o, const trace *t, const trace_record *r)
{
    put(o, ",\"name\":\"");
    switch (r->kind) {
    case TASK_PAIR:
        put_pass(o, t, r->detail, r->microbatch, r->slice);
        put(o, " + ");
        put_pass(o, t, r->kind2, r->microbatch2, r->slice2);
        break;
    case TASK_SEND:
    case TASK_RECV:
        put(o, r->kind == TASK_SEND ? "send " : "recv ");
        put(o, trace_class_name(r->detail));
        if (r->microbatch >= 0) {
            put(o, " ");
            put_int(o, r->microbatch);
        }
        break;
    case TASK_COLL: put(o, trace_purpose_name(r->detail)); break;
    case TASK_NORM: put(o, "norm"); break;
    case TASK_OPTIMIZER: put(o, "optimizer"); break;
    case TASK_MERGE: put(o, "merge"); break;
    case TASK_VERIFY: put(o, "verify"); break;
    case TASK_MARK: put(o, "mark"); break;
    default: put_pass(o, t, r->kind, r->microbatch, r->slice);
    }
    put(o, "\",\"cat\":\"");
    put(o, trace_kind_name(r->kind));
    put(o, "\"");
}

/* What equals the default is left out; the reader starts from the same defaults. */
static void write_args(trace_out *o, const trace_record *r)
{
    put(o, ",\"args\":{\"pass\":\"");
    put(o, trace_kind_name(r->kind));
    put(o, "\"");
    put_field(o, "begin_ns", r->begin_ns);
    put_field(o, "end_ns", r->end_ns);
    put_field(o, "task", r->task);
    if (r->stage != -1) put_field(o, "stage", r->stage);
    if (r->microbatch != -1) put_field(o, "mb", r->microbatch);
    if (r->slice != 0) put_field(o, "slice", r->slice);
    if (r->pipe != -1) put_field(o, "pipe", r->pipe);
    if (r->bytes != 0) put_field(o, "bytes", r->bytes);
    if (r->peer != -1) put_field(o, "peer", r->peer);
    if (r->detail != 0) put_field(o, "detail", r->detail);
    if (r->kind2 != PASS_COUNT) {
        put(o, ",\"pass2\":\"");
        put(o, trace_kind_name(r->kind2));
        put(o, "\"");
        if (r->stage2 != -1) put_field(o, "stage2", r->stage2);
        if (r->microbatch2 != -1) put_field(o, "mb2", r->microbatch2);
        if (r->slice2 != 0) put_field(o, "slice2", r->slice2);
        if (r->pipe2 != -1) put_field(o, "pipe2", r->pipe2);
    }
    put(o, "}}");
}

/* An arrow leaves where the send begins and lands in the last moment of the receive. */
static void write_flow(trace_out *o, const trace_record *r, uint32_t self, uint32_t partner,
                       uint32_t rank, uint32_t tid)
{
    const bool send = r->kind == TASK_SEND;
    put_event(o, send ? "s" : "f", rank, tid);
    put(o, send ? ",\"id\":" : ",\"bp\":\"e\",\"id\":");
    put_int(o, send ? self : partner);
    put(o, ",\"ts\":");
    put_us(o, send || r->end_ns <= r->begin_ns ? r->begin_ns : r->end_ns - 1);
    put(o, ",\"name\":\"message\",\"cat\":\"message\"}");
}

static void write_records(trace_out *o, const trace *t, const uint32_t *partner)
{
    for (uint32_t first = 0; first < t->n_streams;) {
        const uint32_t n = rank_streams(t, first);
        for (uint32_t i = 0; i < n; i++) {
            const trace_stream *const s = &t->streams[first + i];
            lane_set lanes = {.n = 1, .free_at = {INT64_MIN}};
            for (uint32_t k = 0; k < s->n; k++) {
                const uint32_t at = s->first + k;
                const trace_record *const r = &t->records[at];
                const uint32_t tid = tid_of(n, i, lane_of(&lanes, r));
                put_event(o, "X", s->rank, tid);
                put(o, ",\"ts\":");
                put_us(o, r->begin_ns);
                put(o, ",\"dur\":");
                put_us(o, r->end_ns - r->begin_ns);
                write_name(o, t, r);
                write_args(o, r);
                if (partner[at] != UINT32_MAX) write_flow(o, r, at, partner[at], s->rank, tid);
            }
        }
        first += n;
    }
}

static void write_memory(trace_out *o, const trace *t)
{
    for (uint64_t i = 0; i < t->n_memory; i++) {
        put_event(o, "C", t->memory[i].rank, 0);
        put(o, ",\"ts\":");
        put_us(o, t->memory[i].at_ns);
        put(o, ",\"name\":\"memory\",\"args\":{\"bytes\":");
        put_int(o, t->memory[i].bytes);
        put(o, "}}");
    }
}

/* --- the file --- */

static bool ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static td_status write_to(const trace *t, const uint32_t *partner, const char *tmp, trace_out *o,
                          const char *path, td_err *err)
{
    o->file = gzopen(tmp, ends_with(path, ".gz") ? "wb6" : "wbT");
    if (o->file == NULL) return td_fail(err, TD_EIO, "%s: cannot write: %s", path, strerror(errno));
    write_head(o, t);
    write_names(o, t);
    write_records(o, t, partner);
    write_memory(o, t);
    put(o, "\n]}\n");
    flush(o);
    errno = 0;
    if (gzclose(o->file) != Z_OK) o->failed = true;
    const bool in_place = strcmp(tmp, path) == 0;
    if (!o->failed && (in_place || rename(tmp, path) == 0)) return TD_OK;
    const int why = errno;
    if (!in_place) (void)unlink(tmp);
    return td_fail(err, TD_EIO, "%s: cannot write: %s", path,
                   why != 0 ? strerror(why) : "the disk may be full");
}

td_status trace_write(const trace *t, const char *path, td_err *err)
{
    char tmp[PATH_MAX];
    const int n = td_is_device(path)
                      ? snprintf(tmp, sizeof tmp, "%s", path)
                      : snprintf(tmp, sizeof tmp, "%s.%ld.tmp", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof tmp)
        return td_fail(err, TD_EIO, "%s: file name too long", path);
    td_arena *const scratch = td_arena_new();
    trace_out *const o = scratch != NULL ? TD_NEW(scratch, trace_out) : NULL;
    uint32_t *partner = NULL;
    td_status st = o == NULL ? td_fail(err, TD_ENOMEM, "%s: out of memory", path)
                             : trace_match_messages(t, scratch, &partner, err);
    if (st == TD_OK) st = write_to(t, partner, tmp, o, path, err);
    td_arena_free(scratch);
    return st;
}
