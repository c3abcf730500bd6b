/* Profiles out of JSON text. */
#include "costmodel/json_read.h"
#include "costmodel/profile.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const recompute_names[] = {"none", "selective", "full"};
static const char *const dtype_names[] = {"fp32", "bf16", "fp16"};
static const double big = 1e30;

static td_status read_estimate(const json_view *v, const char *key, const json_t *pair,
                               estimate *out, td_err *err)
{
    const json_t *const value = json_array_get(pair, 0), *const half = json_array_get(pair, 1);
    const bool open = json_is_null(half);
    const double x = json_number_value(value),
                 h = open ? (double)INFINITY : json_number_value(half);
    if (json_array_size(pair) != 2 || !json_is_number(value) || !(open || json_is_number(half)) ||
        !(x >= -big && x <= big) || !(open || (h >= 0 && h <= big)))
        return json_fail(v, key, err, "wants pairs [value, half width of its interval or null]");
    *out = (estimate){x, h};
    return TD_OK;
}

static td_status read_fit(const json_view *v, profile_fit *out, td_err *err)
{
    const json_t *const list = json_object_get(v->object, "ns");
    int64_t n = 0;
    TD_TRY(json_i64(v, "samples", true, 1, INT32_MAX, &n, err));
    TD_TRY(json_f64(v, "relative_error", false, 0, big, &out->error, err));
    TD_TRY(json_f64(v, "spread", false, 0, big, &out->spread, err));
    if (json_array_size(list) != PROFILE_TERMS)
        return json_fail(v, "ns", err, "wants %d pairs", PROFILE_TERMS);
    for (int i = 0; i < PROFILE_TERMS; i++)
        TD_TRY(read_estimate(v, "ns", json_array_get(list, (size_t)i), &out->c[i], err));
    out->n = (int32_t)n;
    return TD_OK;
}

static td_status read_named(const json_view *v, const char *key, profile_fit *out, td_err *err)
{
    json_view fit;
    bool found = false;
    TD_TRY(json_object_in(v, key, false, &fit, &found, err));
    return found ? read_fit(&fit, out, err) : TD_OK;
}

/* The index of a key's word among names. */
static td_status read_word(const json_view *v, const char *key, const char *const *names, int n,
                           int *out, td_err *err)
{
    char word[32] = "";
    TD_TRY(json_text(v, key, true, word, sizeof word, err));
    for (*out = 0; *out < n; ++*out)
        if (strcmp(word, names[*out]) == 0) return TD_OK;
    return json_fail(v, key, err, "'%s' is not known; %s is", word, names[0]);
}

/* A pass and the shard that it is of; passes without a degree are those of version 1, which has
 * one for all. */
static td_status read_key(const json_view *v, profile *p, pass_kind *kind, int *recompute,
                          profile_shard **shard, td_err *err)
{
    char letter[4] = "";
    int64_t tp = p->n_shards > 0 ? p->shard[0].tp : 1;
    TD_TRY(json_text(v, "pass", true, letter, sizeof letter, err));
    *kind = pass_from_letter(letter[0]);
    if (*kind == PASS_COUNT || letter[1] != '\0')
        return json_fail(v, "pass", err, "'%s' is not the letter of a pass", letter);
    TD_TRY(json_i64(v, "tp", false, 1, INT32_MAX, &tp, err));
    TD_TRY(read_word(v, "recompute", recompute_names, 3, recompute, err));
    *shard = profile_shard_at(p, tp);
    return *shard != NULL
               ? TD_OK
               : json_fail(v, "tp", err, "at most %d degrees in one profile", (int)PROFILE_TP_MAX);
}

static td_status read_pass(const json_view *v, profile *p, td_err *err)
{
    static const char *const parts[] = {"layers", "embedding", "head", "fused-head"};
    int part = 0, recompute = 0;
    pass_kind kind;
    profile_shard *shard = NULL;
    TD_TRY(read_key(v, p, &kind, &recompute, &shard, err));
    TD_TRY(read_word(v, "part", parts, PART_COUNT, &part, err));
    profile_fit *const f = &shard->pass[recompute][kind][part];
    if (f->n > 0)
        return json_fail(v, "pass", err, "%c of %s twice", pass_letter(kind), parts[part]);
    return read_fit(v, f, err);
}

