/* The Schedule: where stage instances live and in which order each row runs its passes. Nothing
 * about communication, memory or time. One row is one pipeline position; data and tensor
 * parallelism multiply positions into ranks when the schedule is lowered. */
#ifndef SCHEDULES_SCHEDULE_H
#define SCHEDULES_SCHEDULE_H

#include "base/base.h"
#include "base/pass.h"

/* A cell is a pass, an idle slot (kept, for display), or one of the communication actions that a
 * torch.distributed.pipelining file may carry. Pass kinds come first and equal pass_kind. */
#define SCHED_ACTIONS(X)                                                                           \
    X(CELL_SEND_F, "SEND_F", 1)                                                                    \
    X(CELL_RECV_F, "RECV_F", 1)                                                                    \
    X(CELL_SEND_B, "SEND_B", 1)                                                                    \
    X(CELL_RECV_B, "RECV_B", 1)                                                                    \
    X(CELL_UNSHARD, "UNSHARD", 0)                                                                  \
    X(CELL_RESHARD, "RESHARD", 0)                                                                  \
    X(CELL_REDUCE_GRAD, "REDUCE_GRAD", 0)

#define X(kind, text, has_microbatch) kind,
typedef enum cell_kind {
    CELL_FIRST_ACTION = PASS_COUNT - 1,
    SCHED_ACTIONS(X) CELL_IDLE,
    CELL_KIND_COUNT
} cell_kind;
#undef X

/* One cell, or one member of an overlapped cell. */
typedef struct sched_cell {
    uint8_t kind;       /* pass_kind or cell_kind */
    uint8_t overlaps;   /* 1: forms one cell with the next entry of the row */
    uint16_t slice;     /* 0 where the schedule has one slice */
    uint16_t stage;     /* S, T name the last stage; E, G name stage 0 */
    uint16_t reserved;  /* zero, so that rows compare as bytes */
    int32_t microbatch; /* -1 where the action has none */
} sched_cell;

typedef struct sched_row {
    sched_cell *cells;
    int64_t n_cells;
} sched_row;

/* One direction through the stages, with its own copy of the weights. */
typedef struct sched_pipe {
    int32_t *forward_row;  /* [n_stages] the row that runs F, S, E of a stage */
    int32_t *backward_row; /* [n_stages] the row that runs R, B, I, W; equal to forward_row unless
                              forward and backward are disaggregated */
} sched_pipe;

typedef enum sched_handoff { HANDOFF_NONE, HANDOFF_DIRECT, HANDOFF_LAGGED } sched_handoff;
/* Forward rows get the weights from the backward rows once these have stepped; or both sum their
 * gradients (those of a forward row are zero) and step alike. */
typedef enum sched_weights { WEIGHTS_REFRESH, WEIGHTS_ALL_STEP } sched_weights;
typedef enum sched_vocab { VOCAB_NONE, VOCAB_1, VOCAB_2, VOCAB_INTERLACED } sched_vocab;
typedef enum sched_sync { SYNC_EAGER, SYNC_END } sched_sync;

/* "The gradient sync of `stage` on `row` starts just before `cell`", over the default policy. */
typedef struct sched_sync_at {
    int32_t row, stage;
    sched_cell cell;
} sched_sync_at;

/* What a search knows of the order it found; all zero for orders by rule. */
typedef struct sched_search {
    int64_t span_ns;  /* longest span of a rank, in the durations searched with */
    int64_t bound_ns; /* no order within the limits has a smaller one */
} sched_search;

typedef struct schedule {
    const char *name; /* for titles only: nothing after generation may branch on it */
    int32_t n_rows, n_stages, n_pipes, n_microbatches, n_slices;

    sched_row *rows;          /* [n_rows] */
    sched_pipe *pipes;        /* [n_pipes] */
    int32_t *microbatch_pipe; /* [n_microbatches] */

    /* Token lengths: slice_tokens[m * n_slices + k]; NULL when all slices are equal. */
    int32_t *slice_tokens;
    /* Layers of each stage, [n_stages]; NULL when left to the layer assignment. */
    int32_t *layers;

    int32_t tp_forward, tp_backward; /* tensor-parallel degrees of the roles; 0: the run's --tp */
    sched_handoff handoff;
    int32_t *credits; /* [n_stages] microbatches that a forward row may be ahead of the hand-offs
                         it sends; NULL: no bound, and lagged hand-offs do not wait */
    sched_weights weights; /* of disaggregated stages */
    sched_vocab vocab;
    bool vocab_edge; /* T of k waits for C0 of k+1, which brings its loss gradient along */
    sched_sync sync;
    sched_sync_at *sync_at;
    int32_t n_sync_at;
    bool validate;       /* optimizer step first, global check of the norm later */
    sched_search search; /* how the order was found; no part of the schedule's text */
} schedule;

