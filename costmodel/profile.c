/* Durations out of a profile. */
#include "costmodel/profile.h"

#include <inttypes.h>
#include <stdio.h>

double profile_context(bool causal, int64_t slice_len, int64_t prefix)
{
    /* token i of a slice sees the prefix and i + 1 tokens of the slice */
    return (double)prefix + (causal ? ((double)slice_len + 1) / 2 : (double)slice_len);
}

void profile_context_terms(double batch, int64_t slice_len, int64_t prefix,
                           double terms[CONTEXT_TERMS])
{
    const double i = (double)slice_len, j = (double)prefix;
    terms[0] = 1;
    terms[1] = batch * i;
    terms[2] = batch * j;
    terms[3] = batch * i * j;
}

double profile_eval(const profile_fit *f, double x1, double x2)
{
    const double ns = f->c[0].value + f->c[1].value * x1 + f->c[2].value * x2;
    return ns > 0 ? ns : 0;
}

td_status profile_check(const profile *p, const model_desc *m, const run_shape *run, td_err *err)
{
    const struct {
        const char *what;
        int64_t mine, theirs;
    } sizes_of[] = {
        {"hidden size", p->model.hidden, m->hidden},
        {"heads", p->model.n_heads, m->n_heads},
        {"key-value heads", p->model.n_kv_heads, m->n_kv_heads},
        {"head size", p->model.head_dim, m->head_dim},
        {"MLP size", p->model.ffn, m->ffn},
        {"vocabulary", p->model.vocab, m->vocab},
    };
    for (size_t i = 0; i < sizeof sizes_of / sizeof *sizes_of; i++)
        if (sizes_of[i].mine != 0 && sizes_of[i].mine != sizes_of[i].theirs)
            return td_fail(err, TD_EUSAGE,
                           "profile: measured with %s %" PRId64 " (model %s), this run has %" PRId64
                           " (model %s); run pexec bench with this model and calibrate again",
                           sizes_of[i].what, sizes_of[i].mine, p->model.name, sizes_of[i].theirs,
                           m->name);
    if (p->model.hidden != 0 && p->model.causal != m->causal)
        return td_fail(err, TD_EUSAGE,
                       "profile: measured with model %s, whose attention is %s, unlike that of %s; "
                       "run pexec bench with this model and calibrate again",
                       p->model.name, p->model.causal ? "causal" : "not causal", m->name);
    if (p->dtype != run->dtype)
        return td_fail(
            err, TD_EUSAGE, "profile: measured in %s, this run is in %s; give --dtype %s",
            data_type_name(p->dtype), data_type_name(run->dtype), data_type_name(p->dtype));
    if (profile_shard_of(p, run->tp) != NULL || p->n_shards == 0) return TD_OK;
    td_text t = {0};
    for (int32_t i = 0; i < p->n_shards; i++)
        td_text_addf(&t, "%s%" PRId64, i > 0 ? ", " : "", p->shard[i].tp);
    const td_status st =
        td_fail(err, TD_EUSAGE,
                "profile: measured with tensor-parallel degree %s, this run has %" PRId64
                "; run pexec bench with --tp %" PRId64 " and calibrate with both files",
                t.s == NULL ? "" : t.s, run->tp, run->tp);
    td_text_free(&t);
    return st;
}

const profile_shard *profile_shard_of(const profile *p, int64_t tp)
{
    for (int32_t i = 0; i < p->n_shards; i++)
        if (p->shard[i].tp == (tp > 1 ? tp : 1)) return &p->shard[i];
    return NULL;
}

profile_shard *profile_shard_at(profile *p, int64_t tp)
{
    int32_t at = 0;
    while (at < p->n_shards && p->shard[at].tp < tp) at++;
    if (at < p->n_shards && p->shard[at].tp == tp) return &p->shard[at];
    if (p->n_shards == PROFILE_TP_MAX) return NULL;
    for (int32_t i = p->n_shards; i > at; i--) p->shard[i] = p->shard[i - 1];
    p->n_shards++;
    p->shard[at] = (profile_shard){.tp = tp};
    return &p->shard[at];
}

