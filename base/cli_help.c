/* Help, man page and completions, all made of the option tables. */
#include "base/cli.h"

#include <stdio.h>
#include <string.h>

enum { HELP_WIDTH = 80, HELP_COLUMN = 27 };

static const char exit_codes[] = "0 yes, 1 the answer is no, 2 usage or input error, "
                                 "3 the machine refused, 130 interrupted";

/* --- wrapping --- */

/* Columns of the first n bytes: continuation bytes of UTF-8 take none. */
static int columns(const char *s, size_t n)
{
    int c = 0;
    for (size_t i = 0; i < n; i++) c += ((unsigned char)s[i] & 0xc0) != 0x80;
    return c;
}

/* Appends words from column `at` on, continued lines indented. */
static void wrap(td_text *out, const char *s, int at, int indent)
{
    bool first = true;
    while (*s != '\0') {
        const size_t n = strcspn(s, " \n");
        const int w = columns(s, n);
        if (!first && at + 1 + w > HELP_WIDTH - 1) {
            td_text_addf(out, "\n%*s", indent, "");
            at = indent;
        } else if (!first) {
            td_text_add(out, " ");
            at++;
        }
        td_text_addn(out, s, n);
        at += w;
        s += n;
        s += strspn(s, " \n");
        first = false;
    }
    td_text_add(out, "\n");
}

/* --- pieces that all three texts need --- */

static const char *value_name(const cli_option *o)
{
    if (o->arg != NULL) return o->arg;
    switch (o->kind) {
    case CLI_INT: return "N";
    case CLI_REAL: return "X";
    case CLI_BYTES: return "BYTES";
    case CLI_CHOICE: return "WHICH";
    default: return "TEXT";
    }
}

static void option_left(td_text *out, const cli_option *o)
{
    if (o->letter != 0) {
        td_text_addf(out, "-%c, ", o->letter);
    } else {
        td_text_add(out, "    ");
    }
    td_text_addf(out, "--%s", o->name);
    if (o->kind != CLI_FLAG) td_text_addf(out, " %s", value_name(o));
}

/* The sentence of an option with its choices and its default. */
static void option_right(td_text *out, const cli_option *o)
{
    td_text_add(out, o->help != NULL ? o->help : "");
    const bool choices = o->kind == CLI_CHOICE && o->choices != NULL;
    if (!choices && o->def == NULL) return;
    td_text_add(out, " (");
    if (choices) td_text_add(out, o->choices);
    if (choices && o->def != NULL) td_text_add(out, "; ");
    if (o->def != NULL) td_text_addf(out, "default: %s", o->def);
    td_text_add(out, ")");
}

static bool has_operands(const cli_verb *verb)
{
    return verb->operands != NULL && verb->operands[0] != '\0';
}

/* --- help --- */

void cli_help_program(td_text *out, const cli_program *p)
{
    td_text_addf(out, "Usage: %s VERB [OPTION]...\n\n", p->name);
    wrap(out, p->summary, 0, 0);
    if (p->example != NULL) td_text_addf(out, "\nExample:\n  %s\n", p->example);
    td_text_add(out, "\nVerbs:\n");
    for (size_t i = 0; i < p->n_verbs; i++) {
        td_text_addf(out, "  %-10s  ", p->verbs[i].name);
        wrap(out, p->verbs[i].summary, 14, 14);
    }
    td_text_addf(out, "  %-10s  ", "help");
    wrap(out,
         "this text; help VERB: the options of a verb; help --man: the manual page; "
         "help --completions bash: completions",
         14, 14);
    td_text_addf(out, "\n%s --version prints the version and what it was built with.\n", p->name);
    td_text_add(out, "Exit codes: ");
    wrap(out, exit_codes, 12, 12);
}

static void help_option(td_text *out, const cli_option *o)
{
    if (o->kind == CLI_HEADING) {
        if (o->help != NULL) td_text_addf(out, "\n%s:\n", o->help);
        return;
    }
    td_text left = {0}, right = {0};
    option_left(&left, o);
    option_right(&right, o);
    if (left.failed || right.failed) {
        out->failed = true;
    } else {
        td_text_addf(out, "  %s", left.s);
        if ((int)left.len + 4 > HELP_COLUMN) {
            td_text_addf(out, "\n%*s", HELP_COLUMN, "");
        } else {
            td_text_addf(out, "%*s", HELP_COLUMN - 2 - (int)left.len, "");
        }
        wrap(out, right.s, HELP_COLUMN, HELP_COLUMN);
    }
    td_text_free(&left);
    td_text_free(&right);
}

