/* The kernels of k_ops.h on an NVIDIA GPU, and what of a device the executor needs: memory,
 * streams, events. Callable from C.
 *
 * Errors: functions that can fail say why in `why` (of K_CUDA_WHY bytes) and return false. Launches
 * do not: a lane keeps its first error for k_cuda_lane_error. Calls return before the work is done.
 * Everything is deterministic: no atomics on numbers, one algorithm a shape. */
#ifndef KERNELS_KERNELS_CUDA_H
#define KERNELS_KERNELS_CUDA_H

#include "kernels/k_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { K_CUDA_WHY = 256, K_CUDA_PIECES_MAX = 64, K_CUDA_MEMBERS_MAX = 64 };

typedef struct k_cuda_info {
    char name[256];
    char place[32]; /* the bus that it sits on */
    int major, minor, multiprocessors;
    int driver, runtime; /* 1000 * major + 10 * minor */
    size_t memory_bytes, free_bytes;
} k_cuda_info;

typedef struct k_cuda_stream k_cuda_stream; /* a cudaStream_t */
typedef struct k_cuda_event k_cuda_event;   /* a cudaEvent_t, with time */

/* Devices that can compute; 0 with the reason in `why`. */
int k_cuda_devices(char *why);
bool k_cuda_device_info(int device, k_cuda_info *out, char *why);

/* Memory of the device alone. */
void *k_cuda_alloc(int device, size_t bytes, char *why);
/* Memory that host and device both address and that lives on the device; the host may use it while
 * no work on it is under way. */
void *k_cuda_alloc_shared(int device, size_t bytes, char *why);
/* Moves such memory to the device or to the host, and waits for that. */
bool k_cuda_prefetch(int device, k_cuda_stream *s, void *at, size_t bytes, bool to_device,
                     char *why);
/* Memory of the host that the device reads and writes; zeroed. */
void *k_cuda_alloc_host(size_t bytes, char *why);
void k_cuda_free(void *at);
void k_cuda_free_host(void *at);
/* Writes `word` n times, and waits for that. */
bool k_cuda_fill(int device, void *at, uint64_t word, int64_t n, char *why);
/* Copies between memory of any kind on a stream, and waits for that. */
bool k_cuda_move(k_cuda_stream *s, void *to, const void *from, size_t bytes, char *why);

/* --- streams and events --- */

/* The calling thread gives work to this device from now on. */
void k_cuda_enter(int device);
/* urgent: its kernels go before those of other streams that have not begun. */
k_cuda_stream *k_cuda_stream_open(int device, bool urgent, char *why);
void k_cuda_stream_close(k_cuda_stream *s);
k_cuda_event *k_cuda_event_open(int device, char *why);
void k_cuda_event_close(k_cuda_event *e);
bool k_cuda_record(k_cuda_event *e, k_cuda_stream *s);
bool k_cuda_wait(k_cuda_stream *s, k_cuda_event *e);
/* Whether it has happened, or was never recorded. */
bool k_cuda_happened(k_cuda_event *e, bool *out, char *why);
/* Time between two events that have happened. */
int64_t k_cuda_elapsed_ns(k_cuda_event *from, k_cuda_event *to);
/* Keeps a stream busy for about so long with nothing. */
bool k_cuda_idle(k_cuda_stream *s, int64_t ns);
/* Waits for all work on the device, or of one stream; false with the error of what failed. */
bool k_cuda_synchronize(int device, char *why);
bool k_cuda_stream_synchronize(k_cuda_stream *s, char *why);

typedef enum k_cuda_number { K_CUDA_FLOAT, K_CUDA_DOUBLE, K_CUDA_BF16 } k_cuda_number;

/* data[m] of n members, `bytes` each: their sum in member order, in all of them or in data[only]
 * (UINT32_MAX: all). bf16 is added as floats and rounded once. n <= K_CUDA_MEMBERS_MAX. */
bool k_cuda_sum(k_cuda_stream *s, k_cuda_number of, void *const *data, uint32_t n, int64_t bytes,
                uint32_t only);
/* k_vocab_join of n members' data, which begins with two words, rows and width; statistics and
 * parts of inputs (elements) follow, each at a multiple of 64 bytes. */
bool k_cuda_vocab_join(k_cuda_stream *s, bool bf16, void *const *data, uint32_t n);
bool k_cuda_copy(k_cuda_stream *s, void *to, const void *from, int64_t bytes);

/* --- lanes: a stream with what kernels need beside it --- */

typedef struct k_cuda_lane k_cuda_lane;

/* Bytes of host memory that a lane needs, and what it takes of the device outside any arena. */
size_t k_cuda_lane_size(void);
size_t k_cuda_lane_device_bytes(void);
/* Builds a lane in mem (aligned as malloc does) on a stream, which must outlive it. */
k_cuda_lane *k_cuda_lane_open(void *mem, int device, k_cuda_stream *s, bool bf16, char *why);
void k_cuda_lane_close(k_cuda_lane *lane);
/* The first error of the lane's launches; NULL: none. */
const char *k_cuda_lane_error(const k_cuda_lane *lane);

/* Turns a context into one that computes on the lane. */
void k_cuda_use(k_ctx *ctx, k_cuda_lane *lane);

/* floats to elements of the lane */
void k_cuda_narrow(k_cuda_lane *lane, long n, const float *x, void *y);

#ifdef __cplusplus
}
#endif

#endif