double profile_curve_eval(const profile_fit *f, const profile_curve *c, double x)
{
    if (c == NULL || c->n < 2) return profile_eval(f, x, 0);
    if (x <= c->x[0]) return c->ns[0];
    int32_t i = 1;
    while (i + 1 < c->n && x > c->x[i]) i++;
    const double slope = (c->ns[i] - c->ns[i - 1]) / (c->x[i] - c->x[i - 1]);
    return c->ns[i] + slope * (x - c->x[i]);
}

static int link_of(const profile *p, const profile_fit by_link[LINK_COUNT])
{
    if (by_link[p->link].n > 0) return (int)p->link;
    int i = 0;
    while (i + 1 < LINK_COUNT && by_link[i].n == 0) i++;
    return i;
}

bool profile_has_between(const profile *p, bool message)
{
    const profile_fit *const by_link = message ? p->message : p->all_reduce;
    return by_link[link_of(p, by_link)].n > 0;
}

double profile_between_ns(const profile *p, bool message, double x)
{
    const profile_fit *const by_link = message ? p->message : p->all_reduce;
    const profile_curve *const curves = message ? p->message_curve : p->all_reduce_curve;
    const int link = link_of(p, by_link);
    return profile_curve_eval(&by_link[link], &curves[link], x);
}

double profile_contention(const profile *p, int32_t busy, bool memory)
{
    double k0 = 1, factor0 = 1;
    if (busy <= 1) return 1;
    for (int32_t i = 0; i < p->n_busy; i++) {
        const estimate *const e =
            memory && p->busy[i].memory.value > 0 ? &p->busy[i].memory : &p->busy[i].compute;
        const double k1 = p->busy[i].busy;
        if (busy <= k1) return factor0 + (busy - k0) / (k1 - k0) * (e->value - factor0);
        k0 = k1;
        factor0 = e->value;
    }
    const double cores = p->cores > 0 ? p->cores : busy;
    if (busy <= cores) return factor0;
    return factor0 * busy / (k0 > cores ? k0 : cores);
}

/* --- passes --- */

typedef struct part_query {
    const profile_shard *p;
    stage_part part;
    recompute_mode mode;
    double tokens, attended, bare; /* the two terms of a fit; bare: attended without context */
    const double *context;         /* [CONTEXT_TERMS], NULL: there is none */
} part_query;

static const profile_fit *fit_of(const part_query *q, pass_kind kind, recompute_mode mode)
{
    const profile_fit *const f = &q->p->pass[mode][kind][q->part];
    return f->n > 0 ? f : NULL;
}

static bool fitted(const part_query *q, pass_kind kind, recompute_mode mode, double *ns)
{
    const profile_fit *const f = fit_of(q, kind, mode);
    if (f == NULL) return false;
    const profile_context_fit *const c = &q->p->context[mode][kind];
    const bool apart = q->part == PART_LAYERS && q->context != NULL && c->n > 0;
    *ns = profile_eval(f, q->tokens, apart ? q->bare : q->attended);
    double added = 0;
    for (int k = 0; apart && k < CONTEXT_TERMS; k++) added += c->c[k].value * q->context[k];
    if (*ns + added > 0) *ns += added;
    return true;
}

/* B out of I and W; I and W out of B. */
static bool from_halves(const part_query *q, pass_kind kind, recompute_mode mode, double *ns)
{
    double b = 0, i = 0, w = 0;
    const bool have_b = fitted(q, PASS_B, mode, &b);
    const bool have_i = fitted(q, PASS_I, mode, &i);
    const bool have_w = fitted(q, PASS_W, mode, &w) || fitted(q, PASS_W, RECOMPUTE_NONE, &w);
    if (kind == PASS_B && have_i && have_w) {
        *ns = i + w;
        return true;
    }
    if ((kind != PASS_I && kind != PASS_W) || !have_b) return false;
    /* half of what products take; attention's scores have no weights */
    if (!have_w) w = have_i ? b - i : profile_eval(fit_of(q, PASS_B, mode), q->tokens, 0) / 2;
    *ns = kind == PASS_I ? b - w : w;
    if (*ns < 0) *ns = 0;
    return true;
}

