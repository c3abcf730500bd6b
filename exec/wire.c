/* One interface, several wires. */
#include "exec/wire_inside.h"

void wire_close(wire *w)
{
    if (w != NULL) w->methods->close(w);
}

void wire_send(wire *w, uint32_t channel, wire_op *op) { w->methods->send(w, channel, op); }

void wire_recv(wire *w, uint32_t channel, wire_op *op) { w->methods->recv(w, channel, op); }

void wire_collective(wire *w, uint32_t coll, uint32_t member, wire_op *op)
{
    w->methods->collective(w, coll, member, op);
}

td_status wire_wait(wire *w, wire_op *op, td_err *err) { return w->methods->wait(w, op, err); }

td_status wire_drain(wire *w, td_err *err)
{
    return w->methods->drain == NULL ? TD_OK : w->methods->drain(w, err);
}

void wire_leave(wire *w, uint32_t rank) { w->methods->leave(w, rank); }

void wire_abort(wire *w, const td_err *why) { w->methods->give_up(w, why); }

td_err wire_error(wire *w) { return w->methods->error(w); }

bool wire_aborted(wire *w) { return wire_error(w).code != TD_OK; }

void wire_next_step(wire *w) { w->methods->next_step(w); }

td_status wire_late(int64_t deadline_ns, td_err *err)
{
    return td_fail(err, TD_EDEVICE, "waited %.3g s for its other end", (double)deadline_ns / 1e9);
}
