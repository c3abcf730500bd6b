/* Reads traces back, as a stream: a document tree of a million events costs gigabytes. */
#include "schedules/trace.h"
#include "schedules/trace_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MIN_EVENT_BYTES = 40, MAX_GZIP_RATIO = 1100 };

/* What an event may say; args are folded in, absent ones keep their defaults. */
typedef struct trace_event {
    int64_t pid, tid, ts_ns, kind;
    int64_t begin_ns, end_ns, bytes, task, stage, mb, slice, pipe, peer, detail;
    int64_t stage2, mb2, slice2, pipe2;
    char ph, label[sizeof((trace_stream *)0)->name];
    uint8_t pass, pass2;
    bool names_thread, counts_memory;
} trace_event;

static const trace_event event_defaults = {.pid = -1,
                                           .tid = -1,
                                           .ts_ns = 0,
                                           .kind = -1,
                                           .begin_ns = INT64_MIN,
                                           .end_ns = INT64_MIN,
                                           .task = -1,
                                           .stage = -1,
                                           .mb = -1,
                                           .pipe = -1,
                                           .peer = -1,
                                           .stage2 = -1,
                                           .mb2 = -1,
                                           .pipe2 = -1,
                                           .pass = TASK_KIND_COUNT,
                                           .pass2 = PASS_COUNT};

typedef struct trace_in {
    trace *out;
    td_arena *a;
    td_err *err;
    int64_t max_events; /* that fit the file at all */
    int64_t version, n_ranks, n_streams, n_records, n_memory;
    size_t streams_cap, meta_cap, peaks_cap, n_peaks;
    uint32_t *first_stream; /* [n_ranks + 1]; streams of a rank are consecutive */
    trace_event event;
    bool events_seen;
} trace_in;

/* --- fields by key --- */

typedef struct int_field {
    const char *key;
    size_t at;
    int64_t min, max;
} int_field;

#define FIELD(type, key, member, min, max)                                                         \
    {                                                                                              \
        key, offsetof(type, member), min, max                                                      \
    }
#define INDEX_MAX (INT64_C(1) << 32)

static const int_field event_fields[] = {
    FIELD(trace_event, "pid", pid, 0, UINT32_MAX),
    FIELD(trace_event, "tid", tid, 0, UINT32_MAX),
    FIELD(trace_event, "kind", kind, 0, UINT8_MAX),
    FIELD(trace_event, "begin_ns", begin_ns, INT64_MIN / 4, INT64_MAX / 4),
    FIELD(trace_event, "end_ns", end_ns, INT64_MIN / 4, INT64_MAX / 4),
    FIELD(trace_event, "bytes", bytes, 0, INT64_MAX),
    FIELD(trace_event, "task", task, 0, UINT32_MAX),
    FIELD(trace_event, "stage", stage, -1, INT32_MAX),
    FIELD(trace_event, "mb", mb, -1, INT32_MAX),
    FIELD(trace_event, "slice", slice, 0, UINT16_MAX),
    FIELD(trace_event, "pipe", pipe, -1, INT32_MAX),
    FIELD(trace_event, "peer", peer, -1, INT32_MAX),
    FIELD(trace_event, "detail", detail, 0, UINT8_MAX),
    FIELD(trace_event, "stage2", stage2, -1, INT32_MAX),
    FIELD(trace_event, "mb2", mb2, -1, INT32_MAX),
    FIELD(trace_event, "slice2", slice2, 0, UINT16_MAX),
    FIELD(trace_event, "pipe2", pipe2, -1, INT32_MAX),
};

static const int_field head_fields[] = {
    FIELD(trace_in, "tandem_trace", version, 1, 1),
    FIELD(trace_in, "ranks", n_ranks, 0, UINT32_MAX - 1),
    FIELD(trace_in, "streams", n_streams, 0, UINT32_MAX - 1),
    FIELD(trace_in, "records", n_records, 0, UINT32_MAX - 1),
    FIELD(trace_in, "memory_points", n_memory, 0, INDEX_MAX),
};

static const int_field *field_of(const int_field *fields, size_t n, const char *key)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(fields[i].key, key) == 0) return &fields[i];
    return NULL;
}

static td_status read_field(json_in *r, const int_field *f, void *into)
{
    int64_t v = 0;
    TD_TRY(json_int(r, f->min, f->max, &v));
    memcpy((char *)into + f->at, &v, sizeof v);
    return TD_OK;
}

