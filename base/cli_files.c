/* The files that a command line names: what it writes must not be what it reads. */
#include "base/cli.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is written at the end must not fail for want of a folder after hours of work. */
static td_status check_folder(const char *path, td_err *err)
{
    const char *const slash = strrchr(path, '/');
    const size_t len = slash == NULL || slash == path ? 1 : (size_t)(slash - path);
    char folder[PATH_MAX];
    if (len >= sizeof folder) return td_fail(err, TD_EIO, "%s: file name too long", path);
    memcpy(folder, slash == NULL ? "." : path, len);
    folder[len] = '\0';
    struct stat is;
    if (stat(path, &is) == 0 && S_ISDIR(is.st_mode))
        return td_fail(err, TD_EUSAGE, "%s: is a folder; name a file in it", path);
    if (stat(folder, &is) != 0)
        return td_fail(err, TD_EIO, "%s: no folder %s: %s", path, folder, strerror(errno));
    if (!S_ISDIR(is.st_mode)) return td_fail(err, TD_EIO, "%s: %s is no folder", path, folder);
    if (access(folder, W_OK | X_OK) != 0)
        return td_fail(err, TD_EIO, "%s: cannot write into %s: %s", path, folder, strerror(errno));
    return TD_OK;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    if (strcmp(a, b) == 0) return true;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Is this output none of the other files of the command line? */
static td_status check_apart(const cli_args *args, const cli_option *output, size_t number,
                             const char *path, td_err *err)
{
    for (int i = 0; i < args->n_operands; i++)
        if (same_file(path, args->operands[i]))
            return td_fail(err, TD_EUSAGE, "--%s %s: this is read; write elsewhere", output->name,
                           path);
    size_t i = 0;
    for (size_t t = 0; t < args->verb->n_tables; t++)
        for (size_t k = 0; k < args->verb->tables[t].n; k++, i++) {
            const cli_option *const o = &args->verb->tables[t].options[k];
            if (i == number || o->kind != CLI_TEXT || args->text[i] == NULL ||
                !same_file(path, args->text[i]))
                continue;
            return td_fail(err, TD_EUSAGE, "--%s %s: --%s names the same file; write elsewhere",
                           output->name, path, o->name);
        }
    return TD_OK;
}

td_status cli_check_outputs(const cli_args *args, td_err *err)
{
    size_t i = 0;
    for (size_t t = 0; t < args->verb->n_tables; t++)
        for (size_t k = 0; k < args->verb->tables[t].n; k++, i++) {
            const cli_option *const o = &args->verb->tables[t].options[k];
            const char *const path = args->text[i];
            if (!o->writes || path == NULL || td_is_device(path)) continue;
            TD_TRY(check_folder(path, err));
            TD_TRY(check_apart(args, o, i, path, err));
        }
    return TD_OK;
}
