/* Traces as pictures. A scene is plain data in points (1/72 inch, y downward); two writers draw it:
 * our own for SVG (text stays text, tooltips), cairo for PNG and PDF. */
#ifndef VIZ_VIZ_H
#define VIZ_VIZ_H

#include "schedules/trace.h"

/* Palettes: a colour-blind-safe default and those of the papers' own figures. */
#define VIZ_STYLES(X)                                                                              \
    X(VIZ_DEFAULT, "default")                                                                      \
    X(VIZ_MEGATRON, "megatron")                                                                    \
    X(VIZ_ZB, "zb")                                                                                \
    X(VIZ_DUALPIPE, "dualpipe")                                                                    \
    X(VIZ_VOCAB, "vocab")                                                                          \
    X(VIZ_SEQ1F1B, "seq1f1b")                                                                      \
    X(VIZ_TORCH, "torch")

#define X(id, name) id,
typedef enum viz_style { VIZ_STYLES(X) VIZ_STYLE_COUNT } viz_style;
#undef X

typedef struct viz_options {
    viz_style style;
    int index_base;    /* what the first microbatch is called: 0 or 1 */
    bool label_stage;  /* "stage.mb" in the boxes, not "mb" */
    double width_in;   /* inches */
    bool comm, memory; /* message lanes with arrows; memory curves */
    bool legend;
    const char *title; /* NULL: none */
} viz_options;

/* Default style, base 0, column width, legend. */
viz_options viz_default_options(void);
TD_MUST_USE td_status viz_style_parse(const char *name, viz_style *out, td_err *err);
/* "column" 3.33 in, "page" 7 in, "neurips" 5.5 in, or inches from 1.5 to 100. */
TD_MUST_USE td_status viz_width_parse(const char *text, double *inches, td_err *err);

/* One fill; a tip is the record it stands for. */
typedef struct viz_box {
    float x, y, w, h;
    uint32_t fill;          /* 0xrrggbb */
    uint32_t trace, record; /* for the tooltip; record UINT32_MAX: none */
    uint8_t border;         /* 0 none, 1 thin and dark, 2 a hairline */
} viz_box;

typedef enum viz_anchor { VIZ_START, VIZ_MIDDLE, VIZ_END } viz_anchor;
typedef struct viz_label {
    float x, y, size; /* y: baseline */
    uint32_t color;
    viz_anchor anchor;
    bool bold;
    bool turned; /* reads upwards: a quarter turn to the left about (x, y) */
    const char *s;
} viz_label;

typedef struct viz_line {
    float x1, y1, x2, y2, width;
    uint32_t color;
    bool arrow; /* a head at the second end */
} viz_line;

typedef struct viz_point {
    float x, y;
} viz_point;

/* A filled area below a curve. */
typedef struct viz_area {
    uint32_t first, n; /* points */
    uint32_t fill;
} viz_area;

/* Drawn in this order: boxes, areas, lines, labels. */
typedef struct viz_scene {
    float width, height;
    const trace *traces; /* borrowed, for tooltips */
    int index_base;
    viz_box *boxes;
    size_t n_boxes, boxes_cap;
    viz_area *areas;
    size_t n_areas, areas_cap;
    viz_point *points;
    size_t n_points, points_cap;
    viz_line *lines;
    size_t n_lines, lines_cap;
    viz_label *labels;
    size_t n_labels, labels_cap;
} viz_scene;

/* Stacks n traces on one time axis. The traces must outlive the scene. TD_EUSAGE when the width
 * leaves no room or there is nothing to draw. */
TD_MUST_USE td_status viz_scene_build(const trace *traces, int n, const viz_options *o, td_arena *a,
                                      viz_scene *out, td_err *err);

/* By extension: .svg, .png, .pdf; never leaves half a file. */
TD_MUST_USE td_status viz_write(const viz_scene *s, const char *path, td_err *err);
void viz_svg(const viz_scene *s, td_text *out);
/* rank,stage,pass,mb,slice,pipe,start_ns,end_ns: one row a pass (two for a pair). */
void viz_csv(const trace *t, td_text *out);
/* Builds and writes by extension; .csv takes one trace. */
TD_MUST_USE td_status viz_draw(const trace *traces, int n, const viz_options *o, const char *path,
                               td_err *err);

/* The compute lanes as text, one line a rank, `width` columns in all. */
void viz_terminal(const trace *t, int width, bool unicode, td_text *out);

/* Width of a text in points: conservative over Helvetica, Arial and DejaVu Sans. */
double viz_text_width(const char *s, double size);
/* "F 3.1 · rank 2 · stage 2 · 1.2-2.4 ms" of a record. */
void viz_tip(const viz_scene *s, const viz_box *b, td_text *out);

/* The fill of a record, and black or white, whichever reads better on it. */
uint32_t viz_fill(viz_style style, const trace *t, uint8_t kind, int32_t stage, int32_t pipe,
                  uint16_t slice);
uint32_t viz_ink(uint32_t fill);

#endif
