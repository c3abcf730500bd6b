/* pexec: runs plans for real. */
#include "exec/pexec.h"

#define AT(field) offsetof(pexec_options, field)

static const cli_option machine_options[] = {
    {.kind = CLI_HEADING, .help = "Machine"},
    {.kind = CLI_CHOICE,
     .name = "backend",
     .arg = "NAME",
     .at = AT(backend),
     .def = "cpu",
     .choices = "cpu|cuda",
     .help = "what computes"},
    {.kind = CLI_CHOICE,
     .name = "wire",
     .also = "distributed-backend",
     .arg = "NAME",
     .at = AT(wire),
     .def = "auto",
     .choices = "auto|threads|mpi|tcp|nccl",
     .help = "what moves tensors between ranks: threads of this process; MPI or TCP between one "
             "process a rank; NCCL between processes with a GPU each; auto: what the launcher's "
             "variables say (mpirun: mpi; torchrun, srun: tcp; else threads), and nccl where they "
             "compute on GPUs"},
    {.kind = CLI_FLAG,
     .name = "deterministic",
     .at = AT(deterministic),
     .help = "with NCCL, add in the order of ranks instead of NCCL's: the bits of other wires, for "
             "more bytes"},
    {.kind = CLI_INT,
     .name = "timeout",
     .arg = "S",
     .at = AT(timeout),
     .def = "120",
     .min = 1,
     .max = 1000000,
     .help = "seconds that a rank waits for another one before the run ends"},
    {.kind = CLI_INT,
     .name = "threads-per-rank",
     .arg = "N",
     .at = AT(threads_per_rank),
     .def = "1",
     .min = 1,
     .max = 256,
     .help = "cores that one rank computes on"},
    {.kind = CLI_CHOICE,
     .name = "blas",
     .arg = "NAME",
     .at = AT(blas),
     .def = "auto",
     .choices = "auto|openblas|onednn|own",
     .help =
         "matrix products by OpenBLAS, by oneDNN where it is faster, or by our own slower code; "
         "auto: oneDNN too where it is installed and the CPU has AVX-512"},
    {.kind = CLI_INT,
     .name = "seed",
     .arg = "N",
     .at = AT(seed),
     .def = "1",
     .min = 0,
     .max = INT64_MAX,
     .help = "of weights and batches"},
    {.kind = CLI_FLAG, .name = "json", .at = AT(json), .help = "print one JSON object on stdout"},
};

static const cli_option launch_options[] = {
    {.kind = CLI_HEADING, .help = "Processes"},
    {.kind = CLI_INT,
     .name = "processes",
     .also = "nproc-per-node nproc",
     .arg = "N",
     .at = AT(processes),
     .min = 0,
     .max = 1024,
     .help = "start N processes of this program on this machine, one a rank, and end with them"},
    {.kind = CLI_INT,
     .name = "gpus",
     .arg = "N",
     .at = AT(gpus),
     .min = 0,
     .max = 1024,
     .help = "the same with --backend cuda: each takes a GPU, in turn where there are fewer"},
    {.kind = CLI_TEXT,
     .name = "rank",
     .arg = "N",
     .at = AT(rank),
     .help = "this is process N of a run that was started by hand, with the three below; "
             "launchers' variables need none of them"},
    {.kind = CLI_TEXT,
     .name = "world",
     .arg = "N",
     .at = AT(world),
     .help = "processes of the run"},
    {.kind = CLI_TEXT,
     .name = "local-rank",
     .arg = "N",
     .at = AT(local_rank),
     .help = "which one this is on its machine, from 0"},
    {.kind = CLI_TEXT,
     .name = "rendezvous",
     .also = "master-addr rdzv-endpoint",
     .arg = "HOST:PORT",
     .at = AT(rendezvous),
     .help = "where rank 0 listens"},
};

#define CLIP_OPTION                                                                                \
    {                                                                                              \
        .kind = CLI_REAL, .name = "clip", .also = "clip-grad gradient-clipping max-grad-norm",     \
        .arg = "X", .at = AT(clip), .def = "1", .max = INT64_MAX,                                  \
        .help = "largest norm of the gradient; 0: no clipping"                                     \
    }
