/* What the zero-bubble schedules share: orders of split passes, the durations and memory that a
 * search is given, and the replay that times an order. */
#ifndef SCHEDULES_ZB_CORE_H
#define SCHEDULES_ZB_CORE_H

#include "schedules/schedule.h"

/* Kinds of passes in an order. ZB_B is a whole backward, which searches never use. */
typedef enum zb_kind { ZB_F, ZB_I, ZB_W, ZB_B, ZB_KINDS } zb_kind;

/* One pass of an order is a code: kind and chunk. Its microbatch is the number of equal codes
 * before it on its rank, because each kind of each chunk goes through the microbatches in order. */
static inline uint8_t zb_code(int kind, int chunk) { return (uint8_t)(kind * 2 + chunk); }
static inline int zb_kind_of(uint8_t code) { return code >> 1; }
static inline int zb_chunk_of(uint8_t code) { return code & 1; }
enum { ZB_CODES = ZB_KINDS * 2 };

/* Orders of p ranks. chunks 1: stage r lives on rank r. chunks 2, the V: rank r has stage r as
 * chunk 0 and stage 2p-1-r as chunk 1. */
typedef struct zb_order {
    int32_t p, m, chunks;
    int32_t room;   /* codes a rank can hold: 3 m chunks */
    int32_t *n;     /* [p] */
    uint8_t *codes; /* [p * room] */
} zb_order;

static inline int32_t zb_stage(const zb_order *o, int32_t rank, int chunk)
{
    return chunk == 0 ? rank : 2 * o->p - 1 - rank;
}

static inline uint8_t *zb_row(const zb_order *o, int32_t rank)
{
    return o->codes + (size_t)rank * (size_t)o->room;
}

static inline void zb_push(zb_order *o, int32_t rank, uint8_t code)
{
    zb_row(o, rank)[o->n[rank]++] = code;
}

/* An empty order. Requires chunks 1 or 2; TD_EUSAGE when the passes cannot be counted. */
TD_MUST_USE td_status zb_order_new(td_arena *a, int32_t p, int32_t m, int32_t chunks, zb_order *out,
                                   td_err *err);
void zb_order_copy(zb_order *to, const zb_order *from); /* of the same sizes */
/* The order as a schedule. */
TD_MUST_USE td_status zb_order_schedule(const zb_order *o, td_arena *a, schedule *out, td_err *err);

/* Durations and memory. */
typedef struct zb_problem {
    int32_t p, m, chunks;
    const int64_t *pass_ns[3]; /* F, I, W of each stage, [chunks * p] */
    int64_t comm_ns;           /* between ranks; within a rank it is free */
    const int64_t *delta[3];   /* what F, I, W add to the memory of their rank, [chunks * p] */
    const int64_t *limit;      /* [p] memory never exceeds it, in the unit of delta */
} zb_problem;

typedef struct zb_score {
    int64_t span_ns;     /* the longest span of a rank, from its first start to its last end: the
                            cost of arXiv 2401.10241 */
    int64_t makespan_ns; /* until the last end of all ranks */
    int64_t spans_ns;    /* sum of the spans */
} zb_score;

/* Room for replays of one problem's orders. */
typedef struct zb_replay {
    int64_t *end[2];  /* [chunks * p * m] ends of F and I */
    int64_t *clock;   /* [p] ends of the ranks' last passes */
    int64_t *first;   /* [p] starts of their first ones */
    int32_t *at;      /* [p] */
    int32_t *count;   /* [p * ZB_CODES] */
    int32_t *waiting; /* [p] ranks that can go on */
    bool *queued;     /* [p] */
} zb_replay;

/* Room to replay orders of this problem again and again, from `a`. Errors: TD_ENOMEM. */
TD_MUST_USE td_status zb_replay_new(td_arena *a, const zb_problem *q, zb_replay *out, td_err *err);
/* Starts every pass as early as its data, its rank's order and messages of comm_ns allow. False
 * when the order waits in a circle. Requires whole rows without ZB_B. */
bool zb_replay_run(const zb_problem *q, const zb_order *o, zb_replay *w, zb_score *out);

/* The longest memory of a rank under its order. */
int64_t zb_peak(const zb_problem *q, const zb_order *o, int32_t rank);

/* Durations of q->price or q->times, or of equal passes where none are given and `needed` is
 * false; deltas 1, 0, -1 of a rank's share (option deltas=F,I,W says otherwise) or bytes; limits
 * from the request (`fallback` microbatch activations where it has none). Errors: TD_EUSAGE. */
TD_MUST_USE td_status zb_problem_of(const sched_request *q, int32_t chunks, bool needed,
                                    double fallback, td_arena *a, zb_problem *out, td_err *err);

/* Refuses chunks and slices that the schedule `family` does not take; `chunks` is what it takes. */
TD_MUST_USE td_status zb_check_shape(const sched_request *q, const char *family, int32_t chunks,
                                     td_err *err);

#endif
