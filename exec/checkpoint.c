/* Writing and reading the state of a training. */
#include "exec/checkpoint.h"
#include "exec/device_run.h"
#include "exec/safetensors.h"
#include "exec/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a parameter has: the i-th kind's tensors are entries [i * n_tensors, (i + 1) * n_tensors).
 */
enum { KIND_WEIGHT, KIND_FIRST, KIND_SECOND, KIND_COUNT };
static const char *const kind_prefix[KIND_COUNT] = {"", "exp_avg.", "exp_avg_sq."};

enum { SUM_DIGITS = 16 }; /* of a checksum, in the header */
enum { PIECE = 1 << 20 }; /* elements that are written at a time */
#define SUMS_KEY "checksums"

typedef struct store {
    const executor *x;
    td_arena *a; /* scratch */
    const char *path;
    int kinds; /* 1: weights alone */
    tensor_file file;
    int64_t table;   /* entry of the token embedding, which a tied head's copy is */
    uint64_t *sums;  /* [kinds * n_tensors] of the elements written or read here */
    uint64_t *whole; /* reading: [kinds * n_tensors] as the header has them */
    char *room;      /* reading: the tensor at hand; writing from a device: a piece of one */
    int64_t in_room; /* its entry, or -1 */
    int fd;
} store;

/* A sum over the elements of a tensor, in any order and any pieces: each word is mixed with its
 * place (splitmix64's finalizer), and sums wrap. */
static uint64_t checksum(const float *x, int64_t first, int64_t n)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = 0;
        memcpy(&bits, &x[i], sizeof bits);
        uint64_t z = ((uint64_t)(first + i) << 32 | bits) + 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        sum += z ^ z >> 31;
    }
    return sum;
}

/* --- the file's tensors --- */

static td_status list_tensors(store *s, td_err *err)
{
    const model_desc *const m = s->x->z->model;
    const stage_desc whole = {.n_layers = m->n_layers, .embedding = true, .head = true};
    const int64_t n = s->x->n_tensors, all = stage_params(m, &whole, NULL, 0);
    param_tensor *const params = TD_NEW_N(s->a, param_tensor, all);
    s->file.n = s->kinds * n;
    s->file.tensors = TD_NEW_N(s->a, file_tensor, s->file.n);
    s->sums = TD_NEW_N(s->a, uint64_t, s->file.n);
    if (params == NULL || s->file.tensors == NULL || s->sums == NULL || all < n)
        return td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    (void)stage_params(m, &whole, params, all);
    for (int64_t i = 0; i < n; i++) {
        if (params[i].kind == PARAM_TOKEN_EMBEDDING) s->table = i;
        for (int k = 0; k < s->kinds; k++) {
            file_tensor *const t = &s->file.tensors[k * n + i];
            (void)snprintf(t->name, sizeof t->name, "%s%s", kind_prefix[k], params[i].name);
            t->rows = params[i].rows;
            t->cols = params[i].cols;
        }
    }
    return TD_OK;
}

/* The entry of tensor i of a stage. */
static int64_t entry_of(const store *s, const stage_code *c, int64_t i)
{
    const int64_t entry = stage_tensor_entry(c, i);
    return entry < s->x->n_tensors ? entry : s->table;
}

/* --- what ranks hold --- */

/* A run of one tensor's elements in the memory of a rank. */
typedef struct held_run {
    int64_t entry; /* of its kind's */
    int kind;
    int64_t first, count; /* elements of the tensor */
    float *at;            /* on the device, where there is one */
    bool elements;        /* at: of the run's dtype, which is not fp32 */
    bool writer;          /* of all copies this one is written */
} held_run;

/* Whether weights are kept as floats beside the moments, which are what a file holds. */
static bool has_masters(const store *s) { return s->x->z->run.dtype != TYPE_FP32; }

/* The n-th run of a tensor of the file that a rank holds of tensor i of an instance; false behind
 * the last. */
static bool run_of(const store *s, uint32_t rank, uint32_t inst, int64_t i, int64_t n,
                   shard_run *out)
{
    const plan *const p = s->x->p;
    const int32_t stage = p->insts[inst].stage;
    const stage_code *const c = exec_code(s->x, rank, stage);
    if (!c->at.shard) return shard_run_at(&s->x->whole[stage], c, p->ranks[rank].shard, i, n, out);
    const k_words words = vocab_words(c, p->insts[inst].backward_row);
    const int64_t cols = c->params[i].cols;
    *out = (shard_run){.whole = words.first * cols, .count = words.count * cols};
    return n == 0;
}

