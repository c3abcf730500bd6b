/* Which ranks are in memory. */
#include "exec/offload.h"

#include "base/text.h"

#include <inttypes.h>

typedef struct lodger {
    rank_arena memory; /* a copy: where it is */
    bool here;
    int64_t used; /* when, by the count of uses */
} lodger;

struct offload {
    offload_place place;
    td_arena *arena;
    lodger *ranks; /* [n] */
    size_t n, cap;
    int64_t here_bytes, uses;
    offload_stats stats;
    td_err why; /* of a touch that failed; code TD_OK: none did */
};

td_status offload_open(const offload_place *place, int64_t limit, td_arena *a, offload **out,
                       td_err *err)
{
    *out = TD_NEW(a, offload);
    if (*out == NULL) {
        place->close(place->self);
        return td_fail(err, TD_ENOMEM, "out of memory for the ranks");
    }
    **out = (offload){.place = *place, .arena = a, .stats = {.limit_bytes = limit}};
    return TD_OK;
}

void offload_close(offload *o)
{
    if (o != NULL) o->place.close(o->place.self);
}

static int64_t room_of(const lodger *l) { return rank_arena_room(l->memory.bytes); }

/* Makes room for so many bytes more. */
static td_status make_room(offload *o, int64_t bytes, td_err *err)
{
    while (o->here_bytes + bytes > o->stats.limit_bytes) {
        lodger *last = NULL;
        for (size_t i = 0; i < o->n; i++)
            if (o->ranks[i].here && (last == NULL || o->ranks[i].used < last->used))
                last = &o->ranks[i];
        if (last == NULL) return TD_OK;
        TD_TRY(o->place.put_away(o->place.self, &last->memory, err));
        last->here = false;
        o->here_bytes -= room_of(last);
    }
    return TD_OK;
}

static void arrive(offload *o, lodger *l)
{
    l->here = true;
    l->used = ++o->uses;
    o->here_bytes += room_of(l);
    if (o->here_bytes > o->stats.most_bytes) o->stats.most_bytes = o->here_bytes;
}

td_status offload_arena(offload *o, int64_t bytes, rank_arena *out, td_err *err)
{
    const int64_t room = rank_arena_room(bytes);
    char need[32], limit[32];
    if (room > o->stats.limit_bytes)
        return td_fail(err, TD_EUSAGE, "--offload %s: rank %zu alone needs %s",
                       td_print_bytes(limit, sizeof limit, o->stats.limit_bytes), o->n,
                       td_print_bytes(need, sizeof need, room));
    TD_TRY(TD_GROW(o->arena, o->ranks, o->cap, o->n + 1, err));
    TD_TRY(make_room(o, room, err));
    TD_TRY(o->place.open(o->place.self, bytes, out, err));
    lodger *const l = &o->ranks[o->n++];
    *l = (lodger){.memory = *out};
    o->stats.all_bytes += room;
    arrive(o, l);
    return TD_OK;
}

td_status offload_use(offload *o, uint32_t rank, td_err *err)
{
    if (o == NULL) return TD_OK;
    lodger *const l = &o->ranks[rank];
    if (o->why.code != TD_OK) return td_fail(err, o->why.code, "%s", o->why.msg);
    l->used = ++o->uses;
    if (l->here) return TD_OK;
    TD_TRY(make_room(o, room_of(l), err));
    TD_TRY(o->place.bring(o->place.self, &l->memory, err));
    arrive(o, l);
    o->stats.brought++;
    o->stats.brought_bytes += room_of(l);
    return TD_OK;
}

void offload_touch(offload *o, uint32_t rank)
{
    td_err why = {0};
    if (offload_use(o, rank, &why) != TD_OK) o->why = why;
}

td_status offload_sweep(offload *o, td_err *err)
{
    for (size_t i = 0; o != NULL && i < o->n; i++)
        if (!o->ranks[i].here) TD_TRY(o->place.put_away(o->place.self, &o->ranks[i].memory, err));
    return TD_OK;
}

bool offload_is_here(const offload *o, uint32_t rank) { return o->ranks[rank].here; }

offload_stats offload_stats_of(const offload *o) { return o->stats; }