static td_status read_context(const json_view *v, profile *p, td_err *err)
{
    int recompute = 0;
    int64_t n = 0;
    pass_kind kind;
    profile_shard *shard = NULL;
    const json_t *const list = json_object_get(v->object, "ns");
    TD_TRY(read_key(v, p, &kind, &recompute, &shard, err));
    profile_context_fit *const f = &shard->context[recompute][kind];
    if (f->n > 0) return json_fail(v, "pass", err, "context of %c twice", pass_letter(kind));
    TD_TRY(json_i64(v, "samples", true, 1, INT32_MAX, &n, err));
    TD_TRY(json_f64(v, "relative_error", false, 0, big, &f->error, err));
    if (json_array_size(list) != CONTEXT_TERMS)
        return json_fail(v, "ns", err, "wants %d pairs", CONTEXT_TERMS);
    for (int i = 0; i < CONTEXT_TERMS; i++)
        TD_TRY(read_estimate(v, "ns", json_array_get(list, (size_t)i), &f->c[i], err));
    f->n = (int32_t)n;
    return TD_OK;
}

static td_status read_curve(const json_view *v, profile_curve *out, td_err *err)
{
    const json_t *const list = json_object_get(v->object, "points");
    if (list == NULL) return TD_OK;
    if (json_array_size(list) < 2 || json_array_size(list) > PROFILE_POINTS_MAX)
        return json_fail(v, "points", err, "wants 2 to %d pairs", (int)PROFILE_POINTS_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *const pair = json_array_get(list, i);
        const json_t *const at = json_array_get(pair, 0), *const ns = json_array_get(pair, 1);
        const double x = json_number_value(at), y = json_number_value(ns);
        if (json_array_size(pair) != 2 || !json_is_number(at) || !json_is_number(ns) ||
            !(x >= 0 && x <= big && y >= 0 && y <= big) ||
            (i > 0 && !(x > out->x[i - 1] && y >= out->ns[i - 1])))
            return json_fail(v, "points", err, "wants pairs [size, ns] that ascend");
        out->x[i] = x;
        out->ns[i] = y;
        out->n = (int32_t)i + 1;
    }
    return TD_OK;
}

static td_status read_between(const json_view *v, profile_fit by_link[LINK_COUNT],
                              profile_curve curves[LINK_COUNT], td_err *err)
{
    static const char *const links[] = {"threads", "mpi", "tcp"};
    int link = 0;
    TD_TRY(read_word(v, "link", links, LINK_COUNT, &link, err));
    if (by_link[link].n > 0) return json_fail(v, "link", err, "%s twice", links[link]);
    TD_TRY(read_curve(v, &curves[link], err));
    return read_fit(v, &by_link[link], err);
}

static td_status read_message(const json_view *v, profile *p, td_err *err)
{
    return read_between(v, p->message, p->message_curve, err);
}

static td_status read_all_reduce(const json_view *v, profile *p, td_err *err)
{
    return read_between(v, p->all_reduce, p->all_reduce_curve, err);
}

static td_status read_texts(const json_view *v, profile_source *out, td_err *err)
{
    TD_TRY(json_text(v, "source", false, out->source, sizeof out->source, err));
    TD_TRY(json_text(v, "date", false, out->date, sizeof out->date, err));
    return json_text(v, "device", false, out->device, sizeof out->device, err);
}

static td_status read_source(const json_view *v, profile *p, td_err *err)
{
    int64_t n = 0;
    profile_source *const s = &p->sources[p->n_sources++];
    TD_TRY(json_i64(v, "samples", false, 0, INT32_MAX, &n, err));
    s->samples = (int32_t)n;
    return read_texts(v, s, err);
}

static td_status read_busy(const json_view *v, profile *p, td_err *err)
{
    const int32_t i = p->n_busy;
    int64_t busy = 0;
    TD_TRY(json_i64(v, "busy", true, 2, INT32_MAX, &busy, err));
    if (i > 0 && busy <= p->busy[i - 1].busy) return json_fail(v, "busy", err, "wants to ascend");
    contention *const c = &p->busy[i];
    c->busy = (int32_t)busy;
    TD_TRY(read_estimate(v, "compute", json_object_get(v->object, "compute"), &c->compute, err));
    TD_TRY(read_estimate(v, "memory", json_object_get(v->object, "memory"), &c->memory, err));
    if (c->compute.value <= 0 || c->memory.value < 0)
        return json_fail(v, "compute", err, "wants a factor above 0");
    p->n_busy++;
    return TD_OK;
}

/* Calls `one` for each object of an array. */
static td_status read_list(const json_view *v, const char *key, size_t max, profile *p,
                           td_status (*one)(const json_view *, profile *, td_err *), td_err *err)
{
    const json_t *const list = json_object_get(v->object, key);
    if (list == NULL) return TD_OK;
    if (!json_is_array(list) || json_array_size(list) > max)
        return json_fail(v, key, err, "wants a list of at most %zu objects", max);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_view item = *v;
        item.object = json_array_get(list, i);
        if (!json_is_object(item.object))
            return json_fail(v, key, err, "item %zu: wants an object", i);
        TD_TRY(one(&item, p, err));
    }
    return TD_OK;
}

