/* Windows of passes: earliest starts from what is done, latest ends from the spans wanted. */
#include "schedules/zb_windows.h"

#include <string.h>

static int64_t divisor(int64_t a, int64_t b)
{
    while (b != 0) {
        const int64_t c = a % b;
        a = b;
        b = c;
    }
    return a;
}

/* How many passes of I and W must be done before F k, each if the other is as many as it can be. */
static void set_needs(zb_windows *w, const zb_problem *q, int32_t r)
{
    const int64_t f = q->delta[ZB_F][r], i = q->delta[ZB_I][r], wt = q->delta[ZB_W][r];
    int32_t n_i = 0, n_w = 0;
    for (int32_t k = 0; k < w->m; k++) {
        const int64_t room = q->limit[r] - f * (k + 1);
        while (n_i < k && (i + wt) * n_i > room) n_i++;
        while (n_w < k && i * k + wt * n_w > room) n_w++;
        *zb_window(w, w->need[0], r, k) = n_i;
        *zb_window(w, w->need[1], r, k) = n_w;
    }
}

td_status zb_windows_new(const zb_problem *q, int64_t longest_ns, td_arena *a, zb_windows *out,
                         td_err *err)
{
    const size_t n = (size_t)q->p * (size_t)q->m;
    zb_windows *const w = out;
    *w = (zb_windows){.q = q, .p = q->p, .m = q->m, .unit_ns = q->comm_ns};
    for (int k = 0; k < 3; k++)
        for (int32_t r = 0; r < q->p; r++) w->unit_ns = divisor(w->unit_ns, q->pass_ns[k][r]);
    if (w->unit_ns == 0) w->unit_ns = 1;
    if (longest_ns / w->unit_ns > INT32_MAX / 8)
        return td_fail(err, TD_EUSAGE,
                       "--opt search=exact: durations share no unit larger than %lld ns, which "
                       "gives too many; round them",
                       (long long)w->unit_ns);
    bool ok = true;
    int32_t **const per_rank[] = {&w->ns[0], &w->ns[1], &w->ns[2],
                                  &w->head,  &w->clock, &w->deadline};
    int32_t **const per_pass[] = {&w->need[0],   &w->need[1], &w->latest[0], &w->latest[1],
                                  &w->latest[2], &w->end[0],  &w->end[1],    &w->end[2]};
    for (size_t i = 0; i < sizeof per_rank / sizeof *per_rank; i++)
        ok &= (*per_rank[i] = TD_NEW_N(a, int32_t, q->p)) != NULL;
    for (size_t i = 0; i < sizeof per_pass / sizeof *per_pass; i++)
        ok &= (*per_pass[i] = TD_NEW_N(a, int32_t, n)) != NULL;
    w->memory = TD_NEW_N(a, int64_t, q->p);
    w->count = td_alloc(a, (size_t)q->p, sizeof *w->count);
    if (!ok || w->memory == NULL || w->count == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for an exact search");
    w->comm = (int32_t)(q->comm_ns / w->unit_ns);
    for (int32_t r = 0; r < q->p; r++) {
        if (q->delta[ZB_I][r] > 0)
            return td_fail(err, TD_EUSAGE,
                           "--opt search=exact: stage %d keeps more after an input gradient than "
                           "before it, which this search does not cover; legal: "
                           "--activation-limit in place of --memory-limit",
                           r);
        for (int k = 0; k < 3; k++) w->ns[k][r] = (int32_t)(q->pass_ns[k][r] / w->unit_ns);
        w->head[r] = r == 0 ? 0 : w->head[r - 1] + w->ns[ZB_F][r - 1] + w->comm;
        set_needs(w, q, r);
    }
    return TD_OK;
}

static void lower_to(int32_t *x, int32_t value)
{
    if (*x > value) *x = value;
}

/* Latest ends: of the rank's window less what must follow, and of what waits on other ranks. */
static void set_latest(zb_windows *w)
{
    const int32_t m = w->m;
    for (int32_t r = 0; r < w->p; r++) /* I goes to rank r - 1, so ranks ascend */
        for (int32_t k = m - 1; k >= 0; k--) {
            const int32_t f = w->ns[ZB_F][r], i = w->ns[ZB_I][r], wt = w->ns[ZB_W][r];
            int32_t *const li = zb_window(w, w->latest[ZB_I], r, k);
            *zb_window(w, w->latest[ZB_W], r, k) = w->deadline[r] - (m - 1 - k) * wt;
            *zb_window(w, w->latest[ZB_F], r, k) =
                w->deadline[r] - (m - 1 - k) * f - (m - k) * (i + wt);
            *li = w->deadline[r] - (m - 1 - k) * i - (m - k) * wt;
            if (r > 0)
                lower_to(li,
                         *zb_window(w, w->latest[ZB_I], r - 1, k) - w->ns[ZB_I][r - 1] - w->comm);
            if (k + 1 < m) lower_to(li, *zb_window(w, w->latest[ZB_I], r, k + 1) - i);
        }
    for (int32_t r = w->p - 1; r >= 0; r--)
        for (int32_t k = m - 1; k >= 0; k--) {
            int32_t *const lf = zb_window(w, w->latest[ZB_F], r, k);
            lower_to(lf, *zb_window(w, w->latest[ZB_I], r, k) - w->ns[ZB_I][r]);
            if (k + 1 < m) lower_to(lf, *zb_window(w, w->latest[ZB_F], r, k + 1) - w->ns[ZB_F][r]);
            if (r + 1 < w->p)
                lower_to(lf,
                         *zb_window(w, w->latest[ZB_F], r + 1, k) - w->ns[ZB_F][r + 1] - w->comm);
        }
}

void zb_windows_restart(zb_windows *w, int32_t span)
{
    memset(w->count, 0, (size_t)w->p * sizeof *w->count);
    memset(w->memory, 0, (size_t)w->p * sizeof *w->memory);
    for (int32_t r = 0; r < w->p; r++) {
        w->clock[r] = w->head[r];
        w->deadline[r] = w->head[r] + span;
    }
    set_latest(w);
}

int32_t zb_next_start(const zb_windows *w, int32_t r, int kind)
{
    const int32_t k = w->count[r][kind];
    const int32_t near = kind == ZB_F ? r - 1 : r + 1;
    int32_t start = w->clock[r];
    if (k == w->m || (kind != ZB_F && k == w->count[r][kind - 1])) return -1;
    if (w->memory[r] + w->q->delta[kind][r] > w->q->limit[r]) return -1;
    if (kind == ZB_W || near < 0 || near >= w->p) return start;
    if (w->count[near][kind] <= k) return -1;
    const int32_t data = *zb_window(w, w->end[kind], near, k) + w->comm;
    return data > start ? data : start;
}

void zb_windows_run(zb_windows *w, int32_t r, int kind, int32_t start)
{
    w->clock[r] = start + w->ns[kind][r];
    *zb_window(w, w->end[kind], r, w->count[r][kind]++) = w->clock[r];
    w->memory[r] += w->q->delta[kind][r];
}

void zb_windows_undo(zb_windows *w, int32_t r, int kind, int32_t clock)
{
    w->clock[r] = clock;
    w->count[r][kind]--;
    w->memory[r] -= w->q->delta[kind][r];
}

static int32_t later(int32_t a, int32_t b) { return a > b ? a : b; }

/* Earliest end of F k of rank r, whose data ends on rank r-1 at `data`: after the passes of its own
 * rank that must come before it. */
static int32_t forward_end(const zb_windows *w, int32_t r, int32_t k, int32_t data)
{
    const int32_t *const n = w->count[r];
    const int32_t need_i = *zb_window(w, w->need[0], r, k),
                  need_w = *zb_window(w, w->need[1], r, k);
    int32_t t = w->clock[r] + (k - n[ZB_F]) * w->ns[ZB_F][r];
    if (need_i > n[ZB_I]) t += (need_i - n[ZB_I]) * w->ns[ZB_I][r];
    if (need_w > n[ZB_W]) t += (need_w - n[ZB_W]) * w->ns[ZB_W][r];
    if (r > 0) t = later(t, data + w->comm);
    if (need_i > 0) t = later(t, *zb_window(w, w->end[ZB_I], r, need_i - 1));
    if (need_w > 0) t = later(t, *zb_window(w, w->end[ZB_W], r, need_w - 1));
    return t + w->ns[ZB_F][r];
}

/* One pass of microbatch k over all ranks: F down, I up, W. False when an end is too late. */
static bool open_microbatch(zb_windows *w, int32_t k)
{
    for (int32_t r = 0; r < w->p; r++) {
        if (k < w->count[r][ZB_F]) continue;
        int32_t *const end = zb_window(w, w->end[ZB_F], r, k);
        *end = forward_end(w, r, k, r > 0 ? *zb_window(w, w->end[ZB_F], r - 1, k) : 0);
        if (k > 0) *end = later(*end, end[-1] + w->ns[ZB_F][r]);
        if (*end > *zb_window(w, w->latest[ZB_F], r, k)) return false;
    }
    for (int32_t r = w->p - 1; r >= 0; r--) {
        const int32_t *const n = w->count[r];
        const int32_t f = w->ns[ZB_F][r], i = w->ns[ZB_I][r], wt = w->ns[ZB_W][r];
        const int32_t forwards = k + 1 > n[ZB_F] ? k + 1 - n[ZB_F] : 0;
        if (k >= n[ZB_I]) {
            int32_t *const end = zb_window(w, w->end[ZB_I], r, k);
            int32_t t = w->clock[r] + forwards * f + (k - n[ZB_I]) * i;
            t = later(t, *zb_window(w, w->end[ZB_F], r, k));
            if (k > 0) t = later(t, end[-1]);
            if (r + 1 < w->p) t = later(t, *zb_window(w, w->end[ZB_I], r + 1, k) + w->comm);
            *end = t + i;
            if (*end > *zb_window(w, w->latest[ZB_I], r, k)) return false;
        }
        if (k >= n[ZB_W]) {
            int32_t *const end = zb_window(w, w->end[ZB_W], r, k);
            const int32_t inputs = k + 1 > n[ZB_I] ? k + 1 - n[ZB_I] : 0;
            int32_t t = w->clock[r] + forwards * f + inputs * i + (k - n[ZB_W]) * wt;
            t = later(t, *zb_window(w, w->end[ZB_I], r, k));
            if (k > 0) t = later(t, end[-1]);
            *end = t + wt;
            if (*end > *zb_window(w, w->latest[ZB_W], r, k)) return false;
        }
    }
    return true;
}

/* When a rank is done at the earliest if its passes run in the order of their earliest starts. */
static int32_t rank_end(const zb_windows *w, int32_t r)
{
    int32_t at[3], t = w->clock[r];
    for (int k = 0; k < 3; k++) at[k] = w->count[r][k];
    for (;;) {
        int next = -1;
        int32_t start = INT32_MAX;
        for (int k = 0; k < 3; k++) {
            if (at[k] == w->m) continue;
            const int32_t s = *zb_window(w, w->end[k], r, at[k]) - w->ns[k][r];
            if (s >= start) continue;
            start = s;
            next = k;
        }
        if (next < 0) return t;
        t = later(t, start) + w->ns[next][r];
        at[next]++;
    }
}

bool zb_windows_open(zb_windows *w)
{
    for (int32_t k = 0; k < w->m; k++)
        if (!open_microbatch(w, k)) return false;
    for (int32_t r = 0; r < w->p; r++)
        if (rank_end(w, r) > w->deadline[r]) return false;
    return true;
}
