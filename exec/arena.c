/* Mapping, canaries, the guard page. */
#include "exec/arena.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ARENA_ALIGN = 256 };

/* As a double or as two floats a NaN that no arithmetic here produces. */
static const uint64_t canary = 0x7ffa5ca57ffa5ca5u;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int64_t rank_arena_room(int64_t bytes) { return round_up(bytes < 1 ? 1 : bytes, ARENA_ALIGN); }

uint64_t rank_arena_canary(void) { return canary; }

void rank_arena_use(void *at, int64_t bytes, rank_arena *out)
{
    *out = (rank_arena){.base = at, .bytes = bytes};
}

td_status rank_arena_open(int64_t bytes, rank_arena *out, td_err *err)
{
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t used = rank_arena_room(bytes);
    const int64_t room = round_up(used, page);
    *out = (rank_arena){.bytes = bytes, .map_bytes = (size_t)(room + page)};
    void *const map =
        mmap(NULL, out->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return td_fail(err, TD_EDEVICE,
                       "memory of a rank: %lld bytes: %s; fewer or smaller stages "
                       "per machine would fit",
                       (long long)bytes, strerror(errno));
    (void)madvise(map, (size_t)room, MADV_HUGEPAGE); /* a hint; small pages work too */
    out->map = map;
    if (mprotect((char *)map + room, (size_t)page, PROT_NONE) != 0) {
        const int why = errno;
        rank_arena_close(out);
        return td_fail(err, TD_EDEVICE, "guard page: %s", strerror(why));
    }
    out->base = (char *)map + (room - used);
    rank_arena_lay(out);
    return TD_OK;
}

void rank_arena_lay(const rank_arena *r)
{
    uint64_t *const words = (uint64_t *)(void *)r->base;
    const int64_t n = rank_arena_room(r->bytes) / 8;
    for (int64_t i = 0; i < n; i++) words[i] = canary;
}

void rank_arena_close(rank_arena *r)
{
    if (r->map != NULL) (void)munmap(r->map, r->map_bytes);
    *r = (rank_arena){0};
}

int64_t rank_arena_touched(const rank_arena *r)
{
    const uint64_t *const words = (const uint64_t *)(const void *)r->base;
    int64_t n = round_up(r->bytes, ARENA_ALIGN) / 8;
    while (n > 0 && words[n - 1] == canary) n--;
    return round_up(n * 8, ARENA_ALIGN);
}

int64_t rank_arena_canaries(const rank_arena *r, int64_t offset, int64_t bytes)
{
    int64_t n = 0;
    for (int64_t at = offset; at + 8 <= offset + bytes; at += 8) {
        uint64_t word = 0;
        memcpy(&word, r->base + at, sizeof word);
        n += word == canary;
    }
    return n;
}

int64_t process_rss_bytes(void)
{
    FILE *const f = fopen("/proc/self/statm", "r");
    if (f == NULL) return 0;
    long long total = 0, resident = 0;
    const int n = fscanf(f, "%lld %lld", &total, &resident);
    (void)fclose(f);
    return n == 2 ? (int64_t)resident * sysconf(_SC_PAGESIZE) : 0;
}
