/* ZB-V (arXiv 2401.10241v1, section 6): two chunks a rank in a V, at 1F1B's memory on every rank.
 * Per microbatch F of chunk 0 goes down the ranks and F of chunk 1 up; I of chunk 1 goes down and
 * I of chunk 0 up. */
#include "schedules/zb_v.h"
#include "schedules/families.h"
#include "schedules/schedule_build.h"
#include "schedules/zb_search.h"

#include <string.h>

/* --- the order by hand --- */

/* Counts passes of a run of max(M, 2P-1) microbatches and keeps those below M. */
typedef struct hand {
    zb_order *o;
    int32_t rank, n;
    int32_t count[ZB_CODES];
} hand;

static void add(hand *h, zb_kind kind, int chunk)
{
    const uint8_t code = zb_code((int)kind, chunk);
    if (h->count[code]++ < h->o->m) zb_push(h->o, h->rank, code);
}

static int32_t done(const hand *h, zb_kind kind, int chunk)
{
    return h->count[zb_code((int)kind, chunk)];
}

static void hand_row(zb_order *o, int32_t rank)
{
    const int32_t p = o->p, n = o->m > 2 * p - 1 ? o->m : 2 * p - 1;
    hand h = {.o = o, .rank = rank, .n = n};
    for (int32_t i = 0; i < 2 * (p - rank) - 1; i++) add(&h, ZB_F, 0);
    for (int32_t i = 0; i < rank; i++) {
        add(&h, ZB_F, 1);
        add(&h, ZB_F, 0);
    }
    for (int32_t i = 0; i < p - rank; i++) {
        add(&h, ZB_F, 1);
        add(&h, ZB_I, 1);
        add(&h, ZB_W, 1);
    }
    while (done(&h, ZB_F, 1) < done(&h, ZB_F, 0) || done(&h, ZB_F, 0) < n) {
        if (done(&h, ZB_F, 0) < n) add(&h, ZB_F, 0);
        add(&h, ZB_I, 0);
        add(&h, ZB_W, 0);
        add(&h, ZB_F, 1);
        add(&h, ZB_I, 1);
        add(&h, ZB_W, 1);
    }
    for (int32_t i = 0; i < rank; i++) {
        add(&h, ZB_I, 0);
        add(&h, ZB_I, 1);
    }
    for (int32_t i = 0; i < p - rank; i++) {
        add(&h, ZB_I, 0);
        add(&h, ZB_W, 0);
    }
    for (int chunk = 1; chunk >= 0; chunk--)
        while (done(&h, ZB_W, chunk) < n) add(&h, ZB_W, chunk);
}

td_status zb_v_hand(int32_t p, int32_t m, td_arena *a, zb_order *out, td_err *err)
{
    TD_TRY(zb_order_new(a, p, m, 2, out, err));
    for (int32_t r = 0; r < p; r++) hand_row(out, r);
    return TD_OK;
}

/* --- the automatic order --- */

/* Where a run stands. The codes of passes are those of zb_core.h. */
typedef struct auto_v {
    const zb_problem *q;
    zb_order *o;
    int64_t *end[2]; /* of F and I, [2p * m] by stage and microbatch */
    int64_t *clock, *memory, *idle;
    const int64_t *allowed; /* idle times of an earlier run, or NULL */
    int64_t most_allowed;   /* the largest of them; -1 */
    int64_t most_idle;
    int32_t (*count)[ZB_CODES];
    int32_t *oldest; /* [p] W passes that ran; their order is that of the input gradients */
    uint8_t *inputs; /* [p * 2m] chunks of the I passes in order */
    bool fill_f, fill_i;
    bool stuck; /* a limit was too small */
} auto_v;

static const uint8_t fd = 0 /* zb_code(ZB_F, 0) */, fu = 1, iu = 2 /* I of chunk 0 */, id = 3;

/* Whether the pass that comes before on a neighbour has run; *at_ns is when its data is here, -1
 * where nothing on another rank comes before. */
static bool before(const auto_v *v, int32_t r, uint8_t code, int64_t *at_ns)
{
    const bool from_above = code == fd || code == id;
    const int32_t near = from_above ? r - 1 : r + 1, k = v->count[r][code];
    *at_ns = -1;
    if (near < 0 || near >= v->q->p) return true;
    if (v->count[near][code] <= k) return false;
    const int32_t stage = zb_stage(v->o, near, zb_chunk_of(code));
    *at_ns = v->end[zb_kind_of(code)][(size_t)stage * (size_t)v->q->m + (size_t)k] + v->q->comm_ns;
    return true;
}

