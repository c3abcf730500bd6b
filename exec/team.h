/* The processes of one run, one rank each. A NULL team is the run in one process: its index is 0,
 * its size 1, and every call returns at once.
 *
 * All processes make the calls below in one order. Data must live until the team is closed, because
 * a call that fails leaves its messages under way. When a process gives up, or is gone, every wait
 * in every process ends with its reason. */
#ifndef EXEC_TEAM_H
#define EXEC_TEAM_H

#include "exec/transport.h"

#include <pthread.h>

/* Lanes below are the team's own; those of wires begin here. */
enum { LANE_NOTICE, LANE_TALK, LANE_WIRE };

enum { TEAM_WORDS = 4096 }; /* folded at a time */

/* The last word of a process: why it gave up, or TD_OK when it is done. */
typedef struct team_notice {
    int32_t code;
    char msg[1020];
} team_notice;

typedef struct team {
    transport t;
    pthread_mutex_t lock; /* around every call of the transport, and `why` */
    int64_t deadline_ns;
    td_err why;                         /* code TD_OK: nobody gave up */
    bool agreed;                        /* all left a team_agree with one error */
    bool told;                          /* the others have this process's notice */
    team_notice mine, *notices;         /* [size] */
    bool *seen;                         /* [size] notices that were looked at */
    transport_request *told_to, *heard; /* [size] */
    transport_request talk;             /* the blocking calls' */
    team_notice word;                   /* of team_agree */
    uint64_t number;                    /* of team_same */
    uint64_t *words;                    /* [TEAM_WORDS] of team_fold */
} team;

/* Takes over an open transport; `deadline_ns` ends a wait (0: two minutes). */
TD_MUST_USE td_status team_open(const transport *t, int64_t deadline_ns, td_arena *a, team **out,
                                td_err *err);
/* Says goodbye and waits for everybody's, a few seconds at most when somebody gave up. */
void team_close(team *t);

/* Which process this is, and how many there are; of NULL, the only one of one. */
uint32_t team_index(const team *t);
uint32_t team_size(const team *t);

/* Bytes from one process to another; both wait for it. Errors: what any process has given up with,
 * or why the other end is not reached within the deadline. */
TD_MUST_USE td_status team_send(team *t, uint32_t to, const void *data, int64_t bytes, td_err *err);
TD_MUST_USE td_status team_recv(team *t, uint32_t from, void *data, int64_t bytes, td_err *err);
/* The same bytes in all processes, from one of them. */
TD_MUST_USE td_status team_broadcast(team *t, uint32_t from, void *data, int64_t bytes,
                                     td_err *err);
/* What becomes of words of eight bytes: sums of doubles in process order, or sums of integers that
 * wrap. */
typedef enum team_op { TEAM_SUM, TEAM_ADD } team_op;
/* words: [n] of eight bytes, folded over all processes, the outcome in all of them. They need not
 * outlive the call. */
TD_MUST_USE td_status team_fold(team *t, team_op op, void *words, int64_t n, td_err *err);
/* Where any process comes with an error, all leave with that of the first process that has one; the
 * rank is named unless it is rank 0. */
TD_MUST_USE td_status team_agree(team *t, td_status st, td_err *err);
/* All processes must bring the same number; the error says what differs, and on which rank. */
TD_MUST_USE td_status team_same(team *t, uint64_t number, const char *what, td_err *err);

/* Whether a process has said its last word, for itself; after team_close. */
bool team_was_heard(const team *t, uint32_t index);

/* Tells everybody that this process gives up, and why: their waits end. Then that error, or what
 * another process gave up with. */
void team_give_up(team *t, const td_err *why);
td_err team_error(team *t);
/* The same, after a look for notices and for processes that are gone. */
td_err team_look(team *t);

/* --- for wires; the lock is held --- */

/* Looks for notices and for processes that are gone. */
void team_listen(team *t);
/* Notes a failure of the transport as the reason to give up, and tells the others. */
void team_fail(team *t, const td_err *why);
/* A short sleep between two looks; `turn` counts them. The lock is not held. */
void team_pause(long turn);

#endif
