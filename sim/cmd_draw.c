/* psim draw: traces under each other on one time axis. */
#include "sim/psim.h"
#include "sim/psim_viz.h"
#include "viz/viz.h"

td_status psim_draw(const psim_options *o, const trace *traces, size_t n, const char *path,
                    td_err *err)
{
    viz_options v = viz_default_options();
    v.style = (viz_style)o->style;
    v.index_base = o->index;
    v.label_stage = o->label == 1;
    v.comm = o->comms;
    v.memory = o->memory;
    v.title = o->title;
    if (o->width != NULL) TD_TRY(viz_width_parse(o->width, &v.width_in, err));
    return viz_draw(traces, (int)n, &v, path, err);
}

void psim_timeline(const trace *t, int width, td_text *out)
{
    viz_terminal(t, width, cli_utf8(), out);
}

td_status cmd_draw(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    TD_TRY(cli_check_outputs(args, err));
    if (o->output == NULL)
        return td_fail(err, TD_EUSAGE, "-o is missing: where does the figure go? -o timeline.svg");
    const size_t n = (size_t)args->n_operands;
    trace *const traces = TD_NEW_N(a, trace, n);
    if (traces == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) TD_TRY(trace_read(args->operands[i], a, &traces[i], err));
    return psim_draw(o, traces, n, o->output, err);
}