static void place(auto_v *v, int32_t r, uint8_t code)
{
    const int kind = zb_kind_of(code);
    const int32_t stage = zb_stage(v->o, r, zb_chunk_of(code)), k = v->count[r][code]++;
    int64_t at = -1, start = v->clock[r];
    if (kind != ZB_W) {
        v->count[r][code]--;
        v->stuck |= !before(v, r, code, &at);
        v->count[r][code]++;
        if (at > start) start = at;
    }
    if (v->count[r][fd] - (code == fd) > 0) {
        v->idle[r] += start - v->clock[r];
        if (v->idle[r] > v->most_idle) v->most_idle = v->idle[r];
    }
    v->clock[r] = start + v->q->pass_ns[kind][stage];
    v->memory[r] += v->q->delta[kind][stage];
    v->stuck |= v->memory[r] > v->q->limit[r];
    if (kind != ZB_W) v->end[kind][(size_t)stage * (size_t)v->q->m + (size_t)k] = v->clock[r];
    if (kind == ZB_I)
        v->inputs[(size_t)r * 2 * (size_t)v->q->m +
                  (size_t)(v->count[r][iu] + v->count[r][id] - 1)] = (uint8_t)zb_chunk_of(code);
    zb_push(v->o, r, code);
}

static int32_t pending(const auto_v *v, int32_t r)
{
    return v->count[r][iu] + v->count[r][id] - v->oldest[r];
}

static void run_weight(auto_v *v, int32_t r)
{
    const uint8_t chunk = v->inputs[(size_t)r * 2 * (size_t)v->q->m + (size_t)v->oldest[r]++];
    place(v, r, zb_code(ZB_W, chunk));
}

static int64_t weight_ns(const auto_v *v, int32_t r)
{
    const uint8_t chunk = v->inputs[(size_t)r * 2 * (size_t)v->q->m + (size_t)v->oldest[r]];
    return v->q->pass_ns[ZB_W][zb_stage(v->o, r, chunk)];
}

static int64_t slack(const auto_v *v, int32_t r)
{
    const int64_t own = v->allowed != NULL ? v->allowed[r] : -1;
    const int64_t room = v->most_allowed - own;
    return (v->most_idle > room ? v->most_idle : room) - v->idle[r];
}

/* Weight gradients into the gap before the data of `code` is here. */
static void fill(auto_v *v, int32_t r, uint8_t code, bool small_gaps)
{
    int64_t at = -1;
    v->stuck |= !before(v, r, code, &at);
    if (at < 0) return;
    while (pending(v, r) > 0 && v->clock[r] + weight_ns(v, r) <= at) run_weight(v, r);
    if (pending(v, r) > 0 && at - v->clock[r] > slack(v, r) && small_gaps) run_weight(v, r);
}

static void make_room(auto_v *v, int32_t r, uint8_t code)
{
    const int64_t d = v->q->delta[zb_kind_of(code)][zb_stage(v->o, r, zb_chunk_of(code))];
    while (v->memory[r] + d > v->q->limit[r] && pending(v, r) > 0) run_weight(v, r);
    v->stuck |= v->memory[r] + d > v->q->limit[r];
}

/* F of chunk 0 once on every rank, then as many more as fit before F of chunk 1 comes back up. */
static void first_forwards(auto_v *v)
{
    const int32_t p = v->q->p;
    for (int32_t r = 0; r < p; r++) {
        make_room(v, r, fd);
        place(v, r, fd);
    }
    for (int32_t r = p - 1; r >= 0; r--) {
        int64_t at = -1;
        const int64_t f_ns = v->q->pass_ns[ZB_F][r], d = v->q->delta[ZB_F][r];
        (void)before(v, r, fu, &at);
        while (r < p - 1 && v->memory[r] + d * (2 + 2 * (int64_t)r) <= v->q->limit[r] &&
               v->clock[r] + f_ns <= at && v->count[r][fd] < v->q->m)
            for (int32_t up = 0; up <= r; up++) place(v, up, fd);
        place(v, r, fu);
    }
    uint8_t code = fd;
    for (int32_t r = 1; r < p; r++)
        while (v->count[r][fd] + v->count[r][fu] < v->count[r - 1][fd] + v->count[r - 1][fu] ||
               (v->count[r][fu] <= v->count[r - 1][fu] && v->count[r - 1][fu] < v->q->m)) {
            for (int32_t j = p - 1; j >= r; j--)
                if (v->count[j][code] < v->q->m) place(v, j, code);
            code = code == fd ? fu : fd;
        }
}