static inline bool sched_is_pass(const sched_cell *c) { return c->kind < PASS_COUNT; }

/* Whether forward and backward of some stage live on different rows. */
bool sched_is_disaggregated(const schedule *s);
/* Ranks of one replica that step each weight: twins, and forward rows that step as well. */
int32_t sched_copies(const schedule *s);

/* --- schedule_text.c: the text form (DESIGN section 4) --- */

/* Reads the text form or a plain torch file (rows without headers: rows are ranks, stages are
 * placed where their passes are). `name` is for messages. */
TD_MUST_USE td_status sched_parse(const char *text, size_t len, const char *name, td_arena *a,
                                  schedule *out, td_err *err);
/* Prints the text form; parse(print(s)) equals s. */
void sched_print(const schedule *s, td_text *out);
/* One cell as in the text form: "2F7", "2F7.1" when n_slices > 1, "0UNSHARD", "". */
void sched_print_cell(const sched_cell *c, int32_t n_slices, td_text *out);
/* Deep equality of everything but the name. */
bool sched_equal(const schedule *a, const schedule *b);

/* --- torch_text.c: torch.distributed.pipelining's plain form --- */

/* Compute-only, or with communication actions; fails with the reason when that form cannot say
 * what the schedule says. Lines end with CR LF as torch writes them. */
TD_MUST_USE td_status torch_print(const schedule *s, bool with_comms, td_text *out, td_err *err);

/* --- schedule_check.c --- */

/* Is the schedule sound: every needed pass exactly once, on the row its stage lives on, in an order
 * that its data allows and that finishes? The error names row, pass and rule; for an order that
 * cannot finish it prints the cycle of waits. */
TD_MUST_USE td_status sched_check(const schedule *s, td_err *err);

/* --- registry.c --- */

typedef struct sched_option_value {
    const char *key, *value;
} sched_option_value;

/* Durations of one microbatch through 1/P of the model, and of one message, in ns. For generators
 * that search; all zero when the user gave none. */
typedef struct sched_times {
    int64_t pass_ns[PASS_COUNT];
    int64_t comm_ns;
} sched_times;

/* What one stage costs. */
typedef struct sched_stage_cost {
    int64_t pass_ns[PASS_COUNT];          /* of a whole microbatch; -1: not known */
    int64_t send_ns;                      /* of one activation tensor to the next rank */
    int64_t activation_bytes[PASS_COUNT]; /* what F, I and W add; 0 without a model */
    int64_t fixed_bytes;                  /* weights, gradients, optimizer */
    int64_t workspace_bytes;              /* of one pass at a time */
} sched_stage_cost;

/* Prices the model cut into n_stages stages (a multiple of P), one entry of out for each. */
typedef td_status (*sched_price)(const void *from, int32_t n_stages, sched_stage_cost *out,
                                 td_err *err);

/* What a generator is asked for. Zero fields take the family's default. */
typedef struct sched_request {
    int32_t pp, microbatches, chunks, slices;
    const int32_t *slice_tokens; /* [slices], or NULL */
    const sched_option_value *options;
    int32_t n_options;
    sched_times times;
    sched_price price; /* better than times where it is not NULL */
    const void *price_from;
    double activation_limit;       /* microbatch activations of a rank's share; 0: none */
    const char *activation_deltas; /* "F,I,W": what passes add to them; NULL: 1,0,-1 */
    int64_t memory_limit;          /* bytes of a rank; 0: none */
    uint64_t seed;
    double search_s; /* seconds that a search may take; 0: its default number of trials */
} sched_request;

typedef struct sched_option {
    const char *key, *values, *help; /* values: "integer", "0|1", ... with the default first */
} sched_option;

/* One schedule family: one file, one row of the registry. */
typedef struct sched_family {
    const char *name, *summary, *constraints;
    const sched_option *options; /* ends with a NULL key */
    bool obeys_memory_limit;     /* makes orders for a limit in bytes */
    bool cuts;                   /* takes microbatches in slices */
    /* Fills *out (not name). On TD_EUSAGE the message says what would be legal. */
    td_status (*generate)(const sched_request *q, td_arena *a, schedule *out, td_err *err);
} sched_family;

/* The registry, in the order of psim list; i < sched_family_count(). */
size_t sched_family_count(void);
const sched_family *sched_family_at(size_t i);
/* Finds a family by name; the error has a "did you mean". */
TD_MUST_USE td_status sched_find(const char *name, const sched_family **out, td_err *err);
/* Finds, generates and checks. */
TD_MUST_USE td_status sched_generate(const char *name, const sched_request *q, td_arena *a,
                                     schedule *out, td_err *err);

#endif
