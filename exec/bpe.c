/* GPT-2's tokenizer: pre-tokens by pattern, each merged pair by pair in order of rank. */
#include "exec/data.h"

#include <jansson.h>
#include <string.h>

#if TD_HAVE_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Keys are byte strings over GPT-2's printable alphabet: a table from string to number. */
typedef struct string_map {
    const char **keys;
    uint32_t *lens;
    int32_t *values;
    size_t n_slots, n;
} string_map;

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

static td_status map_open(string_map *m, td_arena *a, size_t n, td_err *err)
{
    *m = (string_map){.n_slots = 16};
    while (m->n_slots < 2 * n) m->n_slots *= 2;
    m->keys = TD_NEW_N(a, const char *, m->n_slots);
    m->lens = TD_NEW_N(a, uint32_t, m->n_slots);
    m->values = TD_NEW_N(a, int32_t, m->n_slots);
    if (m->keys == NULL || m->lens == NULL || m->values == NULL)
        return td_fail(err, TD_ENOMEM, "out of memory for the tokenizer");
    return TD_OK;
}

static size_t map_slot(const string_map *m, const char *s, size_t n)
{
    size_t at = hash_bytes(s, n) & (m->n_slots - 1);
    while (m->keys[at] != NULL && (m->lens[at] != n || memcmp(m->keys[at], s, n) != 0))
        at = (at + 1) & (m->n_slots - 1);
    return at;
}

static void map_put(string_map *m, const char *s, size_t n, int32_t value)
{
    const size_t at = map_slot(m, s, n);
    m->keys[at] = s;
    m->lens[at] = (uint32_t)n;
    m->values[at] = value;
}

static int32_t map_get(const string_map *m, const char *s, size_t n)
{
    const size_t at = map_slot(m, s, n);
    return m->keys[at] == NULL ? -1 : m->values[at];
}

typedef struct bpe {
    string_map vocab, merges; /* merges: "left right" -> rank */
    int64_t vocab_size;
    char byte_text[256][3]; /* each byte's character in UTF-8, NUL-terminated */
} bpe;

/* Printable bytes stand for themselves, the others follow from U+0100 on. */
static void byte_alphabet(bpe *b)
{
    unsigned next = 256;
    for (unsigned i = 0; i < 256; i++) {
        const bool self = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        const unsigned code = self ? i : next++;
        char *const t = b->byte_text[i];
        if (code < 128) {
            t[0] = (char)code;
            t[1] = '\0';
        } else {
            t[0] = (char)(0xc0 | code >> 6);
            t[1] = (char)(0x80 | (code & 63));
            t[2] = '\0';
        }
    }
}

static td_status read_vocab(bpe *b, const char *path, td_arena *a, td_err *err)
{
    enum { MAX_VOCAB_BYTES = 64 << 20 };
    char *text = NULL;
    size_t len = 0;
    TD_TRY(td_read_file(a, path, MAX_VOCAB_BYTES, &text, &len, err));
    json_error_t je;
    json_t *const root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    if (root == NULL)
        return td_fail(err, TD_EPARSE, "%s:%d:%d: vocabulary: %s", path, je.line, je.column,
                       je.text);
    td_status st = json_is_object(root) ? map_open(&b->vocab, a, json_object_size(root), err)
                                        : td_fail(err, TD_EPARSE,
                                                  "%s:1:1: vocabulary: not an object "
                                                  "of tokens",
                                                  path);
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(root, key, value)
    {
        if (st != TD_OK) break;
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        char *const copy = td_strdup(a, key);
        if (id < 0 || id >= INT32_MAX)
            st = td_fail(err, TD_EPARSE, "%s: token \"%s\": not a number of a token", path, key);
        else if (copy == NULL)
            st = td_fail(err, TD_ENOMEM, "out of memory for the tokenizer");
        else
            map_put(&b->vocab, copy, strlen(copy), (int32_t)id);
        if (id + 1 > b->vocab_size) b->vocab_size = id + 1;
    }
    json_decref(root);
    return st;
}

static td_status read_merges(bpe *b, const char *path, td_arena *a, td_err *err)
{
    enum { MAX_MERGES_BYTES = 64 << 20 };
    char *text = NULL;
    size_t len = 0, lines = 1;
    TD_TRY(td_read_file(a, path, MAX_MERGES_BYTES, &text, &len, err));
    for (size_t i = 0; i < len; i++) lines += text[i] == '\n';
    TD_TRY(map_open(&b->merges, a, lines, err));
    int32_t rank = 0;
    int line = 0;
    for (char *s = text; s < text + len;) {
        char *end = strchr(s, '\n');
        if (end == NULL) end = text + len;
        size_t n = (size_t)(end - s);
        if (n > 0 && s[n - 1] == '\r') n--;
        line++;
        const bool comment = line == 1 && n > 0 && s[0] == '#';
        if (n > 0 && !comment) {
            const char *const space = memchr(s, ' ', n);
            if (space == NULL || space == s || space == s + n - 1)
                return td_fail(err, TD_EPARSE,
                               "%s:%d:1: merge: two parts with a space between them "
                               "were expected",
                               path, line);
            map_put(&b->merges, s, n, rank++);
        }
        s = end + 1;
    }
    return TD_OK;
}

enum { MAX_PRE_TOKEN = 2048 };

/* The parts of one pre-token, each a run of `text`. */
typedef struct parts {
    char text[2 * MAX_PRE_TOKEN + 1];
    uint32_t start[MAX_PRE_TOKEN + 1]; /* start[n] is the end */
    uint32_t n;
} parts;

