/* The transport over TCP: one connection between every two processes. A receive that is posted is
 * announced to the sender, and data goes out only for announced receives: nothing is buffered, and
 * no lane waits for another. Whoever dies closes its connections, and everybody sees that. */
#include "exec/tcp_meet.h"
#include "exec/transport.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

typedef enum frame_kind { FRAME_READY, FRAME_DATA } frame_kind;

typedef struct frame {
    uint32_t kind, lane;
    uint64_t bytes; /* DATA: they follow */
} frame;

/* A queue of requests, oldest first. */
typedef struct request_list {
    transport_request *first, *last;
} request_list;

/* Receives of a lane that the peer has announced and that have got no data yet. */
typedef struct lane_credit {
    uint32_t lane, n;
} lane_credit;

typedef struct tcp_peer {
    int fd;
    const char *name;
    bool gone;
    int why;               /* errno, 0: it closed */
    request_list waiting;  /* sends whose receive is not announced */
    request_list leaving;  /* sends whose data goes out */
    request_list expected; /* receives */
    lane_credit *credits;  /* [n_credits] */
    size_t n_credits, cap_credits;
    uint32_t *announce; /* [n_announce] lanes of receives to be announced */
    size_t n_announce, cap_announce;
    frame out, in;              /* at hand */
    size_t out_at, in_at;       /* bytes of them done; sizeof frame: the data follows */
    bool sending;               /* `out` holds a frame */
    transport_request *landing; /* the receive that `in` fills */
} tcp_peer;

typedef struct tcp_state {
    td_arena *own;   /* what grows does so under the team's lock, which guards no other arena */
    tcp_peer *peers; /* [size] */
    struct pollfd *polls;
    uint32_t *poll_peers;
    uint32_t index, size;
} tcp_state;

static void append(request_list *l, transport_request *r)
{
    r->next = NULL;
    if (l->first == NULL)
        l->first = r;
    else
        l->last->next = r;
    l->last = r;
}

/* Takes the oldest request of a lane off the list, or gives NULL. */
static transport_request *take(request_list *l, uint32_t lane)
{
    transport_request *before = NULL;
    for (transport_request *r = l->first; r != NULL; before = r, r = r->next) {
        if (r->lane != lane) continue;
        if (before == NULL)
            l->first = r->next;
        else
            before->next = r->next;
        if (l->last == r) l->last = before;
        return r;
    }
    return NULL;
}

static lane_credit *credit_of(tcp_peer *p, uint32_t lane)
{
    for (size_t i = 0; i < p->n_credits; i++)
        if (p->credits[i].lane == lane) return &p->credits[i];
    return NULL;
}

static void lose(tcp_peer *p, int why)
{
    p->gone = true;
    p->why = why;
}

/* --- out --- */

/* Puts the next frame at hand: announcements first, since the peer may wait for them. */
static bool next_frame(tcp_peer *p)
{
    p->out_at = 0;
    if (p->n_announce > 0) {
        p->out = (frame){.kind = FRAME_READY, .lane = p->announce[0]};
        p->n_announce--;
        memmove(p->announce, p->announce + 1, p->n_announce * sizeof *p->announce);
        return true;
    }
    if (p->leaving.first == NULL) return false;
    p->out = (frame){.kind = FRAME_DATA,
                     .lane = p->leaving.first->lane,
                     .bytes = (uint64_t)p->leaving.first->bytes};
    return true;
}

/* Whether all of it went out; false also when the peer is lost. */
static bool push(tcp_peer *p, const char *data, size_t bytes, size_t *done)
{
    while (*done < bytes) {
        const ssize_t n = send(p->fd, data + *done, bytes - *done, MSG_NOSIGNAL);
        if (n > 0) {
            *done += (size_t)n;
            continue;
        }
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) lose(p, errno);
        return false;
    }
    return true;
}

static void send_frames(tcp_peer *p)
{
    while (!p->gone && (p->sending || next_frame(p))) {
        p->sending = true;
        if (!push(p, (const char *)&p->out, sizeof p->out, &p->out_at)) return;
        transport_request *const r = p->leaving.first;
        if (p->out.kind == FRAME_DATA) {
            size_t moved = (size_t)r->moved;
            const bool all = push(p, r->data, (size_t)r->bytes, &moved);
            r->moved = (int64_t)moved;
            if (!all) return;
            (void)take(&p->leaving, r->lane);
            r->done = true;
        }
        p->sending = false;
    }
}

/* --- in --- */

static bool pull(tcp_peer *p, char *data, size_t bytes, size_t *done)
{
    while (*done < bytes) {
        const ssize_t n = recv(p->fd, data + *done, bytes - *done, 0);
        if (n > 0) {
            *done += (size_t)n;
            continue;
        }
        if (n == 0) lose(p, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) lose(p, errno);
        return false;
    }
    return true;
}

static td_status read_ready(tcp_state *s, tcp_peer *p, td_err *err)
{
    transport_request *const r = take(&p->waiting, p->in.lane);
    if (r != NULL) {
        append(&p->leaving, r);
        return TD_OK;
    }
    lane_credit *c = credit_of(p, p->in.lane);
    if (c == NULL) {
        TD_TRY(TD_GROW(s->own, p->credits, p->cap_credits, p->n_credits + 1, err));
        c = &p->credits[p->n_credits++];
        *c = (lane_credit){.lane = p->in.lane};
    }
    c->n++;
    return TD_OK;
}

