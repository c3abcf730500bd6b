/* Bodies of base.h. malloc and free are called here and nowhere else below the programs, so that
 * a test can make any allocation fail. */
#include "base/base.h"

#include "base/pass.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* --- errors --- */

/* Names out of broken files may hold line breaks; a message is one line. */
static void keep_one_line(char *msg)
{
    for (; *msg != '\0'; msg++)
        if ((unsigned char)*msg < ' ' || *msg == 0x7f) *msg = '?';
}

td_status td_fail(td_err *err, td_status code, const char *fmt, ...)
{
    if (err != NULL) {
        err->code = code;
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(err->msg, sizeof err->msg, fmt, args);
        va_end(args);
        keep_one_line(err->msg);
    }
    return code;
}

td_status td_wrap(td_err *err, const char *fmt, ...)
{
    if (err == NULL) return TD_EUSAGE;
    char context[400];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(context, sizeof context, fmt, args);
    va_end(args);
    char old[sizeof err->msg];
    memcpy(old, err->msg, sizeof old);
    const int used = snprintf(err->msg, sizeof err->msg, "%s: ", context);
    const size_t at = used < 0 ? 0 : (size_t)used;
    const size_t room = sizeof err->msg - at - 1;
    const size_t keep = strnlen(old, room);
    memcpy(err->msg + at, old, keep);
    err->msg[at + keep] = '\0';
    keep_one_line(err->msg);
    return err->code;
}

const char *td_status_text(td_status code)
{
    static const char *const sentences[] = {
#define X(c, sentence) sentence,
        TD_STATUSES(X)
#undef X
    };
    return (size_t)code < sizeof sentences / sizeof *sentences ? sentences[code] : "unknown status";
}

int td_exit_code(td_status code)
{
    switch (code) {
    case TD_OK: return 0;
    case TD_EPLAN:
    case TD_EMISMATCH: return 1;
    case TD_EPARSE:
    case TD_EUSAGE: return 2;
    case TD_EINTR: return 130;
    default: return 3;
    }
}

/* --- memory --- */

enum { ARENA_ALIGN = 64 };
static const size_t arena_block_least = (size_t)1 << 16, arena_block_most = (size_t)1 << 26;
static const size_t huge_page = (size_t)1 << 21;

typedef struct arena_block {
    struct arena_block *next;
    size_t used, size;
    size_t written; /* what lies behind is zero */
    char *data;     /* aligned */
    void *memory;
} arena_block;

struct td_arena {
    arena_block *head;
    arena_block *spare;    /* emptied by a reset */
    size_t used, reserved; /* bytes handed out; bytes of all blocks */
    long fail_at;
};

td_arena *td_arena_new(void) { return calloc(1, sizeof(td_arena)); }

static void free_blocks(arena_block *b)
{
    while (b != NULL) {
        arena_block *const next = b->next;
        free(b->memory);
        free(b);
        b = next;
    }
}

void td_arena_free(td_arena *a)
{
    if (a == NULL) return;
    free_blocks(a->head);
    free_blocks(a->spare);
    free(a);
}

void td_arena_reset(td_arena *a)
{
    while (a->head != NULL) {
        arena_block *const b = a->head;
        a->head = b->next;
        if (b->used > b->written) b->written = b->used;
        b->used = 0;
        b->next = a->spare;
        a->spare = b;
    }
    a->used = 0;
}

size_t td_arena_used(const td_arena *a) { return a->used; }

void td_arena_fail_at(td_arena *a, long n) { a->fail_at = n; }

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* A plan of ten million tasks spends half its time in page faults without huge pages. Advice only:
 * where the kernel knows better, nothing is lost. */
static arena_block *block_new(size_t least)
{
    const bool huge = least >= huge_page;
    const size_t align = huge ? huge_page : ARENA_ALIGN, size = round_up(least, align);
    arena_block *const b = calloc(1, sizeof *b);
    if (b == NULL) return NULL;
    /* calloc leaves large blocks to the kernel's zero pages: nothing is touched before its use */
    b->memory = calloc(size + align, 1);
    if (b->memory == NULL) {
        free(b);
        return NULL;
    }
    b->size = size;
    b->data = (char *)b->memory + (align - (uintptr_t)b->memory % align);
    if (huge) (void)madvise(b->data, size, MADV_HUGEPAGE);
    return b;
}

/* The smallest spare block that holds `bytes`, taken out of the spare ones; NULL when none does. */
static arena_block *block_again(td_arena *a, size_t bytes)
{
    arena_block **best = NULL;
    for (arena_block **at = &a->spare; *at != NULL; at = &(*at)->next)
        if ((*at)->size >= bytes && (best == NULL || (*at)->size < (*best)->size)) best = at;
    if (best == NULL) return NULL;
    arena_block *const b = *best;
    *best = b->next;
    return b;
}

/* A block with that much room. Blocks grow with the arena, so that many arrays share one. */
static arena_block *block_with(td_arena *a, size_t bytes)
{
    size_t room = a->reserved;
    if (room < arena_block_least) room = arena_block_least;
    if (room > arena_block_most) room = arena_block_most;
    arena_block *b = block_again(a, bytes);
    if (b != NULL) return b;
    b = block_new(bytes > room ? bytes : room);
    if (b != NULL) a->reserved += b->size;
    return b;
}

void *td_alloc(td_arena *a, size_t count, size_t size)
{
    if (a->fail_at > 0 && --a->fail_at == 0) return NULL;
    size_t bytes = 0;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 4) return NULL;
    bytes = (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (bytes == 0) bytes = ARENA_ALIGN;
    arena_block *b = a->head;
    if (b == NULL || b->size - b->used < bytes) {
        b = block_with(a, bytes);
        if (b == NULL) return NULL;
        /* the block with more room left is the open one */
        arena_block **const at = a->head != NULL && a->head->size - a->head->used > b->size - bytes
                                     ? &a->head->next
                                     : &a->head;
        b->next = *at;
        *at = b;
    }
    char *const p = b->data + b->used;
    if (b->used < b->written)
        memset(p, 0, bytes < b->written - b->used ? bytes : b->written - b->used);
    b->used += bytes;
    a->used += bytes;
    return p;
}

