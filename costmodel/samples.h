/* Measurements: what a bench writes and a calibration reads. The file is text, one sample a line in
 * the columns of `samples_write`, after header lines "# key value"; "# samples N" says how many
 * there are, so that a cut file is told from a whole one. Version 1, which had the first twelve
 * columns of today's, is read too. */
#ifndef COSTMODEL_SAMPLES_H
#define COSTMODEL_SAMPLES_H

#include "base/pass.h"
#include "costmodel/model.h"

typedef enum sample_what {
    SAMPLE_PASS,       /* one compute pass of one part of a stage */
    SAMPLE_OPTIMIZER,  /* one optimizer step over `amount` parameters */
    SAMPLE_NORM,       /* squared norm of `amount` parameters' gradients */
    SAMPLE_MESSAGE,    /* one message of `amount` bytes, from its post to its arrival */
    SAMPLE_ALL_REDUCE, /* one sum of `amount` bytes over `members` ranks */
    SAMPLE_PRODUCT,    /* one matrix product, shape[0] x shape[2] times shape[2] x shape[1] */
    SAMPLE_COPY,       /* `amount` bytes copied within memory */
    SAMPLE_WHAT_COUNT
} sample_what;

/* What a stage is made of; each part is measured and fitted by itself. S and T are passes of a
 * head, E and G of an embedding, of which one rank has a shard of `words`. */
typedef enum stage_part {
    PART_LAYERS,     /* `layers` transformer layers */
    PART_EMBEDDING,  /* the input embedding */
    PART_HEAD,       /* final norm, output head and loss */
    PART_FUSED_HEAD, /* of S and T: S makes the input's gradient too (Vocab-2) */
    PART_COUNT
} stage_part;

/* What lies between two ranks. */
typedef enum sample_link { LINK_THREADS, LINK_MPI, LINK_TCP, LINK_COUNT } sample_link;

const char *stage_part_name(stage_part part);   /* "layers" */
const char *sample_link_name(sample_link link); /* "threads" */

typedef struct sample {
    sample_what what;
    pass_kind pass;                         /* of SAMPLE_PASS */
    stage_part part;                        /* of SAMPLE_PASS */
    recompute_mode recompute;               /* of SAMPLE_PASS */
    int64_t layers;                         /* of PART_LAYERS, >= 1; else 0 */
    int64_t micro_batch, slice_len, prefix; /* of SAMPLE_PASS: sequences, tokens of each, before */
    int64_t amount;                         /* parameters or bytes; 0 for a pass */
    int32_t members;                        /* ranks of a collective; else 0 */
    int32_t busy;     /* ranks of the machine at work at once, this one included; >= 1 */
    double ns;        /* > 0; one measurement, or the median of some */
    int32_t tp;       /* of SAMPLE_PASS: tensor-parallel degree, the pass being one shard's; 0: 1 */
    int64_t words;    /* of S, T, E, G: rows of the rank's shard of the tables; else 0 */
    int64_t shape[3]; /* of SAMPLE_PRODUCT */
    sample_link link; /* of SAMPLE_MESSAGE and SAMPLE_ALL_REDUCE */
    /* how sure ns is; all 0 where that is not known */
    int32_t repeats;  /* measurements behind ns */
    double half_ns;   /* half the width of the median's 95 % confidence interval */
    double spread;    /* standard deviation of one measurement, relative, outliers apart */
    int32_t outliers; /* measurements far from the others */
    double worst_ns;  /* the longest */
} sample;

typedef struct sample_header {
    const char *key, *value;
} sample_header;

/* Headers that a calibration uses: "model", "layers", "hidden", "heads", "kv_heads", "head_dim",
 * "ffn", "vocab", "causal" (0 or 1), "dtype", "cores" (of the machine), "device", "source", "date"
 * (YYYY-MM-DD), "other_load" (cores that were busy with other work). */
typedef struct samples {
    sample_header *headers;
    size_t n_headers, headers_cap;
    sample *items;
    size_t n, cap;
    td_arena *arena; /* holds both arrays and their text */
} samples;

/* Empty, in the arena. */
samples samples_new(td_arena *a);
/* Copies key and value; a line break in them is refused. */
TD_MUST_USE td_status samples_header(samples *s, const char *key, const char *value, td_err *err);
/* The headers that say which model was measured, in one call. */
TD_MUST_USE td_status samples_header_model(samples *s, const model_desc *m, const run_shape *run,
                                           td_err *err);
/* Refuses samples out of the ranges above. */
TD_MUST_USE td_status samples_add(samples *s, const sample *one, td_err *err);
/* The value of a header, or NULL. */
const char *samples_header_value(const samples *s, const char *key);

/* What s already says, where the header is one of those that tell what was measured (model, sizes,
 * dtype, device) and says something else; or NULL. */
const char *samples_header_conflict(const samples *s, const char *key, const char *value);

/* Prints the file's text; parse(print(s)) gives the same samples. */
void samples_print(const samples *s, td_text *out);
/* Writes it to a file at once. */
TD_MUST_USE td_status samples_write(const samples *s, const char *path, td_err *err);

/* Errors are "name:line:col: ...". */
TD_MUST_USE td_status samples_parse(const char *text, size_t len, const char *name, td_arena *a,
                                    samples *out, td_err *err);
TD_MUST_USE td_status samples_read(const char *path, td_arena *a, samples *out, td_err *err);

/* Adds the samples of one bench to those of another; headers that only `from` has are added too.
 * TD_EUSAGE unless model, dtype and device are the same. */
TD_MUST_USE td_status samples_merge(samples *to, const samples *from, td_err *err);

/* Fills ns, repeats, half_ns, spread, outliers and worst_ns of a sample out of its n >= 1
 * measurements, which are sorted. The interval is between order statistics (David and Nagaraja
 * 2003, Order Statistics, section 7.1) and takes 6 measurements; the spread is the median absolute
 * deviation x 1.4826; outliers are further than 5 of those, and than 5 %, from the median. */
void samples_summarize(int64_t *ns, size_t n, sample *out);

#endif
