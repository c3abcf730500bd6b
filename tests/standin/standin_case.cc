#include "standin_case.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

void fine(cudaError_t e)
{
    if (e == cudaSuccess) return;
    (void)fprintf(stderr, "error: %s\n", cudaGetErrorString(e));
    exit(CASE_ERROR);
}

cudaStream_t new_stream(void)
{
    cudaStream_t s;
    fine(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

cudaEvent_t new_event(void)
{
    cudaEvent_t e;
    fine(cudaEventCreate(&e));
    return e;
}

/* One seed in a child; what it wrote to stderr. */
static int run_child(const standin_case *c, int seed, char *said, size_t n)
{
    int ends[2], status = 0;
    if (pipe(ends) != 0) return -1;
    (void)fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        char text[20];
        (void)snprintf(text, sizeof text, "%d", seed);
        (void)setenv("TD_STANDIN_SEED", text, 1);
        (void)dup2(ends[1], STDERR_FILENO);
        (void)close(ends[0]);
        (void)close(ends[1]);
        exit(c->run());
    }
    (void)close(ends[1]);
    size_t used = 0;
    char rest[256];
    for (;;) {
        const bool room = used + 1 < n;
        const ssize_t got =
            read(ends[0], room ? said + used : rest, room ? n - used - 1 : sizeof rest);
        if (got <= 0) break;
        if (room) used += (size_t)got;
    }
    said[used] = '\0';
    (void)close(ends[0]);
    (void)waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool one(const standin_case *c)
{
    int right = 0, wrong = 0, refused = 0, silent = 0;
    char said[4096];
    for (int seed = 0; seed < CASE_SEEDS; seed++) {
        const int code = run_child(c, seed, said, sizeof said);
        right += code == CASE_RIGHT;
        wrong += code == CASE_WRONG;
        refused += code != CASE_RIGHT && code != CASE_WRONG;
        silent += c->says != nullptr && strstr(said, c->says) == nullptr;
    }
    const bool as_expected = c->expected == standin_case::ALL_RIGHT    ? right == CASE_SEEDS
                             : c->expected == standin_case::SOME_WRONG ? wrong > 0 && refused == 0
                                                                       : refused == CASE_SEEDS;
    printf("%s %-56s %d right, %d wrong, %d refused\n",
           as_expected && silent == 0 ? "ok  " : "FAIL", c->name, right, wrong, refused);
    if (!as_expected || silent > 0) printf("     the last one said: %s\n", said);
    return as_expected && silent == 0;
}

int standin_cases(const standin_case *all, int n)
{
    bool fine_all = true;
    for (int i = 0; i < n; i++) fine_all = one(&all[i]) && fine_all;
    return fine_all ? 0 : 1;
}
