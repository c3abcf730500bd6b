/* Bodies of standin.h. */
#include "tests/exec/standin.h"

#include <pthread.h>
#include <string.h>

typedef struct standin_stream {
    int index;
    standin_clock clock;
} standin_stream;

typedef struct standin {
    td_arena *arena;
    pthread_mutex_t lock;
    int n_streams, waits, moves, forget;
} standin;

static void close_standin(device *d)
{
    standin *const s = d->state;
    (void)pthread_mutex_destroy(&s->lock);
}

static td_status alloc_standin(device *d, int64_t bytes, void **at, td_err *err)
{
    standin *const s = d->state;
    char *const room = td_alloc(s->arena, 1, (size_t)bytes + 256);
    if (room == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    *at = room + (256 - (uintptr_t)room % 256);
    d->room_bytes += bytes;
    d->n_allocs++;
    return TD_OK;
}

static td_status move_either_standin(device *d, void *at, int64_t bytes, bool to_device,
                                     td_err *err)
{
    (void)d, (void)at, (void)bytes, (void)to_device, (void)err;
    return TD_OK;
}

static void release_standin(device *d, void *at) { (void)d, (void)at; }

static td_status fill_standin(device *d, void *at, uint64_t word, int64_t n, td_err *err)
{
    (void)d, (void)err;
    for (int64_t i = 0; i < n; i++) memcpy((char *)at + 8 * i, &word, 8);
    return TD_OK;
}

static td_status move_standin(device *d, void *to, const void *from, int64_t bytes, td_err *err)
{
    (void)d, (void)err;
    memmove(to, from, (size_t)bytes);
    return TD_OK;
}

static td_status read_standin(device *d, void *to, const void *at, int64_t bytes, td_err *err)
{
    return move_standin(d, to, at, bytes, err);
}

static int64_t in_use_standin(device *d)
{
    (void)d;
    return -1;
}

static void enter_standin(device *d) { (void)d; }

static td_status stream_standin(device *d, bool urgent, void **out, td_err *err)
{
    (void)urgent;
    standin *const s = d->state;
    standin_stream *const it = TD_NEW(s->arena, standin_stream);
    if (it == NULL || s->n_streams == STANDIN_STREAMS)
        return td_fail(err, TD_ENOMEM, "too many streams for the stand-in");
    it->index = s->n_streams++;
    *out = it;
    return TD_OK;
}

static td_status event_standin(device *d, void **out, td_err *err)
{
    standin *const s = d->state;
    standin_event *const it = TD_NEW(s->arena, standin_event);
    if (it == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    it->stream = -1;
    *out = it;
    return TD_OK;
}

static td_status compute_standin(device *d, k_ctx *ctx, void *stream, td_err *err)
{
    (void)d, (void)ctx, (void)stream, (void)err;
    return TD_OK; /* the context goes on with the cores */
}

static void record_standin(device *d, void *event, void *stream)
{
    standin *const s = d->state;
    standin_event *const e = event;
    standin_stream *const at = stream;
    (void)pthread_mutex_lock(&s->lock);
    at->clock.at[at->index]++;
    e->stream = at->index;
    e->clock = at->clock;
    (void)pthread_mutex_unlock(&s->lock);
}

static void wait_standin(device *d, void *stream, void *event)
{
    standin *const s = d->state;
    const standin_event *const e = event;
    standin_stream *const at = stream;
    (void)pthread_mutex_lock(&s->lock);
    const bool forgotten = ++s->waits == s->forget;
    for (int i = 0; e->stream >= 0 && !forgotten && i < s->n_streams; i++)
        if (e->clock.at[i] > at->clock.at[i]) at->clock.at[i] = e->clock.at[i];
    (void)pthread_mutex_unlock(&s->lock);
}

static void moved(device *d)
{
    standin *const s = d->state;
    (void)pthread_mutex_lock(&s->lock);
    s->moves++;
    (void)pthread_mutex_unlock(&s->lock);
}

static void copy_standin(device *d, void *stream, void *to, const void *from, int64_t bytes)
{
    (void)stream;
    memcpy(to, from, (size_t)bytes);
    moved(d);
}

static void combine_standin(device *d, void *stream, wire_kind kind, void *const *data, uint32_t n,
                            int64_t bytes, uint32_t only)
{
    (void)stream;
    wire_combine(kind, data, n, bytes, only);
    moved(d);
}

static int64_t elapsed_standin(device *d, void *from, void *to)
{
    (void)d, (void)from, (void)to;
    return 0;
}

static void idle_standin(device *d, void *stream, int64_t ns) { (void)d, (void)stream, (void)ns; }

static td_status happened_standin(device *d, void *event, bool *out, td_err *err)
{
    (void)d, (void)event, (void)err;
    *out = true;
    return TD_OK;
}

static td_status synchronize_standin(device *d, void *stream, td_err *err)
{
    (void)d, (void)stream, (void)err;
    return TD_OK;
}

void standin_open(td_arena *a, int forget, device *out)
{
    static const device_methods methods = {.name = "stand-in",
                                           .close = close_standin,
                                           .alloc = alloc_standin,
                                           .release = release_standin,
                                           .alloc_either = alloc_standin,
                                           .move = move_either_standin,
                                           .alloc_host = alloc_standin,
                                           .read = read_standin,
                                           .write = move_standin,
                                           .fill = fill_standin,
                                           .enter = enter_standin,
                                           .stream = stream_standin,
                                           .event = event_standin,
                                           .compute = compute_standin,
                                           .record = record_standin,
                                           .wait = wait_standin,
                                           .copy = copy_standin,
                                           .combine = combine_standin,
                                           .elapsed_ns = elapsed_standin,
                                           .idle = idle_standin,
                                           .happened = happened_standin,
                                           .synchronize = synchronize_standin,
                                           .in_use = in_use_standin};
    standin *const s = TD_NEW(a, standin);
    *s = (standin){.arena = a, .forget = forget};
    (void)pthread_mutex_init(&s->lock, NULL);
    *out = (device){
        .methods = &methods, .name = "stand-in", .element_bytes = sizeof(float), .state = s};
}

bool standin_before(const void *a, const void *b)
{
    const standin_event *const first = a, *const then = b;
    return first->stream >= 0 && then->stream >= 0 &&
           then->clock.at[first->stream] >= first->clock.at[first->stream];
}

int standin_waits(const device *d) { return ((const standin *)d->state)->waits; }
int standin_moves(const device *d) { return ((const standin *)d->state)->moves; }
