/* Reading text, splitting it, drawing batches. */
#include "exec/data.h"

#include <string.h>

#define MAX_TEXT ((size_t)1 << 32)

td_status corpus_open(const char *path, const char *vocab, const char *merges, int64_t model_vocab,
                      bool masked, int64_t seq_len, td_arena *a, corpus *out, td_err *err)
{
    char *text = NULL;
    size_t len = 0;
    if ((vocab == NULL) != (merges == NULL))
        return td_fail(err, TD_EUSAGE, "--vocab and --merges: give both, or neither for bytes");
    TD_TRY(td_read_file(a, path, MAX_TEXT, &text, &len, err));
    int32_t *tokens = NULL;
    int64_t n = (int64_t)len, vocab_size = 256;
    if (vocab != NULL) {
        TD_TRY(bpe_encode(vocab, merges, text, len, a, &tokens, &n, &vocab_size, err));
    } else {
        tokens = TD_NEW_N(a, int32_t, len);
        if (tokens == NULL) return td_fail(err, TD_ENOMEM, "%s: out of memory", path);
        for (size_t i = 0; i < len; i++) tokens[i] = (uint8_t)text[i];
    }
    if (vocab_size > model_vocab)
        return td_fail(err, TD_EUSAGE, "%s: tokens up to %lld, but the model's vocabulary has %lld",
                       path, (long long)vocab_size - 1, (long long)model_vocab);
    for (int64_t i = 0; masked && i < n; i++)
        if (tokens[i] == model_vocab - 1)
            return td_fail(err, TD_EUSAGE,
                           "%s: token %lld of the text is %d, which stands for a hidden one; give "
                           "text (in UTF-8 no byte is 255)",
                           path, (long long)i, tokens[i]);
    const int64_t n_train = n - n / 10;
    if (n - n_train < seq_len + 2 || n_train < seq_len + 2)
        return td_fail(err, TD_EUSAGE,
                       "%s: %lld tokens are too few: a sequence has %lld, and a tenth of the text "
                       "is for validation; give at least %lld or a smaller --seq-len",
                       path, (long long)n, (long long)seq_len, (long long)(10 * (seq_len + 2)));
    *out = (corpus){.tokens = tokens,
                    .n = n,
                    .n_train = n_train,
                    .bytes_per_token = (double)len / (double)n,
                    .masked = masked,
                    .vocab = (int32_t)model_vocab};
    return TD_OK;
}

uint64_t corpus_hash(const corpus *c)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < c->n; i++) h = (h ^ (uint32_t)c->tokens[i]) * 0x100000001b3u;
    return h;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 31;
}

void corpus_batch(const corpus *c, uint64_t seed, int64_t step, int64_t index, bool validation,
                  int64_t batch, int64_t seq_len, int32_t *ids, int32_t *targets)
{
    const int64_t first = validation ? c->n_train : 0;
    const int64_t end = validation ? c->n : c->n_train;
    const uint64_t place = mix(mix(mix(seed, (uint64_t)step), (uint64_t)index), validation);
    td_rng r = td_rng_seed(place);
    for (int64_t b = 0; b < batch; b++) {
        const int32_t *const at = c->tokens + first + td_rng_below(&r, end - first - seq_len);
        memcpy(ids + b * seq_len, at, (size_t)seq_len * sizeof *ids);
        memcpy(targets + b * seq_len, at + 1, (size_t)seq_len * sizeof *ids);
    }
    if (c->masked) corpus_mask(mix(place, 1), c->vocab, batch, seq_len, ids, targets);
}

void corpus_mask(uint64_t seed, int64_t vocab, int64_t batch, int64_t seq_len, int32_t *ids,
                 int32_t *targets)
{
    td_rng r = td_rng_seed(seed);
    const int64_t some = (15 * seq_len + 50) / 100, wanted = some < 1 ? 1 : some;
    for (int64_t b = 0; b < batch; b++) {
        int64_t left = wanted;
        for (int64_t t = 0; t < seq_len; t++) {
            int32_t *const id = &ids[b * seq_len + t], *const target = &targets[b * seq_len + t];
            *target = -1;
            /* every set of `wanted` places is equally likely (Knuth, algorithm S) */
            if (td_rng_below(&r, seq_len - t) >= left) continue;
            left--;
            *target = *id;
            const int64_t fate = td_rng_below(&r, 10);
            if (fate < 8)
                *id = (int32_t)vocab - 1;
            else if (fate == 8)
                *id = (int32_t)td_rng_below(&r, vocab - 1);
        }
    }
}

void corpus_random(uint64_t seed, int64_t vocab, int64_t n, int32_t *ids, int32_t *targets)
{
    td_rng r = td_rng_seed(seed);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)td_rng_below(&r, vocab);
    for (int64_t i = 0; i < n; i++) targets[i] = (int32_t)td_rng_below(&r, vocab);
}