char *td_strdup(td_arena *a, const char *s)
{
    const size_t n = strlen(s) + 1;
    char *const copy = td_alloc(a, n, 1);
    if (copy != NULL) memcpy(copy, s, n);
    return copy;
}

char *td_sprintf(td_arena *a, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0) return NULL;
    char *const s = td_alloc(a, (size_t)n + 1, 1);
    if (s == NULL) return NULL;
    va_start(args, fmt);
    (void)vsnprintf(s, (size_t)n + 1, fmt, args);
    va_end(args);
    return s;
}

td_status td_grow(td_arena *a, void **items, size_t *cap, size_t need, size_t size, td_err *err)
{
    if (need <= *cap) return TD_OK;
    size_t next = *cap < 16 ? 16 : *cap;
    while (next < need) next *= 2;
    void *const p = td_alloc(a, next, size);
    if (p == NULL) return td_fail(err, TD_ENOMEM, "out of memory for %zu items", next);
    if (*cap > 0) memcpy(p, *items, *cap * size);
    *items = p;
    *cap = next;
    return TD_OK;
}

td_status td_mul_i64(int64_t a, int64_t b, int64_t *out, td_err *err)
{
    if (__builtin_mul_overflow(a, b, out))
        return td_fail(err, TD_EUSAGE, "%lld times %lld does not fit 64 bits", (long long)a,
                       (long long)b);
    return TD_OK;
}

/* --- text --- */

static bool text_room(td_text *t, size_t more)
{
    if (t->failed) return false;
    if (t->len + more + 1 <= t->cap) return true;
    size_t cap = t->cap < 256 ? 256 : t->cap;
    while (cap < t->len + more + 1) cap *= 2;
    char *const s = realloc(t->s, cap);
    if (s == NULL) {
        t->failed = true;
        return false;
    }
    t->s = s;
    t->cap = cap;
    return true;
}

void td_text_addn(td_text *t, const char *s, size_t n)
{
    if (!text_room(t, n)) return;
    memcpy(t->s + t->len, s, n);
    t->len += n;
    t->s[t->len] = '\0';
}

void td_text_add(td_text *t, const char *s) { td_text_addn(t, s, strlen(s)); }

void td_text_addf(td_text *t, const char *fmt, ...)
{
    char small[512];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    if (n < 0) {
        t->failed = true;
    } else if ((size_t)n < sizeof small) {
        td_text_addn(t, small, (size_t)n);
    } else if (text_room(t, (size_t)n)) {
        va_start(args, fmt);
        (void)vsnprintf(t->s + t->len, (size_t)n + 1, fmt, args);
        va_end(args);
        t->len += (size_t)n;
    }
}

void td_text_json(td_text *t, const char *s)
{
    td_text_addn(t, "\"", 1);
    for (; *s != '\0'; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') {
            td_text_addf(t, "\\%c", c);
        } else if (c < 0x20) {
            td_text_addf(t, "\\u%04x", c);
        } else {
            td_text_addn(t, s, 1);
        }
    }
    td_text_addn(t, "\"", 1);
}

void td_text_xml(td_text *t, const char *s)
{
    for (; *s != '\0'; s++) {
        switch (*s) {
        case '&': td_text_add(t, "&amp;"); break;
        case '<': td_text_add(t, "&lt;"); break;
        case '>': td_text_add(t, "&gt;"); break;
        case '"': td_text_add(t, "&quot;"); break;
        default: td_text_addn(t, s, 1);
        }
    }
}

void td_text_free(td_text *t)
{
    free(t->s);
    *t = (td_text){0};
}

/* --- random numbers --- */

static uint64_t rotate_left(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

td_rng td_rng_seed(uint64_t seed)
{
    td_rng r;
    for (int i = 0; i < 4; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t z = seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        r.s[i] = z ^ (z >> 31);
    }
    return r;
}

uint64_t td_rng_u64(td_rng *r)
{
    uint64_t *const s = r->s;
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

int64_t td_rng_below(td_rng *r, int64_t n)
{
    const uint64_t bound = (uint64_t)n;
    const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
    uint64_t x = td_rng_u64(r);
    while (x >= limit) x = td_rng_u64(r);
    return (int64_t)(x % bound);
}

double td_rng_unit(td_rng *r) { return (double)(td_rng_u64(r) >> 11) * 0x1p-53; }

double td_rng_normal(td_rng *r)
{
    const double u = 1.0 - td_rng_unit(r);
    const double v = td_rng_unit(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

/* --- bf16 --- */

uint16_t td_bf16_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40u); /* stays what it is */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float td_float_of_bf16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* --- clock --- */

int64_t td_now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* --- passes --- */

char pass_letter(pass_kind kind)
{
    static const char letters[] = {
#define X(k, letter, name, forward) letter,
        TD_PASSES(X)
#undef X
    };
    return kind < PASS_COUNT ? letters[kind] : '?';
}

const char *pass_name(pass_kind kind)
{
    static const char *const names[] = {
#define X(k, letter, name, forward) name,
        TD_PASSES(X)
#undef X
    };
    return kind < PASS_COUNT ? names[kind] : "unknown pass";
}

pass_kind pass_from_letter(char letter)
{
    for (int k = 0; k < PASS_COUNT; k++)
        if (pass_letter((pass_kind)k) == letter) return (pass_kind)k;
    return PASS_COUNT;
}