void cli_help_verb(td_text *out, const cli_program *p, const cli_verb *verb)
{
    td_text_addf(out, "Usage: %s %s [OPTION]...%s%s\n\n", p->name, verb->name,
                 has_operands(verb) ? " " : "", has_operands(verb) ? verb->operands : "");
    wrap(out, verb->about != NULL ? verb->about : verb->summary, 0, 0);
    if (verb->example != NULL) td_text_addf(out, "\nExample:\n  %s\n", verb->example);
    if (verb->n_tables > 0 && verb->tables[0].n > 0 &&
        verb->tables[0].options[0].kind != CLI_HEADING)
        td_text_add(out, "\nOptions:\n");
    for (size_t t = 0; t < verb->n_tables; t++)
        for (size_t i = 0; i < verb->tables[t].n; i++)
            help_option(out, &verb->tables[t].options[i]);
    td_text_add(out, "\nExit codes: ");
    wrap(out, exit_codes, 12, 12);
    if (verb->see != NULL) {
        td_text_add(out, "See also: ");
        wrap(out, verb->see, 10, 10);
    }
}

/* --- man page --- */

/* Appends text with the characters that troff would take for its own escaped. */
static void troff(td_text *out, const char *s)
{
    if (*s == '.' || *s == '\'') td_text_add(out, "\\&");
    for (; *s != '\0'; s++) {
        if (*s == '\\') {
            td_text_add(out, "\\e");
        } else if (*s == '-') {
            td_text_add(out, "\\-");
        } else {
            td_text_addn(out, s, 1);
        }
    }
}

static void man_option(td_text *out, const cli_option *o)
{
    if (o->kind == CLI_HEADING) {
        if (o->help == NULL) return;
        td_text_add(out, ".PP\n.I ");
        troff(out, o->help);
        td_text_add(out, "\n");
        return;
    }
    td_text left = {0}, right = {0};
    option_left(&left, o);
    option_right(&right, o);
    if (left.failed || right.failed) {
        out->failed = true;
    } else {
        td_text_add(out, ".TP\n.B ");
        troff(out, left.s + strspn(left.s, " "));
        td_text_add(out, "\n");
        troff(out, right.s != NULL ? right.s : "");
        td_text_add(out, "\n");
    }
    td_text_free(&left);
    td_text_free(&right);
}

static void man_verb(td_text *out, const cli_program *p, const cli_verb *verb)
{
    td_text_add(out, ".SS ");
    td_text_addf(out, "\"%s %s\"\n", p->name, verb->name);
    troff(out, verb->about != NULL ? verb->about : verb->summary);
    td_text_add(out, "\n");
    if (verb->example != NULL) {
        td_text_add(out, ".PP\n.EX\n");
        troff(out, verb->example);
        td_text_add(out, "\n.EE\n");
    }
    for (size_t t = 0; t < verb->n_tables; t++)
        for (size_t i = 0; i < verb->tables[t].n; i++) man_option(out, &verb->tables[t].options[i]);
}

void cli_man(td_text *out, const cli_program *p)
{
    td_text_addf(out, ".TH %s 1 \"\" \"%s %s\"\n.SH NAME\n%s \\- ", p->name, p->name, TD_VERSION,
                 p->name);
    troff(out, p->summary);
    td_text_addf(out, "\n.SH SYNOPSIS\n.B %s\n.I VERB\n[\n.I OPTION\n]...\n.SH VERBS\n", p->name);
    for (size_t i = 0; i < p->n_verbs; i++) man_verb(out, p, &p->verbs[i]);
    td_text_add(out, ".SH EXIT STATUS\n");
    troff(out, exit_codes);
    td_text_add(out, "\n");
}

/* --- completions --- */

static void bash_verb(td_text *out, const cli_verb *verb)
{
    for (size_t t = 0; t < verb->n_tables; t++) {
        for (size_t i = 0; i < verb->tables[t].n; i++) {
            const cli_option *const o = &verb->tables[t].options[i];
            if (o->kind != CLI_CHOICE) continue;
            td_text_addf(out, "    %s:--%s) words=\"", verb->name, o->name);
            for (const char *s = o->choices; *s != '\0'; s++)
                td_text_addn(out, *s == '|' ? " " : s, 1);
            td_text_add(out, "\" ;;\n");
        }
    }
    td_text_addf(out, "    %s:*) words=\"--help", verb->name);
    for (size_t t = 0; t < verb->n_tables; t++)
        for (size_t i = 0; i < verb->tables[t].n; i++)
            if (verb->tables[t].options[i].kind != CLI_HEADING)
                td_text_addf(out, " --%s", verb->tables[t].options[i].name);
    td_text_add(out, "\" ;;\n");
}

void cli_completions_bash(td_text *out, const cli_program *p)
{
    td_text_addf(out,
                 "_%s()\n{\n    local cur=${COMP_WORDS[COMP_CWORD]}\n"
                 "    local prev=${COMP_WORDS[COMP_CWORD - 1]} words=\n"
                 "    case \"${COMP_WORDS[1]}:$prev\" in\n",
                 p->name);
    for (size_t i = 0; i < p->n_verbs; i++) bash_verb(out, &p->verbs[i]);
    td_text_add(out, "    esac\n    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        words=\"");
    for (size_t i = 0; i < p->n_verbs; i++) td_text_addf(out, "%s ", p->verbs[i].name);
    td_text_addf(out,
                 "help --help --version\"\n    fi\n"
                 "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n"
                 "complete -o default -F _%s %s\n",
                 p->name, p->name);
}
