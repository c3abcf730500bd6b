/* psim calibrate: a profile fitted to the samples of a bench. */
#include "sim/psim.h"

#ifdef TD_HAVE_CALIBRATE

#include "base/text.h"
#include "costmodel/calibrate.h"

#include <string.h>

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

/* Whether a file is a profile, which begins with a brace. */
static bool is_profile(const char *text) { return text[strspn(text, " \t\r\n")] == '{'; }

/* What the operands are. */
typedef struct inputs {
    samples all;
    profile_source sources[PROFILE_SOURCES_MAX];
    int32_t n_sources; /* of the samples */
    const char *profiles[PROFILE_SOURCES_MAX];
    size_t n_profiles;
} inputs;

static td_status read_input(inputs *in, const char *path, td_arena *a, td_err *err)
{
    char *text = NULL;
    size_t len = 0;
    samples s;
    TD_TRY(td_read_file(a, path, (size_t)64 << 20, &text, &len, err));
    if (is_profile(text)) {
        in->profiles[in->n_profiles++] = path;
        return TD_OK;
    }
    TD_TRY(samples_parse(text, len, path, a, &s, err));
    if (s.n == 0)
        return td_fail(err, TD_EPARSE, "%s: holds no samples; was it cut? run pexec bench", path);
    calibrate_source(&s, &in->sources[in->n_sources++]);
    if (samples_merge(&in->all, &s, err) != TD_OK) return td_wrap(err, "%s", path);
    return TD_OK;
}

static td_status calibrate(inputs *in, const cli_args *args, td_arena *a, profile *out,
                           td_text *report, td_err *err)
{
    in->all = samples_new(a);
    for (int i = 0; i < args->n_operands; i++) TD_TRY(read_input(in, args->operands[i], a, err));
    if (in->n_sources > 0 || in->n_profiles == 0) TD_TRY(calibrate_fit(&in->all, out, report, err));
    memcpy(out->sources, in->sources, sizeof in->sources);
    out->n_sources = in->n_sources;
    profile *const one = TD_NEW(a, profile);
    if (one == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the profile");
    for (size_t i = 0; i < in->n_profiles; i++) {
        TD_TRY(profile_read(in->profiles[i], one, err));
        if (i == 0 && in->n_sources == 0)
            *out = *one;
        else if (profile_merge(out, one, report, err) != TD_OK)
            return td_wrap(err, "%s", in->profiles[i]);
    }
    return TD_OK;
}

td_status cmd_calibrate(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    profile *const fitted = TD_NEW(a, profile);
    inputs *const in = TD_NEW(a, inputs);
    TD_TRY(cli_check_outputs(args, err));
    if (fitted == NULL || in == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the profile");
    td_text report = {0};
    td_status st = calibrate(in, args, a, fitted, &report, err);
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
