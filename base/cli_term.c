/* What the terminal can do, and one line of progress on it. */
#include "base/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool dumb(void)
{
    const char *const term = getenv("TERM");
    return term != NULL && strcmp(term, "dumb") == 0;
}

bool cli_color(int fd, cli_when when)
{
    if (when != CLI_AUTO) return when == CLI_ALWAYS;
    const char *const no_color = getenv("NO_COLOR");
    return isatty(fd) == 1 && !dumb() && (no_color == NULL || no_color[0] == '\0');
}

bool cli_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *const v = getenv(names[i]);
        if (v == NULL || v[0] == '\0') continue;
        const char *const dot = strchr(v, '.');
        return dot != NULL &&
               (strncasecmp(dot + 1, "utf-8", 5) == 0 || strncasecmp(dot + 1, "utf8", 4) == 0);
    }
    return false;
}

int cli_width(int fd)
{
    struct winsize w = {0};
    if (ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0) return w.ws_col;
    const char *const columns = getenv("COLUMNS");
    const long n = columns != NULL ? strtol(columns, NULL, 10) : 0;
    return n >= 20 && n <= 1000 ? (int)n : 80;
}

cli_progress cli_progress_begin(cli_when when)
{
    const bool terminal = isatty(STDERR_FILENO) == 1 && !dumb();
    return (cli_progress){.on = when == CLI_ALWAYS || (when == CLI_AUTO && terminal),
                          .began_ns = td_now_ns()};
}

bool cli_progress_show(cli_progress *p, const char *fmt, ...)
{
    static const int64_t quiet_ns = 500000000, between_ns = 100000000;
    if (!p->on) return false;
    const int64_t now = td_now_ns();
    if (now - p->began_ns < quiet_ns || (p->shown && now - p->last_ns < between_ns)) return false;
    char line[512];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    int room = cli_width(STDERR_FILENO) - 1;
    size_t n = 0;
    for (; line[n] != '\0'; n++)
        if (((unsigned char)line[n] & 0xc0) != 0x80 && room-- == 0) break;
    line[n] = '\0';
    (void)fprintf(stderr, "\r%s\033[K", line);
    (void)fflush(stderr);
    p->shown = true;
    p->last_ns = now;
    return true;
}

void cli_progress_end(cli_progress *p)
{
    if (p->shown) {
        (void)fputs("\r\033[K", stderr);
        (void)fflush(stderr);
    }
    p->on = p->shown = false;
}

char *cli_bar(char *buf, size_t size, int width, double frac)
{
    if (size == 0) return buf;
    const int room = width > 2 ? width - 2 : 0;
    const double f = frac >= 0 && frac <= 1 ? frac : frac > 1 ? 1 : 0;
    const int full = (int)(f * room);
    size_t n = 0;
    for (int i = -1; i <= room && n + 1 < size; i++) {
        const char c = i < 0 ? '[' : i == room ? ']' : i < full ? '=' : i == full ? '>' : ' ';
        buf[n++] = c;
    }
    buf[n] = '\0';
    return buf;
}
