/* Memory that ends at inaccessible pages, and that the host may not touch where a GPU's could not
 * be. */
#include "standin_block.h"
#include "standin_state.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void standin_poison(void *at, size_t bytes)
{
    const uint64_t word = STANDIN_POISON * 0x0001000100010001u;
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) memcpy((char *)at + i, &word, 8);
    memcpy((char *)at + i, &word, bytes - i);
}

/* A file of poison, of which large memory is made: pages that nobody writes cost nothing. */
enum { SPARE_BYTES = 4 << 20 };

static int spare_file(void)
{
    static int file = -2; /* -1: there is none */
    if (file != -2) return file;
    file = memfd_create("poison", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, SPARE_BYTES) != 0) return file = -1;
    void *const at = mmap(nullptr, SPARE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (at == MAP_FAILED) return file = -1;
    standin_poison(at, SPARE_BYTES);
    (void)munmap(at, SPARE_BYTES);
    return file;
}

static void poison_pages(char *at, size_t bytes)
{
    const int file = bytes >= SPARE_BYTES ? spare_file() : -1;
    for (; file >= 0 && bytes >= SPARE_BYTES; at += SPARE_BYTES, bytes -= SPARE_BYTES)
        if (mmap(at, SPARE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) ==
            MAP_FAILED)
            break;
    standin_poison(at, bytes);
}

