/* The frame of a figure: title, captions, time axis, legend; lanes.c fills it. */
#include "viz/scene.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

td_status viz_add_box(viz_layout *l, viz_box b)
{
    viz_scene *const s = l->s;
    TD_TRY(TD_GROW(l->a, s->boxes, s->boxes_cap, s->n_boxes + 1, l->err));
    s->boxes[s->n_boxes++] = b;
    return TD_OK;
}

td_status viz_add_line(viz_layout *l, double x1, double y1, double x2, double y2, double width,
                       uint32_t color, bool arrow)
{
    viz_scene *const s = l->s;
    TD_TRY(TD_GROW(l->a, s->lines, s->lines_cap, s->n_lines + 1, l->err));
    s->lines[s->n_lines++] =
        (viz_line){(float)x1, (float)y1, (float)x2, (float)y2, (float)width, color, arrow};
    return TD_OK;
}

td_status viz_add_label(viz_layout *l, double x, double y, double size, uint32_t color,
                        viz_anchor anchor, bool bold, const char *text)
{
    viz_scene *const s = l->s;
    TD_TRY(TD_GROW(l->a, s->labels, s->labels_cap, s->n_labels + 1, l->err));
    const char *const copy = td_strdup(l->a, text);
    if (copy == NULL) return td_fail(l->err, TD_ENOMEM, "figure: out of memory");
    s->labels[s->n_labels++] =
        (viz_label){(float)x, (float)y, (float)size, color, anchor, bold, false, copy};
    return TD_OK;
}

/* Long text is cut with "..", at the width there is. */
static td_status add_fitting(viz_layout *l, double x, double y, double size, bool bold,
                             const char *text, double room)
{
    char cut[400];
    (void)snprintf(cut, sizeof cut, "%s", text);
    size_t n = strlen(cut);
    while (n > 3 && viz_text_width(cut, size) > room) {
        n--;
        while (n > 3 && ((unsigned char)cut[n] & 0xc0u) == 0x80u) n--;
        cut[n - 2] = cut[n - 1] = '.';
        cut[n] = '\0';
    }
    return viz_add_label(l, x, y, size, 0, VIZ_START, bold, cut);
}

/* --- time axis --- */

typedef struct time_unit {
    const char *name;
    double ns;
} time_unit;

static time_unit unit_of(int64_t span)
{
    if (span >= 10000000000) return (time_unit){"s", 1e9};
    if (span >= 10000000) return (time_unit){"ms", 1e6};
    return span >= 10000 ? (time_unit){"\xc2\xb5s", 1e3} : (time_unit){"ns", 1.0};
}

/* 1, 2 or 5 times a power of ten, so that at most `most` steps fill the span. */
static double nice_step(double span, int most)
{
    double step = pow(10.0, floor(log10(span / most)));
    static const double factors[] = {1.0, 2.0, 5.0, 10.0};
    for (size_t i = 0; i < 4; i++)
        if (span / (step * factors[i]) <= most) return step * factors[i];
    return step * 10.0;
}

static td_status add_axis(viz_layout *l)
{
    const time_unit u = unit_of(l->t1 - l->t0);
    const double span = (double)(l->t1 - l->t0) / u.ns;
    int most = (int)((l->x1 - l->x0) / 32.0);
    if (most < 1) most = 1;
    const double step = nice_step(span, most);
    const double y = l->y + 1.0;
    TD_TRY(viz_add_line(l, l->x0, y, l->x1, y, 0.5, 0x333333, false));
    for (int i = 0; i * step <= span * 1.0001; i++) {
        const double x = l->x0 + (l->x1 - l->x0) * i * step / span;
        char text[40];
        (void)snprintf(text, sizeof text, "%g", i * step);
        TD_TRY(viz_add_line(l, x, y, x, y + 2.5, 0.5, 0x333333, false));
        if (x + viz_text_width(text, 6.5) / 2 <= l->x1 + 8.0)
            TD_TRY(viz_add_label(l, x, y + 9.0, 6.5, 0x333333, VIZ_MIDDLE, false, text));
    }
    char text[40];
    (void)snprintf(text, sizeof text, "time/%s", u.name);
    TD_TRY(viz_add_label(l, l->x0 - 5.0, y + 9.0, 6.5, 0x333333, VIZ_END, false, text));
    l->y = y + 12.0;
    return TD_OK;
}

/* --- legend --- */

typedef struct legend_seen {
    bool kind[TASK_KIND_COUNT], chunks, comm;
    const trace *of[TASK_KIND_COUNT];
} legend_seen;

