/* Measuring until it is known well enough. */
#include "exec/bench.h"

#include <pthread.h>

/* Pieces shorter than this are repeated within one measurement: alone for the clock's sake,
 * together so that the workers meet at all. */
enum { SHORT_ALONE_NS = 5000, SHORT_TOGETHER_NS = 200000, MOST_INNER = 1000 };

static bool is_precise(bench_series *s, const bench_limits *l)
{
    enum { FEWEST = 6 }; /* there is no interval below */
    sample x = {0};
    if (s->n < FEWEST) return false;
    samples_summarize(s->ns, s->n, &x);
    return x.half_ns <= l->precision * x.ns;
}

void bench_note(bench_series *s, const bench_limits *l, int64_t ns)
{
    enum { LEAST = 3, OFTEN = 32, PAUSE = 8 };
    s->ns[s->n++] = ns;
    const size_t repeats = (size_t)l->repeats;
    if (s->n >= BENCH_ROUNDS)
        s->enough = true;
    else if (td_now_ns() >= l->deadline_ns)
        s->enough = s->n >= (repeats < LEAST ? repeats : LEAST);
    else if (s->n >= repeats && (s->n < OFTEN || s->n % PAUSE == 0))
        s->enough = l->precision <= 0 || is_precise(s, l);
}

td_status bench_add(const sample *what, bench_series *s, const bench_limits *l, samples *out,
                    bench_count *count, td_err *err)
{
    sample x = *what;
    count->samples++;
    count->loose += l->precision > 0 && !is_precise(s, l);
    samples_summarize(s->ns, s->n, &x);
    return samples_add(out, &x, err);
}

/* --- workers --- */

typedef struct crew crew;

typedef struct hand {
    crew *of;
    int index;
    int64_t ns;
    pthread_t thread;
} hand;

struct crew {
    const bench_set *set;
    pthread_barrier_t barrier;
    int n, piece; /* piece < 0: go home */
    int64_t inner;
    hand hands[BENCH_CORES];
};

/* The mean of `inner` times. */
static int64_t run_often(const bench_set *set, int worker, int piece, int64_t inner)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < inner; i++) sum += set->run(set->self, worker, piece);
    return sum / inner;
}

static void *hand_main(void *arg)
{
    hand *const h = arg;
    for (;;) {
        (void)pthread_barrier_wait(&h->of->barrier);
        if (h->of->piece < 0) return NULL;
        h->ns = run_often(h->of->set, h->index, h->of->piece, h->of->inner);
        (void)pthread_barrier_wait(&h->of->barrier);
    }
}

/* All workers at once; the mean of what each took. */
static int64_t run_together(crew *c, int piece, int64_t inner)
{
    c->piece = piece;
    c->inner = inner;
    (void)pthread_barrier_wait(&c->barrier);
    int64_t sum = run_often(c->set, 0, piece, inner);
    (void)pthread_barrier_wait(&c->barrier);
    for (int i = 1; i < c->n; i++) sum += c->hands[i].ns;
    return sum / c->n;
}

static void crew_close(crew *c)
{
    c->piece = -1;
    (void)pthread_barrier_wait(&c->barrier);
    for (int i = 1; i < c->n; i++) (void)pthread_join(c->hands[i].thread, NULL);
    (void)pthread_barrier_destroy(&c->barrier);
}

static td_status crew_open(crew *c, const bench_set *set, td_err *err)
{
    c->set = set;
    c->n = set->workers;
    if (pthread_barrier_init(&c->barrier, NULL, (unsigned)c->n) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no barriers");
    for (int i = 1; i < c->n; i++) {
        c->hands[i] = (hand){.of = c, .index = i};
        if (pthread_create(&c->hands[i].thread, NULL, hand_main, &c->hands[i]) == 0) continue;
        /* those that wait at the barrier would wait for ever */
        for (int k = 1; k < i; k++) {
            (void)pthread_cancel(c->hands[k].thread);
            (void)pthread_join(c->hands[k].thread, NULL);
        }
        return td_fail(err, TD_EDEVICE, "%d threads could not be started", c->n);
    }
    return TD_OK;
}

/* --- sets --- */

/* A piece under one load. */
typedef struct subject {
    bench_series series;
    int piece, busy;
    int64_t inner;
} subject;

static int64_t inner_of(int64_t once_ns, int64_t short_ns)
{
    const int64_t inner = once_ns >= short_ns ? 1 : short_ns / (once_ns < 1 ? 1 : once_ns) + 1;
    return inner > MOST_INNER ? MOST_INNER : inner;
}

static void measure(crew *c, subject *of, int n, const bench_limits *l)
{
    const bench_set *const set = c->set;
    for (int i = 0; i < n; i++) { /* warms up, too */
        const int64_t once = set->run(set->self, 0, of[i].piece);
        of[i].inner = inner_of(once, of[i].busy == 1 ? SHORT_ALONE_NS : SHORT_TOGETHER_NS);
        if (of[i].busy > 1) (void)run_together(c, of[i].piece, 1);
    }
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < n; i++) {
            subject *const s = &of[i];
            if (s->series.enough) continue;
            bench_note(&s->series, l,
                       s->busy == 1 ? run_often(set, 0, s->piece, s->inner)
                                    : run_together(c, s->piece, s->inner));
            more = more || !s->series.enough;
        }
    }
}

td_status bench_measure(const bench_set *set, const bench_limits *l, samples *out,
                        bench_count *count, td_err *err)
{
    td_arena *const a = td_arena_new();
    const int loads = set->workers > 1 ? 2 : 1, n = set->n * loads;
    subject *const of = a == NULL ? NULL : TD_NEW_N(a, subject, n);
    crew *const c = a == NULL ? NULL : TD_NEW(a, crew);
    td_status st = of == NULL || c == NULL ? td_fail(err, TD_ENOMEM, "out of memory for the bench")
                                           : crew_open(c, set, err);
    if (st == TD_OK) {
        for (int i = 0; i < n; i++) {
            of[i].piece = i / loads;
            of[i].busy = i % loads == 0 ? 1 : set->workers;
        }
        measure(c, of, n, l);
        crew_close(c);
    }
    for (int i = 0; i < n && st == TD_OK; i++) {
        sample what = set->what[of[i].piece];
        what.busy = of[i].busy;
        st = bench_add(&what, &of[i].series, l, out, count, err);
    }
    td_arena_free(a);
    return st;
}
