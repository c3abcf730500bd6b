/* Emulation of a plan's ranks. */
#include "exec/emulate.h"
#include "exec/device_run.h"

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
    bool moved;        /* a device may still be moving tensors */
    int64_t *issue_ns; /* [n_tasks] how long a task was being given to the device the last time */
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
                     .wanted = TD_NEW_N(a, char *, p->n_tasks),
                     .issue_ns = TD_NEW_N(a, int64_t, p->n_tasks)};
    if (m->posts == NULL || m->parcels == NULL || m->wanted == NULL || m->issue_ns == NULL)
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

/* Alone on the device, between two events. The stream idles until all of the task is likely to have
 * been given to it, as it would have been behind other tasks. */
static td_status compute_on_device(emulation *m, uint32_t rank, uint32_t task, int64_t *ns,
                                   td_err *err)
{
    executor *const x = m->x;
    exec_rank *const r = &x->ranks[rank];
    enum { LONGEST_NS = 20000000 };
    const int64_t idle = m->issue_ns[task] + m->issue_ns[task] / 2;
    if (m->moved) TD_TRY(device_run_wait(x, NULL, err));
    m->moved = false;
    TD_TRY(offload_use(x->options.offload, rank, err));
    device_run_idle(x, r, idle < LONGEST_NS ? idle : LONGEST_NS);
    device_run_task(x, r, task, true);
    const int64_t begin = td_now_ns();
    TD_TRY(worker_compute(x, r, task, err));
    m->issue_ns[task] = td_now_ns() - begin;
    device_run_task(x, r, task, false);
    TD_TRY(device_run_wait(x, r, err));
    *ns = x->p->tasks[task].kind == TASK_MARK ? 0 : device_run_took(x, task);
    return TD_OK;
}

td_status emulation_compute(void *self, uint32_t rank, uint32_t task, int64_t class_ns, int64_t *ns,
                            td_err *err)
{
    emulation *const m = self;
    (void)class_ns;
    if (m->x->device != NULL) return compute_on_device(m, rank, task, ns, err);
    TD_TRY(offload_use(m->x->options.offload, rank, err)); /* no device would wait for that */
    const int64_t begin = td_now_ns();
    TD_TRY(worker_compute(m->x, &m->x->ranks[rank], task, err));
    *ns = m->x->p->tasks[task].kind == TASK_MARK ? 0 : td_now_ns() - begin;
    return TD_OK;
}

/* A tensor of a message of task's rank. */
static void move(emulation *m, uint32_t task, char *to, const char *from, int64_t bytes)
{
    m->moved = true;
    if (m->x->device != NULL)
        device_run_copy(m->x, task, to, from, bytes);
    else
        memcpy(to, from, (size_t)bytes);
}

static td_status send(emulation *m, uint32_t task, const char *from, int64_t bytes, td_err *err)
{
    parcel *const box = &m->parcels[task];
    char *const to = m->wanted[m->x->p->tasks[task].link];
    if (to != NULL) {
        move(m, task, to, from, bytes);
        return TD_OK;
    }
    void *room = box->data;
    if (room == NULL) TD_TRY(device_run_more(m->x, m->arena, bytes, &room, err));
    box->data = room;
    move(m, task, box->data, from, bytes);
    box->full = true;
    return TD_OK;
}

/* On the sender's stream, which filled the parcel. */
static void receive(emulation *m, uint32_t task, char *to, int64_t bytes)
{
    const uint32_t sender = m->x->p->tasks[task].link;
    parcel *const box = &m->parcels[sender];
    m->wanted[task] = to;
    if (!box->full) return;
    move(m, sender, to, box->data, bytes);
    box->full = false;
}

td_status emulation_post(void *self, uint32_t rank, uint32_t task, td_err *err)
{
    emulation *const m = self;
    const plan *const p = m->x->p;
    const plan_task *const t = &p->tasks[task];
    char *const at = worker_payload(m->x, &m->x->ranks[rank], task);
    const int64_t bytes = p->classes[t->cls].bytes;
    if (t->kind == TASK_SEND && at != NULL) return send(m, task, at, bytes, err);
    if (t->kind == TASK_RECV && at != NULL)
        receive(m, task, at, bytes);
    else if (t->kind == TASK_COLL)
        worker_post(m->x, &m->x->ranks[rank], m->posts[task]);
    m->moved = true;
    if (!wire_aborted(m->x->wire)) return TD_OK;
    const td_err why = wire_error(m->x->wire);
    return td_fail(err, why.code, "%s", why.msg);
}
