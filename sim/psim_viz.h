/* Pictures for the verbs of psim. */
#ifndef SIM_PSIM_VIZ_H
#define SIM_PSIM_VIZ_H

#include "sim/psim.h"

/* Draws n traces under each other into a file. */
TD_MUST_USE td_status psim_draw(const psim_options *o, const trace *traces, size_t n,
                                const char *path, td_err *err);
/* The timeline for a terminal. */
void psim_timeline(const trace *t, int width, td_text *out);

#endif
