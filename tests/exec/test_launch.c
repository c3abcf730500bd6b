/* Launchers' variables, right and wrong. */
#include "exec/launch.h"

#include "t.h"

#include <stdio.h>
#include <string.h>

typedef struct launch_case {
    const char *variables[10];
    launch want;
    const char *error; /* a part of it, or NULL */
} launch_case;

static const launch_case right[] = {
    {{"HOME=/root"}, {.by = LAUNCHED_ALONE, .size = 1, .local_size = 1}, NULL},
    {{"RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4", "MASTER_ADDR=node0",
      "MASTER_PORT=29500"},
     {LAUNCHED_BY_TORCHRUN, 5, 8, 1, 4, "node0", 29500, 0, 0},
     NULL},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=10.0.0.1", "MASTER_PORT=29500",
      "TORCHELASTIC_USE_AGENT_STORE=True"},
     {LAUNCHED_BY_TORCHRUN, 0, 2, 0, 0, "10.0.0.1", 29501, 0, 0},
     NULL},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=h", "MASTER_PORT=29500",
      "PEXEC_PORT=7000"},
     {LAUNCHED_BY_TORCHRUN, 0, 2, 0, 0, "h", 7000, 0, 0},
     NULL},
    {{"OMPI_COMM_WORLD_RANK=3", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2"},
     {LAUNCHED_BY_OPENMPI, 3, 4, 1, 2, "", 0, 0, 0},
     NULL},
    {{"--rank=5", "--world=8", "--local-rank=1", "--rendezvous=node0:7000", "RANK=1"},
     {LAUNCHED_BY_FLAGS, 5, 8, 1, 0, "node0", 7000, 0, 0},
     NULL},
    {{"--rank=0", "--world=2", "--local-rank=0", "--rendezvous=tcp://[fe80::1]:29500"},
     {LAUNCHED_BY_FLAGS, 0, 2, 0, 0, "fe80::1", 29500, 0, 0},
     NULL},
    {{"PMI_RANK=1", "PMI_SIZE=2", "MPI_LOCALRANKID=1", "MPI_LOCALNRANKS=2"},
     {LAUNCHED_BY_MPICH, 1, 2, 1, 2, "", 0, 0, 0},
     NULL},
    {{"SLURM_PROCID=6", "SLURM_NTASKS=8", "SLURM_LOCALID=2", "SLURM_STEP_NODELIST=n[03-04,7],m1",
      "SLURM_JOB_ID=1234"},
     {LAUNCHED_BY_SLURM, 6, 8, 2, 0, "n03", 20000 + 1234 * 7 % 10000, 0, 0},
     NULL},
    /* the step's size counts, not the job's */
    {{"SLURM_PROCID=1", "SLURM_NTASKS=8", "SLURM_STEP_NUM_TASKS=2", "SLURM_LOCALID=1",
      "SLURM_STEP_NODELIST=a", "SLURM_JOB_ID=9", "SLURM_STEP_ID=3"},
     {LAUNCHED_BY_SLURM, 1, 2, 1, 0, "a", 20000 + 66, 0, 0},
     NULL},
    /* a batch script is not one of the processes that srun starts */
    {{"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_JOB_ID=9", "SLURM_NODELIST=n[1-2]"},
     {.by = LAUNCHED_ALONE, .size = 1, .local_size = 1},
     NULL},
};

