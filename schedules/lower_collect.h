/* Inside collect and step: collectives before they become tasks.
 *
 * Each collective has a place in the total order of lower_when, behind its members' gates and
 * before their joins, and each group's stream keeps that order; so all members issue them in one
 * order and no edge points backwards (compare lower_comm.c). A sum stands right behind the last
 * pass that gives to it, a broadcast right before the first that needs it. */
#ifndef SCHEDULES_LOWER_COLLECT_H
#define SCHEDULES_LOWER_COLLECT_H

#include "schedules/lower.h"

/* A collective before it becomes tasks; members are parallel to those of its group. */
typedef struct collective {
    uint64_t when; /* behind this place */
    uint32_t group, root, id;
    coll_kind kind;
    coll_purpose purpose;
    int64_t bytes;
    bool meet;      /* a barrier under every protocol */
    int32_t m, k;   /* -1, 0: not of a microbatch */
    int32_t at;     /* plan_class.prefix */
    int32_t near;   /* plan_class.slice_len */
    uint32_t first; /* gates[first + i], joins[first + i]: of member i; task ids */
} collective;

typedef struct collect {
    const lowering *l;
    const plan *in;
    plan *out;
    collective *items;
    size_t n, cap;
    uint32_t *gates, *joins, *insts; /* by member */
    size_t n_members, cap_gates, cap_joins, cap_insts;
    size_t cap_groups, cap_group_members;
    uint32_t first_group; /* groups of this pass: each pass has communicators of its own */
} collect;

/* The group of these ranks (ascending), made when it is new. */
TD_MUST_USE td_status collect_group(collect *c, const uint32_t *ranks, uint32_t n,
                                    int32_t true_size, uint32_t *out, td_err *err);
/* Starts a collective; collect_member then adds its members in group order. */
TD_MUST_USE td_status collect_begin(collect *c, collective item, td_err *err);
TD_MUST_USE td_status collect_member(collect *c, uint32_t gate, uint32_t join, uint32_t inst,
                                     td_err *err);
/* Turns the collectives into streams, one per (group, member), and tasks. */
TD_MUST_USE td_status collect_emit(collect *c, td_err *err);

/* One copy of a stage that trains, and the pass that ends its gradients. */
typedef struct stage_holder {
    uint32_t rank, gate, inst;
    uint64_t when;
} stage_holder;

/* The copies of `stage` that step, among its twins, its replicas and, where all rows step, its
 * forward and backward rows of one tensor-parallel degree; by rank: the members of its gradient
 * sync. out: [2 * n_pipes * replicas]; returns how many (lower_gradients.c). */
uint32_t collect_holders(const collect *c, int32_t stage, stage_holder *out);
/* A collective like `item` for each part of the stage's gradients (or weights) among these holders,
 * each behind its gate; element_bytes: of what is moved (lower_gradients.c). */
TD_MUST_USE td_status collect_parts(collect *c, collective item, int32_t stage,
                                    const stage_holder *h, uint32_t n, int64_t element_bytes,
                                    td_err *err);
/* Gradients of a stage among its twins and replicas (lower_gradients.c). */
TD_MUST_USE td_status collect_gradients(collect *c, td_err *err);
/* Weights from backward to forward rows, behind the step, or sums of gradients before it
 * (lower_refresh.c). */
TD_MUST_USE td_status lower_refresh(const lowering *l, const plan *in, plan *out, td_err *err);
/* One message after the other where calls block (lower_block.c). */
TD_MUST_USE td_status lower_block(const lowering *l, const plan *in, plan *out, td_err *err);
/* The barriers of sharded vocabulary layers (lower_vocab.c). */
TD_MUST_USE td_status collect_vocab(collect *c, td_err *err);

#endif
