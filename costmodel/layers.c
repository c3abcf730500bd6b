/* Which layers a stage holds: even, explicit, or from a layout string. Megatron's rules
 * (megatron/core/transformer/transformer_block.py), except that no layer is ever lost. */
#include "costmodel/model.h"

#include "costmodel/layout.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static void place_ends(stage_desc *out, int64_t n)
{
    out[0].embedding = true;
    out[n - 1].head = true;
}

/* Numbers layers from the first stage on, given how many each one has. */
static void number_layers(stage_desc *out, int64_t n)
{
    int64_t at = 0;
    for (int64_t s = 0; s < n; s++) {
        out[s].first_layer = at;
        at += out[s].n_layers;
    }
}

static td_status assign_explicit(const model_desc *m, const layer_request *q, stage_desc *out,
                                 td_err *err)
{
    int64_t sum = 0;
    for (int64_t s = 0; s < q->n_stages; s++) {
        if (q->explicit_layers[s] < 0)
            return td_fail(err, TD_EUSAGE, "layers: stage %" PRId64 " has %" PRId32 " layers", s,
                           q->explicit_layers[s]);
        out[s].n_layers = q->explicit_layers[s];
        sum += out[s].n_layers;
    }
    if (sum != m->n_layers)
        return td_fail(err, TD_EUSAGE,
                       "layers: the list holds %" PRId64 " layers, model %s has %" PRId64
                       "; %s %" PRId64,
                       sum, m->name, m->n_layers, sum < m->n_layers ? "add" : "take away",
                       sum < m->n_layers ? m->n_layers - sum : sum - m->n_layers);
    place_ends(out, q->n_stages);
    return TD_OK;
}

static td_status copy_layout(const model_desc *m, const layer_request *q, const layout_stage *in,
                             stage_desc *out, td_err *err)
{
    int64_t sum = 0;
    for (int64_t s = 0; s < q->n_stages; s++) {
        if (in[s].mtp_layers > 0)
            return td_fail(err, TD_EUSAGE,
                           "layout \"%s\": stage %" PRId64 " has MTP layers (m), "
                           "model %s has none; leave m out",
                           q->layout, s, m->name);
        if (in[s].loss && s + 1 < q->n_stages)
            return td_fail(err, TD_EUSAGE,
                           "layout \"%s\": the loss L is in stage %" PRId64
                           ", it belongs in the last one, %" PRId64,
                           q->layout, s, q->n_stages - 1);
        out[s].n_layers = in[s].layers;
        sum += in[s].layers;
    }
    if (sum != m->n_layers)
        return td_fail(err, TD_EUSAGE,
                       "layout \"%s\": holds %" PRId64 " layers (t), model %s has %" PRId64,
                       q->layout, sum, m->name, m->n_layers);
    place_ends(out, q->n_stages);
    return TD_OK;
}

static td_status assign_layout(const model_desc *m, const layer_request *q, stage_desc *out,
                               td_err *err)
{
    int64_t n = 0;
    TD_TRY(layout_parse(q->layout, NULL, 0, &n, err));
    if (n != q->n_stages)
        return td_fail(err, TD_EUSAGE,
                       "layout \"%s\": has %" PRId64 " stages, the schedule %" PRId64 " (%" PRId64
                       " ranks); %s",
                       q->layout, n, q->n_stages, q->pp,
                       q->pp > 0 && n % q->pp == 0 ? "set --chunks to stages / ranks"
                                                   : "stages must be a multiple of the ranks");
    td_arena *const a = td_arena_new();
    layout_stage *const stages = a != NULL ? TD_NEW_N(a, layout_stage, n) : NULL;
    td_status status = stages == NULL ? td_fail(err, TD_ENOMEM, "layout: out of memory")
                                      : layout_parse(q->layout, stages, n, &n, err);
    if (status == TD_OK) status = copy_layout(m, q, stages, out, err);
    td_arena_free(a);
    return status;
}

/* "8*2,7*2": the nearest to an even list, for --layers. */
static void print_nearest(int64_t total, int64_t n, char *buf, size_t size)
{
    const int64_t low = total / n, longer = total % n;
    if (longer == 0)
        (void)snprintf(buf, size, "%" PRId64 "*%" PRId64, low, n);
    else
        (void)snprintf(buf, size, "%" PRId64 "*%" PRId64 ",%" PRId64 "*%" PRId64, low + 1, longer,
                       low, n - longer);
}

