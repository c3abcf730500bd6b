/* psim schedule, check and plan: schedules and plans as text. */
#include "sim/psim.h"

enum { FORMAT_CSV, FORMAT_TORCH, FORMAT_TORCH_COMMS };

/* What is asked for, on the machine whose durations searches take. */
static td_status ask(td_arena *a, const cli_args *args, const psim_options *o, request *q,
                     td_err *err)
{
    TD_TRY(psim_request(args, o, q, err));
    cost_model *const prices = TD_NEW(a, cost_model);
    if (prices == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    q->prices = prices;
    return request_machine(o->cluster, o->profile, o->link, q->pp, a, prices, err);
}

td_status cmd_schedule(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    request q;
    TD_TRY(cli_check_outputs(args, err));
    TD_TRY(ask(a, args, o, &q, err));
    run_setup *const setup = TD_NEW(a, run_setup);
    if (setup == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(request_schedule(&q, a, setup, err));
    td_text out = {0};
    if (o->format == FORMAT_CSV) {
        sched_print(&setup->schedule, &out);
    } else {
        const td_status st =
            torch_print(&setup->schedule, o->format == FORMAT_TORCH_COMMS, &out, err);
        if (st != TD_OK) {
            td_text_free(&out);
            return st;
        }
    }
    if (o->output == NULL) return psim_print(&out, err);
    const td_status st = out.failed ? td_fail(err, TD_ENOMEM, "out of memory for the text")
                                    : td_write_file(o->output, out.s, out.len, err);
    td_text_free(&out);
    return st;
}

static td_status say_sound(const psim_options *o, const char *what, const plan *p, td_err *err)
{
    td_text out = {0};
    if (o->json)
        td_text_addf(&out,
                     "{\"schema\":1,\"sound\":true,\"ranks\":%u,\"tasks\":%u,"
                     "\"microbatches\":%d}\n",
                     p->n_ranks, p->n_tasks, p->n_microbatches);
    else if (!o->quiet)
        td_text_addf(&out, "%s is sound: %u ranks, %u tasks\n", what, p->n_ranks, p->n_tasks);
    return psim_print(&out, err);
}

/* The answer "no" of a check is data: with --json it goes to stdout. */
static td_status say_unsound(const psim_options *o, td_err *err)
{
    if (!o->json || err->code != TD_EPLAN) return err->code;
    td_text out = {0};
    td_text_add(&out, "{\"schema\":1,\"sound\":false,\"reason\":");
    td_text_json(&out, err->msg);
    td_text_add(&out, "}\n");
    TD_TRY(psim_print(&out, err));
    return cli_answer_no(err);
}

td_status cmd_check(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    request q;
    TD_TRY(ask(a, args, o, &q, err));
    run_setup *const setup = TD_NEW(a, run_setup);
    if (setup == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    if (request_plan(&q, TYPE_BF16, NULL, a, setup, err) != TD_OK) return say_unsound(o, err);
    return say_sound(o, q.plan != NULL ? q.plan : q.schedule, &setup->plan, err);
}

td_status cmd_plan(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    request q;
    TD_TRY(cli_check_outputs(args, err));
    TD_TRY(ask(a, args, o, &q, err));
    run_setup *const setup = TD_NEW(a, run_setup);
    if (setup == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(request_plan(&q, TYPE_BF16, o->after, a, setup, err));
    td_text out = {0};
    plan_print(&setup->plan, &out);
    if (o->output == NULL) return psim_print(&out, err);
    const td_status st = out.failed ? td_fail(err, TD_ENOMEM, "out of memory for the text")
                                    : td_write_file(o->output, out.s, out.len, err);
    td_text_free(&out);
    return st;
}
