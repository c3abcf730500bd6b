/* Sequence parallelism (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2): between the
 * products each shard has a piece of the rows only; it adds up and keeps its own piece of a
 * product's partial sums, and all pieces are put together before a product reads them. */
#include "exec/stage_inside.h"

static float *gathered(const stage_code *c, const stage_args *p)
{
    return at_bytes(p->scratch, c->scratch.gathered);
}

float *stage_own(const stage_code *c, const stage_args *p, const float *all)
{
    if (!stage_is_shared(c)) return (float *)(uintptr_t)all;
    return stage_skip(c, all, p->shard * c->own_rows * c->m->hidden);
}

static size_t own_bytes(const stage_code *c)
{
    return (size_t)(c->own_rows * c->m->hidden * c->element_bytes);
}

const float *stage_gather(k_ctx *ctx, const stage_code *c, const stage_args *p, const float *own)
{
    if (!stage_is_shared(c)) return own;
    float *const all = gathered(c, p);
    if (stage_now(p)) k_ops_of(ctx)->copy(ctx, stage_own(c, p, all), own, own_bytes(c));
    stage_pass_cut(p);
    return all;
}

float *stage_partial(const stage_code *c, const stage_args *p, float *to)
{
    return stage_is_shared(c) ? gathered(c, p) : to;
}

void stage_scatter(k_ctx *ctx, const stage_code *c, const stage_args *p, float *to)
{
    stage_pass_cut(p);
    if (stage_is_shared(c) && stage_now(p))
        k_ops_of(ctx)->copy(ctx, to, stage_own(c, p, gathered(c, p)), own_bytes(c));
}

const float *stage_head_input(const stage_code *c, const stage_args *p)
{
    return stage_is_shared(c) ? gathered(c, p) : STAGE_KEPT(c, p, final_out);
}
