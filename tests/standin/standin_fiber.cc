/* Switching by hand where we know the registers that a call keeps, by the system elsewhere (whose
 * way asks the kernel twice for signal masks). */
#include "standin_fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif

#ifdef WITH_ASAN
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 512 << 10 };
#else
enum { STACK_BYTES = 128 << 10 };
#endif

static standin_fiber *left, *begins; /* the latest switch */

#ifdef WITH_ASAN
/* The system's stack, as a fiber finds it when it comes from there. */
static const void *system_low;
static size_t system_bytes;

static void leaves(standin_fiber *from, const standin_fiber *to)
{
    if (to->stack != nullptr)
        __sanitizer_start_switch_fiber(&from->shadow, to->stack, to->bytes);
    else
        __sanitizer_start_switch_fiber(&from->shadow, system_low, system_bytes);
}

static void arrived(void *shadow)
{
    const void *low = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(shadow, &low, &bytes);
    if (left->stack != nullptr) return;
    system_low = low;
    system_bytes = bytes;
}
#else
static void leaves(standin_fiber *, const standin_fiber *) {}
static void arrived(void *) {}
#endif

static void first(void)
{
    standin_fiber *const self = begins;
    arrived(nullptr);
    self->run(self);
    abort(); /* run never returns */
}

#if defined(__x86_64__) && !defined(STANDIN_UCONTEXT)

extern "C" void standin_swap(void **from, void *to);
__asm__(".text\n"
        ".globl standin_swap\n"
        ".type standin_swap, @function\n"
        "standin_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size standin_swap, .-standin_swap\n");

void standin_fiber_reset(standin_fiber *f)
{
    /* six registers and the address to return to, then the alignment that a call leaves */
    void **const top = (void **)(void *)(f->stack + f->bytes) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = (void *)first;
    f->state = top;
    f->shadow = nullptr;
}

static void swap(standin_fiber *from, standin_fiber *to) { standin_swap(&from->state, to->state); }

#else

#include <ucontext.h>

void standin_fiber_reset(standin_fiber *f)
{
    ucontext_t *const c = (ucontext_t *)f->state;
    getcontext(c);
    c->uc_stack.ss_sp = f->stack;
    c->uc_stack.ss_size = f->bytes;
    c->uc_link = nullptr;
    makecontext(c, first, 0);
    f->shadow = nullptr;
}

static void swap(standin_fiber *from, standin_fiber *to)
{
    if (from->state == nullptr) from->state = calloc(1, sizeof(ucontext_t));
    swapcontext((ucontext_t *)from->state, (ucontext_t *)to->state);
}

#endif

bool standin_fiber_open(standin_fiber *f, void (*run)(standin_fiber *self))
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *const at = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
    if (mprotect(at, page, PROT_NONE) != 0) return false;
    f->stack = (char *)at + page;
    f->bytes = STACK_BYTES;
    f->run = run;
#if !defined(__x86_64__) || defined(STANDIN_UCONTEXT)
    f->state = calloc(1, sizeof(ucontext_t));
    if (f->state == nullptr) return false;
#endif
    standin_fiber_reset(f);
    return true;
}

void standin_fiber_switch(standin_fiber *from, standin_fiber *to)
{
    left = from;
    begins = to;
    leaves(from, to);
    swap(from, to);
    arrived(from->shadow);
}
