/* Where a bench ran: what is in the head of its samples. */
#include "exec/bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* --- load --- */

/* Seconds of work on all cores since the machine started; below 0: not known. */
static double busy_seconds(void)
{
    FILE *const f = fopen("/proc/stat", "r");
    if (f == NULL) return -1;
    unsigned long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0;
    const int n = fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
                         &wait, &irq, &soft);
    (void)fclose(f);
    const long ticks = sysconf(_SC_CLK_TCK);
    if (n != 7 || ticks <= 0) return -1;
    return (double)(user + nice + system + irq + soft) / (double)ticks;
}

bench_load bench_load_now(void)
{
    struct rusage own;
    memset(&own, 0, sizeof own);
    (void)getrusage(RUSAGE_SELF, &own);
    return (bench_load){
        .at_ns = td_now_ns(),
        .all_s = busy_seconds(),
        .own_s = (double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) +
                 1e-6 * (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec),
    };
}

double bench_other_load(const bench_load *since)
{
    const bench_load now = bench_load_now();
    const double seconds = (double)(now.at_ns - since->at_ns) / 1e9;
    if (since->all_s < 0 || now.all_s < 0 || seconds <= 0) return -1;
    const double others = (now.all_s - since->all_s) - (now.own_s - since->own_s);
    return others > 0 ? others / seconds : 0;
}

/* --- headers --- */

/* What follows the colon of the first line of /proc/cpuinfo that begins with `key`; "unknown". */
static void cpu_text(const char *key, char *out, size_t size)
{
    char line[256];
    FILE *const f = fopen("/proc/cpuinfo", "r");
    (void)snprintf(out, size, "unknown");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        const char *const colon = strchr(line, ':');
        if (colon == NULL || strncmp(line, key, strlen(key)) != 0) continue;
        const char *const text = colon + 1 + strspn(colon + 1, " \t");
        (void)snprintf(out, size, "%.*s", (int)strcspn(text, "\r\n"), text);
        break;
    }
    if (f != NULL) (void)fclose(f);
}

/* A clock rate that the kernel gives in kHz, as MHz; "unknown". */
static void clock_text(const char *file, char *out, size_t size)
{
    char path[128];
    double khz = 0;
    (void)snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cpufreq/%s", file);
    FILE *const f = fopen(path, "r");
    const bool known = f != NULL && fscanf(f, "%lf", &khz) == 1;
    if (f != NULL) (void)fclose(f);
    if (known)
        (void)snprintf(out, size, "%.0f", khz / 1000);
    else
        (void)snprintf(out, size, "unknown");
}

/* The smallest step that the clock makes. */
static int64_t timer_ns(void)
{
    int64_t least = INT64_MAX;
    for (int i = 0; i < 200; i++) {
        const int64_t begin = td_now_ns();
        int64_t end = begin;
        while (end == begin) end = td_now_ns();
        if (end - begin < least) least = end - begin;
    }
    return least;
}

static td_status clocks(const bench *b, samples *out, td_err *err)
{
    char text[64];
    clock_text("base_frequency", text, sizeof text);
    if (strcmp(text, "unknown") == 0) clock_text("cpuinfo_max_freq", text, sizeof text);
    TD_TRY(samples_header(out, "clock_nominal_mhz", text, err));
    clock_text("scaling_cur_freq", text, sizeof text);
    if (strcmp(text, "unknown") == 0) cpu_text("cpu MHz", text, sizeof text);
    TD_TRY(samples_header(out, "clock_now_mhz", text, err));
    (void)snprintf(text, sizeof text, "%lld", (long long)timer_ns());
    TD_TRY(samples_header(out, "timer_ns", text, err));
    (void)snprintf(text, sizeof text, "%g", b->limits.precision);
    return samples_header(out, "precision", text, err);
}

static void device_text(char *out, size_t size)
{
    td_text t = {0};
    int n = 0;
    device_list_cuda(&t, &n);
    (void)snprintf(out, size, "%s", t.s == NULL ? "unknown" : t.s);
    out[strcspn(out, ";")] = '\0'; /* the first one */
    td_text_free(&t);
}

td_status bench_headers(bench *b, const char *blas, td_err *err)
{
    char text[256], cores[16], date[32];
    const time_t now = time(NULL);
    struct tm day;
    cpu_text("model name", text, sizeof text);
    if (b->device != NULL) device_text(text, sizeof text);
    (void)snprintf(cores, sizeof cores, "%d", b->cores);
    (void)strftime(date, sizeof date, "%Y-%m-%d", gmtime_r(&now, &day));
    const sample_header all[] = {
        {"device", text},          {"cores", cores}, {"source", "pexec bench " TD_VERSION},
        {"compiler", __VERSION__}, {"blas", blas},   {"date", date}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        TD_TRY(samples_header(&b->out, all[i].key, all[i].value, err));
    return clocks(b, &b->out, err);
}
