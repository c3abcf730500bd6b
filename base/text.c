/* Bodies of text.h. Numbers are read in the C locale: no program of ours calls setlocale. */
#include "base/text.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* --- numbers --- */

/* Foreign text as a message shows it: one line, not too long. */
typedef struct shown {
    char s[48];
} shown;

static shown show(const char *s)
{
    enum { ROOM = 40 };
    shown q;
    size_t n = 0;
    for (; n < ROOM && s[n] != '\0'; n++) q.s[n] = iscntrl((unsigned char)s[n]) ? '?' : s[n];
    memcpy(q.s + n, s[n] != '\0' ? "..." : "", s[n] != '\0' ? 4 : 1);
    return q;
}

td_status td_parse_i64(const char *s, int64_t min, int64_t max, const char *name, int64_t *out,
                       td_err *err)
{
    char *end = NULL;
    errno = 0;
    const long long v = strtoll(s, &end, 10);
    if (end == s || *end != '\0' || isspace((unsigned char)*s))
        return td_fail(err, TD_EUSAGE, "%s: \"%s\" is not a whole number", name, show(s).s);
    if (errno == ERANGE || v < min || v > max)
        return td_fail(err, TD_EUSAGE, "%s: %s is out of range; it is from %lld to %lld", name,
                       show(s).s, (long long)min, (long long)max);
    *out = v;
    return TD_OK;
}

/* Decimal notation only: strtod would also take hexadecimal, "inf" and "nan". */
static bool is_decimal_start(const char *s)
{
    if (*s == '+' || *s == '-') s++;
    if (*s == '.') s++;
    return isdigit((unsigned char)*s) && tolower((unsigned char)s[1]) != 'x';
}

td_status td_parse_f64(const char *s, double min, double max, const char *name, double *out,
                       td_err *err)
{
    char *end = NULL;
    const double v = is_decimal_start(s) ? strtod(s, &end) : 0;
    if (end == NULL || *end != '\0')
        return td_fail(err, TD_EUSAGE, "%s: \"%s\" is not a number", name, show(s).s);
    if (!isfinite(v) || v < min || v > max)
        return td_fail(err, TD_EUSAGE, "%s: %s is out of range; it is from %g to %g", name,
                       show(s).s, min, max);
    *out = v;
    return TD_OK;
}

/* --- bytes --- */

static const struct byte_unit {
    const char *name;
    int64_t bytes;
} byte_units[] = {
    {"B", 1},
    {"kB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"PB", 1000000000000000},
    {"KiB", (int64_t)1 << 10},
    {"MiB", (int64_t)1 << 20},
    {"GiB", (int64_t)1 << 30},
    {"TiB", (int64_t)1 << 40},
    {"PiB", (int64_t)1 << 50},
    {"EiB", (int64_t)1 << 60},
};
enum { N_BYTE_UNITS = sizeof byte_units / sizeof *byte_units };

static bool byte_unit_of(const char *s, int64_t *bytes)
{
    for (int i = 0; i < N_BYTE_UNITS; i++) {
        if (strcasecmp(s, byte_units[i].name) == 0) {
            *bytes = byte_units[i].bytes;
            return true;
        }
    }
    return false;
}

td_status td_parse_bytes(const char *s, const char *name, int64_t *bytes, td_err *err)
{
    char *end = NULL;
    const double v = is_decimal_start(s) ? strtod(s, &end) : 0;
    if (end == NULL || v < 0)
        return td_fail(err, TD_EUSAGE, "%s: \"%s\" is not a number of bytes; write 80GiB or 80GB",
                       name, show(s).s);
    while (*end == ' ') end++;
    int64_t unit = 1;
    if (*end != '\0' && !byte_unit_of(end, &unit))
        return td_fail(err, TD_EUSAGE,
                       "%s: \"%s\": unknown unit \"%s\"; write 80GiB (2^30) or 80GB "
                       "(10^9)",
                       name, show(s).s, show(end).s);
    const double product = v * (double)unit;
    if (!(product < 0x1p62))
        return td_fail(err, TD_EUSAGE, "%s: %s is more bytes than 2^62", name, show(s).s);
    *bytes = llround(product);
    return TD_OK;
}

/* --- lists --- */

enum { LIST_MAX = 1 << 24 };

/* One item at *s, moved past it: "7", the run "0-3", or "4*16" for sixteen fours. */
static td_status list_item(const char **s, int64_t *first, int64_t *count, int64_t *step,
                           const char *name, td_err *err)
{
    char *end = NULL;
    const char *const at = *s;
    errno = 0;
    *first = strtoll(at, &end, 10);
    *count = 1;
    *step = 0;
    if (end == at || errno == ERANGE)
        return td_fail(err, TD_EUSAGE,
                       "%s: \"%s\" does not start with a number; write 1,2,3 or 0-3 "
                       "or 4*16",
                       name, show(at).s);
    if ((*end == '-' || *end == '*') && isdigit((unsigned char)end[1])) {
        const char sign = *end;
        const long long second = strtoll(end + 1, &end, 10);
        if (errno == ERANGE || (sign == '-' && second < *first))
            return td_fail(err, TD_EUSAGE, "%s: the run \"%s\" goes nowhere", name, show(at).s);
        *step = sign == '-' ? 1 : 0;
        if (sign == '*') {
            *count = second;
        } else if (__builtin_sub_overflow(second, *first, count) ||
                   __builtin_add_overflow(*count, 1, count)) {
            *count = INT64_MAX;
        }
    }
    if (*end != '\0' && *end != ',' && !isspace((unsigned char)*end))
        return td_fail(err, TD_EUSAGE, "%s: unexpected \"%s\"; write 1,2,3 or 0-3 or 4*16", name,
                       show(end).s);
    *s = end;
    return TD_OK;
}

td_status td_parse_i64_list(td_arena *a, const char *s, const char *name, int64_t **out, size_t *n,
                            td_err *err)
{
    int64_t *items = NULL;
    size_t cap = 0, len = 0;
    bool after_comma = false;
    for (;;) {
        while (isspace((unsigned char)*s)) s++;
        if (*s == '\0') break;
        int64_t first = 0, count = 0, step = 0;
        TD_TRY(list_item(&s, &first, &count, &step, name, err));
        if (count > LIST_MAX - (int64_t)len)
            return td_fail(err, TD_EUSAGE, "%s: more than %d numbers", name, LIST_MAX);
        TD_TRY(TD_GROW(a, items, cap, len + (size_t)count, err));
        for (int64_t i = 0; i < count; i++) items[len++] = first + i * step;
        while (isspace((unsigned char)*s)) s++;
        after_comma = *s == ',';
        if (after_comma) s++;
    }
    if (after_comma) return td_fail(err, TD_EUSAGE, "%s: ends in a comma", name);
    if (len == 0) return td_fail(err, TD_EUSAGE, "%s: an empty list", name);
    *out = items;
    *n = len;
    return TD_OK;
}

/* --- printing --- */

/* Three significant digits, as people read them; no exponent from 0.001 to 9999. */
static char *print_scaled(char *buf, size_t size, double v, const char *unit)
{
    const double m = fabs(v);
    const int digits = m < 9.995 ? 2 : m < 99.95 ? 1 : 0;
    (void)snprintf(buf, size, "%.*f %s", digits, v, unit);
    return buf;
}

char *td_print_bytes(char *buf, size_t size, int64_t bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes > -1024 && bytes < 1024) {
        (void)snprintf(buf, size, "%d B", (int)bytes);
        return buf;
    }
    double v = (double)bytes / 1024;
    size_t i = 0;
    while (fabs(v) >= 1023.5 && i + 1 < sizeof units / sizeof *units) {
        v /= 1024;
        i++;
    }
    return print_scaled(buf, size, v, units[i]);
}

