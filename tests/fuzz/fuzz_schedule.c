#include "fuzz.h"

#include "schedules/schedule.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    schedule *const s = TD_NEW_N(a, schedule, 2);
    if (s == NULL) abort();
    const td_status st = sched_parse(text, len, "schedule.csv", a, &s[0], &err);
    fuzz_check(st, &err);
    if (st == TD_OK) {
        td_text once = {0}, twice = {0};
        sched_print(&s[0], &once);
        fuzz_law(!once.failed && sched_parse(once.s, once.len, "again", a, &s[1], &err) == TD_OK,
                 "what is printed can be read", &err);
        sched_print(&s[1], &twice);
        fuzz_law(once.len == twice.len && memcmp(once.s, twice.s, once.len) == 0,
                 "reading and printing gives the same text", &err);
        td_text_free(&once);
        td_text_free(&twice);
    }
    td_arena_free(a);
    return 0;
}
