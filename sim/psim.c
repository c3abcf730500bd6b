/* psim: simulate pipeline schedules. The tables of its command line; each verb is a cmd_*.c. */
#include "sim/psim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#ifndef TD_VERSION
#define TD_VERSION "0.1.0"
#endif

#define AT(field) offsetof(psim_options, field)
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const cli_option machine_options[] = {
    {.kind = CLI_HEADING, .help = "Machine"},
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
    {.kind = CLI_CHOICE,
     .name = "link",
     .arg = "NAME",
     .at = AT(link),
     .choices = "threads|mpi|tcp",
     .def = "threads",
     .help = "of a --profile: what moves tensors between ranks of a machine; where it was not "
             "measured, what was"},
};

static const cli_option cost_options[] = {
    {.kind = CLI_CHOICE,
     .name = "placement",
     .arg = "HOW",
     .at = AT(what.placement),
     .choices = "straight|folded",
     .def = "straight",
     .help = "pipeline positions in the order of devices; folded: r beside P - 1 - r, so that "
             "twins share a node"},
    {.kind = CLI_CHOICE,
     .name = "protocol",
     .arg = "HOW",
     .at = AT(protocol),
     .choices = "eager|rendezvous",
     .help = "when messages leave; default: eager with --times, else rendezvous"},
    {.kind = CLI_REAL,
     .name = "pair-frac",
     .arg = "X",
     .at = AT(pair_frac),
     .def = "1",
     .min = 0,
     .max = 2,
     .help = "time of an overlapped forward and backward as a part of both, as measured; FB of "
             "--times goes first"},
    {.kind = CLI_INT,
     .name = "seed",
     .arg = "N",
     .at = AT(seed),
     .def = "0",
     .min = 0,
     .max = INT64_MAX,
     .help = "of what is random; it is echoed"},
    {.kind = CLI_TEXT,
     .name = "slow",
     .arg = "RANK=X,...",
     .at = AT(slow),
     .help = "stragglers: passes of that rank take X times as long"},
};

static const cli_option run_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
    {.kind = CLI_TEXT,
     .name = "trace",
     .writes = true,
     .arg = "FILE",
     .at = AT(trace),
     .help = "write a Chrome trace (*.json or *.json.gz; Perfetto opens it)"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "draw the timeline: *.svg, *.png, *.pdf or *.csv"},
    {.kind = CLI_INT,
     .name = "periods",
     .arg = "N",
     .at = AT(periods),
     .def = "1",
     .min = 1,
     .max = 1000,
     .help = "steps that trace and timeline show; they overlap under --post-validation"},
    {.kind = CLI_FLAG,
     .name = "memory",
     .at = AT(memory),
     .help = "a table of ranks with their memory; curves in the figure"},
    {.kind = CLI_FLAG,
     .name = "quiet",
     .letter = 'q',
     .at = AT(quiet),
     .help = "no timeline and no advice"},
    {.kind = CLI_FLAG,
     .name = "noise",
     .at = AT(noise),
     .help = "also the distribution of the step when passes vary at random"},
    {.kind = CLI_REAL,
     .name = "spread",
     .arg = "X",
     .at = AT(spread),
     .def = "-1",
     .help = "relative standard deviation of a pass under --noise; default: as --profile measured"},
    {.kind = CLI_INT,
     .name = "runs",
     .arg = "N",
     .at = AT(runs),
     .def = "100",
     .min = 1,
     .max = 1000000,
     .help = "runs of --noise"},
    {.kind = CLI_TEXT,
     .name = "activation-deltas",
     .arg = "F,I,W",
     .at = AT(deltas),
     .help = "what passes add to live activations, as they are counted and limited; default "
             "1,0,-1"},
};

static const cli_option sweep_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "draw the timelines under each other: *.svg, *.png or *.pdf"},
    {.kind = CLI_FLAG, .name = "memory", .at = AT(memory), .help = "memory curves in the figure"},
    {.kind = CLI_TEXT,
     .name = "activation-deltas",
     .arg = "F,I,W",
     .at = AT(deltas),
     .help = "what passes add to live activations, as they are counted and limited; default "
             "1,0,-1"},
};

