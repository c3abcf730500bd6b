/* Where the bench computes, and its clock: the cores and theirs, or one stream of a device between
 * two events. */
#include "exec/bench.h"

#include "exec/device_run.h"

#include <string.h>

td_status bench_place_open(bench *b, td_err *err)
{
    const device_methods *const m = b->device == NULL ? NULL : b->device->methods;
    if (m == NULL) return TD_OK;
    TD_TRY(m->stream(b->device, false, &b->stream, err));
    TD_TRY(m->event(b->device, &b->from, err));
    TD_TRY(m->event(b->device, &b->to, err));
    return m->compute(b->device, b->ctx[0], b->stream, err);
}

void bench_place_clear(bench *b)
{
    for (int i = 0; i < b->n_held; i++) b->device->methods->release(b->device, b->held[i]);
    b->n_held = 0;
}

int64_t bench_element_bytes(const bench *b)
{
    return b->device == NULL ? (int64_t)sizeof(float) : b->device->element_bytes;
}

void *bench_put(bench *b, td_arena *a, const void *from, int64_t bytes)
{
    void *at = NULL;
    td_err why;
    if (b->device == NULL) {
        at = td_alloc(a, 1, (size_t)(bytes < 1 ? 1 : bytes));
        if (at != NULL && bytes > 0) memcpy(at, from, (size_t)bytes);
        return at;
    }
    const device_methods *const m = b->device->methods;
    if (b->n_held == BENCH_HELD || m->alloc(b->device, bytes < 1 ? 1 : bytes, &at, &why) != TD_OK)
        return NULL;
    b->held[b->n_held++] = at;
    return m->write(b->device, at, from, bytes, &why) == TD_OK ? at : NULL;
}

float *bench_numbers(bench *b, td_arena *a, int64_t n)
{
    const int64_t count = n < 1 ? 1 : n;
    /* of a device's, the host's copy lives for a moment */
    td_arena *const room = b->device == NULL ? a : td_arena_new();
    float *x = room == NULL ? NULL : td_alloc(room, (size_t)count, sizeof *x);
    td_rng r = td_rng_seed(11);
    for (int64_t i = 0; x != NULL && i < count; i++) x[i] = (float)(0.1 * td_rng_unit(&r) - 0.05);
    if (b->device == NULL) return x;
    if (x != NULL) x = bench_put(b, a, x, count * (int64_t)sizeof *x);
    td_arena_free(room);
    return x;
}

float *bench_elements(bench *b, td_arena *a, int64_t n)
{
    const int64_t count = n < 1 ? 1 : n;
    if (bench_element_bytes(b) == (int64_t)sizeof(float)) return bench_numbers(b, a, n);
    td_arena *const room = td_arena_new();
    uint16_t *const x = room == NULL ? NULL : td_alloc(room, (size_t)count, sizeof *x);
    td_rng r = td_rng_seed(11);
    for (int64_t i = 0; x != NULL && i < count; i++)
        x[i] = td_bf16_of_float((float)(0.1 * td_rng_unit(&r) - 0.05));
    float *const at = x == NULL ? NULL : bench_put(b, a, x, count * (int64_t)sizeof *x);
    td_arena_free(room);
    return at;
}

/* --- the clock --- */

int64_t bench_begin(bench *b)
{
    enum { LONGEST_NS = 20000000 };
    if (b->device != NULL) {
        const device_methods *const m = b->device->methods;
        const int64_t idle = b->issue_ns + b->issue_ns / 2;
        m->idle(b->device, b->stream, idle < LONGEST_NS ? idle : LONGEST_NS);
        m->record(b->device, b->from, b->stream);
    }
    return td_now_ns();
}

int64_t bench_end(bench *b, int64_t begin)
{
    const int64_t took = td_now_ns() - begin;
    if (b->device == NULL) return took;
    const device_methods *const m = b->device->methods;
    /* what was being given to the device: the longest of late */
    b->issue_ns = took > b->issue_ns - b->issue_ns / 16 ? took : b->issue_ns - b->issue_ns / 16;
    m->record(b->device, b->to, b->stream);
    if (b->failed.code == TD_OK) (void)m->synchronize(b->device, b->stream, &b->failed);
    return m->elapsed_ns(b->device, b->from, b->to);
}
