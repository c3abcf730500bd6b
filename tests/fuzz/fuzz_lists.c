#include "fuzz.h"

#include "base/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    int64_t *items = NULL, n_bytes = 0, whole = 0;
    double real = 0;
    size_t n = 0;
    fuzz_check(td_parse_i64_list(a, text, "list", &items, &n, &err), &err);
    fuzz_check(td_parse_bytes(text, "bytes", &n_bytes, &err), &err);
    fuzz_check(td_parse_i64(text, -5, 1000, "whole", &whole, &err), &err);
    fuzz_check(td_parse_f64(text, -1, 1, "real", &real, &err), &err);
    td_arena_free(a);
    return 0;
}
