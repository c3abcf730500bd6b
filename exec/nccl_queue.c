/* Calls of NCCL. Communicators do not block: a call may be under way when it returns, and nobody
 * may use the communicator before it is over. Groups hold the parts of one collective at most, far
 * fewer than the 256 operations beyond which NCCL cuts a group in pieces. */
#include "exec/nccl_queue.h"

#include <stdio.h>

enum { GOODBYE_S = 5 };

static td_status failed(const nccl_queue *q, ncclResult_t r, td_err *err)
{
    const char *const more = q->comm == NULL ? "" : ncclGetLastError(q->comm);
    char who[120] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < q->from->n_members && at + 12 < sizeof who; i++)
        at += (size_t)snprintf(who + at, sizeof who - at, " %u", q->from->members[i]);
    return td_fail(err, TD_EDEVICE, "NCCL: %s%s%.300s (communicator of ranks%s)",
                   ncclGetErrorString(r), more != NULL && more[0] != '\0' ? ": " : "",
                   more == NULL ? "" : more, who);
}

td_status nccl_queue_settle(const nccl_queue *q, ncclResult_t r, td_err *err)
{
    const int64_t until = td_now_ns() + q->until_ns;
    for (long turn = 0; r == ncclInProgress; turn++) {
        const ncclResult_t asked = ncclCommGetAsyncError(q->comm, &r);
        if (asked != ncclSuccess) return failed(q, asked, err);
        if (r != ncclInProgress) break;
        const td_err why = turn % 16 == 0 ? team_look(q->team) : (td_err){0};
        if (why.code != TD_OK) return td_fail(err, why.code, "%s", why.msg);
        if (td_now_ns() > until)
            return td_fail(err, TD_EDEVICE, "NCCL: a call has been under way for %.3g s",
                           (double)q->until_ns / 1e9);
        team_pause(turn);
    }
    return r == ncclSuccess ? TD_OK : failed(q, r, err);
}

int nccl_queue_member(const nccl_queue *q, uint32_t rank)
{
    for (uint32_t i = 0; i < q->from->n_members; i++)
        if (q->from->members[i] == rank) return (int)i;
    return -1;
}

td_status nccl_queue_open(nccl_queue *q, const ncclUniqueId *id, int ctas, td_err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.splitShare = 0;
    if (ctas > 0) {
        config.minCTAs = 1;
        config.maxCTAs = ctas;
    }
    const ncclResult_t r =
        ncclCommInitRankConfig(&q->comm, (int)q->from->n_members, *id, (int)q->me, &config);
    return nccl_queue_settle(q, r, err);
}

td_status nccl_queue_message(nccl_queue *q, bool send, uint32_t peer, void *data, int64_t bytes,
                             void *stream, td_err *err)
{
    const int to = nccl_queue_member(q, peer);
    const size_t n = (size_t)bytes;
    if (bytes == 0) return TD_OK;
    return nccl_queue_settle(q,
                             send ? ncclSend(data, n, ncclInt8, to, q->comm, stream)
                                  : ncclRecv(data, n, ncclInt8, to, q->comm, stream),
                             err);
}

/* --- collectives --- */

/* Bytes of the data that member m owns. */
static void owned(const nccl_queue *q, const nccl_part *c, uint32_t m, int64_t *first,
                  int64_t *count)
{
    if (wire_kind_in_pieces(c->kind)) {
        wire_piece(c->kind, c->bytes, q->from->n_members, m, first, count);
        return;
    }
    *first = 0;
    *count = m == c->root ? c->bytes : 0;
}

static ncclDataType_t type_of(wire_kind kind, size_t *width)
{
    const bool narrow =
        kind == WIRE_SUM_BF16 || kind == WIRE_SUM_PIECES_BF16 || kind == WIRE_SUM_ROOT_BF16;
    *width = narrow ? 2 : kind == WIRE_SUM_DOUBLE ? sizeof(double) : sizeof(float);
    return narrow ? ncclBfloat16 : kind == WIRE_SUM_DOUBLE ? ncclFloat64 : ncclFloat32;
}

