/* psim calibrate: a profile fitted to the samples of a bench. */
#include "sim/psim.h"

#ifdef TD_HAVE_CALIBRATE

#include "costmodel/calibrate.h"

static td_status print_fit(const psim_options *o, const profile *fitted, td_text *report,
                           td_err *err)
{
    if (o->output != NULL) TD_TRY(profile_write(fitted, o->output, err));
    if (!o->json && o->output != NULL) {
        if (o->quiet) td_text_free(report);
        return psim_print(report, err);
    }
    td_text out = {0};
    profile_print(fitted, &out);
    td_text_free(report);
    return psim_print(&out, err);
}

td_status cmd_calibrate(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    samples s;
    TD_TRY(samples_read(args->operands[0], a, &s, err));
    profile *const fitted = TD_NEW(a, profile);
    if (fitted == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the profile");
    td_text report = {0};
    td_status st = calibrate_fit(&s, fitted, &report, err);
    if (st == TD_OK) st = print_fit(o, fitted, &report, err);
    td_text_free(&report);
    return st;
}

#else

td_status cmd_calibrate(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    (void)a;
    (void)args;
    (void)options;
    return td_fail(err, TD_EDEVICE,
                   "calibrate: this psim was built without GSL; install "
                   "libgsl-dev and build again");
}

#endif
