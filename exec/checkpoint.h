/* The state of a training in one file, by parameter and not by rank: weights and both moments of
 * AdamW under the parameters' names, whole, in model order, so that every plan writes the same
 * bytes and any plan can go on from them. Random numbers are counted, not drawn from a stream: seed
 * and step are their state, and the data's. */
#ifndef EXEC_CHECKPOINT_H
#define EXEC_CHECKPOINT_H

#include "exec/exec.h"

typedef struct checkpoint_state {
    int64_t step;    /* steps done; the next batches are those of step + 1 */
    int64_t skipped; /* of them without an update */
    uint64_t seed;   /* of weights and batches */
    uint64_t text;   /* corpus_hash */
    int64_t microbatches, micro_batch, seq_len; /* one step's batch */
} checkpoint_state;

/* Writes beside `path` and renames: a reader finds the old file or the whole new one, whenever the
 * run is killed. Every process writes what it holds; all return the same. state NULL: the weights
 * alone. TD_EIO, and nothing is left behind. */
TD_MUST_USE td_status checkpoint_write(const executor *x, const checkpoint_state *state,
                                       const char *path, td_err *err);

/* Fills weights and moments of all copies. All processes return the same. Errors: TD_EIO; TD_EPARSE
 * for a file that was cut or whose data fails its checksums; TD_EUSAGE for another model's. */
TD_MUST_USE td_status checkpoint_read(executor *x, const char *path, checkpoint_state *out,
                                      td_err *err);

/* --- checkpoint_dir.c --- */

/* "DIR/step_0000000010.safetensors" */
char *checkpoint_path(td_arena *a, const char *dir, int64_t step);
/* The newest checkpoint of a folder; of a file, its own name. TD_EUSAGE where there is none. */
TD_MUST_USE td_status checkpoint_newest(const char *path, td_arena *a, const char **out,
                                        td_err *err);
/* Deletes all but the newest `keep` ones. */
TD_MUST_USE td_status checkpoint_prune(const char *dir, int64_t keep, td_arena *a, td_err *err);

#endif