/* Whether a rank's copy of a tensor may be the one that is written: of what all tensor-parallel
 * shards hold, the first one's. */
static bool may_write(const store *s, const stage_code *c, uint32_t rank, int64_t i,
                      const shard_run *run)
{
    return entry_of(s, c, i) == stage_tensor_entry(c, i) &&
           run->part < shard_counted(c, s->x->p->ranks[rank].shard, i);
}

typedef td_status (*use_run)(store *s, const held_run *r, td_err *err);

static td_status each_moment(store *s, uint32_t rank, uint32_t inst, bool first_copy, use_run use,
                             td_err *err)
{
    const stage_code *const c = exec_code(s->x, rank, s->x->p->insts[inst].stage);
    const optimizer_share share = optimizer_share_of(s->x, rank, inst);
    float *const moments = exec_buffer(s->x, rank, SIZE_OPTIMIZER, inst);
    static const int in_order[] = {KIND_FIRST, KIND_SECOND, KIND_WEIGHT};
    if (moments == NULL) return TD_OK;
    shard_run run;
    for (int64_t i = 0; i < c->n_params; i++)
        for (int64_t n = 0; run_of(s, rank, inst, i, n, &run); n++)
            for (int32_t k = 0; k < share.n; k++) {
                const int64_t begin = share.pieces[k].first, end = begin + share.pieces[k].count;
                const int64_t at = c->params[i].offset + run.part, last = at + run.count;
                const int64_t from = at > begin ? at : begin, to = last < end ? last : end;
                if (from >= to) continue;
                held_run r = {.entry = entry_of(s, c, i),
                              .first = run.whole + from - at,
                              .count = to - from,
                              .at = moments + share.pieces[k].moment + from - begin,
                              .writer =
                                  may_write(s, c, rank, i, &run) && (first_copy || !share.whole)};
                for (int part = 0; part < (has_masters(s) ? 3 : 2); part++, r.at += share.moments) {
                    r.kind = in_order[part];
                    if (r.kind < s->kinds) TD_TRY(use(s, &r, err));
                }
            }
    return TD_OK;
}

/* The weights of an instance on a rank. */
static td_status each_weight(store *s, uint32_t rank, uint32_t inst, bool first_copy, use_run use,
                             td_err *err)
{
    const stage_code *const c = exec_code(s->x, rank, s->x->p->insts[inst].stage);
    char *const weights = (char *)exec_buffer(s->x, rank, SIZE_WEIGHTS, inst);
    shard_run run;
    for (int64_t i = 0; weights != NULL && i < c->n_params; i++)
        for (int64_t n = 0; run_of(s, rank, inst, i, n, &run); n++) {
            const int64_t at = (c->params[i].offset + run.part) * c->element_bytes;
            const held_run r = {.entry = entry_of(s, c, i),
                                .kind = KIND_WEIGHT,
                                .first = run.whole,
                                .count = run.count,
                                .at = (float *)(void *)(weights + at),
                                .elements = has_masters(s),
                                .writer = first_copy && !has_masters(s) &&
                                          may_write(s, c, rank, i, &run)};
            TD_TRY(use(s, &r, err));
        }
    return TD_OK;
}

/* Goes through all that the ranks of this process hold. */
static td_status each_run(store *s, use_run use, td_err *err)
{
    const plan *const p = s->x->p;
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        if (!exec_is_here(s->x, rank)) continue;
        for (uint32_t inst = 0; inst < p->n_insts; inst++) {
            const uint32_t trains = exec_rank_of(s->x, inst, 0) + (uint32_t)p->ranks[rank].shard;
            const bool first = p->insts[inst].pipe == 0 && trains == rank;
            TD_TRY(each_weight(s, rank, inst, first, use, err));
            if (s->kinds > 1 || has_masters(s)) TD_TRY(each_moment(s, rank, inst, first, use, err));
        }
    }
    return TD_OK;
}

/* --- writing --- */