#define N_OF(array) (sizeof(array) / sizeof *(array))

/* --- head --- */

static td_status read_meta(json_in *r, void *ctx)
{
    trace_in *const t = ctx;
    TD_TRY(TD_GROW(t->a, t->out->meta, t->meta_cap, t->out->n_meta + 1, t->err));
    trace_meta *const m = &t->out->meta[t->out->n_meta];
    m->key = td_strdup(t->a, r->str.s);
    TD_TRY(json_take_string(r));
    m->value = td_strdup(t->a, r->str.s);
    if (m->key == NULL || m->value == NULL)
        return td_fail(t->err, TD_ENOMEM, "%s: out of memory", r->name);
    t->out->n_meta++;
    return TD_OK;
}

static td_status read_peak(json_in *r, void *ctx)
{
    trace_in *const t = ctx;
    TD_TRY(TD_GROW(t->a, t->out->peak_bytes, t->peaks_cap, t->n_peaks + 1, t->err));
    return json_int(r, 0, INT64_MAX, &t->out->peak_bytes[t->n_peaks++]);
}

static td_status read_head_member(json_in *r, void *ctx)
{
    trace_in *const t = ctx;
    static const struct {
        const char *key;
        size_t at;
    } counts[] = {
        {"stages", offsetof(trace, n_stages)}, {"pipes", offsetof(trace, n_pipes)},
        {"slices", offsetof(trace, n_slices)}, {"microbatches", offsetof(trace, n_microbatches)},
        {"chunks", offsetof(trace, chunks)},
    };
    for (size_t i = 0; i < N_OF(counts); i++) {
        if (strcmp(counts[i].key, r->str.s) != 0) continue;
        int64_t v = 0;
        TD_TRY(json_int(r, 0, INT32_MAX, &v));
        const int32_t count = (int32_t)v;
        memcpy((char *)t->out + counts[i].at, &count, sizeof count);
        return TD_OK;
    }
    if (strcmp(r->str.s, "step_ns") == 0) return json_int(r, 0, INT64_MAX, &t->out->step_ns);
    if (strcmp(r->str.s, "meta") == 0) return json_members(r, "the metadata", read_meta, t);
    if (strcmp(r->str.s, "peak_bytes") == 0) return json_items(r, "peak_bytes", read_peak, t);
    const int_field *const f = field_of(head_fields, N_OF(head_fields), r->str.s);
    return f != NULL ? read_field(r, f, t) : json_skip(r);
}

static td_status prepare(json_in *r, trace_in *t)
{
    trace *const o = t->out;
    if (t->version != 1)
        return json_bad(r,
                        "not a trace of this project: \"otherData\" with \"tandem_trace\": 1 must "
                        "come before \"traceEvents\"");
    /* counts are believed only as far as the file could hold them */
    if (t->n_records > t->max_events || t->n_memory > t->max_events || t->n_ranks > t->max_events ||
        t->n_streams > t->max_events)
        return json_bad(r, "the file is too short for the counts in \"otherData\"; was it cut?");
    if (o->peak_bytes != NULL && t->n_peaks != (size_t)t->n_ranks)
        return json_bad(r, "\"peak_bytes\" has not one number for each rank");
    o->n_ranks = (uint32_t)t->n_ranks;
    o->streams = TD_NEW_N(t->a, trace_stream, t->n_streams);
    o->records = TD_NEW_N(t->a, trace_record, t->n_records);
    o->memory = TD_NEW_N(t->a, trace_memory, t->n_memory);
    t->first_stream = TD_NEW_N(t->a, uint32_t, t->n_ranks + 1);
    if (o->streams == NULL || o->records == NULL || o->memory == NULL || t->first_stream == NULL)
        return td_fail(t->err, TD_ENOMEM, "%s: out of memory for %lld records", r->name,
                       (long long)t->n_records);
    t->events_seen = true;
    return TD_OK;
}

/* --- events --- */

