/* Offsets in a rank's arena. Buffers of the whole run lie at the bottom; the others are placed in
 * order of birth, each into the lowest gap that fits. */
#include "schedules/lower_memory.h"

#include <stdlib.h>

typedef struct gap {
    uint32_t first, end; /* units of PLAN_ALIGN; the last gap is open-ended */
} gap;

typedef struct gaps {
    td_arena *a;
    gap *items; /* ascending, not touching */
    size_t n, cap;
} gaps;

static uint32_t units_of(const plan *p, const plan_buffer *b)
{
    return (uint32_t)((p->bclasses[b->bclass].bytes + PLAN_ALIGN - 1) / PLAN_ALIGN);
}

/* The lowest gap that fits, UINT32_MAX when the arena has no such room. */
static uint32_t take(gaps *g, uint32_t units)
{
    size_t i = 0;
    while (i < g->n && g->items[i].end - g->items[i].first < units) i++;
    if (i == g->n) return UINT32_MAX;
    const uint32_t at = g->items[i].first;
    g->items[i].first += units;
    if (g->items[i].first == g->items[i].end) {
        for (size_t j = i + 1; j < g->n; j++) g->items[j - 1] = g->items[j];
        g->n--;
    }
    return at;
}

static td_status give_back(gaps *g, uint32_t first, uint32_t units, td_err *err)
{
    size_t i = g->n;
    while (i > 0 && g->items[i - 1].first > first) i--; /* goes before items[i] */
    const bool joins_left = i > 0 && g->items[i - 1].end == first;
    const bool joins_right = i < g->n && g->items[i].first == first + units;
    if (joins_left && joins_right) {
        g->items[i - 1].end = g->items[i].end;
        for (size_t j = i + 1; j < g->n; j++) g->items[j - 1] = g->items[j];
        g->n--;
    } else if (joins_left) {
        g->items[i - 1].end += units;
    } else if (joins_right) {
        g->items[i].first = first;
    } else {
        TD_TRY(TD_GROW(g->a, g->items, g->cap, g->n + 1, err));
        for (size_t j = g->n; j > i; j--) g->items[j] = g->items[j - 1];
        g->items[i] = (gap){.first = first, .end = first + units};
        g->n++;
    }
    return TD_OK;
}

/* A buffer among those that are born or die at one position. */
typedef struct event {
    uint32_t at, units, buffer;
} event;

static int by_birth(const void *a, const void *b)
{
    const event *const x = a, *const y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    if (x->units != y->units) return x->units > y->units ? -1 : 1; /* large ones first */
    return x->buffer < y->buffer ? -1 : x->buffer > y->buffer;
}

static td_status no_room(uint32_t rank, td_err *err)
{
    return td_fail(err, TD_EUSAGE, "rank %u: its buffers do not fit %lld bytes", rank,
                   (long long)UINT32_MAX * PLAN_ALIGN);
}

/* Buffers of the whole run one above the other. */
static td_status place_bottom(plan *p, uint32_t rank, uint32_t *bottom, td_err *err)
{
    const plan_rank *const k = &p->ranks[rank];
    int64_t units = 0;
    for (uint32_t i = 0; i < k->n_buffers; i++) {
        plan_buffer *const b = &p->buffers[k->first_buffer + i];
        if (p->bclasses[b->bclass].bytes > (int64_t)UINT32_MAX * PLAN_ALIGN / 2)
            return no_room(rank, err);
        if (b->birth != 0 || b->death != UINT32_MAX) continue;
        b->offset = (uint32_t)units;
        units += units_of(p, b);
        if (units >= UINT32_MAX) return no_room(rank, err);
    }
    *bottom = (uint32_t)units;
    return TD_OK;
}

td_status memory_place(td_arena *a, plan *p, uint32_t rank, td_err *err)
{
    uint32_t bottom = 0;
    TD_TRY(place_bottom(p, rank, &bottom, err));
    plan_rank *const k = &p->ranks[rank];
    plan_buffer *const buffers = &p->buffers[k->first_buffer];
    event *const births = TD_NEW_N(a, event, k->n_buffers);
    event *const deaths = TD_NEW_N(a, event, k->n_buffers);
    if (births == NULL || deaths == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    uint32_t n = 0;
    for (uint32_t i = 0; i < k->n_buffers; i++) {
        plan_buffer *const b = &buffers[i];
        const uint32_t units = units_of(p, b);
        if (b->birth == 0 && b->death == UINT32_MAX) continue;
        births[n] = (event){.at = b->birth, .units = units, .buffer = i};
        deaths[n++] = (event){.at = b->death, .units = units, .buffer = i};
    }
    qsort(births, n, sizeof *births, by_birth);
    qsort(deaths, n, sizeof *deaths, by_birth);
    gaps g = {.a = a};
    TD_TRY(TD_GROW(a, g.items, g.cap, 1, err));
    g.items[0] = (gap){.first = bottom, .end = UINT32_MAX};
    g.n = 1;
    uint32_t top = bottom;
    for (uint32_t i = 0, dead = 0; i < n; i++) {
        for (; dead < n && deaths[dead].at < births[i].at; dead++)
            TD_TRY(give_back(&g, buffers[deaths[dead].buffer].offset, deaths[dead].units, err));
        plan_buffer *const b = &buffers[births[i].buffer];
        b->offset = take(&g, births[i].units);
        if (b->offset == UINT32_MAX) return no_room(rank, err);
        if (b->offset + births[i].units > top) top = b->offset + births[i].units;
    }
    k->persistent_bytes = (int64_t)bottom * PLAN_ALIGN;
    k->arena_bytes = (int64_t)top * PLAN_ALIGN;
    return TD_OK;
}
