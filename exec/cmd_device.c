/* Which device a process of pexec computes on. */
#include "exec/pexec.h"
#include "exec/wire_nccl.h"

#include <stdio.h>

bool pexec_on_cuda(const pexec_options *o) { return o->backend == 1 || o->gpus > 0; }

td_status pexec_device(const pexec_options *o, const launch *who, bool bf16, td_arena *a,
                       device **out, td_err *err)
{
    *out = NULL;
    if (!pexec_on_cuda(o)) return TD_OK;
    /* one process has no need of it, and loading all that NCCL has takes time and memory */
    if (who != NULL && who->size > 1) nccl_prepare();
    device *const d = TD_NEW(a, device);
    if (d == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the device");
    const int n = device_count_cuda();
    /* processes of one machine take its devices in turn */
    const int index = who == NULL || n == 0 ? 0 : (int)(who->local_rank % (uint32_t)n);
    TD_TRY(device_open_cuda(index, bf16, a, d, err));
    *out = d;
    return TD_OK;
}

td_status pexec_share(const pexec_options *o, team *t, const device *d, td_arena *a,
                      exec_options *run, td_err *err)
{
    run->ordered_sums = o->deterministic;
    if (d == NULL || t == NULL) return TD_OK;
    uint32_t sharing = 0;
    TD_TRY(nccl_share(t, d->place, a, &sharing, err));
    run->device_is_shared = sharing > 1;
    if (sharing > 1 && team_index(t) == 0)
        (void)fprintf(stderr, "pexec: %u ranks share GPU %s: good for tests, slow\n", sharing,
                      d->place);
    return TD_OK;
}
