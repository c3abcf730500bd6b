/* Command lines: one table of options drives parsing, --help, the man page and the completions.
 *
 * A program is a table of verbs; a verb has tables of options and a function. Options are written
 * into a struct of the program's, at the offset that the table gives:
 *
 *     typedef struct my_options {
 *         request what;         // a shared struct with its own table, see cli_table.at
 *         bool json;
 *         int64_t steps;
 *         const char *out;
 *         cli_many opts;
 *     } my_options;
 *
 *     static const cli_option output_options[] = {
 *         {.kind = CLI_HEADING, .help = "Output"},
 *         {.kind = CLI_FLAG, .name = "json", .at = offsetof(my_options, json),
 *          .help = "print one JSON object on stdout"},
 *         {.kind = CLI_INT, .name = "steps", .arg = "N", .at = offsetof(my_options, steps),
 *          .def = "10", .min = 1, .max = 1000000, .help = "optimizer steps"},
 *         {.kind = CLI_TEXT, .name = "output", .letter = 'o', .arg = "FILE",
 *          .at = offsetof(my_options, out), .help = "where the figure goes"},
 *         {.kind = CLI_MANY, .name = "opt", .arg = "KEY=VALUE", .at = offsetof(my_options, opts),
 *          .help = "an option of the schedule; may be repeated"},
 *     };
 *     static const cli_table run_tables[] = {
 *         CLI_TABLE(request_options, offsetof(my_options, what)), CLI_TABLE(output_options, 0)};
 *     static const cli_verb verbs[] = {
 *         {.name = "run", .summary = "simulate a schedule", .operands = "", .max_operands = 0,
 *          .example = "psim run --schedule 1f1b --pp 4 --microbatches 8 --times F=1,B=2",
 *          .tables = run_tables, .n_tables = 2, .run = cmd_run},
 *     };
 *     static const cli_program psim = {.name = "psim", .summary = "...", .verbs = verbs,
 *                                      .n_verbs = 1, .version = "..."};
 *     int main(int argc, char **argv)
 *     {
 *         my_options options;
 *         return cli_main(&psim, argc, argv, &options, sizeof options);
 *     }
 *
 * Every verb gets -h and --help, every program --version, "help [VERB]", "help --man",
 * "help --completions bash", and five lines when called without arguments. A unique prefix of an
 * option is not the option: it is refused with "did you mean". */
#ifndef BASE_CLI_H
#define BASE_CLI_H

#include "base/base.h"

/* --- tables --- */

/* What an option's value is, and the type of the field that it is written to. */
typedef enum cli_kind {
    CLI_HEADING, /* no option: `help` is the title of the options that follow */
    CLI_FLAG,    /* bool; --no-NAME is accepted too */
    CLI_INT,     /* int64_t in [min, max] */
    CLI_REAL,    /* double in [min, max] */
    CLI_BYTES,   /* int64_t bytes: "80GiB" */
    CLI_TEXT,    /* const char * */
    CLI_CHOICE,  /* int: the index in `choices`; -1 if there is no default and it is not given */
    CLI_MANY,    /* cli_many: each use adds one text */
} cli_kind;

typedef struct cli_many {
    const char **item; /* [n] */
    size_t n;
} cli_many;

typedef struct cli_option {
    cli_kind kind;
    const char *name;    /* long name without the dashes */
    char letter;         /* short name, or 0 */
    size_t at;           /* offset of the field in the struct of this table */
    const char *arg;     /* what the value is called in the help: "N", "FILE" */
    const char *def;     /* the default as it would be typed, or NULL: the field is zeroed */
    const char *choices; /* CLI_CHOICE: "eager|rendezvous" */
    const char *help;    /* one sentence without capital and full stop */
    int64_t min, max;    /* CLI_INT, CLI_REAL; both 0: any; INT64_MAX: no limit above */
    const char *also;    /* what other programs call it, "a-name another"; or NULL. Such a name is
                            no option, but is answered with this one's. */
    bool writes;         /* CLI_TEXT: a file that the verb writes; see cli_check_outputs */
} cli_option;

typedef struct cli_table {
    const cli_option *options;
    size_t n;
    size_t at; /* offset of this table's struct in the program's options */
} cli_table;
#define CLI_TABLE(array, offset)                                                                   \
    {                                                                                              \
        (array), sizeof(array) / sizeof *(array), (offset)                                         \
    }

typedef struct cli_args cli_args;

/* The work of a verb. `options` is the program's struct, filled; what it allocates from `a` lives
 * until the program ends. A failure with an empty message (cli_answer_no) prints nothing more. */
typedef td_status (*cli_run)(td_arena *a, const cli_args *args, const void *options, td_err *err);