static td_status read_arg(json_in *r, void *ctx)
{
    trace_event *const e = ctx;
    const int_field *const f = field_of(event_fields, N_OF(event_fields), r->str.s);
    if (f != NULL) return read_field(r, f, e);
    const bool first = strcmp(r->str.s, "pass") == 0;
    if (first || strcmp(r->str.s, "pass2") == 0) {
        TD_TRY(json_take_string(r));
        const uint8_t kind = trace_kind_of(r->str.s);
        if (kind == TASK_KIND_COUNT) return json_bad(r, "unknown kind of task");
        *(first ? &e->pass : &e->pass2) = kind;
        return TD_OK;
    }
    if (strcmp(r->str.s, "name") != 0) return json_skip(r);
    TD_TRY(json_take_string(r));
    if (r->str.len >= sizeof e->label && e->names_thread)
        return json_bad(r, "the name of a stream is too long");
    (void)snprintf(e->label, sizeof e->label, "%.39s", r->str.s);
    return TD_OK;
}

static td_status read_event_member(json_in *r, void *ctx)
{
    trace_event *const e = ctx;
    if (strcmp(r->str.s, "args") == 0) return json_members(r, "args", read_arg, e);
    if (strcmp(r->str.s, "ts") == 0) return json_scaled(r, 3, &e->ts_ns);
    if (strcmp(r->str.s, "name") == 0) {
        TD_TRY(json_take_string(r));
        e->names_thread = strcmp(r->str.s, "thread_name") == 0;
        e->counts_memory = strcmp(r->str.s, "memory") == 0;
        return TD_OK;
    }
    if (strcmp(r->str.s, "ph") == 0) {
        TD_TRY(json_take_string(r));
        e->ph = r->str.s[0];
        return TD_OK;
    }
    const int_field *const f = field_of(event_fields, 2, r->str.s);
    return f != NULL ? read_field(r, f, e) : json_skip(r);
}

static td_status add_stream(json_in *r, trace_in *t, const trace_event *e)
{
    trace *const o = t->out;
    if (e->kind < 0) return TD_OK; /* a further lane of a stream that has its name already */
    if (o->n_streams == (uint32_t)t->n_streams) return json_bad(r, "more streams than announced");
    if (o->n_streams > 0 && o->streams[o->n_streams - 1].rank > (uint32_t)e->pid)
        return json_bad(r, "streams are not grouped by rank");
    trace_stream *const s = &o->streams[o->n_streams++];
    s->rank = (uint32_t)e->pid;
    s->kind = (uint8_t)e->kind;
    memcpy(s->name, e->label, sizeof s->name);
    for (uint32_t rank = s->rank + 1; rank <= o->n_ranks; rank++)
        t->first_stream[rank] = o->n_streams;
    return TD_OK;
}

static td_status add_record(json_in *r, trace_in *t, const trace_event *e)
{
    trace *const o = t->out;
    const uint32_t first = t->first_stream[e->pid];
    const uint32_t n = t->first_stream[e->pid + 1] - first;
    if (n == 0 || e->tid < 1) return json_bad(r, "an event on a thread without a name");
    const uint32_t stream = first + (uint32_t)((e->tid - 1) % n);
    if (e->pass >= TASK_KIND_COUNT || e->begin_ns == INT64_MIN || e->end_ns == INT64_MIN ||
        e->task < 0)
        return json_bad(r, "an event without pass, task, begin_ns or end_ns");
    if (e->end_ns < e->begin_ns) return json_bad(r, "an event that ends before it begins");
    if (o->n_records == (uint64_t)t->n_records) return json_bad(r, "more events than announced");
    if (o->n_records > 0 && o->records[o->n_records - 1].stream > stream)
        return json_bad(r, "events are not in the order of their streams");
    o->records[o->n_records++] = (trace_record){.begin_ns = e->begin_ns,
                                                .end_ns = e->end_ns,
                                                .bytes = e->bytes,
                                                .task = (uint32_t)e->task,
                                                .stream = stream,
                                                .microbatch = (int32_t)e->mb,
                                                .stage = (int32_t)e->stage,
                                                .pipe = (int32_t)e->pipe,
                                                .slice = (uint16_t)e->slice,
                                                .kind = e->pass,
                                                .detail = (uint8_t)e->detail,
                                                .peer = (int32_t)e->peer,
                                                .microbatch2 = (int32_t)e->mb2,
                                                .stage2 = (int32_t)e->stage2,
                                                .pipe2 = (int32_t)e->pipe2,
                                                .slice2 = (uint16_t)e->slice2,
                                                .kind2 = e->pass2};
    o->streams[stream].n++;
    return TD_OK;
}

