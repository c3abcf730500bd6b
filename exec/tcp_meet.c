/* The rendezvous of processes over TCP. */
#include "exec/tcp_meet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x3170636578657064u

/* What a process says first on every connection that it opens. */
typedef struct hello {
    uint64_t magic, key;
    uint32_t rank, size;
    uint32_t port; /* where it listens itself */
    uint32_t reserved;
} hello;

/* Where a process listens; IPv4 addresses are mapped into IPv6. */
typedef struct place {
    uint8_t ip[16];
    uint32_t port;
} place;

/* Rank 0's answer, before the places of all. */
typedef struct answer {
    int32_t code;
    char msg[508];
} answer;

typedef struct meeting {
    const launch *l;
    td_arena *a;
    int64_t until_ns;
    int *fds;
    const char **names;
    place *places; /* [size] */
    int listener;
    uint16_t port; /* of the listener */
} meeting;

/* --- bytes, before a deadline --- */

static bool wait_for(int fd, short what, int64_t until_ns)
{
    const int64_t left = (until_ns - td_now_ns()) / 1000000;
    if (left <= 0) return false;
    struct pollfd p = {.fd = fd, .events = what};
    const int n = poll(&p, 1, left > 1000000 ? 1000000 : (int)left);
    return n > 0 || (n < 0 && errno == EINTR);
}

static bool talk(int fd, bool send_it, void *data, size_t bytes, int64_t until_ns)
{
    char *p = data;
    while (bytes > 0) {
        const ssize_t n = send_it ? send(fd, p, bytes, MSG_NOSIGNAL) : recv(fd, p, bytes, 0);
        if (n > 0) {
            p += n;
            bytes -= (size_t)n;
            continue;
        }
        if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) return false;
        if (!wait_for(fd, send_it ? POLLOUT : POLLIN, until_ns)) return false;
    }
    return true;
}

static void prepare(int fd)
{
    const int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* --- addresses --- */

static place place_of(const struct sockaddr *s, uint32_t port)
{
    place p = {.port = port};
    if (s->sa_family == AF_INET6) {
        memcpy(p.ip, &((const struct sockaddr_in6 *)(const void *)s)->sin6_addr, sizeof p.ip);
        return p;
    }
    p.ip[10] = p.ip[11] = 0xff;
    memcpy(p.ip + 12, &((const struct sockaddr_in *)(const void *)s)->sin_addr, 4);
    return p;
}

static bool is_mapped(const place *p)
{
    static const uint8_t head[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(p->ip, head, sizeof head) == 0;
}

static socklen_t address_of(const place *p, struct sockaddr_storage *s)
{
    memset(s, 0, sizeof *s);
    if (is_mapped(p)) {
        struct sockaddr_in *const v4 = (struct sockaddr_in *)(void *)s;
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)p->port);
        memcpy(&v4->sin_addr, p->ip + 12, 4);
        return sizeof *v4;
    }
    struct sockaddr_in6 *const v6 = (struct sockaddr_in6 *)(void *)s;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)p->port);
    memcpy(&v6->sin6_addr, p->ip, sizeof p->ip);
    return sizeof *v6;
}

static const char *name_of(td_arena *a, const place *p)
{
    char text[INET6_ADDRSTRLEN] = "?";
    (void)inet_ntop(is_mapped(p) ? AF_INET : AF_INET6, is_mapped(p) ? p->ip + 12 : p->ip, text,
                    sizeof text);
    const char *const name = td_strdup(a, text);
    return name == NULL ? "?" : name;
}

/* --- listening --- */

static int listen_at(int family, uint16_t port)
{
    const int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    const int on = 1, off = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_storage s = {0};
    socklen_t len = sizeof(struct sockaddr_in);
    s.ss_family = (sa_family_t)family;
    if (family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        ((struct sockaddr_in6 *)(void *)&s)->sin6_port = htons(port);
        len = sizeof(struct sockaddr_in6);
    } else {
        ((struct sockaddr_in *)(void *)&s)->sin_port = htons(port);
    }
    if (bind(fd, (const struct sockaddr *)(const void *)&s, len) == 0 && listen(fd, 1024) == 0) {
        prepare(fd);
        return fd;
    }
    const int why = errno;
    (void)close(fd);
    errno = why;
    return -1;
}

