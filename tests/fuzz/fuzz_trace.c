#include "fuzz.h"

#include "schedules/trace.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    trace *const t = TD_NEW(a, trace);
    if (t == NULL) abort();
    fuzz_check(trace_read_bytes(text, len, "trace.json", a, t, &err), &err);
    td_arena_free(a);
    return 0;
}