static td_status write_run(store *s, const held_run *r, td_err *err)
{
    if (!r->writer) return TD_OK;
    const int64_t i = r->kind * s->x->n_tensors + r->entry, word = (int64_t)sizeof(float);
    const int64_t begin = s->file.tensors[i].begin;
    for (int64_t first = 0; first < r->count; first += PIECE) {
        const int64_t n = r->count - first < PIECE ? r->count - first : PIECE;
        const float *from = r->at + first;
        if (s->room != NULL) {
            TD_TRY(device_run_read(s->x, s->room, from, n * word, err));
            from = (const float *)(const void *)s->room;
        }
        s->sums[i] += checksum(from, r->first + first, n);
        TD_TRY(
            file_write_at(s->fd, s->path, from, n * word, begin + (r->first + first) * word, err));
    }
    return TD_OK;
}

static td_status note(store *s, const char *key, const char *value, td_err *err)
{
    if (value == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    s->file.notes[s->file.n_notes++] = (file_note){key, value};
    return TD_OK;
}

static td_status note_number(store *s, const char *key, int64_t value, td_err *err)
{
    return note(s, key, td_sprintf(s->a, "%lld", (long long)value), err);
}

static td_status note_state(store *s, const checkpoint_state *state, td_err *err)
{
    enum { NOTES = 16 };
    s->file.n_notes = 0;
    s->file.notes = TD_NEW_N(s->a, file_note, NOTES);
    char *const sums = td_alloc(s->a, (size_t)s->file.n, SUM_DIGITS + 1);
    if (s->file.notes == NULL || sums == NULL)
        return td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    if (state == NULL) return TD_OK;
    for (int64_t i = 0; i < s->file.n; i++)
        (void)snprintf(sums + i * SUM_DIGITS, SUM_DIGITS + 1, "%016llx",
                       (unsigned long long)s->sums[i]);
    TD_TRY(note(s, "tandem", "checkpoint 1", err));
    TD_TRY(note_number(s, "step", state->step, err));
    TD_TRY(note_number(s, "skipped", state->skipped, err));
    TD_TRY(note(s, "seed", td_sprintf(s->a, "%llu", (unsigned long long)state->seed), err));
    TD_TRY(note(s, "text", td_sprintf(s->a, "%016llx", (unsigned long long)state->text), err));
    TD_TRY(note_number(s, "microbatches", state->microbatches, err));
    TD_TRY(note_number(s, "micro_batch", state->micro_batch, err));
    TD_TRY(note_number(s, "seq_len", state->seq_len, err));
    return note(s, SUMS_KEY, sums, err);
}

/* With checksums as known so far: their digits take the same room. */
static td_status write_header(store *s, const checkpoint_state *state, bool to_file, td_err *err)
{
    TD_TRY(note_state(s, state, err));
    td_text head = {0};
    td_status st = tensor_file_header(&s->file, &head, err);
    if (st == TD_OK && to_file)
        st = file_write_at(s->fd, s->path, head.s, (int64_t)head.len, 0, err);
    td_text_free(&head);
    return st;
}

/* The whole room is taken first, so that a full disk is found before anything else. */
static td_status make_file(store *s, const char *beside, td_err *err)
{
    s->fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (s->fd < 0) return td_fail(err, TD_EIO, "%s: cannot write: %s", s->path, strerror(errno));
    const int rc = posix_fallocate(s->fd, 0, (off_t)s->file.bytes);
    if (rc != 0)
        return td_fail(err, TD_EIO, "%s: no room for its %lld bytes: %s", s->path,
                       (long long)s->file.bytes, strerror(rc));
    return TD_OK;
}

static td_status write_mine(store *s, const char *beside, td_err *err)
{
    if (s->fd < 0) s->fd = open(beside, O_WRONLY | O_CLOEXEC);
    if (s->fd < 0)
        return td_fail(err, TD_EIO, "%s: cannot write: %s; all ranks need the same file system",
                       s->path, strerror(errno));
    TD_TRY(each_run(s, write_run, err));
    if (fsync(s->fd) != 0)
        return td_fail(err, TD_EIO, "%s: cannot write: %s", s->path, strerror(errno));
    return TD_OK;
}

/* The folder's entry must be on the disk too. */
static td_status sync_folder(const char *path, td_err *err)
{
    char folder[PATH_MAX];
    const char *const slash = strrchr(path, '/');
    (void)snprintf(folder, sizeof folder, "%.*s", slash == NULL ? 1 : (int)(slash - path + 1),
                   slash == NULL ? "." : path);
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return td_fail(err, TD_EIO, "%s: cannot open: %s", folder, strerror(errno));
    const bool ok = fsync(fd) == 0 || errno == EINVAL; /* some file systems have no such thing */
    (void)close(fd);
    return ok ? TD_OK : td_fail(err, TD_EIO, "%s: cannot write: %s", folder, strerror(errno));
}

static td_status finish(store *s, const checkpoint_state *state, const char *beside, td_err *err)
{
    if (s->fd < 0) return TD_OK; /* another process's work */
    TD_TRY(write_header(s, state, true, err));
    if (fsync(s->fd) != 0 || rename(beside, s->path) != 0)
        return td_fail(err, TD_EIO, "%s: cannot write: %s", s->path, strerror(errno));
    return sync_folder(s->path, err);
}

static td_status write_all(store *s, const checkpoint_state *state, const char *beside, td_err *err)
{
    team *const t = s->x->options.team;
    const bool first = team_index(t) == 0;
    td_status st = list_tensors(s, err);
    if (st == TD_OK && s->x->device != NULL) s->room = td_alloc(s->a, PIECE, sizeof(float));
    if (st == TD_OK && s->x->device != NULL && s->room == NULL)
        st = td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    if (st == TD_OK) st = write_header(s, state, false, err);
    if (st == TD_OK && first) st = make_file(s, beside, err);
    TD_TRY(team_agree(t, st, err));
    TD_TRY(team_agree(t, write_mine(s, beside, err), err));
    TD_TRY(team_fold(t, TEAM_ADD, s->sums, s->file.n, err));
    if (!first) {
        (void)close(s->fd);
        s->fd = -1;
    }
    return team_agree(t, finish(s, state, beside, err), err);
}

td_status checkpoint_write(const executor *x, const checkpoint_state *state, const char *path,
                           td_err *err)
{
    char beside[PATH_MAX];
    const int n = snprintf(beside, sizeof beside, "%s.tmp", path);
    if (n < 0 || (size_t)n >= sizeof beside || td_is_device(path))
        return td_fail(err, TD_EUSAGE, "%s: weights cannot be written to a file of this name",
                       path);
    store s = {.x = x,
               .a = td_arena_new(),
               .path = path,
               .kinds = state == NULL ? 1 : KIND_COUNT,
               .fd = -1};
    const td_status st = s.a == NULL ? td_fail(err, TD_ENOMEM, "%s: out of memory", path)
                                     : write_all(&s, state, beside, err);
    if (s.fd >= 0) (void)close(s.fd);
    if (st != TD_OK && team_index(x->options.team) == 0) (void)unlink(beside);
    td_arena_free(s.a);
    return st;
}

/* --- reading --- */

static td_status read_number(const store *s, const char *key, int base, uint64_t *out, td_err *err)
{
    const char *const v = tensor_file_note(&s->file, key);
    char *end = NULL;
    errno = 0;
    if (v != NULL && *v >= '0' && *v <= 'f') *out = strtoull(v, &end, base);
    if (end == NULL || *end != '\0' || errno != 0)
        return td_fail(err, TD_EPARSE, "%s: no %s in its metadata; it is no checkpoint", s->path,
                       key);
    return TD_OK;
}

static td_status read_state(store *s, checkpoint_state *out, td_err *err)
{
    uint64_t n[5] = {0};
    TD_TRY(read_number(s, "step", 10, &n[0], err));
    TD_TRY(read_number(s, "skipped", 10, &n[1], err));
    TD_TRY(read_number(s, "seed", 10, &out->seed, err));
    TD_TRY(read_number(s, "text", 16, &out->text, err));
    TD_TRY(read_number(s, "microbatches", 10, &n[2], err));
    TD_TRY(read_number(s, "micro_batch", 10, &n[3], err));
    TD_TRY(read_number(s, "seq_len", 10, &n[4], err));
    for (int i = 0; i < 5; i++)
        if (n[i] > INT64_MAX / 2 || n[1] > n[0])
            return td_fail(err, TD_EPARSE, "%s: impossible numbers in its metadata", s->path);
    out->step = (int64_t)n[0];
    out->skipped = (int64_t)n[1];
    out->microbatches = (int64_t)n[2];
    out->micro_batch = (int64_t)n[3];
    out->seq_len = (int64_t)n[4];
    return TD_OK;
}

/* The file's tensors must be those of the model: its order is ours then. */
static td_status compare(const store *s, const tensor_file *ours, td_err *err)
{
    const char *const model = s->x->z->model->name;
    for (int64_t i = 0; i < ours->n; i++) {
        const file_tensor *const want = &ours->tensors[i];
        const file_tensor *const got = tensor_file_find(&s->file, want->name);
        if (got == NULL)
            return td_fail(err, TD_EUSAGE,
                           "%s: tensor %s of model %s is missing; it is another model's checkpoint",
                           s->path, want->name, model);
        if (got->rows != want->rows || got->cols != want->cols)
            return td_fail(err, TD_EUSAGE,
                           "%s: tensor %s is %lld x %lld, in model %s it is %lld x %lld; it is "
                           "another model's checkpoint",
                           s->path, want->name, (long long)got->rows, (long long)got->cols, model,
                           (long long)want->rows, (long long)want->cols);
        if (got != &s->file.tensors[i])
            return td_fail(err, TD_EPARSE, "%s: tensor %s is not in its place", s->path,
                           want->name);
    }
    if (s->file.n != ours->n)
        return td_fail(err, TD_EUSAGE,
                       "%s: tensor %s is not of model %s; it is another model's checkpoint",
                       s->path, s->file.tensors[ours->n].name, model);
    return TD_OK;
}

static td_status read_sums(store *s, td_err *err)
{
    const char *const text = tensor_file_note(&s->file, SUMS_KEY);
    if (text == NULL || strlen(text) != (size_t)s->file.n * SUM_DIGITS)
        return td_fail(err, TD_EPARSE, "%s: no checksums in its metadata; it is no checkpoint",
                       s->path);
    s->whole = TD_NEW_N(s->a, uint64_t, s->file.n);
    if (s->whole == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    for (int64_t i = 0; i < s->file.n; i++) {
        char digits[SUM_DIGITS + 1] = "";
        memcpy(digits, text + i * SUM_DIGITS, SUM_DIGITS);
        s->whole[i] = strtoull(digits, NULL, 16);
    }
    return TD_OK;
}

static td_status read_run(store *s, const held_run *r, td_err *err)
{
    const int64_t i = r->kind * s->x->n_tensors + r->entry;
    const file_tensor *const t = &s->file.tensors[i];
    float *const room = (float *)(void *)s->room;
    if (s->in_room != i) {
        s->in_room = -1;
        TD_TRY(file_read_at(s->fd, s->path, room, file_tensor_bytes(t), t->begin, err));
        if (checksum(room, 0, t->rows * t->cols) != s->whole[i])
            return td_fail(err, TD_EPARSE,
                           "%s: the data of tensor %s is not what was written; take an older "
                           "checkpoint",
                           s->path, t->name);
        s->in_room = i;
    }
    if (r->elements) return device_run_narrow(s->x, r->at, room + r->first, r->count, err);
    return device_run_write(s->x, r->at, room + r->first, r->count * (int64_t)sizeof *room, err);
}

static td_status read_all(store *s, checkpoint_state *out, td_err *err)
{
    TD_TRY(list_tensors(s, err));
    const tensor_file ours = s->file;
    s->fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0) return td_cannot_open(s->path, err);
    TD_TRY(tensor_file_read(s->fd, s->path, s->a, &s->file, err));
    if (tensor_file_note(&s->file, SUMS_KEY) == NULL)
        return td_fail(err, TD_EUSAGE,
                       "%s: weights without the state of a training; it is no "
                       "checkpoint (--save writes them)",
                       s->path);
    TD_TRY(compare(s, &ours, err));
    TD_TRY(read_state(s, out, err));
    TD_TRY(read_sums(s, err));
    int64_t most = 0;
    for (int64_t i = 0; i < s->file.n; i++) {
        const int64_t bytes = file_tensor_bytes(&s->file.tensors[i]);
        most = bytes > most ? bytes : most;
    }
    s->room = td_alloc(s->a, 1, (size_t)most);
    if (s->room == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", s->path);
    s->in_room = -1;
    return each_run(s, read_run, err);
}

td_status checkpoint_read(executor *x, const char *path, checkpoint_state *out, td_err *err)
{
    *out = (checkpoint_state){0};
    store s = {.x = x, .a = td_arena_new(), .path = path, .kinds = KIND_COUNT, .fd = -1};
    const td_status st =
        s.a == NULL ? td_fail(err, TD_ENOMEM, "%s: out of memory", path) : read_all(&s, out, err);
    if (s.fd >= 0) (void)close(s.fd);
    td_arena_free(s.a);
    return team_agree(x->options.team, st, err);
}
