/* Writing profiles as JSON text. */
#include "costmodel/profile.h"

#include <inttypes.h>
#include <math.h>

static const char *const recompute_names[] = {"none", "selective", "full"};

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
    td_text_addf(out, "\"samples\":%" PRId32 ",\"relative_error\":%.17g,\"spread\":%.17g,\"ns\":[",
                 f->n, f->error, f->spread);
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
    td_text_add(out, "{\n\"tandem_profile\":2,\n\"sources\":[");
    for (int32_t i = 0; i < p->n_sources; i++) {
        const profile_source *const s = &p->sources[i];
        td_text_add(out, i > 0 ? ",\n {\"source\":" : "\n {\"source\":");
        td_text_json(out, s->source);
        td_text_add(out, ",\"date\":");
        td_text_json(out, s->date);
        td_text_add(out, ",\"device\":");
        td_text_json(out, s->device);
        td_text_addf(out, ",\"samples\":%" PRId32 "}", s->samples);
    }
    td_text_addf(out, "\n],\n\"cores\":%" PRId32 ",\n\"dtype\":\"%s\"", p->cores,
                 data_type_name(p->dtype));
    td_text_add(out, ",\n\"model\":{\"name\":");
    td_text_json(out, p->model.name);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        td_text_addf(out, ",\"%s\":%" PRId64, numbers[i].key, numbers[i].value);
    td_text_addf(out, ",\"causal\":%s}", p->model.causal ? "true" : "false");
}

static void print_curve(td_text *out, const profile_curve *c)
{
    if (c->n == 0) return;
    td_text_add(out, "\"points\":[");
    for (int32_t i = 0; i < c->n; i++)
        td_text_addf(out, "%s[%.17g,%.17g]", i > 0 ? "," : "", c->x[i], c->ns[i]);
    td_text_add(out, "],");
}

static void print_named(td_text *out, const char *name, const profile_fit *f,
                        const profile_curve *curve)
{
    if (f->n == 0) return;
    td_text_addf(out, ",\n\"%s\":{", name);
    if (curve != NULL) print_curve(out, curve);
    print_fit(out, f);
}

static void print_by_link(td_text *out, const char *name, const profile_fit f[LINK_COUNT],
                          const profile_curve curve[LINK_COUNT])
{
    const char *before = "";
    for (int i = 0; i < LINK_COUNT; i++) {
        if (f[i].n == 0) continue;
        if (before[0] == '\0') td_text_addf(out, ",\n\"%s\":[\n", name);
        td_text_addf(out, "%s {\"link\":\"%s\",", before, sample_link_name((sample_link)i));
        print_curve(out, &curve[i]);
        print_fit(out, &f[i]);
        before = ",\n";
    }
    if (before[0] != '\0') td_text_add(out, "\n]");
}

static void print_contexts(const profile *p, td_text *out)
{
    const char *comma = "\n";
    td_text_add(out, ",\n\"contexts\":[");
    for (int32_t s = 0; s < p->n_shards; s++)
        for (int r = 0; r < 3; r++)
            for (int k = 0; k < PASS_COUNT; k++) {
                const profile_context_fit *const f = &p->shard[s].context[r][k];
                if (f->n == 0) continue;
                td_text_addf(out,
                             "%s {\"pass\":\"%c\",\"tp\":%" PRId64 ",\"recompute\":\"%s\","
                             "\"samples\":%" PRId32 ",\"relative_error\":%.17g,\"ns\":[",
                             comma, pass_letter((pass_kind)k), p->shard[s].tp, recompute_names[r],
                             f->n, f->error);
                for (int i = 0; i < CONTEXT_TERMS; i++) {
                    if (i > 0) td_text_add(out, ",");
                    print_estimate(out, &f->c[i]);
                }
                td_text_add(out, "]}");
                comma = ",\n";
            }
    td_text_add(out, "\n]");
}

static void print_passes(const profile *p, td_text *out)
{
    const char *comma = "\n";
    td_text_add(out, ",\n\"passes\":[");
    for (int32_t s = 0; s < p->n_shards; s++)
        for (int r = 0; r < 3; r++)
            for (int k = 0; k < PASS_COUNT; k++)
                for (int part = 0; part < PART_COUNT; part++) {
                    const profile_fit *const f = &p->shard[s].pass[r][k][part];
                    if (f->n == 0) continue;
                    td_text_addf(out,
                                 "%s {\"pass\":\"%c\",\"part\":\"%s\",\"tp\":%" PRId64
                                 ",\"recompute\":\"%s\",",
                                 comma, pass_letter((pass_kind)k),
                                 stage_part_name((stage_part)part), p->shard[s].tp,
                                 recompute_names[r]);
                    print_fit(out, f);
                    comma = ",\n";
                }
    td_text_add(out, "\n]");
}

void profile_print(const profile *p, td_text *out)
{
    print_head(p, out);
    print_passes(p, out);
    print_contexts(p, out);
    print_named(out, "optimizer", &p->optimizer, NULL);
    print_named(out, "norm", &p->norm, NULL);
    print_named(out, "product", &p->product, NULL);
    print_named(out, "copy", &p->copy, &p->copy_curve);
    print_by_link(out, "messages", p->message, p->message_curve);
    print_by_link(out, "all_reduces", p->all_reduce, p->all_reduce_curve);
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
