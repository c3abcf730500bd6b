/* PNG and PDF through cairo. Equal scenes give equal bytes: the PDF's date is SOURCE_DATE_EPOCH or
 * the start of 2000, never now. */
#include "viz/cairo_out.h"

#include <cairo-pdf.h>
#include <cairo.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

static const double png_dpi = 200.0;

static cairo_status_t add_bytes(void *ctx, const unsigned char *bytes, unsigned n)
{
    td_text *const t = ctx;
    td_text_addn(t, (const char *)bytes, n);
    return t->failed ? CAIRO_STATUS_WRITE_ERROR : CAIRO_STATUS_SUCCESS;
}

static void set_color(cairo_t *c, uint32_t color)
{
    cairo_set_source_rgb(c, (color >> 16 & 255u) / 255.0, (color >> 8 & 255u) / 255.0,
                         (color & 255u) / 255.0);
}

/* Neighbours that look alike make one path: one fill for many boxes. */
static void draw_boxes(const viz_scene *s, cairo_t *c)
{
    for (size_t i = 0; i < s->n_boxes;) {
        const viz_box *const first = &s->boxes[i];
        for (; i < s->n_boxes && s->boxes[i].fill == first->fill &&
               s->boxes[i].border == first->border;
             i++) {
            const viz_box *const b = &s->boxes[i];
            cairo_rectangle(c, (double)b->x, (double)b->y, (double)b->w, (double)b->h);
        }
        set_color(c, first->fill);
        if (first->border) {
            cairo_fill_preserve(c);
            cairo_set_line_width(c, first->border == 1 ? 0.35 : 0.12);
            set_color(c, 0x222222);
            cairo_stroke(c);
        } else {
            cairo_fill(c);
        }
    }
}

static void draw_areas(const viz_scene *s, cairo_t *c)
{
    for (size_t i = 0; i < s->n_areas; i++) {
        const viz_area *const a = &s->areas[i];
        for (uint32_t k = 0; k < a->n; k++)
            cairo_line_to(c, (double)s->points[a->first + k].x, (double)s->points[a->first + k].y);
        cairo_close_path(c);
        set_color(c, a->fill);
        cairo_fill(c);
    }
}

static void draw_head(cairo_t *c, const viz_line *l)
{
    const double dx = (double)(l->x2 - l->x1), dy = (double)(l->y2 - l->y1);
    const double length = hypot(dx, dy);
    if (length <= 0.0) return;
    const double ux = 3.0 * dx / length, uy = 3.0 * dy / length;
    const double x = (double)l->x2, y = (double)l->y2;
    cairo_move_to(c, x, y);
    cairo_line_to(c, x - ux - uy / 2, y - uy + ux / 2);
    cairo_line_to(c, x - ux + uy / 2, y - uy - ux / 2);
    cairo_close_path(c);
    cairo_fill(c);
}

static void draw_lines(const viz_scene *s, cairo_t *c)
{
    for (size_t i = 0; i < s->n_lines; i++) {
        const viz_line *const l = &s->lines[i];
        set_color(c, l->color);
        cairo_set_line_width(c, (double)l->width);
        cairo_move_to(c, (double)l->x1, (double)l->y1);
        cairo_line_to(c, (double)l->x2, (double)l->y2);
        cairo_stroke(c);
        if (l->arrow) draw_head(c, l);
    }
}

