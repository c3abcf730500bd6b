/* Reading and writing headers of safetensors files. */
#include "exec/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8, HEADER_MAX = 100000000 };

int64_t file_tensor_bytes(const file_tensor *t)
{
    return t->rows * t->cols * (int64_t)sizeof(float);
}

/* --- writing --- */

td_status tensor_file_header(tensor_file *f, td_text *out, td_err *err)
{
    td_text head = {0};
    td_text_add(&head, "{\"__metadata__\":{\"format\":\"pt\"");
    for (int64_t i = 0; i < f->n_notes; i++) {
        td_text_add(&head, ",");
        td_text_json(&head, f->notes[i].key);
        td_text_add(&head, ":");
        td_text_json(&head, f->notes[i].value);
    }
    td_text_add(&head, "}");
    int64_t at = 0;
    for (int64_t i = 0; i < f->n; i++) {
        file_tensor *const t = &f->tensors[i];
        td_text_add(&head, ",");
        td_text_json(&head, t->name);
        td_text_addf(&head, ":{\"dtype\":\"F32\",\"shape\":[%lld", (long long)t->rows);
        if (t->cols > 1) td_text_addf(&head, ",%lld", (long long)t->cols);
        t->begin = at;
        at += file_tensor_bytes(t);
        td_text_addf(&head, "],\"data_offsets\":[%lld,%lld]}", (long long)t->begin, (long long)at);
    }
    td_text_add(&head, "}");
    while (head.len % LENGTH_BYTES != 0 && !head.failed) td_text_add(&head, " ");
    for (int i = 0; i < LENGTH_BYTES; i++) {
        const char byte = (char)(unsigned char)((uint64_t)head.len >> (8 * i));
        td_text_addn(out, &byte, 1);
    }
    if (!head.failed) td_text_addn(out, head.s, head.len);
    const int64_t base = LENGTH_BYTES + (int64_t)head.len;
    for (int64_t i = 0; i < f->n; i++) f->tensors[i].begin += base;
    f->bytes = base + at;
    const bool failed = head.failed || out->failed;
    td_text_free(&head);
    return failed ? td_fail(err, TD_ENOMEM, "out of memory for a header of safetensors") : TD_OK;
}

/* --- reading --- */

static td_status bad(const char *path, const char *what, const char *name, td_err *err)
{
    return td_fail(err, TD_EPARSE, "%s: %s%s%s; it is no whole safetensors file of ours", path,
                   what, name == NULL ? "" : ": tensor ", name == NULL ? "" : name);
}

static td_status read_tensor(const char *path, const char *name, const json_t *v,
                             int64_t data_bytes, file_tensor *t, td_err *err)
{
    const json_t *const dtype = json_object_get(v, "dtype"),
                        *const shape = json_object_get(v, "shape"),
                        *const range = json_object_get(v, "data_offsets");
    for (const char *c = name; *c != '\0'; c++)
        if ((unsigned char)*c < ' ') return bad(path, "a name with control characters", NULL, err);
    if (strlen(name) >= sizeof t->name) return bad(path, "name too long", name, err);
    memcpy(t->name, name, strlen(name) + 1);
    if (!json_is_string(dtype) || strcmp(json_string_value(dtype), "F32") != 0)
        return bad(path, "a type that is not F32", name, err);
    const size_t n = json_array_size(shape);
    if (!json_is_array(shape) || n < 1 || n > 2 || json_array_size(range) != 2)
        return bad(path, "a shape that is no vector or matrix", name, err);
    t->rows = json_integer_value(json_array_get(shape, 0));
    t->cols = n == 2 ? json_integer_value(json_array_get(shape, 1)) : 1;
    const int64_t begin = json_integer_value(json_array_get(range, 0));
    const int64_t end = json_integer_value(json_array_get(range, 1));
    const int64_t most = data_bytes / (int64_t)sizeof(float);
    if (t->rows < 1 || t->cols < 1 || t->rows > most || t->cols > most / t->rows || begin < 0 ||
        end < begin || end - begin != file_tensor_bytes(t))
        return bad(path, "shape and data do not fit", name, err);
    t->begin = begin;
    return TD_OK;
}

static int by_begin(const void *a, const void *b)
{
    const int64_t x = ((const file_tensor *)a)->begin, y = ((const file_tensor *)b)->begin;
    return (x > y) - (x < y);
}

