/* Threads of a block as fibers. A thread runs until it has to wait; whoever comes last to a meeting
 * lets the others go on. A thread that ends leaves its fiber to one that has not begun. */
#include "standin_block.h"
#include "standin_fiber.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* A word to copy to shared memory, until it is waited for. */
struct late_copy {
    void *to;
    const void *from;
    unsigned bytes, there, group;
};
enum { LATE_MAX = 256 };

struct gpu_thread {
    standin_fiber *on; /* NULL: has not begun */
    const char *what;  /* it waits for; NULL: for nothing */
    int line;
    unsigned mask;
    void *brings;
    unsigned n_late, group;
};

struct gpu_warp {
    unsigned lanes, ready, done, waiting; /* ready: not waiting, not done, not running */
};

struct shared_array {
    const void *key;
    size_t bytes, used; /* used: by the kernel that runs, in bytes */
    void *at;
};
enum { ARRAYS_MAX = 512 };

static struct {
    const standin_kernel *kernel;
    uint64_t random;
    unsigned n, n_warps, n_done, current;
    gpu_thread threads[STANDIN_THREADS_MAX];
    gpu_warp warps[STANDIN_THREADS_MAX / STANDIN_WARP];
    unsigned order[STANDIN_THREADS_MAX / STANDIN_WARP], cursor;
    bool down;  /* lanes from the last one */
    bool early; /* asynchronous copies happen at once */
    bool runs, broken;
    /* the meeting of all threads */
    unsigned n_waiting, value, result;
    const char *what;
    int line;
    /* shared memory */
    shared_array arrays[ARRAYS_MAX];
    unsigned n_arrays;
    size_t static_bytes;
    char *dynamic_end; /* of the room for dynamic shared memory */
    void *dynamic;
    /* fibers */
    standin_fiber system, fibers[STANDIN_THREADS_MAX];
    standin_fiber *idle[STANDIN_THREADS_MAX];
    unsigned n_fibers, n_idle;
} g;

static late_copy late_copies[STANDIN_THREADS_MAX][LATE_MAX];

static void kernel_name(char *out, size_t n)
{
    size_t depth = 0, i = 0;
    for (const char *c = g.kernel->call; *c != '\0' && i + 1 < n; c++) {
        depth += *c == '<';
        depth -= *c == '>';
        if (*c == ',' && depth == 0) break;
        out[i++] = *c;
    }
    out[i] = '\0';
}

bool standin_where(char *out, size_t n)
{
    char name[80];
    if (!g.runs) return false;
    kernel_name(name, sizeof name);
    (void)snprintf(out, n, "kernel %s, block (%u,%u,%u) of (%u,%u,%u), thread (%u,%u,%u)", name,
                   blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y, gridDim.z, threadIdx.x,
                   threadIdx.y, threadIdx.z);
    return true;
}

/* Says what is wrong and leaves the kernel. */
[[noreturn]] static void broken(const char *format, ...)
{
    char where[240], what[240];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(what, sizeof what, format, list);
    va_end(list);
    (void)standin_where(where, sizeof where);
    (void)fprintf(stderr, "stand-in: %s: %s\n", where, what);
    g.broken = true;
    standin_fiber_switch(g.threads[g.current].on, &g.system);
    __builtin_unreachable();
}

/* --- who runs --- */

static void enter(unsigned t)
{
    g.current = t;
    threadIdx.x = t % blockDim.x;
    threadIdx.y = t / blockDim.x % blockDim.y;
    threadIdx.z = t / blockDim.x / blockDim.y;
}

static void shuffle_warps(void)
{
    for (unsigned i = g.n_warps; i > 1; i--) {
        const unsigned j = (unsigned)(standin_next(&g.random) % i), w = g.order[j];
        g.order[j] = g.order[i - 1];
        g.order[i - 1] = w;
    }
    g.down = (standin_next(&g.random) & 1) != 0;
    g.cursor = 0;
}

