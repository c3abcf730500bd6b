/* Memory of ranks in a mapped file. */
#include "exec/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct file_place {
    const char *folder;
    int fd;
    int64_t bytes; /* of the file so far */
} file_place;

static int64_t page_bytes(void) { return sysconf(_SC_PAGESIZE); }

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The pages of the file that a rank has: its map without the guard page behind it. */
static size_t file_bytes(const rank_arena *r) { return r->map_bytes - (size_t)page_bytes(); }

static td_status open_memory(void *self, int64_t bytes, rank_arena *out, td_err *err)
{
    file_place *const f = self;
    const int64_t page = page_bytes(), used = rank_arena_room(bytes);
    const int64_t room = round_up(used, page);
    /* written later, a hole in a full disk would end the program without a word */
    const int rc = posix_fallocate(f->fd, f->bytes, room);
    if (rc != 0)
        return td_fail(err, TD_EDEVICE, "--offload-dir %s: no room for %lld bytes of a rank: %s",
                       f->folder, (long long)room, strerror(rc));
    char *const map =
        mmap(NULL, (size_t)(room + page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mmap(map, (size_t)room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                                  f->fd, (off_t)f->bytes) == MAP_FAILED) {
        const int why = errno;
        if (map != MAP_FAILED) (void)munmap(map, (size_t)(room + page));
        return td_fail(err, TD_EDEVICE, "--offload-dir %s: mapping %lld bytes: %s", f->folder,
                       (long long)room, strerror(why));
    }
    f->bytes += room;
    *out = (rank_arena){.base = map + (room - used),
                        .bytes = bytes,
                        .map = map,
                        .map_bytes = (size_t)(room + page)};
    rank_arena_lay(out);
    return TD_OK;
}

/* Every page is written where it is, so that a pass that follows finds all of them in its table. */
static td_status bring(void *self, const rank_arena *r, td_err *err)
{
    const size_t bytes = file_bytes(r), page = (size_t)page_bytes();
    (void)self;
    (void)err;
    (void)madvise(r->map, bytes, MADV_WILLNEED);
    volatile char *const at = r->map;
    for (size_t i = 0; i < bytes; i += page) at[i] = at[i];
    return TD_OK;
}

/* The pages of a shared map live on in the page cache, which the kernel writes to the disk and
 * drops when memory is wanted. */
static td_status put_away(void *self, const rank_arena *r, td_err *err)
{
    const file_place *const f = self;
    if (madvise(r->map, file_bytes(r), MADV_DONTNEED) == 0) return TD_OK;
    return td_fail(err, TD_EDEVICE, "--offload-dir %s: putting a rank's memory away: %s", f->folder,
                   strerror(errno));
}

static void close_file(void *self)
{
    file_place *const f = self;
    (void)close(f->fd);
}

td_status offload_file(const char *folder, td_arena *a, offload_place *out, td_err *err)
{
    file_place *const f = TD_NEW(a, file_place);
    char *const path = td_sprintf(a, "%s/tandem-XXXXXX", folder);
    if (f == NULL || path == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the ranks");
    *f = (file_place){.folder = folder, .fd = mkstemp(path)};
    if (f->fd < 0)
        return td_fail(err, TD_EIO, "--offload-dir %s: no file can be made there: %s", folder,
                       strerror(errno));
    (void)unlink(path);
    *out = (offload_place){
        .self = f, .open = open_memory, .bring = bring, .put_away = put_away, .close = close_file};
    return TD_OK;
}
