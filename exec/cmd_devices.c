/* pexec devices: what can compute here. */
#include "base/text.h"
#include "exec/pexec.h"
#include "exec/wire_nccl.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void cpu_model(char *buf, size_t size)
{
    (void)snprintf(buf, size, "unknown CPU");
    FILE *const f = fopen("/proc/cpuinfo", "r");
    if (f == NULL) return;
    char line[512];
    while (fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, "model name", 10) != 0) continue;
        const char *const at = strchr(line, ':');
        if (at != NULL) (void)snprintf(buf, size, "%s", at + 2);
        buf[strcspn(buf, "\n")] = '\0';
        break;
    }
    (void)fclose(f);
}

td_status cmd_devices(td_arena *a, const cli_args *args, const void *options, td_err *err)
{
    const pexec_options *const o = options;
    (void)args;
    device *wanted = NULL;
    TD_TRY(pexec_device(o, NULL, false, a, &wanted, err));
    if (wanted != NULL) wanted->methods->close(wanted);
    td_text cuda = {0}, nccl = {0};
    int n_cuda = 0;
    device_list_cuda(&cuda, &n_cuda);
    nccl_describe(&nccl);
    char cpu[200], memory[40];
    cpu_model(cpu, sizeof cpu);
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    k_blas blas;
    if (!k_blas_open(&blas, pexec_blas(o)))
        return td_fail(err, TD_EDEVICE, "--blas %s: this machine has no such library",
                       pexec_blas(o));
    void *const mem = td_alloc(a, 1, k_ctx_size(1));
    k_ctx *const ctx = mem == NULL ? NULL : k_ctx_start(mem, &blas, 1);
    if (ctx == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a context");
    if (o->json) {
        td_text t = {0};
        td_text_addf(&t, "{\"schema\": 1, \"cpu\": ");
        td_text_json(&t, cpu);
        td_text_addf(&t, ", \"cores\": %ld, \"memory_bytes\": %lld, \"blas\": ", cores,
                     (long long)bytes);
        td_text_json(&t, k_blas_info(&blas));
        td_text_addf(&t,
                     ", \"vector_isa\": \"%s\", \"cuda\": %s, \"cuda_devices\": ", k_ctx_isa(ctx),
                     n_cuda > 0 ? "true" : "false");
        td_text_json(&t, cuda.s == NULL ? "" : cuda.s);
        td_text_add(&t, ", \"nccl\": ");
        td_text_json(&t, nccl.s == NULL ? "" : nccl.s);
        td_text_add(&t, "}\n");
        (void)fputs(t.s == NULL ? "" : t.s, stdout);
        td_text_free(&t);
    } else {
        (void)printf("cpu      %s, %ld cores, %s\n", cpu, cores,
                     td_print_bytes(memory, sizeof memory, bytes));
        (void)printf("blas     %s\n", k_blas_info(&blas));
        (void)printf("kernels  x86-64-%s\n", k_ctx_isa(ctx));
        (void)printf("cuda     %s\n", cuda.s == NULL ? "" : cuda.s);
        (void)printf("nccl     %s\n", nccl.s == NULL ? "" : nccl.s);
    }
    td_text_free(&cuda);
    td_text_free(&nccl);
    k_ctx_stop(ctx);
    k_blas_close(&blas);
    return TD_OK;
}
