/* What the wires share. */
#ifndef EXEC_WIRE_INSIDE_H
#define EXEC_WIRE_INSIDE_H

#include "exec/wire.h"

typedef struct wire_methods {
    void (*close)(wire *w);
    void (*send)(wire *w, uint32_t channel, wire_op *op);
    void (*recv)(wire *w, uint32_t channel, wire_op *op);
    void (*collective)(wire *w, uint32_t coll, uint32_t member, wire_op *op);
    td_status (*wait)(wire *w, wire_op *op, td_err *err);
    td_status (*drain)(wire *w, td_err *err); /* NULL: nothing to wait for */
    void (*leave)(wire *w, uint32_t rank);
    void (*give_up)(wire *w, const td_err *why);
    td_err (*error)(wire *w);
    void (*next_step)(wire *w);
} wire_methods;

/* The first field of every wire. */
struct wire {
    const wire_methods *methods;
};

/* The message of a wait that lasted too long. */
td_status wire_late(int64_t deadline_ns, td_err *err);

#endif
