/* Profiles as JSON text. */
#include "costmodel/profile.h"

#include "costmodel/json_read.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *const recompute_names[] = {"none", "selective", "full"};
static const char *const dtype_names[] = {"fp32", "bf16", "fp16"};
static const double big = 1e30;

/* --- print --- */

static void print_estimate(td_text *out, const estimate *e)
{
    td_text_addf(out, "[%.17g,", e->value);
    if (isfinite(e->half))
        td_text_addf(out, "%.17g]", e->half);
    else
        td_text_add(out, "null]");
}

static void print_fit(td_text *out, const profile_fit *f)
{
    td_text_addf(out, "\"samples\":%" PRId32 ",\"relative_error\":%.17g,\"ns\":[", f->n, f->error);
    for (int i = 0; i < PROFILE_TERMS; i++) {
        if (i > 0) td_text_add(out, ",");
        print_estimate(out, &f->c[i]);
    }
    td_text_add(out, "]}");
}

static void print_head(const profile *p, td_text *out)
{
    const struct {
        const char *key;
        int64_t value;
    } numbers[] = {
        {"layers", p->model.n_layers},   {"hidden", p->model.hidden},
        {"heads", p->model.n_heads},     {"kv_heads", p->model.n_kv_heads},
        {"head_dim", p->model.head_dim}, {"ffn", p->model.ffn},
        {"vocab", p->model.vocab},
    };
    td_text_add(out, "{\n\"tandem_profile\":1,\n\"source\":");
    td_text_json(out, p->source);
    td_text_add(out, ",\n\"date\":");
    td_text_json(out, p->date);
    td_text_add(out, ",\n\"device\":");
    td_text_json(out, p->device);
    td_text_addf(out, ",\n\"cores\":%" PRId32 ",\n\"dtype\":\"%s\",\n\"tp\":%" PRId64, p->cores,
                 dtype_names[p->dtype], p->tp);
    td_text_add(out, ",\n\"model\":{\"name\":");
    td_text_json(out, p->model.name);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        td_text_addf(out, ",\"%s\":%" PRId64, numbers[i].key, numbers[i].value);
    td_text_addf(out, ",\"causal\":%s}", p->model.causal ? "true" : "false");
}

static void print_named(td_text *out, const char *name, const profile_fit *f)
{
    if (f->n == 0) return;
    td_text_addf(out, ",\n\"%s\":{", name);
    print_fit(out, f);
}

static void print_contexts(const profile *p, td_text *out)
{
    const char *comma = ",\n\"contexts\":[\n";
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++) {
            const profile_context_fit *const f = &p->context[r][k];
            if (f->n == 0) continue;
            td_text_addf(out,
                         "%s {\"pass\":\"%c\",\"recompute\":\"%s\",\"samples\":%" PRId32
                         ",\"relative_error\":%.17g,\"ns\":[",
                         comma, pass_letter((pass_kind)k), recompute_names[r], f->n, f->error);
            for (int i = 0; i < CONTEXT_TERMS; i++) {
                if (i > 0) td_text_add(out, ",");
                print_estimate(out, &f->c[i]);
            }
            td_text_add(out, "]}");
            comma = ",\n";
        }
    if (comma[2] == '\0') td_text_add(out, "\n]");
}

void profile_print(const profile *p, td_text *out)
{
    print_head(p, out);
    td_text_add(out, ",\n\"passes\":[");
    const char *comma = "\n";
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < PASS_COUNT; k++)
            for (int part = 0; part < PART_COUNT; part++) {
                const profile_fit *const f = &p->pass[r][k][part];
                if (f->n == 0) continue;
                td_text_addf(out, "%s {\"pass\":\"%c\",\"part\":\"%s\",\"recompute\":\"%s\",",
                             comma, pass_letter((pass_kind)k), stage_part_name((stage_part)part),
                             recompute_names[r]);
                print_fit(out, f);
                comma = ",\n";
            }
    td_text_add(out, "\n]");
    print_contexts(p, out);
    print_named(out, "optimizer", &p->optimizer);
    print_named(out, "norm", &p->norm);
    print_named(out, "message", &p->message);
    print_named(out, "all_reduce", &p->all_reduce);
    td_text_add(out, ",\n\"contention\":[");
    for (int32_t i = 0; i < p->n_busy; i++) {
        td_text_addf(out, "%s {\"busy\":%" PRId32 ",\"compute\":", i > 0 ? ",\n" : "\n",
                     p->busy[i].busy);
        print_estimate(out, &p->busy[i].compute);
        td_text_add(out, ",\"memory\":");
        print_estimate(out, &p->busy[i].memory);
        td_text_add(out, "}");
    }
    td_text_add(out, "\n]\n}\n");
}

