/* fuzz_NAME ROUNDS SEED...: runs a fuzz target on each seed file, on every prefix of small ones,
 * and on ROUNDS mutations of them, always the same ones. */
#include "fuzz.h"

#include <stdio.h>

enum { INPUT_MAX = 1 << 16, PREFIX_MAX = 600 };

typedef struct seed {
    uint8_t bytes[INPUT_MAX];
    size_t len;
} seed;

static const char *const words[] = {"-1",    "0",     "99999999999999999999",
                                    "1e999", "nan",   "\"",
                                    "{",     "}",     "[",
                                    "]",     ",",     "\n",
                                    "#",     "null",  "\xff",
                                    "*",     "65536", "2147483648",
                                    ":",     ".1"};

static void insert(seed *s, size_t at, const void *bytes, size_t n)
{
    if (s->len + n > INPUT_MAX) return;
    memmove(s->bytes + at + n, s->bytes + at, s->len - at);
    memcpy(s->bytes + at, bytes, n);
    s->len += n;
}

static void mutate(seed *s, td_rng *r)
{
    const size_t at = (size_t)td_rng_below(r, (int64_t)s->len + 1);
    const size_t left = s->len - at;
    const size_t n = left == 0 ? 0 : (size_t)td_rng_below(r, left < 40 ? (int64_t)left : 40);
    uint8_t copy[40];
    switch (td_rng_below(r, 6)) {
    case 0:
        if (left > 0) s->bytes[at] = (uint8_t)td_rng_below(r, 256);
        break;
    case 1: s->len = at; break;
    case 2:
        memmove(s->bytes + at, s->bytes + at + n, left - n);
        s->len -= n;
        break;
    case 3:
        memcpy(copy, s->bytes + at, n);
        insert(s, (size_t)td_rng_below(r, (int64_t)s->len + 1), copy, n);
        break;
    default: {
        const char *const w = words[td_rng_below(r, sizeof words / sizeof *words)];
        insert(s, at, w, strlen(w));
    }
    }
}

/* A copy of exactly that size, so that the address sanitizer sees one byte too many. */
static void run(const seed *s)
{
    uint8_t *const exact = malloc(s->len + 1);
    if (exact == NULL) abort();
    memcpy(exact, s->bytes, s->len);
    exact[s->len] = 0;
    (void)LLVMFuzzerTestOneInput(exact, s->len);
    free(exact);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    static seed original, s;
    td_rng r = td_rng_seed(1);
    if (argc < 3 || rounds <= 0) {
        (void)fprintf(stderr, "usage: %s ROUNDS SEED...\n", argv[0]);
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        FILE *const f = fopen(argv[i], "rb");
        if (f == NULL) {
            (void)fprintf(stderr, "%s: cannot open\n", argv[i]);
            return 2;
        }
        original.len = fread(original.bytes, 1, INPUT_MAX, f);
        (void)fclose(f);
        run(&original);
        for (size_t n = 0; n < original.len && n < PREFIX_MAX; n++) {
            memcpy(s.bytes, original.bytes, n);
            s.len = n;
            run(&s);
        }
        for (long k = 0; k < rounds / (argc - 2); k++) {
            memcpy(s.bytes, original.bytes, original.len);
            s.len = original.len;
            const int64_t changes = 1 + td_rng_below(&r, 4);
            for (int64_t c = 0; c < changes; c++) mutate(&s, &r);
            run(&s);
        }
    }
    return 0;
}
