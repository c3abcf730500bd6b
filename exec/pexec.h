/* What the verbs of pexec share. */
#ifndef EXEC_PEXEC_H
#define EXEC_PEXEC_H

#include "base/cli.h"
#include "exec/exec.h"
#include "schedules/request.h"

typedef struct pexec_options {
    request what;
    bool json;
    int backend; /* 0 cpu, 1 cuda */
    int wire;    /* 0 threads */
    int64_t threads_per_rank, seed;
    /* train */
    const char *data, *vocab, *merges, *trace, *out;
    int64_t steps, warmup, val_every, val_batches;
    double lr, clip, weight_decay;
    bool quiet;
    /* bench */
    int64_t repeats;
} pexec_options;

td_status cmd_train(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_check(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_bench(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_devices(td_arena *a, const cli_args *args, const void *options, td_err *err);

/* TD_EDEVICE when a backend is asked for that this build lacks. */
TD_MUST_USE td_status pexec_backend(const pexec_options *o, td_err *err);

#endif