/* A pass that was measured without the run's recompute: the forward is added. */
static bool with_recompute(const part_query *q, pass_kind kind, double *ns)
{
    double again = 0;
    if (!fitted(q, kind, RECOMPUTE_NONE, ns) && !from_halves(q, kind, RECOMPUTE_NONE, ns))
        return false;
    const bool backward = kind == PASS_B || kind == PASS_I;
    if (!backward || q->part != PART_LAYERS || q->mode == RECOMPUTE_NONE) return true;
    const profile_fit *const f = fit_of(q, PASS_F, RECOMPUTE_NONE);
    if (f == NULL) return false;
    again = q->mode == RECOMPUTE_FULL ? profile_eval(f, q->tokens, q->attended)
                                      : f->c[2].value * q->attended;
    *ns += again > 0 ? again : 0;
    return true;
}

/* Whether I does all of the part's backward: of the embedding, which is no product, and of a head
 * whose logits are made again in pieces. */
static bool done_by_i(const part_query *q)
{
    return q->part == PART_EMBEDDING || (q->part == PART_HEAD && q->mode == RECOMPUTE_FULL);
}

static td_status part_ns(const part_query *q, pass_kind kind, double *ns, td_err *err)
{
    *ns = 0;
    if (kind == PASS_W && done_by_i(q)) return TD_OK;
    if (kind == PASS_I && done_by_i(q)) kind = PASS_B;
    if (fitted(q, kind, q->mode, ns) || from_halves(q, kind, q->mode, ns)) return TD_OK;
    if (with_recompute(q, kind, ns)) return TD_OK;
    if (kind == PASS_R && fitted(q, PASS_F, RECOMPUTE_NONE, ns)) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "profile: no time for pass %c of the %s; it was not measured, run pexec bench "
                   "with it and calibrate again",
                   pass_letter(kind), stage_part_name(q->part));
}

/* A pass of sharded vocabulary layers; one that was not measured takes its share of the words of
 * the whole head or embedding. E writes every row, whoever has the word. */
static td_status shard_ns(const sizes *z, const part_query *q, pass_kind kind, double *ns,
                          td_err *err)
{
    double f = 0, i = 0, w = 0;
    if (z->vocab_shards < 1) return part_ns(q, kind, ns, err);
    part_query kept = *q; /* S keeps its softmax, whatever the run recomputes */
    kept.mode = RECOMPUTE_NONE;
    const bool fused = z->vocab_fused && q->part == PART_HEAD;
    const profile_fit *const own =
        &q->p->pass[RECOMPUTE_NONE][kind][fused ? PART_FUSED_HEAD : q->part];
    if (own->n > 0) {
        *ns = profile_eval(own, q->tokens, q->tokens * (double)sizes_vocab_rows(z));
        return TD_OK;
    }
    TD_TRY(part_ns(&kept, PASS_F, &f, err));
    TD_TRY(part_ns(&kept, PASS_I, &i, err));
    TD_TRY(part_ns(&kept, PASS_W, &w, err));
    const double share = (double)sizes_vocab_rows(z) / (double)z->model->vocab;
    switch (kind) {
    case PASS_S: *ns = share * (f + (z->vocab_fused ? i : 0)); return TD_OK;
    case PASS_T: *ns = share * (w + (z->vocab_fused ? 0 : i)); return TD_OK;
    case PASS_E: *ns = f; return TD_OK;
    default: *ns = share * (i + w); return TD_OK;
    }
}

