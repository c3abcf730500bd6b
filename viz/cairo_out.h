/* PNG and PDF through cairo; inside viz only. */
#ifndef VIZ_CAIRO_OUT_H
#define VIZ_CAIRO_OUT_H

#include "viz/viz.h"

/* Both append the whole file to out. */
TD_MUST_USE td_status viz_png(const viz_scene *s, td_text *out, td_err *err);
TD_MUST_USE td_status viz_pdf(const viz_scene *s, td_text *out, td_err *err);

#endif
