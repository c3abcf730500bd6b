/* What messages and sums between ranks of this machine take. */
#include "exec/bench_wire.h"
#include "exec/wire.h"

#include <pthread.h>
#include <stdlib.h>

static int compare_ns(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* --- messages --- */

typedef struct echo {
    wire *w;
    char *memory;
    int64_t bytes, rounds;
    td_status status;
} echo;

static void *echo_thread(void *arg)
{
    echo *const e = arg;
    td_err err = {0};
    for (int64_t i = 0; i < e->rounds && e->status == TD_OK; i++) {
        wire_op in = {.data = e->memory, .bytes = e->bytes, .rank = 1};
        wire_recv(e->w, 0, &in);
        e->status = wire_wait(e->w, &in, &err);
        wire_op back = {.data = e->memory, .bytes = e->bytes, .rank = 1};
        wire_send(e->w, 1, &back);
        if (e->status == TD_OK) e->status = wire_wait(e->w, &back, &err);
    }
    return NULL;
}

td_status bench_message(samples *out, int64_t bytes, td_err *err)
{
    enum { ROUNDS = 200 };
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    const wire_shape shape = {.n_ranks = 2, .n_channels = 2, .deadline_ns = 20000000000};
    echo e = {.bytes = bytes, .rounds = ROUNDS, .memory = td_alloc(a, 1, (size_t)bytes)};
    char *const mine = td_alloc(a, 1, (size_t)bytes);
    int64_t ns[ROUNDS];
    pthread_t thread;
    td_status st = wire_open_threads(&shape, a, &e.w, err);
    if (st == TD_OK && (mine == NULL || e.memory == NULL))
        st = td_fail(err, TD_ENOMEM, "out of memory for the bench");
    if (st == TD_OK && pthread_create(&thread, NULL, echo_thread, &e) != 0)
        st = td_fail(err, TD_EDEVICE, "a thread could not be started");
    if (st == TD_OK) {
        for (int i = 0; i < ROUNDS; i++) {
            const int64_t begin = td_now_ns();
            wire_op there = {.data = mine, .bytes = bytes};
            wire_send(e.w, 0, &there);
            if (st == TD_OK) st = wire_wait(e.w, &there, err);
            wire_op back = {.data = mine, .bytes = bytes};
            wire_recv(e.w, 1, &back);
            if (st == TD_OK) st = wire_wait(e.w, &back, err);
            ns[i] = (td_now_ns() - begin) / 2;
        }
        (void)pthread_join(thread, NULL);
        qsort(ns, ROUNDS, sizeof *ns, compare_ns);
    }
    if (st == TD_OK) {
        const sample s = {.what = SAMPLE_MESSAGE,
                          .amount = bytes,
                          .busy = 1,
                          .ns = (double)(ns[ROUNDS / 2] < 1 ? 1 : ns[ROUNDS / 2])};
        st = samples_add(out, &s, err);
    }
    wire_close(e.w);
    td_arena_free(a);
    return st;
}

/* --- sums over ranks --- */

enum { SUM_ROUNDS = 200 };

typedef struct summer {
    wire *w;
    char *memory;
    int64_t bytes;
    uint32_t rank;
    int64_t ns; /* of one sum, both ranks in step */
    td_status status;
} summer;

static void *sum_thread(void *arg)
{
    summer *const s = arg;
    td_err err = {0};
    const int64_t begin = td_now_ns();
    for (uint32_t i = 0; i < SUM_ROUNDS && s->status == TD_OK; i++) {
        wire_op op = {.data = s->memory, .bytes = s->bytes, .rank = s->rank};
        wire_collective(s->w, i, s->rank, &op);
        s->status = wire_wait(s->w, &op, &err);
    }
    s->ns = (td_now_ns() - begin) / SUM_ROUNDS;
    return NULL;
}

td_status bench_sum(samples *out, int64_t bytes, td_err *err)
{
    td_arena *const a = td_arena_new();
    if (a == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the bench");
    static const uint32_t members[2] = {0, 1};
    static const wire_group pair = {.members = members, .n_members = 2};
    wire_coll colls[SUM_ROUNDS];
    for (int i = 0; i < SUM_ROUNDS; i++)
        colls[i] = (wire_coll){.kind = WIRE_SUM_FLOAT, .bytes = bytes};
    const wire_shape shape = {.n_ranks = 2,
                              .n_groups = 1,
                              .n_colls = SUM_ROUNDS,
                              .groups = &pair,
                              .colls = colls,
                              .deadline_ns = 20000000000};
    summer s[2] = {{.rank = 0, .bytes = bytes}, {.rank = 1, .bytes = bytes}};
    wire *w = NULL;
    pthread_t thread;
    td_status st = wire_open_threads(&shape, a, &w, err);
    for (int i = 0; i < 2 && st == TD_OK; i++) {
        s[i].w = w;
        s[i].memory = TD_NEW_N(a, char, (size_t)bytes); /* zeros: sums of them stay finite */
        if (s[i].memory == NULL) st = td_fail(err, TD_ENOMEM, "out of memory for the bench");
    }
    if (st == TD_OK && pthread_create(&thread, NULL, sum_thread, &s[1]) != 0)
        st = td_fail(err, TD_EDEVICE, "a thread could not be started");
    if (st == TD_OK) {
        (void)sum_thread(&s[0]);
        (void)pthread_join(thread, NULL);
        if (s[0].status != TD_OK || s[1].status != TD_OK)
            st = td_fail(err, TD_EDEVICE, "bench: a sum over two ranks did not end");
    }
    const sample one = {.what = SAMPLE_ALL_REDUCE,
                        .amount = bytes,
                        .members = 2,
                        .busy = 1,
                        .ns = (double)(s[0].ns < 1 ? 1 : s[0].ns)};
    if (st == TD_OK) st = samples_add(out, &one, err);
    wire_close(w);
    td_arena_free(a);
    return st;
}