/* Which parts a pass of a stage runs through. */
static bool has_part(const sizes *z, const stage_desc *s, pass_kind kind, stage_part part)
{
    const bool ends = z->vocab_shards < 1;
    switch (kind) {
    case PASS_S:
    case PASS_T: return part == PART_HEAD;
    case PASS_E:
    case PASS_G: return part == PART_EMBEDDING;
    case PASS_R: return part == PART_LAYERS && s->n_layers > 0;
    default: break;
    }
    if (part == PART_LAYERS) return s->n_layers > 0;
    return ends && (part == PART_EMBEDDING ? s->embedding : s->head);
}

double profile_spread(const profile *p, pass_kind kind)
{
    double most = 0, any = 0;
    for (int32_t i = 0; i < p->n_shards; i++)
        for (int mode = 0; mode < 3; mode++)
            for (int k = 0; k < PASS_COUNT; k++)
                for (int part = 0; part < PART_COUNT; part++) {
                    const profile_fit *const f = &p->shard[i].pass[mode][k][part];
                    if (f->n == 0) continue;
                    if (f->spread > any) any = f->spread;
                    if (k == (int)kind && f->spread > most) most = f->spread;
                }
    return most > 0 ? most : any;
}

double profile_worst(const profile *p, int64_t tp, char *what, size_t size)
{
    const profile_shard *const s = profile_shard_of(p, tp);
    double most = 0;
    for (int mode = 0; s != NULL && mode < 3; mode++)
        for (int k = 0; k < PASS_COUNT; k++)
            for (int part = 0; part < PART_COUNT; part++) {
                const profile_fit *const f = &s->pass[mode][k][part];
                if (f->n == 0 || f->error <= most) continue;
                most = f->error;
                (void)snprintf(what, size, "%s of %s", pass_name((pass_kind)k),
                               stage_part_name((stage_part)part));
            }
    return most;
}

td_status profile_pass_ns(const profile *p, const sizes *z, const pass_query *q, double *ns,
                          td_err *err)
{
    if (z->model == NULL || z->stages == NULL)
        return td_fail(err, TD_EUSAGE, "profile: no model; give --model");
    if (q->stage < 0 || q->stage >= z->n_stages)
        return td_fail(err, TD_EUSAGE, "profile: stage %" PRId32 " of %" PRId32, q->stage,
                       z->n_stages);
    TD_TRY(profile_check(p, z->model, &z->run, err));
    const profile_shard *const shard = profile_shard_of(p, z->run.tp);
    if (shard == NULL)
        return td_fail(err, TD_EUSAGE, "profile: no pass was measured; run pexec bench");
    const stage_desc *const s = &z->stages[q->stage];
    const double tokens = (double)z->run.micro_batch * (double)q->slice_len;
    const double context = profile_context(z->model->causal, q->slice_len, q->prefix);
    const double bare = profile_context(z->model->causal, q->slice_len, 0);
    double terms[CONTEXT_TERMS];
    profile_context_terms((double)z->run.micro_batch, q->slice_len, q->prefix, terms);
    *ns = 0;
    for (int part = 0; part < PART_FUSED_HEAD; part++) {
        if (!has_part(z, s, q->pass, (stage_part)part)) continue;
        /* under full recomputation a forward of layers keeps nothing either */
        const bool bare_forward = q->keeps_nothing && q->pass == PASS_F && part == PART_LAYERS &&
                                  shard->pass[RECOMPUTE_FULL][PASS_F][part].n > 0;
        const part_query one = {.p = shard,
                                .part = (stage_part)part,
                                .mode = bare_forward ? RECOMPUTE_FULL : z->run.recompute,
                                .tokens = tokens,
                                .attended = tokens * context,
                                .bare = tokens * bare,
                                .context = q->prefix > 0 ? terms : NULL};
        double x = 0;
        const bool words =
            q->pass == PASS_S || q->pass == PASS_T || q->pass == PASS_E || q->pass == PASS_G;
        TD_TRY(words ? shard_ns(z, &one, q->pass, &x, err) : part_ns(&one, q->pass, &x, err));
        *ns += part == PART_LAYERS ? x * (double)s->n_layers : x;
    }
    return TD_OK;
}