static const cli_option check_options[] = {CLIP_OPTION};

static const cli_option train_options[] = {
    {.kind = CLI_HEADING, .help = "Training"},
    {.kind = CLI_TEXT,
     .name = "data",
     .also = "data-path train-data-path dataset",
     .arg = "FILE",
     .at = AT(data),
     .help = "any text file; its last tenth is for validation"},
    {.kind = CLI_TEXT,
     .name = "vocab",
     .also = "vocab-file",
     .arg = "FILE",
     .at = AT(vocab),
     .help = "GPT-2's vocab.json; without it each byte is a token"},
    {.kind = CLI_TEXT,
     .name = "merges",
     .also = "merge-file merges-file",
     .arg = "FILE",
     .at = AT(merges),
     .help = "GPT-2's merges.txt"},
    {.kind = CLI_INT,
     .name = "steps",
     .also = "train-iters max-steps iterations",
     .arg = "N",
     .at = AT(steps),
     .def = "100",
     .min = 1,
     .max = 1000000000,
     .help = "optimizer steps"},
    {.kind = CLI_REAL,
     .name = "lr",
     .also = "learning-rate",
     .arg = "X",
     .at = AT(lr),
     .def = "0.001",
     .max = INT64_MAX,
     .help = "highest learning rate"},
    {.kind = CLI_INT,
     .name = "warmup",
     .also = "lr-warmup-iters warmup-steps lr-warmup-fraction",
     .arg = "N",
     .at = AT(warmup),
     .def = "10",
     .min = 0,
     .max = 1000000000,
     .help = "steps of linear warm-up; half a cosine follows"},
    CLIP_OPTION,
    {.kind = CLI_REAL,
     .name = "weight-decay",
     .arg = "X",
     .at = AT(weight_decay),
     .def = "0.1",
     .max = INT64_MAX,
     .help = "of matrices and tables"},
    {.kind = CLI_INT,
     .name = "val-every",
     .also = "eval-interval",
     .arg = "N",
     .at = AT(val_every),
     .def = "50",
     .min = 0,
     .max = 1000000000,
     .help = "steps between validations; 0: only at the end"},
    {.kind = CLI_INT,
     .name = "val-batches",
     .also = "eval-iters",
     .arg = "N",
     .at = AT(val_batches),
     .def = "8",
     .min = 1,
     .max = 1000000,
     .help = "microbatches of a validation"},
    {.kind = CLI_TEXT,
     .name = "trace",
     .writes = true,
     .arg = "FILE",
     .at = AT(trace),
     .help = "write the last step's trace (*.gz is compressed)"},
    {.kind = CLI_INT,
     .name = "periods",
     .arg = "N",
     .at = AT(periods),
     .def = "1",
     .min = 1,
     .max = 1000,
     .help = "last steps that the trace shows; they overlap under --post-validation"},
    {.kind = CLI_TEXT,
     .name = "out",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(out),
     .help = "write the final weights as safetensors"},
    {.kind = CLI_INT,
     .name = "skip-limit",
     .arg = "N",
     .at = AT(skip_limit),
     .def = "0",
     .min = 0,
     .max = 1000000000,
     .help = "steps that may be left out because loss or gradient is not finite; 0: the first one "
             "ends the run"},
    {.kind = CLI_TEXT,
     .name = "save",
     .arg = "DIR",
     .at = AT(save),
     .help = "write a checkpoint at the end, and when interrupted, into this folder"},
    {.kind = CLI_INT,
     .name = "save-every",
     .also = "save-interval save-steps",
     .arg = "N",
     .at = AT(save_every),
     .def = "0",
     .min = 0,
     .max = 1000000000,
     .help = "also every N steps; 0: not"},
    {.kind = CLI_INT,
     .name = "keep",
     .arg = "N",
     .at = AT(keep),
     .def = "3",
     .min = 0,
     .max = 1000000000,
     .help = "newest checkpoints that stay; 0: all"},
    {.kind = CLI_TEXT,
     .name = "resume",
     .also = "load resume-from-checkpoint",
     .arg = "DIR|FILE",
     .at = AT(resume),
     .help = "go on from the newest checkpoint of a folder, or from a file, under any plan"},
    {.kind = CLI_FLAG, .name = "quiet", .at = AT(quiet), .help = "no progress line"},
};

