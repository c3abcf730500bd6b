/* Streams, events, and who runs next. */
#include "standin_block.h"
#include "standin_state.h"

#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

struct piece_of_work {
    std::function<void()> run;
    std::function<bool()> ready;
};

struct CUstream_st {
    std::deque<piece_of_work> queue;
    uint64_t queued = 0, done = 0, rank = 0; /* rank: drawn; the lowest one runs first */
    bool closed = false;
};

/* One recording of an event, kept by those who wait for it. */
struct recording {
    bool done = false;
    int64_t at_ns = 0;
};

struct CUevent_st {
    std::shared_ptr<recording> latest;
    bool timed = true;
};

static std::mutex the_mutex;
std::mutex &standin_mutex(void) { return the_mutex; }

/* All under the lock. */
struct gpu_state {
    std::vector<CUstream_st *> streams; /* the first one is CUDA's default stream */
    std::map<const void *, size_t> shared_limits;
    std::condition_variable_any moved;
    bool running = false, seeded = false;
    uint64_t random = 0, eagerness = 0; /* of 256: how often a call runs what it can */
    bool ranked = false; /* some streams run far ahead of others; else any is as likely */
    cudaError_t broken = cudaSuccess; /* by a kernel: stays */
};
static gpu_state &s = *new gpu_state; /* never ends: threads may outlive static objects */

static thread_local cudaError_t last_error = cudaSuccess;

cudaError_t standin_fail(cudaError_t e)
{
    last_error = e;
    return e;
}

static void seed_once(void)
{
    if (s.seeded) return;
    const char *const text = getenv("TD_STANDIN_SEED");
    s.random = text == nullptr ? 0 : strtoull(text, nullptr, 10);
    const uint64_t often[] = {0, 0, 96, 0, 96, 256};
    s.eagerness = often[s.random % 6];
    s.ranked = s.random % 6 == 1 || s.random % 6 == 3 || s.random % 6 == 4;
    s.streams.push_back(new CUstream_st);
    s.seeded = true;
}

static CUstream_st *stream_of(cudaStream_t stream)
{
    seed_once();
    return stream == nullptr ? s.streams[0] : stream;
}

/* --- running --- */

static bool may_run(const CUstream_st *one)
{
    return !one->queue.empty() && (!one->queue.front().ready || one->queue.front().ready());
}

/* The stream that runs next; NULL: none can. Ranks hold for a while, then one is drawn anew. */
static CUstream_st *choose(void)
{
    CUstream_st *chosen = nullptr;
    uint64_t n = 0;
    if (s.ranked && standin_next(&s.random) % 32 == 0)
        s.streams[standin_next(&s.random) % s.streams.size()]->rank = standin_next(&s.random);
    for (CUstream_st *one : s.streams) {
        if (!may_run(one)) continue;
        if (chosen == nullptr ||
            (s.ranked ? one->rank < chosen->rank : standin_next(&s.random) % (n + 1) == 0))
            chosen = one;
        n++;
    }
    return chosen;
}

/* Runs one piece of some stream; false: none can run. Gives the lock up meanwhile. */
static bool run_one(void)
{
    CUstream_st *const chosen = choose();
    if (chosen == nullptr) return false;
    piece_of_work work = std::move(chosen->queue.front());
    s.running = true;
    standin_memory_open(true);
    standin_mutex().unlock();
    work.run();
    standin_mutex().lock();
    s.running = false;
    chosen->queue.pop_front();
    chosen->done++;
    return true;
}

/* Runs pieces until it is so. Under the lock. */
static void run_until(const std::function<bool()> &so)
{
    while (!so()) {
        if (s.running || !run_one())
            s.moved.wait_for(standin_mutex(), std::chrono::milliseconds(1));
    }
    s.moved.notify_all();
    if (!s.running) standin_memory_open(false);
    for (size_t i = 1; i < s.streams.size();)
        if (s.streams[i]->closed && s.streams[i]->queue.empty()) {
            delete s.streams[i];
            s.streams.erase(s.streams.begin() + (long)i);
        } else {
            i++;
        }
}

static void push(CUstream_st *one, std::function<void()> work, std::function<bool()> ready)
{
    one->queue.push_back({std::move(work), std::move(ready)});
    one->queued++;
    if (s.running) return;
    /* memory stays open until somebody waits: closing it each time would cost too much */
    while (standin_next(&s.random) % 256 < s.eagerness && !s.running && run_one()) continue;
}

void standin_queue(cudaStream_t stream, std::function<void()> work, std::function<bool()> ready)
{
    const standin_lock lock;
    push(stream_of(stream), std::move(work), std::move(ready));
}

