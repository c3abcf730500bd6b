/* Cuts, out of the layouts of what passes keep. */
#include "costmodel/segments.h"

#include "costmodel/sizes_inside.h"

#include <stddef.h>

enum { PARTS = 3 };

typedef struct cutter {
    const sizes *z;
    const cut_query *q;
    shard_dims d;
    stash_layout part[PARTS]; /* in the order of CUT_STASH, CUT_STASH_W, CUT_WSTASH */
    int n_parts;              /* those that the pass has */
    scratch_layout scratch;
    pass_cut *cuts;
    int32_t n;
} cutter;

static td_status find_layouts(cutter *c, td_err *err)
{
    static const stash_part parts[PARTS] = {STASH_F_TO_I, STASH_F_TO_W, STASH_I_TO_W};
    const cut_query *const q = c->q;
    if (q->alone) {
        c->n_parts = 1;
        return forward_layout_of(c->z, q->stage, q->slice_len, &c->part[0], &c->scratch, err);
    }
    c->n_parts = !q->split ? 1 : q->pass == PASS_I ? 3 : 2;
    for (int i = 0; i < c->n_parts; i++)
        TD_TRY(stash_layout_of(c->z, q->stage, q->slice_len, q->split ? parts[i] : STASH_F_TO_B,
                               &c->part[i], err));
    return scratch_layout_of(c->z, q->stage, q->slice_len, &c->scratch, err);
}

static void add(cutter *c, cut_buffer in, int64_t at, int64_t bytes)
{
    c->cuts[c->n++] = (pass_cut){
        .in = c->q->alone && in != CUT_OUTPUT ? CUT_SCRATCH : in, .at = at, .bytes = bytes};
}

static int64_t hidden_bytes(const cutter *c) { return c->d.rows * c->d.m->hidden * c->d.e; }

static int64_t field_of(const void *layout, size_t field)
{
    return *(const int64_t *)(const void *)((const char *)layout + field);
}

/* A sum into a tensor of a layer. */
static void cut_in_layer(cutter *c, int64_t layer, size_t field)
{
    for (int i = 0; i < c->n_parts; i++) {
        const stash_layout *const k = &c->part[i];
        if (field_of(&k->kept, field) < 0) continue;
        add(c, (cut_buffer)i, k->layers + layer * k->layer_stride + field_of(&k->kept, field),
            hidden_bytes(c));
        return;
    }
    add(c, CUT_SCRATCH, c->scratch.recomputed + field_of(&c->scratch.layer, field),
        hidden_bytes(c));
}

/* A sum into a level of the residual stream. */
static void cut_at_level(cutter *c, int64_t level)
{
    const bool ends = level == c->d.stage->n_layers && !c->d.stage->head;
    if (ends && c->q->pass == PASS_R) { /* nobody reads it */
        add(c, CUT_SCRATCH, c->scratch.narrow, hidden_bytes(c));
        return;
    }
    for (int i = 0; i < c->n_parts && !ends; i++) {
        const stash_layout *const k = &c->part[i];
        if (level < k->first_level || level >= k->first_level + k->n_levels) continue;
        add(c, (cut_buffer)i, k->inputs + (level - k->first_level) * k->input_stride,
            hidden_bytes(c));
        return;
    }
    add(c, CUT_OUTPUT, 0, hidden_bytes(c));
}

static void cut_forward(cutter *c)
{
    const stage_desc *const s = c->d.stage;
    if (s->embedding) cut_at_level(c, 0);
    for (int64_t l = 0; l < s->n_layers; l++) {
        cut_in_layer(c, l, offsetof(layer_layout, sum1));
        cut_at_level(c, l + 1);
    }
    if (!s->head) return;
    add(c, CUT_STASH, c->part[0].softmax, SOFTMAX_HEAD_BYTES + c->d.rows * 3 * 4);
    c->cuts[c->n - 1].softmax = true;
}

static void cut_backward(cutter *c)
{
    const stage_desc *const s = c->d.stage;
    if (s->head) add(c, CUT_SCRATCH, c->scratch.narrow, hidden_bytes(c));
    for (int64_t l = s->n_layers; l-- > 0;) {
        if (c->z->run.recompute == RECOMPUTE_FULL) cut_in_layer(c, l, offsetof(layer_layout, sum1));
        add(c, CUT_SCRATCH, c->scratch.narrow, hidden_bytes(c)); /* of the MLP's input */
        add(c, CUT_SCRATCH, c->scratch.narrow, hidden_bytes(c)); /* of the attention's */
    }
}

td_status pass_cuts_of(const sizes *z, const cut_query *q, td_arena *a, pass_cut **cuts, int32_t *n,
                       td_err *err)
{
    *cuts = NULL;
    *n = 0;
    if (z->run.tp <= 1 || q->pass > PASS_R || q->pass == PASS_W) return TD_OK;
    cutter c = {.z = z, .q = q};
    TD_TRY(sizes_dims(z, q->stage, q->slice_len, &c.d, err));
    if (c.d.bert || z->run.sequence_parallel || c.d.stage->vocab_rows > 0)
        return td_fail(err, TD_EUSAGE,
                       "--tp %lld: shards are no ranks of their own yet with %s; leave it out",
                       (long long)z->run.tp,
                       c.d.bert                   ? "BERT-style models"
                       : z->run.sequence_parallel ? "sequence parallelism"
                                                  : "sharded vocabulary layers");
    TD_TRY(find_layouts(&c, err));
    c.cuts = TD_NEW_N(a, pass_cut, 3 * c.d.stage->n_layers + 2);
    if (c.cuts == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the cuts of a pass");
    if (q->pass == PASS_F || q->pass == PASS_R)
        cut_forward(&c);
    else
        cut_backward(&c);
    *cuts = c.cuts;
    *n = c.n;
    return TD_OK;
}
