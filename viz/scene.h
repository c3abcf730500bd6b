/* Adding to a scene; inside viz only. All fail with TD_ENOMEM. */
#ifndef VIZ_SCENE_H
#define VIZ_SCENE_H

#include "viz/viz.h"

/* Where things stand while a scene is laid out. */
typedef struct viz_layout {
    const viz_options *o;
    td_arena *a;
    viz_scene *s;
    td_err *err;
    double x0, x1;                  /* of the time axis, points */
    int64_t t0, t1;                 /* ns */
    double lane, comm, memory, gap; /* heights */
    double font;                    /* in boxes */
    double y;                       /* how far down the scene is filled */
} viz_layout;

static inline double viz_x(const viz_layout *l, int64_t ns)
{
    return l->x0 + (l->x1 - l->x0) * (double)(ns - l->t0) / (double)(l->t1 - l->t0);
}

TD_MUST_USE td_status viz_add_box(viz_layout *l, viz_box b);
TD_MUST_USE td_status viz_add_line(viz_layout *l, double x1, double y1, double x2, double y2,
                                   double width, uint32_t color, bool arrow);
/* Copies the text. */
TD_MUST_USE td_status viz_add_label(viz_layout *l, double x, double y, double size, uint32_t color,
                                    viz_anchor anchor, bool bold, const char *text);

/* One trace at l->y: lanes, messages, memory. Moves l->y. */
TD_MUST_USE td_status viz_add_lanes(viz_layout *l, const trace *t, uint32_t index);

#endif