static void look(const trace *t, bool comm, legend_seen *seen)
{
    for (uint64_t i = 0; i < t->n_records; i++) {
        const trace_record *const r = &t->records[i];
        const bool message = r->kind == TASK_SEND || r->kind == TASK_RECV || r->kind == TASK_COLL;
        if (r->end_ns <= r->begin_ns || r->kind == TASK_MARK || (message && !comm)) continue;
        seen->kind[r->kind] = true;
        if (r->kind == TASK_PAIR) {
            seen->kind[r->detail] = true;
            seen->kind[r->kind2] = true;
        }
    }
    if (t->chunks > 1) seen->chunks = true;
}

static td_status legend_item(viz_layout *l, double *x, const uint32_t *fills, int n,
                             const char *text)
{
    const double size = 6.5, swatch = 6.0;
    const double need = n * swatch + 2.0 + viz_text_width(text, size) + 6.0;
    if (*x + need > l->x1 + 4.0 && *x > 4.0) {
        *x = 4.0;
        l->y += 9.5;
    }
    for (int i = 0; i < n; i++)
        TD_TRY(viz_add_box(l, (viz_box){.x = (float)(*x + i * swatch),
                                        .y = (float)(l->y + 1.0),
                                        .w = (float)swatch,
                                        .h = 6.0f,
                                        .fill = fills[i],
                                        .record = UINT32_MAX,
                                        .border = 1}));
    TD_TRY(viz_add_label(l, *x + n * swatch + 2.0, l->y + 6.5, size, 0, VIZ_START, false, text));
    *x += need;
    return TD_OK;
}

/* What the shades of pipes, or of slices, mean, by those of a forward. */
static td_status legend_shades(viz_layout *l, double *x, const trace *traces, int n, bool slices)
{
    const trace *t = &traces[0];
    for (int i = 1; i < n; i++)
        if ((slices ? traces[i].n_slices : traces[i].n_pipes) > (slices ? t->n_slices : t->n_pipes))
            t = &traces[i];
    const int32_t last = (slices ? t->n_slices : t->n_pipes) - 1,
                  base = slices ? l->o->index_base : 0;
    if (last < 1) return TD_OK;
    const uint32_t fills[2] = {
        viz_fill(l->o->style, t, PASS_F, 0, 0, 0),
        viz_fill(l->o->style, t, PASS_F, 0, slices ? 0 : last, slices ? (uint16_t)last : 0)};
    char text[40];
    (void)snprintf(text, sizeof text, "%s %d%s%d", slices ? "slices" : "pipes", base,
                   last > 1 ? " to " : ", ", last + base);
    return legend_item(l, x, fills, 2, text);
}

static td_status add_legend(viz_layout *l, const trace *traces, int n)
{
    legend_seen seen = {0};
    const trace *chunked = &traces[0];
    for (int i = 0; i < n; i++) {
        look(&traces[i], l->comm > 0.0, &seen);
        if (traces[i].chunks > chunked->chunks) chunked = &traces[i];
    }
    double x = 4.0;
    for (uint8_t k = 0; k < TASK_KIND_COUNT; k++) {
        if (!seen.kind[k] || k == TASK_PAIR || k == TASK_RECV) continue;
        const char *text = k < PASS_COUNT ? pass_name((pass_kind)k) : "step";
        if (k == TASK_SEND) text = "message";
        if (k == TASK_COLL) text = "collective";
        /* norm, optimizer and verify share a colour and one entry */
        if (k > TASK_NORM && k < TASK_KIND_COUNT && seen.kind[k - 1] && k - 1 >= TASK_NORM)
            continue;
        uint32_t fills[3];
        int tints = 1;
        fills[0] = viz_fill(l->o->style, chunked, k, 0, 0, 0);
        if (k < PASS_COUNT && chunked->chunks > 1) {
            tints = chunked->chunks < 3 ? chunked->chunks : 3;
            for (int i = 1; i < tints; i++)
                fills[i] = viz_fill(l->o->style, chunked, k,
                                    (chunked->n_stages - 1) * i / (tints - 1), 0, 0);
        }
        TD_TRY(legend_item(l, &x, fills, tints, text));
    }
    TD_TRY(legend_shades(l, &x, traces, n, false));
    TD_TRY(legend_shades(l, &x, traces, n, true));
    const uint32_t white = 0xffffff;
    TD_TRY(legend_item(l, &x, &white, 1, "idle"));
    l->y += 9.5;
    return TD_OK;
}

/* --- the figure --- */

static void choose_heights(viz_layout *l, const trace *traces, int n)
{
    uint32_t ranks = 1;
    for (int i = 0; i < n; i++)
        if (traces[i].n_ranks > ranks) ranks = traces[i].n_ranks;
    const bool wide = l->o->width_in > 4.5;
    l->lane = ranks <= 8 ? 11.0 : ranks <= 16 ? 9.0 : ranks <= 32 ? 7.0 : 4.5;
    if (wide && ranks <= 64) l->lane += ranks <= 16 ? 2.0 : 1.0;
    l->gap = l->lane >= 7.0 ? 1.0 : 0.5;
    l->comm = l->o->comm ? fmax(3.0, l->lane * 0.35) : 0.0;
    l->memory = 0.0;
    for (int i = 0; i < n; i++)
        if (l->o->memory && traces[i].n_memory > 0) l->memory = fmax(5.0, l->lane * 0.9);
    if (l->o->comm && l->lane >= 9.0) l->gap += 3.0; /* room for the heads of the arrows */
    l->font = l->lane >= 6.5 ? fmin(7.5, fmax(6.0, l->lane * 0.62)) : 0.0;
}

