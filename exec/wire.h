/* Moves bytes between ranks. Operations are posted and later waited for; on one channel the k-th
 * send matches the k-th receive, and nothing is buffered: the data moves when both ends are posted,
 * so a post never blocks and the memory of an operation is its owner's again once it is done. */
#ifndef EXEC_WIRE_H
#define EXEC_WIRE_H

#include "base/base.h"

typedef struct wire wire;

/* One end of a message, or one member's part of a collective. Lives until it is done. */
typedef struct wire_op {
    void *data;
    int64_t bytes;
    uint32_t rank; /* the poster */
    uint32_t task; /* for messages to people */
    bool done;
    int64_t begin_ns, end_ns; /* of the transfer: from when all ends were posted */
    struct wire_op *next;     /* the wire's */
} wire_op;

typedef enum wire_type { WIRE_FLOAT, WIRE_DOUBLE } wire_type;

typedef struct wire_shape {
    uint32_t n_ranks, n_channels, n_colls;
    const uint32_t *coll_members; /* [n_colls] */
    int64_t deadline_ns;          /* a wait longer than this ends the run */
} wire_shape;

/* Ranks are threads of this process. The wire is made in the arena. */
TD_MUST_USE td_status wire_open_threads(const wire_shape *s, td_arena *a, wire **out, td_err *err);
void wire_close(wire *w);

void wire_send(wire *w, uint32_t channel, wire_op *op);
void wire_recv(wire *w, uint32_t channel, wire_op *op);
/* Sums the members' data in member order into all of them: the same bits everywhere. */
void wire_all_reduce(wire *w, uint32_t coll, uint32_t member, wire_type type, wire_op *op);

/* Waits until the operation is done. TD_EINTR when another rank gave up: its reason is wire_error;
 * a deadline names the operation. */
TD_MUST_USE td_status wire_wait(wire *w, wire_op *op, td_err *err);

/* Gives up: all waits end. The first reason is kept. */
void wire_abort(wire *w, const td_err *why);
bool wire_aborted(wire *w);
/* The reason; TD_OK inside when nobody gave up. */
td_err wire_error(wire *w);

/* Makes every collective ready for a new step; nobody may be inside the wire. */
void wire_next_step(wire *w);

#endif