#define LINK_OPTION                                                                                \
    {                                                                                              \
        .kind = CLI_CHOICE, .name = "link", .arg = "NAME", .at = AT(link),                         \
        .choices = "threads|mpi|tcp", .def = "threads",                                            \
        .help = "of a --profile: what moves tensors between ranks"                                 \
    }
static const cli_option order_options[] = {
    {.kind = CLI_HEADING, .help = "Orders"},
    {.kind = CLI_TEXT,
     .name = "cluster",
     .letter = 'c',
     .arg = "PRESET|FILE",
     .at = AT(cluster),
     .help = "schedules that search find their order for this machine, the one of psim run with "
             "the same options: a preset of psim list, or a JSON file"},
    {.kind = CLI_TEXT,
     .name = "profile",
     .arg = "FILE",
     .at = AT(profile),
     .help = "so too, for the machine that psim calibrate fitted this for"},
    LINK_OPTION,
};

static const cli_option emulate_options[] = {
    {.kind = CLI_HEADING, .help = "Emulated devices"},
    {.kind = CLI_TEXT,
     .name = "cluster",
     .letter = 'c',
     .arg = "PRESET|FILE",
     .at = AT(cluster),
     .help = "what lies between the devices: a preset of psim list (h100-dgx:2 is two nodes), or a "
             "JSON file; default: this machine. Schedules that search find their order for it"},
    {.kind = CLI_TEXT,
     .name = "profile",
     .arg = "FILE",
     .at = AT(profile),
     .help = "what psim calibrate fitted for this machine, instead of a cluster: the ranks share "
             "its cores, and messages take what was measured"},
    LINK_OPTION,
    {.kind = CLI_BYTES,
     .name = "offload",
     .arg = "BYTES",
     .at = AT(offload),
     .help =
         "memory for the ranks: those that do not fit into it, the ones used longest ago, lie in "
         "a file (a GPU's: in the host's memory) until it is their turn; losses are the same"},
    {.kind = CLI_TEXT,
     .name = "offload-dir",
     .arg = "DIR",
     .at = AT(offload_dir),
     .def = "/var/tmp",
     .help = "folder of that file, on a disk"},
    {.kind = CLI_CHOICE,
     .name = "protocol",
     .arg = "HOW",
     .at = AT(protocol),
     .choices = "eager|rendezvous",
     .help = "when messages leave; default: eager with --times, else rendezvous"},
};

static const cli_option bench_options[] = {
    {.kind = CLI_HEADING, .help = "Bench"},
    {.kind = CLI_INT,
     .name = "repeats",
     .arg = "N",
     .at = AT(repeats),
     .def = "6",
     .min = 1,
     .max = 1000,
     .help = "measurements of each sample, at least; the sample is their median"},
    {.kind = CLI_REAL,
     .name = "precision",
     .arg = "X",
     .at = AT(precision),
     .def = "0.02",
     .help = "repeat until half the 95 % interval of the median is this part of it; 0: just "
             "--repeats times"},
    {.kind = CLI_REAL,
     .name = "budget",
     .arg = "S",
     .at = AT(budget),
     .def = "60",
     .help = "seconds; what is not precise by then stays so, and recompute modes, degrees and "
             "vocabulary shards that were not asked for are left out"},
    {.kind = CLI_TEXT,
     .name = "out",
     .writes = true,
     .letter = 'o',
     .arg = "FILE",
     .at = AT(out),
     .help = "write the samples here instead of to stdout"},
};

static const cli_table run_tables[] = {
    {request_options, REQUEST_OPTION_COUNT, AT(what)},
    CLI_TABLE(order_options, 0),
    CLI_TABLE(train_options, 0),
    CLI_TABLE(machine_options, 0),
    CLI_TABLE(launch_options, 0),
};
static const cli_table emulate_tables[] = {
    {request_options, REQUEST_OPTION_COUNT, AT(what)},
    CLI_TABLE(emulate_options, 0),
    CLI_TABLE(train_options, 0),
    CLI_TABLE(machine_options, 0),
};
static const cli_table check_tables[] = {
    {request_options, REQUEST_OPTION_COUNT, AT(what)},
    CLI_TABLE(order_options, 0),
    CLI_TABLE(check_options, 0),
    CLI_TABLE(machine_options, 0),
    CLI_TABLE(launch_options, 0),
};
static const cli_table bench_tables[] = {
    {request_options, REQUEST_OPTION_COUNT, AT(what)},
    CLI_TABLE(bench_options, 0),
    CLI_TABLE(machine_options, 0),
    CLI_TABLE(launch_options, 0),
};
static const cli_table devices_tables[] = {CLI_TABLE(machine_options, 0)};

