/* The parts of the plan checker; plan_check runs them in this order. Each fails with TD_EPLAN and
 * names rank, task and rule. */
#ifndef SCHEDULES_PLAN_CHECK_H
#define SCHEDULES_PLAN_CHECK_H

#include "schedules/plan.h"

/* Which stream each task belongs to, and its rank. */
typedef struct plan_map {
    const plan *p;
    uint32_t *stream_of; /* [n_tasks] */
} plan_map;

static inline uint32_t map_rank(const plan_map *m, uint32_t task)
{
    return m->p->streams[m->stream_of[task]].rank;
}

/* TD_EPLAN with "rank R task: rule". */
TD_MUST_USE td_status check_fail(const plan_map *m, uint32_t task, td_err *err, const char *rule);

/* Every index is in range; every task belongs to one stream. Fills the map. */
TD_MUST_USE td_status check_structure(const plan *p, td_arena *a, plan_map *out, td_err *err);
/* Messages match in order and size; collectives are issued in one order by all members. */
TD_MUST_USE td_status check_meetings(const plan_map *m, td_arena *a, td_err *err);
/* Where steps are validated later: every rank does so once, and what it may have to repeat is
 * closed under messages and changes nothing that outlives it (plan_prefix.c). */
TD_MUST_USE td_status check_prefix(const plan_map *m, td_err *err);
/* Each needed pass exactly once, its data there before it. */
TD_MUST_USE td_status check_flow(const plan_map *m, td_arena *a, td_err *err);
/* Where vocabulary layers are sharded: each of their passes on every rank, behind its barrier. */
TD_MUST_USE td_status check_vocab_flow(const plan_map *m, td_arena *a, td_err *err);
/* No deadlock under pure rendezvous; prints the cycle of waits. */
TD_MUST_USE td_status check_deadlock(const plan_map *m, td_arena *a, td_err *err);
/* No more streams of a rank wait at once than a device can hold. */
TD_MUST_USE td_status check_waiting(const plan_map *m, td_arena *a, td_err *err);
/* No rank has two streams in one queue (plan_queues.c). */
TD_MUST_USE td_status check_queues(const plan_map *m, td_arena *a, td_err *err);
/* Accesses to a buffer are ordered and within its life; no two live buffers overlap. */
TD_MUST_USE td_status check_buffers(const plan_map *m, td_arena *a, td_err *err);

#endif
