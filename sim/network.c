/* Max-min fair sharing of links by concurrent flows, in integers. A flow's rate is a fraction of
 * its full speed in units of 1/FULL; what is left of it is (ns at full speed) * FULL. */
#include "sim/network.h"

#include <string.h>

#define FULL ((int64_t)1 << 20)
#define NO_FLOW UINT32_MAX

enum { LINKS_MAX = 4 };

typedef struct flow {
    int64_t left; /* transfer still to do, as of at_ns */
    int64_t at_ns, rate;
    int64_t due_ns;      /* start while it has not started, then end */
    uint32_t tag, place; /* place in the heap */
    uint32_t visit;
    uint8_t n_links;
    bool work; /* on a node's cores, not between devices */
    bool started, fixed, shared;
    uint32_t links[LINKS_MAX];
    uint32_t next[LINKS_MAX], prev[LINKS_MAX]; /* neighbours on each link */
} flow;

typedef struct link {
    int64_t capacity; /* in units of one flow's full speed / FULL */
    int64_t free;     /* while filling */
    uint32_t first, n_flows, unfixed;
    uint32_t visit;
} link;

struct network {
    td_arena *arena;
    const cluster_desc *cluster;
    link *links;
    int32_t n_devices, n_nodes;
    flow *flows;
    size_t flows_cap;
    uint32_t n_flows, unused; /* a list through next[0] */
    uint32_t *heap;
    size_t heap_cap;
    uint32_t heap_n;
    const int64_t *work_rates;         /* [k]: what k flows on a node's cores run at together */
    uint32_t *some_flows, *some_links; /* the part of the network that a change reaches */
    size_t some_flows_cap, some_links_cap;
    uint32_t n_some_flows, n_some_links;
    uint32_t visit;
    uint64_t total, total_shared;
};

/* --- the queue of starts and ends: (time, tag) is a total order --- */

static bool before(const network *n, uint32_t a, uint32_t b)
{
    const flow *const x = &n->flows[a], *const y = &n->flows[b];
    return x->due_ns != y->due_ns ? x->due_ns < y->due_ns : x->tag < y->tag;
}

static void heap_put(network *n, uint32_t at, uint32_t f)
{
    n->heap[at] = f;
    n->flows[f].place = at;
}

static void heap_fix(network *n, uint32_t f)
{
    uint32_t at = n->flows[f].place;
    for (; at > 0 && before(n, f, n->heap[(at - 1) / 2]); at = (at - 1) / 2)
        heap_put(n, at, n->heap[(at - 1) / 2]);
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child + 1 < n->heap_n && before(n, n->heap[child + 1], n->heap[child])) child++;
        if (child >= n->heap_n || !before(n, n->heap[child], f)) break;
        heap_put(n, at, n->heap[child]);
        at = child;
    }
    heap_put(n, at, f);
}

static void heap_pop(network *n)
{
    const uint32_t last = n->heap[--n->heap_n];
    if (n->heap_n == 0) return;
    heap_put(n, 0, last);
    heap_fix(n, last);
}

/* --- links --- */

enum { OUT_INTRA, IN_INTRA, OUT_INTER, IN_INTER, DEVICE_LINKS };

static void set_path(const network *n, flow *f, int32_t src, int32_t dst)
{
    const int32_t from = cluster_node_of(n->cluster, src), to = cluster_node_of(n->cluster, dst);
    const uint32_t s = (uint32_t)(src * DEVICE_LINKS), d = (uint32_t)(dst * DEVICE_LINKS);
    const bool far = from != to;
    f->links[0] = s + (far ? OUT_INTER : OUT_INTRA);
    f->links[1] = d + (far ? IN_INTER : IN_INTRA);
    f->n_links = 2;
    if (!far || n->cluster->node_network_bytes_per_s <= 0) return;
    const uint32_t nodes = (uint32_t)(n->n_devices * DEVICE_LINKS);
    f->links[2] = nodes + (uint32_t)(2 * from);
    f->links[3] = nodes + (uint32_t)(2 * to) + 1;
    f->n_links = 4;
}

/* Which of a flow's links this one is. */
static int link_slot(const flow *f, uint32_t l)
{
    int i = 0;
    while (f->links[i] != l) i++;
    return i;
}

static void attach(network *n, uint32_t id)
{
    flow *const f = &n->flows[id];
    for (int i = 0; i < f->n_links; i++) {
        link *const l = &n->links[f->links[i]];
        f->prev[i] = NO_FLOW;
        f->next[i] = l->first;
        if (l->first != NO_FLOW) {
            flow *const head = &n->flows[l->first];
            head->prev[link_slot(head, f->links[i])] = id;
        }
        l->first = id;
        l->n_flows++;
    }
}

