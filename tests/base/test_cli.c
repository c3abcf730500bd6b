/* One option table, parsed and printed. Not pinned here: the layout of the help beyond its width.
 */
#include "t.h"

#include "base/cli.h"

typedef struct shared_options {
    int64_t pp;
    int protocol;
} shared_options;

typedef struct test_options {
    double lr;
    bool json, fold;
    const char *out;
    cli_many opts;
    int64_t memory;
    shared_options shared;
} test_options;

static const cli_option shared_table[] = {
    {.kind = CLI_HEADING, .help = "What to run"},
    {.kind = CLI_INT,
     .name = "pp",
     .letter = 'p',
     .at = offsetof(shared_options, pp),
     .def = "4",
     .min = 1,
     .max = 1000,
     .help = "pipeline ranks"},
    {.kind = CLI_CHOICE,
     .name = "protocol",
     .also = "how-messages-go wire-protocol",
     .at = offsetof(shared_options, protocol),
     .choices = "eager|rendezvous",
     .help = "how messages travel"},
};
static const cli_option own_table[] = {
    {.kind = CLI_HEADING, .help = "Output"},
    {.kind = CLI_FLAG, .name = "json", .at = offsetof(test_options, json), .help = "JSON"},
    {.kind = CLI_FLAG,
     .name = "fold",
     .at = offsetof(test_options, fold),
     .def = "yes",
     .help = "fold"},
    {.kind = CLI_REAL,
     .name = "lr",
     .at = offsetof(test_options, lr),
     .def = "1e-3",
     .help = "the learning rate, explained in so many words that the line cannot hold them all"},
    {.kind = CLI_TEXT,
     .name = "output",
     .letter = 'o',
     .arg = "FILE",
     .at = offsetof(test_options, out),
     .help = "file"},
    {.kind = CLI_MANY,
     .name = "opt",
     .arg = "KEY=VALUE",
     .at = offsetof(test_options, opts),
     .help = "option"},
    {.kind = CLI_BYTES,
     .name = "memory-limit",
     .at = offsetof(test_options, memory),
     .help = "limit"},
};
static const cli_table tables[] = {
    CLI_TABLE(shared_table, offsetof(test_options, shared)),
    CLI_TABLE(own_table, 0),
};

static td_status answer_no(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    (void)a;
    (void)args;
    return ((const test_options *)options)->json ? cli_answer_no(err) : TD_OK;
}

static const cli_verb verbs[] = {
    {.name = "run",
     .summary = "run it",
     .operands = "[FILE]",
     .max_operands = 1,
     .example = "prog run --pp 2",
     .tables = tables,
     .n_tables = 2,
     .run = answer_no},
    {.name = "compare",
     .summary = "compare two",
     .operands = "A B",
     .min_operands = 2,
     .max_operands = 2,
     .run = answer_no},
    {.name = "sweep", .lists = true, .tables = tables, .n_tables = 2, .run = answer_no},
};
static const cli_program prog = {
    .name = "prog", .summary = "a program", .verbs = verbs, .n_verbs = 2};

enum { WORDS_MAX = 16 };

typedef struct parsed {
    test_options o;
    cli_args args;
    bool wants_help;
    td_err err;
} parsed;

/* Parses "prog run WORDS" where words are separated by blanks. */
static td_status parse_verb(td_arena *a, const cli_verb *verb, const char *words, parsed *p)
{
    char **const argv = td_alloc(a, WORDS_MAX + 1, sizeof *argv);
    char *const text = td_sprintf(a, "prog run %s", words);
    int argc = 0;
    char *rest = NULL;
    for (char *w = strtok_r(text, " ", &rest); w != NULL; w = strtok_r(NULL, " ", &rest))
        argv[argc++] = w;
    *p = (parsed){0};
    return cli_parse(a, &prog, verb, argc, argv, &p->o, sizeof p->o, &p->args, &p->wants_help,
                     &p->err);
}

static td_status parse(td_arena *a, const char *words, parsed *p)
{
    return parse_verb(a, &verbs[0], words, p);
}

