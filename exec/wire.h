/* Moves bytes between ranks. Operations are posted and later waited for; on one channel the k-th
 * send matches the k-th receive, and nothing is buffered: the data moves when both ends are posted,
 * so a post never blocks and the memory of an operation is its owner's again once it is done.
 * Ranks are threads of this process, or processes of their own: the plan and the numbers are the
 * same, bit for bit. */
#ifndef EXEC_WIRE_H
#define EXEC_WIRE_H

#include "base/base.h"
#include "exec/transport.h"

typedef struct wire wire;
typedef struct team team;

/* One end of a message, or one member's part of a collective. Lives until it is done. */
typedef struct wire_op {
    void *data;
    int64_t bytes;
    uint32_t rank; /* the poster */
    uint32_t task; /* for messages to people */
    bool done;
    /* of the transfer: from when all ends were posted; between processes from when this end was */
    int64_t begin_ns, end_ns;
    /* the wire's */
    uint32_t coll;
    struct wire_op *next;
    transport_request request;
} wire_op;

/* What a collective leaves in its members' data. Sums add in member order, so every bit is the
 * same wherever they are computed. A piece is a member's share of the elements: see wire_piece. */
typedef enum wire_kind {
    WIRE_SUM_FLOAT,        /* the sum, in all members */
    WIRE_SUM_DOUBLE,       /* the same */
    WIRE_SUM_PIECES_FLOAT, /* reduce-scatter: each member its piece of the sum, in place; the rest
                              of its data is left alone */
    WIRE_SUM_ROOT_FLOAT,   /* the sum, in the root; the others' data is left alone */
    WIRE_GATHER_FLOAT,     /* all-gather: piece i of all members is member i's */
    WIRE_BROADCAST,        /* the root's data, in all members */
    WIRE_SUM_BF16,         /* as above of bf16 elements, added as floats and rounded once */
    WIRE_SUM_PIECES_BF16,
    WIRE_SUM_ROOT_BF16,
    WIRE_GATHER_BF16,
    WIRE_VOCAB, /* statistics and input gradients of vocabulary shards: see wire_vocab */
    WIRE_KIND_COUNT
} wire_kind;

/* How the data of WIRE_VOCAB begins; [3, rows] floats lie behind it, then, if width > 0, [2, rows,
 * width]; each part starts at a multiple of WIRE_VOCAB_ALIGN bytes. They are k_vocab_parts. */
typedef struct wire_vocab {
    int64_t rows, width;
} wire_vocab;
enum { WIRE_VOCAB_ALIGN = 64 };

typedef struct wire_channel {
    uint32_t src, dst; /* ranks */
    uint32_t queue;    /* of NCCL's wire */
} wire_channel;

typedef struct wire_group {
    const uint32_t *members; /* ranks, in member order */
    uint32_t n_members;
    uint32_t queue; /* of NCCL's wire */
} wire_group;

/* What is in one order on all its ranks: a NCCL communicator. Of collectives, members are those of
 * the group; the operations of one rank in one queue are posted on one stream. */
typedef struct wire_queue {
    const uint32_t *members;
    uint32_t n_members;
    bool collective;
} wire_queue;

typedef struct wire_coll {
    uint32_t group, root; /* root: a member */
    wire_kind kind;
    int64_t bytes; /* each member's data at most */
} wire_coll;

/* Who moves the bytes, in place of the thread that posted last: a device, which is given work here
 * and does it later. With threads, an operation is done when it has been given. */
