/* ZB-H1 and ZB-H2 (arXiv 2401.10241, section 2): 1F1B with split backwards. W of a microbatch lags
 * its I by r (H1) or 2r (H2) microbatches on rank r, so every rank keeps as much as rank 0. */
#include "schedules/families.h"
#include "schedules/zb_search.h"

/* In slot x a rank runs F(x), I(x - d_i), W(x - d_w), each where there is such a microbatch. */
static void add_row(zb_order *o, int32_t rank, int64_t lead)
{
    const int64_t d_i = lead * (o->p - 1 - rank), d_w = lead * (o->p - 1);
    for (int64_t x = 0; x < o->m + d_w; x++) {
        if (x < o->m) zb_push(o, rank, zb_code(ZB_F, 0));
        if (x >= d_i && x - d_i < o->m) zb_push(o, rank, zb_code(ZB_I, 0));
        if (x >= d_w) zb_push(o, rank, zb_code(ZB_W, 0));
    }
}

td_status zb_slot_order(int32_t p, int32_t m, int32_t lead, td_arena *a, zb_order *out, td_err *err)
{
    TD_TRY(zb_order_new(a, p, m, 1, out, err));
    for (int32_t r = 0; r < p; r++) add_row(out, r, lead);
    return TD_OK;
}

static td_status generate(const sched_request *q, const char *family, int32_t lead, td_arena *a,
                          schedule *out, td_err *err)
{
    zb_order o;
    TD_TRY(zb_check_shape(q, family, 1, err));
    TD_TRY(zb_slot_order(q->pp, q->microbatches, lead, a, &o, err));
    return zb_order_schedule(&o, a, out, err);
}

static td_status generate_h1(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, "zb-h1", 1, a, out, err);
}

static td_status generate_h2(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    return generate(q, "zb-h2", 2, a, out, err);
}

static const sched_option no_options[] = {{NULL, NULL, NULL}};

const sched_family family_zb_h1 = {
    .name = "zb-h1",
    .summary = "split backward at 1F1B's memory: a third of its bubble when F, I and W are equal",
    .constraints = "P >= 1, M >= 1, one chunk",
    .options = no_options,
    .generate = generate_h1,
};

const sched_family family_zb_h2 = {
    .name = "zb-h2",
    .summary = "split backward without bubbles inside a rank, at nearly twice 1F1B's memory",
    .constraints = "P >= 1, M >= 1 (no bubble from M >= 2P - 1 on), one chunk",
    .options = no_options,
    .generate = generate_h2,
};