/* Prediction and measurement of one schedule would have the same caption. */
static bool differ_in_producer(const trace *traces, int n)
{
    const char *const first = trace_meta_get(&traces[0], "producer");
    for (int i = 1; i < n; i++) {
        const char *const other = trace_meta_get(&traces[i], "producer");
        if (first != NULL && other != NULL && strcmp(first, other) != 0) return true;
    }
    return false;
}

static td_status add_panel(viz_layout *l, const trace *t, int index, int n, bool mixed)
{
    const char *caption = trace_meta_get(t, "caption");
    if (caption == NULL) {
        caption = trace_meta_get(t, "schedule");
        const char *const slash = caption != NULL ? strrchr(caption, '/') : NULL;
        if (slash != NULL) caption = slash + 1; /* a schedule from a file */
    }
    const char *const times = trace_meta_get(t, "times");
    const char *const options = trace_meta_get(t, "options");
    const char *const producer = mixed ? trace_meta_get(t, "producer") : NULL;
    const char *how = "";
    if (producer != NULL)
        how = strncmp(producer, "psim", 4) == 0     ? ", simulated"
              : strstr(producer, "emulate") != NULL ? ", emulated"
                                                    : ", measured";
    char text[400] = "";
    if (caption != NULL || times != NULL || n > 1) {
        char letter[8] = "";
        if (n > 1) (void)snprintf(letter, sizeof letter, "(%c) ", 'a' + index % 26);
        (void)snprintf(text, sizeof text, "%s%s%s%s%s%s%s", letter, caption != NULL ? caption : "",
                       how, caption != NULL && options != NULL ? ", " : "",
                       caption != NULL && options != NULL ? options : "",
                       caption != NULL && times != NULL ? ", " : "", times != NULL ? times : "");
        TD_TRY(add_fitting(l, 4.0, l->y + 7.0, 7.0, false, text, l->x1 - 4.0));
        l->y += 10.0;
    }
    TD_TRY(viz_add_lanes(l, t, (uint32_t)index));
    l->y += 3.0;
    return TD_OK;
}

static td_status check(const trace *traces, int n, const viz_options *o, td_err *err)
{
    if (n < 1) return td_fail(err, TD_EUSAGE, "figure: there is no trace to draw");
    if (!(o->width_in >= 1.5 && o->width_in <= 100.0))
        return td_fail(err, TD_EUSAGE, "figure: a width of %g in; expected 1.5 to 100",
                       o->width_in);
    for (int i = 0; i < n; i++)
        if (traces[i].n_records == 0 || traces[i].n_ranks == 0)
            return td_fail(err, TD_EUSAGE, "figure: trace %d holds no task", i + 1);
    return TD_OK;
}

td_status viz_scene_build(const trace *traces, int n, const viz_options *o, td_arena *a,
                          viz_scene *out, td_err *err)
{
    TD_TRY(check(traces, n, o, err));
    *out = (viz_scene){.traces = traces, .index_base = o->index_base};
    viz_layout l = {.o = o, .a = a, .s = out, .err = err, .t0 = INT64_MAX, .t1 = INT64_MIN};
    l.t0 = 0;
    for (int i = 0; i < n; i++) {
        for (uint64_t k = 0; k < traces[i].n_records; k++) {
            if (traces[i].records[k].begin_ns < l.t0) l.t0 = traces[i].records[k].begin_ns;
            if (traces[i].records[k].end_ns > l.t1) l.t1 = traces[i].records[k].end_ns;
        }
    }
    if (l.t1 <= l.t0) l.t1 = l.t0 + 1;
    choose_heights(&l, traces, n);
    out->width = (float)(o->width_in * 72.0);
    l.x0 = l.memory >= 8.0 ? 41.0 : 37.0;
    l.x1 = (double)out->width - 9.0;
    l.y = 3.0;
    if (o->title != NULL && o->title[0] != '\0') {
        TD_TRY(add_fitting(&l, 4.0, l.y + 8.0, 8.5, true, o->title, l.x1 - 4.0));
        l.y += 12.0;
    }
    const bool mixed = differ_in_producer(traces, n);
    for (int i = 0; i < n; i++) TD_TRY(add_panel(&l, &traces[i], i, n, mixed));
    TD_TRY(add_axis(&l));
    if (o->legend) TD_TRY(add_legend(&l, traces, n));
    out->height = (float)(l.y + 2.0);
    return TD_OK;
}