static const cli_verb verbs[] = {
    {.name = "train",
     .summary = "train a model under a schedule",
     .tables = run_tables,
     .n_tables = sizeof run_tables / sizeof *run_tables,
     .run = cmd_train,
     .example = "pexec train --model tiny-gpt2 --schedule 1f1b --pp 4 --microbatches 8 --data "
                "/usr/share/common-licenses/GPL-3 --steps 50"},
    {.name = "emulate",
     .summary = "train a plan of many ranks on the one device there is",
     .tables = emulate_tables,
     .n_tables = sizeof emulate_tables / sizeof *emulate_tables,
     .run = cmd_emulate,
     .about = "Runs the passes of all ranks one after the other, in the order of simulated time. "
              "Each pass takes the time that it took here; messages and collectives take what the "
              "cluster, or --times comm=,coll=, says. Losses are those of pexec train, bit for "
              "bit; --trace is the timeline that so many devices would show.",
     .example =
         "pexec emulate --model tiny-gpt2 --schedule 1f1b --pp 8 --microbatches 16 --cluster "
         "h100-dgx --data /usr/share/common-licenses/GPL-3 --steps 10 --trace emulated.json"},
    {.name = "check",
     .summary = "prove a plan: the same numbers as one rank without a pipeline",
     .tables = check_tables,
     .n_tables = sizeof check_tables / sizeof *check_tables,
     .run = cmd_check,
     .about = "Trains three steps under the plan and in a plain loop on one rank, and compares "
              "loss, every gradient and the weights; bit for bit where the order of sums is the "
              "same, else within 1e-5 of each tensor's norm (bf16 beside fp32: 6e-2). Copies of "
              "one weight (twins, replicas, tied tables) must be equal bit for bit, and the "
              "highest byte touched must "
              "be the predicted one. BERT-style models hide tokens. Exit code 1 when a law is "
              "broken.",
     .example = "pexec check --model tiny-gpt2 --schedule 1f1b --pp 4 --microbatches 8"},
    {.name = "bench",
     .summary = "measure this machine's passes, for psim calibrate",
     .tables = bench_tables,
     .n_tables = sizeof bench_tables / sizeof *bench_tables,
     .run = cmd_bench,
     .about =
         "Measures every pass of layers, embedding and head, by length, context, recompute "
         "mode and tensor-parallel degree, each alone and with all cores at work; shards of "
         "the vocabulary; optimizer and norm; matrix products and copies; messages and sums "
         "between ranks that are threads. --recompute and --tp choose one mode and one "
         "degree. Between processes (--processes, mpirun, torchrun) only messages and sums are "
         "measured: give both files to psim calibrate.",
     .example = "pexec bench --model tiny-gpt2 --out samples.txt"},
    {.name = "devices",
     .summary = "say what can compute here",
     .tables = devices_tables,
     .n_tables = 1,
     .run = cmd_devices,
     .example = "pexec devices"},
};

static const cli_program program = {
    .name = "pexec",
    .summary = "train under a pipeline-parallel plan, for real",
    .example = "pexec check --model tiny-gpt2 --schedule 1f1b --pp 4 --microbatches 8",
    .version = "0.1.0",
    .verbs = verbs,
    .n_verbs = sizeof verbs / sizeof *verbs,
};

const char *pexec_blas(const pexec_options *o)
{
    static const char *const names[] = {"auto", "openblas", "onednn", "own"}; /* as in choices */
    return names[o->blas];
}

int main(int argc, char **argv)
{
    pexec_options options;
    return cli_main(&program, argc, argv, &options, sizeof options);
}
