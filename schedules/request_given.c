/* Options beside a plan: it is lowered already, so they must say what it is. */
#include "schedules/request.h"

static td_status other_number(const char *option, int64_t asked, const char *name, int64_t has,
                              td_err *err)
{
    return td_fail(err, TD_EUSAGE,
                   "--%s %lld: %s was lowered with %lld; leave it out, or lower it "
                   "anew",
                   option, (long long)asked, name, (long long)has);
}

static td_status made_already(const char *option, const char *name, const char *what, td_err *err)
{
    return td_fail(err, TD_EUSAGE, "--%s: %s %s; leave it out, or lower it anew", option, name,
                   what);
}

/* Positions of a pipe: rows, or what holds its forwards or its backwards where they live apart. */
static bool is_width(const plan *p, int64_t pp)
{
    const int32_t chunks = p->chunks > 1 ? p->chunks : 1;
    bool apart = false;
    for (uint32_t i = 0; i < p->n_insts; i++)
        apart |= p->insts[i].forward_row != p->insts[i].backward_row;
    return apart ? pp * chunks == p->n_stages : pp == p->n_rows;
}

static bool shards_optimizer(const plan *p)
{
    for (uint32_t i = 0; i < p->n_classes; i++)
        if (p->classes[i].kind == TASK_COLL && p->classes[i].purpose == PURPOSE_WEIGHTS)
            return true;
    return false;
}

/* Numbers; those that are the option's default were not given, or say nothing. */
static td_status check_numbers(const request *q, const plan *p, const char *name, td_err *err)
{
    const struct {
        const char *option;
        int64_t asked, usual, has;
    } numbers[] = {{"lookahead", q->lookahead, 1, p->lookahead},
                   {"send-window", q->send_window, 0, p->send_window}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].asked != numbers[i].usual && numbers[i].asked != numbers[i].has)
            return other_number(numbers[i].option, numbers[i].asked, name, numbers[i].has, err);
    if (q->seq_len != 0 && p->stages != NULL && q->seq_len != p->seq_len)
        return other_number("seq-len", q->seq_len, name, p->seq_len, err);
    if (q->pp != 0 && !is_width(p, q->pp))
        return td_fail(err, TD_EUSAGE, "--pp %lld: %s has %d rows and %d stages", (long long)q->pp,
                       name, p->n_rows, p->n_stages);
    return TD_OK;
}

td_status request_check_given(const request *q, const plan *p, const char *name, td_err *err)
{
    const int copies = p->n_pipes * (p->n_insts > 0 && p->insts[0].all_step ? 2 : 1) * p->dp;
    TD_TRY(check_numbers(q, p, name, err));
    if (q->mapping != MAPPING_CHANNEL && q->mapping != (int)p->mapping)
        return td_fail(
            err, TD_EUSAGE, "--mapping %s: %s was lowered with %s; leave it out, or lower it anew",
            plan_mapping_name((plan_mapping)q->mapping), name, plan_mapping_name(p->mapping));
    if (q->layers != NULL) return made_already("layers", name, "has its layers", err);
    if (q->layout != NULL) return made_already("layout", name, "has its layers", err);
    if (q->account_embedding)
        return made_already("account-for-embedding", name, "has its layers", err);
    if (q->account_loss) return made_already("account-for-loss", name, "has its layers", err);
    if (q->fold && p->dp > 1 && !p->folded_dp)
        return made_already("fold", name, "has all its replicas", err);
    if (q->zero1 && copies > 1 && !shards_optimizer(p))
        return made_already("zero1", name, "keeps whole optimizer states", err);
    if (q->sequence_parallel && p->tp == 1)
        return made_already("sequence-parallel", name, "has no tensor parallelism", err);
    if (q->post_validation && !plan_validates(p))
        return made_already("post-validation", name, "has no such validation", err);
    if (q->placement != PLACEMENT_STRAIGHT)
        return made_already("placement folded", name, "has its devices", err);
    return TD_OK;
}
