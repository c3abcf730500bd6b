#include "fuzz.h"

#include "costmodel/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    model_desc m;
    fuzz_check(model_parse(text, len, "model.json", &m, &err), &err);
    td_arena_free(a);
    return 0;
}
