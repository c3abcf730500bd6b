/* psim slices: where to cut sequences. */
#include "sim/slices.h"

#include <string.h>

#define AT(field) offsetof(psim_options, field)

const cli_option slices_options[SLICES_OPTION_COUNT] = {
    {.kind = CLI_HEADING, .help = "Slices"},
    {.kind = CLI_CHOICE,
     .name = "method",
     .arg = "HOW",
     .at = AT(method),
     .choices = "terapipe|equal-flops|equal-time",
     .def = "terapipe",
     .help = "least latency through all stages; equal forward FLOPs as Seq1F1B cuts; or the "
             "shortest longest slice"},
    {.kind = CLI_INT,
     .name = "pp",
     .letter = 'p',
     .arg = "P",
     .at = AT(what.pp),
     .min = 1,
     .max = 65535,
     .help = "pipeline-parallel size"},
    {.kind = CLI_INT,
     .name = "slices",
     .arg = "S",
     .at = AT(what.slices),
     .min = 1,
     .max = 65535,
     .help = "how many slices (equal-flops, equal-time)"},
    {.kind = CLI_INT,
     .name = "batch",
     .arg = "B",
     .at = AT(batch),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "sequences of a step and replica, cut into groups (terapipe); of a microbatch "
             "(equal-time); of a step (--factorisations)"},
    {.kind = CLI_INT,
     .name = "granularity",
     .arg = "N",
     .at = AT(granularity),
     .min = 1,
     .max = 65535,
     .help = "slice lengths are multiples of N tokens; default 8, equal-flops: --tp with "
             "--sequence-parallel, else 1"},
    {.kind = CLI_INT,
     .name = "seq-len",
     .arg = "L",
     .at = AT(what.seq_len),
     .min = 1,
     .max = 100000000,
     .help = "tokens in a sequence; default: all positions of the model"},
    {.kind = CLI_INT,
     .name = "factorisations",
     .arg = "N",
     .at = AT(gpus),
     .min = 1,
     .max = 1000000,
     .help = "a table of all ways to split N devices into data, pipeline and tensor parallelism, "
             "each with its best slicing"},
    {.kind = CLI_BYTES,
     .name = "memory-limit",
     .arg = "BYTES",
     .at = AT(what.memory_limit),
     .help = "of a device, for --factorisations; default: the cluster's"},
    {.kind = CLI_HEADING, .help = "Times of a slice"},
    {.kind = CLI_TEXT,
     .name = "latency",
     .arg = "FORMULA|FILE",
     .at = AT(latency),
     .help = "ms of a stage for b sequences, i tokens behind j: c + b(i I + j J + ii I^2 + ij I J) "
             "as c=0.3,i=0.01,ij=2e-5; or a file of measured lines BATCH TOKENS CONTEXT MS"},
    {.kind = CLI_TEXT,
     .name = "model",
     .arg = "PRESET|FILE",
     .at = AT(what.model),
     .help = "a model preset, or a Hugging Face config.json"},
    {.kind = CLI_TEXT,
     .name = "cluster",
     .letter = 'c',
     .arg = "PRESET|FILE",
     .at = AT(cluster),
     .help = "a cluster preset (h100-dgx:4 is four nodes), or a JSON file"},
    {.kind = CLI_TEXT,
     .name = "profile",
     .arg = "FILE",
     .at = AT(profile),
     .help = "a profile that psim calibrate fitted"},
    {.kind = CLI_INT,
     .name = "tp",
     .arg = "T",
     .at = AT(what.tp),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "tensor-parallel size"},
    {.kind = CLI_INT,
     .name = "dp",
     .arg = "D",
     .at = AT(what.dp),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "data-parallel replicas"},
    {.kind = CLI_CHOICE,
     .name = "dtype",
     .arg = "TYPE",
     .at = AT(what.dtype),
     .choices = "fp32|bf16|fp16",
     .help = "weights and activations"},
    {.kind = CLI_CHOICE,
     .name = "recompute",
     .arg = "MODE",
     .at = AT(what.recompute),
     .choices = "none|selective|full",
     .def = "none",
     .help = "what backward computes again in place of keeping it"},
    {.kind = CLI_FLAG,
     .name = "sequence-parallel",
     .at = AT(what.sequence_parallel),
     .help = "shard the activations between tensor-parallel regions"},
    {.kind = CLI_INT,
     .name = "pad-vocab",
     .arg = "N",
     .at = AT(pad_vocab),
     .def = "1",
     .min = 1,
     .max = 65535,
     .help = "equal-flops: count a vocabulary padded to a multiple of N times --tp"},
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG,
     .name = "explain",
     .at = AT(explain),
     .help = "print the objective with its parts, slice by slice"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
};

td_status cmd_slices(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const psim_options *const o = options;
    (void)args;
    slices_job *const j = TD_NEW(a, slices_job);
    if (j == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    TD_TRY(slices_open(j, o, a, err));
    td_text out = {0};
    td_status st = TD_OK;
    if (o->gpus > 0) {
        st = slices_factorisations(j, a, &out, err);
    } else if (o->method == SLICES_EQUAL_FLOPS) {
        st = slices_report_flops(j, a, &out, err);
    } else {
        st = slices_times(j, a, err);
        if (st == TD_OK) st = slices_report_times(j, a, &out, err);
    }
    if (st == TD_OK) return psim_print(&out, err);
    td_text_free(&out);
    return st;
}
