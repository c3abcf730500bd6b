/* CUDA as a device: what device.h asks for, out of kernels_cuda.h. Ranks share one GPU. */
#include "exec/device.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if TD_HAVE_CUDA
#include "kernels/kernels_cuda.h"

/* What is to be freed; a list, since the number is not known beforehand. */
typedef struct held_thing {
    enum { HELD_MEMORY, HELD_HOST, HELD_STREAM, HELD_EVENT, HELD_LANE } kind;
    void *it;
    int64_t bytes;
    struct held_thing *next;
} held_thing;

typedef struct cuda_state {
    td_arena *arena;
    int index;
    bool bf16;
    k_cuda_stream *moves; /* of read and write */
    atomic_bool failed;   /* something could not be issued */
    held_thing *held;     /* the newest first: lanes go before their streams */
} cuda_state;

static td_status refused(const char *why, td_err *err)
{
    return td_fail(err, TD_EDEVICE, "--backend cuda: %s", why);
}

static td_status hold(cuda_state *s, int kind, void *it, td_err *err)
{
    held_thing *const h = TD_NEW(s->arena, held_thing);
    if (h == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device");
    h->kind = (unsigned)kind;
    h->it = it;
    h->next = s->held;
    s->held = h;
    return TD_OK;
}

static void close_cuda(device *d)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY];
    (void)k_cuda_synchronize(s->index, why);
    for (held_thing *h = s->held; h != NULL; h = h->next) switch (h->kind) {
        case HELD_LANE: k_cuda_lane_close(h->it); break;
        case HELD_EVENT: k_cuda_event_close(h->it); break;
        case HELD_STREAM: k_cuda_stream_close(h->it); break;
        case HELD_MEMORY: k_cuda_free(h->it); break;
        case HELD_HOST: k_cuda_free_host(h->it); break;
        }
    s->held = NULL;
}

static td_status alloc_cuda(device *d, int64_t bytes, void **at, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    k_cuda_info info;
    if (!k_cuda_device_info(s->index, &info, why)) return refused(why, err);
    if ((int64_t)info.free_bytes < bytes)
        return td_fail(err, TD_EDEVICE,
                       "--backend cuda: %lld bytes are needed and %lld are free; fewer or smaller "
                       "stages would fit",
                       (long long)bytes, (long long)info.free_bytes);
    *at = k_cuda_alloc(s->index, (size_t)bytes, why);
    if (*at == NULL) return refused(why, err);
    TD_TRY(hold(s, HELD_MEMORY, *at, err));
    s->held->bytes = bytes;
    d->room_bytes += bytes;
    d->n_allocs++;
    return TD_OK;
}

static void release_cuda(device *d, void *at)
{
    cuda_state *const s = d->state;
    for (held_thing *h = s->held; h != NULL; h = h->next)
        if (h->kind == HELD_MEMORY && h->it == at) {
            k_cuda_free(at);
            d->room_bytes -= h->bytes;
            h->it = NULL;
            return;
        }
}

static td_status alloc_either_cuda(device *d, int64_t bytes, void **at, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    *at = k_cuda_alloc_shared(s->index, (size_t)bytes, why);
    if (*at == NULL) return refused(why, err);
    TD_TRY(hold(s, HELD_MEMORY, *at, err));
    s->held->bytes = bytes;
    d->room_bytes += bytes;
    d->n_allocs++;
    return TD_OK;
}

static td_status move_either_cuda(device *d, void *at, int64_t bytes, bool to_device, td_err *err)
{
    const cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    return k_cuda_prefetch(s->index, s->moves, at, (size_t)bytes, to_device, why)
               ? TD_OK
               : refused(why, err);
}

static td_status alloc_host_cuda(device *d, int64_t bytes, void **at, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    *at = k_cuda_alloc_host((size_t)bytes, why);
    d->n_allocs++;
    return *at == NULL ? refused(why, err) : hold(s, HELD_HOST, *at, err);
}

static td_status move_cuda(const device *d, void *to, const void *from, int64_t bytes, td_err *err)
{
    const cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    if (bytes <= 0) return TD_OK;
    return k_cuda_move(s->moves, to, from, (size_t)bytes, why) ? TD_OK : refused(why, err);
}