/* Each member m gets what begins at mine(m) of all others, and gives theirs(m). */
static td_status exchange(nccl_queue *q, const nccl_part *c, bool outcomes, td_err *err)
{
    int64_t mine = 0, mine_at = 0, first = 0, count = 0;
    owned(q, c, q->me, &mine_at, &mine);
    (void)ncclGroupStart();
    ncclResult_t r = ncclSuccess;
    for (uint32_t m = 0; m < q->from->n_members; m++) {
        if (m == q->me) continue;
        owned(q, c, m, &first, &count);
        char *const theirs = c->data + first, *const part = q->parts[m];
        const int64_t gives = outcomes ? mine : count, gets = outcomes ? count : mine;
        if (gives > 0 && r == ncclSuccess)
            r = ncclSend(outcomes ? part : theirs, (size_t)gives, ncclInt8, (int)m, q->comm,
                         c->stream);
        if (gets > 0 && (r == ncclSuccess || r == ncclInProgress))
            r = ncclRecv(outcomes ? theirs : part, (size_t)gets, ncclInt8, (int)m, q->comm,
                         c->stream);
        if (r == ncclInProgress) r = ncclSuccess; /* inside a group: it is told at its end */
    }
    const ncclResult_t end = ncclGroupEnd();
    return nccl_queue_settle(q, r == ncclSuccess ? end : r, err);
}

/* Parts go to their owners, who add them in member order, and outcomes to all. */
static td_status sum_in_order(nccl_queue *q, const nccl_part *c, td_err *err)
{
    const bool spreads = wire_kind_spreads(c->kind);
    int64_t mine = 0, at = 0;
    owned(q, c, q->me, &at, &mine);
    for (uint32_t m = 0; m < q->from->n_members; m++)
        q->parts[m] = m == q->me ? c->data + at : q->staging + m * q->stride;
    TD_TRY(exchange(q, c, false, err));
    if (mine > 0 && c->mover != NULL)
        c->mover->combine(c->mover->self, c->op, c->kind, q->parts, q->from->n_members, mine,
                          spreads ? UINT32_MAX : q->me);
    return spreads ? exchange(q, c, true, err) : TD_OK;
}

/* Everybody gets everybody's data, and joins them. */
static td_status join_all(nccl_queue *q, const nccl_part *c, td_err *err)
{
    (void)ncclGroupStart();
    ncclResult_t r = ncclSuccess;
    for (uint32_t m = 0; m < q->from->n_members; m++) {
        q->parts[m] = m == q->me ? c->data : q->staging + m * q->stride;
        if (m == q->me) continue;
        if (r == ncclSuccess)
            r = ncclSend(c->data, (size_t)c->bytes, ncclInt8, (int)m, q->comm, c->stream);
        if (r == ncclSuccess || r == ncclInProgress)
            r = ncclRecv(q->parts[m], (size_t)c->bytes, ncclInt8, (int)m, q->comm, c->stream);
        if (r == ncclInProgress) r = ncclSuccess;
    }
    const ncclResult_t end = ncclGroupEnd();
    TD_TRY(nccl_queue_settle(q, r == ncclSuccess ? end : r, err));
    if (c->mover != NULL)
        c->mover->combine(c->mover->self, c->op, c->kind, q->parts, q->from->n_members, c->bytes,
                          UINT32_MAX);
    return TD_OK;
}

/* Pieces that differ in size: one reduction or broadcast for each, as one operation. */
static ncclResult_t by_pieces(const nccl_queue *q, const nccl_part *c)
{
    size_t width = 1;
    const ncclDataType_t type = type_of(c->kind, &width);
    (void)ncclGroupStart();
    ncclResult_t r = ncclSuccess;
    for (uint32_t m = 0; m < q->from->n_members; m++) {
        int64_t first = 0, count = 0;
        wire_piece(c->kind, c->bytes, q->from->n_members, m, &first, &count);
        char *const at = c->data + first;
        if (count == 0 || r != ncclSuccess) continue;
        r = !wire_kind_combines(c->kind)
                ? ncclBroadcast(at, at, (size_t)count, ncclInt8, (int)m, q->comm, c->stream)
                : ncclReduce(at, at, (size_t)count / width, type, ncclSum, (int)m, q->comm,
                             c->stream);
        if (r == ncclInProgress) r = ncclSuccess;
    }
    const ncclResult_t end = ncclGroupEnd();
    return r == ncclSuccess ? end : r;
}

