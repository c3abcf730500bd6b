/* Who this process is among the processes of a run: read from what the launcher put into the
 * environment. */
#ifndef EXEC_LAUNCH_H
#define EXEC_LAUNCH_H

#include "base/base.h"

typedef enum launcher {
    LAUNCHED_ALONE,
    LAUNCHED_BY_FLAGS,    /* --rank, --world, --local-rank, --rendezvous HOST:PORT; --processes */
    LAUNCHED_BY_TORCHRUN, /* RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT */
    LAUNCHED_BY_OPENMPI,  /* OMPI_COMM_WORLD_* */
    LAUNCHED_BY_MPICH,    /* PMI_RANK, PMI_SIZE, MPI_LOCALRANKID */
    LAUNCHED_BY_SLURM     /* SLURM_PROCID and the other variables of a step */
} launcher;

typedef struct launch {
    launcher by;
    uint32_t rank, size;
    uint32_t local_rank, local_size; /* on this host; local_size 0: not said */
    char host[256];                  /* where rank 0 listens; empty: not said */
    uint16_t port;                   /* 0: not said */
    uint64_t key;                    /* of this run: processes of others, or of an earlier start of
                                        this one, have another */
    int listener;                    /* rank 0: a socket that listens already; 0: none */
} launch;

/* Reads "NAME=value" texts, ended by NULL; names of flags begin with their dashes. The first
 * launcher whose rank is set wins, in the order of the enum. PEXEC_PORT sets the port. Errors:
 * TD_EUSAGE with one line for a variable that is missing, no number, out of range, or contradicts
 * another. */
TD_MUST_USE td_status launch_read(const char *const *environment, launch *out, td_err *err);

/* "mpirun", "torchrun", ... */
const char *launcher_name(launcher by);

/* The first host of a Slurm node list such as "n[01-04,7],gpu3": "n01". */
TD_MUST_USE td_status launch_first_host(const char *list, char *host, size_t size, td_err *err);

#endif