static td_status begin_landing(tcp_state *s, tcp_peer *p, td_err *err)
{
    transport_request *const r = take(&p->expected, p->in.lane);
    const uint32_t rank = (uint32_t)(p - s->peers);
    if (r == NULL) return td_fail(err, TD_EPLAN, "TCP: rank %u sends what was not asked for", rank);
    if ((uint64_t)r->bytes != p->in.bytes)
        return td_fail(err, TD_EPLAN, "TCP: %llu bytes came from rank %u where %lld were to come",
                       (unsigned long long)p->in.bytes, rank, (long long)r->bytes);
    p->landing = r;
    return TD_OK;
}

static td_status read_frames(tcp_state *s, tcp_peer *p, td_err *err)
{
    while (!p->gone) {
        if (p->landing == NULL) {
            if (!pull(p, (char *)&p->in, sizeof p->in, &p->in_at)) return TD_OK;
            p->in_at = 0;
            if (p->in.kind == FRAME_READY)
                TD_TRY(read_ready(s, p, err));
            else
                TD_TRY(begin_landing(s, p, err));
            continue;
        }
        transport_request *const r = p->landing;
        size_t moved = (size_t)r->moved;
        const bool all = pull(p, r->data, (size_t)r->bytes, &moved);
        r->moved = (int64_t)moved;
        if (!all) return TD_OK;
        r->done = true;
        p->landing = NULL;
    }
    return TD_OK;
}

/* --- the transport --- */

static td_status look(tcp_state *s, td_err *err)
{
    nfds_t n = 0;
    for (uint32_t i = 0; i < s->size; i++) {
        tcp_peer *const p = &s->peers[i];
        if (i == s->index || p->gone) continue;
        send_frames(p);
        s->poll_peers[n] = i;
        s->polls[n++] = (struct pollfd){.fd = p->fd, .events = POLLIN};
    }
    if (n == 0 || poll(s->polls, n, 0) <= 0) return TD_OK;
    for (nfds_t k = 0; k < n; k++) {
        if (s->polls[k].revents == 0) continue;
        tcp_peer *const p = &s->peers[s->poll_peers[k]];
        TD_TRY(read_frames(s, p, err));
        send_frames(p);
    }
    return TD_OK;
}

static td_status lost(const tcp_state *s, uint32_t rank, td_err *err)
{
    const tcp_peer *const p = &s->peers[rank];
    return td_fail(err, TD_EDEVICE, "rank %u (at %s) is gone: %s", rank, p->name,
                   p->why == 0 ? "it closed its connection" : strerror(p->why));
}

static td_status send_tcp(transport *t, transport_request *r, td_err *err)
{
    tcp_state *const s = t->state;
    tcp_peer *const p = &s->peers[r->peer];
    r->done = false;
    r->send = true;
    r->moved = 0;
    if (p->gone) return lost(s, r->peer, err);
    lane_credit *const c = credit_of(p, r->lane);
    if (c != NULL && c->n > 0) {
        c->n--;
        append(&p->leaving, r);
    } else {
        append(&p->waiting, r);
    }
    send_frames(p);
    return TD_OK;
}

static td_status recv_tcp(transport *t, transport_request *r, td_err *err)
{
    tcp_state *const s = t->state;
    tcp_peer *const p = &s->peers[r->peer];
    r->done = false;
    r->send = false;
    r->moved = 0;
    if (p->gone) return lost(s, r->peer, err);
    TD_TRY(TD_GROW(s->own, p->announce, p->cap_announce, p->n_announce + 1, err));
    p->announce[p->n_announce++] = r->lane;
    append(&p->expected, r);
    send_frames(p);
    return TD_OK;
}

static td_status test_tcp(transport *t, transport_request *r, td_err *err)
{
    tcp_state *const s = t->state;
    if (r->done) return TD_OK;
    TD_TRY(look(s, err));
    return r->done || !s->peers[r->peer].gone ? TD_OK : lost(s, r->peer, err);
}

static void close_tcp(transport *t, bool broken)
{
    tcp_state *const s = t->state;
    (void)broken;
    for (uint32_t i = 0; i < s->size; i++)
        if (s->peers[i].fd >= 0) (void)close(s->peers[i].fd);
    td_arena_free(s->own);
}

td_status transport_open_tcp(const launch *l, int64_t deadline_ns, td_arena *a, transport *out,
                             td_err *err)
{
    static const transport_methods methods = {
        .name = "tcp", .send = send_tcp, .recv = recv_tcp, .test = test_tcp, .close = close_tcp};
    tcp_state *const s = TD_NEW(a, tcp_state);
    int *const fds = TD_NEW_N(a, int, l->size);
    const char **const names = TD_NEW_N(a, const char *, l->size);
    if (s == NULL || fds == NULL || names == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    *s = (tcp_state){.peers = TD_NEW_N(a, tcp_peer, l->size),
                     .polls = TD_NEW_N(a, struct pollfd, l->size),
                     .poll_peers = TD_NEW_N(a, uint32_t, l->size),
                     .index = l->rank,
                     .size = l->size};
    if (s->peers == NULL || s->polls == NULL || s->poll_peers == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    TD_TRY(tcp_meet(l, deadline_ns, a, fds, names, err));
    for (uint32_t i = 0; i < l->size; i++) {
        s->peers[i].fd = fds[i];
        s->peers[i].name = names[i];
    }
    s->own = td_arena_new();
    if (s->own == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    *out = (transport){.methods = &methods, .index = l->rank, .size = l->size, .state = s};
    return TD_OK;
}