static td_status read_cuda(device *d, void *to, const void *at, int64_t bytes, td_err *err)
{
    return move_cuda(d, to, at, bytes, err);
}

static td_status write_cuda(device *d, void *at, const void *from, int64_t bytes, td_err *err)
{
    return move_cuda(d, at, from, bytes, err);
}

static int64_t in_use_cuda(device *d)
{
    const cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    k_cuda_info info;
    if (!k_cuda_device_info(s->index, &info, why)) return -1;
    return (int64_t)(info.memory_bytes - info.free_bytes);
}

static td_status fill_cuda(device *d, void *at, uint64_t word, int64_t n, td_err *err)
{
    const cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    return k_cuda_fill(s->index, at, word, n, why) ? TD_OK : refused(why, err);
}

static void enter_cuda(device *d)
{
    const cuda_state *const s = d->state;
    k_cuda_enter(s->index);
}

static td_status stream_cuda(device *d, bool urgent, void **out, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    *out = k_cuda_stream_open(s->index, urgent, why);
    return *out == NULL ? refused(why, err) : hold(s, HELD_STREAM, *out, err);
}

static td_status event_cuda(device *d, void **out, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    *out = k_cuda_event_open(s->index, why);
    return *out == NULL ? refused(why, err) : hold(s, HELD_EVENT, *out, err);
}