/* Takes the next thread that can run; STANDIN_THREADS_MAX: none. */
static unsigned take(void)
{
    for (unsigned i = 0; i < g.n_warps; i++) {
        gpu_warp *const w = &g.warps[g.order[g.cursor]];
        if (w->ready != 0) {
            const unsigned lane =
                (unsigned)(g.down ? 31 - __builtin_clz(w->ready) : __builtin_ctz(w->ready));
            w->ready &= ~(1u << lane);
            return (unsigned)(w - g.warps) * STANDIN_WARP + lane;
        }
        g.cursor = (g.cursor + 1) % g.n_warps;
    }
    return STANDIN_THREADS_MAX;
}

static void fiber_runs(standin_fiber *self);

static standin_fiber *fiber_for(unsigned t)
{
    gpu_thread *const thread = &g.threads[t];
    if (thread->on != nullptr) return thread->on;
    if (g.n_idle == 0) {
        standin_fiber *const f = &g.fibers[g.n_fibers];
        if (!standin_fiber_open(f, fiber_runs)) return nullptr;
        g.n_fibers++;
        g.idle[g.n_idle++] = f;
    }
    thread->on = g.idle[--g.n_idle];
    thread->on->thread = t;
    return thread->on;
}

/* Nobody can run: says for what the others wait. */
[[noreturn]] static void stuck(const char *self)
{
    for (unsigned t = 0; t < g.n; t++) {
        const gpu_thread *const one = &g.threads[t];
        if (one->what == nullptr || t == g.current) continue;
        broken("%s, and nobody can go on: thread %u waits at %s of line %d, %u threads have ended",
               self, t, one->what, one->line, g.n_done);
    }
    broken("%s, and nobody can go on", self);
}

/* Lets the others go on until somebody makes the current thread ready and it is taken. */
static void wait_here(void)
{
    const unsigned self = g.current, next = take();
    if (next == STANDIN_THREADS_MAX) {
        char text[80];
        (void)snprintf(text, sizeof text, "it waits at %s of line %d", g.threads[self].what,
                       g.threads[self].line);
        stuck(text);
    }
    standin_fiber *const to = fiber_for(next);
    if (to == nullptr) broken("out of memory for stacks");
    standin_fiber_switch(g.threads[self].on, to);
    enter(self);
}

/* A fiber's life: threads, one after the other. */
static void fiber_runs(standin_fiber *self)
{
    for (;;) {
        const unsigned t = self->thread;
        enter(t);
        g.kernel->thread();
        g.n_done++;
        g.warps[t / STANDIN_WARP].done |= 1u << t % STANDIN_WARP;
        if (g.n_waiting > 0) broken("it ends, while others wait at %s of line %d", g.what, g.line);
        const unsigned next = take();
        g.threads[t].on = nullptr;
        if (next != STANDIN_THREADS_MAX && g.threads[next].on == nullptr) {
            g.threads[next].on = self;
            self->thread = next;
            continue;
        }
        g.idle[g.n_idle++] = self;
        if (next == STANDIN_THREADS_MAX && g.n_done < g.n) {
            g.threads[t].on = self;
            stuck("it ends");
        }
        standin_fiber_switch(self, next == STANDIN_THREADS_MAX ? &g.system : g.threads[next].on);
    }
}

/* --- meetings --- */

static bool differ(const char *x, const char *y) { return x != y && strcmp(x, y) != 0; }

unsigned standin_meet(const char *what, int line, bool value)
{
    gpu_thread *const self = &g.threads[g.current];
    if (g.n_done > 0) broken("%s of line %d, which %u threads do not reach", what, line, g.n_done);
    if (g.n_waiting == 0) {
        g.what = what;
        g.line = line;
        g.value = 0;
    } else if (g.line != line || differ(g.what, what)) {
        broken("%s of line %d, while others wait at %s of line %d", what, line, g.what, g.line);
    }
    g.value += value;
    if (++g.n_waiting < g.n) {
        self->what = what;
        self->line = line;
        wait_here();
        self->what = nullptr;
        return g.result;
    }
    g.result = g.value;
    g.n_waiting = 0;
    for (unsigned w = 0; w < g.n_warps; w++) g.warps[w].ready = g.warps[w].lanes;
    g.warps[g.current / STANDIN_WARP].ready &= ~(1u << g.current % STANDIN_WARP);
    shuffle_warps();
    return g.result;
}

