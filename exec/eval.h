/* Inside evaluation: its ends where the tables lie in shards (eval_shards.c). */
#ifndef EXEC_EVAL_H
#define EXEC_EVAL_H

#include "exec/exec.h"

/* Bytes of the host that the two work in. */
int64_t eval_shards_bytes(const executor *x);
/* The tokens' rows of the table, [N, hidden], on the rank `owner`, where it computes. */
TD_MUST_USE td_status eval_embed(const executor *x, char *work, uint32_t owner, const int32_t *ids,
                                 float *out, td_err *err);
/* The mean loss, on `owner`, of the final norm's output there. */
TD_MUST_USE td_status eval_loss(const executor *x, char *work, uint32_t owner, const float *normed,
                                const int32_t *targets, double *loss, td_err *err);

#endif
