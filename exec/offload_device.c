/* Memory of ranks that takes turns on a device: those that are away lie at the host. */
#include "exec/offload.h"

typedef struct device_place {
    device *const *d;
} device_place;

static td_status open_memory(void *self, int64_t bytes, rank_arena *out, td_err *err)
{
    device *const d = *((const device_place *)self)->d;
    const int64_t room = rank_arena_room(bytes);
    void *at = NULL;
    TD_TRY(d->methods->alloc_either(d, room, &at, err));
    TD_TRY(d->methods->move(d, at, room, true, err));
    TD_TRY(d->methods->fill(d, at, rank_arena_canary(), room / 8, err));
    rank_arena_use(at, bytes, out);
    return TD_OK;
}

static td_status bring(void *self, const rank_arena *r, td_err *err)
{
    device *const d = *((const device_place *)self)->d;
    return d->methods->move(d, r->base, rank_arena_room(r->bytes), true, err);
}

static td_status put_away(void *self, const rank_arena *r, td_err *err)
{
    device *const d = *((const device_place *)self)->d;
    return d->methods->move(d, r->base, rank_arena_room(r->bytes), false, err);
}

static void close_nothing(void *self) { (void)self; } /* the device frees what it gave */

td_status offload_device(device *const *d, td_arena *a, offload_place *out, td_err *err)
{
    device_place *const p = TD_NEW(a, device_place);
    if (p == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the ranks");
    p->d = d;
    *out = (offload_place){p, open_memory, bring, put_away, close_nothing};
    return TD_OK;
}
