#include "fuzz.h"

#include "costmodel/samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    samples s;
    fuzz_check(samples_parse(text, len, "samples", a, &s, &err), &err);
    td_arena_free(a);
    return 0;
}
