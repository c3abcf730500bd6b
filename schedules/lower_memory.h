/* Inside the memory pass: buffers by what they hold, uses by task, offsets by lifetime. */
#ifndef SCHEDULES_LOWER_MEMORY_H
#define SCHEDULES_LOWER_MEMORY_H

#include "schedules/lower.h"

#define MEMORY_UNKNOWN (UINT32_MAX - 1)
enum {
    MEMORY_BUFFER_MAX = 0x1ffffff,
    MEMORY_PASS_USES = 12, /* and keys and values per slice */
    MEMORY_MEETING_USES = 2
};

/* Tensors of one (stage, microbatch, slice). Each lives on one row: inputs where they are consumed,
 * outputs where they are produced; a local hand-over is one buffer under two names. */
typedef enum memory_table {
    TABLE_ACT_IN,
    TABLE_ACT_OUT,
    TABLE_HANDOFF_IN,
    TABLE_GRAD_IN,
    TABLE_GRAD_OUT,
    TABLE_STASH,
    TABLE_STASH_W,
    TABLE_WSTASH,
    TABLE_TOKENS,       /* of a whole microbatch, as is DKV */
    TABLE_TOKENS_AGAIN, /* on a backward row of its own */
    TABLE_KV,           /* of a slice, written by F */
    TABLE_KV_AGAIN,     /* written by R on a row of its own */
    TABLE_DKV,
    TABLE_VOCAB_X, /* from here on of every row, where its number stands for the stage's */
    TABLE_VOCAB_DX,
    TABLE_VOCAB_STATS,
    TABLE_VOCAB_STASH,
    TABLE_VOCAB_TOKENS,
    TABLE_EMBED,
    TABLE_EMBED_GRAD,
    TABLE_COUNT
} memory_table;

/* A buffer of the whole run, of a stage instance (or of the rank: inst -1); shards that are put
 * together live for a part of it. */
typedef struct run_buffer {
    size_kind what;
    int32_t inst;
    uint32_t buffer;
} run_buffer;

typedef struct memory {
    const lowering *l;
    uint32_t *tables[TABLE_COUNT]; /* index within the row, PLAN_NONE: empty, MEMORY_UNKNOWN */
    class_table classes;           /* of buffers: kind holds the size_kind */
    int64_t *class_bytes;
    size_t cap_class_bytes;
    plan_buffer *buffers; /* row by row */
    size_t n_buffers, cap_buffers;
    size_t *row_first; /* [n_rows + 1] */
    uint32_t *uses;
    size_t n_uses;

    int32_t seq_len;
    int32_t row;     /* at hand */
    bool opens;      /* the walk is in the row's own compute stream, where buffers are made */
    run_buffer *run; /* row by row */
    size_t n_run, cap_run;
    size_t *run_first, *run_end; /* [n_rows] */
    uint32_t scratch;            /* of the row at hand */
    uint32_t from, to; /* compute positions in which the task at hand touches its buffers */
} memory;

/* Whether the backward of (stage, m, k) is split into I and W. */
bool memory_is_split(const memory *mem, int32_t stage, int32_t m, int32_t k);

/* Each gives the index of a buffer within the row at hand, making it at first sight; PLAN_NONE when
 * it holds no bytes. */
TD_MUST_USE td_status memory_tensor(memory *mem, memory_table table, int32_t stage, int32_t m,
                                    int32_t k, uint32_t *out, td_err *err);
TD_MUST_USE td_status memory_of_run(memory *mem, size_kind what, int32_t inst, uint32_t *out,
                                    td_err *err);
TD_MUST_USE td_status memory_scratch(memory *mem, size_kind what, int32_t inst, int32_t m,
                                     int32_t k, uint32_t *out, td_err *err);

/* Records a use of the task at hand and stretches the buffer's life over it. */
void memory_use(memory *mem, use_mode mode, use_role role, uint32_t buffer);

/* The uses of one task (lower_uses.c). */
TD_MUST_USE td_status memory_task_uses(memory *mem, plan *p, uint32_t task, td_err *err);

/* Sharded vocabulary layers (lower_uses_vocab.c): one use of a buffer of the row at hand; the uses
 * of S, T, E, G; those of a barrier's member. */
TD_MUST_USE td_status memory_vocab_use(memory *mem, use_mode mode, use_role role,
                                       memory_table table, int32_t m, int32_t k, td_err *err);
TD_MUST_USE td_status memory_vocab_pass(memory *mem, pass_kind kind, int32_t m, int32_t k,
                                        td_err *err);
TD_MUST_USE td_status memory_vocab_barrier(memory *mem, const plan *p, uint32_t task, td_err *err);

/* Gives every buffer of a rank its offset: run-long ones at the bottom, the others first-fit in the
 * order of birth. Sets arena_bytes and persistent_bytes (lower_offsets.c). */
TD_MUST_USE td_status memory_place(td_arena *a, plan *p, uint32_t rank, td_err *err);

#endif
