/* A rank's memory: mapped once, filled with canaries, ending at a guard page. */
#ifndef EXEC_ARENA_H
#define EXEC_ARENA_H

#include "base/base.h"

typedef struct rank_arena {
    char *base; /* 256-byte aligned; the guard page starts at base + bytes rounded up to 256 */
    int64_t bytes;
    void *map;
    size_t map_bytes;
} rank_arena;

/* Maps `bytes` and fills them with canaries. TD_EDEVICE when the machine refuses. */
TD_MUST_USE td_status rank_arena_open(int64_t bytes, rank_arena *out, td_err *err);
/* The same in memory that is there already and stays when the arena is closed: 256-byte aligned, of
 * rank_arena_room bytes, and full of canaries (rank_arena_canary). */
void rank_arena_use(void *at, int64_t bytes, rank_arena *out);
int64_t rank_arena_room(int64_t bytes);
uint64_t rank_arena_canary(void);
/* Fills an arena's memory with canaries. */
void rank_arena_lay(const rank_arena *r);
void rank_arena_close(rank_arena *r);

/* One past the highest byte that was written since the canaries were laid, rounded up to 256. */
int64_t rank_arena_touched(const rank_arena *r);
/* Eight-byte words of [offset, offset + bytes) that still hold canaries. */
int64_t rank_arena_canaries(const rank_arena *r, int64_t offset, int64_t bytes);

/* Resident memory of the process in bytes, 0 where it cannot be known. */
int64_t process_rss_bytes(void);

#endif
