/* Inside pexec bench: how something is measured until it is known well enough. */
#ifndef EXEC_BENCH_H
#define EXEC_BENCH_H

#include "costmodel/samples.h"
#include "exec/pexec.h"

enum { BENCH_ROUNDS = 1000, BENCH_CORES = 64, BENCH_HELD = 64 };

/* --- bench_loop.c: repeats --- */

/* A measurement is repeated `repeats` times, and then until half the 95 % interval of its median is
 * at most `precision` of it, or the deadline has passed; after that three times are enough. */
typedef struct bench_limits {
    double precision;
    int64_t repeats, deadline_ns;
} bench_limits;

typedef struct bench_series {
    int64_t ns[BENCH_ROUNDS];
    size_t n;
    bool enough;
} bench_series;

/* Notes one measurement, and whether that is enough. */
void bench_note(bench_series *s, const bench_limits *l, int64_t ns);

/* How the whole bench went. */
typedef struct bench_count {
    int64_t samples, loose; /* loose: less precise than asked for */
} bench_count;

/* Pieces of work that are measured together, round by round, so that drifts hit all alike; each
 * alone and, when there are several workers, with all of them at work. */
typedef struct bench_set {
    const sample *what; /* [n] without numbers */
    int n;
    int workers; /* buffers that there are to work on at once */
    /* Does piece `i` once on a worker's buffers and returns what it took, without what must come
     * before it. */
    int64_t (*run)(void *self, int worker, int i);
    void *self;
} bench_set;

/* Measures and adds the samples of a set. */
TD_MUST_USE td_status bench_measure(const bench_set *set, const bench_limits *l, samples *out,
                                    bench_count *count, td_err *err);
/* Adds the sample of a series. */
TD_MUST_USE td_status bench_add(const sample *what, bench_series *s, const bench_limits *l,
                                samples *out, bench_count *count, td_err *err);

/* --- what there is to measure --- */

typedef struct bench {
    const model_desc *m;
    run_shape run;
    samples out;
    bench_limits limits;
    bench_count count;
    int cores; /* workers: 1 on a device */
    k_ctx *ctx[BENCH_CORES];
    device *device; /* what computes; NULL: the cores */
    void *stream, *from, *to;
    void *held[BENCH_HELD]; /* memory of the device for what is being measured */
    int n_held;
    int64_t issue_ns; /* how long work was being given to the device */
    td_err failed;    /* what the device said; TD_OK: nothing */
    team *team;       /* NULL: ranks are threads */
    sample_link link;
} bench;

/* A part of a model as a stage of its own, in the bench's `run`. */
typedef struct bench_part {
    stage_part part;
    stage_desc stage;
    int64_t seq, prefix; /* prefix > 0: a slice behind so many tokens */
    bool step;           /* its optimizer step and norm too */
} bench_part;

/* bench_stage.c: F, B, I, W, R of a part. */
TD_MUST_USE td_status bench_stage(bench *b, const run_shape *run, const bench_part *part,
                                  td_err *err);
/* bench_vocab.c: S, T, E, G of one of so many shards. */
TD_MUST_USE td_status bench_vocab(bench *b, int32_t shards, bool fused, int64_t seq, td_err *err);
/* bench_products.c: the matrix products of the model's layers and head for so many rows; copies. */
TD_MUST_USE td_status bench_products(bench *b, int64_t rows, td_err *err);
TD_MUST_USE td_status bench_copies(bench *b, td_err *err);
/* bench_wire.c: one message between ranks 0 and 1, half of a round trip; one sum of the first
 * `members` ranks. With a team all processes call them. */
TD_MUST_USE td_status bench_message(bench *b, int64_t bytes, td_err *err);
TD_MUST_USE td_status bench_sum(bench *b, int32_t members, int64_t bytes, td_err *err);

/* --- bench_place.c: where the bench computes --- */

/* Lets ctx[0] compute on the device. */
TD_MUST_USE td_status bench_place_open(bench *b, td_err *err);
/* Frees what lies on the device; what lies in the cores' memory is the arena's. */
void bench_place_clear(bench *b);
/* Of weights and activations. */
int64_t bench_element_bytes(const bench *b);
/* Memory that the bench computes on; NULL: there is not enough. Random numbers of a weight's size,
 * never all 0, as floats or as elements; a copy of bytes. */
float *bench_numbers(bench *b, td_arena *a, int64_t n);
float *bench_elements(bench *b, td_arena *a, int64_t n);
void *bench_put(bench *b, td_arena *a, const void *from, int64_t bytes);
/* The time of what is done between them. */
int64_t bench_begin(bench *b);
int64_t bench_end(bench *b, int64_t begin);

/* --- bench_machine.c: where it ran --- */

/* What all processes of the machine, and this one, have worked so far. */
typedef struct bench_load {
    int64_t at_ns;
    double all_s, own_s; /* all_s < 0: not known */
} bench_load;
bench_load bench_load_now(void);
/* Cores that were busy with other work since then; below 0: not known. */
double bench_other_load(const bench_load *since);

/* Headers: device, cores, versions, clocks, date, the timer's resolution, how much was asked for.
 */
TD_MUST_USE td_status bench_headers(bench *b, const char *blas, td_err *err);

#endif
