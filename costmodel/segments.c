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

static int64_t hidden_bytes(const cutter *c) { return c->d.rows * c->d.m->hidden * c->d.e; }

static void add(cutter *c, cut_kind kind, cut_buffer in, int64_t at)
{
    c->cuts[c->n++] = (pass_cut){.kind = kind,
                                 .in = c->q->alone && in != CUT_OUTPUT ? CUT_SCRATCH : in,
                                 .at = at,
                                 .bytes = hidden_bytes(c)};
}

static bool is_shared(const cutter *c) { return c->scratch.gathered >= 0; }

static void add_gather(cutter *c)
{
    if (is_shared(c)) add(c, CUT_GATHER, CUT_SCRATCH, c->scratch.gathered);
}

static int64_t field_of(const void *layout, size_t field)
{
    return *(const int64_t *)(const void *)((const char *)layout + field);
}

/* A sum into a tensor of a layer. */
static void cut_in_layer(cutter *c, int64_t layer, size_t field)
{
    if (is_shared(c)) {
        add(c, CUT_SCATTER, CUT_SCRATCH, c->scratch.gathered);
        return;
    }
    for (int i = 0; i < c->n_parts; i++) {
        const stash_layout *const k = &c->part[i];
        if (field_of(&k->kept, field) < 0) continue;
        add(c, CUT_SUM, (cut_buffer)i,
            k->layers + layer * k->layer_stride + field_of(&k->kept, field));
        return;
    }
    add(c, CUT_SUM, CUT_SCRATCH, c->scratch.recomputed + field_of(&c->scratch.layer, field));
}

/* A sum into a level of the residual stream. */
static void cut_at_level(cutter *c, int64_t level)
{
    const bool ends = level == c->d.stage->n_layers && !c->d.stage->head;
    if (is_shared(c)) {
        add(c, CUT_SCATTER, CUT_SCRATCH, c->scratch.gathered);
        return;
    }
    if (ends && c->q->pass == PASS_R) { /* nobody reads it */
        add(c, CUT_SUM, CUT_SCRATCH, c->scratch.narrow);
        return;
    }
    for (int i = 0; i < c->n_parts && !ends; i++) {
        const stash_layout *const k = &c->part[i];
        if (level < k->first_level || level >= k->first_level + k->n_levels) continue;
        add(c, CUT_SUM, (cut_buffer)i, k->inputs + (level - k->first_level) * k->input_stride);
        return;
    }
    add(c, CUT_SUM, CUT_OUTPUT, 0);
}

static void cut_forward(cutter *c)
{
    const stage_desc *const s = c->d.stage;
    if (s->embedding && c->d.bert)
        add(c, CUT_SUM, CUT_STASH, c->part[0].embed_sum);
    else if (s->embedding)
        cut_at_level(c, 0);
    for (int64_t l = 0; l < s->n_layers; l++) {
        add_gather(c);
        cut_in_layer(c, l, offsetof(layer_layout, sum1));
        add_gather(c);
        if (c->d.bert)
            cut_in_layer(c, l, offsetof(layer_layout, sum2));
        else
            cut_at_level(c, l + 1);
    }
    if (!s->head) return;
    add_gather(c);
    add(c, CUT_SOFTMAX, CUT_STASH, c->part[0].softmax);
    c->cuts[c->n - 1].bytes = SOFTMAX_HEAD_BYTES + c->d.rows * 3 * 4;
}

/* The gradient of a product's input, once those of its output and, for its weights, its input have
 * been gathered. */
static void cut_product(cutter *c, bool has_output, bool weights)
{
    if (has_output) add_gather(c);
    if (weights) add_gather(c);
    add(c, is_shared(c) ? CUT_SCATTER : CUT_SUM, CUT_SCRATCH, c->scratch.narrow);
}

static void cut_backward(cutter *c)
{
    const stage_desc *const s = c->d.stage;
    const bool full = c->z->run.recompute == RECOMPUTE_FULL, weights = !c->q->split;
    /* under full recomputation logits are made again, for the head's weights at once */
    if (s->head) cut_product(c, false, weights || full);
    for (int64_t l = s->n_layers; l-- > 0;) {
        if (full) {
            add_gather(c);
            cut_in_layer(c, l, offsetof(layer_layout, sum1));
            add_gather(c);
            if (c->d.bert) cut_in_layer(c, l, offsetof(layer_layout, sum2));
        }
        cut_product(c, true, weights); /* of the MLP's input */
        cut_product(c, true, weights); /* of the attention's */
    }
    if (s->embedding) add_gather(c);
}

/* For weights alone: of each product its input and the gradient of its output, of which QKV's and
 * the MLP's first are of all rows, as the logits' is. */
static void cut_weights(cutter *c)
{
    enum { LAYER_GATHERS = 4 };
    const stage_desc *const s = c->d.stage;
    if (s->head && c->z->run.recompute != RECOMPUTE_FULL) add_gather(c);
    for (int64_t i = 0; i < LAYER_GATHERS * s->n_layers; i++) add_gather(c);
}

td_status segments_check_rows(const sizes *z, int64_t slice_len, td_err *err)
{
    const int64_t rows = mul(z->run.micro_batch, slice_len), tp = z->run.tp;
    if (!z->run.sequence_parallel || tp <= 1) return TD_OK;
    if (z->model != NULL && z->model->family == MODEL_BERT)
        return td_fail(
            err, TD_EUSAGE,
            "--sequence-parallel: not executed with BERT-style models, whose norms follow "
            "the sums; leave it out");
    if (rows % tp == 0) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--sequence-parallel: %lld tokens (%lld sequences) do not divide evenly among "
                   "%lld shards; legal: --micro-batch times tokens a multiple of --tp",
                   (long long)rows, (long long)z->run.micro_batch, (long long)tp);
}

static td_status refuse(const cutter *c, td_err *err)
{
    const sizes *const z = c->z;
    if (c->d.stage->vocab_rows > 0)
        return td_fail(err, TD_EUSAGE,
                       "--tp %lld: shards are no ranks of their own yet with sharded vocabulary "
                       "layers; leave it out",
                       (long long)z->run.tp);
    return segments_check_rows(z, c->q->slice_len, err);
}

td_status pass_cuts_of(const sizes *z, const cut_query *q, td_arena *a, pass_cut **cuts, int32_t *n,
                       td_err *err)
{
    enum { LAYER_CUTS = 9, END_CUTS = 4 };
    *cuts = NULL;
    *n = 0;
    if (z->run.tp <= 1 || q->pass > PASS_R || (q->pass == PASS_W && !z->run.sequence_parallel))
        return TD_OK;
    cutter c = {.z = z, .q = q};
    TD_TRY(sizes_dims(z, q->stage, q->slice_len, &c.d, err));
    TD_TRY(refuse(&c, err));
    TD_TRY(find_layouts(&c, err));
    c.cuts = TD_NEW_N(a, pass_cut, LAYER_CUTS * c.d.stage->n_layers + END_CUTS);
    if (c.cuts == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the cuts of a pass");
    if (q->pass == PASS_F || q->pass == PASS_R)
        cut_forward(&c);
    else if (q->pass == PASS_W)
        cut_weights(&c);
    else
        cut_backward(&c);
    *cuts = c.cuts;
    *n = c.n;
    return TD_OK;
}