static td_status uneven(const model_desc *m, const layer_request *q, int64_t counted, td_err *err)
{
    char divisors[160] = "", nearest[96];
    size_t at = 0;
    for (int64_t d = 2; d <= counted && at + 24 < sizeof divisors; d++)
        if (counted % d == 0)
            at += (size_t)snprintf(divisors + at, sizeof divisors - at, "%s%" PRId64,
                                   at > 0 ? ", " : "", d);
    print_nearest(m->n_layers, q->n_stages, nearest, sizeof nearest);
    const int64_t left = counted % q->n_stages;
    const char *hint = "";
    if (counted == m->n_layers && left == q->n_stages - 1)
        hint = ", --account-for-embedding";
    else if (counted == m->n_layers && left == q->n_stages - 2)
        hint = ", --account-for-embedding with --account-for-loss";
    return td_fail(err, TD_EUSAGE,
                   "model %s: %" PRId64 " layers%s do not divide by %" PRId64
                   " stages; possible are %s stages%s, or an uneven list such as --layers %s",
                   m->name, counted,
                   counted == m->n_layers ? "" : " (with embedding or head counted)", q->n_stages,
                   divisors[0] != '\0' ? divisors : "1", hint, nearest);
}

static td_status assign_even(const model_desc *m, const layer_request *q, stage_desc *out,
                             td_err *err)
{
    const int64_t counted = m->n_layers + q->account_embedding + q->account_head;
    if (counted % q->n_stages != 0) return uneven(m, q, counted, err);
    for (int64_t s = 0; s < q->n_stages; s++) out[s].n_layers = counted / q->n_stages;
    if (q->account_embedding) out[0].n_layers--;
    if (q->account_head) out[q->n_stages - 1].n_layers--;
    place_ends(out, q->n_stages);
    return TD_OK;
}

/* Layers that the FLOPs of the head are worth: with full attention 6 h V against 72 h^2 + 12 s h of
 * a GPT layer, forward and backward, a token (arXiv 2411.05288, section 3; Narayanan et al. 2021,
 * arXiv 2104.04473, appendix). */
static double head_in_layers(const model_desc *m, int64_t seq_len)
{
    const double h = (double)m->hidden, attn = (double)(m->n_heads * m->head_dim);
    const double kv = (double)(m->n_kv_heads * m->head_dim), ffn = (double)m->ffn;
    const double matrices = h * (2 * attn + 2 * kv + (m->gated ? 3 : 2) * ffn);
    const double head = h * (double)m->vocab + (m->family == MODEL_BERT ? h * h : 0);
    return head / (matrices + 2 * (double)seq_len * attn);
}

/* The last stage gets so many layers that the largest stage is smallest; the others share the rest
 * evenly, the last of them one more where that does not come out. */
static td_status assign_redistributed(const model_desc *m, const layer_request *q, stage_desc *out,
                                      td_err *err)
{
    const int64_t others = q->n_stages - 1;
    if (q->account_embedding || q->account_head)
        return td_fail(err, TD_EUSAGE,
                       "--layers redistributed weighs the head already; leave out the "
                       "--account-for options");
    const double head = head_in_layers(m, q->seq_len);
    int64_t last = m->n_layers;
    double best = others == 0 ? -1 : HUGE_VAL;
    for (int64_t n = 0; n <= m->n_layers && others > 0; n++) {
        const double most = (double)((m->n_layers - n + others - 1) / others);
        const double largest = most > (double)n + head ? most : (double)n + head;
        if (largest >= best) continue;
        best = largest;
        last = n;
    }
    for (int64_t s = 0; s < others; s++) {
        const int64_t rest = m->n_layers - last;
        out[s].n_layers = rest / others + (s >= others - rest % others ? 1 : 0);
    }
    out[others].n_layers = last;
    place_ends(out, q->n_stages);
    return TD_OK;
}

td_status layers_assign(const model_desc *m, const layer_request *q, stage_desc *out, td_err *err)
{
    if (q->n_stages < 1)
        return td_fail(err, TD_EUSAGE, "layers: %" PRId64 " stages; wants at least 1", q->n_stages);
    if (q->layout != NULL && (q->account_embedding || q->account_head))
        return td_fail(err, TD_EUSAGE,
                       "layout: says where embedding and loss are; leave out the "
                       "--account-for options");
    if (q->layout != NULL && q->explicit_layers != NULL)
        return td_fail(err, TD_EUSAGE, "layers: given as a list and as a layout; give one");
    memset(out, 0, (size_t)q->n_stages * sizeof *out);
    if (q->redistribute && (q->layout != NULL || q->explicit_layers != NULL))
        return td_fail(err, TD_EUSAGE,
                       "layers: redistributed, but also given as a list or a layout; give one");
    if (q->redistribute)
        TD_TRY(assign_redistributed(m, q, out, err));
    else if (q->layout != NULL)
        TD_TRY(assign_layout(m, q, out, err));
    else if (q->explicit_layers != NULL)
        TD_TRY(assign_explicit(m, q, out, err));
    else
        TD_TRY(assign_even(m, q, out, err));
    number_layers(out, q->n_stages);
    return TD_OK;
}
