/* Megatron's --pipeline-model-parallel-layout strings, "Et*2|(tt|)*3,tL". */
#ifndef COSTMODEL_LAYOUT_H
#define COSTMODEL_LAYOUT_H

#include "base/base.h"

/* What one stage of a layout holds. */
typedef struct layout_stage {
    int64_t layers, mtp_layers;
    bool embedding, loss;
} layout_stage;

/* Expands and checks a layout: E is the first element and L the only loss, with nothing after it;
 * `m` follows every `t`. Stages may be empty. Writes up to max stages and sets *n to their true
 * number. Errors name the column. */
TD_MUST_USE td_status layout_parse(const char *text, layout_stage *out, int64_t max, int64_t *n,
                                   td_err *err);

#endif