static const cli_option figure_options[] = {
    {.kind = CLI_HEADING, .help = "Figure"},
    {.kind = CLI_CHOICE,
     .name = "style",
     .arg = "STYLE",
     .at = AT(style),
     .def = "default",
     .choices = "default|megatron|zb|dualpipe|vocab|seq1f1b|torch",
     .help = "colours"},
    {.kind = CLI_TEXT,
     .name = "width",
     .arg = "WIDTH",
     .at = AT(width),
     .def = "page",
     .help = "column (3.33 in), page (7 in), neurips (5.5 in), or inches"},
    {.kind = CLI_CHOICE,
     .name = "label",
     .arg = "WHAT",
     .at = AT(label),
     .def = "mb",
     .choices = "mb|stage.mb",
     .help = "what stands in the boxes"},
    {.kind = CLI_CHOICE,
     .name = "index",
     .arg = "N",
     .at = AT(index),
     .def = "0",
     .choices = "0|1",
     .help = "number of the first microbatch and rank"},
    {.kind = CLI_FLAG, .name = "comms", .at = AT(comms), .help = "lanes and arrows of messages"},
    {.kind = CLI_TEXT, .name = "title", .arg = "TEXT", .at = AT(title), .help = "title"},
};

static const cli_option draw_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "the figure: *.svg, *.png, *.pdf, or *.csv of its boxes"},
    {.kind = CLI_FLAG, .name = "memory", .at = AT(memory), .help = "memory curve of each rank"},
};

static const cli_option json_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
    {.kind = CLI_FLAG,
     .name = "quiet",
     .letter = 'q',
     .at = AT(quiet),
     .help = "print nothing when all is well"},
};

static const cli_option schedule_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_CHOICE,
     .name = "format",
     .arg = "FORMAT",
     .at = AT(format),
     .def = "csv",
     .choices = "csv|torch|torch-comms",
     .help = "our text, or torch's plain forms"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "write it to a file"},
};

static const cli_option plan_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_TEXT,
     .name = "after",
     .arg = "PASS",
     .at = AT(after),
     .help = "stop after this pass: place, comm, collect, step or memory"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "write it to a file"},
};

static const cli_option compare_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
    {.kind = CLI_INT,
     .name = "worst",
     .arg = "N",
     .at = AT(worst),
     .def = "5",
     .min = 0,
     .max = 1000,
     .help = "tasks with the largest errors to name"},
};

static const cli_option calibrate_options[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_TEXT,
     .name = "output",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(output),
     .help = "where the profile goes"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print the profile on stdout"},
    {.kind = CLI_FLAG, .name = "quiet", .letter = 'q', .at = AT(quiet), .help = "print nothing"},
};

#define WHAT                                                                                       \
    {                                                                                              \
        request_options, REQUEST_OPTION_COUNT, AT(what)                                            \
    }

#define MACHINE CLI_TABLE(machine_options, 0)

static const cli_table list_tables[] = {CLI_TABLE(json_options, 0)};
static const cli_table schedule_tables[] = {WHAT, MACHINE, CLI_TABLE(schedule_options, 0)};
static const cli_table check_tables[] = {WHAT, MACHINE, CLI_TABLE(json_options, 0)};
static const cli_table plan_tables[] = {WHAT, MACHINE, CLI_TABLE(plan_options, 0)};
static const cli_table run_tables[] = {WHAT, MACHINE, CLI_TABLE(cost_options, 0),
                                       CLI_TABLE(run_options, 0), CLI_TABLE(figure_options, 0)};
static const cli_table sweep_tables[] = {WHAT, MACHINE, CLI_TABLE(cost_options, 0),
                                         CLI_TABLE(sweep_options, 0), CLI_TABLE(figure_options, 0)};
static const cli_table compare_tables[] = {
    CLI_TABLE(compare_options, 0), CLI_TABLE(draw_options, 0), CLI_TABLE(figure_options, 0)};
static const cli_table draw_tables[] = {CLI_TABLE(draw_options, 0), CLI_TABLE(figure_options, 0)};
static const cli_table slices_tables[] = {{slices_options, SLICES_OPTION_COUNT, 0}};
static const cli_table calibrate_tables[] = {CLI_TABLE(calibrate_options, 0)};

