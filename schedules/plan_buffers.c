/* Memory laws: a task touches its buffers within their lives, conflicting accesses are ordered, and
 * buffers that live at once do not overlap.
 *
 * A task on the compute stream touches a buffer at its position; one off it, anywhere from just
 * after its gate to just before its join. Two accesses are ordered when these windows do not meet,
 * or when both are in one stream. */
#include "schedules/plan_check.h"

#include <stdlib.h>

typedef struct access {
    uint32_t buffer, from, to; /* buffer within the rank */
    uint32_t task;
    uint8_t writes, computes;
} access;

/* Messages with unequal pieces of one buffer. */
static bool are_apart(const plan *p, uint32_t a, uint32_t b)
{
    const plan_class *const x = &p->classes[p->tasks[a].cls], *const y =
                                                                  &p->classes[p->tasks[b].cls];
    return x->kind > TASK_PAIR && y->kind > TASK_PAIR && x->segments > 0 &&
           x->segments == y->segments && x->bytes == y->bytes && x->segment != y->segment;
}

static td_status check_pair(const plan_map *m, const access *x, const access *y, td_err *err)
{
    if (!x->writes && !y->writes) return TD_OK;
    if (m->stream_of[x->task] == m->stream_of[y->task]) return TD_OK;
    if (x->to < y->from || y->to < x->from || are_apart(m->p, x->task, y->task)) return TD_OK;
    td_text t = {0};
    td_text_add(&t, "race: nothing orders its access to a buffer and that of ");
    plan_task_text(m->p, y->task, &t);
    const td_status st = check_fail(m, x->task, err, t.s == NULL ? "race" : t.s);
    td_text_free(&t);
    return st;
}

/* The accesses to one buffer; only those off the compute stream can race. */
static td_status check_races(const plan_map *m, const access *x, uint32_t n, td_err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (x[i].computes) continue;
        for (uint32_t j = 0; j < n; j++)
            if (j != i) TD_TRY(check_pair(m, &x[i], &x[j], err));
    }
    return TD_OK;
}

/* Windows count half steps: compute position i is 2i + 2, the moments between it and its neighbours
 * are 2i + 1 and 2i + 3. */
static void window_of(const plan *p, const plan_stream *s, uint32_t task, access *x)
{
    const plan_stream *const compute = plan_compute(p, s->rank);
    x->computes = s->kind == STREAM_COMPUTE;
    if (x->computes) {
        x->from = x->to = 2 * (task - compute->first_task) + 2;
        return;
    }
    const plan_task *const t = &p->tasks[task];
    const bool to_end = t->join == PLAN_NONE || (t->flags & TASK_FLAG_JOIN_NEXT);
    x->from = t->gate == PLAN_NONE ? 1 : 2 * (t->gate - compute->first_task) + 3;
    x->to = 2 * (to_end ? compute->n_tasks : t->join - compute->first_task) + 1;
}

static td_status check_life(const plan_map *m, uint32_t rank, const access *x, td_err *err)
{
    const plan *const p = m->p;
    const plan_rank *const k = &p->ranks[rank];
    if (x->buffer >= k->n_buffers)
        return check_fail(m, x->task, err, "it uses no buffer of its rank");
    const plan_buffer *const b = &p->buffers[k->first_buffer + x->buffer];
    if ((uint64_t)x->from < 2 * (uint64_t)b->birth + 1 ||
        (uint64_t)x->to > 2 * (uint64_t)b->death + 2)
        return check_fail(m, x->task, err, "it uses a buffer outside its life");
    return TD_OK;
}

static td_status gather_task(const plan_map *m, const plan_stream *s, uint32_t task,
                             access *by_buffer, uint32_t *at, td_err *err)
{
    const plan *const p = m->p;
    for (uint32_t u = p->tasks[task].first_use; u < p->tasks[task + 1].first_use; u++) {
        access x = {.buffer = use_buffer_of(p->uses[u]),
                    .task = task,
                    .writes = use_mode_of(p->uses[u]) != USE_READ};
        window_of(p, s, task, &x);
        TD_TRY(check_life(m, s->rank, &x, err));
        by_buffer[at[x.buffer]++] = x;
    }
    return TD_OK;
}

