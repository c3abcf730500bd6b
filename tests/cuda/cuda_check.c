/* Bodies of cuda_check.h. */
#include "tests/cuda/cuda_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t poison = 0x7fc17fc1u; /* a NaN as a float and as two bf16 */

static float round_bf16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    b = (b + 0x7fffu + (b >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &b, sizeof x);
    return x;
}

static float value_at(const cuda_pair *p, const cuda_tensor *t, long i)
{
    float x;
    if (t->wide || !p->bf16) return ((const float *)t->gpu)[i];
    const uint32_t b = (uint32_t)((const uint16_t *)t->gpu)[i] << 16;
    memcpy(&x, &b, sizeof x);
    return x;
}

bool cuda_pair_open(cuda_pair *p, bool bf16, uint64_t seed)
{
    char why[K_CUDA_WHY] = "";
    memset(p, 0, sizeof *p);
    p->bf16 = bf16;
    p->rng = td_rng_seed(seed);
    if (k_cuda_devices(why) > 0) p->stream = k_cuda_stream_open(0, false, why);
    if (p->stream == NULL) {
        printf("skipped: %s\n", why);
        return false;
    }
    k_cuda_info info;
    p->slow = k_cuda_device_info(0, &info, why) && strstr(info.name, "stand-in") != NULL;
    p->arena = td_arena_new();
    k_blas_open(&p->blas, NULL);
    p->mem[0] = td_alloc(p->arena, 1, k_ctx_size(2));
    p->mem[1] = td_alloc(p->arena, 1, k_ctx_size(1));
    p->mem[2] = td_alloc(p->arena, 1, k_cuda_lane_size());
    p->cpu = k_ctx_start(p->mem[0], &p->blas, 2);
    p->gpu = k_ctx_start(p->mem[1], &p->blas, 1);
    p->lane = k_cuda_lane_open(p->mem[2], 0, p->stream, bf16, why);
    if (p->lane == NULL) {
        printf("failed: %s\n", why);
        exit(1);
    }
    k_cuda_use(p->gpu, p->lane);
    return true;
}

void cuda_pair_clear(cuda_pair *p)
{
    char why[K_CUDA_WHY];
    if (!k_cuda_synchronize(0, why)) printf("failed: %s\n", why);
    for (int i = 0; i < p->n_held; i++) k_cuda_free(p->held[i]);
    p->n_held = 0;
}

void cuda_pair_close(cuda_pair *p)
{
    cuda_pair_clear(p);
    k_cuda_lane_close(p->lane);
    k_cuda_stream_close(p->stream);
    k_ctx_stop(p->gpu);
    k_ctx_stop(p->cpu);
    k_blas_close(&p->blas);
    td_arena_free(p->arena);
}

static void *hold(cuda_pair *p, size_t bytes)
{
    char why[K_CUDA_WHY] = "";
    void *const at = k_cuda_alloc_shared(0, bytes, why);
    if (at == NULL || p->n_held == 64) {
        printf("failed: %s\n", at == NULL ? why : "too many tensors in one case");
        exit(1);
    }
    p->held[p->n_held++] = at;
    return at;
}

static cuda_tensor tensor(cuda_pair *p, long n, bool wide)
{
    const size_t bytes = (size_t)n * (p->bf16 && !wide ? 2 : 4);
    return (cuda_tensor){.cpu = td_alloc(p->arena, (size_t)n + 1, sizeof(float)),
                         .gpu = hold(p, bytes + 4),
                         .n = n,
                         .wide = wide};
}

cuda_tensor cuda_random(cuda_pair *p, long n, bool wide)
{
    cuda_tensor t = tensor(p, n, wide);
    for (long i = 0; i < n; i++) {
        const float x = (float)td_rng_normal(&p->rng);
        uint32_t b;
        t.cpu[i] = p->bf16 && !wide ? round_bf16(x) : x;
        memcpy(&b, &t.cpu[i], sizeof b);
        if (p->bf16 && !wide)
            ((uint16_t *)t.gpu)[i] = (uint16_t)(b >> 16);
        else
            ((float *)t.gpu)[i] = t.cpu[i];
    }
    return t;
}

cuda_tensor cuda_output(cuda_pair *p, long n, bool wide)
{
    cuda_tensor t = tensor(p, n, wide);
    const size_t bytes = (size_t)n * (p->bf16 && !wide ? 2 : 4) + 4;
    for (size_t i = 0; i < bytes / 4; i++) memcpy((char *)t.gpu + 4 * i, &poison, 4);
    for (long i = 0; i < n; i++) memcpy(&t.cpu[i], &poison, 4);
    return t;
}

int32_t *cuda_ints(cuda_pair *p, long n, long below, bool with_none)
{
    int32_t *const at = hold(p, (size_t)n * sizeof *at);
    for (long i = 0; i < n; i++) {
        at[i] = (int32_t)td_rng_below(&p->rng, below);
        if (with_none && td_rng_below(&p->rng, 5) == 0) at[i] = -1;
    }
    return at;
}

float *cuda_skip(const cuda_pair *p, const cuda_tensor *t, long n)
{
    char *const at = (char *)t->gpu + n * (p->bf16 && !t->wide ? 2 : 4);
    return (float *)(void *)at;
}

double cuda_error_rows(cuda_pair *p, const cuda_tensor *t, long rows, long cols, long ld)
{
    char why[K_CUDA_WHY] = "";
    double diff = 0, norm = 0;
    const char *const failed = k_cuda_lane_error(p->lane);
    if (!k_cuda_synchronize(0, why) || failed != NULL) {
        printf("failed: %s\n", failed != NULL ? failed : why);
        exit(1);
    }
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < cols; c++) {
            const double a = (double)value_at(p, t, r * ld + c), b = (double)t->cpu[r * ld + c];
            if (!isfinite(a) || !isfinite(b)) return HUGE_VAL;
            diff += (a - b) * (a - b);
            norm += b * b;
        }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

double cuda_error(cuda_pair *p, const cuda_tensor *t)
{
    return cuda_error_rows(p, t, 1, t->n, t->n);
}

double cuda_limit(const cuda_pair *p) { return p->bf16 ? 2e-2 : 1e-4; }

uint64_t cuda_bits(cuda_pair *p, const cuda_tensor *t)
{
    char why[K_CUDA_WHY];
    uint64_t h = 0xcbf29ce484222325u;
    const unsigned char *const s = t->gpu;
    const size_t bytes = (size_t)t->n * (p->bf16 && !t->wide ? 2 : 4);
    if (!k_cuda_synchronize(0, why)) printf("failed: %s\n", why);
    for (size_t i = 0; i < bytes; i++) h = (h ^ s[i]) * 0x100000001b3u;
    return h;
}

void cuda_report(cuda_pair *p, const char *what, double error, bool repeats)
{
    const bool fine = error <= cuda_limit(p) && repeats;
    printf("%s %-5s %-44s error %.2e%s\n", fine ? "ok  " : "FAIL", p->bf16 ? "bf16" : "fp32", what,
           error, repeats ? "" : ", NOT REPEATABLE");
    (void)fflush(stdout);
    if (!fine) p->failed = true;
}

int cuda_main(void (*test)(cuda_pair *p), const char *name)
{
    bool failed = false;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        cuda_pair p;
        if (!cuda_pair_open(&p, bf16 == 1, 20 + (uint64_t)bf16)) return 77;
        test(&p);
        failed = failed || p.failed;
        cuda_pair_close(&p);
    }
    printf("%s: %s\n", name, failed ? "FAIL" : "pass");
    return failed ? 1 : 0;
}
