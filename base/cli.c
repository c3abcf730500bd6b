/* Parsing of command lines over getopt_long, and the frame of a program around its verbs.
 * getopt_long takes unique prefixes of a name for the name; here they are refused, so that a script
 * cannot break when an option is added. */
#include "base/cli.h"

#include "base/text.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- options by number, tables one after another --- */

static size_t option_count(const cli_verb *verb)
{
    size_t n = 0;
    for (size_t t = 0; t < verb->n_tables; t++) n += verb->tables[t].n;
    return n;
}

static const cli_option *option_at(const cli_verb *verb, size_t i, size_t *at)
{
    size_t t = 0;
    while (i >= verb->tables[t].n) i -= verb->tables[t++].n;
    const cli_option *const o = &verb->tables[t].options[i];
    *at = verb->tables[t].at + o->at;
    return o;
}

/* The number of an option, or the count of them. */
static size_t option_named(const cli_verb *verb, const char *name)
{
    const size_t n = option_count(verb);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const cli_option *const o = option_at(verb, i, &at);
        if (o->kind != CLI_HEADING && strcmp(o->name, name) == 0) return i;
    }
    return n;
}

bool cli_has(const cli_verb *verb, const char *name)
{
    return option_named(verb, name) < option_count(verb);
}

bool cli_given(const cli_args *args, const char *name)
{
    assert(cli_has(args->verb, name) && "the verb has this option");
    return args->given[option_named(args->verb, name)];
}

/* --- one value --- */

static td_status read_choice(td_arena *a, const cli_option *o, const char *value, const char *name,
                             int *out, td_err *err)
{
    enum { CHOICES_MAX = 32 };
    const char *names[CHOICES_MAX];
    size_t n = 0;
    char *const all = td_strdup(a, o->choices);
    if (all == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    char *rest = NULL;
    for (char *word = strtok_r(all, "|", &rest); word != NULL; word = strtok_r(NULL, "|", &rest)) {
        assert(n < CHOICES_MAX);
        if (strcmp(word, value) == 0) {
            *out = (int)n;
            return TD_OK;
        }
        names[n++] = word;
    }
    const char *const near = td_nearest(value, names, n);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "%s: unknown \"%s\"; did you mean %s?", name, value, near);
    return td_fail(err, TD_EUSAGE, "%s: unknown \"%s\"; it is one of %s", name, value, o->choices);
}