/* All accesses of a rank, by buffer and then in the order of its streams. */
static td_status gather(const plan_map *m, uint32_t rank, td_arena *a, access **out, size_t *n,
                        td_err *err)
{
    const plan *const p = m->p;
    const plan_rank *const k = &p->ranks[rank];
    uint32_t *const at = TD_NEW_N(a, uint32_t, (size_t)k->n_buffers + 1);
    if (at == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    *n = 0;
    for (uint32_t i = k->first_stream; i < k->first_stream + k->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        if (s->n_tasks == 0) continue;
        const uint32_t end = p->tasks[s->first_task + s->n_tasks].first_use;
        for (uint32_t u = p->tasks[s->first_task].first_use; u < end; u++) {
            const uint32_t buffer = use_buffer_of(p->uses[u]);
            if (buffer < k->n_buffers) at[buffer + 1]++; /* check_life refuses the others */
            (*n)++;
        }
    }
    for (uint32_t b = 0; b < k->n_buffers; b++) at[b + 1] += at[b];
    *out = TD_NEW_N(a, access, *n);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    for (uint32_t i = k->first_stream; i < k->first_stream + k->n_streams; i++) {
        const plan_stream *const s = &p->streams[i];
        for (uint32_t t = s->first_task; t < s->first_task + s->n_tasks; t++)
            TD_TRY(gather_task(m, s, t, *out, at, err));
    }
    return TD_OK;
}

/* --- overlap --- */

static int by_birth(const void *a, const void *b)
{
    const plan_buffer *const x = a, *const y = b;
    if (x->birth != y->birth) return x->birth < y->birth ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int64_t end_of(const plan *p, const plan_buffer *b)
{
    return (int64_t)b->offset * PLAN_ALIGN + p->bclasses[b->bclass].bytes;
}

static td_status check_overlap(const plan *p, uint32_t rank, td_arena *a, td_err *err)
{
    const plan_rank *const k = &p->ranks[rank];
    plan_buffer *const sorted = TD_NEW_N(a, plan_buffer, k->n_buffers);
    plan_buffer *const live = TD_NEW_N(a, plan_buffer, k->n_buffers);
    if (sorted == NULL || live == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < k->n_buffers; i++) sorted[i] = p->buffers[k->first_buffer + i];
    qsort(sorted, k->n_buffers, sizeof *sorted, by_birth);
    uint32_t n = 0; /* live ones, ascending by offset */
    for (uint32_t i = 0; i < k->n_buffers; i++) {
        const plan_buffer *const b = &sorted[i];
        uint32_t kept = 0, at = 0;
        for (uint32_t j = 0; j < n; j++) {
            if (live[j].death < b->birth) continue;
            live[kept] = live[j];
            if (live[kept].offset <= b->offset) at = kept + 1;
            kept++;
        }
        n = kept;
        const bool hits_left = at > 0 && end_of(p, &live[at - 1]) > (int64_t)b->offset * PLAN_ALIGN;
        const bool hits_right = at < n && (int64_t)live[at].offset * PLAN_ALIGN < end_of(p, b);
        if (hits_left || hits_right)
            return td_fail(err, TD_EPLAN,
                           "rank %u: two buffers that live at compute position %u "
                           "overlap at offset %lld",
                           rank, b->birth, (long long)b->offset * PLAN_ALIGN);
        if (end_of(p, b) > k->arena_bytes)
            return td_fail(err, TD_EPLAN, "rank %u: a buffer ends behind the arena", rank);
        for (uint32_t j = n; j > at; j--) live[j] = live[j - 1];
        live[at] = *b;
        n++;
    }
    return TD_OK;
}

static td_status check_rank(const plan_map *m, uint32_t rank, td_arena *a, td_err *err)
{
    access *items = NULL;
    size_t n = 0;
    TD_TRY(gather(m, rank, a, &items, &n, err));
    for (size_t first = 0, end = 0; first < n; first = end) {
        while (end < n && items[end].buffer == items[first].buffer) end++;
        TD_TRY(check_races(m, &items[first], (uint32_t)(end - first), err));
    }
    return check_overlap(m->p, rank, a, err);
}

td_status check_buffers(const plan_map *m, td_arena *a, td_err *err)
{
    (void)a; /* scratch is per rank, so that memory stays bounded by the largest one */
    td_arena *const scratch = td_arena_new();
    if (scratch == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the checker");
    td_status st = TD_OK;
    for (uint32_t r = 0; r < m->p->n_ranks && st == TD_OK; r++) {
        td_arena_reset(scratch);
        st = check_rank(m, r, scratch, err);
    }
    td_arena_free(scratch);
    return st;
}

td_status plan_bytes(const sizes *z, int32_t tp, size_kind kind, int32_t stage, int64_t slice_len,
                     int64_t prefix, int64_t *bytes, td_err *err)
{
    const bool parts = kind == SIZE_WEIGHT_PARTS || kind == SIZE_GRAD_PARTS;
    sizes own = *z;
    if (!parts) own.run.tp = tp;
    TD_TRY(sizes_bytes(&own, kind, stage, slice_len, prefix, bytes, err));
    if (parts) *bytes /= tp; /* shards are shared out over the ranks that join them */
    return TD_OK;
}

static td_status check_size(const plan *p, const sizes *z, int32_t tp, const plan_bclass *b,
                            td_err *err)
{
    const int32_t stage = b->inst == PLAN_NONE ? 0 : p->insts[b->inst].stage;
    int64_t bytes = 0;
    TD_TRY(plan_bytes(z, tp, (size_kind)b->what, stage, b->slice_len, b->prefix, &bytes, err));
    if (bytes == b->bytes) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "plan: its %s of stage %d take %lld bytes, here they take %lld; lower "
                   "it with the options given here (psim takes --dtype bf16 unless told; "
                   "also --model, --micro-batch, --recompute)",
                   size_kind_name((size_kind)b->what), stage, (long long)b->bytes,
                   (long long)bytes);
}

td_status plan_check_sizes(const plan *p, const sizes *z, td_err *err)
{
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t i = 0; i < p->ranks[r].n_buffers; i++) {
            const plan_buffer *const b = &p->buffers[p->ranks[r].first_buffer + i];
            const int32_t own = p->ranks[r].tp, tp = own == p->tp ? (int32_t)z->run.tp : own;
            TD_TRY(check_size(p, z, tp, &p->bclasses[b->bclass], err));
        }
    return TD_OK;
}