void *standin_guarded(size_t bytes, size_t align, void **whole, size_t *whole_bytes)
{
    const size_t page = page_bytes(), used = (bytes + align - 1) / align * align;
    const size_t inner = (used + page - 1) / page * page;
    *whole_bytes = inner + 2 * page;
    char *const at = (char *)mmap(nullptr, *whole_bytes, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *whole = at;
    if (at == MAP_FAILED) return nullptr;
    if (mprotect(at, page, PROT_NONE) != 0 || mprotect(at + page + inner, page, PROT_NONE) != 0)
        return nullptr;
    poison_pages(at + page, inner);
    return at + page + inner - used;
}

/* --- what was given --- */

enum { CUDA_ALIGN = 256, MEMORIES_MAX = 4096 };
static const size_t device_bytes = (size_t)8 << 30;

struct memory {
    char *at;
    size_t bytes, whole_bytes;
    void *whole;
    int kind;
};

/* All under the lock of the streams. */
static struct {
    memory all[MEMORIES_MAX];
    size_t n, used;
    bool open, handler;
} m;

static void protect(const memory *one, bool open)
{
    const size_t page = page_bytes();
    if (one->kind != STANDIN_DEVICE) return;
    (void)mprotect((char *)one->whole + page, one->whole_bytes - 2 * page,
                   open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void standin_memory_open(bool open)
{
    if (m.open == open) return;
    m.open = open;
    for (size_t i = 0; i < m.n; i++) protect(&m.all[i], open);
}

static const memory *memory_of(const void *at)
{
    const uintptr_t p = (uintptr_t)at;
    for (size_t i = 0; i < m.n; i++) {
        const uintptr_t low = (uintptr_t)m.all[i].whole;
        if (p >= low && p < low + m.all[i].whole_bytes) return &m.all[i];
    }
    return nullptr;
}

/* Says who touched what, and lets the program end as it would have. */
static void fault(int number, siginfo_t *info, void *)
{
    char where[240] = "the host", line[600];
    const memory *const one = memory_of(info->si_addr);
    (void)standin_where(where, sizeof where);
    int n = snprintf(line, sizeof line, "stand-in: %s touches %p", where, info->si_addr);
    if (one != nullptr)
        n += snprintf(line + n, sizeof line - (size_t)n, ", byte %lld of the %zu at %p%s",
                      (long long)((char *)info->si_addr - one->at), one->bytes, (void *)one->at,
                      one->kind == STANDIN_DEVICE ? " that only the device may touch" : "");
    line[n++] = '\n';
    (void)!write(STDERR_FILENO, line, (size_t)n);
    (void)signal(number, SIG_DFL);
}

/* Not where a sanitizer or a debugger has its own. */
static void set_handler(void)
{
    struct sigaction old, now;
    if (m.handler) return;
    m.handler = true;
    memset(&now, 0, sizeof now);
    now.sa_sigaction = fault;
    now.sa_flags = SA_SIGINFO;
    if (sigaction(SIGSEGV, nullptr, &old) == 0 && old.sa_handler == SIG_DFL &&
        (old.sa_flags & SA_SIGINFO) == 0)
        (void)sigaction(SIGSEGV, &now, nullptr);
}

cudaError_t standin_malloc(void **at, size_t bytes, int kind)
{
    const standin_lock lock;
    memory *const one = &m.all[m.n];
    set_handler();
    if (bytes == 0 || m.n == MEMORIES_MAX) return standin_fail(cudaErrorInvalidValue);
    if (kind != STANDIN_PINNED && m.used + bytes > device_bytes)
        return standin_fail(cudaErrorMemoryAllocation);
    *one = {nullptr, bytes, 0, nullptr, kind};
    one->at = (char *)standin_guarded(bytes, CUDA_ALIGN, &one->whole, &one->whole_bytes);
    if (one->at == nullptr) return standin_fail(cudaErrorMemoryAllocation);
    protect(one, m.open);
    if (kind != STANDIN_PINNED) m.used += bytes;
    m.n++;
    *at = one->at;
    return cudaSuccess;
}

/* The bytes between the end of the memory and the inaccessible page are as they were. */
static bool whole_end(const memory *one)
{
    const char *const end = (char *)one->whole + one->whole_bytes - page_bytes();
    for (const char *c = one->at + one->bytes; c < end; c++) {
        const size_t from_end = (size_t)(end - c);
        if (*c != (char)(STANDIN_POISON >> (from_end % 2 == 0 ? 0 : 8) & 0xff)) return false;
    }
    return true;
}

static cudaError_t release(void *at, bool pinned)
{
    if (at == nullptr) return cudaSuccess;
    (void)cudaDeviceSynchronize();
    const standin_lock lock;
    for (size_t i = 0; i < m.n; i++) {
        memory *const one = &m.all[i];
        if (one->at != at || (one->kind == STANDIN_PINNED) != pinned) continue;
        protect(one, true);
        if (!whole_end(one)) {
            (void)fprintf(stderr, "stand-in: somebody wrote behind the %zu bytes at %p\n",
                          one->bytes, at);
            abort();
        }
        (void)munmap(one->whole, one->whole_bytes);
        if (!pinned) m.used -= one->bytes;
        *one = m.all[--m.n];
        return cudaSuccess;
    }
    return standin_fail(cudaErrorInvalidValue);
}

cudaError_t cudaFree(void *at) { return release(at, false); }
cudaError_t cudaFreeHost(void *at) { return release(at, true); }

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    const standin_lock lock;
    *total = device_bytes;
    *available = device_bytes - m.used;
    return cudaSuccess;
}

static bool managed(const void *at)
{
    const standin_lock lock;
    const memory *const one = memory_of(at);
    return one != nullptr && one->kind == STANDIN_MANAGED;
}

cudaError_t cudaMemAdvise(const void *at, size_t, cudaMemoryAdvise, cudaMemLocation)
{
    return managed(at) ? cudaSuccess : standin_fail(cudaErrorInvalidValue);
}

cudaError_t cudaMemPrefetchAsync(const void *at, size_t, cudaMemLocation, unsigned, cudaStream_t)
{
    return managed(at) ? cudaSuccess : standin_fail(cudaErrorInvalidValue);
}

/* --- copies --- */

/* Whether the bytes lie in one piece of memory of the stand-in; or in none. */
static bool inside(const void *at, size_t bytes)
{
    const standin_lock lock;
    const memory *const one = memory_of(at);
    return one == nullptr ||
           ((const char *)at >= one->at && (const char *)at + bytes <= one->at + one->bytes);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t s)
{
    if (!inside(to, bytes) || !inside(from, bytes)) return standin_fail(cudaErrorInvalidValue);
    if (bytes > 0) standin_queue(s, [=] { memmove(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t s)
{
    if (width > to_pitch || width > from_pitch) return standin_fail(cudaErrorInvalidValue);
    if (width == 0 || height == 0) return cudaSuccess;
    if (!inside(to, to_pitch * (height - 1) + width) ||
        !inside(from, from_pitch * (height - 1) + width))
        return standin_fail(cudaErrorInvalidValue);
    standin_queue(s, [=] {
        for (size_t i = 0; i < height; i++)
            memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t s)
{
    if (!inside(at, bytes)) return standin_fail(cudaErrorInvalidValue);
    if (bytes > 0) standin_queue(s, [=] { memset(at, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return e != cudaSuccess ? e : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemset(void *at, int value, size_t bytes)
{
    return cudaMemsetAsync(at, value, bytes, nullptr);
}
