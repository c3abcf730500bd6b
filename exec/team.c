/* Talk between the processes of a run. */
#include "exec/team.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { GOODBYE_S = 5, LATER_S = 2, GONE = -1 }; /* the code of a process that said no last word */

uint32_t team_index(const team *t) { return t == NULL ? 0 : t->t.index; }

uint32_t team_size(const team *t) { return t == NULL ? 1 : t->t.size; }

static transport_request message(uint32_t peer, uint32_t lane, const void *data, int64_t bytes)
{
    return (transport_request){
        .peer = peer, .lane = lane, .data = (char *)(uintptr_t)data, .bytes = bytes};
}

td_status team_open(const transport *from, int64_t deadline_ns, td_arena *a, team **out,
                    td_err *err)
{
    team *const t = TD_NEW(a, team);
    if (t == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    t->t = *from;
    t->deadline_ns = deadline_ns > 0 ? deadline_ns : 120000000000;
    t->notices = TD_NEW_N(a, team_notice, from->size);
    t->seen = TD_NEW_N(a, bool, from->size);
    t->told_to = TD_NEW_N(a, transport_request, from->size);
    t->heard = TD_NEW_N(a, transport_request, from->size);
    t->words = TD_NEW_N(a, uint64_t, TEAM_WORDS);
    if (t->notices == NULL || t->seen == NULL || t->told_to == NULL || t->heard == NULL ||
        t->words == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the run's processes");
    if (pthread_mutex_init(&t->lock, NULL) != 0)
        return td_fail(err, TD_EDEVICE, "the machine gives no locks");
    for (uint32_t i = 0; i < from->size; i++) {
        if (i == from->index) continue;
        t->heard[i] = message(i, LANE_NOTICE, &t->notices[i], sizeof t->notices[i]);
        TD_TRY(t->t.methods->recv(&t->t, &t->heard[i], err));
    }
    *out = t;
    return TD_OK;
}

/* --- giving up --- */

/* With the lock held: this process's one notice. */
static void tell(team *t)
{
    if (t->told) return;
    t->told = true;
    t->mine.code = (int32_t)t->why.code;
    (void)snprintf(t->mine.msg, sizeof t->mine.msg, "%s", t->why.msg);
    for (uint32_t i = 0; i < t->t.size; i++) {
        if (i == t->t.index) continue;
        t->told_to[i] = message(i, LANE_NOTICE, &t->mine, sizeof t->mine);
        td_err ignored; /* who is gone cannot be told */
        if (t->t.methods->send(&t->t, &t->told_to[i], &ignored) != TD_OK) t->told_to[i].done = true;
    }
}

void team_fail(team *t, const td_err *why)
{
    if (t->why.code == TD_OK) t->why = *why;
    tell(t);
}

void team_give_up(team *t, const td_err *why)
{
    (void)pthread_mutex_lock(&t->lock);
    team_fail(t, why);
    (void)pthread_mutex_unlock(&t->lock);
}

td_err team_error(team *t)
{
    if (t == NULL) return (td_err){0};
    (void)pthread_mutex_lock(&t->lock);
    const td_err why = t->why;
    (void)pthread_mutex_unlock(&t->lock);
    return why;
}

void team_listen(team *t)
{
    for (uint32_t i = 0; i < t->t.size; i++) {
        transport_request *const r = &t->heard[i];
        td_err err = {0};
        if (i == t->t.index || t->seen[i]) continue;
        if (t->t.methods->test(&t->t, r, &err) != TD_OK) {
            r->done = t->seen[i] = true;
            t->notices[i].code = GONE;
            team_fail(t, &err);
        } else if (r->done) { /* perhaps since another message was looked for */
            t->seen[i] = true;
            if (t->notices[i].code == TD_OK || t->why.code != TD_OK) continue;
            t->why.code = (td_status)t->notices[i].code;
            (void)snprintf(t->why.msg, sizeof t->why.msg, "%.990s", t->notices[i].msg);
        }
    }
}

td_err team_look(team *t)
{
    (void)pthread_mutex_lock(&t->lock);
    team_listen(t);
    const td_err why = t->why;
    (void)pthread_mutex_unlock(&t->lock);
    return why;
}

void team_pause(long turn)
{
    if (turn < 100) {
        (void)sched_yield();
        return;
    }
    const struct timespec ts = {.tv_nsec = turn < 2000 ? 50000 : 500000};
    (void)nanosleep(&ts, NULL);
}

static bool all_done(team *t, transport_request *r)
{
    bool done = true;
    for (uint32_t i = 0; i < t->t.size; i++) {
        td_err ignored;
        if (i == t->t.index || r[i].done) continue;
        if (t->t.methods->test(&t->t, &r[i], &ignored) != TD_OK) {
            r[i].done = true;
            if (r == t->heard) t->notices[i].code = GONE;
        }
        done = done && r[i].done;
    }
    return done;
}

bool team_was_heard(const team *t, uint32_t index)
{
    return index == t->t.index || (t->heard[index].done && t->notices[index].code != GONE);
}

void team_close(team *t)
{
    if (t == NULL) return;
    const int64_t began = td_now_ns();
    bool over = false, broken = false;
    for (long turn = 0; !over; turn++) {
        (void)pthread_mutex_lock(&t->lock);
        tell(t);
        const bool said = all_done(t, t->told_to);
        over = all_done(t, t->heard) && said;
        broken = t->why.code != TD_OK;
        (void)pthread_mutex_unlock(&t->lock);
        const int64_t patience = broken ? (int64_t)GOODBYE_S * 1000000000 : t->deadline_ns;
        if (!over && td_now_ns() - began > patience) break;
        if (!over) team_pause(turn);
    }
    t->t.methods->close(&t->t, broken || !over);
    (void)pthread_mutex_destroy(&t->lock);
}

/* --- talk --- */

/* Waits for the message at hand in t->talk. */
static td_status finish_talk(team *t, td_err *err)
{
    transport_request *const r = &t->talk;
    /* a process that is stuck inside a step says where: it has the first word */
    const int64_t until = td_now_ns() + t->deadline_ns + (int64_t)LATER_S * 1000000000;
    for (long turn = 0;; turn++) {
        (void)pthread_mutex_lock(&t->lock);
        td_err gone = {0};
        if (t->t.methods->test(&t->t, r, &gone) != TD_OK) team_fail(t, &gone);
        if (!r->done && turn % 16 == 0) team_listen(t);
        const bool done = r->done;
        const td_err why = t->why;
        (void)pthread_mutex_unlock(&t->lock);
        if (why.code != TD_OK) return td_fail(err, why.code, "%s", why.msg);
        if (done) return TD_OK;
        if (td_now_ns() > until) break;
        team_pause(turn);
    }
    td_err late;
    (void)td_fail(&late, TD_EDEVICE, "rank %u waited %.3g s for rank %u, between two steps",
                  t->t.index, (double)t->deadline_ns / 1e9, r->peer);
    team_give_up(t, &late);
    return td_fail(err, late.code, "%s", late.msg);
}

static td_status talk(team *t, bool send, uint32_t peer, const void *data, int64_t bytes,
                      td_err *err)
{
    if (t == NULL || bytes == 0) return TD_OK;
    (void)pthread_mutex_lock(&t->lock);
    t->talk = message(peer, LANE_TALK, data, bytes);
    td_err gone = {0};
    const td_status st = send ? t->t.methods->send(&t->t, &t->talk, &gone)
                              : t->t.methods->recv(&t->t, &t->talk, &gone);
    if (st != TD_OK) team_fail(t, &gone);
    const td_err why = t->why;
    (void)pthread_mutex_unlock(&t->lock);
    if (why.code != TD_OK) return td_fail(err, why.code, "%s", why.msg);
    return finish_talk(t, err);
}

td_status team_send(team *t, uint32_t to, const void *data, int64_t bytes, td_err *err)
{
    return talk(t, true, to, data, bytes, err);
}

td_status team_recv(team *t, uint32_t from, void *data, int64_t bytes, td_err *err)
{
    return talk(t, false, from, data, bytes, err);
}

td_status team_broadcast(team *t, uint32_t from, void *data, int64_t bytes, td_err *err)
{
    if (t == NULL) return TD_OK;
    if (t->t.index != from) return team_recv(t, from, data, bytes, err);
    for (uint32_t i = 0; i < t->t.size; i++)
        if (i != from) TD_TRY(team_send(t, i, data, bytes, err));
    return TD_OK;
}

static uint64_t fold(team_op op, uint64_t a, uint64_t b)
{
    double x = 0, y = 0;
    if (op == TEAM_ADD) return a + b;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x += y;
    memcpy(&a, &x, sizeof a);
    return a;
}

td_status team_fold(team *t, team_op op, void *words, int64_t n, td_err *err)
{
    for (int64_t first = 0; t != NULL && first < n; first += TEAM_WORDS) {
        const int64_t count = n - first < TEAM_WORDS ? n - first : TEAM_WORDS;
        const int64_t bytes = count * (int64_t)sizeof *t->words;
        char *const mine = (char *)words + first * (int64_t)sizeof *t->words;
        if (t->t.index != 0) {
            memcpy(t->words, mine, (size_t)bytes);
            TD_TRY(team_send(t, 0, t->words, bytes, err));
        }
        for (uint32_t i = 1; i < t->t.size && t->t.index == 0; i++) {
            TD_TRY(team_recv(t, i, t->words, bytes, err));
            for (int64_t k = 0; k < count; k++) {
                uint64_t word = 0;
                memcpy(&word, mine + k * (int64_t)sizeof word, sizeof word);
                word = fold(op, word, t->words[k]);
                memcpy(mine + k * (int64_t)sizeof word, &word, sizeof word);
            }
        }
        if (t->t.index == 0) memcpy(t->words, mine, (size_t)bytes);
        TD_TRY(team_broadcast(t, 0, t->words, bytes, err));
        memcpy(mine, t->words, (size_t)bytes);
    }
    return TD_OK;
}

/* --- agreement --- */

/* The first failure, found by rank 0 while it hears the others out. */
static td_status hear_all(team *t, team_notice *verdict, td_err *err)
{
    for (uint32_t i = 1; i < t->t.size; i++) {
        TD_TRY(team_recv(t, i, &t->word, sizeof t->word, err));
        if (verdict->code != TD_OK || t->word.code == TD_OK) continue;
        verdict->code = t->word.code;
        (void)snprintf(verdict->msg, sizeof verdict->msg, "rank %u: %.980s", i, t->word.msg);
    }
    t->word = *verdict;
    return TD_OK;
}

td_status team_agree(team *t, td_status st, td_err *err)
{
    if (t == NULL) return st;
    team_notice verdict = {.code = (int32_t)st};
    if (st != TD_OK) (void)snprintf(verdict.msg, sizeof verdict.msg, "%.990s", err->msg);
    td_err broken = {0};
    if (t->t.index == 0) {
        if (hear_all(t, &verdict, &broken) != TD_OK)
            return td_fail(err, broken.code, "%s", broken.msg);
    } else {
        t->word = verdict;
        if (team_send(t, 0, &t->word, sizeof t->word, &broken) != TD_OK)
            return td_fail(err, broken.code, "%s", broken.msg);
    }
    if (team_broadcast(t, 0, &t->word, sizeof t->word, &broken) != TD_OK)
        return td_fail(err, broken.code, "%s", broken.msg);
    if (t->word.code == TD_OK) return TD_OK;
    t->agreed = true;
    return td_fail(err, (td_status)t->word.code, "%.990s", t->word.msg);
}

td_status team_same(team *t, uint64_t number, const char *what, td_err *err)
{
    if (t == NULL) return TD_OK;
    t->number = number;
    TD_TRY(team_broadcast(t, 0, &t->number, sizeof t->number, err));
    td_status st = TD_OK;
    if (t->number != number)
        st = td_fail(err, TD_EUSAGE,
                     "%s: not the same as on rank 0 (%016llx, there %016llx); start every process "
                     "with the same command line and the same files",
                     what, (unsigned long long)number, (unsigned long long)t->number);
    return team_agree(t, st, err);
}
