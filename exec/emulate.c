/* Emulation of a plan's ranks. */
#include "exec/emulate.h"

#include <string.h>

/* A tensor that was sent before its receive was posted. Its sender goes on, so it is kept here. */
typedef struct parcel {
    char *data;
    bool full;
} parcel;

struct emulation {
    executor *x;
    td_arena *arena;
    exec_post **posts; /* [n_tasks] of what is not computed */
    parcel *parcels;   /* [n_tasks] by the task that sends */
    char **wanted;     /* [n_tasks] where a receive that is posted wants its tensor */
};

td_status emulation_open(executor *x, td_arena *a, emulation **out, td_err *err)
{
    const plan *const p = x->p;
    emulation *const m = TD_NEW(a, emulation);
    if (m == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    *m = (emulation){.x = x,
                     .arena = a,
                     .posts = TD_NEW_N(a, exec_post *, p->n_tasks),
                     .parcels = TD_NEW_N(a, parcel, p->n_tasks),
                     .wanted = TD_NEW_N(a, char *, p->n_tasks)};
    if (m->posts == NULL || m->parcels == NULL || m->wanted == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t i = 0; i < x->ranks[r].n_posts; i++)
            m->posts[x->ranks[r].posts[i].task] = &x->ranks[r].posts[i];
    *out = m;
    return TD_OK;
}

void emulation_begin(emulation *m)
{
    for (uint32_t i = 0; i < m->x->p->n_tasks; i++) {
        m->wanted[i] = NULL;
        m->parcels[i].full = false;
    }
}

td_status emulation_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns, int64_t *ns,
                            td_err *err)
{
    emulation *const m = self;
    (void)class_ns;
    const int64_t begin = td_now_ns();
    TD_TRY(worker_compute(m->x, &m->x->ranks[rank], task, err));
    *ns = m->x->p->tasks[task].kind == TASK_MARK ? 0 : td_now_ns() - begin;
    return TD_OK;
}

static td_status send(emulation *m, uint32_t task, const char *from, size_t bytes, td_err *err)
{
    parcel *const box = &m->parcels[task];
    char *const to = m->wanted[m->x->p->tasks[task].link];
    if (to != NULL) {
        memcpy(to, from, bytes);
        return TD_OK;
    }
    if (box->data == NULL) box->data = td_alloc(m->arena, 1, bytes);
    if (box->data == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a message");
    memcpy(box->data, from, bytes);
    box->full = true;
    return TD_OK;
}

static void receive(emulation *m, uint32_t task, char *to, size_t bytes)
{
    parcel *const box = &m->parcels[m->x->p->tasks[task].link];
    m->wanted[task] = to;
    if (!box->full) return;
    memcpy(to, box->data, bytes);
    box->full = false;
}

td_status emulation_post(void *self, uint32_t rank, uint32_t task, td_err *err)
{
    emulation *const m = self;
    const plan *const p = m->x->p;
    const plan_task *const t = &p->tasks[task];
    char *const at = worker_payload(m->x, &m->x->ranks[rank], task);
    const size_t bytes = (size_t)p->classes[t->cls].bytes;
    if (t->kind == TASK_SEND && at != NULL) return send(m, task, at, bytes, err);
    if (t->kind == TASK_RECV && at != NULL)
        receive(m, task, at, bytes);
    else if (t->kind == TASK_COLL)
        worker_post(m->x, &m->x->ranks[rank], m->posts[task]);
    if (!wire_aborted(m->x->wire)) return TD_OK;
    const td_err why = wire_error(m->x->wire);
    return td_fail(err, why.code, "%s", why.msg);
}