static td_status open_listener(meeting *m, td_err *err)
{
    const uint16_t wanted = m->l->rank == 0 ? m->l->port : 0;
    m->listener = m->l->listener > 0 ? m->l->listener : listen_at(AF_INET6, wanted);
    if (m->listener < 0 && errno != EADDRINUSE) m->listener = listen_at(AF_INET, wanted);
    if (m->listener < 0)
        return td_fail(err, TD_EUSAGE,
                       "rank 0 cannot listen on port %u: %s; another port goes into MASTER_PORT, "
                       "PEXEC_PORT or --rendezvous, on all ranks",
                       wanted, strerror(errno));
    struct sockaddr_storage s;
    socklen_t len = sizeof s;
    if (getsockname(m->listener, (struct sockaddr *)(void *)&s, &len) != 0)
        return td_fail(err, TD_EDEVICE, "no port to listen on: %s", strerror(errno));
    m->port = ntohs(s.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&s)->sin6_port
                                            : ((struct sockaddr_in *)(void *)&s)->sin_port);
    return TD_OK;
}

int tcp_listen_here(uint16_t *port)
{
    const int fd = listen_at(AF_INET, 0);
    struct sockaddr_in s;
    socklen_t len = sizeof s;
    if (fd < 0) return -1;
    if (getsockname(fd, (struct sockaddr *)(void *)&s, &len) == 0) {
        *port = ntohs(s.sin_port);
        return fd;
    }
    (void)close(fd);
    return -1;
}

/* The next caller that says hello as one of ours; strangers are hung up on. */
static td_status next_caller(meeting *m, hello *h, int *fd, place *from, td_err *err)
{
    while (td_now_ns() < m->until_ns) {
        struct sockaddr_storage s;
        socklen_t len = sizeof s;
        *fd = accept(m->listener, (struct sockaddr *)(void *)&s, &len);
        if (*fd < 0) {
            /* the caller stays in the queue, so waiting for one would not wait */
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                return td_fail(err, TD_EDEVICE,
                               "rank %u cannot take another rank's call: %s; it needs a file for "
                               "each of the %u ranks (ulimit -n)",
                               m->l->rank, strerror(errno), m->l->size);
            (void)wait_for(m->listener, POLLIN, m->until_ns);
            continue;
        }
        prepare(*fd);
        const int64_t soon = td_now_ns() + 2000000000;
        if (talk(*fd, false, h, sizeof *h, soon) && h->magic == MAGIC && h->key == m->l->key) {
            *from = place_of((const struct sockaddr *)(const void *)&s, h->port);
            return TD_OK;
        }
        (void)close(*fd);
    }
    char who[200] = "";
    for (uint32_t i = m->l->rank + 1, at = 0; i < m->l->size && at + 12 < sizeof who; i++)
        if (m->fds[i] < 0) at += (uint32_t)snprintf(who + at, sizeof who - at, " %u", i);
    return td_fail(err, TD_EDEVICE, "rank %u of %u: not there in time: rank%s", m->l->rank,
                   m->l->size, who);
}

static td_status take_caller(meeting *m, td_err *err)
{
    hello h;
    int fd = -1;
    place from;
    TD_TRY(next_caller(m, &h, &fd, &from, err));
    if (h.size != m->l->size || h.rank >= h.size || h.rank <= m->l->rank || m->fds[h.rank] >= 0) {
        const bool twice = h.size == m->l->size && h.rank < h.size;
        (void)close(fd);
        return twice ? td_fail(err, TD_EUSAGE, "two processes say that they are rank %u", h.rank)
                     : td_fail(err, TD_EUSAGE,
                               "a process says that it is rank %u of %u, but this "
                               "run has %u",
                               h.rank, h.size, m->l->size);
    }
    m->fds[h.rank] = fd;
    m->places[h.rank] = from;
    return TD_OK;
}

/* --- calling --- */

static int call_once(const struct sockaddr *s, socklen_t len, int64_t until_ns)
{
    const int fd = socket(s->sa_family, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    prepare(fd);
    int why = 0;
    socklen_t size = sizeof why;
    if (connect(fd, s, len) == 0) return fd;
    if (errno == EINPROGRESS && wait_for(fd, POLLOUT, until_ns) &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &size) == 0 && why == 0)
        return fd;
    if (why == 0) why = errno == EINPROGRESS ? ETIMEDOUT : errno;
    (void)close(fd);
    errno = why;
    return -1;
}

static void nap(void)
{
    const struct timespec ts = {.tv_nsec = 50000000};
    (void)nanosleep(&ts, NULL);
}