static td_status compute_cuda(device *d, k_ctx *ctx, void *stream, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    void *const mem = td_alloc(s->arena, 1, k_cuda_lane_size());
    if (mem == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device");
    k_cuda_lane *const lane = k_cuda_lane_open(mem, s->index, stream, s->bf16, why);
    if (lane == NULL) return refused(why, err);
    d->lane_bytes += (int64_t)k_cuda_lane_device_bytes();
    d->n_allocs++;
    k_cuda_use(ctx, lane);
    return hold(s, HELD_LANE, lane, err);
}

static void record_cuda(device *d, void *event, void *stream)
{
    cuda_state *const s = d->state;
    if (!k_cuda_record(event, stream)) s->failed = true;
}

static void wait_cuda(device *d, void *stream, void *event)
{
    cuda_state *const s = d->state;
    if (!k_cuda_wait(stream, event)) s->failed = true;
}

static void copy_cuda(device *d, void *stream, void *to, const void *from, int64_t bytes)
{
    cuda_state *const s = d->state;
    if (!k_cuda_copy(stream, to, from, bytes)) s->failed = true;
}

static k_cuda_number number_of(wire_kind kind)
{
    if (kind == WIRE_SUM_DOUBLE) return K_CUDA_DOUBLE;
    const bool bf16 =
        kind == WIRE_SUM_BF16 || kind == WIRE_SUM_PIECES_BF16 || kind == WIRE_SUM_ROOT_BF16;
    return bf16 ? K_CUDA_BF16 : K_CUDA_FLOAT;
}

static void combine_cuda(device *d, void *stream, wire_kind kind, void *const *data, uint32_t n,
                         int64_t bytes, uint32_t only)
{
    cuda_state *const s = d->state;
    const bool fine = kind == WIRE_VOCAB
                          ? k_cuda_vocab_join(stream, s->bf16, data, n)
                          : k_cuda_sum(stream, number_of(kind), data, n, bytes, only);
    if (!fine) s->failed = true;
}

static void idle_cuda(device *d, void *stream, int64_t ns)
{
    cuda_state *const s = d->state;
    if (!k_cuda_idle(stream, ns)) s->failed = true;
}

static int64_t elapsed_cuda(device *d, void *from, void *to)
{
    (void)d;
    return k_cuda_elapsed_ns(from, to);
}

static td_status happened_cuda(device *d, void *event, bool *out, td_err *err)
{
    (void)d;
    char why[K_CUDA_WHY] = "";
    return k_cuda_happened(event, out, why) ? TD_OK : refused(why, err);
}

static td_status synchronize_cuda(device *d, void *stream, td_err *err)
{
    cuda_state *const s = d->state;
    char why[K_CUDA_WHY] = "";
    const bool fine =
        stream == NULL ? k_cuda_synchronize(s->index, why) : k_cuda_stream_synchronize(stream, why);
    if (!fine) return refused(why, err);
    for (const held_thing *h = s->held; h != NULL; h = h->next)
        if (h->kind == HELD_LANE && k_cuda_lane_error(h->it) != NULL)
            return refused(k_cuda_lane_error(h->it), err);
    return s->failed ? refused("work could not be given to the device", err) : TD_OK;
}

td_status device_open_cuda(int index, bool bf16, td_arena *a, device *out, td_err *err)
{
    static const device_methods methods = {.name = "cuda",
                                           .close = close_cuda,
                                           .alloc = alloc_cuda,
                                           .release = release_cuda,
                                           .alloc_either = alloc_either_cuda,
                                           .move = move_either_cuda,
                                           .alloc_host = alloc_host_cuda,
                                           .read = read_cuda,
                                           .write = write_cuda,
                                           .fill = fill_cuda,
                                           .enter = enter_cuda,
                                           .stream = stream_cuda,
                                           .event = event_cuda,
                                           .compute = compute_cuda,
                                           .record = record_cuda,
                                           .wait = wait_cuda,
                                           .copy = copy_cuda,
                                           .combine = combine_cuda,
                                           .elapsed_ns = elapsed_cuda,
                                           .idle = idle_cuda,
                                           .happened = happened_cuda,
                                           .synchronize = synchronize_cuda,
                                           .in_use = in_use_cuda};
    char why[K_CUDA_WHY] = "";
    k_cuda_info info;
    if (k_cuda_devices(why) <= index) return refused(why, err);
    if (!k_cuda_device_info(index, &info, why)) return refused(why, err);
    cuda_state *const s = TD_NEW(a, cuda_state);
    if (s == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device");
    *s = (cuda_state){.arena = a, .index = index, .bf16 = bf16};
    *out = (device){.methods = &methods, .element_bytes = bf16 ? 2 : 4, .state = s};
    (void)snprintf(out->name, sizeof out->name, "cuda");
    (void)snprintf(out->place, sizeof out->place, "%s", info.place);
    out->units = info.multiprocessors;
    void *moves = NULL;
    TD_TRY(stream_cuda(out, false, &moves, err));
    s->moves = moves;
    return TD_OK;
}

int device_count_cuda(void)
{
    char why[K_CUDA_WHY] = "";
    return k_cuda_devices(why);
}

void device_list_cuda(td_text *out, int *n)
{
    char why[K_CUDA_WHY] = "";
    *n = k_cuda_devices(why);
    if (*n == 0) td_text_addf(out, "none: %s", why);
    for (int i = 0; i < *n; i++) {
        k_cuda_info info;
        if (!k_cuda_device_info(i, &info, why)) {
            td_text_addf(out, "%s%d: %s", i == 0 ? "" : "; ", i, why);
            continue;
        }
        td_text_addf(out,
                     "%s%d: %s, sm_%d%d, %d multiprocessors, %.1f of %.1f GiB free, driver %d.%d, "
                     "runtime %d.%d",
                     i == 0 ? "" : "; ", i, info.name, info.major, info.minor, info.multiprocessors,
                     (double)info.free_bytes / (1 << 30), (double)info.memory_bytes / (1 << 30),
                     info.driver / 1000, info.driver % 1000 / 10, info.runtime / 1000,
                     info.runtime % 1000 / 10);
    }
}

#else

td_status device_open_cuda(int index, bool bf16, td_arena *a, device *out, td_err *err)
{
    (void)index, (void)bf16, (void)a, (void)out;
    return td_fail(err, TD_EDEVICE,
                   "--backend cuda: this build has no CUDA backend; configure it with "
                   "-DTD_CUDA=ON, or use --backend cpu");
}

int device_count_cuda(void) { return 0; }

void device_list_cuda(td_text *out, int *n)
{
    *n = 0;
    td_text_add(out, "this build has no CUDA backend");
}

#endif
