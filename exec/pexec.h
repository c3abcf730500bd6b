/* What the verbs of pexec share. */
#ifndef EXEC_PEXEC_H
#define EXEC_PEXEC_H

#include "base/cli.h"
#include "exec/device.h"
#include "exec/exec.h"
#include "exec/launch.h"
#include "schedules/request.h"

typedef struct pexec_options {
    request what;
    bool json, deterministic;
    int backend; /* 0 cpu, 1 cuda */
    int wire;    /* 0 auto, 1 threads, 2 mpi, 3 tcp, 4 nccl */
    int blas;    /* as pexec_blas names them */
    int64_t threads_per_rank, seed, timeout;
    /* processes */
    int64_t processes, gpus;
    const char *rank, *world, *local_rank, *rendezvous;
    /* train */
    const char *data, *vocab, *merges, *trace, *out;
    int64_t periods;
    int64_t steps, warmup, val_every, val_batches;
    const char *save, *resume;
    int64_t save_every, keep, skip_limit;
    double lr, clip, weight_decay;
    bool quiet;
    /* emulate */
    const char *cluster, *profile;
    int link;        /* sample_link, of a profile */
    int64_t offload; /* bytes; 0: all ranks stay in memory */
    const char *offload_dir;
    int protocol; /* sim_protocol, -1: by kind of times */
    /* bench */
    int64_t repeats;
    double precision, budget;
} pexec_options;

/* How to train where no thread of a rank does: sets the executor's period. */
typedef struct train_engine {
    const char *producer;
    td_status (*open)(void *self, const run_setup *s, executor *x, td_arena *a, td_err *err);
    void *self;
    const char *protocol; /* known once it is open */
    offload *offload;     /* where the ranks' memory is; NULL: here */
    device *device;       /* what computes, known before memory is asked for; NULL: the cores */
} train_engine;

/* Trains as the options say; engine NULL: on threads. */
TD_MUST_USE td_status pexec_train(td_arena *a, const cli_args *args, const pexec_options *o,
                                  train_engine *engine, td_err *err);

td_status cmd_emulate(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_train(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_check(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_bench(td_arena *a, const cli_args *args, const void *options, td_err *err);
td_status cmd_devices(td_arena *a, const cli_args *args, const void *options, td_err *err);

/* --- cmd_device.c --- */

bool pexec_on_cuda(const pexec_options *o);
/* What --backend asks for: *out is NULL for the cores, else a device, for its methods->close; that
 * of this process where there are several (who; NULL: the first one). TD_EDEVICE where this machine
 * or build lacks it. */
TD_MUST_USE td_status pexec_device(const pexec_options *o, const launch *who, bool bf16,
                                   td_arena *a, device **out, td_err *err);
/* What processes with a device have to know of each other: fills ordered_sums and device_is_shared.
 * All processes call it. */
TD_MUST_USE td_status pexec_share(const pexec_options *o, team *t, const device *d, td_arena *a,
                                  exec_options *run, td_err *err);
/* The name of --blas for k_blas_open. */
const char *pexec_blas(const pexec_options *o);
/* --- cmd_team.c --- */

/* Joins the processes of the run, or starts them; *out is NULL when there is one, *who says which
 * this is. who->size is 0 in the process that started them, when all are gone: nothing is left to
 * be done there. */
TD_MUST_USE td_status pexec_join(const pexec_options *o, td_arena *a, launch *who, team **out,
                                 td_err *err);
/* The same version, command line, model and plan on all processes, and a process a rank. */
TD_MUST_USE td_status pexec_same(team *t, const run_setup *s, const cli_args *args, td_err *err);
/* Says on stderr where the ranks of this process stand, after a step that failed because something
 * did not come. */
void pexec_report(const executor *x, td_status st);
/* Parts with the processes: with st, which is returned, others are told why unless all agreed on
 * it. Only one process keeps a message to print. */
TD_MUST_USE td_status pexec_leave(team *t, td_status st, td_err *err);

#endif