static td_status read_profile_model(const json_view *v, model_desc *m, td_err *err)
{
    json_view in;
    bool found = false;
    TD_TRY(json_object_in(v, "model", false, &in, &found, err));
    if (!found) return TD_OK;
    TD_TRY(json_text(&in, "name", false, m->name, sizeof m->name, err));
    TD_TRY(json_i64(&in, "layers", false, 0, INT32_MAX, &m->n_layers, err));
    TD_TRY(json_i64(&in, "hidden", false, 0, INT32_MAX, &m->hidden, err));
    TD_TRY(json_i64(&in, "heads", false, 0, INT32_MAX, &m->n_heads, err));
    TD_TRY(json_i64(&in, "kv_heads", false, 0, INT32_MAX, &m->n_kv_heads, err));
    TD_TRY(json_i64(&in, "head_dim", false, 0, INT32_MAX, &m->head_dim, err));
    TD_TRY(json_i64(&in, "ffn", false, 0, INT32_MAX, &m->ffn, err));
    TD_TRY(json_i64(&in, "vocab", false, 0, INT32_MAX, &m->vocab, err));
    return json_bool(&in, "causal", &m->causal, err);
}

static td_status read_copy(const json_view *v, profile *p, td_err *err)
{
    json_view copy;
    bool found = false;
    TD_TRY(json_object_in(v, "copy", false, &copy, &found, err));
    if (!found) return TD_OK;
    TD_TRY(read_curve(&copy, &p->copy_curve, err));
    return read_fit(&copy, &p->copy, err);
}

/* What version 1 has once and version 2 in lists. */
static td_status read_version_1(const json_view *v, profile *p, td_err *err)
{
    int64_t tp = 1;
    TD_TRY(json_i64(v, "tp", false, 1, INT32_MAX, &tp, err));
    (void)profile_shard_at(p, tp);
    p->n_sources = 1;
    TD_TRY(read_texts(v, &p->sources[0], err));
    TD_TRY(read_named(v, "message", &p->message[LINK_THREADS], err));
    return read_named(v, "all_reduce", &p->all_reduce[LINK_THREADS], err);
}

static td_status read_version_2(const json_view *v, profile *p, td_err *err)
{
    TD_TRY(read_list(v, "sources", PROFILE_SOURCES_MAX, p, read_source, err));
    TD_TRY(read_named(v, "product", &p->product, err));
    TD_TRY(read_copy(v, p, err));
    TD_TRY(read_list(v, "messages", LINK_COUNT, p, read_message, err));
    return read_list(v, "all_reduces", LINK_COUNT, p, read_all_reduce, err);
}

static td_status read_profile(const json_view *v, profile *p, td_err *err)
{
    int64_t version = 0, cores = 0;
    int dtype = 0;
    TD_TRY(json_i64(v, "tandem_profile", true, 1, 2, &version, err));
    TD_TRY(json_only(
        v,
        version == 1 ? "tandem_profile source date device cores dtype tp model passes contexts "
                       "optimizer norm message all_reduce contention"
                     : "tandem_profile sources cores dtype model passes contexts optimizer norm "
                       "product copy messages all_reduces contention",
        err));
    TD_TRY(version == 1 ? read_version_1(v, p, err) : read_version_2(v, p, err));
    TD_TRY(json_i64(v, "cores", false, 0, INT32_MAX, &cores, err));
    TD_TRY(read_word(v, "dtype", dtype_names, 3, &dtype, err));
    TD_TRY(read_profile_model(v, &p->model, err));
    const size_t shards = PROFILE_TP_MAX;
    TD_TRY(read_list(v, "passes", shards * PROFILE_PASSES_MAX, p, read_pass, err));
    TD_TRY(read_list(v, "contexts", shards * 3 * PASS_COUNT, p, read_context, err));
    TD_TRY(read_named(v, "optimizer", &p->optimizer, err));
    TD_TRY(read_named(v, "norm", &p->norm, err));
    TD_TRY(read_list(v, "contention", PROFILE_BUSY_MAX, p, read_busy, err));
    p->cores = (int32_t)cores;
    p->dtype = (data_type)dtype;
    return TD_OK;
}

td_status profile_parse(const char *text, size_t len, const char *file, profile *out, td_err *err)
{
    json_view v;
    TD_TRY(json_open(text, len, file, &v, err));
    *out = (profile){0};
    const td_status status = read_profile(&v, out, err);
    json_close(&v);
    return status;
}

td_status profile_read(const char *path, profile *out, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    char *text = NULL;
    size_t len = 0;
    td_status status = td_read_file(a, path, JSON_READ_MAX, &text, &len, err);
    if (status == TD_OK) status = profile_parse(text, len, path, out, err);
    td_arena_free(a);
    return status;
}
