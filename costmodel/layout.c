/* Bodies of layout.h. The grammar: commas say nothing; "( ... )*n" repeats a group, groups do not
 * nest; "x*n" repeats one character; "|" parts the stages. */
#include "costmodel/layout.h"

#include <inttypes.h>
#include <string.h>

enum { LAYOUT_MAX = 1 << 20 }; /* layers or stages: no layout is longer */

/* A layout being read: counters of what came so far. */
typedef struct layout_reader {
    const char *text;
    layout_stage *out;
    int64_t max, n; /* stages; the open one is out[n] */
    layout_stage open;
    int64_t items, embeddings, losses, mtp_layers;
    td_err *err;
} layout_reader;

static td_status fail_at(const layout_reader *r, const char *at, const char *why)
{
    return td_fail(r->err, TD_EPARSE, "layout:1:%td: \"%s\": %s", at - r->text + 1, r->text, why);
}

static void close_stage(layout_reader *r)
{
    if (r->n < r->max) r->out[r->n] = r->open;
    r->n++;
    r->open = (layout_stage){0};
}

/* Takes `times` copies of one character. */
static td_status take(layout_reader *r, const char *at, int64_t times)
{
    const bool first = r->items == 0;
    if (times == 0) return TD_OK;
    r->items += times;
    if (r->items > LAYOUT_MAX) return fail_at(r, at, "more than a million layers and stages");
    if (*at == '|') {
        for (int64_t i = 0; i < times; i++) close_stage(r);
        return TD_OK;
    }
    if (r->losses > 0 && *at != 'L') return fail_at(r, at, "nothing may follow the loss L");
    switch (*at) {
    case 'E':
        if (!first || times > 1) return fail_at(r, at, "the embedding E comes once and first");
        r->open.embedding = true;
        r->embeddings = 1;
        return TD_OK;
    case 't':
        if (r->mtp_layers > 0) return fail_at(r, at, "a layer t may not follow an MTP layer m");
        r->open.layers += times;
        return TD_OK;
    case 'm':
        r->mtp_layers += times;
        r->open.mtp_layers += times;
        return TD_OK;
    case 'L':
        r->losses += times;
        if (r->losses > 1) return fail_at(r, at, "the loss L comes once");
        r->open.loss = true;
        return TD_OK;
    default: return fail_at(r, at, "wants E, t, m, L, |, ( ) or *n");
    }
}

/* The n of "*n" at s, or 1; *end is what follows. */
static td_status repeat_at(const layout_reader *r, const char *s, int64_t *times, const char **end)
{
    *times = 1;
    *end = s;
    while (*s == ',') s++;
    if (*s != '*') return TD_OK;
    s++;
    if (*s < '0' || *s > '9') return fail_at(r, s, "wants a number after *");
    int64_t n = 0;
    for (; *s >= '0' && *s <= '9'; s++) {
        n = n * 10 + (*s - '0');
        if (n > LAYOUT_MAX) return fail_at(r, s, "number too large");
    }
    if (n == 0) return fail_at(r, s - 1, "wants at least 1 after *");
    *times = n;
    *end = s;
    return TD_OK;
}

/* Characters with their repeats, up to `stop`. */
static td_status take_run(layout_reader *r, const char *s, const char *stop)
{
    while (s < stop) {
        if (*s == ',') {
            s++;
            continue;
        }
        const char *after = NULL;
        int64_t times = 1;
        TD_TRY(repeat_at(r, s + 1, &times, &after));
        TD_TRY(take(r, s, times));
        s = after;
    }
    return TD_OK;
}

static td_status take_all(layout_reader *r, const char *text)
{
    for (const char *s = text; *s != '\0';) {
        const char *open = strchr(s, '(');
        if (open == NULL) open = s + strlen(s);
        TD_TRY(take_run(r, s, open));
        if (*open == '\0') return TD_OK;
        const char *const close = strchr(open, ')');
        const char *const inner = strchr(open + 1, '(');
        if (close == NULL) return fail_at(r, open, "no ) for this (");
        if (inner != NULL && inner < close) return fail_at(r, inner, "parentheses do not nest");
        int64_t times = 1;
        TD_TRY(repeat_at(r, close + 1, &times, &s));
        for (int64_t i = 0; i < times && close > open + 1; i++)
            TD_TRY(take_run(r, open + 1, close));
    }
    return TD_OK;
}

td_status layout_parse(const char *text, layout_stage *out, int64_t max, int64_t *n, td_err *err)
{
    layout_reader r = {.text = text, .out = out, .max = max, .err = err};
    TD_TRY(take_all(&r, text));
    close_stage(&r);
    *n = r.n;
    const char *const end = text + strlen(text);
    if (r.embeddings != 1) return fail_at(&r, text, "the embedding E is missing");
    if (r.losses != 1) return fail_at(&r, end, "the loss L is missing");
    return TD_OK;
}
