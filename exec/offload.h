/* Ranks whose memory does not fit together: at most `limit` bytes of it are in memory, those of the
 * ranks used last; the others' are elsewhere until they are used again. Addresses never change: a
 * rank that is away keeps its room, and whoever has a pointer into it may read and write there at
 * any time, only slowly. So every backend can do this: the cores map a file, a device would map and
 * unmap its pages. One thread at a time. */
#ifndef EXEC_OFFLOAD_H
#define EXEC_OFFLOAD_H

#include "exec/arena.h"
#include "exec/device.h"

/* Where the memory of ranks is, and how it comes and goes. */
typedef struct offload_place {
    void *self;
    /* Memory of a rank, as rank_arena_open gives it; it is present. */
    td_status (*open)(void *self, int64_t bytes, rank_arena *out, td_err *err);
    /* Makes all of it fast to reach; writes it to where it lies when away, and frees its pages. */
    td_status (*bring)(void *self, const rank_arena *r, td_err *err);
    td_status (*put_away)(void *self, const rank_arena *r, td_err *err);
    void (*close)(void *self);
} offload_place;

typedef struct offload offload;

typedef struct offload_stats {
    int64_t limit_bytes, most_bytes; /* most: of ranks that were present at once */
    int64_t all_bytes;               /* of all ranks together */
    int64_t brought, brought_bytes;
} offload_stats;

/* Takes over the place. */
TD_MUST_USE td_status offload_open(const offload_place *place, int64_t limit, td_arena *a,
                                   offload **out, td_err *err);
/* Closes the place; the arenas before it. */
void offload_close(offload *o);

/* The memory of the next rank: call it for rank 0, 1, ... TD_EUSAGE when it alone is beyond the
 * limit. */
TD_MUST_USE td_status offload_arena(offload *o, int64_t bytes, rank_arena *out, td_err *err);
/* The rank is used now: it is present, and ranks that were not used for longest are away so that
 * the limit holds. NULL: nothing to do. */
TD_MUST_USE td_status offload_use(offload *o, uint32_t rank, td_err *err);
/* The same as a hint: what fails is told by the next use. */
void offload_touch(offload *o, uint32_t rank);
/* Puts away what came back by the page, without being used. */
TD_MUST_USE td_status offload_sweep(offload *o, td_err *err);
bool offload_is_here(const offload *o, uint32_t rank);
offload_stats offload_stats_of(const offload *o);

/* --- offload_file.c --- */

/* A file without a name in the folder, mapped: memory of the cores. TD_EIO when it cannot be made.
 */
TD_MUST_USE td_status offload_file(const char *folder, td_arena *a, offload_place *out,
                                   td_err *err);

/* --- offload_device.c --- */

/* Memory of the device that *d is when the first rank asks for some. */
TD_MUST_USE td_status offload_device(device *const *d, td_arena *a, offload_place *out,
                                     td_err *err);

#endif
