/* psim run: simulate, and say what came out. */
#include "base/text.h"
#include "sim/psim.h"
#include "sim/psim_viz.h"

#include <stdio.h>
#include <unistd.h>

static td_status make_trace(td_arena *a, const psim_options *o, const psim_result *r, trace *t,
                            td_err *err)
{
    if (o->periods > 1) /* memory is that of each period */
        return trace_build(&r->several, &r->several_times, false, r->meta, r->n_meta, a, t, err);
    return trace_build(&r->setup.plan, &r->times, true, r->meta, r->n_meta, a, t, err);
}

/* Files first: when one of them fails, nothing has been said. */
static td_status write_files(const psim_options *o, const trace *t, td_err *err)
{
    if (o->trace != NULL) TD_TRY(trace_write(t, o->trace, err));
    if (o->output != NULL) TD_TRY(psim_draw(o, t, 1, o->output, err));
    return TD_OK;
}

enum { TIMELINE_RANKS_MAX = 64, TIMELINE_TASKS_MAX = 2000000 };

td_status cmd_run_sim(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    static const char *const of_noise[] = {"runs", "spread"};
    const psim_options *const o = options;
    psim_result *const r = TD_NEW(a, psim_result);
    TD_TRY(cli_check_outputs(args, err));
    if (r == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (size_t i = 0; i < 2 && !o->noise; i++)
        if (cli_given(args, of_noise[i]))
            return td_fail(err, TD_EUSAGE, "--%s: says how --noise is drawn; add --noise",
                           of_noise[i]);
    TD_TRY(psim_simulate(a, args, o, r, err));
    const plan *const p = &r->setup.plan;
    const bool timeline = !o->json && !o->quiet && !o->no_timeline &&
                          p->n_ranks <= TIMELINE_RANKS_MAX && p->n_tasks <= TIMELINE_TASKS_MAX;
    trace t = {0};
    if (timeline || o->trace != NULL || o->output != NULL) {
        TD_TRY(make_trace(a, o, r, &t, err));
        TD_TRY(write_files(o, &t, err));
    }
    td_text out = {0};
    if (o->json) {
        psim_report_json(o, r, &out);
        return psim_print(&out, err);
    }
    psim_report_text(o, r, &out);
    td_text_add(&out, "\n");
    if (timeline) psim_timeline(&t, cli_width(STDOUT_FILENO), &out);
    if (!o->quiet) psim_report_advice(o, r, &out);
    return psim_print(&out, err);
}
