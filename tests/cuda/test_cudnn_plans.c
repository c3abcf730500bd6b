/* test_cudnn_plans DRIVER: whether cuDNN, compiling for an H200 that need not be there, accepts
 * attention as the executor would ask for it, and how much workspace its plans need. Whether they
 * compute the right numbers can be seen on a device only. Prints a line for each plan; exit 77
 * where cuDNN is not at hand. */
#include <stdio.h>

enum { SKIPPED = 77 };

#if TD_HAVE_CUDNN

#include "cudnn_attention.h"

/* What CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION takes. */
static const char h200[] = "{\"deviceName\": \"NVIDIA H200\", \"deviceVer\": 900,"
                           " \"driverVer\": 13000, \"cudaDeviceId\": 0, \"pciDeviceId\": 0,"
                           " \"multiProcessorCount\": 132, \"warpSize\": 32,"
                           " \"maxGridSize\": [2147483647, 65535, 65535],"
                           " \"maxBlockSize\": [1024, 1024, 64], \"maxThreadsPerBlock\": 1024,"
                           " \"maxThreadsPerSM\": 2048, \"maxCtasPerSM\": 32,"
                           " \"regsPerBlock\": 65536, \"maxRegistersPerSM\": 65536,"
                           " \"maxSharedMemoryPerBlock\": 49152,"
                           " \"maxSharedMemoryPerBlockOptin\": 232448,"
                           " \"reservedSharedMemoryPerBlock\": 1024, \"l2CacheSize\": 62914560,"
                           " \"totalGlobalMem\": 150754820096, \"smClockRateKHz\": 1980000,"
                           " \"memClockRateKHz\": 3201000, \"isTccDriver\": 0,"
                           " \"supportCoopLaunch\": 1}";

typedef enum pass { FORWARD, BACKWARD_FIXED, BACKWARD_SUMS, PASSES } pass;

static const char *const pass_names[PASSES] = {"forward", "backward, fixed order",
                                               "backward, sums in fp32"};

static cudnn_plan plan_of(const cudnn_api *api, const attention_shape *s, pass p)
{
    cudnn_plan out;
    if (p == FORWARD)
        attention_forward(api, s, &out);
    else
        attention_backward(api, s, p == BACKWARD_FIXED, &out);
    return out;
}

static void print_plan(const attention_shape *s, pass p, const cudnn_plan *plan)
{
    printf("%2lld x %lld/%lld heads of %lld, %lld queries of %lld keys%s%s%s, %s: ",
           (long long)s->batch, (long long)s->heads, (long long)s->kv_heads, (long long)s->d,
           (long long)s->s_q, (long long)s->s_kv, s->causal ? ", causal" : "",
           s->type == CUDNN_DATA_FLOAT ? ", fp32" : "",
           s->dkv != s->type ? ", fp32 gradients of keys" : "", pass_names[p]);
    if (plan->accepted)
        printf("plan %lld of %lld for %d operations, workspace %lld bytes, beside it %lld\n",
               (long long)plan->chosen, (long long)plan->configurations, plan->operations,
               (long long)plan->workspace_bytes, (long long)plan->beside_bytes);
    else
        printf("refused: %s\n", plan->why);
    fflush(stdout);
}

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Workspace: the fixed order keeps the gradient of the scores, whole, in bf16 tiles of 64 queries
 * and 128 keys; everything else at most a little. */
static bool workspace_fits(const attention_shape *s, pass p, int64_t bytes)
{
    const int64_t scores = 2 * s->batch * s->heads * up(s->s_q, 64) * up(s->s_kv, 128);
    const int64_t least = p == BACKWARD_FIXED ? scores : 0, little = 4096;
    return bytes >= least && bytes <= least + little;
}

/* Of versions that are not here nothing is known: EITHER is what today's refuses. */
typedef enum wanted { ACCEPTED, EITHER, REFUSED } wanted;

typedef struct example {
    wanted wanted;
    attention_shape shape;
    bool backward_only;
} example;

/* One where the answer is another than wanted. */
static int wrong(const cudnn_api *api, const example *e, pass p)
{
    const cudnn_plan plan = plan_of(api, &e->shape, p);
    print_plan(&e->shape, p, &plan);
    const char *complaint = NULL;
    if (e->wanted == ACCEPTED && !plan.accepted)
        complaint = "refused, which the executor would need";
    else if (e->wanted == ACCEPTED && !workspace_fits(&e->shape, p, plan.workspace_bytes))
        complaint = "another workspace than the formula's";
    else if (e->wanted == REFUSED && plan.accepted)
        complaint = "accepted, which says that nothing is ever refused";
    if (complaint != NULL) printf("FAIL: %s\n", complaint);
    return complaint != NULL;
}

static attention_shape shape(int64_t heads, int64_t kv_heads, int64_t d, int64_t s_q, int64_t s_kv,
                             bool causal)
{
    return (attention_shape){
        2, heads, kv_heads, s_q, s_kv, d, causal, CUDNN_DATA_BFLOAT16, CUDNN_DATA_BFLOAT16};
}

/* Gradients of keys and values in fp32, in which slices could be added up. */
static attention_shape wide(attention_shape s)
{
    s.dkv = CUDNN_DATA_FLOAT;
    return s;
}

static attention_shape single(attention_shape s)
{
    s.type = s.dkv = CUDNN_DATA_FLOAT;
    return s;
}

static int run(const cudnn_api *api)
{
    const example examples[] = {
        {ACCEPTED, shape(16, 16, 64, 1024, 1024, true), false}, /* whole sequences */
        {ACCEPTED, shape(32, 8, 128, 1024, 1024, true), false}, /* query heads in groups */
        {ACCEPTED, shape(12, 12, 64, 512, 512, false), false},  /* both directions */
        {ACCEPTED, shape(16, 16, 64, 256, 512, true), false},   /* slices after a prefix */
        {ACCEPTED, shape(16, 16, 64, 256, 1024, true), false},
        {ACCEPTED, shape(32, 8, 128, 512, 2048, true), false},
        {ACCEPTED, shape(25, 25, 64, 200, 1000, true), false}, /* lengths that fill no tile */
        {ACCEPTED, shape(8, 2, 128, 77, 301, true), false},
        {ACCEPTED, wide(shape(16, 16, 64, 256, 1024, true)), true},
        {EITHER, wide(shape(32, 8, 128, 512, 2048, true)), true},
        {EITHER, single(shape(16, 16, 64, 1024, 1024, true)), false},
        {REFUSED, shape(4, 4, 60, 256, 256, true), false}, /* rows of 120 bytes are not aligned */
    };
    int bad = 0;
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        for (pass p = examples[i].backward_only ? BACKWARD_FIXED : FORWARD; p < PASSES; p++)
            bad += wrong(api, &examples[i], p);
    return bad;
}

int main(int argc, char **argv)
{
    char why[CUDNN_WHY];
    cudnn_api api;
    if (argc != 2) {
        fprintf(stderr, "usage: test_cudnn_plans DRIVER\n");
        return 2;
    }
    if (!cudnn_open(&api, argv[1], h200, why)) {
        printf("skipped: %s\n", why);
        return SKIPPED;
    }
    printf("cuDNN %zu\n", api.version);
    const int bad = run(&api);
    if (bad) printf("FAIL: %d plans\n", bad);
    return bad != 0;
}

#else

int main(void)
{
    printf("skipped: built without the headers of cuDNN\n");
    return SKIPPED;
}

#endif