static void defaults(void **state)
{
    parsed p;
    T_OK(parse(*state, "", &p), &p.err);
    assert_int_equal(p.o.shared.pp, 4);
    assert_int_equal(p.o.shared.protocol, -1);
    assert_true(p.o.fold && !p.o.json);
    assert_null(p.o.out);
    T_CLOSE(p.o.lr, 1e-3, 0, 0);
    assert_false(cli_given(&p.args, "pp"));
}

static void values(void **state)
{
    parsed p;
    T_OK(parse(*state,
               "--pp=8 a.csv --json --no-fold --opt x=1 --opt y=2 --protocol rendezvous "
               "-ofile --memory-limit 2GiB",
               &p),
         &p.err);
    assert_int_equal(p.o.shared.pp, 8);
    assert_int_equal(p.o.shared.protocol, 1);
    assert_true(p.o.json && !p.o.fold);
    assert_string_equal(p.o.out, "file");
    assert_int_equal(p.o.opts.n, 2);
    assert_string_equal(p.o.opts.item[0], "x=1");
    assert_string_equal(p.o.opts.item[1], "y=2");
    assert_true(p.o.memory == (int64_t)2 << 30);
    assert_int_equal(p.args.n_operands, 1);
    assert_string_equal(p.args.operands[0], "a.csv");
    assert_true(cli_given(&p.args, "pp") && cli_given(&p.args, "fold"));
    assert_false(cli_given(&p.args, "lr"));
    T_OK(parse(*state, "-p 3 -- --json", &p), &p.err);
    assert_int_equal(p.o.shared.pp, 3);
    assert_string_equal(p.args.operands[0], "--json");
    assert_false(p.o.json);
}