typedef struct cli_verb {
    const char *name;
    const char *summary;  /* for the list of verbs: "simulate a schedule" */
    const char *operands; /* for the usage line: "FILE..."; NULL or "" if there are none */
    const char *about;    /* a paragraph or NULL */
    const char *example;  /* a whole command that works as pasted */
    const char *see;      /* "what to do next" commands, or NULL */
    int min_operands, max_operands; /* max -1: any number */
    bool lists; /* options that are no text take lists, "4,8": the field holds the last, see
                   cli_axes */
    const cli_table *tables;
    size_t n_tables;
    cli_run run;
} cli_verb;

typedef struct cli_program {
    const char *name;
    const char *summary;
    const char *example; /* for the lines printed without arguments */
    const char *version; /* the text after "NAME VERSION", may hold several lines; or NULL */
    const cli_verb *verbs;
    size_t n_verbs;
} cli_program;

/* What was on the command line besides the options' values. */
struct cli_args {
    const cli_program *program;
    const cli_verb *verb;
    char **operands; /* [n_operands] */
    int n_operands;
    const bool *given; /* one for each option, tables one after another; see cli_given */
    const char **text; /* as it was typed, NULL where it was not */
    int argc;          /* the whole command line, for metadata of traces */
    char **argv;
};

/* --- parsing --- */

/* Runs a program: parses, prints help, runs the verb, prints "program: message" on stderr.
 * Returns the exit code: 0, 1, 2, 3 or 130. */
int cli_main(const cli_program *program, int argc, char **argv, void *options, size_t size);

/* Parses argv[1..] after the verb's name into `options` (zeroed and set to the defaults first).
 * argv is permuted: operands come last. TD_EUSAGE on anything that the tables do not allow.
 * *wants_help is set, and nothing else done, when -h or --help is there. */
TD_MUST_USE td_status cli_parse(td_arena *a, const cli_program *program, const cli_verb *verb,
                                int argc, char **argv, void *options, size_t size, cli_args *args,
                                bool *wants_help, td_err *err);

/* Whether an option was on the command line (or --no-NAME); asserts that the verb has it. */
bool cli_given(const cli_args *args, const char *name);

/* Can the files that options with `writes` name be written, as far as one can tell before the work:
 * their folders are there, and none is another file of this command line? Devices are left alone.
 * Errors: TD_EIO for a folder, TD_EUSAGE for a name. */
TD_MUST_USE td_status cli_check_outputs(const cli_args *args, td_err *err);

/* An option that was given several values. */
typedef struct cli_axis {
    const char *name;
    const char **items; /* [n] */
    size_t n;
} cli_axis;

/* The options of a verb with `lists` that were given more than one value, in the order of the
 * tables; of texts only those that `texts` (ends with NULL) names are lists. *out is from `a`. */
TD_MUST_USE td_status cli_axes(td_arena *a, const cli_args *args, const char *const *texts,
                               cli_axis **out, size_t *n, td_err *err);

/* Sets one option in `options` as if --name value stood on the command line; the verb's tables must
 * have it. Fails as cli_parse does. */
TD_MUST_USE td_status cli_set(td_arena *a, const cli_verb *verb, const char *name,
                              const char *value, void *options, td_err *err);
/* Whether a verb has an option of this name. */
bool cli_has(const cli_verb *verb, const char *name);

/* A failure without a message: the answer is no and what there is to say has been printed. */
td_status cli_answer_no(td_err *err);

/* The command line as one text that a shell would read back. */
char *cli_line(td_arena *a, const cli_args *args);

/* --- texts made of the tables --- */

void cli_help_program(td_text *out, const cli_program *program);
void cli_help_verb(td_text *out, const cli_program *program, const cli_verb *verb);
void cli_man(td_text *out, const cli_program *program); /* troff, section 1 */
void cli_completions_bash(td_text *out, const cli_program *program);

/* --- terminals --- */

typedef enum cli_when { CLI_AUTO, CLI_ALWAYS, CLI_NEVER } cli_when;

/* Colour on a stream: off under CLI_AUTO when it is no terminal, NO_COLOR is set and not empty, or
 * TERM is "dumb". */
bool cli_color(int fd, cli_when when);
bool cli_utf8(void);   /* the locale's character set is UTF-8 */
int cli_width(int fd); /* columns of the terminal, else COLUMNS, else 80 */

/* One line of progress on stderr: silent for the first half second, at most ten updates a second.
 * Zeroed memory is a progress that prints nothing. */
typedef struct cli_progress {
    bool on, shown;
    int64_t began_ns, last_ns;
} cli_progress;

cli_progress cli_progress_begin(cli_when when);
/* Replaces the line; cut to the terminal's width. Returns whether it was shown this time. */
bool cli_progress_show(cli_progress *p, const char *fmt, ...) TD_PRINTF(2, 3);
void cli_progress_end(cli_progress *p); /* erases the line */
/* "[=====>    ]" of `width` columns into buf and returns it; frac in [0, 1]. */
char *cli_bar(char *buf, size_t size, int width, double frac);

#endif
