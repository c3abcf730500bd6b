/* The stand-in's streams, events and memory: what is ordered comes out right under every seed, and
 * what is not comes out wrong under some. */
#include "standin_case.h"

#include <cstring>

enum { N = 300 };

static __global__ void fill(int n, int value, int *x)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) x[i] = value;
}

static __global__ void twice(int n, const int *x, int *y)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = 2 * x[i];
}

static void launch_fill(cudaStream_t s, int value, int *x)
{
    cu_launch(fill, (N + 63) / 64, 64, 0, s, N, value, x);
    fine(cudaGetLastError());
}

static void launch_twice(cudaStream_t s, const int *x, int *y)
{
    cu_launch(twice, (N + 63) / 64, 64, 0, s, N, x, y);
    fine(cudaGetLastError());
}

static int all_are(const int *x, int value)
{
    for (int i = 0; i < N; i++)
        if (x[i] != value) return CASE_WRONG;
    return CASE_RIGHT;
}

/* --- streams and events --- */

static int in_order(void)
{
    const cudaStream_t s = new_stream();
    int *const x = device_array<int>(N), *const y = pinned_array<int>(N);
    launch_fill(s, 3, x);
    launch_fill(s, 4, x);
    fine(cudaMemcpyAsync(y, x, N * sizeof *x, cudaMemcpyDeviceToHost, s));
    fine(cudaStreamSynchronize(s));
    return all_are(y, 4);
}

/* Writer and reader on two streams. */
static int across(bool records, bool waits)
{
    const cudaStream_t a = new_stream(), b = new_stream();
    const cudaEvent_t written = new_event();
    int *const x = device_array<int>(N), *const y = pinned_array<int>(N);
    launch_fill(a, 1, x);
    fine(cudaDeviceSynchronize());
    launch_fill(a, 21, x);
    if (records) fine(cudaEventRecord(written, a));
    if (waits) fine(cudaStreamWaitEvent(b, written, 0));
    launch_twice(b, x, y);
    fine(cudaDeviceSynchronize());
    return all_are(y, 42);
}

static int with_event(void) { return across(true, true); }
static int without_wait(void) { return across(true, false); }
static int without_record(void) { return across(false, true); }

/* An event that is recorded again: a wait is for what was recorded before it. */
static int recorded_again(void)
{
    const cudaStream_t a = new_stream(), b = new_stream();
    const cudaEvent_t e = new_event();
    int *const x = device_array<int>(N), *const y = pinned_array<int>(2 * N);
    for (int i = 0; i < 2; i++) {
        launch_fill(a, i + 1, x + 0);
        fine(cudaEventRecord(e, a));
        fine(cudaStreamWaitEvent(b, e, 0));
        launch_twice(b, x, y + i * N);
        fine(cudaEventRecord(e, b));
        fine(cudaStreamWaitEvent(a, e, 0));
    }
    fine(cudaDeviceSynchronize());
    return all_are(y, 2) == CASE_RIGHT ? all_are(y + N, 4) : CASE_WRONG;
}

static int times(void)
{
    const cudaStream_t s = new_stream();
    const cudaEvent_t from = new_event(), to = new_event();
    int *const x = device_array<int>(N);
    float ms = -1;
    fine(cudaEventRecord(from, s));
    launch_fill(s, 1, x);
    fine(cudaEventRecord(to, s));
    fine(cudaEventSynchronize(to));
    fine(cudaEventElapsedTime(&ms, from, to));
    return ms >= 0 ? CASE_RIGHT : CASE_WRONG;
}

static int time_of_nothing(void)
{
    float ms;
    fine(cudaEventElapsedTime(&ms, new_event(), new_event()));
    return CASE_RIGHT;
}

/* --- the host beside the device --- */

static int read_unsynchronized(void)
{
    const cudaStream_t s = new_stream();
    int *const y = pinned_array<int>(N);
    launch_fill(s, 5, y);
    return all_are(y, 5);
}

static int written_meanwhile(void)
{
    const cudaStream_t s = new_stream();
    int *const from = pinned_array<int>(N), *const y = pinned_array<int>(N);
    for (int i = 0; i < N; i++) from[i] = 6;
    fine(cudaMemcpyAsync(y, from, N * sizeof *y, cudaMemcpyHostToHost, s));
    memset(from, 0, N * sizeof *from);
    fine(cudaStreamSynchronize(s));
    return all_are(y, 6);
}

/* --- memory --- */

static int poisoned(void)
{
    uint16_t *const x = device_array<uint16_t>(N), *const y = pinned_array<uint16_t>(N);
    fine(cudaMemcpy(y, x, N * sizeof *y, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N; i++)
        if (y[i] != 0x7ff7) return CASE_WRONG;
    return CASE_RIGHT;
}

static int host_touches(void)
{
    volatile int *const x = device_array<int>(N);
    return x[3] == 0 ? CASE_RIGHT : CASE_WRONG;
}

static int far_behind(void)
{
    int *const x = device_array<int>(N - 100);
    launch_fill(nullptr, 1, x);
    fine(cudaDeviceSynchronize());
    return CASE_RIGHT;
}

static int just_behind(void)
{
    int *const x = device_array<int>(N - 1);
    launch_fill(nullptr, 1, x);
    fine(cudaDeviceSynchronize());
    fine(cudaFree(x));
    return CASE_RIGHT;
}

static int copied_behind(void)
{
    int *const x = device_array<int>(N), *const y = pinned_array<int>(2 * N);
    fine(cudaMemcpy(y, x, (N + 1) * sizeof *x, cudaMemcpyDeviceToHost));
    return CASE_RIGHT;
}

static int too_much(void)
{
    (void)device_array<char>((size_t)9 << 30);
    return CASE_RIGHT;
}

static int freed_and_counted(void)
{
    size_t before, meanwhile, after, total;
    fine(cudaMemGetInfo(&before, &total));
    char *const x = device_array<char>(12345);
    fine(cudaMemGetInfo(&meanwhile, &total));
    fine(cudaFree(x));
    fine(cudaMemGetInfo(&after, &total));
    return before == after && before == meanwhile + 12345 ? CASE_RIGHT : CASE_WRONG;
}

int main(void)
{
    typedef standin_case c;
    const standin_case all[] = {
        {"work of one stream", in_order, c::ALL_RIGHT, nullptr},
        {"two streams joined by an event", with_event, c::ALL_RIGHT, nullptr},
        {"  nobody waits for it", without_wait, c::SOME_WRONG, nullptr},
        {"  nobody records it", without_record, c::SOME_WRONG, nullptr},
        {"an event recorded again", recorded_again, c::ALL_RIGHT, nullptr},
        {"time between events", times, c::ALL_RIGHT, nullptr},
        {"  that never happened", time_of_nothing, c::REFUSED, "error"},
        {"the host reads before it waits", read_unsynchronized, c::SOME_WRONG, nullptr},
        {"the host writes what is to be copied", written_meanwhile, c::SOME_WRONG, nullptr},
        {"memory holds nothing at first", poisoned, c::ALL_RIGHT, nullptr},
        {"the host touches the device's memory", host_touches, c::REFUSED, ""},
        {"a kernel writes far behind its memory", far_behind, c::REFUSED, ""},
        {"  just behind it", just_behind, c::REFUSED, "wrote behind"},
        {"a copy from behind memory", copied_behind, c::REFUSED, "invalid argument"},
        {"more memory than there is", too_much, c::REFUSED, "out of memory"},
        {"memory that is free again", freed_and_counted, c::ALL_RIGHT, nullptr},
    };
    return standin_cases(all, sizeof all / sizeof *all);
}
