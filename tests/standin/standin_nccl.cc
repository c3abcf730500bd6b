/* Calls, groups, and what an operation is. */
#include "standin_nccl.h"

#include "standin_gpu.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <time.h>
#include <unistd.h>

enum op_kind { OP_SEND, OP_RECV, OP_ALL_REDUCE, OP_REDUCE, OP_BROADCAST, OP_SCATTER, OP_GATHER };

struct op {
    op_kind kind;
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    int peer; /* or root */
    std::string mine, got;
    std::vector<std::string> parts;
    bool over = false;
};

/* What one group gives to one communicator: one kernel. */
struct batch {
    ncclComm *c;
    cudaStream_t stream;
    std::vector<op> ops;
    uint64_t number = 0;
    bool posted = false, stalls = false;
    int64_t not_before_ns = 0;
};

static std::recursive_mutex the_lock;
std::recursive_mutex &nccl_mutex(void) { return the_lock; }
using lock = nccl_lock;

static struct {
    uint64_t n_batches = 0, random = (uint64_t)getpid();
} all;

static thread_local int depth;
static thread_local std::vector<std::shared_ptr<batch>> group;

static int64_t now_ns(void)
{
    timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t draw(void)
{
    return (all.random = all.random * 6364136223846793005u + 1442695040888963407u) >> 33;
}

static size_t width(ncclDataType_t t)
{
    return t == ncclInt8 ? 1 : t == ncclBfloat16 ? 2 : t == ncclFloat32 ? 4 : 8;
}

ncclResult_t nccl_wrong(ncclComm *c, const char *what)
{
    (void)fprintf(stderr, "stand-in: NCCL: rank %d: %s\n", c == nullptr ? -1 : c->rank, what);
    return ncclInvalidUsage;
}

/* --- the work of a batch; messages and parts are in order between two processes --- */

static bool is_message(const op &o) { return o.kind == OP_SEND || o.kind == OP_RECV; }

static size_t bytes_in(const ncclComm *c, const op &o)
{
    const size_t bytes = o.count * width(o.type);
    return o.kind == OP_SCATTER ? bytes * (size_t)c->n : bytes;
}

static bool gives(const ncclComm *c, const op &o)
{
    return o.kind != OP_RECV && (o.kind != OP_BROADCAST || o.peer == c->rank);
}

/* The stream has come to the operation: the kernel runs, and the memory is its. */
static void post(batch *b)
{
    const lock guard(nccl_mutex());
    ncclComm *const c = b->c;
    b->posted = true;
    for (op &o : b->ops) {
        if (gives(c, o)) o.mine.assign((const char *)o.from, bytes_in(c, o));
        if (c->aborted) continue;
        if (o.kind == OP_RECV)
            nccl_push(c, o.peer, FRAME_READY, o.count * width(o.type), nullptr, 0);
        if (is_message(o)) continue;
        const uint64_t what = (uint64_t)o.kind << 56 ^ (uint64_t)o.type << 48 ^
                              (uint64_t)(o.kind == OP_REDUCE || o.kind == OP_BROADCAST ? o.peer : 0)
                                  << 40 ^
                              (uint64_t)o.count;
        for (int i = 0; i < c->n; i++)
            if (i != c->rank) nccl_push(c, i, FRAME_PART, what, o.mine.data(), o.mine.size());
    }
    const char *const delay = getenv("TD_NCCL_DELAY_US");
    if (delay != nullptr && atoll(delay) > 0)
        b->not_before_ns = now_ns() + (int64_t)(draw() % (uint64_t)atoll(delay)) * 1000;
    const char *const stall = getenv("TD_NCCL_STALL");
    all.n_batches++;
    int rank = 0;
    unsigned long long at = 0;
    if (stall != nullptr && sscanf(stall, "%d:%llu", &rank, &at) == 2)
        b->stalls = rank == c->rank && at == all.n_batches;
}

static void advance_message(ncclComm *c, op *o)
{
    peer *const p = &c->peers[(size_t)o->peer];
    const uint64_t bytes = o->count * width(o->type);
    if (o->kind == OP_SEND && !p->ready.empty()) {
        if (p->ready.front() != bytes)
            nccl_break(c, ncclInternalError, "a receive of another size");
        p->ready.pop_front();
        nccl_push(c, o->peer, FRAME_DATA, bytes, o->mine.data(), bytes);
        o->over = true;
    } else if (o->kind == OP_RECV && !p->messages.empty()) {
        o->got = std::move(p->messages.front().data);
        p->messages.pop_front();
        if (o->got.size() != bytes) nccl_break(c, ncclInternalError, "a message of another size");
        o->over = true;
    }
}

static void advance_collective(ncclComm *c, op *o)
{
    for (int i = 0; i < c->n; i++)
        if (i != c->rank && c->peers[(size_t)i].parts.empty()) return;
    const uint64_t root = o->kind == OP_REDUCE || o->kind == OP_BROADCAST ? (uint64_t)o->peer : 0;
    const uint64_t what =
        (uint64_t)o->kind << 56 ^ (uint64_t)o->type << 48 ^ root << 40 ^ (uint64_t)o->count;
    for (int i = 0; i < c->n; i++) {
        o->parts.push_back(o->mine);
        if (i == c->rank) continue;
        parcel &p = c->peers[(size_t)i].parts.front();
        if (p.what != what) {
            (void)fprintf(stderr,
                          "stand-in: NCCL: ranks %d and %d call for different collectives\n",
                          c->rank, i);
            nccl_break(c, ncclInternalError, "members call for different collectives");
        }
        o->parts.back() = std::move(p.data);
        c->peers[(size_t)i].parts.pop_front();
    }
    o->over = true;
}

/* Whether the kernel can end. Those of one communicator go one after another, and so do the
 * operations of one group that meet the same peer. */
static bool can_end(batch *b)
{
    const lock guard(nccl_mutex());
    ncclComm *const c = b->c;
    if (c->aborted) return true;
    if (b->stalls) return false;
    nccl_move(c, c->id);
    std::vector<bool> sends((size_t)c->n), recvs((size_t)c->n);
    bool over = c->error == ncclSuccess, before = true;
    for (op &o : b->ops) {
        if (c->error != ncclSuccess) return false;
        if (is_message(o)) {
            std::vector<bool> &waits = o.kind == OP_SEND ? sends : recvs;
            if (!o.over && !waits[(size_t)o.peer]) advance_message(c, &o);
            waits[(size_t)o.peer] = waits[(size_t)o.peer] || !o.over;
        } else {
            if (!o.over && before) advance_collective(c, &o);
            before = before && o.over;
        }
        over = over && o.over;
    }
    for (const peer &p : c->peers) over = over && (p.out.empty() || p.gone);
    return over && now_ns() >= b->not_before_ns;
}

template <typename T> static void add(std::string *sum, const std::string &part)
{
    T *const x = (T *)&(*sum)[0];
    const T *const y = (const T *)part.data();
    for (size_t i = 0; i < part.size() / sizeof(T); i++) x[i] += y[i];
}

static std::string sum_of(const op &o)
{
    std::string sum = o.parts.back();
    for (size_t i = o.parts.size() - 1; i-- > 0;)
        o.type == ncclFloat64 ? add<double>(&sum, o.parts[i]) : add<float>(&sum, o.parts[i]);
    return sum;
}

static void give(const ncclComm *c, const op &o)
{
    const size_t bytes = o.count * width(o.type);
    char *const to = (char *)o.to;
    switch (o.kind) {
    case OP_SEND: return;
    case OP_RECV: memcpy(to, o.got.data(), bytes); return;
    case OP_ALL_REDUCE: memcpy(to, sum_of(o).data(), bytes); return;
    case OP_REDUCE:
        if (o.peer == c->rank) memcpy(to, sum_of(o).data(), bytes);
        return;
    case OP_BROADCAST: memcpy(to, o.parts[(size_t)o.peer].data(), bytes); return;
    case OP_SCATTER: memcpy(to, sum_of(o).data() + bytes * (size_t)c->rank, bytes); return;
    case OP_GATHER:
        for (int i = 0; i < c->n; i++)
            memcpy(to + bytes * (size_t)i, o.parts[(size_t)i].data(), bytes);
        return;
    }
}

static void end(batch *b)
{
    const lock guard(nccl_mutex());
    if (!b->c->aborted)
        for (const op &o : b->ops) give(b->c, o);
    b->c->ended++;
    b->ops.clear();
}

/* Not under our lock: the streams have one of their own, which their work holds when it asks us. */
static void queue(const std::shared_ptr<batch> &b)
{
    standin_queue(
        b->stream, [b] { post(b.get()); },
        [b] {
            const lock guard(nccl_mutex());
            return b->c->ended == b->number || b->c->aborted;
        });
    standin_queue(
        b->stream, [b] { end(b.get()); }, [b] { return can_end(b.get()); });
}

/* --- calls --- */

/* First messages connect. Gives what is to be queued. */
static std::vector<std::shared_ptr<batch>> connect_all(ncclComm *c)
{
    std::vector<std::shared_ptr<batch>> now;
    while (!c->unconnected.empty()) {
        for (const op &o : c->unconnected.front()->ops) {
            if (!is_message(o)) continue;
            peer *const p = &c->peers[(size_t)o.peer];
            if (!p->connected) nccl_push(c, o.peer, FRAME_CONNECT, 0, nullptr, 0);
            p->connected = true;
            if (!p->called) return now;
        }
        now.push_back(c->unconnected.front());
        c->unconnected.pop_front();
    }
    return now;
}

bool nccl_under_way(const ncclComm *c)
{
    return !c->open || !c->unconnected.empty() || c->polls > 0;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error)
{
    std::vector<std::shared_ptr<batch>> now;
    {
        const lock guard(nccl_mutex());
        if (!c->aborted) nccl_move(c, c->id);
        now = connect_all(c);
        if (c->open && c->polls > 0) c->polls--;
        *error = c->error != ncclSuccess ? c->error
                 : nccl_under_way(c)     ? ncclInProgress
                                         : ncclSuccess;
    }
    for (const std::shared_ptr<batch> &b : now) queue(b);
    return ncclSuccess;
}

ncclResult_t nccl_settle(ncclComm *c)
{
    ncclResult_t error = ncclInProgress;
    if (!c->blocking) return ncclInProgress;
    while (error == ncclInProgress) {
        (void)ncclCommGetAsyncError(c, &error);
        (void)usleep(100);
    }
    return error;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    ncclResult_t r = ncclSuccess;
    if (depth == 0) return nccl_wrong(nullptr, "a group ends that did not begin");
    if (--depth > 0) return ncclSuccess;
    const std::vector<std::shared_ptr<batch>> mine = std::move(group);
    group.clear();
    for (const std::shared_ptr<batch> &b : mine) {
        {
            const lock guard(nccl_mutex());
            if (b->ops.size() > 256) r = nccl_wrong(b->c, "a group of more than 256 operations");
            b->number = b->c->issued++;
            b->c->unconnected.push_back(b);
            b->c->polls = (int)(draw() % 3);
        }
        const ncclResult_t one = nccl_settle(b->c);
        if (r == ncclSuccess) r = one;
    }
    return r;
}

static ncclResult_t add_op(ncclComm *c, cudaStream_t s, op o)
{
    {
        const lock guard(nccl_mutex());
        if (c->aborted || c->error != ncclSuccess)
            return c->error != ncclSuccess ? c->error : nccl_wrong(c, "a call after the end");
        if (nccl_under_way(c)) return nccl_wrong(c, "a call while another one is under way");
        if (o.peer < 0 || o.peer >= c->n || (is_message(o) && o.peer == c->rank))
            return nccl_wrong(c, "no such peer");
    }
    (void)ncclGroupStart();
    std::shared_ptr<batch> into;
    for (const std::shared_ptr<batch> &b : group)
        if (b->c == c) into = b;
    if (!into) {
        into = std::make_shared<batch>();
        into->c = c;
        into->stream = s;
        group.push_back(into);
    }
    if (into->stream != s) {
        (void)ncclGroupEnd();
        return nccl_wrong(c, "two streams in one group");
    }
    into->ops.push_back(std::move(o));
    return ncclGroupEnd();
}

static op make(op_kind kind, const void *from, void *to, size_t count, ncclDataType_t type,
               int peer)
{
    op o;
    o.kind = kind;
    o.from = from;
    o.to = to;
    o.count = count;
    o.type = type;
    o.peer = peer;
    return o;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return add_op(c, s, make(OP_SEND, from, nullptr, count, type, peer));
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return add_op(c, s, make(OP_RECV, nullptr, to, count, type, peer));
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t, ncclComm_t c, cudaStream_t s)
{
    return add_op(c, s, make(OP_ALL_REDUCE, from, to, count, type, 0));
}

ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t c, cudaStream_t s)
{
    return add_op(c, s, make(OP_REDUCE, from, to, count, type, root));
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t c, cudaStream_t s)
{
    return add_op(c, s, make(OP_BROADCAST, from, to, count, type, root));
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t c, cudaStream_t s)
{
    return add_op(c, s, make(OP_SCATTER, from, to, count, type, 0));
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t c, cudaStream_t s)
{
    return add_op(c, s, make(OP_GATHER, from, to, count, type, 0));
}
