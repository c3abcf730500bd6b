/* pexec check: the law of the executor for one plan. */
#include "base/text.h"
#include "exec/check.h"
#include "exec/pexec.h"

#include <stdio.h>

static void print_json(const check_result *r, const plan *p)
{
    td_text t = {0};
    td_text_addf(&t, "{\"schema\": 1, \"schedule\": ");
    td_text_json(&t, p->schedule_name == NULL ? "" : p->schedule_name);
    td_text_addf(&t,
                 ", \"ranks\": %u, \"microbatches\": %d, \"loss\": %.17g, "
                 "\"loss_reference\": %.17g, \"max_rel_err\": %.9g, \"worst_tensor\": ",
                 p->n_ranks, p->n_microbatches, r->loss, r->loss_reference,
                 r->gradients.max_rel_err);
    td_text_json(&t, r->gradients.worst);
    td_text_addf(&t,
                 ", \"weights_max_rel_err\": %.9g, \"bitwise\": %s, \"bitwise_expected\": %s, "
                 "\"copies_equal\": %s, \"memory_exact\": %s, \"steps_undone\": %lld, "
                 "\"rss_bytes\": %lld, \"per_rank\": [",
                 r->weights.max_rel_err,
                 r->losses_equal && r->gradients.bitwise && r->weights.bitwise ? "true" : "false",
                 r->exact ? "true" : "false", r->copies ? "true" : "false",
                 r->memory ? "true" : "false", (long long)r->undone, (long long)r->rss_bytes);
    for (uint32_t i = 0; i < p->n_ranks; i++)
        td_text_addf(&t,
                     "%s{\"rank\": %u, \"peak_bytes\": %lld, \"touched_bytes\": %lld, "
                     "\"persistent_bytes\": %lld, \"activation_bytes\": %lld}",
                     i == 0 ? "" : ", ", i, (long long)r->ranks[i].peak_bytes,
                     (long long)r->ranks[i].touched_bytes, (long long)p->ranks[i].persistent_bytes,
                     (long long)(r->ranks[i].touched_bytes - p->ranks[i].persistent_bytes));
    td_text_add(&t, "]");
    if (r->device.known) {
        td_text_add(&t, ", \"device_memory\": ");
        device_use_json(&r->device, &t);
    }
    td_text_addf(&t, ", \"pass\": %s}\n", r->pass ? "true" : "false");
    (void)fputs(t.s == NULL ? "" : t.s, stdout);
    td_text_free(&t);
}

static void print_words(const check_result *r, const plan *p, bool bf16)
{
    char peak[40], rest[40], rss[40];
    const bool same = r->losses_equal && r->gradients.bitwise && r->weights.bitwise;
    (void)printf("loss        %.9g, on one rank %.9g\n", r->loss, r->loss_reference);
    (void)printf("gradients   %s (largest relative difference %.3g%s%s)\n",
                 r->gradients.bitwise ? "equal bit for bit" : "differ", r->gradients.max_rel_err,
                 r->gradients.worst[0] != '\0' ? " in " : "", r->gradients.worst);
    (void)printf("weights     %s after three steps (%.3g)\n",
                 r->weights.bitwise ? "equal bit for bit" : "differ", r->weights.max_rel_err);
    if (p->n_pipes > 1 || p->dp > 1)
        (void)printf("copies      %s\n", r->copies ? "equal bit for bit" : "DIFFER");
    if (plan_validates(p))
        (void)printf("validation  %lld of three steps were taken back and done again\n",
                     (long long)r->undone);
    for (uint32_t i = 0; i < p->n_ranks; i++)
        (void)printf(
            "rank %-6u predicted peak %lld bytes (%s), highest byte touched %lld, %s of it "
            "activations and the like\n",
            i, (long long)r->ranks[i].peak_bytes,
            td_print_bytes(peak, sizeof peak, r->ranks[i].peak_bytes),
            (long long)r->ranks[i].touched_bytes,
            td_print_bytes(rest, sizeof rest,
                           r->ranks[i].touched_bytes - p->ranks[i].persistent_bytes));
    (void)printf("process     %s resident\n", td_print_bytes(rss, sizeof rss, r->rss_bytes));
    if (r->device.known) {
        td_text t = {0};
        device_use_words(&r->device, &t);
        (void)printf("%s\n", t.s == NULL ? "" : t.s);
        td_text_free(&t);
    }
    (void)printf("%s: %s\n", r->pass ? "pass" : "FAIL",
                 r->exact ? (same ? "bit for bit" : "bits differ where they must not")
                 : bf16   ? "within what bf16 allows, beside fp32 on one rank"
                          : "within tolerance is what this order of sums allows");
}

static td_status check(const pexec_options *o, const cli_args *args, const launch *who, team *t,
                       td_arena *a, td_err *err)
{
    run_setup setup;
    request q = o->what;
    cost_model prices = {0};
    q.shards = true;
    q.prices = &prices;
    td_status st = request_machine(o->cluster, o->profile, o->link, q.pp, a, &prices, err);
    if (st == TD_OK) st = request_plan(&q, TYPE_FP32, NULL, a, &setup, err);
    TD_TRY(team_agree(t, st, err));
    TD_TRY(pexec_same(t, &setup, args, err));
    device *d = NULL;
    TD_TRY(pexec_device(o, who, setup.sizes.run.dtype == TYPE_BF16, a, &d, err));
    check_options c = {.seed = (uint64_t)o->seed,
                       .steps = 3,
                       .clip = o->clip,
                       .failed = pexec_report,
                       .run = {.threads_per_rank = (int)o->threads_per_rank,
                               .blas = pexec_blas(o),
                               .deadline_ns = o->timeout * 1000000000,
                               .team = t,
                               .device = d}};
    TD_TRY(pexec_share(o, t, d, a, &c.run, err));
    check_result r;
    st = check_plan(&setup.plan, &setup.sizes, &c, a, &r, err);
    if (d != NULL) d->methods->close(d);
    TD_TRY(st);
    if (team_index(t) == 0) {
        if (o->json)
            print_json(&r, &setup.plan);
        else
            print_words(&r, &setup.plan, setup.sizes.run.dtype == TYPE_BF16);
    }
    return team_agree(t, r.pass ? TD_OK : cli_answer_no(err), err);
}

td_status cmd_check(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const pexec_options *const o = options;
    team *t = NULL;
    launch who;
    TD_TRY(pexec_join(o, a, &who, &t, err));
    if (who.size == 0) return TD_OK;
    const td_status st = check(o, args, &who, t, a, err);
    return pexec_leave(t, st, err);
}