/* Rank 0 may start later than this process. */
static td_status call_host(meeting *m, int *fd, td_err *err)
{
    char port[8];
    (void)snprintf(port, sizeof port, "%u", m->l->port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *all = NULL;
    const int rc = getaddrinfo(m->l->host, port, &hints, &all);
    if (rc != 0)
        return td_fail(err, TD_EUSAGE, "rank 0's host %s: %s", m->l->host, gai_strerror(rc));
    int why = ETIMEDOUT;
    *fd = -1;
    while (*fd < 0 && td_now_ns() < m->until_ns) {
        for (const struct addrinfo *i = all; i != NULL && *fd < 0; i = i->ai_next) {
            *fd = call_once(i->ai_addr, i->ai_addrlen, m->until_ns);
            if (*fd < 0) why = errno;
        }
        if (*fd < 0) nap();
    }
    freeaddrinfo(all);
    if (*fd >= 0) return TD_OK;
    return td_fail(err, TD_EDEVICE, "rank %u cannot reach rank 0 at %s port %u: %s", m->l->rank,
                   m->l->host, m->l->port, strerror(why));
}

static td_status say_hello(const meeting *m, int fd, td_err *err)
{
    hello h = {
        .magic = MAGIC, .key = m->l->key, .rank = m->l->rank, .size = m->l->size, .port = m->port};
    if (talk(fd, true, &h, sizeof h, m->until_ns)) return TD_OK;
    return td_fail(err, TD_EDEVICE, "rank %u: a connection broke at the start: %s", m->l->rank,
                   strerror(errno));
}

static td_status call_rank(meeting *m, uint32_t rank, td_err *err)
{
    struct sockaddr_storage s;
    const socklen_t len = address_of(&m->places[rank], &s);
    m->fds[rank] = call_once((const struct sockaddr *)(const void *)&s, len, m->until_ns);
    if (m->fds[rank] >= 0) return say_hello(m, m->fds[rank], err);
    return td_fail(err, TD_EDEVICE, "rank %u cannot reach rank %u at %s port %u: %s", m->l->rank,
                   rank, name_of(m->a, &m->places[rank]), m->places[rank].port, strerror(errno));
}

/* --- the two sides --- */

static td_status meet_as_first(meeting *m, td_err *err)
{
    td_status st = TD_OK;
    for (uint32_t i = 1; i < m->l->size && st == TD_OK; i++) st = take_caller(m, err);
    answer say = {.code = (int32_t)st};
    if (st != TD_OK) (void)snprintf(say.msg, sizeof say.msg, "%.500s", err->msg);
    for (uint32_t i = 1; i < m->l->size; i++) {
        if (m->fds[i] < 0) continue;
        const bool told = talk(m->fds[i], true, &say, sizeof say, m->until_ns) &&
                          (st != TD_OK || talk(m->fds[i], true, m->places,
                                               m->l->size * sizeof *m->places, m->until_ns));
        if (!told && st == TD_OK)
            st = td_fail(err, TD_EDEVICE, "rank %u is gone at the start of the run", i);
    }
    return st;
}

static td_status meet_as_other(meeting *m, td_err *err)
{
    int fd = -1;
    TD_TRY(call_host(m, &fd, err));
    m->fds[0] = fd;
    struct sockaddr_storage s;
    socklen_t len = sizeof s;
    if (getpeername(fd, (struct sockaddr *)(void *)&s, &len) != 0)
        return td_fail(err, TD_EDEVICE, "rank 0 is gone at the start of the run");
    TD_TRY(say_hello(m, fd, err));
    answer got;
    if (!talk(fd, false, &got, sizeof got, m->until_ns))
        return td_fail(err, TD_EDEVICE,
                       "rank %u: rank 0 at %s port %u does not answer as one of this run",
                       m->l->rank, m->l->host, m->l->port);
    got.msg[sizeof got.msg - 1] = '\0';
    if (got.code != TD_OK) return td_fail(err, (td_status)got.code, "%s", got.msg);
    if (!talk(fd, false, m->places, m->l->size * sizeof *m->places, m->until_ns))
        return td_fail(err, TD_EDEVICE, "rank 0 is gone at the start of the run");
    m->places[0] = place_of((const struct sockaddr *)(const void *)&s, m->l->port);
    /* a call is answered by the kernel, so nobody waits for a circle */
    for (uint32_t i = 1; i < m->l->rank; i++) TD_TRY(call_rank(m, i, err));
    for (uint32_t i = m->l->rank + 1; i < m->l->size; i++) TD_TRY(take_caller(m, err));
    return TD_OK;
}

td_status tcp_meet(const launch *l, int64_t deadline_ns, td_arena *a, int *fds, const char **names,
                   td_err *err)
{
    meeting m = {.l = l,
                 .a = a,
                 .until_ns = td_now_ns() + deadline_ns,
                 .fds = fds,
                 .names = names,
                 .places = TD_NEW_N(a, place, l->size),
                 .listener = -1};
    if (m.places == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    for (uint32_t i = 0; i < l->size; i++) fds[i] = -1;
    td_status st = open_listener(&m, err);
    if (st == TD_OK) st = l->rank == 0 ? meet_as_first(&m, err) : meet_as_other(&m, err);
    if (m.listener >= 0) (void)close(m.listener);
    for (uint32_t i = 0; i < l->size; i++) {
        names[i] = name_of(a, &m.places[i]);
        if (st == TD_OK || fds[i] < 0) continue;
        (void)close(fds[i]);
        fds[i] = -1;
    }
    return st;
}
