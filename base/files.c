/* Whole files, read and written. */
#include "base/base.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

td_status td_cannot_open(const char *path, td_err *err)
{
    const bool name = errno == ENOENT || errno == ENOTDIR || errno == EISDIR || errno == EACCES ||
                      errno == ELOOP || errno == ENAMETOOLONG;
    return td_fail(err, name ? TD_EUSAGE : TD_EIO, "%s: cannot open: %s", path, strerror(errno));
}

static td_status read_stream(FILE *f, td_arena *a, const char *path, size_t max_bytes, char **text,
                             size_t *len, td_err *err)
{
    char *buf = NULL;
    size_t cap = 0, n = 0;
    for (;;) {
        TD_TRY(TD_GROW(a, buf, cap, n + 65537, err));
        const size_t got = fread(buf + n, 1, cap - n - 1, f);
        n += got;
        if (n > max_bytes)
            return td_fail(err, TD_EUSAGE, "%s: larger than %zu bytes", path, max_bytes);
        if (got == 0) break;
    }
    if (ferror(f) && errno == EISDIR) return td_cannot_open(path, err);
    if (ferror(f)) return td_fail(err, TD_EIO, "%s: cannot read: %s", path, strerror(errno));
    buf[n] = '\0';
    *text = buf;
    *len = n;
    return TD_OK;
}

td_status td_read_file(td_arena *a, const char *path, size_t max_bytes, char **text, size_t *len,
                       td_err *err)
{
    if (strcmp(path, "-") == 0) return read_stream(stdin, a, "stdin", max_bytes, text, len, err);
    FILE *const f = fopen(path, "rb");
    if (f == NULL) return td_cannot_open(path, err);
    const td_status st = read_stream(f, a, path, max_bytes, text, len, err);
    (void)fclose(f);
    return st;
}

bool td_is_device(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
}

td_status td_write_file(const char *path, const char *bytes, size_t len, td_err *err)
{
    char tmp[PATH_MAX];
    const bool in_place = td_is_device(path);
    const int n = in_place ? snprintf(tmp, sizeof tmp, "%s", path)
                           : snprintf(tmp, sizeof tmp, "%s.%ld.tmp", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof tmp)
        return td_fail(err, TD_EIO, "%s: file name too long", path);
    FILE *const f = fopen(tmp, "wb");
    if (f == NULL) return td_fail(err, TD_EIO, "%s: cannot write: %s", path, strerror(errno));
    const bool wrote = fwrite(bytes, 1, len, f) == len;
    const bool closed = fclose(f) == 0;
    if (wrote && closed && (in_place || rename(tmp, path) == 0)) return TD_OK;
    const int why = errno;
    if (!in_place) (void)unlink(tmp);
    return td_fail(err, TD_EIO, "%s: cannot write: %s", path, strerror(why));
}
