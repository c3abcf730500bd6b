/* Communicators: how they begin and end. */
#include "standin_gpu.h"
#include "standin_nccl.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <time.h>
#include <unistd.h>

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t r)
{
    static const char *const words[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return words[r];
}

const char *ncclGetLastError(ncclComm_t c) { return c == nullptr ? "" : c->why.c_str(); }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static uint64_t n;
    memset(id, 0, sizeof *id);
    const nccl_lock guard(nccl_mutex());
    (void)snprintf(id->internal, sizeof id->internal, "%d-%lld-%llu", (int)getpid(),
                   (long long)time(nullptr), (unsigned long long)n++);
    return ncclSuccess;
}

static uint64_t who_and_where(void)
{
    char host[256] = "";
    int device = 0;
    (void)gethostname(host, sizeof host - 1);
    (void)cudaGetDevice(&device);
    const char *const set = getenv("NCCL_HOSTID");
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *s = set != nullptr ? set : host; *s != '\0'; s++)
        h = (h ^ (uint8_t)*s) * 0x100000001b3u;
    return (h ^ (uint64_t)device) * 0x100000001b3u;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    if (n < 1 || rank < 0 || rank >= n || config == nullptr || config->size != sizeof *config)
        return ncclInvalidArgument;
    ncclComm *const c = new ncclComm;
    {
        const nccl_lock guard(nccl_mutex());
        c->n = n;
        c->rank = rank;
        c->blocking = config->blocking != 0;
        c->identity = who_and_where();
        c->peers.resize((size_t)n);
        c->id = id;
        nccl_listen(c, id);
    }
    *comm = c;
    return nccl_settle(c);
}

ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    {
        const nccl_lock guard(nccl_mutex());
        if (nccl_under_way(c)) return nccl_wrong(c, "an end while a call is under way");
        if (c->issued != c->ended) return nccl_wrong(c, "an end before its operations are over");
        if (c->registered != 0) return nccl_wrong(c, "memory is still registered");
        c->finalized = true;
        for (int i = 0; i < c->n; i++)
            if (i != c->rank) nccl_push(c, i, FRAME_BYE, 0, nullptr, 0);
        c->polls = 2;
    }
    return nccl_settle(c);
}

ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    const nccl_lock guard(nccl_mutex());
    if (!c->finalized) return nccl_wrong(c, "it is destroyed without having been finalized");
    nccl_hang_up(c);
    delete c;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c)
{
    const nccl_lock guard(nccl_mutex());
    c->aborted = true; /* its memory stays: work on streams still asks for it */
    c->unconnected.clear();
    nccl_hang_up(c);
    return ncclSuccess;
}

ncclResult_t ncclCommRegister(ncclComm_t c, void *at, size_t, void **handle)
{
    const nccl_lock guard(nccl_mutex());
    c->registered++;
    *handle = at;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(ncclComm_t c, void *handle)
{
    const nccl_lock guard(nccl_mutex());
    if (handle == nullptr || c->registered == 0)
        return nccl_wrong(c, "memory that is not registered");
    c->registered--;
    return ncclSuccess;
}
