/* How NCCL starts: its environment, communicators, connections. */
#include "exec/wire_nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void nccl_prepare(void)
{
    static const char *const settings[][2] = {
        /* streams beyond the hardware's queues share them, and wait for each other where the plan
         * does not */
        {"CUDA_DEVICE_MAX_CONNECTIONS", "32"},
        /* loading a kernel waits for the device, which may wait for a message that is behind it */
        {"CUDA_MODULE_LOADING", "EAGER"},
        /* collectives connect when a communicator is made, not inside a step */
        {"NCCL_RUNTIME_CONNECT", "0"},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        (void)setenv(settings[i][0], settings[i][1], 0);
}

#if TD_HAVE_NCCL
#include "exec/nccl_queue.h"

enum { SCRATCH_BYTES = 8, NUMBER_OF_2_30 = 23000 };

void nccl_describe(td_text *out)
{
    int v = 0;
    if (ncclGetVersion(&v) != ncclSuccess)
        td_text_add(out, "it does not say its version");
    else
        td_text_addf(out, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
}

/* --- several processes on one device --- */

static uint64_t hash_text(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *s != '\0'; s++) h = (h ^ (uint8_t)*s) * 0x100000001b3u;
    return h;
}

/* What names a device in the whole run: this machine, and its place in it. */
static uint64_t name_device(const char *place)
{
    char text[512] = "", boot[64] = "";
    FILE *const f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f != NULL) {
        if (fgets(boot, sizeof boot, f) == NULL) boot[0] = '\0';
        (void)fclose(f);
    }
    (void)gethostname(text, 255);
    const size_t n = strlen(text);
    (void)snprintf(text + n, sizeof text - n, "/%.60s/%.120s", boot, place);
    return hash_text(text);
}

/* Whether NCCL itself lets processes of one host share a device. */
static bool nccl_lets_share(void)
{
    int version = 0;
    const char *const many = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    return many != NULL && strcmp(many, "1") == 0 && ncclGetVersion(&version) == ncclSuccess &&
           version >= NUMBER_OF_2_30;
}

static td_status refuse_share(uint32_t i, uint32_t k, td_err *err)
{
    td_text version = {0};
    nccl_describe(&version);
    (void)td_fail(err, TD_EUSAGE,
                  "ranks %u and %u have one GPU and one NCCL_HOSTID, and NCCL refuses two "
                  "processes of one host on one GPU; leave NCCL_HOSTID out, so that each gets its "
                  "own, or set NCCL_MULTI_RANK_GPU_ENABLE=1 (from NCCL 2.30 on; this is %s), or "
                  "start one process: its threads share the GPU",
                  i, k, version.s == NULL ? "another" : version.s);
    td_text_free(&version);
    return TD_EUSAGE;
}

