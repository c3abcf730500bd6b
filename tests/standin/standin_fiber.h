/* Threads that give the processor to each other by name: the threads of a block. */
#ifndef TESTS_STANDIN_STANDIN_FIBER_H
#define TESTS_STANDIN_STANDIN_FIBER_H

#include <cstddef>

struct standin_fiber {
    void *state;                      /* where it goes on: its stack's end, or its context */
    char *stack;                      /* NULL: the system's own stack */
    size_t bytes;                     /* of the stack */
    void *shadow;                     /* the address sanitizer's */
    void (*run)(standin_fiber *self); /* never returns */
    unsigned thread;                  /* of the block; what it works on */
};

/* A stack for a fiber, with an inaccessible page below; false: no memory. */
bool standin_fiber_open(standin_fiber *f, void (*run)(standin_fiber *self));
/* Forgets where it was: it begins anew. */
void standin_fiber_reset(standin_fiber *f);
/* Goes on in `to`, until somebody switches to `from`. */
void standin_fiber_switch(standin_fiber *from, standin_fiber *to);

#endif
