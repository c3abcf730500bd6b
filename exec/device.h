/* A device that computes for the ranks of this process: its memory, streams and events, under the
 * plan. Ranks' threads only issue work; nobody waits for the device inside a step. A stream does
 * what it is given in order; wait() makes it go on no earlier than what record() marked is done. */
#ifndef EXEC_DEVICE_H
#define EXEC_DEVICE_H

#include "base/base.h"
#include "exec/wire.h"
#include "kernels/k_ops.h"

typedef struct device device;

/* Streams and events are the method's own, opaque here. Failures while work is issued are kept and
 * told by the next synchronize. */
typedef struct device_methods {
    const char *name;
    void (*close)(device *d);
    /* Memory that the host may use while the device has no work on it; `touched` keeps it 256-byte
     * aligned. Freed by close. */
    td_status (*alloc)(device *d, int64_t bytes, void **at, td_err *err);
    /* Writes the eight-byte word n times. */
    td_status (*fill)(device *d, void *at, uint64_t word, int64_t n, td_err *err);
    /* The host has done what it wanted with this memory for now: a hint. */
    void (*settle)(device *d, void *at, int64_t bytes);
    td_status (*stream)(device *d, void **out, td_err *err);
    td_status (*event)(device *d, void **out, td_err *err);
    /* Lets ctx compute on a stream. */
    td_status (*compute)(device *d, k_ctx *ctx, void *stream, td_err *err);
    void (*record)(device *d, void *event, void *stream);
    void (*wait)(device *d, void *stream, void *event);
    void (*copy)(device *d, void *stream, void *to, const void *from, int64_t bytes);
    /* wire_combine, on a stream */
    void (*combine)(device *d, void *stream, wire_kind kind, void *const *data, uint32_t n,
                    int64_t bytes, uint32_t only);
    int64_t (*elapsed_ns)(device *d, void *from, void *to);
    /* Of one stream, or of all (NULL). TD_EDEVICE with what failed on the device. */
    td_status (*synchronize)(device *d, void *stream, td_err *err);
} device_methods;

struct device {
    const device_methods *methods;
    char name[200];
    int64_t element_bytes; /* 4, or 2 for bf16 */
    int64_t outside_bytes; /* of the device's memory, beside what alloc gave */
    void *state;
};

/* The index-th CUDA device of this machine; bf16: elements are bf16. TD_EDEVICE says plainly what
 * is missing. */
TD_MUST_USE td_status device_open_cuda(int index, bool bf16, td_arena *a, device *out, td_err *err);
/* One line about each CUDA device, or why there is none. */
void device_list_cuda(td_text *out, int *n);

#endif
