/* Launchers and their variables. */
#include "exec/launch.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

typedef struct variables {
    const char *const *all;
} variables;

static const char *look_up(variables v, const char *name)
{
    const size_t n = strlen(name);
    for (size_t i = 0; v.all != NULL && v.all[i] != NULL; i++)
        if (strncmp(v.all[i], name, n) == 0 && v.all[i][n] == '=') return v.all[i] + n + 1;
    return NULL;
}

/* A launcher's names; NULL: it has none. */
typedef struct launch_names {
    const char *launcher, *rank, *size, *other_size, *local_rank, *local_size;
} launch_names;

static const launch_names names_of[] = {
    [LAUNCHED_ALONE] = {.launcher = "no launcher"},
    [LAUNCHED_BY_FLAGS] = {"the command line", "--rank", "--world", NULL, "--local-rank", NULL},
    [LAUNCHED_BY_TORCHRUN] = {"torchrun", "RANK", "WORLD_SIZE", NULL, "LOCAL_RANK",
                              "LOCAL_WORLD_SIZE"},
    [LAUNCHED_BY_OPENMPI] = {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", NULL,
                             "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
    [LAUNCHED_BY_MPICH] = {"mpiexec", "PMI_RANK", "PMI_SIZE", NULL, "MPI_LOCALRANKID",
                           "MPI_LOCALNRANKS"},
    [LAUNCHED_BY_SLURM] = {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS",
                           "SLURM_LOCALID", NULL},
};

const char *launcher_name(launcher by) { return names_of[by].launcher; }

/* A batch script of Slurm has a SLURM_PROCID too, without being one of a step's processes. */
static bool in_slurm_step(variables v)
{
    return look_up(v, "SLURM_STEP_ID") != NULL || look_up(v, "SLURM_STEP_NUM_TASKS") != NULL ||
           look_up(v, "SLURM_STEP_NODELIST") != NULL;
}

static launcher find_launcher(variables v)
{
    for (int by = LAUNCHED_BY_FLAGS; by <= LAUNCHED_BY_SLURM; by++) {
        const launch_names *const n = &names_of[by];
        if (by == LAUNCHED_BY_SLURM && !in_slurm_step(v)) continue;
        if (look_up(v, n->rank) != NULL) return (launcher)by;
        if (by != LAUNCHED_BY_SLURM && look_up(v, n->size) != NULL) return (launcher)by;
    }
    return LAUNCHED_ALONE;
}

static td_status read_number(variables v, const char *by, const char *name, int64_t max,
                             uint32_t *out, td_err *err)
{
    const char *const s = look_up(v, name);
    if (s == NULL) return td_fail(err, TD_EUSAGE, "%s is not set, but others of %s are", name, by);
    int64_t x = 0;
    td_err why;
    if (td_parse_i64(s, 0, max, name, &x, &why) != TD_OK)
        return td_fail(err, TD_EUSAGE, "%s=%.100s: it must be a number from 0 to %lld", name, s,
                       (long long)max);
    *out = (uint32_t)x;
    return TD_OK;
}

static td_status read_numbers(variables v, const launch_names *n, launch *out, td_err *err)
{
    const int64_t most = 1 << 20;
    const char *size = n->size;
    if (n->other_size != NULL && look_up(v, size) == NULL) size = n->other_size;
    TD_TRY(read_number(v, n->launcher, n->rank, most - 1, &out->rank, err));
    TD_TRY(read_number(v, n->launcher, size, most, &out->size, err));
    if (out->size == 0) return td_fail(err, TD_EUSAGE, "%s=0: at least one process runs", size);
    if (out->rank >= out->size)
        return td_fail(err, TD_EUSAGE, "%s=%u: %s is %u, so ranks go from 0 to %d", n->rank,
                       out->rank, size, out->size, (int)out->size - 1);
    out->local_rank = 0;
    if (look_up(v, n->local_rank) != NULL)
        TD_TRY(read_number(v, n->launcher, n->local_rank, most, &out->local_rank, err));
    else if (out->size > 1)
        return td_fail(err, TD_EUSAGE, "%s is not set, but others of %s are", n->local_rank,
                       n->launcher);
    if (n->local_size != NULL && look_up(v, n->local_size) != NULL) {
        TD_TRY(read_number(v, n->launcher, n->local_size, most, &out->local_size, err));
        if (out->local_rank >= out->local_size)
            return td_fail(err, TD_EUSAGE, "%s=%u: %s is %u", n->local_rank, out->local_rank,
                           n->local_size, out->local_size);
        if (out->local_size > out->size)
            return td_fail(err, TD_EUSAGE, "%s=%u: more than %s=%u", n->local_size, out->local_size,
                           size, out->size);
    }
    if (out->local_rank > out->rank)
        return td_fail(err, TD_EUSAGE, "%s=%u: larger than %s=%u", n->local_rank, out->local_rank,
                       n->rank, out->rank);
    return TD_OK;
}

/* --- where rank 0 is --- */

td_status launch_first_host(const char *list, char *host, size_t size, td_err *err)
{
    const size_t head = strcspn(list, ",[");
    size_t n = head;
    const char *number = "";
    size_t digits = 0;
    const char *tail = "";
    size_t rest = 0;
    if (list[head] == '[') {
        number = list + head + 1;
        digits = strspn(number, "0123456789");
        const char *const close = strchr(number, ']');
        if (digits == 0 || close == NULL)
            return td_fail(err, TD_EUSAGE,
                           "SLURM_STEP_NODELIST=%.100s: no list of hosts such as n[01-04,7]", list);
        tail = close + 1;
        rest = strcspn(tail, ",[");
    }
    n += digits + rest;
    if (n == 0 || n >= size)
        return td_fail(err, TD_EUSAGE, "SLURM_STEP_NODELIST=%.100s: no host in it", list);
    (void)snprintf(host, size, "%.*s%.*s%.*s", (int)head, list, (int)digits, number, (int)rest,
                   tail);
    return TD_OK;
}

enum { FIRST_JOB_PORT = 20000, JOB_PORTS = 10000 };

static td_status read_port(variables v, const char *name, uint32_t add, uint16_t *out, td_err *err)
{
    const char *const s = look_up(v, name);
    int64_t port = 0;
    td_err why;
    if (s == NULL) return TD_OK;
    if (td_parse_i64(s, 1, 65535 - (int64_t)add, name, &port, &why) != TD_OK)
        return td_fail(err, TD_EUSAGE, "%s=%.100s: a port is a number from 1 to 65535", name, s);
    *out = (uint16_t)(port + add);
    return TD_OK;
}

static td_status meet_by_torchrun(variables v, launch *out, td_err *err)
{
    const char *const host = look_up(v, "MASTER_ADDR");
    /* torchrun's own store may listen on MASTER_PORT already: ours takes the next one */
    const char *const agent = look_up(v, "TORCHELASTIC_USE_AGENT_STORE");
    const bool taken = agent != NULL && (strcmp(agent, "True") == 0 || strcmp(agent, "1") == 0);
    if (host != NULL) (void)snprintf(out->host, sizeof out->host, "%.250s", host);
    TD_TRY(read_port(v, "MASTER_PORT", taken ? 1 : 0, &out->port, err));
    if (out->size > 1 && (host == NULL || out->port == 0))
        return td_fail(err, TD_EUSAGE,
                       "%s is not set; with RANK and WORLD_SIZE it says where rank "
                       "0 is",
                       host == NULL ? "MASTER_ADDR" : "MASTER_PORT");
    return TD_OK;
}

/* HOST:PORT, tcp://HOST:PORT, [IPv6]:PORT */
static td_status meet_by_flags(variables v, launch *out, td_err *err)
{
    static const char scheme[] = "tcp://";
    const char *at = look_up(v, "--rendezvous");
    if (at == NULL && out->size == 1) return TD_OK;
    if (at == NULL)
        return td_fail(err, TD_EUSAGE,
                       "--rendezvous is not set; with --rank and --world it says where rank 0 "
                       "listens: HOST:PORT");
    const char *const whole = at;
    if (strncmp(at, scheme, sizeof scheme - 1) == 0) at += sizeof scheme - 1;
    const char *const colon = strrchr(at, ':');
    int64_t port = 0;
    td_err why;
    size_t n = colon == NULL ? 0 : (size_t)(colon - at);
    if (n > 2 && at[0] == '[' && at[n - 1] == ']') {
        at++;
        n -= 2;
    }
    if (n == 0 || n >= sizeof out->host ||
        td_parse_i64(colon + 1, 1, 65535, "port", &port, &why) != TD_OK)
        return td_fail(err, TD_EUSAGE,
                       "--rendezvous=%.100s: it is HOST:PORT, with a port from 1 to 65535", whole);
    (void)snprintf(out->host, sizeof out->host, "%.*s", (int)n, at);
    out->port = (uint16_t)port;
    return TD_OK;
}

static td_status meet_by_slurm(variables v, launch *out, td_err *err)
{
    const char *list = look_up(v, "SLURM_STEP_NODELIST");
    if (list == NULL) list = look_up(v, "SLURM_JOB_NODELIST");
    if (list == NULL) list = look_up(v, "SLURM_NODELIST");
    const char *const job = look_up(v, "SLURM_JOB_ID");
    if (out->size > 1 && (list == NULL || job == NULL))
        return td_fail(err, TD_EUSAGE, "%s is not set, but others of srun are",
                       list == NULL ? "SLURM_STEP_NODELIST" : "SLURM_JOB_ID");
    if (list != NULL) TD_TRY(launch_first_host(list, out->host, sizeof out->host, err));
    if (job == NULL) return TD_OK;
    int64_t id = 0, step = 0;
    td_err why;
    if (td_parse_i64(job, 0, INT64_MAX / 64, "SLURM_JOB_ID", &id, &why) != TD_OK)
        return td_fail(err, TD_EUSAGE, "SLURM_JOB_ID=%.100s: it must be a number", job);
    const char *const s = look_up(v, "SLURM_STEP_ID");
    if (s != NULL && td_parse_i64(s, 0, INT64_MAX / 64, "SLURM_STEP_ID", &step, &why) != TD_OK)
        step = 0;
    /* steps of one job on one host differ */
    out->port = (uint16_t)(FIRST_JOB_PORT + (id * 7 + step) % JOB_PORTS);
    return TD_OK;
}

static uint64_t key_of(variables v)
{
    static const char *const parts[] = {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
                                        "SLURM_JOB_ID", "SLURM_STEP_ID"};
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *s = look_up(v, parts[i]);
        for (; s != NULL && *s != '\0'; s++) h = (h ^ (uint8_t)*s) * 0x100000001b3u;
        h = (h ^ 0xff) * 0x100000001b3u;
    }
    return h;
}

td_status launch_read(const char *const *environment, launch *out, td_err *err)
{
    const variables v = {environment};
    *out = (launch){.by = find_launcher(v), .size = 1, .local_size = 1};
    if (out->by == LAUNCHED_ALONE) return TD_OK;
    out->local_size = 0;
    out->key = key_of(v);
    TD_TRY(read_numbers(v, &names_of[out->by], out, err));
    if (out->by == LAUNCHED_BY_FLAGS) return meet_by_flags(v, out, err);
    if (out->by == LAUNCHED_BY_SLURM) TD_TRY(meet_by_slurm(v, out, err));
    if (out->by == LAUNCHED_BY_TORCHRUN) TD_TRY(meet_by_torchrun(v, out, err));
    if (out->host[0] == '\0' && look_up(v, "MASTER_ADDR") != NULL)
        (void)snprintf(out->host, sizeof out->host, "%.250s", look_up(v, "MASTER_ADDR"));
    if (out->port == 0) TD_TRY(read_port(v, "MASTER_PORT", 0, &out->port, err));
    return read_port(v, "PEXEC_PORT", 0, &out->port, err);
}
