/* Sockets between the processes of a communicator: names in the kernel's own space, no files. */
#include "standin_nccl.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void nccl_break(ncclComm *c, ncclResult_t error, const std::string &why)
{
    if (c->error != ncclSuccess) return;
    c->error = error;
    c->why = why;
}

static socklen_t name_of(const ncclUniqueId &id, int rank, sockaddr_un *s)
{
    memset(s, 0, sizeof *s);
    s->sun_family = AF_UNIX;
    const int n =
        snprintf(s->sun_path + 1, sizeof s->sun_path - 1, "td-nccl-%.60s-%d", id.internal, rank);
    return (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)n);
}

static void unblock(int fd)
{
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

void nccl_listen(ncclComm *c, const ncclUniqueId &id)
{
    sockaddr_un s;
    const socklen_t len = name_of(id, c->rank, &s);
    c->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unblock(c->listener);
    if (bind(c->listener, (const sockaddr *)&s, len) != 0 || listen(c->listener, 64) != 0)
        nccl_break(c, ncclSystemError, std::string("cannot listen: ") + strerror(errno));
}

static void call(ncclComm *c, const ncclUniqueId &id, int rank)
{
    sockaddr_un s;
    const socklen_t len = name_of(id, rank, &s);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (const sockaddr *)&s, len) != 0) {
        (void)close(fd); /* it may come later */
        return;
    }
    unblock(fd);
    c->peers[(size_t)rank].fd = fd;
    nccl_push(c, rank, FRAME_HELLO, c->identity, nullptr, 0);
}

/* The first frame says who calls. */
static void take_callers(ncclComm *c)
{
    for (;;) {
        const int fd = accept(c->listener, nullptr, nullptr);
        if (fd < 0) return;
        frame f;
        pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 2000) <= 0 || recv(fd, &f, sizeof f, MSG_WAITALL) != (ssize_t)sizeof f ||
            f.kind != FRAME_HELLO || f.rank <= c->rank || f.rank >= c->n) {
            (void)close(fd);
            continue;
        }
        unblock(fd);
        peer *const it = &c->peers[(size_t)f.rank];
        it->fd = fd;
        it->identity = f.what;
        it->greeted = true;
        nccl_push(c, f.rank, FRAME_HELLO, c->identity, nullptr, 0);
    }
}

static void greet(ncclComm *c)
{
    bool all = true;
    for (int i = 0; i < c->n; i++) all = all && (i == c->rank || c->peers[(size_t)i].greeted);
    if (!all) return;
    c->open = true;
    (void)close(c->listener);
    c->listener = -1;
    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++) {
            const uint64_t a = i == c->rank ? c->identity : c->peers[(size_t)i].identity;
            const uint64_t b = k == c->rank ? c->identity : c->peers[(size_t)k].identity;
            if (a == b)
                nccl_break(c, ncclInvalidUsage,
                           "Duplicate GPU detected : rank " + std::to_string(i) + " and rank " +
                               std::to_string(k) + " both on one CUDA device");
        }
}

static void take_frame(peer *p, const frame &f, std::string data)
{
    switch (f.kind) {
    case FRAME_HELLO:
        p->identity = f.what;
        p->greeted = true;
        return;
    case FRAME_CONNECT: p->called = true; return;
    case FRAME_READY: p->ready.push_back(f.what); return;
    case FRAME_DATA: p->messages.push_back({f.what, std::move(data)}); return;
    case FRAME_PART: p->parts.push_back({f.what, std::move(data)}); return;
    default: p->bye = true; return;
    }
}

static void lose(ncclComm *c, int rank)
{
    peer *const p = &c->peers[(size_t)rank];
    p->gone = true;
    if (!p->bye && !c->finalized)
        nccl_break(c, ncclRemoteError, "rank " + std::to_string(rank) + " closed its connection");
}

static void pull(ncclComm *c, int rank)
{
    static thread_local char room[1 << 18];
    peer *const p = &c->peers[(size_t)rank];
    bool closed = p->gone;
    while (!closed) {
        const ssize_t n = recv(p->fd, room, sizeof room, 0);
        if (n > 0) {
            p->in.append(room, (size_t)n);
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n < 0 && errno == EINTR) continue;
        closed = true;
    }
    size_t at = 0;
    frame f;
    while (p->in.size() - at >= sizeof f) {
        memcpy(&f, p->in.data() + at, sizeof f);
        const size_t follows = f.kind == FRAME_DATA || f.kind == FRAME_PART ? f.bytes : 0;
        if (p->in.size() - at - sizeof f < follows) break;
        take_frame(p, f, p->in.substr(at + sizeof f, follows));
        at += sizeof f + follows;
    }
    p->in.erase(0, at);
    /* what it said before it went still counts: perhaps goodbye */
    if (closed && !p->gone) lose(c, rank);
}

static void push_out(ncclComm *c, int rank)
{
    peer *const p = &c->peers[(size_t)rank];
    while (!p->gone && p->out_at < p->out.size()) {
        const ssize_t n =
            send(p->fd, p->out.data() + p->out_at, p->out.size() - p->out_at, MSG_NOSIGNAL);
        if (n > 0) {
            p->out_at += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) lose(c, rank);
        return;
    }
    p->out.clear();
    p->out_at = 0;
}

void nccl_push(ncclComm *c, int to, frame_kind kind, uint64_t what, const void *data,
               uint64_t bytes)
{
    peer *const p = &c->peers[(size_t)to];
    const frame f = {(uint32_t)kind, c->rank, what, bytes};
    p->out.append((const char *)&f, sizeof f);
    if (data != nullptr) p->out.append((const char *)data, bytes);
    push_out(c, to);
}

void nccl_move(ncclComm *c, const ncclUniqueId &id)
{
    if (c->listener >= 0) take_callers(c);
    for (int i = 0; i < c->n; i++) {
        if (i == c->rank) continue;
        if (c->peers[(size_t)i].fd < 0) {
            if (i < c->rank && !c->open) call(c, id, i);
            continue;
        }
        pull(c, i);
        push_out(c, i);
    }
    if (!c->open) greet(c);
}

void nccl_hang_up(ncclComm *c)
{
    if (c->listener >= 0) (void)close(c->listener);
    c->listener = -1;
    for (peer &p : c->peers) {
        if (p.fd >= 0) (void)close(p.fd);
        p.fd = -1;
        p.gone = true;
    }
}
