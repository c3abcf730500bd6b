/* The frame of a program: finds the verb, prints help, runs, turns a status into an exit code. */
#include "base/cli.h"

#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static td_status find_verb(const cli_program *p, const char *word, const cli_verb **verb,
                           td_err *err)
{
    enum { VERBS_MAX = 32 };
    const char *names[VERBS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < p->n_verbs; i++) {
        if (strcmp(word, p->verbs[i].name) == 0) {
            *verb = &p->verbs[i];
            return TD_OK;
        }
        if (n < VERBS_MAX - 1) names[n++] = p->verbs[i].name;
    }
    names[n++] = "help";
    if (word[0] == '-')
        return td_fail(err, TD_EUSAGE, "%s: the verb comes first; %s help lists them", word,
                       p->name);
    const char *const near = td_nearest(word, names, n);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "unknown verb \"%s\"; did you mean %s?", word, near);
    return td_fail(err, TD_EUSAGE, "unknown verb \"%s\"; %s help lists them", word, p->name);
}

static void greeting(td_text *out, const cli_program *p)
{
    td_text_addf(out, "%s: %s\n", p->name, p->summary);
    if (p->example != NULL) td_text_addf(out, "for example:\n  %s\n", p->example);
    td_text_addf(out, "%s help lists the verbs, %s help VERB explains one\n", p->name, p->name);
}

static void version(td_text *out, const cli_program *p)
{
    td_text_addf(out, "%s %s\n", p->name, TD_VERSION);
    if (p->version != NULL) td_text_addf(out, "%s\n", p->version);
}

/* `help`, `help VERB`, `help --man`, `help --completions bash`. */
static td_status help(td_text *out, const cli_program *p, int argc, char **argv, td_err *err)
{
    if (argc < 3) {
        cli_help_program(out, p);
        return TD_OK;
    }
    const char *const what = argv[2];
    if (strcmp(what, "--man") == 0) {
        cli_man(out, p);
        return TD_OK;
    }
    if (strcmp(what, "--completions") == 0) {
        if (argc < 4 || strcmp(argv[3], "bash") != 0)
            return td_fail(err, TD_EUSAGE, "help --completions: there is one shell: bash");
        cli_completions_bash(out, p);
        return TD_OK;
    }
    const cli_verb *verb = NULL;
    TD_TRY(find_verb(p, what, &verb, err));
    cli_help_verb(out, p, verb);
    return TD_OK;
}

static td_status run_verb(td_arena *a, td_text *out, const cli_program *p, int argc, char **argv,
                          void *options, size_t size, td_err *err)
{
    const cli_verb *verb = NULL;
    TD_TRY(find_verb(p, argv[1], &verb, err));
    cli_args args;
    bool wants_help = false;
    TD_TRY(cli_parse(a, p, verb, argc, argv, options, size, &args, &wants_help, err));
    if (wants_help) {
        cli_help_verb(out, p, verb);
        return TD_OK;
    }
    return verb->run(a, &args, options, err);
}

static td_status dispatch(td_arena *a, td_text *out, const cli_program *p, int argc, char **argv,
                          void *options, size_t size, td_err *err)
{
    if (argc < 2) {
        greeting(out, p);
        return TD_OK;
    }
    const char *const first = argv[1];
    if (strcmp(first, "--version") == 0) {
        version(out, p);
        return TD_OK;
    }
    if (strcmp(first, "-h") == 0 || strcmp(first, "--help") == 0) {
        cli_help_program(out, p);
        return TD_OK;
    }
    if (strcmp(first, "help") == 0) return help(out, p, argc, argv, err);
    return run_verb(a, out, p, argc, argv, options, size, err);
}

int cli_main(const cli_program *program, int argc, char **argv, void *options, size_t size)
{
    td_err err = {0};
    td_text out = {0};
    td_arena *const a = td_arena_new();
    td_status st = a == NULL ? td_fail(&err, TD_ENOMEM, "out of memory")
                             : dispatch(a, &out, program, argc, argv, options, size, &err);
    if (out.len > 0) (void)fwrite(out.s, 1, out.len, stdout);
    const bool written = fflush(stdout) == 0 && !ferror(stdout);
    if (st == TD_OK && !written)
        st = td_fail(&err, TD_EIO, "stdout: cannot write: %s", strerror(errno));
    if (st != TD_OK && err.msg[0] != '\0')
        (void)fprintf(stderr, "%s: %s\n", program->name, err.msg);
    td_text_free(&out);
    td_arena_free(a);
    return td_exit_code(st);
}
