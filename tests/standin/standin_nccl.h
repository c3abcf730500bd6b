/* What the files of the stand-in for NCCL share: communicators, and frames between processes. */
#ifndef TESTS_STANDIN_STANDIN_NCCL_H
#define TESTS_STANDIN_STANDIN_NCCL_H

#include "nccl.h"

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

enum frame_kind { FRAME_HELLO, FRAME_CONNECT, FRAME_READY, FRAME_DATA, FRAME_PART, FRAME_BYE };

/* READY: the receive has been posted. PART: a member's part of a collective. */
struct frame {
    uint32_t kind;
    int32_t rank;
    uint64_t what; /* PART: what the collective is; HELLO: who is where */
    uint64_t bytes;
};

/* What came from a peer and nobody has taken yet. */
struct parcel {
    uint64_t what;
    std::string data;
};

struct peer {
    int fd = -1;
    uint64_t identity = 0; /* host and device */
    bool greeted = false, connected = false, called = false, bye = false, gone = false;
    std::string out, in;
    size_t out_at = 0;
    std::deque<uint64_t> ready; /* sizes of receives that wait for our sends */
    std::deque<parcel> messages, parts;
};

struct ncclComm {
    ncclUniqueId id;
    int n = 0, rank = 0, listener = -1;
    bool blocking = true, open = false, aborted = false, finalized = false;
    uint64_t identity = 0;
    ncclResult_t error = ncclSuccess;
    std::string why;
    std::vector<peer> peers;
    int polls = 0; /* queries until the last call is over */
    uint64_t issued = 0, ended = 0;
    std::deque<std::shared_ptr<struct batch>> unconnected; /* not queued yet */
    int registered = 0;
};

/* Around all state of the stand-in for NCCL. */
std::recursive_mutex &nccl_mutex(void);
using nccl_lock = std::lock_guard<std::recursive_mutex>;

/* Says on stderr what was called wrongly. */
ncclResult_t nccl_wrong(ncclComm *c, const char *what);
/* Whether a call is not over yet. */
bool nccl_under_way(const ncclComm *c);
/* What a call gives: that of a communicator that blocks is over. */
ncclResult_t nccl_settle(ncclComm *c);

/* --- standin_nccl_sockets.cc; under the lock of NCCL's stand-in --- */

void nccl_break(ncclComm *c, ncclResult_t error, const std::string &why);
/* Listens, and calls whoever has a lower rank. */
void nccl_listen(ncclComm *c, const ncclUniqueId &id);
/* Moves what can be moved; takes callers; sets c->open when all are there. */
void nccl_move(ncclComm *c, const ncclUniqueId &id);
void nccl_push(ncclComm *c, int to, frame_kind kind, uint64_t what, const void *data,
               uint64_t bytes);
void nccl_hang_up(ncclComm *c);

#endif