static void refusals(void **state)
{
    static const struct {
        const char *words, *part;
    } bad[] = {
        {"--proto eager", "did you mean --protocol?"},
        {"--jsno", "did you mean --json?"},
        {"--how-messages-go eager", "did you mean --protocol?"},
        {"--wire_protocol=eager", "unknown option --wire_protocol; did you mean --protocol?"},
        {"--how-messages", "--help lists them"},
        {"--no-jso", "did you mean --no-json?"},
        {"--zzzzzzzz", "unknown option --zzzzzzzz"},
        {"-x", "unknown option -x"},
        {"--pp", "value is missing"},
        {"-o", "value is missing"},
        {"--json=1", "--json takes no value"},
        {"--pp 0", "from 1 to 1000"},
        {"--pp two", "--pp: \"two\""},
        {"--protocol eagre", "did you mean eager?"},
        {"--protocol zzz", "eager|rendezvous"},
        {"a b", "unexpected \"b\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        parsed p;
        T_FAILS(parse(*state, bad[i].words, &p), TD_EUSAGE, &p.err, bad[i].part);
        assert_null(strchr(p.err.msg, '\n'));
    }
}

/* Lists are for verbs that take them: each value is checked, texts are lists where asked for. */
static void lists(void **state)
{
    static const char *const none[] = {NULL}, *const files[] = {"output", NULL};
    cli_axis *axes = NULL;
    size_t n = 0;
    parsed p;
    T_FAILS(parse(*state, "--pp 2,8", &p), TD_EUSAGE, &p.err, "--pp");
    T_OK(parse_verb(*state, &verbs[2], "-p 2,8 --lr 1,2,3 -o a,b --protocol eager --opt x=1,2", &p),
         &p.err);
    assert_int_equal(p.o.shared.pp, 8);
    assert_string_equal(p.o.out, "a,b");
    T_OK(cli_axes(*state, &p.args, none, &axes, &n, &p.err), &p.err);
    assert_int_equal(n, 2);
    assert_string_equal(axes[0].name, "pp");
    assert_int_equal(axes[0].n, 2);
    assert_string_equal(axes[0].items[0], "2");
    assert_string_equal(axes[0].items[1], "8");
    assert_string_equal(axes[1].name, "lr");
    assert_int_equal(axes[1].n, 3);
    T_OK(cli_axes(*state, &p.args, files, &axes, &n, &p.err), &p.err);
    assert_int_equal(n, 3);
    T_OK(cli_set(*state, &verbs[2], "pp", axes[0].items[0], &p.o, &p.err), &p.err);
    assert_int_equal(p.o.shared.pp, 2);
    T_FAILS(cli_set(*state, &verbs[2], "pp", "0", &p.o, &p.err), TD_EUSAGE, &p.err, "--pp");
    T_FAILS(parse_verb(*state, &verbs[2], "--pp 2,0", &p), TD_EUSAGE, &p.err, "--pp");
    T_FAILS(parse_verb(*state, &verbs[2], "--pp 2,,4", &p), TD_EUSAGE, &p.err, "--pp");
    assert_true(cli_has(&verbs[2], "lr"));
    assert_false(cli_has(&verbs[2], "rl"));
}

static void help_wins(void **state)
{
    parsed p;
    T_OK(parse(*state, "--pp 3 -h --nonsense", &p), &p.err);
    assert_true(p.wants_help);
}

/* Every failing allocation is reported, and none is read past. */
static void memory_fails(void **state)
{
    (void)state;
    int fine = 0;
    for (long n = 4; fine == 0; n++) {
        td_arena *const a = td_arena_new();
        assert_non_null(a);
        parsed p;
        td_arena_fail_at(a, n);
        const td_status st = parse(a, "--opt x=1 --protocol eager --jsno", &p);
        assert_true(st == TD_ENOMEM || st == TD_EUSAGE);
        fine = strstr(p.err.msg, "did you mean --json?") != NULL;
        td_arena_free(a);
        assert_true(n < 100);
    }
}

static void line_is_quoted(void **state)
{
    parsed p;
    T_OK(parse(*state, "--opt a'b file", &p), &p.err);
    assert_string_equal(cli_line(*state, &p.args), "prog run --opt 'a'\\''b' file");
}

/* Each option of the table is in the help, the man page and the completions, and no line of the
 * help is wider than 80 columns. */
static void texts_know_every_option(void **state)
{
    td_text help = {0}, man = {0}, bash = {0};
    cli_help_verb(&help, &prog, &verbs[0]);
    cli_man(&man, &prog);
    cli_completions_bash(&bash, &prog);
    for (size_t t = 0; t < 2; t++) {
        for (size_t i = 0; i < tables[t].n; i++) {
            const cli_option *const o = &tables[t].options[i];
            if (o->kind == CLI_HEADING) continue;
            const char *const word = td_sprintf(*state, "--%s", o->name);
            assert_non_null(strstr(help.s, word));
            assert_non_null(strstr(bash.s, word));
        }
    }
    assert_non_null(strstr(help.s, "prog run --pp 2"));
    assert_non_null(strstr(help.s, "default: 1e-3"));
    assert_non_null(strstr(man.s, "\\-\\-memory\\-limit"));
    for (const char *s = help.s; *s != '\0';) {
        const size_t n = strcspn(s, "\n");
        assert_true(n <= 80);
        s += n + (s[n] == '\n');
    }
    td_text_free(&help);
    td_text_free(&man);
    td_text_free(&bash);
}

static void no_is_one(void **state)
{
    (void)state;
    test_options o;
    char name[] = "prog", verb[] = "run", json[] = "--json";
    char *no[] = {name, verb, json, NULL}, *yes[] = {name, verb, NULL};
    assert_int_equal(cli_main(&prog, 3, no, &o, sizeof o), 1);
    assert_int_equal(cli_main(&prog, 2, yes, &o, sizeof o), 0);
}

static void bars(void **state)
{
    (void)state;
    char b[32];
    assert_string_equal(cli_bar(b, sizeof b, 12, 0), "[>         ]");
    assert_string_equal(cli_bar(b, sizeof b, 12, 0.5), "[=====>    ]");
    assert_string_equal(cli_bar(b, sizeof b, 12, 1), "[==========]");
    assert_string_equal(cli_bar(b, sizeof b, 12, (double)NAN), "[>         ]");
    assert_string_equal(cli_bar(b, 5, 12, 1), "[===");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(defaults),       T_TEST(values),
        T_TEST(refusals),       T_TEST(lists),
        T_TEST(help_wins),      T_TEST(memory_fails),
        T_TEST(line_is_quoted), T_TEST(texts_know_every_option),
        T_TEST(no_is_one),      T_TEST(bars),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