typedef struct wire_mover {
    void *self;
    /* The ends of one message (sender, receiver) or collective; then what is done with their data,
     * as told to the first of them; then nothing more. */
    void (*begin)(void *self, wire_op *const *ops, uint32_t n);
    void (*copy)(void *self, const wire_op *first, void *to, const void *from, int64_t bytes);
    void (*combine)(void *self, const wire_op *first, wire_kind kind, void *const *data, uint32_t n,
                    int64_t bytes, uint32_t only);
    void (*end)(void *self, wire_op *const *ops, uint32_t n);
    /* The stream of an operation. */
    void *(*stream)(void *self, const wire_op *op);
    /* Whether the device has done it; TD_EDEVICE with what failed there. */
    td_status (*over)(void *self, const wire_op *op, bool *out, td_err *err);
    /* Puts what an operation is in front of a message. */
    td_status (*name)(void *self, const wire_op *op, td_err *err);
    /* The device is about to be made to drop its work: notes how far it is, for messages. */
    void (*note)(void *self);
} wire_mover;

typedef struct wire_shape {
    uint32_t n_ranks, n_channels, n_groups, n_colls, n_queues;
    /* the tables must live as long as the wire */
    const wire_channel *channels; /* [n_channels] */
    const wire_group *groups;     /* [n_groups] */
    const wire_coll *colls;       /* [n_colls]; those of one group are posted in one order */
    const wire_queue *queues;     /* [n_queues] */
    int64_t deadline_ns;          /* a wait longer than this ends the run */
    const wire_mover *mover;      /* of threads; NULL: the posting thread */
} wire_shape;

/* Ranks are threads of this process. The wire is made in the arena. */
TD_MUST_USE td_status wire_open_threads(const wire_shape *s, td_arena *a, wire **out, td_err *err);
/* Each rank is the process of the team with its number; the operations of this wire are those of
 * this process's rank. The team outlives the wire. */
TD_MUST_USE td_status wire_open_team(const wire_shape *s, team *t, td_arena *a, wire **out,
                                     td_err *err);
void wire_close(wire *w);

void wire_send(wire *w, uint32_t channel, wire_op *op);
void wire_recv(wire *w, uint32_t channel, wire_op *op);
void wire_collective(wire *w, uint32_t coll, uint32_t member, wire_op *op);

/* Waits until the operation is done. TD_EINTR when another rank gave up: its reason is wire_error.
 * TD_EDEVICE after the deadline. */
TD_MUST_USE td_status wire_wait(wire *w, wire_op *op, td_err *err);

/* Waits until the device has done all that was posted. TD_EINTR as wire_wait. Where nobody moves
 * bytes later, there is nothing to wait for. */
TD_MUST_USE td_status wire_drain(wire *w, td_err *err);

/* The rank posts and waits no more until wire_next_step. With threads, a run in which every rank
 * waits or has left is stuck and ends at once, with each rank's task. */
void wire_leave(wire *w, uint32_t rank);

/* Gives up: all waits end, in all processes. The first reason is kept. */
void wire_abort(wire *w, const td_err *why);
bool wire_aborted(wire *w);
/* The reason; TD_OK inside when nobody gave up. */
td_err wire_error(wire *w);

/* Makes ready for ranks that have left; nobody may be inside the wire. */
void wire_next_step(wire *w);

/* --- wire_combine.c: the arithmetic of collectives, for all wires --- */

/* The elements of `bytes` (a multiple of the kind's element) that belong to member i of n: [*first,
 * *first + *count) in bytes. Pieces are consecutive and differ by one element at most; how many
 * elements there are decides where they begin, whatever their size. */
void wire_piece(wire_kind kind, int64_t bytes, uint32_t n, uint32_t i, int64_t *first,
                int64_t *count);
/* Whether a kind works on pieces, each at its own member, or on the whole at the root. */
bool wire_kind_in_pieces(wire_kind kind);
/* Whether the members' data is combined first; whether the outcome then goes to all members. */
bool wire_kind_combines(wire_kind kind);
bool wire_kind_spreads(wire_kind kind);
/* Combines data[0..n), `bytes` each, into all of them, or into data[only] (UINT32_MAX: all). */
void wire_combine(wire_kind kind, void *const *data, uint32_t n, int64_t bytes, uint32_t only);

#endif
