/* The safetensors format: eight bytes of length, a JSON header, then the data (Hugging Face's
 * specification). Here: fp32 only. */
#ifndef EXEC_SAFETENSORS_H
#define EXEC_SAFETENSORS_H

#include "base/base.h"

enum { TENSOR_NAME_MAX = 80 };

typedef struct file_tensor {
    char name[TENSOR_NAME_MAX];
    int64_t rows, cols; /* cols 1: a vector */
    int64_t begin;      /* bytes from the start of the file */
} file_tensor;

/* A pair of the header's metadata. */
typedef struct file_note {
    const char *key, *value;
} file_note;

typedef struct tensor_file {
    file_tensor *tensors; /* [n] in the order of their data */
    int64_t n;
    file_note *notes; /* [n_notes] */
    int64_t n_notes;
    int64_t bytes; /* of the whole file */
} tensor_file;

/* Where the bytes of tensor i end. */
int64_t file_tensor_bytes(const file_tensor *t);

/* The bytes before the data; sets each tensor's begin, and bytes. Of equal length for notes of
 * equal lengths. TD_ENOMEM. */
TD_MUST_USE td_status tensor_file_header(tensor_file *f, td_text *out, td_err *err);

/* Reads the header of an open file and holds it against the file's size: ranges are in order and
 * cover the data exactly, names are unique, all is F32 of at most two dimensions. TD_EPARSE with
 * `path` and the reason. */
TD_MUST_USE td_status tensor_file_read(int fd, const char *path, td_arena *a, tensor_file *out,
                                       td_err *err);

/* The tensor of a name, or NULL; the value of a note, or NULL. */
const file_tensor *tensor_file_find(const tensor_file *f, const char *name);
const char *tensor_file_note(const tensor_file *f, const char *key);

/* All of [at, at + bytes), or TD_EIO with `path`. */
TD_MUST_USE td_status file_write_at(int fd, const char *path, const void *data, int64_t bytes,
                                    int64_t at, td_err *err);
TD_MUST_USE td_status file_read_at(int fd, const char *path, void *data, int64_t bytes, int64_t at,
                                   td_err *err);

#endif