char *td_print_ns(char *buf, size_t size, int64_t ns)
{
    static const char *const units[] = {"us", "ms", "s"};
    if (ns > -1000 && ns < 1000) {
        (void)snprintf(buf, size, "%d ns", (int)ns);
        return buf;
    }
    double v = (double)ns / 1000;
    size_t i = 0;
    while (fabs(v) >= 999.5 && i + 1 < sizeof units / sizeof *units) {
        v /= 1000;
        i++;
    }
    return print_scaled(buf, size, v, units[i]);
}

char *td_print_count(char *buf, size_t size, double count)
{
    static const char *const units[] = {"k", "M", "G", "T", "P"};
    if (fabs(count) < 999.5) {
        const int digits = count == floor(count) ? 0 : fabs(count) < 9.995 ? 2 : 1;
        (void)snprintf(buf, size, "%.*f", digits, count);
        return buf;
    }
    double v = count / 1000;
    size_t i = 0;
    while (fabs(v) >= 999.5 && i + 1 < sizeof units / sizeof *units) {
        v /= 1000;
        i++;
    }
    return print_scaled(buf, size, v, units[i]);
}

/* --- names that were nearly right --- */

enum { NAME_MAX_LEN = 63 };

static int same_letter(char a, char b)
{
    return tolower((unsigned char)a) == tolower((unsigned char)b);
}

/* Insertions, deletions, replacements and swaps of neighbours between two short names (optimal
 * string alignment distance). */
static int edit_distance(const char *a, size_t n, const char *b, size_t m)
{
    int row[3][NAME_MAX_LEN + 1];
    for (size_t j = 0; j <= m; j++) row[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *const now = row[i % 3];
        const int *const last = row[(i + 2) % 3], *const before = row[(i + 1) % 3];
        now[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int best = last[j - 1] + (same_letter(a[i - 1], b[j - 1]) ? 0 : 1);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && same_letter(a[i - 1], b[j - 2]) &&
                same_letter(a[i - 2], b[j - 1]) && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

const char *td_nearest(const char *word, const char *const *names, size_t n)
{
    const char *best = NULL;
    int best_distance = NAME_MAX_LEN;
    const size_t len = strlen(word);
    if (len == 0 || len > NAME_MAX_LEN) return NULL;
    for (size_t i = 0; i < n; i++) {
        const size_t other = strlen(names[i]);
        if (other > NAME_MAX_LEN) continue;
        int d = edit_distance(word, len, names[i], other);
        const size_t longer = len > other ? len : other;
        /* whoever types the first letters of a long name means it */
        if (len >= 3 && len < other && strncasecmp(word, names[i], len) == 0) d = 1;
        if (d <= (int)(longer + 2) / 3 && d < best_distance) {
            best_distance = d;
            best = names[i];
        }
    }
    return best;
}

size_t td_byte_order_mark(const char *text, size_t len)
{
    return len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}
