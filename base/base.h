/* Errors that travel as values, memory by lifetime, growable text, seeded random numbers.
 * Everything else of the project stands on this header; it stands on libc alone. */
#ifndef BASE_BASE_H
#define BASE_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- errors --- */

#define TD_STATUSES(X)                                                                             \
    X(TD_OK, "success")                                                                            \
    X(TD_ENOMEM, "out of memory")                                                                  \
    X(TD_EIO, "a file or device could not be read or written")                                     \
    X(TD_EPARSE, "malformed input")                                                                \
    X(TD_EUSAGE, "impossible request")                                                             \
    X(TD_EPLAN, "unsound schedule or plan")                                                        \
    X(TD_EMISMATCH, "results differ")                                                              \
    X(TD_EDEVICE, "the machine refused")                                                           \
    X(TD_EINTR, "interrupted")

#define X(code, sentence) code,
typedef enum td_status { TD_STATUSES(X) } td_status;
#undef X

/* What went wrong, in one line for a person: "file:line:col: what: why; hint". */
typedef struct td_err {
    td_status code;
    char msg[1000];
} td_err;

#define TD_MUST_USE __attribute__((warn_unused_result))
#define TD_PRINTF(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))

/* Records code and message in err (which may be NULL) and returns code. The message is one line:
 * control characters, which names out of broken files may hold, become question marks. */
td_status td_fail(td_err *err, td_status code, const char *fmt, ...) TD_PRINTF(3, 4);

/* Puts "context: " in front of the message already in err and returns its code. */
td_status td_wrap(td_err *err, const char *fmt, ...) TD_PRINTF(2, 3);

/* The sentence of a status. */
const char *td_status_text(td_status code);

/* The exit code that the command-line contract gives a status: 1 for "the answer is no", 2 for
 * usage and input errors, 3 when the machine refused, 130 when interrupted. */
int td_exit_code(td_status code);

/* Returns from the calling function when a call fails. */
#define TD_TRY(call)                                                                               \
    do {                                                                                           \
        const td_status td_try_status_ = (call);                                                   \
        if (td_try_status_ != TD_OK) return td_try_status_;                                        \
    } while (0)

/* --- memory by lifetime --- */

/* An arena hands out zeroed, 64-byte aligned memory that is freed all at once. */
typedef struct td_arena td_arena;

td_arena *td_arena_new(void);    /* NULL when memory is exhausted */
void td_arena_free(td_arena *a); /* NULL is fine */
size_t td_arena_used(const td_arena *a);

/* Takes back all that was handed out, and keeps the memory for what is asked for next: for scratch
 * that is used again and again, since fresh memory of the system costs more than its use. */
void td_arena_reset(td_arena *a);

/* Makes the n-th allocation from now fail (1: the next one); 0 switches that off. For tests. */
void td_arena_fail_at(td_arena *a, long n);

/* count * size zeroed bytes, or NULL on overflow or exhaustion. count 0 gives a valid pointer. */
void *td_alloc(td_arena *a, size_t count, size_t size);
char *td_strdup(td_arena *a, const char *s);
char *td_sprintf(td_arena *a, const char *fmt, ...) TD_PRINTF(2, 3);

#define TD_NEW(a, type) ((type *)td_alloc((a), 1, sizeof(type)))
#define TD_NEW_N(a, type, n) ((type *)td_alloc((a), (size_t)(n), sizeof(type)))

/* Grows the array *items (elements of `size` bytes, *cap of them) to hold at least `need`; the old
 * elements move along. Amortised: the capacity at least doubles. */
TD_MUST_USE td_status td_grow(td_arena *a, void **items, size_t *cap, size_t need, size_t size,
                              td_err *err);
#define TD_GROW(a, items, cap, need, err)                                                          \
    td_grow((a), (void **)&(items), &(cap), (size_t)(need), sizeof *(items), (err))

/* a * b, or failure when that does not fit (both >= 0). */
TD_MUST_USE td_status td_mul_i64(int64_t a, int64_t b, int64_t *out, td_err *err);

/* --- growable text --- */

/* Zero-initialised is empty and ready. After an allocation fails, `failed` stays set and appending
 * does nothing; check it once at the end. */
typedef struct td_text {
    char *s; /* NUL-terminated, NULL while empty */
    size_t len, cap;
    bool failed;
} td_text;

/* Each appends: a string, its first n bytes, or a formatted text. */
void td_text_add(td_text *t, const char *s);
void td_text_addn(td_text *t, const char *s, size_t n);
void td_text_addf(td_text *t, const char *fmt, ...) TD_PRINTF(2, 3);
void td_text_json(td_text *t, const char *s); /* appends s as a quoted JSON string */
void td_text_xml(td_text *t, const char *s);  /* appends s with & < > " escaped */
void td_text_free(td_text *t);

/* --- seeded random numbers (splitmix64 seeded xoshiro256**; Blackman and Vigna 2018) --- */

typedef struct td_rng {
    uint64_t s[4];
} td_rng;

td_rng td_rng_seed(uint64_t seed);
uint64_t td_rng_u64(td_rng *r);
int64_t td_rng_below(td_rng *r, int64_t n); /* uniform in [0, n), n > 0 */
double td_rng_unit(td_rng *r);              /* uniform in [0, 1) */
double td_rng_normal(td_rng *r);            /* mean 0, variance 1 */

/* --- bf16: the upper half of a float --- */

/* To the nearest, halves to even; of a number. */
uint16_t td_bf16_of_float(float x);
float td_float_of_bf16(uint16_t x);

/* --- clock and files --- */

int64_t td_now_ns(void); /* monotonic */

/* Reads a whole file ("-" is stdin) into the arena, NUL-terminated; *len without the NUL.
 * Refuses files over max_bytes. */
TD_MUST_USE td_status td_read_file(td_arena *a, const char *path, size_t max_bytes, char **text,
                                   size_t *len, td_err *err);

/* Fails with "PATH: cannot open: why", from errno: TD_EUSAGE where the name is at fault (nothing is
 * there, or not for this user), TD_EIO where the machine is. */
td_status td_cannot_open(const char *path, td_err *err);

/* Whether a name stands for a device or pipe, which is written in place and never replaced. */
bool td_is_device(const char *path);

/* Writes a file beside its name and renames it into place, so that nobody sees half a file. */
TD_MUST_USE td_status td_write_file(const char *path, const char *bytes, size_t len, td_err *err);

#endif
