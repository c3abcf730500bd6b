/* One communicator of NCCL, as a queue of a wire. Calls do not wait for other processes, except
 * nccl_queue_open and nccl_queue_settle. */
#ifndef EXEC_NCCL_QUEUE_H
#define EXEC_NCCL_QUEUE_H

#include "exec/wire_nccl.h"

#include <nccl.h>

typedef struct nccl_queue {
    ncclComm_t comm; /* NULL: this process is no member, or it was aborted */
    const wire_queue *from;
    uint32_t me;      /* member index */
    char *staging;    /* [members][stride] parts of others */
    int64_t stride;   /* bytes */
    void **parts;     /* [members] */
    team *team;       /* whose reason to give up ends a wait */
    int64_t until_ns; /* a call that is under way fails after so long */
    void *memory;     /* what is registered, NULL: nothing */
} nccl_queue;

/* --- nccl_start.c --- */

/* Fills the queues of a wire: communicators in the order of the queues, then one use of each
 * connection in the order of the channels, since the first use of one waits for the peer. Each ends
 * before the next one begins, so nobody waits in a circle. */
TD_MUST_USE td_status nccl_start(const wire_shape *s, const nccl_options *o, team *t, device *d,
                                 td_arena *a, nccl_queue *queues, td_err *err);

/* --- nccl_queue.c --- */

/* Joins the communicator of a queue, all members at once, in an order of queues that all processes
 * keep. */
TD_MUST_USE td_status nccl_queue_open(nccl_queue *q, const ncclUniqueId *id, int ctas, td_err *err);
/* Waits until a call is no more under way; r is what it gave. */
TD_MUST_USE td_status nccl_queue_settle(const nccl_queue *q, ncclResult_t r, td_err *err);
/* The member index of a rank. */
int nccl_queue_member(const nccl_queue *q, uint32_t rank);

TD_MUST_USE td_status nccl_queue_message(nccl_queue *q, bool send, uint32_t peer, void *data,
                                         int64_t bytes, void *stream, td_err *err);

/* A collective of the queue's members. */
typedef struct nccl_part {
    wire_kind kind;
    uint32_t root; /* member */
    bool ordered;
    char *data;
    int64_t bytes;
    void *stream;
    /* arithmetic of our own, on that stream; NULL: none is done */
    const wire_mover *mover;
    const wire_op *op;
} nccl_part;

TD_MUST_USE td_status nccl_queue_collective(nccl_queue *q, const nccl_part *c, td_err *err);
/* Bytes of `stride` that a collective of up to `bytes` needs; 0: none. */
int64_t nccl_queue_stride(const nccl_queue *q, const wire_coll *c, bool ordered);

/* Lets NCCL move messages from and to this memory without copies of its own, where it can. */
void nccl_queue_register(nccl_queue *q, void *at, int64_t bytes);

void nccl_queue_close(nccl_queue *q);
void nccl_queue_abort(nccl_queue *q);

#endif