/* Whether a rank goes on with I of chunk 1 in this round. */
static bool takes_down(const auto_v *v, int32_t r)
{
    const int32_t *const n = v->count[r];
    if (n[iu] >= n[id]) return true;
    return r != v->q->p - 1 && v->count[r + 1][iu] <= n[iu] && n[id] < v->q->m;
}

/* The forward that a rank runs in this round, or ZB_CODES for none. */
static uint8_t next_forward(const auto_v *v, int32_t r)
{
    const int32_t *const n = v->count[r];
    if (n[fu] >= v->q->m) return ZB_CODES;
    if (n[fu] >= n[fd]) return fd;
    if (r == v->q->p - 1 || v->count[r + 1][fu] > n[fu]) return fu;
    const bool can = n[fd] < v->q->m && (r == 0 || v->count[r - 1][fd] > n[fd]);
    return can ? fd : ZB_CODES;
}

static void one_round(auto_v *v, bool *down)
{
    const int32_t p = v->q->p;
    for (int32_t r = 0; r < p; r++) {
        down[r] = takes_down(v, r);
        make_room(v, r, down[r] ? id : iu);
    }
    for (int32_t r = p - 1; r >= 0; r--) {
        if (down[r]) continue;
        fill(v, r, iu, true);
        place(v, r, iu);
    }
    for (int32_t r = 0; r < p; r++) {
        if (!down[r]) continue;
        fill(v, r, id, v->fill_i);
        place(v, r, id);
    }
    for (int32_t r = 0; r < p; r++) {
        const uint8_t code = next_forward(v, r);
        if (code == ZB_CODES) continue;
        make_room(v, r, code);
        fill(v, r, code, v->fill_f);
        place(v, r, code);
    }
}

static bool run(auto_v *v, bool *down)
{
    const size_t p = (size_t)v->q->p;
    memset(v->clock, 0, p * sizeof *v->clock);
    memset(v->memory, 0, p * sizeof *v->memory);
    memset(v->idle, 0, p * sizeof *v->idle);
    memset(v->count, 0, p * sizeof *v->count);
    memset(v->oldest, 0, p * sizeof *v->oldest);
    memset(v->o->n, 0, p * sizeof *v->o->n);
    v->most_idle = 0;
    v->stuck = false;
    first_forwards(v);
    for (int32_t i = 0; i < 2 * v->q->m && !v->stuck; i++) one_round(v, down);
    for (int32_t r = 0; r < v->q->p && !v->stuck; r++)
        while (pending(v, r) > 0) run_weight(v, r);
    return !v->stuck;
}

/* One setting of the switches: a run, and a second one that knows where the first was idle. */
static int64_t run_twice(auto_v *v, int64_t *idles, bool *down, zb_order *kept)
{
    v->allowed = NULL;
    v->most_allowed = -1;
    if (!run(v, down)) return -1;
    int64_t best = v->most_idle;
    zb_order_copy(kept, v->o);
    do {
        memcpy(idles, v->idle, (size_t)v->q->p * sizeof *idles);
        v->allowed = idles;
        v->most_allowed = best;
        if (!run(v, down) || v->most_idle >= best) break;
        best = v->most_idle;
        zb_order_copy(kept, v->o);
    } while (true);
    return best;
}