/* --- kernels --- */

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute what, int value)
{
    const standin_lock lock;
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        value > STANDIN_SHARED_MAX)
        return standin_fail(cudaErrorInvalidValue);
    s.shared_limits[kernel] = (size_t)value;
    return cudaSuccess;
}

static bool legal(dim3 grid, dim3 block)
{
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    return threads > 0 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 &&
           threads <= STANDIN_THREADS_MAX && grid.x > 0 && grid.y > 0 && grid.z > 0 &&
           grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
}

void standin_queue_kernel(const char *call, const void *kernel, dim3 grid, dim3 block,
                          size_t shared, cudaStream_t stream, std::function<void()> thread)
{
    const standin_lock lock;
    CUstream_st *const on = stream_of(stream);
    const auto limit = s.shared_limits.find(kernel);
    const size_t most = limit == s.shared_limits.end() ? 48 << 10 : limit->second;
    if (!legal(grid, block) || shared > (most > 48 << 10 ? most : 48 << 10)) {
        (void)standin_fail(legal(grid, block) ? cudaErrorInvalidValue
                                              : cudaErrorInvalidConfiguration);
        return;
    }
    const uint64_t seed = standin_next(&s.random);
    const standin_kernel k = {call, kernel, grid, block, shared, std::move(thread)};
    push(
        on,
        [k, seed] {
            if (s.broken == cudaSuccess && !standin_run_kernel(&k, seed))
                s.broken = cudaErrorLaunchFailure;
        },
        nullptr);
}

/* --- streams --- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    const standin_lock lock;
    seed_once();
    if (flags != cudaStreamNonBlocking) return standin_fail(cudaErrorNotSupported);
    *stream = new CUstream_st;
    (*stream)->rank = standin_next(&s.random);
    s.streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    const standin_lock lock;
    if (stream == nullptr || stream->closed) return standin_fail(cudaErrorInvalidResourceHandle);
    stream->closed = true;
    run_until([] { return true; });
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    const standin_lock lock;
    CUstream_st *const one = stream_of(stream);
    const uint64_t all = one->queued;
    run_until([=] { return one->done >= all; });
    return s.broken == cudaSuccess ? cudaSuccess : standin_fail(s.broken);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    const standin_lock lock;
    const CUstream_st *const one = stream_of(stream);
    if (!s.running) (void)run_one();
    if (!s.running) standin_memory_open(false);
    if (s.broken != cudaSuccess) return standin_fail(s.broken);
    return one->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize(void)
{
    const standin_lock lock;
    seed_once();
    run_until([] {
        for (const CUstream_st *one : s.streams)
            if (!one->queue.empty()) return false;
        return true;
    });
    return s.broken == cudaSuccess ? cudaSuccess : standin_fail(s.broken);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*f)(void *), void *arg)
{
    standin_queue(stream, [=] { f(arg); });
    return cudaSuccess;
}

/* --- events --- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    *e = new CUevent_st;
    (*e)->timed = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    const standin_lock lock;
    delete e;
    return cudaSuccess;
}

static int64_t now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    const standin_lock lock;
    const auto mark = std::make_shared<recording>();
    e->latest = mark;
    push(
        stream_of(stream),
        [mark] {
            const standin_lock inner;
            mark->at_ns = now_ns();
            mark->done = true;
        },
        nullptr);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned)
{
    const standin_lock lock;
    const std::shared_ptr<recording> mark = e->latest;
    if (mark)
        push(
            stream_of(stream), [] {}, [mark] { return mark->done; });
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    const standin_lock lock;
    /* what else there is to do meanwhile; memory is opened and closed once for some of it */
    for (int i = 0; i < 64 && !s.running && e->latest && !e->latest->done && run_one(); i++)
        continue;
    if (!s.running) standin_memory_open(false);
    return !e->latest || e->latest->done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    const standin_lock lock;
    const std::shared_ptr<recording> mark = e->latest;
    run_until([=] { return !mark || mark->done; });
    return s.broken == cudaSuccess ? cudaSuccess : standin_fail(s.broken);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    const standin_lock lock;
    if (!from->timed || !to->timed || !from->latest || !to->latest)
        return standin_fail(cudaErrorInvalidResourceHandle);
    if (!from->latest->done || !to->latest->done) return standin_fail(cudaErrorNotReady);
    *ms = (float)((double)(to->latest->at_ns - from->latest->at_ns) / 1e6);
    return cudaSuccess;
}

/* --- errors and devices --- */

cudaError_t cudaPeekAtLastError(void)
{
    const standin_lock lock;
    return s.broken != cudaSuccess ? s.broken : last_error;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t e = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return e;
}