unsigned standin_lane(void) { return g.current % STANDIN_WARP; }

void standin_meet_warp(const char *what, int line, unsigned mask, void *brings, standin_join *join)
{
    const unsigned lane = g.current % STANDIN_WARP, base = g.current - lane;
    gpu_warp *const w = &g.warps[base / STANDIN_WARP];
    gpu_thread *const self = &g.threads[g.current];
    if ((mask >> lane & 1u) == 0) broken("%s of line %d: it is not in the mask", what, line);
    if ((mask & ~w->lanes) != 0)
        broken("%s of line %d: the mask names lanes that the warp does not have", what, line);
    if ((mask & w->done) != 0)
        broken("%s of line %d: the mask names lanes that have ended", what, line);
    self->what = what;
    self->line = line;
    self->mask = mask;
    self->brings = brings;
    const unsigned others = w->waiting & mask;
    if (others != 0) {
        const gpu_thread *const one = &g.threads[base + (unsigned)__builtin_ctz(others)];
        if (one->line != line || one->mask != mask || differ(one->what, what))
            broken("%s of line %d for lanes %08x, while others wait at %s of line %d for %08x",
                   what, line, mask, one->what, one->line, one->mask);
    }
    w->waiting |= 1u << lane;
    if ((w->waiting & mask) != mask) {
        wait_here();
        self->what = nullptr;
        return;
    }
    void *brought[STANDIN_WARP];
    for (unsigned i = 0; i < STANDIN_WARP; i++) brought[i] = g.threads[base + i].brings;
    join(brought, mask);
    self->what = nullptr;
    w->waiting &= ~mask;
    w->ready |= mask & ~(1u << lane);
}

/* --- asynchronous copies --- */

static void copy_now(const late_copy *c)
{
    memcpy(c->to, c->from, c->there);
    memset((char *)c->to + c->there, 0, c->bytes - c->there);
}

void standin_cp_async(void *shared, const void *from, unsigned bytes, unsigned there)
{
    gpu_thread *const self = &g.threads[g.current];
    const late_copy c = {shared, from, bytes, there, self->group};
    if ((bytes != 4 && bytes != 8 && bytes != 16) || there > bytes)
        broken("cp.async of %u bytes, %u of them there", bytes, there);
    if ((uintptr_t)shared % bytes != 0 || (there > 0 && (uintptr_t)from % bytes != 0))
        broken("cp.async of %u bytes between %p and %p, which are not aligned", bytes, shared,
               from);
    if (g.early)
        copy_now(&c);
    else if (self->n_late == LATE_MAX)
        broken("over %d copies under way in a thread", LATE_MAX);
    else
        late_copies[g.current][self->n_late++] = c;
}

void standin_cp_async_commit(void) { g.threads[g.current].group++; }

void standin_cp_async_wait(unsigned left)
{
    gpu_thread *const self = &g.threads[g.current];
    late_copy *const late = late_copies[g.current];
    unsigned kept = 0;
    for (unsigned i = 0; i < self->n_late; i++)
        if (late[i].group + left < self->group)
            copy_now(&late[i]);
        else
            late[kept++] = late[i];
    self->n_late = kept;
}

/* --- shared memory --- */

