/* Figures as files, by extension; tooltips; the table of boxes. */
#include "viz/viz.h"

#include "base/text.h"
#if TD_HAVE_CAIRO
#include "viz/cairo_out.h"
#endif

#include <string.h>
#include <strings.h>

/* --- tooltips --- */

static void add_pass(const viz_scene *s, const trace *t, uint8_t kind, int32_t microbatch,
                     uint16_t slice, td_text *out)
{
    td_text_add(out, trace_kind_name(kind));
    if (microbatch >= 0) td_text_addf(out, " %d", microbatch + s->index_base);
    if (microbatch >= 0 && t->n_slices > 1) td_text_addf(out, ".%d", slice + s->index_base);
}

void viz_tip(const viz_scene *s, const viz_box *b, td_text *out)
{
    const trace *const t = &s->traces[b->trace];
    const trace_record *const r = &t->records[b->record];
    if (r->kind == TASK_PAIR) {
        add_pass(s, t, r->detail, r->microbatch, r->slice, out);
        td_text_add(out, " + ");
        add_pass(s, t, r->kind2, r->microbatch2, r->slice2, out);
    } else {
        add_pass(s, t, r->kind, r->microbatch, r->slice, out);
        if (r->kind == TASK_SEND) td_text_addf(out, " %s", trace_class_name(r->detail));
        if (r->kind == TASK_COLL) td_text_addf(out, " %s", trace_purpose_name(r->detail));
    }
    char from[40], to[40];
    (void)td_print_ns(from, sizeof from, r->begin_ns);
    (void)td_print_ns(to, sizeof to, r->end_ns);
    td_text_addf(out, ", rank %u", t->streams[r->stream].rank + (uint32_t)s->index_base);
    if (r->peer >= 0) td_text_addf(out, " to %d", r->peer + s->index_base);
    if (r->stage >= 0) td_text_addf(out, ", stage %d", r->stage);
    if (r->pipe >= 0 && t->n_pipes > 1) td_text_addf(out, ", pipe %d", r->pipe);
    td_text_addf(out, ", %s to %s", from, to);
}

/* --- table --- */

static void csv_row(uint32_t rank, const trace_record *r, uint8_t kind, int32_t stage, int32_t mb,
                    uint16_t slice, int32_t pipe, td_text *out)
{
    td_text_addf(out, "%u,%d,%s,%d,%d,%d,%lld,%lld\n", rank, stage, trace_kind_name(kind), mb,
                 slice, pipe, (long long)r->begin_ns, (long long)r->end_ns);
}

void viz_csv(const trace *t, td_text *out)
{
    td_text_add(out, "rank,stage,pass,mb,slice,pipe,start_ns,end_ns\n");
    for (uint32_t s = 0; s < t->n_streams; s++) {
        const trace_stream *const stream = &t->streams[s];
        if (stream->kind != STREAM_COMPUTE) continue;
        for (uint32_t i = 0; i < stream->n; i++) {
            const trace_record *const r = &t->records[stream->first + i];
            if (r->kind == TASK_MARK) continue;
            const uint8_t kind = r->kind == TASK_PAIR ? r->detail : r->kind;
            csv_row(stream->rank, r, kind, r->stage, r->microbatch, r->slice, r->pipe, out);
            if (r->kind == TASK_PAIR)
                csv_row(stream->rank, r, r->kind2, r->stage2, r->microbatch2, r->slice2, r->pipe2,
                        out);
        }
    }
}

/* --- files --- */

static const char *extension(const char *path)
{
    const char *const slash = strrchr(path, '/');
    const char *const dot = strrchr(slash != NULL ? slash + 1 : path, '.');
    return dot != NULL ? dot + 1 : "";
}

static td_status finish(td_status st, td_text *t, const char *path, td_err *err)
{
    if (st == TD_OK && (t->failed || t->s == NULL))
        st = td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    if (st == TD_OK) st = td_write_file(path, t->s, t->len, err);
    td_text_free(t);
    return st;
}

/* Refuses a name whose extension says nothing that can be written. */
static td_status check_name(const char *path, bool table, td_err *err)
{
    const char *const e = extension(path);
    if (strcasecmp(e, "svg") == 0 || (table && strcasecmp(e, "csv") == 0)) return TD_OK;
    if (strcasecmp(e, "png") == 0 || strcasecmp(e, "pdf") == 0) {
#if TD_HAVE_CAIRO
        return TD_OK;
#else
        return td_fail(err, TD_EUSAGE, "%s: this build has no cairo and cannot write .%s; use .svg",
                       path, e);
#endif
    }
    if (strcasecmp(e, "html") == 0)
        return td_fail(err, TD_EUSAGE,
                       "%s: HTML figures are not there yet; use .svg, which has tooltips", path);
    return td_fail(err, TD_EUSAGE,
                   "%s: no figure has the extension \"%s\"; use .svg, .png, .pdf or .csv", path, e);
}

td_status viz_write(const viz_scene *s, const char *path, td_err *err)
{
    TD_TRY(check_name(path, false, err));
    td_text t = {0};
    td_status st = TD_OK;
    const char *const e = extension(path);
    if (strcasecmp(e, "svg") == 0) viz_svg(s, &t);
#if TD_HAVE_CAIRO
    else if (strcasecmp(e, "png") == 0)
        st = viz_png(s, &t, err);
    else
        st = viz_pdf(s, &t, err);
#endif
    return finish(st, &t, path, err);
}

td_status viz_draw(const trace *traces, int n, const viz_options *o, const char *path, td_err *err)
{
    TD_TRY(check_name(path, true, err));
    if (strcasecmp(extension(path), "csv") == 0) {
        if (n != 1)
            return td_fail(err, TD_EUSAGE, "%s: a table holds one trace; %d were given", path, n);
        td_text t = {0};
        viz_csv(&traces[0], &t);
        return finish(TD_OK, &t, path, err);
    }
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
    viz_scene scene;
    td_status st = viz_scene_build(traces, n, o, a, &scene, err);
    if (st == TD_OK) st = viz_write(&scene, path, err);
    td_arena_free(a);
    return st;
}
