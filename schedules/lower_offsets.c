/* Offsets in a rank's arena. Buffers of the whole run lie at the bottom; the others are placed in
 * order of birth, each into the lowest gap that fits. Where that leaves holes at the peak, and
 * there are few enough to compare each with each, they are placed in order of size instead if that
 * is tighter: large ones first leave holes that small ones fill. */
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
    return td_fail(err, TD_EUSAGE,
                   "rank %u: its buffers need over %lld GiB: more than a plan can place on one "
                   "rank; more --pp, --tp or --recompute leaves less on each",
                   rank, (long long)UINT32_MAX * PLAN_ALIGN >> 30);
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

/* The buffers of a rank that come and go. */
typedef struct arena {
    td_arena *a;
    plan *p;
    plan_buffer *buffers;
    uint32_t rank, bottom, n;
    event *births, *deaths; /* [n] in order */
} arena;

static td_status open_events(arena *x, uint32_t n_buffers, td_err *err)
{
    x->births = TD_NEW_N(x->a, event, n_buffers);
    x->deaths = TD_NEW_N(x->a, event, n_buffers);
    if (x->births == NULL || x->deaths == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (uint32_t i = 0; i < n_buffers; i++) {
        const plan_buffer *const b = &x->buffers[i];
        const uint32_t units = units_of(x->p, b);
        if (b->birth == 0 && b->death == UINT32_MAX) continue;
        x->births[x->n] = (event){.at = b->birth, .units = units, .buffer = i};
        x->deaths[x->n++] = (event){.at = b->death, .units = units, .buffer = i};
    }
    qsort(x->births, x->n, sizeof *x->births, by_birth);
    qsort(x->deaths, x->n, sizeof *x->deaths, by_birth);
    return TD_OK;
}

/* Units that live at once, at most: no placement needs less. */
static uint64_t most_alive(const arena *x)
{
    uint64_t now = 0, most = 0;
    for (uint32_t i = 0, dead = 0; i < x->n; i++) {
        for (; x->deaths[dead].at < x->births[i].at; dead++) now -= x->deaths[dead].units;
        now += x->births[i].units;
        if (now > most) most = now;
    }
    return most;
}

static td_status place_by_birth(arena *x, uint32_t *top, td_err *err)
{
    gaps g = {.a = x->a};
    TD_TRY(TD_GROW(x->a, g.items, g.cap, 1, err));
    g.items[0] = (gap){.first = x->bottom, .end = UINT32_MAX};
    g.n = 1;
    *top = x->bottom;
    for (uint32_t i = 0, dead = 0; i < x->n; i++) {
        for (; x->deaths[dead].at < x->births[i].at; dead++)
            TD_TRY(give_back(&g, x->buffers[x->deaths[dead].buffer].offset, x->deaths[dead].units,
                             err));
        plan_buffer *const b = &x->buffers[x->births[i].buffer];
        b->offset = take(&g, x->births[i].units);
        if (b->offset == UINT32_MAX) return no_room(x->rank, err);
        if (b->offset + x->births[i].units > *top) *top = b->offset + x->births[i].units;
    }
    return TD_OK;
}

/* A buffer that has its place. */
typedef struct placed {
    uint32_t first, units, birth, death, buffer;
} placed;

static int by_size(const void *a, const void *b)
{
    const event *const x = a, *const y = b;
    if (x->units != y->units) return x->units > y->units ? -1 : 1;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return x->buffer < y->buffer ? -1 : x->buffer > y->buffer;
}

/* Each at the lowest place that is free all its life; takes effect if it ends below *top. */
static td_status place_by_size(arena *x, uint32_t *top, td_err *err)
{
    placed *const q = TD_NEW_N(x->a, placed, x->n); /* by first */
    if (q == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    qsort(x->births, x->n, sizeof *x->births, by_size);
    for (uint32_t i = 0; i < x->n; i++) {
        const event *const e = &x->births[i];
        const plan_buffer *const b = &x->buffers[e->buffer];
        uint64_t at = x->bottom;
        for (uint32_t j = 0; j < i && q[j].first < at + e->units; j++)
            if (q[j].birth <= b->death && b->birth <= q[j].death && q[j].first + q[j].units > at)
                at = (uint64_t)q[j].first + q[j].units;
        if (at + e->units >= *top) return TD_OK;
        uint32_t j = i;
        for (; j > 0 && q[j - 1].first > at; j--) q[j] = q[j - 1];
        q[j] = (placed){(uint32_t)at, e->units, b->birth, b->death, e->buffer};
    }
    uint32_t end = x->bottom;
    for (uint32_t i = 0; i < x->n; i++) {
        x->buffers[q[i].buffer].offset = q[i].first;
        if (q[i].first + q[i].units > end) end = q[i].first + q[i].units;
    }
    *top = end;
    return TD_OK;
}

td_status memory_place(td_arena *a, plan *p, uint32_t rank, td_err *err)
{
    const uint64_t comparisons = 200000000; /* of all ranks: a fraction of a second */
    plan_rank *const k = &p->ranks[rank];
    arena x = {.a = a, .p = p, .buffers = &p->buffers[k->first_buffer], .rank = rank};
    TD_TRY(place_bottom(p, rank, &x.bottom, err));
    TD_TRY(open_events(&x, k->n_buffers, err));
    uint32_t top = 0;
    TD_TRY(place_by_birth(&x, &top, err));
    if (top - x.bottom > most_alive(&x) && (uint64_t)x.n * x.n < comparisons / p->n_ranks)
        TD_TRY(place_by_size(&x, &top, err));
    k->persistent_bytes = (int64_t)x.bottom * PLAN_ALIGN;
    k->arena_bytes = (int64_t)top * PLAN_ALIGN;
    return TD_OK;
}