static td_status add_many(td_arena *a, cli_many *many, const char *value, td_err *err)
{
    const char **const more = td_alloc(a, many->n + 1, sizeof *more);
    if (more == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    if (many->n > 0) memcpy(more, many->item, many->n * sizeof *more);
    more[many->n] = value;
    many->item = more;
    many->n++;
    return TD_OK;
}

/* Reads `value` into the field of an option; `name` stands in front of messages. */
static td_status read_value(td_arena *a, const cli_option *o, const char *value, const char *name,
                            void *field, td_err *err)
{
    const bool any = o->min == 0 && o->max == 0;
    switch (o->kind) {
    case CLI_FLAG: *(bool *)field = strcmp(value, "no") != 0; return TD_OK;
    case CLI_INT:
        return td_parse_i64(value, any ? INT64_MIN : o->min, any ? INT64_MAX : o->max, name, field,
                            err);
    case CLI_REAL:
        return td_parse_f64(value, any ? -1e300 : (double)o->min,
                            any || o->max == INT64_MAX ? 1e300 : (double)o->max, name, field, err);
    case CLI_BYTES: return td_parse_bytes(value, name, field, err);
    case CLI_TEXT: *(const char **)field = value; return TD_OK;
    case CLI_CHOICE: return read_choice(a, o, value, name, field, err);
    case CLI_MANY: return add_many(a, field, value, err);
    case CLI_HEADING: break;
    }
    assert(0 && "a heading has no value");
    return TD_EUSAGE;
}

/* --- lists --- */

static bool is_list_kind(cli_kind kind)
{
    return kind == CLI_INT || kind == CLI_REAL || kind == CLI_BYTES || kind == CLI_CHOICE;
}

/* Whether what stands behind a comma belongs to the setting before: KEY=VALUE, or a number. */
static bool goes_on(const char *item, size_t len, const char *next)
{
    const size_t word = strcspn(next, ",:");
    return memchr(item, '=', len) != NULL && word > 0 &&
           (memchr(next, '=', word) != NULL || strspn(next, "0123456789.") == word);
}

/* The items of "a,b,c"; "a:x=1,2,b:y=F=1,B=2" is two. */
static td_status split_list(td_arena *a, const char *text, cli_axis *out, td_err *err)
{
    size_t n = 1;
    for (const char *c = text; *c != '\0'; c++) n += *c == ',';
    char *copy = td_strdup(a, text);
    out->items = TD_NEW_N(a, const char *, n);
    if (copy == NULL || out->items == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (const char *const end = copy + strlen(copy); copy <= end;) {
        size_t len = strcspn(copy, ",");
        while (copy[len] == ',' && goes_on(copy, len, copy + len + 1))
            len += 1 + strcspn(copy + len + 1, ",");
        out->items[out->n++] = copy;
        copy += len;
        *copy++ = '\0';
    }
    return TD_OK;
}

/* One value, or with `lists` each of several; the field holds the last. */
static td_status read_values(td_arena *a, const cli_verb *verb, const cli_option *o,
                             const char *value, void *field, td_err *err)
{
    char name[80];
    (void)snprintf(name, sizeof name, "--%s", o->name);
    if (!verb->lists || !is_list_kind(o->kind)) return read_value(a, o, value, name, field, err);
    cli_axis axis = {0};
    TD_TRY(split_list(a, value, &axis, err));
    for (size_t i = 0; i < axis.n; i++) TD_TRY(read_value(a, o, axis.items[i], name, field, err));
    return TD_OK;
}

td_status cli_axes(td_arena *a, const cli_args *args, const char *const *texts, cli_axis **out,
                   size_t *n, td_err *err)
{
    const size_t all = option_count(args->verb);
    *n = 0;
    *out = TD_NEW_N(a, cli_axis, all);
    if (*out == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (size_t i = 0; i < all; i++) {
        size_t at = 0;
        const cli_option *const o = option_at(args->verb, i, &at);
        if (args->text[i] == NULL) continue;
        bool list = is_list_kind(o->kind);
        for (const char *const *t = texts; *t != NULL && o->kind == CLI_TEXT; t++)
            list |= strcmp(*t, o->name) == 0;
        if (!list || strchr(args->text[i], ',') == NULL) continue;
        cli_axis *const axis = &(*out)[(*n)++];
        axis->name = o->name;
        TD_TRY(split_list(a, args->text[i], axis, err));
    }
    return TD_OK;
}

td_status cli_set(td_arena *a, const cli_verb *verb, const char *name, const char *value,
                  void *options, td_err *err)
{
    assert(cli_has(verb, name) && "the verb has this option");
    size_t at = 0;
    const cli_option *const o = option_at(verb, option_named(verb, name), &at);
    char dashed[80];
    (void)snprintf(dashed, sizeof dashed, "--%s", o->name);
    return read_value(a, o, value, dashed, (char *)options + at, err);
}

static td_status set_defaults(td_arena *a, const cli_verb *verb, char *options, td_err *err)
{
    const size_t n = option_count(verb);
    for (size_t i = 0; i < n; i++) {
        size_t at = 0;
        const cli_option *const o = option_at(verb, i, &at);
        if (o->kind == CLI_CHOICE) *(int *)(void *)(options + at) = -1;
        if (o->kind == CLI_HEADING || o->def == NULL) continue;
        TD_TRY(read_value(a, o, o->def, o->name, options + at, err));
    }
    return TD_OK;
}

/* --- getopt --- */

/* What getopt_long returns for a long option: its number doubled, plus one for the "no-" form. */
enum { LONG_BASE = 256, HELP_VALUE = 255 };

typedef struct getopt_tables {
    struct option *longs;
    char *shorts;
    size_t n_longs;
} getopt_tables;

static td_status make_getopt(td_arena *a, const cli_verb *verb, getopt_tables *g, td_err *err)
{
    const size_t n = option_count(verb);
    g->longs = TD_NEW_N(a, struct option, 2 * n + 2);
    g->shorts = td_alloc(a, 2 * n + 3, 1);
    if (g->longs == NULL || g->shorts == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    char *letter = g->shorts;
    *letter++ = ':';
    *letter++ = 'h';
    size_t k = 0;
    g->longs[k++] = (struct option){"help", no_argument, NULL, HELP_VALUE};
    for (size_t i = 0; i < n; i++) {
        size_t at = 0;
        const cli_option *const o = option_at(verb, i, &at);
        if (o->kind == CLI_HEADING) continue;
        const bool flag = o->kind == CLI_FLAG;
        const int value = LONG_BASE + 2 * (int)i;
        g->longs[k++] =
            (struct option){o->name, flag ? no_argument : required_argument, NULL, value};
        if (flag) {
            const char *const no = td_sprintf(a, "no-%s", o->name);
            if (no == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
            g->longs[k++] = (struct option){no, no_argument, NULL, value + 1};
        }
        if (o->letter != 0) {
            *letter++ = o->letter;
            if (!flag) *letter++ = ':';
        }
    }
    g->n_longs = k;
    return TD_OK;
}

/* The option that other programs call so, or NULL. */
static const char *called_elsewhere(const cli_verb *verb, const char *word)
{
    const size_t len = strlen(word), n = option_count(verb);
    for (size_t i = 0, at = 0; len > 0 && i < n; i++) {
        const cli_option *const o = option_at(verb, i, &at);
        for (const char *name = o->also; name != NULL && *name != '\0';) {
            const size_t length = strcspn(name, " ");
            if (length == len && memcmp(name, word, len) == 0) return o->name;
            name += length + strspn(name + length, " ");
        }
    }
    return NULL;
}

static td_status unknown_long(td_arena *a, const cli_args *args, const getopt_tables *g,
                              const char *word, td_err *err)
{
    const char **const names = TD_NEW_N(a, const char *, g->n_longs);
    const int len = (int)strcspn(word, "=");
    char *const bare = td_sprintf(a, "%.*s", len > 2 ? len - 2 : 0, word + 2);
    if (names == NULL || bare == NULL) return td_fail(err, TD_ENOMEM, "out of memory");
    for (size_t i = 0; i < g->n_longs; i++) names[i] = g->longs[i].name;
    for (char *c = bare; *c != '\0'; c++)
        if (*c == '_') *c = '-';
    const char *near = called_elsewhere(args->verb, bare);
    if (near == NULL) near = td_nearest(bare, names, g->n_longs);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "unknown option %.*s; did you mean --%s?", len, word, near);
    return td_fail(err, TD_EUSAGE, "unknown option %.*s; %s %s --help lists them", len, word,
                   args->program->name, args->verb->name);
}

/* The number of the option that has this value of getopt_long or this letter. */
static size_t option_of(const cli_verb *verb, int c)
{
    if (c >= LONG_BASE) return (size_t)(c - LONG_BASE) / 2;
    const size_t n = option_count(verb);
    size_t at = 0;
    for (size_t i = 0; i < n; i++)
        if (option_at(verb, i, &at)->letter == c) return i;
    assert(0 && "getopt_long knows only letters of the table");
    return 0;
}

static td_status refuse(td_arena *a, const cli_args *args, const getopt_tables *g, int c,
                        const char *word, td_err *err)
{
    size_t at = 0;
    if (c == ':') {
        const cli_option *const o = option_at(args->verb, option_of(args->verb, optopt), &at);
        return td_fail(err, TD_EUSAGE, "--%s: a value is missing: --%s %s", o->name, o->name,
                       o->arg != NULL ? o->arg : "VALUE");
    }
    if (optopt >= HELP_VALUE)
        return td_fail(err, TD_EUSAGE, "%.*s takes no value", (int)strcspn(word, "="), word);
    if (optopt != 0)
        return td_fail(err, TD_EUSAGE, "unknown option -%c; %s %s --help lists them", optopt,
                       args->program->name, args->verb->name);
    return unknown_long(a, args, g, word, err);
}

/* The word of the command line that getopt_long has just taken for option `index`. */
static const char *word_taken(char **argv)
{
    const bool apart = optarg != NULL && optarg == argv[optind - 1];
    return argv[optind - (apart ? 2 : 1)];
}

static td_status parse_words(td_arena *a, cli_args *args, int argc, char **argv, char *options,
                             bool *given, bool *wants_help, td_err *err)
{
    getopt_tables g;
    TD_TRY(make_getopt(a, args->verb, &g, err));
    optind = 0; /* makes glibc start afresh */
    for (;;) {
        int index = -1;
        const int c = getopt_long(argc, argv, g.shorts, g.longs, &index);
        if (c == -1) break;
        if (c == '?' || c == ':') return refuse(a, args, &g, c, argv[optind - 1], err);
        if (index >= 0) {
            const char *const word = word_taken(argv);
            if (strcspn(word, "=") != strlen(g.longs[index].name) + 2)
                return unknown_long(a, args, &g, word, err);
        }
        if (c == 'h' || c == HELP_VALUE) {
            *wants_help = true;
            return TD_OK;
        }
        const size_t i = option_of(args->verb, c);
        size_t at = 0;
        const cli_option *const o = option_at(args->verb, i, &at);
        const bool negated = c >= LONG_BASE && (c - LONG_BASE) % 2 == 1;
        const char *const value = o->kind != CLI_FLAG ? optarg : negated ? "no" : "yes";
        TD_TRY(read_values(a, args->verb, o, value, options + at, err));
        given[i] = true;
        args->text[i] = value;
    }
    args->operands = argv + optind;
    args->n_operands = argc - optind;
    return TD_OK;
}

td_status cli_parse(td_arena *a, const cli_program *program, const cli_verb *verb, int argc,
                    char **argv, void *options, size_t size, cli_args *args, bool *wants_help,
                    td_err *err)
{
    memset(options, 0, size);
    *wants_help = false;
    bool *const given = TD_NEW_N(a, bool, option_count(verb) + 1);
    char **const all = TD_NEW_N(a, char *, argc + 1); /* argv is permuted below, this copy not */
    const char **const text = TD_NEW_N(a, const char *, option_count(verb) + 1);
    if (given == NULL || all == NULL || text == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory");
    memcpy(all, argv, (size_t)argc * sizeof *all);
    *args = (cli_args){
        .program = program, .verb = verb, .given = given, .text = text, .argc = argc, .argv = all};
    TD_TRY(set_defaults(a, verb, options, err));
    TD_TRY(parse_words(a, args, argc - 1, argv + 1, options, given, wants_help, err));
    if (*wants_help) return TD_OK;
    if (verb->max_operands >= 0 && args->n_operands > verb->max_operands)
        return td_fail(err, TD_EUSAGE, "unexpected \"%s\"; usage: %s %s [OPTION]... %s",
                       args->operands[verb->max_operands], program->name, verb->name,
                       verb->operands != NULL ? verb->operands : "");
    if (args->n_operands < verb->min_operands)
        return td_fail(err, TD_EUSAGE, "%s is missing; usage: %s %s [OPTION]... %s", verb->operands,
                       program->name, verb->name, verb->operands);
    return TD_OK;
}

td_status cli_answer_no(td_err *err) { return td_fail(err, TD_EMISMATCH, "%s", ""); }

char *cli_line(td_arena *a, const cli_args *args)
{
    td_text t = {0};
    for (int i = 0; i < args->argc; i++) {
        const char *const w = args->argv[i];
        const bool plain =
            *w != '\0' && w[strspn(w, "abcdefghijklmnopqrstuvwxyz0123456789-_=.,/:+@%"
                                      "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] == '\0';
        if (i > 0) td_text_add(&t, " ");
        if (!plain) td_text_add(&t, "'");
        for (const char *s = w; *s != '\0'; s++) {
            if (*s == '\'') {
                td_text_add(&t, "'\\''");
            } else {
                td_text_addn(&t, s, 1);
            }
        }
        if (!plain) td_text_add(&t, "'");
    }
    char *const line = t.failed ? NULL : td_strdup(a, t.s != NULL ? t.s : "");
    td_text_free(&t);
    return line;
}
