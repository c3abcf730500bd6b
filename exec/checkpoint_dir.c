/* Folders of checkpoints. */
#include "exec/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORM "step_%010lld.safetensors"

char *checkpoint_path(td_arena *a, const char *dir, int64_t step)
{
    return td_sprintf(a, "%s/" FORM, dir, (long long)step);
}

/* The step of a file's name, or -1. */
static int64_t step_of(const char *name)
{
    static const char head[] = "step_", tail[] = ".safetensors";
    if (strncmp(name, head, sizeof head - 1) != 0) return -1;
    const char *const digits = name + sizeof head - 1;
    const size_t n = strspn(digits, "0123456789");
    if (n < 10 || n > 18 || strcmp(digits + n, tail) != 0) return -1;
    return strtoll(digits, NULL, 10);
}

static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static td_status list(const char *dir, td_arena *a, int64_t **steps, size_t *n, td_err *err)
{
    size_t cap = 0;
    *steps = NULL;
    *n = 0;
    DIR *const d = opendir(dir);
    if (d == NULL) return td_fail(err, TD_EIO, "%s: cannot read: %s", dir, strerror(errno));
    td_status st = TD_OK;
    for (const struct dirent *e = readdir(d); e != NULL && st == TD_OK; e = readdir(d)) {
        const int64_t step = step_of(e->d_name);
        if (step < 0) continue;
        st = TD_GROW(a, *steps, cap, *n + 1, err);
        if (st == TD_OK) (*steps)[(*n)++] = step;
    }
    (void)closedir(d);
    if (*n > 0) qsort(*steps, *n, sizeof **steps, newest_first);
    return st;
}

td_status checkpoint_newest(const char *path, td_arena *a, const char **out, td_err *err)
{
    struct stat is;
    if (stat(path, &is) != 0) return td_cannot_open(path, err);
    *out = path;
    if (!S_ISDIR(is.st_mode)) return TD_OK;
    int64_t *steps = NULL;
    size_t n = 0;
    TD_TRY(list(path, a, &steps, &n, err));
    if (n == 0)
        return td_fail(err, TD_EUSAGE, "%s: no checkpoint in it (step_*.safetensors)", path);
    *out = checkpoint_path(a, path, steps[0]);
    return *out != NULL ? TD_OK : td_fail(err, TD_ENOMEM, "out of memory for a file name");
}

td_status checkpoint_prune(const char *dir, int64_t keep, td_arena *a, td_err *err)
{
    int64_t *steps = NULL;
    size_t n = 0;
    TD_TRY(list(dir, a, &steps, &n, err));
    for (size_t i = (size_t)keep; keep > 0 && i < n; i++) {
        const char *const path = checkpoint_path(a, dir, steps[i]);
        if (path == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a file name");
        if (unlink(path) != 0 && errno != ENOENT)
            return td_fail(err, TD_EIO, "%s: cannot delete: %s", path, strerror(errno));
    }
    return TD_OK;
}