td_status nccl_share(team *t, const char *place, td_arena *a, uint32_t *sharing, td_err *err)
{
    const uint32_t n = team_size(t), me = team_index(t);
    const char *const given = getenv("NCCL_HOSTID");
    const bool free = nccl_lets_share();
    uint64_t *const devices = TD_NEW_N(a, uint64_t, 2 * n);
    if (devices == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the devices' names");
    uint64_t *const hosts = devices + n; /* 0: it is on no host that another one can be on */
    devices[me] = name_device(place);
    hosts[me] = given == NULL || free ? 0 : hash_text(given);
    *sharing = 0;
    bool any = false;
    TD_TRY(team_fold(t, TEAM_ADD, devices, 2 * n, err));
    for (uint32_t i = 0; i < n; i++) {
        *sharing += devices[i] == devices[me];
        for (uint32_t k = 0; k < i; k++) {
            if (devices[k] != devices[i]) continue;
            any = true;
            if (hosts[k] == hosts[i] && hosts[i] != 0)
                return team_agree(t, refuse_share(k, i, err), err);
        }
    }
    if (!any) return TD_OK;
    (void)setenv("NCCL_NVLS_ENABLE", "0", 0);
    if (free) return TD_OK;
    /* with a host of its own for each process, NCCL takes them for several nodes: over sockets */
    char host[64];
    (void)snprintf(host, sizeof host, "tandem-%u", me);
    (void)setenv("NCCL_HOSTID", host, 0);
    (void)setenv("NCCL_NET", "Socket", 0);
    return TD_OK;
}

/* --- communicators and connections --- */

typedef struct start {
    const wire_shape *s;
    const nccl_options *o;
    team *t;
    device *d;
    nccl_queue *queues;
    void *stream, *event;
    char *scratch; /* [n_ranks][SCRATCH_BYTES] */
    int64_t bytes;
} start;

static td_status join(start *st, td_arena *a, td_err *err)
{
    const wire_shape *const s = st->s;
    ncclUniqueId *const ids = TD_NEW_N(a, ncclUniqueId, s->n_queues);
    td_status got =
        ids == NULL ? td_fail(err, TD_ENOMEM, "out of memory for communicators") : TD_OK;
    for (uint32_t i = 0; got == TD_OK && team_index(st->t) == 0 && i < s->n_queues; i++) {
        const ncclResult_t r = ncclGetUniqueId(&ids[i]);
        if (r != ncclSuccess)
            got = td_fail(err, TD_EDEVICE, "NCCL: no start: %s: %.300s", ncclGetErrorString(r),
                          ncclGetLastError(NULL));
    }
    TD_TRY(team_agree(st->t, got, err));
    TD_TRY(team_broadcast(st->t, 0, ids, (int64_t)(s->n_queues * sizeof *ids), err));
    for (uint32_t i = 0; i < s->n_queues; i++) {
        nccl_queue *const q = &st->queues[i];
        *q = (nccl_queue){.from = &s->queues[i], .team = st->t, .until_ns = s->deadline_ns};
        const int me = nccl_queue_member(q, team_index(st->t));
        if (me < 0) continue;
        q->me = (uint32_t)me;
        const int ctas = q->from->collective ? st->o->collective_ctas : st->o->message_ctas;
        TD_TRY(nccl_queue_open(q, &ids[i], ctas, err));
    }
    return TD_OK;
}

static td_status open_staging(start *st, td_arena *a, td_err *err)
{
    for (uint32_t i = 0; i < st->s->n_queues; i++) {
        nccl_queue *const q = &st->queues[i];
        if (q->comm == NULL || !q->from->collective) continue;
        for (uint32_t c = 0; c < st->s->n_colls; c++) {
            const wire_coll *const it = &st->s->colls[c];
            const int64_t stride =
                st->s->groups[it->group].queue == i ? nccl_queue_stride(q, it, st->o->ordered) : 0;
            if (stride > q->stride) q->stride = stride;
        }
        void *at = NULL;
        q->parts = TD_NEW_N(a, void *, q->from->n_members);
        if (q->parts == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the wire");
        if (q->stride == 0) continue;
        TD_TRY(st->d->methods->alloc(st->d, q->stride * q->from->n_members, &at, err));
        q->staging = at;
    }
    return TD_OK;
}

static td_status wait_for_stream(const start *st, td_err *err)
{
    const int64_t until = td_now_ns() + st->s->deadline_ns;
    st->d->methods->record(st->d, st->event, st->stream);
    for (long turn = 0;; turn++) {
        bool over = false;
        TD_TRY(st->d->methods->happened(st->d, st->event, &over, err));
        if (over) return TD_OK;
        const td_err why = team_look(st->t);
        if (why.code != TD_OK) return td_fail(err, why.code, "%s", why.msg);
        if (td_now_ns() > until)
            return td_fail(err, TD_EDEVICE, "rank %u waited %.3g s for NCCL to connect",
                           team_index(st->t), (double)st->s->deadline_ns / 1e9);
        team_pause(turn);
    }
}

static td_status connect_messages(const start *st, td_err *err)
{
    const uint32_t me = team_index(st->t);
    for (uint32_t i = 0; i < st->s->n_channels; i++) {
        const wire_channel *const c = &st->s->channels[i];
        const bool send = c->src == me;
        if (c->queue >= st->s->n_queues || (!send && c->dst != me)) continue;
        TD_TRY(nccl_queue_message(&st->queues[c->queue], send, send ? c->dst : c->src, st->scratch,
                                  SCRATCH_BYTES, st->stream, err));
        TD_TRY(wait_for_stream(st, err));
    }
    return TD_OK;
}

static td_status connect_collectives(const start *st, td_err *err)
{
    for (uint32_t i = 0; i < st->s->n_queues; i++) {
        nccl_queue *const q = &st->queues[i];
        bool done[WIRE_KIND_COUNT] = {false};
        if (!q->from->collective || q->comm == NULL) continue;
        for (uint32_t c = 0; c < st->s->n_colls; c++) {
            const wire_kind kind = st->s->colls[c].kind;
            if (st->s->groups[st->s->colls[c].group].queue != i || done[kind]) continue;
            done[kind] = true;
            const nccl_part part = {
                .kind = kind,
                .ordered = st->o->ordered,
                .data = st->scratch,
                .bytes =
                    SCRATCH_BYTES * (wire_kind_in_pieces(kind) ? (int64_t)q->from->n_members : 1),
                .stream = st->stream};
            TD_TRY(nccl_queue_collective(q, &part, err));
            TD_TRY(wait_for_stream(st, err));
        }
    }
    return TD_OK;
}

td_status nccl_start(const wire_shape *s, const nccl_options *o, team *t, device *d, td_arena *a,
                     nccl_queue *queues, td_err *err)
{
    start st = {.s = s, .o = o, .t = t, .d = d, .queues = queues};
    const int64_t words = (int64_t)s->n_ranks * SCRATCH_BYTES / 8;
    void *at = NULL;
    TD_TRY(d->methods->stream(d, true, &st.stream, err));
    TD_TRY(d->methods->event(d, &st.event, err));
    TD_TRY(d->methods->alloc(d, words * 8, &at, err));
    TD_TRY(d->methods->fill(d, at, 0, words, err));
    st.scratch = at;
    TD_TRY(join(&st, a, err));
    TD_TRY(open_staging(&st, a, err));
    TD_TRY(connect_messages(&st, err));
    return connect_collectives(&st, err);
}

#else

void nccl_describe(td_text *out) { td_text_add(out, "this build has none"); }

td_status nccl_share(team *t, const char *place, td_arena *a, uint32_t *sharing, td_err *err)
{
    (void)t, (void)place, (void)a, (void)err;
    *sharing = 1;
    return TD_OK;
}

#endif