/* Reduce-scatter and all-gather, of one call where all pieces are alike. */
static ncclResult_t in_pieces(const nccl_queue *q, const nccl_part *c)
{
    int64_t at = 0, mine = 0, longest = 0, shortest = 0;
    const uint32_t n = q->from->n_members;
    wire_piece(c->kind, c->bytes, n, 0, &at, &longest);
    wire_piece(c->kind, c->bytes, n, n - 1, &at, &shortest);
    if (longest != shortest) return by_pieces(q, c);
    wire_piece(c->kind, c->bytes, n, q->me, &at, &mine);
    char *const own = c->data + at;
    size_t width = 1;
    const ncclDataType_t type = type_of(c->kind, &width);
    return wire_kind_combines(c->kind)
               ? ncclReduceScatter(c->data, own, (size_t)mine / width, type, ncclSum, q->comm,
                                   c->stream)
               : ncclAllGather(own, c->data, (size_t)mine, ncclInt8, q->comm, c->stream);
}

static ncclResult_t by_nccl(const nccl_queue *q, const nccl_part *c)
{
    size_t width = 1;
    const ncclDataType_t type = type_of(c->kind, &width);
    const size_t n = (size_t)c->bytes / width;
    switch (c->kind) {
    case WIRE_SUM_FLOAT:
    case WIRE_SUM_DOUBLE:
    case WIRE_SUM_BF16:
        return ncclAllReduce(c->data, c->data, n, type, ncclSum, q->comm, c->stream);
    case WIRE_SUM_ROOT_FLOAT:
    case WIRE_SUM_ROOT_BF16:
        return ncclReduce(c->data, c->data, n, type, ncclSum, (int)c->root, q->comm, c->stream);
    case WIRE_BROADCAST:
        return ncclBroadcast(c->data, c->data, (size_t)c->bytes, ncclInt8, (int)c->root, q->comm,
                             c->stream);
    default: return in_pieces(q, c);
    }
}

td_status nccl_queue_collective(nccl_queue *q, const nccl_part *c, td_err *err)
{
    if (c->bytes == 0 || q->from->n_members == 1) return TD_OK;
    if (c->kind == WIRE_VOCAB) return join_all(q, c, err);
    if (c->ordered && wire_kind_combines(c->kind)) return sum_in_order(q, c, err);
    return nccl_queue_settle(q, by_nccl(q, c), err);
}

int64_t nccl_queue_stride(const nccl_queue *q, const wire_coll *c, bool ordered)
{
    const nccl_part part = {.kind = c->kind, .root = c->root, .bytes = c->bytes};
    int64_t first = 0, mine = 0;
    if (c->kind != WIRE_VOCAB && !(ordered && wire_kind_combines(c->kind))) return 0;
    owned(q, &part, q->me, &first, &mine);
    if (c->kind == WIRE_VOCAB) mine = c->bytes;
    return (mine + 255) / 256 * 256;
}

/* --- memory, and the end --- */

void nccl_queue_register(nccl_queue *q, void *at, int64_t bytes)
{
    td_err ignored = {0};
    if (q->comm == NULL) return;
    const ncclResult_t r = ncclCommRegister(q->comm, at, (size_t)bytes, &q->memory);
    /* where it cannot, messages go as they went */
    if (nccl_queue_settle(q, r, &ignored) != TD_OK) q->memory = NULL;
}

void nccl_queue_close(nccl_queue *q)
{
    if (q->comm == NULL) return;
    td_err ignored = {0};
    if (q->memory != NULL) (void)ncclCommDeregister(q->comm, q->memory);
    q->until_ns = (int64_t)GOODBYE_S * 1000000000;
    if (nccl_queue_settle(q, ncclCommFinalize(q->comm), &ignored) == TD_OK)
        (void)ncclCommDestroy(q->comm);
    else
        (void)ncclCommAbort(q->comm);
    q->comm = NULL;
}

void nccl_queue_abort(nccl_queue *q)
{
    const ncclComm_t comm = q->comm;
    q->comm = NULL; /* whoever is caught in a call finds none afterwards */
    if (comm != NULL) (void)ncclCommAbort(comm);
}
