/* Opening OpenBLAS and oneDNN at run time, with the right core and one thread per call. */
#include "kernels/k_internal.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* Whether oneDNN's products are the faster ones: with AVX-512 its wide kernels win even where the
 * units are half as wide (Zen 4: 3 % forward, 8 % on gradients of inputs; measured). */
static bool onednn_pays(void) { return __builtin_cpu_supports("avx512f") != 0; }

/* The core to ask for, or NULL to leave the choice to the library. OpenBLAS 0.3.21 takes CPUs of
 * AMD family 1Ah (Zen 5) for Haswell though their AVX-512 units are full width; on family 19h
 * (Zen 4), whose units are half as wide, the AVX2 kernels are a few percent faster than any of
 * the AVX-512 ones (measured). Intel's are recognised. */
static const char *core_wanted(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    const unsigned avx512 = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;   /* F DQ BW VL */
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x68747541) return NULL; /* "Auth"enticAMD */
    __get_cpuid(1, &a, &b, &c, &d);
    const unsigned family = (a >> 8 & 15) + (a >> 20 & 255);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & avx512) != avx512) return NULL;
    return family >= 0x1a ? "SkylakeX" : "Haswell";
}
#else
static const char *core_wanted(void) { return NULL; }
static bool onednn_pays(void) { return false; }
#endif

typedef char *(*text_fn)(void);
typedef int (*int_fn)(void);
typedef void (*set_fn)(int);
typedef void (*any_fn)(void);

/* dlsym gives an object pointer; POSIX says that it may be taken for a function. */
static any_fn symbol(void *handle, const char *name)
{
    void *p = dlsym(handle, name);
    any_fn f = NULL;
    memcpy(&f, &p, sizeof f);
    return f;
}

/* One thread per call, whichever way the library was built. */
static void set_one_thread(void *handle)
{
    const set_fn blas = (set_fn)symbol(handle, "openblas_set_num_threads");
    if (blas) blas(1);
}

static void describe_openblas(k_blas *blas)
{
    static const char *const variants[] = {"serial", "pthread", "openmp"};
    const text_fn core = (text_fn)symbol(blas->handle, "openblas_get_corename");
    const text_fn config = (text_fn)symbol(blas->handle, "openblas_get_config");
    const int_fn parallel = (int_fn)symbol(blas->handle, "openblas_get_parallel");
    const int variant = parallel ? parallel() : 0;
    const size_t at = strlen(blas->info);
    char name[40] = "OpenBLAS";
    if (config) {
        const char *text = config();
        const size_t first = strcspn(text, " ");
        snprintf(name, sizeof name, "%.*s",
                 (int)(first + (text[first] ? 1 + strcspn(text + first + 1, " ") : 0)), text);
    }
    snprintf(blas->info + at, sizeof blas->info - at, "%s %s, %s", name,
             variant >= 0 && variant < 3 ? variants[variant] : "?", core ? core() : "core unknown");
}

static void open_openblas(k_blas *blas)
{
    const char *wanted = core_wanted();
    if (wanted) setenv("OPENBLAS_CORETYPE", wanted, 0);
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
    blas->handle = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (blas->handle) blas->sgemm = symbol(blas->handle, "cblas_sgemm");
    if (!blas->sgemm) return;
    set_one_thread(blas->handle);
    describe_openblas(blas);
}

/* The head of what oneDNN's dnnl_version() points to. */
typedef struct onednn_version {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime;
} onednn_version;

/* Only a build whose products keep to the calling thread: sequential, or OpenMP told to. */
static void open_onednn(k_blas *blas)
{
    enum { SEQUENTIAL = 1, OPENMP = 2 };
    typedef const onednn_version *(*version_fn)(void);
    void *handle = dlopen("libdnnl.so.3", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) handle = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const version_fn of = handle ? (version_fn)symbol(handle, "dnnl_version") : NULL;
    const onednn_version *const v = of ? of() : NULL;
    if (!v || (v->cpu_runtime != SEQUENTIAL && v->cpu_runtime != OPENMP)) return;
    blas->onednn = symbol(handle, "dnnl_sgemm");
    if (blas->onednn)
        snprintf(blas->info, sizeof blas->info, "oneDNN %d.%d.%d; ", v->major, v->minor, v->patch);
}

bool k_blas_open(k_blas *blas, const char *which)
{
    const bool any = which == NULL || strcmp(which, "auto") == 0;
    const bool own = !any && strcmp(which, "own") == 0;
    const bool onednn = !any && strcmp(which, "onednn") == 0;
    memset(blas, 0, sizeof *blas);
    if (own) {
        snprintf(blas->info, sizeof blas->info, "own product (asked for)");
        return true;
    }
    setenv("OMP_NUM_THREADS", "1", 1); /* the only way to keep OpenMP variants to one */
    if (onednn || (any && onednn_pays())) open_onednn(blas);
    open_openblas(blas);
    if (!blas->sgemm) {
        const size_t at = strlen(blas->info);
        snprintf(blas->info + at, sizeof blas->info - at,
                 "own product, slow: libopenblas.so.0 not found; install libopenblas0");
    }
    return any || (onednn ? blas->onednn != NULL : blas->sgemm != NULL);
}

void k_blas_close(k_blas *blas)
{
    if (blas->handle) dlclose(blas->handle);
    memset(blas, 0, sizeof *blas);
}

const char *k_blas_info(const k_blas *blas) { return blas->info; }