void *standin_shared(const void *key, size_t bytes)
{
    shared_array *a = nullptr;
    for (unsigned i = 0; i < g.n_arrays && a == nullptr; i++)
        if (g.arrays[i].key == key) a = &g.arrays[i];
    if (a == nullptr) {
        void *whole;
        size_t whole_bytes;
        if (g.n_arrays == ARRAYS_MAX) broken("over %d arrays in shared memory", ARRAYS_MAX);
        a = &g.arrays[g.n_arrays++];
        *a = {key, bytes, 0, standin_guarded(bytes, 16, &whole, &whole_bytes)};
        if (a->at == nullptr) broken("out of memory for shared memory");
    }
    if (a->used == 0) {
        a->used = (bytes + 15) / 16 * 16;
        g.static_bytes += a->used;
        if (g.static_bytes > STANDIN_SHARED_STATIC_MAX)
            broken("%zu bytes of arrays in shared memory, over %d", g.static_bytes,
                   STANDIN_SHARED_STATIC_MAX);
        if (g.static_bytes + g.kernel->shared > STANDIN_SHARED_MAX)
            broken("%zu bytes of shared memory, over %d", g.static_bytes + g.kernel->shared,
                   STANDIN_SHARED_MAX);
        standin_poison(a->at, bytes);
    }
    return a->at;
}

void *standin_dynamic(void) { return g.dynamic; }

/* Pieces of the kernel's shared memory hold nothing when a block begins. */
static void forget_shared(bool all)
{
    for (unsigned i = 0; i < g.n_arrays; i++) {
        if (g.arrays[i].used != 0 && !all) standin_poison(g.arrays[i].at, g.arrays[i].bytes);
        if (all) g.arrays[i].used = 0;
    }
    if (all) g.static_bytes = 0;
    if (!all) standin_poison(g.dynamic, g.kernel->shared);
}

/* --- blocks --- */

static void run_block(void)
{
    g.n_done = g.n_waiting = 0;
    forget_shared(false);
    for (unsigned w = 0; w < g.n_warps; w++) {
        const unsigned left = g.n - w * STANDIN_WARP;
        g.warps[w].lanes = left >= STANDIN_WARP ? 0xffffffffu : (1u << left) - 1;
        g.warps[w].ready = g.warps[w].lanes;
        g.warps[w].done = g.warps[w].waiting = 0;
        g.order[w] = w;
    }
    for (unsigned t = 0; t < g.n; t++) {
        g.threads[t].on = nullptr;
        g.threads[t].what = nullptr;
        g.threads[t].n_late = g.threads[t].group = 0;
    }
    shuffle_warps();
    g.early = (standin_next(&g.random) & 1) != 0;
    standin_fiber *const to = fiber_for(take());
    if (to != nullptr) standin_fiber_switch(&g.system, to);
    if (to == nullptr) g.broken = true;
    if (!g.broken) return;
    g.n_idle = 0;
    for (unsigned i = 0; i < g.n_fibers; i++) {
        standin_fiber_reset(&g.fibers[i]);
        g.idle[g.n_idle++] = &g.fibers[i];
    }
}

static uint64_t common(uint64_t a, uint64_t b)
{
    while (b != 0) {
        const uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

bool standin_run_kernel(const standin_kernel *k, uint64_t seed)
{
    const uint64_t x = k->grid.x, y = k->grid.y, all = x * y * k->grid.z;
    if (g.dynamic_end == nullptr) {
        void *whole;
        size_t bytes;
        char *const at = (char *)standin_guarded(STANDIN_SHARED_MAX, 16, &whole, &bytes);
        if (at == nullptr) return false;
        g.dynamic_end = at + STANDIN_SHARED_MAX;
    }
    g.kernel = k;
    g.random = seed;
    g.n = k->block.x * k->block.y * k->block.z;
    g.n_warps = (g.n + STANDIN_WARP - 1) / STANDIN_WARP;
    g.dynamic = g.dynamic_end - (k->shared + 15) / 16 * 16;
    gridDim = k->grid;
    blockDim = k->block;
    forget_shared(true);
    /* steps that have no divisor with the number of blocks go through all of them */
    uint64_t at = standin_next(&g.random) % all;
    uint64_t step = standin_next(&g.random) % all + 1;
    while (common(step, all) != 1) step = step % all + 1;
    g.runs = true;
    g.broken = false;
    for (uint64_t i = 0; i < all && !g.broken; i++) {
        blockIdx.x = (unsigned)(at % x);
        blockIdx.y = (unsigned)(at / x % y);
        blockIdx.z = (unsigned)(at / x / y);
        run_block();
        at = (at + step) % all;
    }
    g.runs = false;
    return !g.broken;
}