static void draw_labels(const viz_scene *s, cairo_t *c)
{
    const viz_label *before = NULL;
    for (size_t i = 0; i < s->n_labels; i++) {
        const viz_label *const l = &s->labels[i];
        if (before == NULL || before->bold != l->bold)
            cairo_select_font_face(c, "Helvetica", CAIRO_FONT_SLANT_NORMAL,
                                   l->bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
        if (before == NULL || before->size != l->size || before->bold != l->bold)
            cairo_set_font_size(c, (double)l->size);
        before = l;
        set_color(c, l->color);
        double x = (double)l->x;
        if (l->anchor != VIZ_START) {
            cairo_text_extents_t e;
            cairo_text_extents(c, l->s, &e);
            x -= l->anchor == VIZ_MIDDLE ? e.x_advance / 2 : e.x_advance;
        }
        if (!l->turned) {
            cairo_move_to(c, x, (double)l->y);
            cairo_show_text(c, l->s);
            continue;
        }
        cairo_save(c);
        cairo_translate(c, (double)l->x, (double)l->y);
        cairo_rotate(c, -acos(0.0));
        cairo_move_to(c, x - (double)l->x, 0.0);
        cairo_show_text(c, l->s);
        cairo_restore(c);
    }
}

static void draw(const viz_scene *s, cairo_t *c)
{
    cairo_font_options_t *const fonts = cairo_font_options_create();
    cairo_font_options_set_hint_style(fonts, CAIRO_HINT_STYLE_NONE);
    cairo_font_options_set_hint_metrics(fonts, CAIRO_HINT_METRICS_OFF);
    cairo_set_font_options(c, fonts);
    cairo_font_options_destroy(fonts);
    draw_boxes(s, c);
    draw_areas(s, c);
    draw_lines(s, c);
    draw_labels(s, c);
}

static td_status outcome(cairo_status_t status, const td_text *out, td_err *err)
{
    if (out->failed || status == CAIRO_STATUS_NO_MEMORY)
        return td_fail(err, TD_ENOMEM, "figure: out of memory");
    if (status == CAIRO_STATUS_SUCCESS) return TD_OK;
    return td_fail(err, TD_EDEVICE, "figure: cairo: %s", cairo_status_to_string(status));
}

td_status viz_png(const viz_scene *s, td_text *out, td_err *err)
{
    const double scale = png_dpi / 72.0;
    const double w = ceil((double)s->width * scale), h = ceil((double)s->height * scale);
    if (w > 32000.0 || h > 32000.0)
        return td_fail(err, TD_EUSAGE,
                       "figure: %.0f x %.0f pixels are more than a PNG of ours holds; use .svg or "
                       ".pdf",
                       w, h);
    cairo_surface_t *const surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)w, (int)h);
    cairo_t *const c = cairo_create(surface);
    set_color(c, 0xffffff);
    cairo_paint(c);
    cairo_scale(c, scale, scale);
    draw(s, c);
    cairo_status_t status = cairo_status(c);
    cairo_destroy(c);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_write_to_png_stream(surface, add_bytes, out);
    cairo_surface_destroy(surface);
    return outcome(status, out, err);
}

static void set_date(cairo_surface_t *surface)
{
    const char *const epoch = getenv("SOURCE_DATE_EPOCH");
    char *end = NULL;
    long long seconds = epoch != NULL ? strtoll(epoch, &end, 10) : 0;
    if (epoch == NULL || *epoch == '\0' || *end != '\0' || seconds < 0 || seconds > 253402300799)
        seconds = 946684800;
    const time_t when = (time_t)seconds;
    struct tm parts;
    char text[40];
    if (gmtime_r(&when, &parts) == NULL ||
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
        return;
    cairo_pdf_surface_set_metadata(surface, CAIRO_PDF_METADATA_CREATE_DATE, text);
    cairo_pdf_surface_set_metadata(surface, CAIRO_PDF_METADATA_MOD_DATE, text);
}

td_status viz_pdf(const viz_scene *s, td_text *out, td_err *err)
{
    cairo_surface_t *const surface =
        cairo_pdf_surface_create_for_stream(add_bytes, out, (double)s->width, (double)s->height);
    set_date(surface);
    cairo_t *const c = cairo_create(surface);
    draw(s, c);
    cairo_show_page(c);
    cairo_status_t status = cairo_status(c);
    cairo_destroy(c);
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface);
    cairo_surface_destroy(surface);
    return outcome(status, out, err);
}
