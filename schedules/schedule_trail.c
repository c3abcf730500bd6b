/* A communication trail: the SEND and RECV actions that a file carries between its passes. It says
 * where both ends of each message are posted, and their order on each channel; there are no tags,
 * so both ends must name their messages in one order. */
#include "schedules/schedule_index.h"

#include <stdlib.h>
#include <string.h>

static td_status complain(const schedule *s, int32_t row, const sched_cell *c, td_err *err,
                          const char *why)
{
    td_text t = {0};
    sched_print_cell(c, s->n_slices, &t);
    const td_status st =
        td_fail(err, TD_EPLAN, "row %d: %s: %s", row, t.s == NULL ? "?" : t.s, why);
    td_text_free(&t);
    return st;
}

static bool moves_activations(uint8_t kind) { return kind == CELL_SEND_F || kind == CELL_RECV_F; }

td_status trail_record(sched_index *ix, td_arena *a, int32_t row, const sched_cell *c,
                       trail_place place, td_err *err)
{
    const schedule *const s = ix->s;
    if (c->kind > CELL_RECV_B) return TD_OK;
    const bool sends = c->kind == CELL_SEND_F || c->kind == CELL_SEND_B;
    const bool up = moves_activations(c->kind) == sends; /* the other end is the next stage */
    if (c->stage == 0 && !up) return complain(s, row, c, err, "there is no stage before");
    if (c->stage + 1 == s->n_stages && up)
        return complain(s, row, c, err, "there is no next stage");
    const sched_pipe *const p = &s->pipes[s->microbatch_pipe[c->microbatch]];
    const int32_t *const home = moves_activations(c->kind) ? p->forward_row : p->backward_row;
    if (home[c->stage] != row) return complain(s, row, c, err, "this stage lives on another row");
    if (home[c->stage + (up ? 1 : -1)] == row)
        return complain(s, row, c, err, "both stages are on one row, nothing is sent");
    trail_place **const table = &ix->trail[c->kind - CELL_SEND_F];
    const size_t n = index_slot(s, s->n_stages, 0, 0);
    if (*table == NULL) {
        *table = TD_NEW_N(a, trail_place, n);
        if (*table == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a trail");
        memset(*table, 0xff, n * sizeof **table);
    }
    trail_place *const at = &(*table)[index_slot(s, c->stage, c->microbatch, c->slice)];
    if (at->node != NODE_NONE) return complain(s, row, c, err, "occurs twice");
    *at = place;
    return TD_OK;
}

trail_place trail_find(const sched_index *ix, cell_kind action, int32_t stage, int32_t m, int32_t k)
{
    const trail_place *const table = ix->trail[(int)action - CELL_SEND_F];
    if (table == NULL) return (trail_place){NODE_NONE, UINT32_MAX};
    return table[index_slot(ix->s, stage, m, k)];
}

/* --- the check --- */

typedef struct trail_message {
    sched_cell send, recv;
    int32_t src, dst;
    trail_place sent, taken;
} trail_message;

static td_status check_message(const sched_index *ix, const trail_message *t, uint32_t producer,
                               uint32_t consumer, td_err *err)
{
    const schedule *const s = ix->s;
    if (t->sent.node == NODE_NONE) return complain(s, t->src, &t->send, err, "is missing");
    if (t->taken.node == NODE_NONE) return complain(s, t->dst, &t->recv, err, "is missing");
    if (t->sent.node <= producer)
        return complain(s, t->src, &t->send, err,
                        "stands before the pass that makes what it sends");
    if (t->taken.node > consumer)
        return complain(s, t->dst, &t->recv, err, "stands behind the pass that needs it");
    return TD_OK;
}

static int compare_messages(const void *a, const void *b)
{
    const trail_message *const x = a, *const y = b;
    if (x->src != y->src) return x->src < y->src ? -1 : 1;
    if (x->dst != y->dst) return x->dst < y->dst ? -1 : 1;
    if (x->send.kind != y->send.kind) return x->send.kind < y->send.kind ? -1 : 1;
    return x->sent.at < y->sent.at ? -1 : x->sent.at > y->sent.at;
}

static td_status check_order(const sched_index *ix, trail_message *t, size_t n, td_err *err)
{
    qsort(t, n, sizeof *t, compare_messages);
    for (size_t i = 1; i < n; i++) {
        const trail_message *const x = &t[i - 1], *const y = &t[i];
        if (x->src != y->src || x->dst != y->dst || x->send.kind != y->send.kind) continue;
        if (x->taken.at < y->taken.at) continue;
        td_text texts[3] = {0};
        sched_print_cell(&y->recv, ix->s->n_slices, &texts[0]);
        sched_print_cell(&x->recv, ix->s->n_slices, &texts[1]);
        sched_print_cell(&x->send, ix->s->n_slices, &texts[2]);
        const td_status st =
            td_fail(err, TD_EPLAN,
                    "row %d: %s stands before %s, but row %d has %s first; messages between two "
                    "rows have no tags, so both ends name them in one order",
                    y->dst, texts[0].s, texts[1].s, x->src, texts[2].s);
        for (int j = 0; j < 3; j++) td_text_free(&texts[j]);
        return st;
    }
    return TD_OK;
}

/* The message of one class that a stage takes, or false where it comes from the same row. */
static bool find_message(const sched_index *ix, bool activations, int32_t stage, int32_t m,
                         int32_t k, trail_message *out)
{
    const sched_pipe *const p = &ix->s->pipes[ix->s->microbatch_pipe[m]];
    const int32_t from = activations ? stage - 1 : stage + 1;
    const int32_t *const home = activations ? p->forward_row : p->backward_row;
    const cell_kind send = activations ? CELL_SEND_F : CELL_SEND_B;
    const cell_kind recv = activations ? CELL_RECV_F : CELL_RECV_B;
    *out = (trail_message){.send = {.kind = (uint8_t)send, .stage = (uint16_t)from},
                           .recv = {.kind = (uint8_t)recv, .stage = (uint16_t)stage},
                           .src = home[from],
                           .dst = home[stage],
                           .sent = trail_find(ix, send, from, m, k),
                           .taken = trail_find(ix, recv, stage, m, k)};
    out->send.microbatch = out->recv.microbatch = m;
    out->send.slice = out->recv.slice = (uint16_t)k;
    return out->src != out->dst;
}

/* The pass of a stage that makes or needs a message. */
static uint32_t pass_of(const sched_index *ix, bool activations, const sched_cell *c)
{
    return activations ? index_find(ix, PASS_F, c->stage, c->microbatch, c->slice)
                       : index_find_backward(ix, c->stage, c->microbatch, c->slice);
}

td_status trail_check(const sched_index *ix, td_arena *a, td_err *err)
{
    const schedule *const s = ix->s;
    if (!trail_exists(ix)) return TD_OK;
    if (sched_is_disaggregated(s))
        return td_fail(err, TD_EPLAN,
                       "SEND and RECV cannot name hand-offs between forward and backward rows; "
                       "leave these actions out");
    trail_message *const all = TD_NEW_N(a, trail_message, 2 * index_slot(s, s->n_stages, 0, 0));
    if (all == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a trail");
    size_t n = 0;
    for (int32_t stage = 0; stage < s->n_stages; stage++)
        for (int32_t m = 0; m < s->n_microbatches; m++)
            for (int32_t k = 0; k < s->n_slices; k++)
                for (int gradients = 0; gradients <= 1; gradients++) {
                    const bool up = gradients == 0;
                    if (up ? stage == 0 : stage + 1 == s->n_stages) continue;
                    trail_message *const t = &all[n];
                    if (!find_message(ix, up, stage, m, k, t)) continue;
                    TD_TRY(check_message(ix, t, pass_of(ix, up, &t->send),
                                         pass_of(ix, up, &t->recv), err));
                    n++;
                }
    return check_order(ix, all, n, err);
}
