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
    /* Memory of the device, which the host reads and writes only through what follows; 256-byte
     * aligned. Freed by release, or by close. */
    td_status (*alloc)(device *d, int64_t bytes, void **at, td_err *err);
    void (*release)(device *d, void *at);
    /* Memory that lies on the device or at the host, wherever it was moved last, at one address;
     * 256-byte aligned. Freed by close. */
    td_status (*alloc_either)(device *d, int64_t bytes, void **at, td_err *err);
    td_status (*move)(device *d, void *at, int64_t bytes, bool to_device, td_err *err);
    /* Memory of the host that the device copies from and to without waiting for anybody; zeroed.
     * Freed by close. */
    td_status (*alloc_host)(device *d, int64_t bytes, void **at, td_err *err);
    /* From and to any memory of the host; done on return. Nothing may be under way on `at`. */
    td_status (*read)(device *d, void *to, const void *at, int64_t bytes, td_err *err);
    td_status (*write)(device *d, void *at, const void *from, int64_t bytes, td_err *err);
    /* Writes the eight-byte word n times. */
    td_status (*fill)(device *d, void *at, uint64_t word, int64_t n, td_err *err);
    /* The calling thread will give work to the device. */
    void (*enter)(device *d);
    /* urgent: of messages and sums, which go first where both could. */
    td_status (*stream)(device *d, bool urgent, void **out, td_err *err);
    td_status (*event)(device *d, void **out, td_err *err);
    /* Lets ctx compute on a stream. */
    td_status (*compute)(device *d, k_ctx *ctx, void *stream, td_err *err);
    void (*record)(device *d, void *event, void *stream);
    void (*wait)(device *d, void *stream, void *event);
    /* Either end may be memory of alloc_host. */
    void (*copy)(device *d, void *stream, void *to, const void *from, int64_t bytes);
    /* wire_combine, on a stream */
    void (*combine)(device *d, void *stream, wire_kind kind, void *const *data, uint32_t n,
                    int64_t bytes, uint32_t only);
    int64_t (*elapsed_ns)(device *d, void *from, void *to);
    /* Lets a stream idle for about this long, so that what comes next can all be given to it
     * before it begins. */
    void (*idle)(device *d, void *stream, int64_t ns);
    /* Whether what an event marked is done, if it was recorded. */
    td_status (*happened)(device *d, void *event, bool *out, td_err *err);
    /* Of one stream, or of all (NULL). TD_EDEVICE with what failed on the device. */
    td_status (*synchronize)(device *d, void *stream, td_err *err);
    /* Bytes of the device that are in use, by whomever; -1 where that cannot be known. */
    int64_t (*in_use)(device *d);
} device_methods;

struct device {
    const device_methods *methods;
    char name[200];
    char place[64];        /* names it on this machine, for all processes alike */
    int32_t units;         /* multiprocessors: waiting messages hold some */
    int64_t element_bytes; /* 4, or 2 for bf16 */
    int64_t room_bytes;    /* what alloc gave */
    int64_t lane_bytes;    /* workspaces of contexts that compute */
    int64_t n_allocs;      /* of memory, of either kind, so far */
    void *state;
};

/* What a run takes of a device's memory, in bytes. */
typedef struct device_use {
    bool known;        /* false: there is no device */
    int64_t predicted; /* the plan's peaks of all ranks, each rounded up to its allocation */
    int64_t arenas;    /* allocated for them */
    int64_t beside;    /* allocated for what no rank owns: tables, losses, lists, evaluations */
    int64_t work;      /* workspaces of kernels and libraries that compute */
    int64_t outside;   /* in use on the device beyond these: its context, kernels, libraries, and
                          what other programs hold; -1: cannot be known */
    int64_t n_allocs;  /* of memory */
    int64_t in_steps;  /* of them since the first step began: none is right */
} device_use;

/* "device memory ..." in one line; a JSON object. */
void device_use_words(const device_use *u, td_text *out);
void device_use_json(const device_use *u, td_text *out);

/* The index-th CUDA device of this machine; bf16: elements are bf16. TD_EDEVICE says plainly what
 * is missing. */
TD_MUST_USE td_status device_open_cuda(int index, bool bf16, td_arena *a, device *out, td_err *err);
/* 0 where there are none. */
int device_count_cuda(void);
/* One line about each CUDA device, or why there is none. */
void device_list_cuda(td_text *out, int *n);

#endif
