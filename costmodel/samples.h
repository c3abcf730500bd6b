/* Measurements: what a bench writes and a calibration reads. The file is text, one sample a line in
 * the columns of `samples_write`, after header lines "# key value"; "# samples N" says how many
 * there are, so that a cut file is told from a whole one. */
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
    SAMPLE_WHAT_COUNT
} sample_what;

/* What a stage is made of; each part is measured and fitted by itself. */
typedef enum stage_part {
    PART_LAYERS,    /* `layers` transformer layers */
    PART_EMBEDDING, /* the input embedding */
    PART_HEAD,      /* final norm, output head and loss */
    PART_COUNT
} stage_part;

const char *stage_part_name(stage_part part); /* "layers" */

typedef struct sample {
    sample_what what;
    pass_kind pass;                         /* of SAMPLE_PASS */
    stage_part part;                        /* of SAMPLE_PASS */
    recompute_mode recompute;               /* of SAMPLE_PASS */
    int64_t layers;                         /* of PART_LAYERS, >= 1; else 0 */
    int64_t micro_batch, slice_len, prefix; /* of SAMPLE_PASS: sequences, tokens of each, before */
    int64_t amount;                         /* parameters or bytes; 0 for a pass */
    int32_t members;                        /* ranks of a collective; else 0 */
    int32_t busy; /* ranks of the machine at work at once, this one included; >= 1 */
    double ns;    /* > 0; one measurement, or the median of some */
} sample;

typedef struct sample_header {
    const char *key, *value;
} sample_header;

/* Headers that a calibration uses: "model", "layers", "hidden", "heads", "kv_heads", "head_dim",
 * "ffn", "vocab", "causal" (0 or 1), "dtype", "tp", "cores" (of the machine), "device", "source",
 * "date" (YYYY-MM-DD). */
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

/* Prints the file's text; parse(print(s)) gives the same samples. */
void samples_print(const samples *s, td_text *out);
/* Writes it to a file at once. */
TD_MUST_USE td_status samples_write(const samples *s, const char *path, td_err *err);

/* Errors are "name:line:col: ...". */
TD_MUST_USE td_status samples_parse(const char *text, size_t len, const char *name, td_arena *a,
                                    samples *out, td_err *err);
TD_MUST_USE td_status samples_read(const char *path, td_arena *a, samples *out, td_err *err);

#endif
