#include "fuzz.h"

#include "exec/safetensors.h"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    td_arena *const a = td_arena_new();
    FILE *const f = tmpfile();
    if (a == NULL || f == NULL) abort();
    if (len > 0 && fwrite(bytes, 1, len, f) != len) abort();
    if (fflush(f) != 0) abort();
    td_err err = {0};
    tensor_file t;
    const td_status st = tensor_file_read(fileno(f), "weights", a, &t, &err);
    fuzz_check(st, &err);
    /* what was taken can be read: the tensors cover the file to its end */
    int64_t at = t.n > 0 ? t.tensors[0].begin : 0;
    for (int64_t i = 0; st == TD_OK && i < t.n; i++) {
        fuzz_law(t.tensors[i].begin == at, "tensors lie one behind the other", &err);
        at += file_tensor_bytes(&t.tensors[i]);
    }
    fuzz_law(st != TD_OK || t.n == 0 || at == (int64_t)len, "tensors end with the file", &err);
    (void)fclose(f);
    td_arena_free(a);
    return 0;
}
