/* The registry of schedule families. */
#include "base/text.h"
#include "schedules/families.h"

#include <string.h>

enum { FAMILIES_MAX = 64 };

/* one a line, so that additions stay apart */
/* clang-format off */
static const sched_family *const table[] = {
    &family_gpipe,
    &family_1f1b,
    &family_interleaved_1f1b,
    &family_seq1f1b,
    &family_seq1f1b_i,
    &family_seq1f1b_zb,
    &family_terapipe,
    &family_bitpipe,
    &family_chimera,
    &family_dualpipe,
    &family_dualpipev,
    &family_fbd,
    &family_hanayo,
    &family_vocab_1,
    &family_vocab_2,
    &family_interlaced,
    &family_v_half_vocab,
    &family_zb_h1,
    &family_zb_h2,
    &family_zb_v,
    &family_zb_auto,
    &family_v_half,
    &family_v_min,
    &family_1f1b_v,
    &family_interleaved_zb,
};
/* clang-format on */

size_t sched_family_count(void) { return sizeof table / sizeof *table; }

const sched_family *sched_family_at(size_t i) { return table[i]; }

td_status sched_find(const char *name, const sched_family **out, td_err *err)
{
    const char *names[FAMILIES_MAX];
    const size_t n = sched_family_count();
    for (size_t i = 0; i < n; i++) {
        names[i] = table[i]->name;
        if (strcmp(name, table[i]->name) == 0) {
            *out = table[i];
            return TD_OK;
        }
    }
    const char *const near = td_nearest(name, names, n);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "unknown schedule \"%s\"; did you mean \"%s\"?", name, near);
    return td_fail(err, TD_EUSAGE, "unknown schedule \"%s\"; psim list shows them", name);
}

static td_status check_options(const sched_family *f, const sched_request *q, td_err *err)
{
    for (int32_t i = 0; i < q->n_options; i++) {
        const char *names[FAMILIES_MAX];
        size_t n = 0;
        bool found = false;
        for (const sched_option *o = f->options; o->key != NULL && n < FAMILIES_MAX; o++) {
            names[n++] = o->key;
            found |= strcmp(o->key, q->options[i].key) == 0;
        }
        if (found) continue;
        const char *const near = td_nearest(q->options[i].key, names, n);
        return td_fail(err, TD_EUSAGE, "--opt %s: %s has no such option; %s%s", q->options[i].key,
                       f->name, near != NULL ? "did you mean " : "psim list shows its options",
                       near != NULL ? near : "");
    }
    return TD_OK;
}

/* Before anything is built: more passes than a plan can number are refused at once. */
static td_status check_count(const sched_request *q, td_err *err)
{
    const double chunks = q->chunks > 1 ? q->chunks : 1, slices = q->slices > 1 ? q->slices : 1;
    const double passes = 2.0 * q->pp * chunks * q->microbatches * slices;
    if (passes < (double)UINT32_MAX / 4) return TD_OK;
    return td_fail(err, TD_EUSAGE, "%.3g passes: more than a plan can number; fewer --microbatches",
                   passes);
}

static td_status check_slices(const sched_family *f, const sched_request *q, td_err *err)
{
    if (q->slices > 1 && !f->cuts)
        return td_fail(err, TD_EUSAGE,
                       "--slices %d: %s does not cut microbatches; legal: 1, or a schedule that "
                       "does, as seq1f1b",
                       q->slices, f->name);
    if (q->slice_tokens != NULL && !f->cuts)
        return td_fail(err, TD_EUSAGE, "--slice-tokens: %s does not cut microbatches; leave it out",
                       f->name);
    for (int32_t k = 0; q->slice_tokens != NULL && k < q->slices; k++)
        if (q->slice_tokens[k] < 1)
            return td_fail(err, TD_EUSAGE,
                           "--slice-tokens: slice %d of %d tokens; a slice holds at least one", k,
                           q->slice_tokens[k]);
    return TD_OK;
}

td_status sched_generate(const char *name, const sched_request *q, td_arena *a, schedule *out,
                         td_err *err)
{
    const sched_family *f = NULL;
    TD_TRY(sched_find(name, &f, err));
    if (q->pp < 1) return td_fail(err, TD_EUSAGE, "--pp %d: must be at least 1", q->pp);
    if (q->microbatches < 1)
        return td_fail(err, TD_EUSAGE, "--microbatches %d: must be at least 1", q->microbatches);
    if (q->chunks < 0 || q->slices < 0)
        return td_fail(err, TD_EUSAGE, "--chunks and --slices must be at least 1");
    TD_TRY(check_options(f, q, err));
    TD_TRY(check_slices(f, q, err));
    TD_TRY(check_count(q, err));
    TD_TRY(f->generate(q, a, out, err));
    out->name = f->name;
    return sched_check(out, err);
}