static const launch_case wrong[] = {
    {{"RANK=1"}, {0}, "WORLD_SIZE is not set"},
    {{"WORLD_SIZE=2"}, {0}, "RANK is not set"},
    {{"RANK=2", "WORLD_SIZE=2", "LOCAL_RANK=0"}, {0}, "RANK=2: WORLD_SIZE is 2"},
    {{"RANK=x", "WORLD_SIZE=2", "LOCAL_RANK=0"}, {0}, "RANK=x: it must be a number"},
    {{"RANK=-1", "WORLD_SIZE=2", "LOCAL_RANK=0"}, {0}, "RANK=-1: it must be a number"},
    {{"RANK=0", "WORLD_SIZE=0", "LOCAL_RANK=0"}, {0}, "WORLD_SIZE=0"},
    {{"RANK=0", "WORLD_SIZE=2"}, {0}, "LOCAL_RANK is not set"},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=1"}, {0}, "LOCAL_RANK=1: larger than RANK=0"},
    {{"RANK=3", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2"}, {0}, "LOCAL_RANK=2"},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=4"},
     {0},
     "more than WORLD_SIZE=2"},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_PORT=1"}, {0}, "MASTER_ADDR is not set"},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=h"}, {0}, "MASTER_PORT is not set"},
    {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=h", "MASTER_PORT=70000"},
     {0},
     "MASTER_PORT=70000: a port"},
    {{"OMPI_COMM_WORLD_RANK=0"}, {0}, "OMPI_COMM_WORLD_SIZE is not set, but others of mpirun are"},
    {{"--rank=0"}, {0}, "--world is not set, but others of the command line are"},
    {{"--world=2", "RANK=0"}, {0}, "--rank is not set"},
    {{"--rank=2", "--world=2", "--local-rank=0"}, {0}, "--rank=2: --world is 2"},
    {{"--rank=1", "--world=2"}, {0}, "--local-rank is not set"},
    {{"--rank=1", "--world=2", "--local-rank=1"}, {0}, "--rendezvous is not set"},
    {{"--rank=1", "--world=2", "--local-rank=1", "--rendezvous=h"}, {0}, "it is HOST:PORT"},
    {{"--rank=1", "--world=2", "--local-rank=1", "--rendezvous=h:99999"}, {0}, "it is HOST:PORT"},
    {{"--rank=1", "--world=2", "--local-rank=1", "--rendezvous=:80"}, {0}, "it is HOST:PORT"},
    {{"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_LOCALID=0", "SLURM_STEP_NODELIST=n[]",
      "SLURM_JOB_ID=1"},
     {0},
     "no list of hosts"},
    {{"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_LOCALID=0", "SLURM_STEP_NODELIST=n1"},
     {0},
     "SLURM_JOB_ID is not set"},
};

static void test_right(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        const launch_case *const c = &right[i];
        launch got;
        td_err err = {0};
        if (launch_read(c->variables, &got, &err) != TD_OK) fail_msg("case %zu: %s", i, err.msg);
        if (got.by != c->want.by || got.rank != c->want.rank || got.size != c->want.size ||
            got.local_rank != c->want.local_rank || got.local_size != c->want.local_size ||
            strcmp(got.host, c->want.host) != 0 || got.port != c->want.port)
            fail_msg("case %zu: %s rank %u/%u local %u/%u at %s:%u", i, launcher_name(got.by),
                     got.rank, got.size, got.local_rank, got.local_size, got.host, got.port);
    }
}

static void test_wrong(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        launch got;
        td_err err = {0};
        if (launch_read(wrong[i].variables, &got, &err) != TD_EUSAGE)
            fail_msg("case %zu was taken", i);
        if (strstr(err.msg, wrong[i].error) == NULL || strchr(err.msg, '\n') != NULL)
            fail_msg("case %zu: '%s', not '%s'", i, err.msg, wrong[i].error);
    }
}

static void test_hosts(void **state)
{
    (void)state;
    static const char *const lists[][2] = {
        {"n1", "n1"},
        {"n1,n2", "n1"},
        {"n[1-4]", "n1"},
        {"n[01,03-09]", "n01"},
        {"n[7]x,y", "n7x"},
        {"gpu-a[12-13],b", "gpu-a12"},
        {"node3.cluster.org", "node3.cluster.org"},
    };
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        char host[64];
        td_err err;
        assert_int_equal(launch_first_host(lists[i][0], host, sizeof host, &err), TD_OK);
        assert_string_equal(host, lists[i][1]);
    }
    char host[4];
    td_err err;
    assert_int_equal(launch_first_host("", host, sizeof host, &err), TD_EUSAGE);
    assert_int_equal(launch_first_host("n[1-", host, sizeof host, &err), TD_EUSAGE);
    assert_int_equal(launch_first_host("toolong", host, sizeof host, &err), TD_EUSAGE);
}

/* Processes of an earlier start of the same job must not be taken for this one's. */
static void test_keys(void **state)
{
    (void)state;
    static const char *const first[] = {"RANK=0", "WORLD_SIZE=1", "TORCHELASTIC_RUN_ID=a",
                                        "TORCHELASTIC_RESTART_COUNT=0", NULL};
    static const char *const again[] = {"RANK=0", "WORLD_SIZE=1", "TORCHELASTIC_RUN_ID=a",
                                        "TORCHELASTIC_RESTART_COUNT=1", NULL};
    launch a, b;
    td_err err;
    assert_int_equal(launch_read(first, &a, &err), TD_OK);
    assert_int_equal(launch_read(again, &b, &err), TD_OK);
    assert_true(a.key != b.key);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),
        cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_hosts),
        cmocka_unit_test(test_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
