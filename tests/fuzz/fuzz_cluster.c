#include "fuzz.h"

#include "costmodel/cluster.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return 0;
    td_err err = {0};
    char *const text = td_alloc(a, len + 1, 1);
    if (text == NULL) abort();
    memcpy(text, bytes, len);
    cluster_desc c;
    fuzz_check(cluster_parse(text, len, "cluster.json", &c, &err), &err);
    td_arena_free(a);
    return 0;
}
