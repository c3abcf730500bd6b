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
    uint32_t *rank;    /* [n_tasks] of each task */
    exec_post **posts; /* [n_tasks] of what is not computed */
    parcel *parcels;   /* [n_tasks] by the task that sends */
    bool *wanted;      /* [n_tasks] receives that are posted */
};

td_status emulation_open(executor *x, td_arena *a, emulation **out, td_err *err)
{
    const plan *const p = x->p;
    emulation *const m = TD_NEW(a, emulation);
    if (m == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    *m = (emulation){.x = x,
                     .arena = a,
                     .rank = TD_NEW_N(a, uint32_t, p->n_tasks),
                     .posts = TD_NEW_N(a, exec_post *, p->n_tasks),
                     .parcels = TD_NEW_N(a, parcel, p->n_tasks),
                     .wanted = TD_NEW_N(a, bool, p->n_tasks)};
    if (m->rank == NULL || m->posts == NULL || m->parcels == NULL || m->wanted == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the emulation");
    for (uint32_t i = 0; i < p->n_streams; i++)
        for (uint32_t t = 0; t < p->streams[i].n_tasks; t++)
            m->rank[p->streams[i].first_task + t] = p->streams[i].rank;
    for (uint32_t r = 0; r < p->n_ranks; r++)
        for (uint32_t i = 0; i < x->ranks[r].n_posts; i++)
            m->posts[x->ranks[r].posts[i].task] = &x->ranks[r].posts[i];
    *out = m;
    return TD_OK;
}

void emulation_step(emulation *m, const exec_step *s)
{
    m->x->step = *s;
    m->x->start_ns = td_now_ns();
    wire_next_step(m->x->wire);
    memset(m->wanted, 0, m->x->p->n_tasks * sizeof *m->wanted);
}

td_status emulation_compute(void *self, uint32_t task, int64_t class_ns, int64_t *ns, td_err *err)
{
    emulation *const m = self;
    (void)class_ns;
    const int64_t begin = td_now_ns();
    TD_TRY(worker_compute(m->x, &m->x->ranks[m->rank[task]], task, err));
    *ns = m->x->p->tasks[task].kind == TASK_MARK ? 0 : td_now_ns() - begin;
    return TD_OK;
}

static char *payload(const emulation *m, uint32_t task)
{
    return worker_payload(m->x, &m->x->ranks[m->rank[task]], task);
}

static td_status send(emulation *m, uint32_t task, size_t bytes, td_err *err)
{
    parcel *const box = &m->parcels[task];
    const uint32_t recv = m->x->p->tasks[task].link;
    if (m->wanted[recv]) {
        memcpy(payload(m, recv), payload(m, task), bytes);
        return TD_OK;
    }
    if (box->data == NULL) box->data = td_alloc(m->arena, 1, bytes);
    if (box->data == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a message");
    memcpy(box->data, payload(m, task), bytes);
    box->full = true;
    return TD_OK;
}

static void receive(emulation *m, uint32_t task, size_t bytes)
{
    parcel *const box = &m->parcels[m->x->p->tasks[task].link];
    m->wanted[task] = true;
    if (!box->full) return;
    memcpy(payload(m, task), box->data, bytes);
    box->full = false;
}

td_status emulation_post(void *self, uint32_t task, td_err *err)
{
    emulation *const m = self;
    const plan *const p = m->x->p;
    const plan_task *const t = &p->tasks[task];
    const size_t bytes = payload(m, task) == NULL ? 0 : (size_t)p->classes[t->cls].bytes;
    if (t->kind == TASK_SEND) return send(m, task, bytes, err);
    if (t->kind == TASK_RECV)
        receive(m, task, bytes);
    else
        worker_post(m->x, &m->x->ranks[m->rank[task]], m->posts[task]);
    if (!wire_aborted(m->x->wire)) return TD_OK;
    const td_err why = wire_error(m->x->wire);
    return td_fail(err, why.code, "%s", why.msg);
}
