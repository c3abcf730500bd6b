/* The law of the executor for one schedule: what the tests of it share. */
#ifndef TESTS_EXEC_EXEC_LAW_H
#define TESTS_EXEC_EXEC_LAW_H

#include "exec/check.h"
#include "exec/device.h"

/* Models of eight layers that train in milliseconds. */
extern const model_desc law_gpt2, law_llama, law_bert;

/* One of them with four heads of six columns, so that up to four shards divide them. */
model_desc law_four_heads(const model_desc *m, int64_t kv_heads);

typedef struct exec_law {
    const model_desc *model;
    int32_t dp, tp;         /* 0: 1 */
    int64_t seq_len, steps; /* 0: 12, 5 */
    recompute_mode recompute;
    plan_mapping mapping;
    bool zero1, sequence_parallel;
    double clip; /* 0: 1 */
    int64_t jitter_ns;
    device *device; /* NULL: the cores */
} exec_law;

/* The sizes that a plan of such a case was lowered with. */
void exec_law_sizes(const exec_law *k, const plan *p, sizes *out);

/* Lowers the schedule with layers shared out evenly, and runs check_plan. Fails the test with one
 * line on errors, and when the check does not pass. `plan_out` may be NULL. */
check_result exec_law_holds(const exec_law *k, const schedule *s, td_arena *a, plan *plan_out);

/* The same for a schedule of the registry; option: "key=value", several with commas between
 * them, or NULL. */
check_result exec_law_named(const exec_law *k, const char *name, const char *option, int32_t pp,
                            int32_t chunks, int32_t microbatches, td_arena *a, plan *plan_out);

#endif
