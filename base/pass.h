/* The passes: one unit of compute of one (stage instance, microbatch, slice). The letters are those
 * of the schedule text and are fixed for ever. */
#ifndef BASE_PASS_H
#define BASE_PASS_H

/* kind, letter, name in legends, whether it belongs to the forward half */
#define TD_PASSES(X)                                                                               \
    X(PASS_F, 'F', "forward", 1)                                                                   \
    X(PASS_B, 'B', "backward", 0)                                                                  \
    X(PASS_I, 'I', "input gradient", 0)                                                            \
    X(PASS_W, 'W', "weight gradient", 0)                                                           \
    X(PASS_R, 'R', "recompute", 0)                                                                 \
    X(PASS_S, 'S', "vocabulary S", 1)                                                              \
    X(PASS_T, 'T', "vocabulary T", 0)                                                              \
    X(PASS_E, 'E', "input layer forward", 1)                                                       \
    X(PASS_G, 'G', "input layer backward", 0)

#define X(kind, letter, name, forward) kind,
typedef enum pass_kind { TD_PASSES(X) PASS_COUNT } pass_kind;
#undef X

/* The letter of a pass in schedules, 'F', and its name in legends, "forward". */
char pass_letter(pass_kind kind);
const char *pass_name(pass_kind kind);
/* The kind of a letter, or PASS_COUNT. */
pass_kind pass_from_letter(char letter);

#endif