static const cli_verb verbs[] = {
    {.name = "list",
     .summary = "the schedules, models and clusters there are",
     .example = "psim list",
     .tables = list_tables,
     .n_tables = COUNT(list_tables),
     .run = cmd_list},
    {.name = "schedule",
     .summary = "print a schedule's text",
     .operands = "[NAME|FILE]",
     .max_operands = 1,
     .example = "psim schedule 1f1b --pp 4 --microbatches 8",
     .tables = schedule_tables,
     .n_tables = COUNT(schedule_tables),
     .run = cmd_schedule},
    {.name = "check",
     .summary = "is a schedule or plan sound?",
     .operands = "[NAME|FILE]",
     .max_operands = 1,
     .example = "psim schedule 1f1b --pp 4 --microbatches 8 | psim check -",
     .tables = check_tables,
     .n_tables = COUNT(check_tables),
     .run = cmd_check},
    {.name = "plan",
     .summary = "print the lowered plan",
     .operands = "[NAME|FILE]",
     .max_operands = 1,
     .example = "psim plan 1f1b --pp 2 --microbatches 2",
     .tables = plan_tables,
     .n_tables = COUNT(plan_tables),
     .run = cmd_plan},
    {.name = "run",
     .summary = "simulate a schedule",
     .operands = "[NAME|FILE]",
     .max_operands = 1,
     .example = "psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=1,B=2",
     .see = "psim draw, psim compare",
     .tables = run_tables,
     .n_tables = COUNT(run_tables),
     .run = cmd_run_sim},
    {.name = "sweep",
     .summary = "simulate many schedules and settings, a row each",
     .about = "Every option with a number or a choice takes a list, and so do --schedule, --model "
              "and --cluster; each combination is a row. A schedule may bring settings of its own, "
              "behind colons: 1f1b,interleaved-1f1b:chunks=4,chimera:f=2. Rows that cannot be say "
              "why; schedules that do not cut microbatches run uncut beside those that do.",
     .example = "psim sweep --schedule 1f1b,bitpipe,chimera --pp 8 --microbatches 8,16 "
                "--times F=1,B=2",
     .see = "psim run, psim draw",
     .lists = true,
     .tables = sweep_tables,
     .n_tables = COUNT(sweep_tables),
     .run = cmd_sweep},
    {.name = "compare",
     .summary = "how far off was a prediction?",
     .about = "Each trace is held against the last one, task by task: the step, each kind of pass, "
              "each rank's memory, the tasks that carry the error, and where a rank runs its "
              "passes in another order.",
     .operands = "PREDICTED... MEASURED",
     .min_operands = 2,
     .max_operands = 64,
     .example = "psim compare predicted.json emulated.json measured.json -o compared.svg",
     .tables = compare_tables,
     .n_tables = COUNT(compare_tables),
     .run = cmd_compare},
    {.name = "draw",
     .summary = "traces as a figure",
     .operands = "TRACE...",
     .min_operands = 1,
     .max_operands = -1,
     .example = "psim draw run.json -o timeline.svg",
     .tables = draw_tables,
     .n_tables = COUNT(draw_tables),
     .run = cmd_draw},
    {.name = "slices",
     .summary = "where to cut sequences",
     .example = "psim slices --model gpt2 --cluster v100-dgx1 --pp 8",
     .see = "psim run --schedule terapipe, psim run --schedule seq1f1b",
     .tables = slices_tables,
     .n_tables = COUNT(slices_tables),
     .run = cmd_slices},
    {.name = "calibrate",
     .summary = "fit a profile to measurements",
     .operands = "SAMPLES|PROFILE...",
     .min_operands = 1,
     .max_operands = 16,
     .about = "All samples files are fitted together, as one bench of one machine and model. "
              "Profiles are then merged into that: what several know is taken from the last. The "
              "report says what each fit stands on and what could not be determined.",
     .example = "psim calibrate samples.txt -o profile.json",
     .tables = calibrate_tables,
     .n_tables = COUNT(calibrate_tables),
     .run = cmd_calibrate},
};

static const cli_program program = {
    .name = "psim",
    .summary = "simulate pipeline-parallel training schedules",
    .example = "psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=1,B=2",
    .version = TD_VERSION,
    .verbs = verbs,
    .n_verbs = COUNT(verbs)};

td_status psim_print(td_text *t, td_err *err)
{
    td_status st = TD_OK;
    if (t->failed)
        st = td_fail(err, TD_ENOMEM, "out of memory for the output");
    else if (t->len > 0 && (fwrite(t->s, 1, t->len, stdout) != t->len || fflush(stdout) != 0))
        st = td_fail(err, TD_EIO, "stdout: %s", strerror(errno));
    td_text_free(t);
    return st;
}

int main(int argc, char **argv)
{
    psim_options options;
    return cli_main(&program, argc, argv, &options, sizeof options);
}
