/* What a search over orders is given: durations, memory and limits, from a request. */
#include "schedules/trace.h"
#include "schedules/zb_core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Live activations are counted in these parts of one rank's share of a microbatch. */
enum { SHARE = 1 << 20 };

static const pass_kind kinds[3] = {PASS_F, PASS_I, PASS_W};

td_status zb_check_shape(const sched_request *q, const char *family, int32_t chunks, td_err *err)
{
    if (q->chunks != 0 && q->chunks != chunks)
        return td_fail(err, TD_EUSAGE, "--chunks %d: %s has %d stage%s a rank; legal: --chunks %d",
                       q->chunks, family, chunks, chunks == 1 ? "" : "s", chunks);
    return TD_OK;
}

/* What passes add to live activations: "1,0,-1", or the deltas of the zero-bubble papers' code. */
static td_status read_deltas(const sched_request *q, double d[3], td_err *err)
{
    const char *what = "--activation-deltas ", *text = q->activation_deltas;
    for (int32_t i = 0; i < q->n_options; i++)
        if (strcmp(q->options[i].key, "deltas") == 0) {
            what = "--opt deltas=";
            text = q->options[i].value;
        }
    activation_deltas given;
    TD_TRY(activation_deltas_parse(what, text, &given, err));
    d[0] = given.f;
    d[1] = given.i;
    d[2] = given.w;
    if (d[0] > 0 && d[1] <= 0 && d[2] <= 0 && fabs(d[0] + d[1] + d[2]) <= 1e-9) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "%s%s: F adds what I and W free, so F > 0, I <= 0, W <= 0 and their sum is 0; "
                   "as in 2,-1,-1",
                   what, text);
}

/* Durations of all stages as the request prices them, or shares of its plain times. */
static td_status read_times(const sched_request *q, int32_t chunks, sched_stage_cost *stages,
                            td_err *err)
{
    const int32_t n = q->pp * chunks;
    if (q->price != NULL) return q->price(q->price_from, n, stages, err);
    for (int32_t s = 0; s < n; s++) {
        stages[s].send_ns = q->times.comm_ns;
        for (int k = 0; k < PASS_COUNT; k++)
            stages[s].pass_ns[k] = (q->times.pass_ns[k] + chunks / 2) / chunks;
    }
    const int64_t *const t = q->times.pass_ns;
    const bool any = t[PASS_F] > 0 || t[PASS_I] > 0 || t[PASS_W] > 0;
    for (int32_t s = 0; s < n && !any; s++)
        for (int k = 0; k < 3; k++) stages[s].pass_ns[kinds[k]] = -1;
    return TD_OK;
}

/* As far from the longest time as sums of all passes of all ranks can go. */
static int64_t longest(const sched_request *q)
{
    return INT64_MAX / 64 / ((int64_t)q->microbatches * q->pp);
}

/* Without any durations every pass takes as long as every other. */
static td_status take_times(const sched_request *q, int32_t chunks, bool needed,
                            const sched_stage_cost *stages, int64_t *pass_ns[3], td_err *err)
{
    int known = 0;
    for (int k = 0; k < 3; k++) known += stages[0].pass_ns[kinds[k]] >= 0;
    for (int32_t s = 0; s < q->pp * chunks; s++)
        for (int k = 0; k < 3; k++) {
            const int64_t ns = stages[s].pass_ns[kinds[k]];
            if (ns < 0 && (needed || known > 0))
                return td_fail(err, TD_EUSAGE,
                               "durations: this schedule searches with them, and that of %c of "
                               "stage %d is missing; give --times F=MS,I=MS,W=MS,comm=MS, or "
                               "--model with --cluster or --profile",
                               pass_letter(kinds[k]), s);
            if (ns > longest(q))
                return td_fail(err, TD_EUSAGE, "durations: %lld ns a pass is too long to add up",
                               (long long)ns);
            pass_ns[k][s] = ns < 0 ? 1 : ns;
        }
    return TD_OK;
}