static void detach(network *n, uint32_t id)
{
    const flow *const f = &n->flows[id];
    for (int i = 0; i < f->n_links; i++) {
        const uint32_t at = f->links[i];
        if (f->prev[i] == NO_FLOW) {
            n->links[at].first = f->next[i];
        } else {
            flow *const p = &n->flows[f->prev[i]];
            p->next[link_slot(p, at)] = f->next[i];
        }
        if (f->next[i] != NO_FLOW) {
            flow *const x = &n->flows[f->next[i]];
            x->prev[link_slot(x, at)] = f->prev[i];
        }
        n->links[at].n_flows--;
    }
}

/* --- sharing --- */

static uint32_t first_cores(const network *n)
{
    return (uint32_t)(n->n_devices * DEVICE_LINKS + 2 * n->n_nodes);
}

static void visit_link(network *n, uint32_t l)
{
    if (n->links[l].visit == n->visit) return;
    n->links[l].visit = n->visit;
    n->links[l].free =
        l < first_cores(n) ? n->links[l].capacity : n->work_rates[n->links[l].n_flows];
    n->links[l].unfixed = n->links[l].n_flows;
    n->some_links[n->n_some_links++] = l;
}

/* Collects the flows and links that are connected with the links of `f`. */
static void collect(network *n, const flow *f)
{
    n->visit++;
    n->n_some_flows = n->n_some_links = 0;
    for (int i = 0; i < f->n_links; i++) visit_link(n, f->links[i]);
    for (uint32_t k = 0; k < n->n_some_links; k++) {
        const uint32_t l = n->some_links[k];
        for (uint32_t id = n->links[l].first; id != NO_FLOW;) {
            flow *const g = &n->flows[id];
            const uint32_t next = g->next[link_slot(g, l)];
            if (g->visit != n->visit) {
                g->visit = n->visit;
                g->fixed = false;
                n->some_flows[n->n_some_flows++] = id;
                for (int i = 0; i < g->n_links; i++) visit_link(n, g->links[i]);
            }
            id = next;
        }
    }
}

/* The link that fills first; NO_FLOW when all flows have their rate. */
static uint32_t tightest(const network *n, int64_t *share)
{
    uint32_t best = NO_FLOW;
    for (uint32_t k = 0; k < n->n_some_links; k++) {
        const link *const l = &n->links[n->some_links[k]];
        if (l->unfixed == 0) continue;
        const int64_t s = l->free / l->unfixed;
        if (best == NO_FLOW || s < *share || (s == *share && n->some_links[k] < best)) {
            best = n->some_links[k];
            *share = s;
        }
    }
    return best;
}

static void set_rate(network *n, uint32_t id, int64_t rate, int64_t now)
{
    flow *const f = &n->flows[id];
    f->left -= f->rate * (now - f->at_ns);
    if (f->left < 0) f->left = 0;
    f->at_ns = now;
    f->rate = rate;
    f->due_ns = now + (f->left + rate - 1) / rate;
    heap_fix(n, id);
}

static void fix_flow(network *n, uint32_t id, int64_t rate, int64_t now)
{
    flow *const f = &n->flows[id];
    f->fixed = true;
    for (int i = 0; i < f->n_links; i++) {
        n->links[f->links[i]].free -= rate;
        n->links[f->links[i]].unfixed--;
    }
    if (rate < FULL) f->shared = true;
    if (f->rate != rate) set_rate(n, id, rate, now);
}

/* Gives every flow near `f` its max-min fair rate from now on. */
static void share_out(network *n, const flow *f, int64_t now)
{
    collect(n, f);
    int64_t rate = 0;
    for (uint32_t l; (l = tightest(n, &rate)) != NO_FLOW;) {
        if (rate > FULL) rate = FULL;
        if (rate < 1) rate = 1;
        for (uint32_t id = n->links[l].first; id != NO_FLOW;) {
            const flow *const g = &n->flows[id];
            const uint32_t next = g->next[link_slot(g, l)];
            if (!g->fixed) fix_flow(n, id, rate, now);
            id = next;
        }
    }
}

/* --- public --- */

