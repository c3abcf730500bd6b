/* Text as tokens, and batches out of them. */
#ifndef EXEC_DATA_H
#define EXEC_DATA_H

#include "base/base.h"

typedef struct corpus {
    const int32_t *tokens;
    int64_t n, n_train; /* validation: [n_train, n) */
    double bytes_per_token;
    bool masked;   /* batches hide tokens (BERT) instead of asking for the next one */
    int32_t vocab; /* of the model */
} corpus;

/* Reads a file; each byte is a token unless both vocabulary files are given (GPT-2's vocab.json and
 * merges.txt). The last tenth is for validation. Refuses a text too short for two sequences of
 * seq_len in either part, and a vocabulary that the model lacks; when masked also a text that
 * holds the model's last token, which then stands for a hidden one. */
TD_MUST_USE td_status corpus_open(const char *path, const char *vocab, const char *merges,
                                  int64_t model_vocab, bool masked, int64_t seq_len, td_arena *a,
                                  corpus *out, td_err *err);

/* FNV-1a over the tokens: which text it is. */
uint64_t corpus_hash(const corpus *c);

/* One microbatch: `batch` sequences of seq_len tokens at places drawn from (seed, step, index);
 * targets are the next tokens, or those that corpus_mask asks for. validation: from the held-out
 * part. */
void corpus_batch(const corpus *c, uint64_t seed, int64_t step, int64_t index, bool validation,
                  int64_t batch, int64_t seq_len, int32_t *ids, int32_t *targets);

/* Text without meaning, for checks: n tokens below vocab. */
void corpus_random(uint64_t seed, int64_t vocab, int64_t n, int32_t *ids, int32_t *targets);

/* BERT's objective (Devlin et al. 2019, section 3.1): of each of the `batch` sequences 15 % of the
 * tokens (at least one) become targets, the other targets are -1; of those tokens 80 % turn into
 * the last one of the vocabulary, 10 % into any other one, 10 % stay. */
void corpus_mask(uint64_t seed, int64_t vocab, int64_t batch, int64_t seq_len, int32_t *ids,
                 int32_t *targets);

/* --- bpe.c --- */

/* GPT-2's byte-pair encoding of a text (Radford et al. 2019). TD_EPARSE names file and line. */
TD_MUST_USE td_status bpe_encode(const char *vocab, const char *merges, const char *text,
                                 size_t len, td_arena *a, int32_t **tokens, int64_t *n,
                                 int64_t *vocab_size, td_err *err);

#endif
