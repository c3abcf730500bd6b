/* The SVG writer: text stays text, a box has its tooltip as <title>, order is drawing order, the
 * same scene gives the same bytes. Numbers are in hundredths of a point. */
#include "viz/viz.h"

#include <math.h>
#include <string.h>

/* A tooltip costs 65 bytes, so the boxes of 32 ranks and 512 microbatches take 4 MB with theirs;
 * figures of many more have none, so that a browser still opens them. */
enum { MAX_TIPS = 60000 };

static void add_number(td_text *t, double v)
{
    char digits[32];
    size_t at = sizeof digits;
    const long long scaled = llround(v * 100.0);
    unsigned long long u =
        scaled < 0 ? 0ULL - (unsigned long long)scaled : (unsigned long long)scaled;
    int decimals = 2;
    while (decimals > 0 && u % 10 == 0) {
        u /= 10;
        decimals--;
    }
    const bool fraction = decimals > 0;
    for (; decimals > 0; decimals--) {
        digits[--at] = (char)('0' + u % 10);
        u /= 10;
    }
    if (fraction) digits[--at] = '.';
    if (u > 0 || !fraction) do {
            digits[--at] = (char)('0' + u % 10);
            u /= 10;
        } while (u > 0);
    if (scaled < 0) digits[--at] = '-';
    td_text_addn(t, digits + at, sizeof digits - at);
}

static void add_attr(td_text *t, const char *name, double v)
{
    td_text_add(t, " ");
    td_text_add(t, name);
    td_text_add(t, "=\"");
    add_number(t, v);
    td_text_add(t, "\"");
}

static void add_boxes(const viz_scene *s, td_text *t)
{
    const bool tips = s->n_boxes <= MAX_TIPS;
    static const char *const classes[] = {"", " class=\"b\"", " class=\"h\""};
    bool open = false;
    for (size_t i = 0; i < s->n_boxes; i++) {
        const viz_box *const b = &s->boxes[i];
        /* neighbours that look alike share a group, which keeps the file small */
        if (!open || b->fill != b[-1].fill || b->border != b[-1].border) {
            if (open) td_text_add(t, "</g>\n");
            td_text_addf(t, "<g fill=\"#%06x\"%s>", b->fill, classes[b->border]);
            open = true;
        }
        td_text_add(t, "<rect");
        add_attr(t, "x", (double)b->x);
        add_attr(t, "y", (double)b->y);
        add_attr(t, "width", (double)b->w);
        add_attr(t, "height", (double)b->h);
        if (tips && b->record != UINT32_MAX) {
            td_text tip = {0};
            td_text_add(t, "><title>");
            viz_tip(s, b, &tip);
            if (tip.s != NULL) td_text_xml(t, tip.s);
            td_text_free(&tip);
            td_text_add(t, "</title></rect>");
        } else {
            td_text_add(t, "/>");
        }
    }
    if (open) td_text_add(t, "</g>\n");
}

static void add_areas(const viz_scene *s, td_text *t)
{
    for (size_t i = 0; i < s->n_areas; i++) {
        const viz_area *const a = &s->areas[i];
        td_text_addf(t, "<polygon fill=\"#%06x\" points=\"", a->fill);
        for (uint32_t k = 0; k < a->n; k++) {
            if (k > 0) td_text_add(t, " ");
            add_number(t, (double)s->points[a->first + k].x);
            td_text_add(t, ",");
            add_number(t, (double)s->points[a->first + k].y);
        }
        td_text_add(t, "\"/>\n");
    }
}

static void add_lines(const viz_scene *s, td_text *t)
{
    for (size_t i = 0; i < s->n_lines; i++) {
        const viz_line *const l = &s->lines[i];
        td_text_add(t, "<line");
        add_attr(t, "x1", (double)l->x1);
        add_attr(t, "y1", (double)l->y1);
        add_attr(t, "x2", (double)l->x2);
        add_attr(t, "y2", (double)l->y2);
        td_text_addf(t, " stroke=\"#%06x\"", l->color);
        add_attr(t, "stroke-width", (double)l->width);
        td_text_add(t, l->arrow ? " marker-end=\"url(#a)\"/>\n" : "/>\n");
    }
}

static void add_labels(const viz_scene *s, td_text *t)
{
    static const char *const anchors[] = {"", " text-anchor=\"middle\"", " text-anchor=\"end\""};
    bool open = false;
    for (size_t i = 0; i < s->n_labels; i++) {
        const viz_label *const l = &s->labels[i];
        const viz_label *const before = i > 0 ? l - 1 : NULL;
        if (before == NULL || before->size != l->size || before->color != l->color ||
            before->anchor != l->anchor || before->bold != l->bold) {
            if (open) td_text_add(t, "</g>\n");
            td_text_addf(t, "<g fill=\"#%06x\"", l->color);
            add_attr(t, "font-size", (double)l->size);
            td_text_addf(t, "%s%s>", anchors[l->anchor], l->bold ? " font-weight=\"bold\"" : "");
            open = true;
        }
        td_text_add(t, "<text");
        if (l->turned) {
            td_text_add(t, " transform=\"translate(");
            add_number(t, (double)l->x);
            td_text_add(t, ",");
            add_number(t, (double)l->y);
            td_text_add(t, ") rotate(-90)\"");
        } else {
            add_attr(t, "x", (double)l->x);
            add_attr(t, "y", (double)l->y);
        }
        td_text_add(t, ">");
        td_text_xml(t, l->s);
        td_text_add(t, "</text>");
    }
    if (open) td_text_add(t, "</g>\n");
}

void viz_svg(const viz_scene *s, td_text *out)
{
    td_text_add(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"");
    add_number(out, (double)s->width);
    td_text_add(out, "pt\" height=\"");
    add_number(out, (double)s->height);
    td_text_add(out, "pt\" viewBox=\"0 0 ");
    add_number(out, (double)s->width);
    td_text_add(out, " ");
    add_number(out, (double)s->height);
    td_text_add(out, "\" font-family=\"Helvetica,Arial,DejaVu Sans,sans-serif\">\n"
                     "<style>.b{stroke:#222;stroke-width:.35}"
                     ".h{stroke:#222;stroke-width:.12}.m{pointer-events:none}</style>\n"
                     "<defs><marker id=\"a\" viewBox=\"0 0 6 6\" refX=\"6\" refY=\"3\" "
                     "markerWidth=\"3\" markerHeight=\"3\" markerUnits=\"userSpaceOnUse\" "
                     "orient=\"auto\"><path d=\"M0 0 6 3 0 6z\" fill=\"#333\"/></marker></defs>\n"
                     "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n");
    add_boxes(s, out);
    /* the pointer goes through what lies on the boxes, so that their tooltips show */
    td_text_add(out, "<g class=\"m\">\n");
    add_areas(s, out);
    add_lines(s, out);
    add_labels(s, out);
    td_text_add(out, "</g>\n</svg>\n");
}
