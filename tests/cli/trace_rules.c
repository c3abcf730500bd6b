/* trace_rules FILE...: do traces keep the rules by which Perfetto and chrome://tracing read them
 * ("Trace Event Format", Google, 2016)? Slices of a thread nest; processes and threads that hold
 * some have one name; a flow has one start and one end, in that order, each within a slice.
 * Exit 1 with a line for each rule that is broken. */
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An event in nanoseconds; of a flow, end is its id. */
typedef struct event {
    int64_t pid, tid, begin, end;
} event;

typedef struct events {
    event *e;
    size_t n;
} events;

typedef struct rules {
    const char *file;
    events slices, starts, ends, threads, processes;
    int bad;
} rules;

static void broken(rules *r, const char *rule, const event *e)
{
    r->bad++;
    if (r->bad > 10) return;
    fprintf(stderr, "%s: pid %" PRId64 " tid %" PRId64 " at %" PRId64 " ns: %s\n", r->file, e->pid,
            e->tid, e->begin, rule);
}

static void put(events *list, const event *e)
{
    event *const grown = realloc(list->e, (list->n + 1) * sizeof *grown);
    if (grown == NULL) abort();
    list->e = grown;
    list->e[list->n++] = *e;
}

static int order(const void *a, const void *b)
{
    const event *const x = a, *const y = b;
    if (x->pid != y->pid) return x->pid < y->pid ? -1 : 1;
    if (x->tid != y->tid) return x->tid < y->tid ? -1 : 1;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end > y->end ? -1 : x->end < y->end;
}

static int by_end(const void *a, const void *b)
{
    const event *const x = a, *const y = b;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int64_t ns_of(rules *r, const json_t *o, const char *key, const event *e)
{
    const json_t *const v = json_object_get(o, key);
    if (!json_is_number(v) || json_number_value(v) < 0.0) {
        broken(r, "a time is missing or negative", e);
        return 0;
    }
    return llround(json_number_value(v) * 1e3);
}

static void read_event(rules *r, const json_t *o)
{
    const char *const ph = json_string_value(json_object_get(o, "ph"));
    const char *const name = json_string_value(json_object_get(o, "name"));
    event e = {.pid = json_integer_value(json_object_get(o, "pid")),
               .tid = json_integer_value(json_object_get(o, "tid"))};
    if (ph == NULL || name == NULL || name[0] == '\0') {
        broken(r, "no phase or no name", &e);
        return;
    }
    if (*ph == 'M') {
        if (strcmp(name, "thread_name") == 0) put(&r->threads, &e);
        if (strcmp(name, "process_name") == 0) put(&r->processes, &e);
        return;
    }
    e.begin = ns_of(r, o, "ts", &e);
    if (*ph == 'X') {
        e.end = e.begin + ns_of(r, o, "dur", &e);
        put(&r->slices, &e);
    } else if (*ph == 's' || *ph == 'f') {
        e.end = json_integer_value(json_object_get(o, "id"));
        const char *const to = json_string_value(json_object_get(o, "bp"));
        if (*ph == 'f' && (to == NULL || strcmp(to, "e") != 0))
            broken(r, "a flow ends at the slice behind, not at the one around", &e);
        put(*ph == 's' ? &r->starts : &r->ends, &e);
    } else if (*ph == 'C') {
        const char *key = NULL;
        json_t *value = NULL;
        json_object_foreach(json_object_get(o, "args"), key, value)
        {
            if (!json_is_number(value)) broken(r, "a counter that is no number", &e);
        }
    } else
        broken(r, "a phase of no known kind", &e);
}

static size_t named(const events *list, const event *e, bool thread)
{
    size_t n = 0;
    for (size_t i = 0; i < list->n; i++)
        n += list->e[i].pid == e->pid && (!thread || list->e[i].tid == e->tid);
    return n;
}

/* Slices in order: each one is behind the last one of its thread, or within all that are open. */
static void check_slices(rules *r)
{
    qsort(r->slices.e, r->slices.n, sizeof(event), order);
    event *const open = malloc((r->slices.n + 1) * sizeof *open);
    if (open == NULL) abort();
    size_t depth = 0;
    for (size_t i = 0; i < r->slices.n; i++) {
        const event *const e = &r->slices.e[i];
        const bool first = i == 0 || e->pid != e[-1].pid || e->tid != e[-1].tid;
        if (first) {
            depth = 0;
            if (named(&r->threads, e, true) != 1) broken(r, "a thread without one name", e);
            if (named(&r->processes, e, false) != 1) broken(r, "a process without one name", e);
        }
        while (depth > 0 && open[depth - 1].end <= e->begin) depth--;
        if (depth > 0 && e->end > open[depth - 1].end)
            broken(r, "a slice ends behind the one around it", e);
        open[depth++] = *e;
    }
    free(open);
}

static bool within_slice(const rules *r, const event *flow)
{
    for (size_t i = 0; i < r->slices.n; i++) {
        const event *const e = &r->slices.e[i];
        if (e->pid == flow->pid && e->tid == flow->tid && e->begin <= flow->begin &&
            flow->begin <= e->end)
            return true;
    }
    return false;
}

static void check_flows(rules *r)
{
    qsort(r->starts.e, r->starts.n, sizeof(event), by_end);
    qsort(r->ends.e, r->ends.n, sizeof(event), by_end);
    const size_t n = r->starts.n < r->ends.n ? r->starts.n : r->ends.n;
    if (r->starts.n != r->ends.n) broken(r, "flows without start or end", &(event){0});
    for (size_t i = 0; i < n; i++) {
        const event *const s = &r->starts.e[i], *const f = &r->ends.e[i];
        if (s->end != f->end || (i > 0 && s->end == s[-1].end)) broken(r, "ids of flows", s);
        if (s->begin > f->begin) broken(r, "a flow ends before it starts", f);
        if (!within_slice(r, s) || !within_slice(r, f)) broken(r, "a flow outside of slices", s);
    }
}

static int check(const char *file)
{
    rules r = {.file = file};
    json_error_t error;
    json_t *const root = json_load_file(file, JSON_REJECT_DUPLICATES, &error);
    const json_t *const list = json_object_get(root, "traceEvents");
    for (size_t i = 0; i < json_array_size(list); i++) read_event(&r, json_array_get(list, i));
    if (r.slices.n == 0) broken(&r, root == NULL ? error.text : "no slices", &(event){0});
    check_slices(&r);
    check_flows(&r);
    printf("%s: %zu slices, %zu flows\n", file, r.slices.n, r.starts.n);
    json_decref(root);
    free(r.slices.e);
    free(r.starts.e);
    free(r.ends.e);
    free(r.threads.e);
    free(r.processes.e);
    return r.bad;
}

int main(int argc, char **argv)
{
    int bad = argc < 2;
    for (int i = 1; i < argc; i++) bad += check(argv[i]);
    return bad == 0 ? 0 : 1;
}
