/* The Trace: a Plan with times, contract 2. On disk it is Chrome Trace Event JSON (optionally
 * gzipped) with our fields in args, written and read as a stream. */
#ifndef SCHEDULES_TRACE_H
#define SCHEDULES_TRACE_H

#include "schedules/plan.h"

/* One task that ran. Records are in stream order, streams grouped by rank. */
typedef struct trace_record {
    int64_t begin_ns, end_ns;
    int64_t bytes;       /* messages and collectives */
    uint32_t task;       /* index in the plan it came from */
    uint32_t stream;     /* index in trace.streams */
    int32_t microbatch;  /* -1 where none */
    int32_t stage, pipe; /* -1 where none; pair: of the first member */
    uint16_t slice;
    uint8_t kind;   /* task_kind */
    uint8_t detail; /* messages: channel_class; collectives: coll_purpose; pair: pass_kind of
                       the first member */
    int32_t peer;   /* messages: the other rank; else -1 */
    /* second member of a pair; kind2 is PASS_COUNT where there is none */
    int32_t microbatch2, stage2, pipe2;
    uint16_t slice2;
    uint8_t kind2;
} trace_record;

typedef struct trace_stream {
    uint32_t rank;
    uint8_t kind;      /* stream_kind */
    char name[40];     /* "compute", "send ->3 activations" */
    uint32_t first, n; /* records */
} trace_stream;

/* Memory in use on a rank from a moment on; moments ascend per rank. */
typedef struct trace_memory {
    int64_t at_ns, bytes;
    uint32_t rank;
} trace_memory;

typedef struct trace_meta {
    const char *key, *value;
} trace_meta;

typedef struct trace {
    uint32_t n_ranks;
    int32_t n_stages, n_pipes, n_slices, n_microbatches, chunks;
    int64_t step_ns;
    trace_record *records;
    uint64_t n_records;
    trace_stream *streams;
    uint32_t n_streams;
    trace_memory *memory;
    uint64_t n_memory;
    trace_meta *meta;
    uint32_t n_meta;     /* producer, version, schedule, options, pass times ... */
    int64_t *peak_bytes; /* [n_ranks], or NULL */
} trace;

/* What a backend gives back: times per task of the plan. */
typedef struct task_times {
    int64_t *begin_ns, *end_ns; /* [n_tasks] */
} task_times;

/* --- plan_repeat.c: periods that overlap, under post-validation --- */

/* The plan n times behind itself: each rank begins a copy when its compute stream has ended the one
 * before. Memory and buffer uses are left out; other arrays are shared with p or come from `a`. */
TD_MUST_USE td_status plan_repeat(const plan *p, uint32_t n, td_arena *a, plan *out, td_err *err);
/* Its times, from those of each period, of[n], which are relative to begin_ns[n]. */
TD_MUST_USE td_status plan_repeat_times(const plan *p, uint32_t n, const task_times *of,
                                        const int64_t *begin_ns, td_arena *a, task_times *out,
                                        td_err *err);
/* Refuses to show n periods of a plan whose periods do not overlap. */
TD_MUST_USE td_status plan_check_periods(const plan *p, int64_t n, td_err *err);

/* Joins plan and times. With memory: the curve of each rank (of the arena in use). */
TD_MUST_USE td_status trace_build(const plan *p, const task_times *t, bool with_memory,
                                  const trace_meta *meta, uint32_t n_meta, td_arena *a, trace *out,
                                  td_err *err);
/* Writes beside the name and renames; a name that ends in .gz is compressed. */
TD_MUST_USE td_status trace_write(const trace *t, const char *path, td_err *err);
/* Reads back exactly what trace_write wrote, compressed or not. TD_EPARSE: "path:line:col: ...". */
TD_MUST_USE td_status trace_read(const char *path, td_arena *a, trace *out, td_err *err);
/* The same from plain bytes; `name` is for messages. */
TD_MUST_USE td_status trace_read_bytes(const char *bytes, size_t len, const char *name, td_arena *a,
                                       trace *out, td_err *err);

/* For each record the index of the other end of its message, UINT32_MAX where there is none: the
 * n-th send and the n-th receive of a (source, destination, class) belong together. */
TD_MUST_USE td_status trace_match_messages(const trace *t, td_arena *a, uint32_t **partner,
                                           td_err *err);

/* "F", "SEND", ...; the kind of a name, or TASK_KIND_COUNT. */
const char *trace_kind_name(uint8_t kind);
uint8_t trace_kind_of(const char *name);
const char *trace_class_name(uint8_t channel);   /* "activations": of a channel_class */
const char *trace_purpose_name(uint8_t purpose); /* "gradient sync": of a coll_purpose */
/* The value of a key of the metadata, or NULL. */
const char *trace_meta_get(const trace *t, const char *key);

/* --- metrics.c: from (plan, times) --- */

typedef struct rank_metrics {
    int64_t busy_ns, first_ns,
        last_ns; /* of compute tasks that take part in training a microbatch */
    int64_t peak_bytes;
    double peak_activations; /* DESIGN section 10 */
} rank_metrics;

typedef struct plan_metrics {
    int64_t step_ns;
    double bubble_frac, span_bubble_frac;
    int64_t tasks, messages, message_bytes;
    int64_t collectives, collective_bytes; /* each once, with the payload of one member */
    int64_t local_handovers;               /* tensors that go from stage to stage within a rank */
    rank_metrics *ranks;                   /* [n_ranks] */
} plan_metrics;

/* What F, I and W (B counts as I and W together) add to the count of live activations. */
typedef struct activation_deltas {
    double f, i, w;
} activation_deltas;

/* "1,0,-1"; NULL: that. `what` stands before it in messages. Errors: TD_EUSAGE. */
TD_MUST_USE td_status activation_deltas_parse(const char *what, const char *text,
                                              activation_deltas *out, td_err *err);

/* Does every rank keep at most `limit` microbatch activations of its share, each counted as d.f?
 * 0: no limit. Errors: TD_EPLAN with the least limit that holds. */
TD_MUST_USE td_status plan_check_activations(const plan *p, double limit, activation_deltas d,
                                             td_err *err);

/* Step, bubbles and counts of a plan that ran at these times; `d` is how live activations are
 * counted. out->ranks is from `a`. */
TD_MUST_USE td_status metrics_of(const plan *p, const task_times *t, activation_deltas d,
                                 td_arena *a, plan_metrics *out, td_err *err);

#endif
