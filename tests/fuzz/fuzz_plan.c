#include "fuzz.h"

#include "schedules/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    plan *const p = TD_NEW_N(a, plan, 2);
    if (p == NULL) abort();
    const td_status st = plan_parse(text, len, "plan.txt", a, &p[0], &err);
    fuzz_check(st, &err);
    if (st == TD_OK) {
        td_text printed = {0};
        plan_print(&p[0], &printed);
        fuzz_law(!printed.failed &&
                     plan_parse(printed.s, printed.len, "again", a, &p[1], &err) == TD_OK,
                 "what is printed can be read", &err);
        fuzz_law(plan_equal(&p[0], &p[1]), "parse(print(p)) equals p", &err);
        td_text_free(&printed);
    }
    td_arena_free(a);
    return 0;
}
