/* One profile out of two. */
#include "base/text.h"
#include "costmodel/profile.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* What is at hand, for the report. */
typedef struct merging {
    td_text *report;
    const char *source;
} merging;

static void take(const merging *m, const char *what, profile_fit *to, const profile_fit *from)
{
    if (from->n == 0) return;
    if (to->n > 0)
        td_text_addf(m->report, "%s: both have it; that of %s (%" PRId32 " samples) counts\n", what,
                     m->source, from->n);
    *to = *from;
}

/* A line, and the curve where it is none. */
static void take_curve(const merging *m, const char *what, profile_fit *to, profile_curve *to_curve,
                       const profile_fit *from, const profile_curve *from_curve)
{
    if (from->n > 0) *to_curve = *from_curve;
    take(m, what, to, from);
}

static td_status same_machine(const profile *a, const profile *b, td_err *err)
{
    if (a->n_sources > 0 && b->n_sources > 0 && a->sources[0].device[0] != '\0' &&
        b->sources[0].device[0] != '\0' && strcmp(a->sources[0].device, b->sources[0].device) != 0)
        return td_fail(err, TD_EUSAGE,
                       "profiles of two devices, '%s' and '%s': keep each in a file of its own",
                       a->sources[0].device, b->sources[0].device);
    if (a->cores != 0 && b->cores != 0 && a->cores != b->cores)
        return td_fail(err, TD_EUSAGE, "profiles of %" PRId32 " and of %" PRId32 " cores", a->cores,
                       b->cores);
    const run_shape run = {.dtype = b->dtype};
    profile sizes_alone = {.model = a->model, .dtype = a->dtype};
    return profile_check(&sizes_alone, &b->model, &run, err);
}

static td_status merge_shard(const merging *m, profile *to, const profile_shard *from, td_err *err)
{
    profile_shard *const s = profile_shard_at(to, from->tp);
    if (s == NULL)
        return td_fail(err, TD_EUSAGE, "profiles of more than %d tensor-parallel degrees",
                       (int)PROFILE_TP_MAX);
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++) {
            for (int part = 0; part < PART_COUNT; part++) {
                char what[80];
                (void)snprintf(what, sizeof what, "pass %c of %s", pass_letter((pass_kind)k),
                               stage_part_name((stage_part)part));
                take(m, what, &s->pass[r][k][part], &from->pass[r][k][part]);
            }
            /* a pass and what contexts add to it were measured together */
            if (from->pass[r][k][PART_LAYERS].n > 0) s->context[r][k] = from->context[r][k];
        }
    return TD_OK;
}

td_status profile_merge(profile *to, const profile *from, td_text *report, td_err *err)
{
    TD_TRY(same_machine(to, from, err));
    if (to->n_sources + from->n_sources > PROFILE_SOURCES_MAX)
        return td_fail(err, TD_EUSAGE, "profiles of %d benches; at most %d go into one",
                       (int)(to->n_sources + from->n_sources), (int)PROFILE_SOURCES_MAX);
    const merging m = {.report = report,
                       .source = from->n_sources > 0 ? from->sources[0].source : "the later one"};
    for (int32_t i = 0; i < from->n_sources; i++) to->sources[to->n_sources++] = from->sources[i];
    for (int32_t i = 0; i < from->n_shards; i++) TD_TRY(merge_shard(&m, to, &from->shard[i], err));
    take(&m, "optimizer", &to->optimizer, &from->optimizer);
    take(&m, "norm", &to->norm, &from->norm);
    take(&m, "product", &to->product, &from->product);
    take_curve(&m, "copy", &to->copy, &to->copy_curve, &from->copy, &from->copy_curve);
    for (int i = 0; i < LINK_COUNT; i++) {
        char what[80];
        (void)snprintf(what, sizeof what, "message by %s", sample_link_name((sample_link)i));
        take_curve(&m, what, &to->message[i], &to->message_curve[i], &from->message[i],
                   &from->message_curve[i]);
        (void)snprintf(what, sizeof what, "all-reduce by %s", sample_link_name((sample_link)i));
        take_curve(&m, what, &to->all_reduce[i], &to->all_reduce_curve[i], &from->all_reduce[i],
                   &from->all_reduce_curve[i]);
    }
    if (from->n_busy > 0) {
        memcpy(to->busy, from->busy, sizeof to->busy);
        to->n_busy = from->n_busy;
    }
    if (to->cores == 0) to->cores = from->cores;
    if (to->model.name[0] == '\0') to->model = from->model;
    return TD_OK;
}