/* Limits in microbatch activations of a rank's share, in the unit of the deltas. */
static void share_limits(const zb_problem *z, double activations, int64_t *limit)
{
    for (int32_t r = 0; r < z->p; r++) {
        int64_t share = z->delta[0][r];
        if (z->chunks == 2) share += z->delta[0][2 * z->p - 1 - r];
        const double most = activations * (double)share + 1e-6 * (double)SHARE;
        limit[r] = most < 4e18 ? (int64_t)most : INT64_MAX / 2;
    }
}

/* The most that one microbatch of one stage keeps at a time. */
static int64_t stage_peak(const sched_stage_cost *c)
{
    const int64_t f = c->activation_bytes[PASS_F], i = f + c->activation_bytes[PASS_I];
    return f > i ? f : i;
}

/* Bytes: what is left of the limit on each rank besides weights, gradients, optimizer and the
 * workspace that its stages share, but at least one microbatch: how much the rest of a plan needs
 * is for whoever lowers it to say. */
static void byte_limits(const zb_problem *z, const sched_stage_cost *stages, int64_t bytes,
                        int64_t *limit)
{
    for (int32_t r = 0; r < z->p; r++) {
        const sched_stage_cost *const x = &stages[r];
        const sched_stage_cost *const y = z->chunks == 2 ? &stages[2 * z->p - 1 - r] : NULL;
        int64_t work = x->workspace_bytes, least = stage_peak(x);
        limit[r] = bytes - x->fixed_bytes;
        if (y != NULL) {
            const int64_t both = x->activation_bytes[PASS_F] + stage_peak(y);
            least += x->activation_bytes[PASS_F] + y->activation_bytes[PASS_F];
            if (both > least) least = both;
            limit[r] -= y->fixed_bytes;
            if (y->workspace_bytes > work) work = y->workspace_bytes;
        }
        limit[r] -= work;
        if (limit[r] < least) limit[r] = least;
    }
}

static td_status set_memory(const sched_request *q, const sched_stage_cost *stages, double fallback,
                            zb_problem *z, int64_t *delta[3], int64_t *limit, td_err *err)
{
    double d[3];
    TD_TRY(read_deltas(q, d, err));
    const int32_t n = z->p * z->chunks;
    const bool bytes = q->memory_limit > 0 && q->activation_limit <= 0;
    for (int32_t s = 0; s < n; s++) {
        const sched_stage_cost *const c = &stages[s];
        if (bytes && c->activation_bytes[PASS_F] <= 0)
            return td_fail(err, TD_EUSAGE,
                           "--memory-limit: bytes of activations are known only with a model; "
                           "give --model, or --activation-limit");
        for (int i = 0; i < 3; i++)
            delta[i][s] = bytes ? c->activation_bytes[kinds[i]] : llround(d[i] * SHARE) / z->chunks;
    }
    if (bytes)
        byte_limits(z, stages, q->memory_limit, limit);
    else
        share_limits(z, q->activation_limit > 0 ? q->activation_limit : fallback, limit);
    return TD_OK;
}

td_status zb_problem_of(const sched_request *q, int32_t chunks, bool needed, double fallback,
                        td_arena *a, zb_problem *out, td_err *err)
{
    const size_t n = (size_t)q->pp * (size_t)chunks;
    sched_stage_cost *const stages = TD_NEW_N(a, sched_stage_cost, n);
    int64_t *arrays[7];
    bool ok = stages != NULL;
    for (int i = 0; i < 7; i++) {
        arrays[i] = TD_NEW_N(a, int64_t, n);
        ok &= arrays[i] != NULL;
    }
    if (!ok) return td_fail(err, TD_ENOMEM, "out of memory for %zu stages", n);
    *out = (zb_problem){.p = q->pp,
                        .m = q->microbatches,
                        .chunks = chunks,
                        .pass_ns = {arrays[0], arrays[1], arrays[2]},
                        .delta = {arrays[3], arrays[4], arrays[5]},
                        .limit = arrays[6]};
    TD_TRY(read_times(q, chunks, stages, err));
    out->comm_ns = stages[0].send_ns;
    TD_TRY(take_times(q, chunks, needed, stages, arrays, err));
    return set_memory(q, stages, fallback, out, &arrays[3], arrays[6], err);
}
