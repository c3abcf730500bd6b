/* psim list: the schedules, models and clusters there are. */
#include "sim/psim.h"

static void list_json(td_text *out)
{
    td_text_add(out, "{\"schema\":1,\"schedules\":[");
    for (size_t i = 0; i < sched_family_count(); i++) {
        const sched_family *const f = sched_family_at(i);
        td_text_add(out, i > 0 ? ",{\"name\":" : "{\"name\":");
        td_text_json(out, f->name);
        td_text_add(out, ",\"summary\":");
        td_text_json(out, f->summary);
        td_text_add(out, ",\"constraints\":");
        td_text_json(out, f->constraints == NULL ? "" : f->constraints);
        td_text_add(out, ",\"options\":[");
        for (const sched_option *p = f->options; p != NULL && p->key != NULL; p++) {
            td_text_add(out, p > f->options ? ",{\"key\":" : "{\"key\":");
            td_text_json(out, p->key);
            td_text_add(out, ",\"values\":");
            td_text_json(out, p->values);
            td_text_add(out, ",\"help\":");
            td_text_json(out, p->help);
            td_text_add(out, "}");
        }
        td_text_add(out, "]}");
    }
    td_text_add(out, "]");
    size_t n = 0;
    const char *const *names = model_preset_names(&n);
    td_text_add(out, ",\"models\":[");
    for (size_t i = 0; i < n; i++) {
        td_text_add(out, i > 0 ? "," : "");
        td_text_json(out, names[i]);
    }
    names = cluster_preset_names(&n);
    td_text_add(out, "],\"clusters\":[");
    for (size_t i = 0; i < n; i++) {
        td_text_add(out, i > 0 ? "," : "");
        td_text_json(out, names[i]);
    }
    td_text_add(out, "]}\n");
}

static void list_names(td_text *out, const char *title, const char *const *names, size_t n)
{
    td_text_addf(out, "\n%s:", title);
    size_t column = 80;
    for (size_t i = 0; i < n; i++) {
        td_text word = {0};
        td_text_addf(&word, " %s", names[i]);
        if (column + word.len > 78) {
            td_text_add(out, "\n ");
            column = 1;
        }
        td_text_add(out, word.s == NULL ? "" : word.s);
        column += word.len;
        td_text_free(&word);
    }
    td_text_add(out, "\n");
}

static void list_text(td_text *out)
{
    td_text_add(out, "schedules:\n");
    for (size_t i = 0; i < sched_family_count(); i++) {
        const sched_family *const f = sched_family_at(i);
        td_text_addf(out, "  %-18s %s\n", f->name, f->summary);
        if (f->constraints != NULL && f->constraints[0] != '\0')
            td_text_addf(out, "  %-18s   takes %s\n", "", f->constraints);
        for (const sched_option *p = f->options; p != NULL && p->key != NULL; p++)
            td_text_addf(out, "  %-18s   --opt %s=%s  %s\n", "", p->key, p->values, p->help);
    }
    size_t n = 0;
    const char *const *names = model_preset_names(&n);
    list_names(out, "models", names, n);
    names = cluster_preset_names(&n);
    list_names(out, "clusters (NAME:N for N nodes)", names, n);
}

td_status cmd_list(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    (void)a;
    (void)args;
    const psim_options *const o = options;
    td_text out = {0};
    if (o->json)
        list_json(&out);
    else
        list_text(&out);
    return psim_print(&out, err);
}