td_status zb_v_auto(const zb_problem *q, td_arena *a, zb_order *out, bool *found, td_err *err)
{
    const size_t p = (size_t)q->p, n = 2 * p * (size_t)q->m;
    zb_order work, kept;
    TD_TRY(zb_order_new(a, q->p, q->m, 2, &work, err));
    TD_TRY(zb_order_new(a, q->p, q->m, 2, &kept, err));
    TD_TRY(zb_order_new(a, q->p, q->m, 2, out, err));
    auto_v v = {.q = q,
                .o = &work,
                .end = {TD_NEW_N(a, int64_t, n), TD_NEW_N(a, int64_t, n)},
                .clock = TD_NEW_N(a, int64_t, p),
                .memory = TD_NEW_N(a, int64_t, p),
                .idle = TD_NEW_N(a, int64_t, p),
                .count = td_alloc(a, p, sizeof *v.count),
                .oldest = TD_NEW_N(a, int32_t, p),
                .inputs = TD_NEW_N(a, uint8_t, n)};
    int64_t *const idles = TD_NEW_N(a, int64_t, p);
    bool *const down = TD_NEW_N(a, bool, p);
    if (v.end[0] == NULL || v.end[1] == NULL || v.clock == NULL || v.memory == NULL ||
        v.idle == NULL || v.count == NULL || v.oldest == NULL || v.inputs == NULL ||
        idles == NULL || down == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for a search");
    int64_t best = INT64_MAX;
    for (int i = 0; i < 4; i++) {
        v.fill_f = i < 2;
        v.fill_i = i % 2 == 0;
        const int64_t idle = run_twice(&v, idles, down, &kept);
        if (idle < 0 || idle >= best) continue;
        best = idle;
        zb_order_copy(out, &kept);
    }
    *found = best < INT64_MAX;
    return TD_OK;
}

/* Stages whose durations lie so many eighths of the way from their mean to what they are. */
static td_status blend(const zb_problem *q, int eighths, td_arena *a, zb_problem *out, td_err *err)
{
    const int32_t n = 2 * q->p;
    *out = *q;
    for (int k = 0; k < 3; k++) {
        int64_t *const ns = TD_NEW_N(a, int64_t, n);
        int64_t mean = 0;
        if (ns == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %d stages", n);
        for (int32_t s = 0; s < n; s++) mean += q->pass_ns[k][s];
        mean /= n;
        for (int32_t s = 0; s < n; s++) ns[s] = mean + (q->pass_ns[k][s] - mean) / 8 * eighths;
        out->pass_ns[k] = ns;
    }
    return TD_OK;
}

td_status zb_v_even(const zb_problem *q, td_arena *a, zb_order *out, bool *found, td_err *err)
{
    zb_replay replay;
    zb_score best = {0};
    TD_TRY(zb_v_auto(q, a, out, found, err));
    if (*found) return TD_OK;
    TD_TRY(zb_replay_new(a, q, &replay, err));
    for (int eighths = 7; eighths >= 0; eighths--) {
        zb_problem like;
        zb_order o;
        zb_score s;
        bool fits = false;
        TD_TRY(blend(q, eighths, a, &like, err));
        TD_TRY(zb_v_auto(&like, a, &o, &fits, err));
        if (!fits || !zb_replay_run(q, &o, &replay, &s)) continue;
        if (*found && !zb_better(&s, &best, ZB_SPAN)) continue;
        *found = true;
        best = s;
        zb_order_copy(out, &o);
    }
    return TD_OK;
}

/* --- the family --- */

static td_status generate(const sched_request *q, td_arena *a, schedule *out, td_err *err)
{
    static const char *const forms[] = {"auto", "hand", NULL};
    int64_t form = 0;
    zb_problem z;
    zb_order o;
    TD_TRY(zb_check_shape(q, "zb-v", 2, err));
    TD_TRY(sched_option_choice(q, "form", forms, &form, err));
    if (form == 1) {
        TD_TRY(zb_v_hand(q->pp, q->microbatches, a, &o, err));
        return zb_order_schedule(&o, a, out, err);
    }
    bool found = false;
    sched_request no_bytes = *q; /* this form has one peak; whoever lowers it checks the bytes */
    no_bytes.memory_limit = 0;
    TD_TRY(zb_problem_of(&no_bytes, 2, false, q->pp, a, &z, err));
    TD_TRY(zb_v_even(&z, a, &o, &found, err));
    if (!found)
        return td_fail(err, TD_EPLAN,
                       "--activation-limit %g: zb-v keeps %d microbatch activations; legal: "
                       "--activation-limit %d or more, --schedule v-half or v-min, or --schedule "
                       "zb-auto --opt placement=v, which searches below a limit",
                       q->activation_limit, q->pp, q->pp);
    return zb_order_schedule(&o, a, out, err);
}

static const sched_option options[] = {
    {"form", "auto|hand", "orders found with the durations, or the fixed ones for equal passes"},
    {"deltas", "1,0,-1|F,I,W", "what passes add to the activations that a limit counts"},
    {NULL, NULL, NULL},
};

const sched_family family_zb_v = {
    .name = "zb-v",
    .summary = "split backward, two chunks a rank in a V: no bubble for equal passes, at 1F1B's "
               "memory",
    .constraints = "P >= 1, M >= 1, V = 2; equal passes unless --times or a model says more; where "
                   "stages differ too much for P activations, the best order for stages that "
                   "differ less; --memory-limit refuses, it does not steer",
    .options = options,
    .generate = generate,
};