static td_status add_memory(json_in *r, trace_in *t, const trace_event *e)
{
    trace *const o = t->out;
    if (o->n_memory == (uint64_t)t->n_memory) return json_bad(r, "more counters than announced");
    const trace_memory m = {.at_ns = e->ts_ns, .bytes = e->bytes, .rank = (uint32_t)e->pid};
    if (o->n_memory > 0) {
        const trace_memory *const last = &o->memory[o->n_memory - 1];
        if (last->rank > m.rank || (last->rank == m.rank && last->at_ns > m.at_ns))
            return json_bad(r, "memory counters are not in order");
    }
    o->memory[o->n_memory++] = m;
    return TD_OK;
}

static td_status read_event(json_in *r, void *ctx)
{
    trace_in *const t = ctx;
    trace_event *const e = &t->event;
    *e = event_defaults;
    TD_TRY(json_members(r, "an event", read_event_member, e));
    const bool record = e->ph == 'X';
    const bool stream = e->ph == 'M' && e->names_thread;
    const bool memory = e->ph == 'C' && e->counts_memory;
    if (!record && !stream && !memory) return TD_OK;
    if (e->pid < 0 || e->pid >= t->n_ranks)
        return json_bad(r, "an event of a rank that is not there");
    if (stream) return add_stream(r, t, e);
    return record ? add_record(r, t, e) : add_memory(r, t, e);
}

static td_status read_top_member(json_in *r, void *ctx)
{
    trace_in *const t = ctx;
    if (strcmp(r->str.s, "otherData") == 0)
        return json_members(r, "otherData", read_head_member, t);
    if (strcmp(r->str.s, "traceEvents") != 0) return json_skip(r);
    if (t->events_seen) return json_bad(r, "\"traceEvents\" comes twice");
    TD_TRY(prepare(r, t));
    return json_items(r, "traceEvents", read_event, t);
}

/* --- the file --- */

static td_status read_all(json_in *r, trace_in *t)
{
    TD_TRY(json_members(r, "the trace", read_top_member, t));
    if (json_next(r) >= 0) return json_bad(r, "something follows the end of the trace");
    if (!t->events_seen) return json_bad(r, "there is no \"traceEvents\"");
    trace *const o = t->out;
    if (o->n_records != (uint64_t)t->n_records || o->n_streams != (uint32_t)t->n_streams ||
        o->n_memory != (uint64_t)t->n_memory)
        return json_bad(r, "events are missing: the counts in \"otherData\" say more");
    uint32_t at = 0;
    for (uint32_t s = 0; s < o->n_streams; s++) {
        o->streams[s].first = at;
        at += o->streams[s].n;
    }
    return TD_OK;
}

static td_status read_from(json_in *r, int64_t max_bytes, td_arena *a, trace *out, td_err *err)
{
    *out = (trace){0};
    trace_in t = {.out = out, .a = a, .err = err, .max_events = max_bytes / MIN_EVENT_BYTES};
    r->err = err;
    r->line = 1;
    const td_status st = read_all(r, &t);
    td_text_free(&r->str);
    return st;
}

td_status trace_read_bytes(const char *bytes, size_t len, const char *name, td_arena *a, trace *out,
                           td_err *err)
{
    json_in r = {.name = name, .text = bytes, .n = len};
    return read_from(&r, (int64_t)len, a, out, err);
}

td_status trace_read(const char *path, td_arena *a, trace *out, td_err *err)
{
    struct stat info;
    if (stat(path, &info) != 0) return td_cannot_open(path, err);
    if (S_ISDIR(info.st_mode)) return td_fail(err, TD_EUSAGE, "%s: is a folder", path);
    /* a pipe tells no size: then the counts in the file are taken as they are */
    const int64_t max_bytes =
        S_ISREG(info.st_mode) ? (int64_t)info.st_size * MAX_GZIP_RATIO : INT64_MAX;
    json_in r = {.name = path, .buf = TD_NEW_N(a, char, JSON_IN_BYTES)};
    if (r.buf == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    r.text = r.buf;
    r.file = gzopen(path, "rb");
    if (r.file == NULL) return td_cannot_open(path, err);
    const td_status st = read_from(&r, max_bytes, a, out, err);
    (void)gzclose(r.file);
    return st;
}