/* The rank of merging part i with the next one, or INT32_MAX. */
static int32_t merge_rank(const bpe *b, const parts *p, uint32_t i)
{
    char pair[4 * MAX_PRE_TOKEN + 2];
    const uint32_t left = p->start[i + 1] - p->start[i], right = p->start[i + 2] - p->start[i + 1];
    memcpy(pair, p->text + p->start[i], left);
    pair[left] = ' ';
    memcpy(pair + left + 1, p->text + p->start[i + 1], right);
    const int32_t rank = map_get(&b->merges, pair, left + right + 1);
    return rank < 0 ? INT32_MAX : rank;
}

static void merge_all(const bpe *b, parts *p)
{
    while (p->n > 1) {
        int32_t best = INT32_MAX;
        for (uint32_t i = 0; i + 1 < p->n; i++) {
            const int32_t rank = merge_rank(b, p, i);
            if (rank < best) best = rank;
        }
        if (best == INT32_MAX) return;
        uint32_t kept = 0;
        for (uint32_t i = 0; i < p->n; kept++) {
            const bool merge = i + 1 < p->n && merge_rank(b, p, i) == best;
            p->start[kept] = p->start[i];
            i += merge ? 2 : 1;
        }
        p->start[kept] = p->start[p->n];
        p->n = kept;
    }
}

typedef struct tokens {
    int32_t *items;
    size_t n, cap;
} tokens;

static td_status encode_piece(const bpe *b, const char *s, size_t n, td_arena *a, tokens *out,
                              td_err *err)
{
    parts p;
    for (size_t done = 0; done < n;) { /* absurdly long runs are cut */
        const size_t take = n - done < MAX_PRE_TOKEN ? n - done : MAX_PRE_TOKEN;
        uint32_t at = 0;
        for (size_t i = 0; i < take; i++) {
            const char *const t = b->byte_text[(uint8_t)s[done + i]];
            p.start[i] = at;
            for (size_t j = 0; t[j] != '\0'; j++) p.text[at++] = t[j];
        }
        p.n = (uint32_t)take;
        p.start[take] = at;
        merge_all(b, &p);
        TD_TRY(TD_GROW(a, out->items, out->cap, out->n + p.n, err));
        for (uint32_t i = 0; i < p.n; i++) {
            const uint32_t len = p.start[i + 1] - p.start[i];
            const int32_t id = map_get(&b->vocab, p.text + p.start[i], len);
            if (id < 0)
                return td_fail(err, TD_EPARSE, "vocabulary: it lacks the token \"%.*s\"",
                               (int)(len < 60 ? len : 60), p.text + p.start[i]);
            out->items[out->n++] = id;
        }
        done += take;
    }
    return TD_OK;
}

static td_status encode(const bpe *b, const char *text, size_t len, td_arena *a, tokens *out,
                        td_err *err)
{
    static const char pattern[] = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                                  "\\s+(?!\\S)|\\s+";
    int code = 0;
    PCRE2_SIZE where = 0;
    pcre2_code *const re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &code, &where, NULL);
    pcre2_match_data *const match = re == NULL ? NULL : pcre2_match_data_create(1, NULL);
    if (match == NULL) {
        pcre2_code_free(re);
        return td_fail(err, TD_ENOMEM, "out of memory for the tokenizer's pattern");
    }
    (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* only a matter of speed */
    td_status st = TD_OK;
    for (size_t at = 0; at < len && st == TD_OK;) {
        const int n = pcre2_match(re, (PCRE2_SPTR)text, len, at, 0, match, NULL);
        const PCRE2_SIZE *const span = pcre2_get_ovector_pointer(match);
        const size_t first = n > 0 ? span[0] : len, end = n > 0 ? span[1] : len;
        /* bytes that are no UTF-8 match nothing and go through byte by byte */
        if (first > at) st = encode_piece(b, text + at, first - at, a, out, err);
        if (st == TD_OK && end > first)
            st = encode_piece(b, text + first, end - first, a, out, err);
        at = end > at ? end : at + 1;
    }
    pcre2_match_data_free(match);
    pcre2_code_free(re);
    return st;
}

td_status bpe_encode(const char *vocab, const char *merges, const char *text, size_t len,
                     td_arena *a, int32_t **out, int64_t *n, int64_t *vocab_size, td_err *err)
{
    bpe *const b = TD_NEW(a, bpe);
    if (b == NULL) return td_fail(err, TD_ENOMEM, "out of memory for the tokenizer");
    byte_alphabet(b);
    TD_TRY(read_vocab(b, vocab, a, err));
    TD_TRY(read_merges(b, merges, a, err));
    tokens t = {0};
    TD_TRY(encode(b, text, len, a, &t, err));
    *out = t.items;
    *n = (int64_t)t.n;
    *vocab_size = b->vocab_size;
    return TD_OK;
}

#else

td_status bpe_encode(const char *vocab, const char *merges, const char *text, size_t len,
                     td_arena *a, int32_t **out, int64_t *n, int64_t *vocab_size, td_err *err)
{
    (void)vocab, (void)merges, (void)text, (void)len, (void)a, (void)out, (void)n;
    (void)vocab_size;
    return td_fail(err, TD_EUSAGE,
                   "this build has no PCRE2, which the GPT-2 tokenizer needs; install "
                   "libpcre2-dev and build again, or leave out --vocab and --merges");
}

#endif