td_status profile_write(const profile *p, const char *path, td_err *err)
{
    td_text t = {0};
    profile_print(p, &t);
    const td_status status = t.failed ? td_fail(err, TD_ENOMEM, "%s: out of memory", path)
                                      : td_write_file(path, t.s, t.len, err);
    td_text_free(&t);
    return status;
}

/* --- parse --- */

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

static td_status read_pass(const json_view *v, profile *p, td_err *err)
{
    static const char *const parts[] = {"layers", "embedding", "head"};
    char letter[4] = "";
    int part = 0, recompute = 0;
    TD_TRY(json_text(v, "pass", true, letter, sizeof letter, err));
    const pass_kind kind = pass_from_letter(letter[0]);
    if (kind == PASS_COUNT || letter[1] != '\0')
        return json_fail(v, "pass", err, "'%s' is not the letter of a pass", letter);
    TD_TRY(read_word(v, "part", parts, PART_COUNT, &part, err));
    TD_TRY(read_word(v, "recompute", recompute_names, 3, &recompute, err));
    profile_fit *const f = &p->pass[recompute][kind][part];
    if (f->n > 0) return json_fail(v, "pass", err, "%s of %s twice", letter, parts[part]);
    return read_fit(v, f, err);
}

static td_status read_context(const json_view *v, profile *p, td_err *err)
{
    char letter[4] = "";
    int recompute = 0;
    int64_t n = 0;
    const json_t *const list = json_object_get(v->object, "ns");
    TD_TRY(json_text(v, "pass", true, letter, sizeof letter, err));
    const pass_kind kind = pass_from_letter(letter[0]);
    if (kind == PASS_COUNT || letter[1] != '\0')
        return json_fail(v, "pass", err, "'%s' is not the letter of a pass", letter);
    TD_TRY(read_word(v, "recompute", recompute_names, 3, &recompute, err));
    profile_context_fit *const f = &p->context[recompute][kind];
    if (f->n > 0) return json_fail(v, "pass", err, "context of %s twice", letter);
    TD_TRY(json_i64(v, "samples", true, 1, INT32_MAX, &n, err));
    TD_TRY(json_f64(v, "relative_error", false, 0, big, &f->error, err));
    if (json_array_size(list) != CONTEXT_TERMS)
        return json_fail(v, "ns", err, "wants %d pairs", CONTEXT_TERMS);
    for (int i = 0; i < CONTEXT_TERMS; i++)
        TD_TRY(read_estimate(v, "ns", json_array_get(list, (size_t)i), &f->c[i], err));
    f->n = (int32_t)n;
    return TD_OK;
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

static td_status read_profile(const json_view *v, profile *p, td_err *err)
{
    int64_t version = 0, cores = 0;
    int dtype = 0;
    TD_TRY(json_only(
        v,
        "tandem_profile source date device cores dtype tp model passes contexts optimizer "
        "norm message all_reduce contention",
        err));
    TD_TRY(json_i64(v, "tandem_profile", true, 1, 1, &version, err));
    TD_TRY(json_text(v, "source", false, p->source, sizeof p->source, err));
    TD_TRY(json_text(v, "date", false, p->date, sizeof p->date, err));
    TD_TRY(json_text(v, "device", false, p->device, sizeof p->device, err));
    TD_TRY(json_i64(v, "cores", false, 0, INT32_MAX, &cores, err));
    TD_TRY(read_word(v, "dtype", dtype_names, 3, &dtype, err));
    TD_TRY(json_i64(v, "tp", false, 1, INT32_MAX, &p->tp, err));
    TD_TRY(read_profile_model(v, &p->model, err));
    TD_TRY(read_list(v, "passes", (size_t)3 * PASS_COUNT * PART_COUNT, p, read_pass, err));
    TD_TRY(read_list(v, "contexts", (size_t)3 * PASS_COUNT, p, read_context, err));
    TD_TRY(read_named(v, "optimizer", &p->optimizer, err));
    TD_TRY(read_named(v, "norm", &p->norm, err));
    TD_TRY(read_named(v, "message", &p->message, err));
    TD_TRY(read_named(v, "all_reduce", &p->all_reduce, err));
    TD_TRY(read_list(v, "contention", PROFILE_BUSY_MAX, p, read_busy, err));
    p->cores = (int32_t)cores;
    p->dtype = (data_type)dtype;
    return TD_OK;
}

td_status profile_parse(const char *text, size_t len, const char *file, profile *out, td_err *err)
{
    json_view v;
    TD_TRY(json_open(text, len, file, &v, err));
    *out = (profile){.tp = 1};
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