static td_status read_notes(const char *path, json_t *meta, td_arena *a, tensor_file *out,
                            td_err *err)
{
    if (meta == NULL) return TD_OK;
    if (!json_is_object(meta)) return bad(path, "__metadata__ is no object", NULL, err);
    out->notes = TD_NEW_N(a, file_note, json_object_size(meta));
    if (out->notes == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    const char *key = NULL;
    json_t *v = NULL;
    json_object_foreach(meta, key, v)
    {
        if (!json_is_string(v)) return bad(path, "__metadata__ holds more than texts", NULL, err);
        file_note *const note = &out->notes[out->n_notes++];
        note->key = td_strdup(a, key);
        note->value = td_strdup(a, json_string_value(v));
        if (note->key == NULL || note->value == NULL)
            return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    }
    return TD_OK;
}

static td_status read_header(const char *path, json_t *root, int64_t base, td_arena *a,
                             tensor_file *out, td_err *err)
{
    const int64_t data_bytes = out->bytes - base;
    if (!json_is_object(root)) return bad(path, "the header is no object", NULL, err);
    TD_TRY(read_notes(path, json_object_get(root, "__metadata__"), a, out, err));
    out->tensors = TD_NEW_N(a, file_tensor, json_object_size(root));
    if (out->tensors == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    const char *key = NULL;
    json_t *v = NULL;
    json_object_foreach(root, key, v)
    {
        if (strcmp(key, "__metadata__") == 0) continue;
        TD_TRY(read_tensor(path, key, v, data_bytes, &out->tensors[out->n++], err));
    }
    qsort(out->tensors, (size_t)out->n, sizeof *out->tensors, by_begin);
    int64_t at = 0;
    for (int64_t i = 0; i < out->n; i++) {
        if (out->tensors[i].begin != at)
            return bad(path, "a gap or overlap", out->tensors[i].name, err);
        at += file_tensor_bytes(&out->tensors[i]);
        out->tensors[i].begin += base;
    }
    if (at != data_bytes)
        return td_fail(err, TD_EPARSE,
                       "%s: %lld bytes of data, but its header promises %lld; the "
                       "file was cut or changed",
                       path, (long long)data_bytes, (long long)at);
    return TD_OK;
}

td_status tensor_file_read(int fd, const char *path, td_arena *a, tensor_file *out, td_err *err)
{
    *out = (tensor_file){0};
    struct stat is;
    if (fstat(fd, &is) != 0)
        return td_fail(err, TD_EIO, "%s: cannot read: %s", path, strerror(errno));
    out->bytes = (int64_t)is.st_size;
    unsigned char length[LENGTH_BYTES];
    if (out->bytes < LENGTH_BYTES) return bad(path, "too short", NULL, err);
    TD_TRY(file_read_at(fd, path, length, LENGTH_BYTES, 0, err));
    uint64_t n = 0;
    for (int i = 0; i < LENGTH_BYTES; i++) n |= (uint64_t)length[i] << (8 * i);
    if (n > HEADER_MAX || (int64_t)n > out->bytes - LENGTH_BYTES)
        return bad(path, "its header is longer than the file", NULL, err);
    char *const text = td_alloc(a, 1, (size_t)n + 1);
    if (text == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    TD_TRY(file_read_at(fd, path, text, (int64_t)n, LENGTH_BYTES, err));
    json_error_t je;
    json_t *const root = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, &je);
    if (root == NULL)
        return td_fail(err, TD_EPARSE, "%s: its header is no JSON, at byte %lld", path,
                       (long long)je.position + LENGTH_BYTES);
    const td_status st = read_header(path, root, LENGTH_BYTES + (int64_t)n, a, out, err);
    json_decref(root);
    return st;
}

const file_tensor *tensor_file_find(const tensor_file *f, const char *name)
{
    for (int64_t i = 0; i < f->n; i++)
        if (strcmp(f->tensors[i].name, name) == 0) return &f->tensors[i];
    return NULL;
}

const char *tensor_file_note(const tensor_file *f, const char *key)
{
    for (int64_t i = 0; i < f->n_notes; i++)
        if (strcmp(f->notes[i].key, key) == 0) return f->notes[i].value;
    return NULL;
}

/* --- bytes --- */

td_status file_write_at(int fd, const char *path, const void *data, int64_t bytes, int64_t at,
                        td_err *err)
{
    const char *p = data;
    while (bytes > 0) {
        const ssize_t n = pwrite(fd, p, (size_t)bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return td_fail(err, TD_EIO, "%s: cannot write: %s", path,
                           n == 0 ? "nothing was taken" : strerror(errno));
        p += n;
        at += n;
        bytes -= n;
    }
    return TD_OK;
}

td_status file_read_at(int fd, const char *path, void *data, int64_t bytes, int64_t at, td_err *err)
{
    char *p = data;
    while (bytes > 0) {
        const ssize_t n = pread(fd, p, (size_t)bytes, (off_t)at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return td_fail(err, TD_EIO, "%s: cannot read: %s", path, strerror(errno));
        if (n == 0) return td_fail(err, TD_EPARSE, "%s: the file was cut", path);
        p += n;
        at += n;
        bytes -= n;
    }
    return TD_OK;
}
