/* Contexts: a pool of threads that share the pieces of one call.
 *
 * The state of a call is one 64-bit ticket: epoch, number of pieces, next piece. A thread takes a
 * piece by adding one to the ticket it has read; the exchange fails when the call is over or
 * another thread was faster, so a late thread can never run a piece of a call that has ended. */
#include "kernels/k_internal.h"
#include "kernels/k_ops.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

enum { PIECE_BITS = 20, SPINS = 4000 };
#define PIECE_MASK ((UINT64_C(1) << PIECE_BITS) - 1)

typedef struct thread_arg {
    k_ctx *ctx;
    pthread_t thread;
    float *scratch;
} thread_arg;

struct k_ctx {
    const k_blas *blas;
    const k_isa *isa;
    const k_ops *ops;
    void *device;
    long element_bytes;
    int threads, started;
    _Atomic uint64_t ticket;
    _Atomic(k_work) fn;
    _Atomic(const void *) args;
    atomic_long done;
    atomic_int sleepers;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    double sums[K_SUMS];
    thread_arg lanes[];
};

static size_t round64(size_t n) { return (n + 63) / 64 * 64; }

static size_t head_size(int threads)
{
    return round64(sizeof(k_ctx) + (size_t)threads * sizeof(thread_arg));
}

size_t k_ctx_size(int threads)
{
    return head_size(threads) + (size_t)threads * K_SCRATCH_FLOATS * sizeof(float);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static bool has_piece(uint64_t ticket)
{
    return (ticket & PIECE_MASK) < (ticket >> PIECE_BITS & PIECE_MASK);
}

/* Takes and runs pieces until there are none. */
static void work(k_ctx *ctx, float *scratch)
{
    uint64_t ticket = atomic_load(&ctx->ticket);
    while (has_piece(ticket)) {
        const k_work fn = atomic_load(&ctx->fn);
        const void *args = atomic_load(&ctx->args);
        if (!atomic_compare_exchange_strong(&ctx->ticket, &ticket, ticket + 1)) continue;
        fn(args, (long)(ticket & PIECE_MASK), scratch);
        atomic_fetch_add(&ctx->done, 1);
        ticket = atomic_load(&ctx->ticket);
    }
}

static void sleep_until_work(k_ctx *ctx)
{
    for (int i = 0; i < SPINS; i++) {
        if (has_piece(atomic_load(&ctx->ticket)) || atomic_load(&ctx->stop)) return;
        relax();
    }
    pthread_mutex_lock(&ctx->lock);
    atomic_fetch_add(&ctx->sleepers, 1);
    while (!has_piece(atomic_load(&ctx->ticket)) && !atomic_load(&ctx->stop)) {
        pthread_cond_wait(&ctx->wake, &ctx->lock);
    }
    atomic_fetch_sub(&ctx->sleepers, 1);
    pthread_mutex_unlock(&ctx->lock);
}

static void wake_all(k_ctx *ctx)
{
    pthread_mutex_lock(&ctx->lock);
    pthread_cond_broadcast(&ctx->wake);
    pthread_mutex_unlock(&ctx->lock);
}

static void *thread_main(void *p)
{
    const thread_arg *lane = (const thread_arg *)p;
    while (!atomic_load(&lane->ctx->stop)) {
        work(lane->ctx, lane->scratch);
        sleep_until_work(lane->ctx);
    }
    return NULL;
}

static void run_some(k_ctx *ctx, long pieces, k_work fn, const void *args)
{
    const uint64_t epoch = atomic_load(&ctx->ticket) >> (2 * PIECE_BITS);
    atomic_store(&ctx->fn, fn);
    atomic_store(&ctx->args, args);
    atomic_store(&ctx->done, 0);
    atomic_store(&ctx->ticket, (epoch + 1) << (2 * PIECE_BITS) | (uint64_t)pieces << PIECE_BITS);
    if (atomic_load(&ctx->sleepers) > 0) wake_all(ctx);
    work(ctx, ctx->lanes[0].scratch);
    for (int i = 0; atomic_load(&ctx->done) < pieces; i++) {
        if (i < SPINS) {
            relax();
        } else {
            sched_yield();
        }
    }
}

void k_run(k_ctx *ctx, long pieces, k_work fn, const void *args)
{
    if (ctx->threads == 1 || pieces <= 1 || pieces > (long)PIECE_MASK) {
        for (long i = 0; i < pieces; i++) fn(args, i, ctx->lanes[0].scratch);
        return;
    }
    run_some(ctx, pieces, fn, args);
}

static const k_isa *best_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd")) {
        return &k_isa_v4;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2")) {
        return &k_isa_v3;
    }
#endif
    return &k_isa_v1;
}

k_ctx *k_ctx_start(void *mem, const k_blas *blas, int threads)
{
    k_ctx *ctx = (k_ctx *)mem;
    memset(mem, 0, k_ctx_size(threads)); /* touches the scratch, too */
    ctx->blas = blas;
    ctx->isa = best_isa();
    k_ctx_set_device(ctx, &k_ops_cpu, NULL, sizeof(float));
    ctx->threads = threads;
    pthread_mutex_init(&ctx->lock, NULL);
    pthread_cond_init(&ctx->wake, NULL);
    for (int i = 0; i < threads; i++) {
        char *scratch = (char *)mem + head_size(threads);
        ctx->lanes[i].ctx = ctx;
        ctx->lanes[i].scratch = (float *)(void *)scratch + i * K_SCRATCH_FLOATS;
    }
    for (ctx->started = 1; ctx->started < threads; ctx->started++) {
        thread_arg *lane = &ctx->lanes[ctx->started];
        if (pthread_create(&lane->thread, NULL, thread_main, lane) != 0) {
            k_ctx_stop(ctx);
            return NULL;
        }
    }
    return ctx;
}

void k_ctx_stop(k_ctx *ctx)
{
    if (!ctx) return;
    atomic_store(&ctx->stop, true);
    wake_all(ctx);
    for (int i = 1; i < ctx->started; i++) pthread_join(ctx->lanes[i].thread, NULL);
    pthread_cond_destroy(&ctx->wake);
    pthread_mutex_destroy(&ctx->lock);
}

const k_ops *k_ops_of(const k_ctx *ctx) { return ctx->ops; }

long k_ctx_element_bytes(const k_ctx *ctx) { return ctx->element_bytes; }

void *k_ctx_device(const k_ctx *ctx) { return ctx->device; }

void k_ctx_set_device(k_ctx *ctx, const k_ops *ops, void *device, long element_bytes)
{
    ctx->ops = ops;
    ctx->device = device;
    ctx->element_bytes = element_bytes;
}

int k_ctx_threads(const k_ctx *ctx) { return ctx->threads; }

const char *k_ctx_isa(const k_ctx *ctx) { return ctx->isa->name; }

bool k_ctx_set_isa(k_ctx *ctx, const char *isa)
{
    const k_isa *best = best_isa();
    const k_isa *const known[] = {
        &k_isa_v1,
#if defined(__x86_64__)
        &k_isa_v3,
        &k_isa_v4,
#endif
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i]->name, isa) == 0) {
            ctx->isa = known[i];
            return true;
        }
        if (known[i] == best) return false;
    }
    return false;
}

const k_isa *k_ctx_bodies(const k_ctx *ctx) { return ctx->isa; }

const k_blas *k_ctx_blas(const k_ctx *ctx) { return ctx->blas; }

double *k_ctx_sums(k_ctx *ctx) { return ctx->sums; }