td_status network_open(const cluster_desc *c, int32_t n_devices, int32_t copies, td_arena *a,
                       network **out, td_err *err)
{
    network *const n = TD_NEW(a, network);
    if (n == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the network");
    const int32_t n_nodes = cluster_node_of(c, n_devices - 1) + 1;
    const size_t n_links = (size_t)n_devices * DEVICE_LINKS + 3 * (size_t)n_nodes;
    *n = (network){
        .arena = a, .cluster = c, .n_devices = n_devices, .n_nodes = n_nodes, .unused = NO_FLOW};
    n->links = TD_NEW_N(a, link, n_links);
    n->some_links = TD_NEW_N(a, uint32_t, n_links);
    if (n->links == NULL || n->some_links == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for %zu links", n_links);
    const int32_t near = copies < c->devices_per_node ? copies : c->devices_per_node;
    double node_share = 1;
    if (c->node_network_bytes_per_s > 0 && c->inter.bytes_per_s > 0)
        node_share = c->node_network_bytes_per_s / c->inter.bytes_per_s / (near < 1 ? 1 : near);
    /* One flow alone runs at full speed: its transfer time has the node's limit in it. */
    const int64_t node = node_share < 1     ? FULL
                         : node_share > 1e6 ? FULL * 1000000
                                            : (int64_t)(node_share * (double)FULL);
    for (size_t i = 0; i < n_links; i++)
        n->links[i] = (link){.first = NO_FLOW,
                             .capacity = i < (size_t)n_devices * DEVICE_LINKS ? FULL : node};
    *out = n;
    return TD_OK;
}

static td_status take_flow(network *n, uint32_t *id, td_err *err)
{
    if (n->unused != NO_FLOW) {
        *id = n->unused;
        n->unused = n->flows[*id].next[0];
        return TD_OK;
    }
    const size_t need = (size_t)n->n_flows + 1;
    TD_TRY(TD_GROW(n->arena, n->flows, n->flows_cap, need, err));
    TD_TRY(TD_GROW(n->arena, n->heap, n->heap_cap, need, err));
    TD_TRY(TD_GROW(n->arena, n->some_flows, n->some_flows_cap, need, err));
    *id = n->n_flows++;
    return TD_OK;
}

/* A flow without a path; it is not in the queue yet. */
static td_status new_flow(network *n, uint32_t tag, int64_t start_ns, int64_t ns, uint32_t *id,
                          td_err *err)
{
    if (ns > INT64_MAX / 4 / FULL)
        return td_fail(err, TD_EUSAGE, "a task takes %lld s, longer than the network counts",
                       (long long)(ns / 1000000000));
    TD_TRY(take_flow(n, id, err));
    n->flows[*id] = (flow){.left = ns * FULL, .due_ns = start_ns, .tag = tag};
    return TD_OK;
}

static void enqueue(network *n, uint32_t id)
{
    n->flows[id].place = n->heap_n++;
    heap_fix(n, id);
}

td_status network_add(network *n, uint32_t tag, int32_t src, int32_t dst, int64_t start_ns,
                      int64_t transfer_ns, td_err *err)
{
    uint32_t id = 0;
    TD_TRY(new_flow(n, tag, start_ns, transfer_ns, &id, err));
    set_path(n, &n->flows[id], src, dst);
    enqueue(n, id);
    n->total++;
    return TD_OK;
}

td_status network_share_cores(network *n, const double *slowdown, int32_t most, td_err *err)
{
    int64_t *const rates = TD_NEW_N(n->arena, int64_t, (size_t)most + 1);
    if (rates == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the network");
    for (int32_t k = 1; k <= most; k++) {
        const double rate = (double)FULL * k / slowdown[k];
        rates[k] = rate > 1 ? (int64_t)rate : 1;
    }
    n->work_rates = rates;
    return TD_OK;
}

td_status network_add_work(network *n, uint32_t tag, int32_t device, int64_t start_ns, int64_t ns,
                           td_err *err)
{
    uint32_t id = 0;
    TD_TRY(new_flow(n, tag, start_ns, ns, &id, err));
    flow *const f = &n->flows[id];
    f->work = true;
    f->n_links = 1;
    f->links[0] = first_cores(n) + (uint32_t)cluster_node_of(n->cluster, device);
    enqueue(n, id);
    return TD_OK;
}

bool network_next(network *n, int64_t until_ns, uint32_t *tag, int64_t *end_ns)
{
    while (n->heap_n > 0 && n->flows[n->heap[0]].due_ns <= until_ns) {
        const uint32_t id = n->heap[0];
        flow *const f = &n->flows[id];
        const int64_t now = f->due_ns;
        if (!f->started) {
            f->started = true;
            f->at_ns = now;
            attach(n, id);
            share_out(n, f, now);
            continue;
        }
        heap_pop(n);
        detach(n, id);
        share_out(n, f, now);
        if (f->shared && !f->work) n->total_shared++;
        *tag = f->tag;
        *end_ns = now;
        f->next[0] = n->unused;
        n->unused = id;
        return true;
    }
    return false;
}

uint64_t network_flows(const network *n) { return n->total; }
uint64_t network_shared_flows(const network *n) { return n->total_shared; }
