/* The clusters known by name. Units are in the keys (GB is 1e9 bytes); "sources" says where each
 * number comes from, and says "estimate" where no source was found. Names of sources:
 *  - Vidur: github.com/microsoft/vidur, data/profiling/network, medians of send and receive between
 *    two devices; our least squares of latency and bandwidth over 994 sizes of 2 KiB to 64 MiB;
 *  - SimAI: github.com/aliyun/SimAI, bus bandwidths in calbusbw.h;
 *  - Calculon: github.com/calculon-ai/calculon, systems/a100_80g.json and h100_80g_nvl8.json, whose
 *    steps of efficiency by operation size are our points;
 *  - glennklockwood: glennklockwood.com/garden/processors, A100, h100 and B200, which cites data
 *    sheets and architecture papers of NVIDIA;
 *  - DGX-1 white paper: NVIDIA WP-08437;
 *  - Ada white paper: NVIDIA, Ada GPU architecture, table of the RTX 4090. */
#include "costmodel/cluster_presets.h"

#include "costmodel/cluster.h"

#include <string.h>

/* Shares of the peak by FLOPs of one matrix product and by bytes of one sweep over memory. */
#define CURVES                                                                                     \
    "\"matrix_efficiency\":[[1e9,0.6],[16e9,0.9],[128e9,0.95]],"                                   \
    "\"memory_efficiency\":[[1e6,0.6],[10e6,0.75],[100e6,0.9]],\"launch_us\":2,\"all_reduce_"      \
    "fraction\":0.8,"

#define CURVE_SOURCES                                                                              \
    "\"matrix_efficiency\":\"Calculon, A100 and H100 alike: 0.95 of peak from 128 GFLOP, 0.9 at "  \
    "16, 0.6 at 1; on other devices an estimate\","                                                \
    "\"memory_efficiency\":\"Calculon, A100 and H100 alike: 0.9 at 100 MB, 0.75 at 10, 0.6 at 1; " \
    "on other devices an estimate\",\"launch_us\":\"estimate: queueing one kernel; calibrate "     \
    "it\","                                                                                        \
    "\"all_reduce_fraction\":\"estimate; Calculon has 0.6 of NVLink and 0.9 of InfiniBand peak, "  \
    "and our links are achieved already\""

static const char v100_dgx1[] =
    "{\"name\":\"v100-dgx1\",\"device\":\"V100 SXM2 32 GB\",\"devices_per_node\":8,"
    "\"matrix_tflops\":125,\"vector_tflops\":15.7,\"memory_gb_per_s\":900,\"memory_gb\":32," CURVES
    "\"intra\":{\"latency_us\":5,\"gb_per_s\":40},"
    "\"inter\":{\"latency_us\":7,\"gb_per_s\":5.9},\"node_network_gb_per_s\":47,"
    "\"sources\":{\"matrix_tflops\":\"NVIDIA, Programming Tensor Cores in CUDA 9: up to 125 "
    "(fp16)\",\"vector_tflops\":\"NVIDIA V100 data sheet, SXM2, fp32\","
    "\"memory_gb_per_s\":\"NVIDIA V100 data sheet\",\"memory_gb\":\"DGX-1 white paper, 32 GB "
    "model\",\"intra\":\"DGX-1 white paper: hybrid cube mesh, 0, 1 or 2 links of 25 GB/s "
    "between a pair; two at 0.8 as for A100 in SimAI, since neighbours can be put so; latency is "
    "an estimate\","
    "\"inter\":\"DGX-1 white paper: 4 x 100 Gb/s for 8 devices, at 0.94 as CX6 in SimAI; latency: "
    "estimate, as between H100 nodes in Vidur\",\"node_network_gb_per_s\":\"4 x 12.5 GB/s at "
    "0.94\"," CURVE_SOURCES "}}";

#define A100_NODE                                                                                  \
    "\"devices_per_node\":8,\"matrix_tflops\":312,\"vector_tflops\":19.5," CURVES                  \
    "\"intra\":{\"latency_us\":4.7,\"gb_per_s\":234.5},"                                           \
    "\"inter\":{\"latency_us\":7.1,\"gb_per_s\":23.5},\"node_network_gb_per_s\":188,"

#define A100_SOURCES                                                                               \
    "\"matrix_tflops\":\"glennklockwood, A100: bf16 dense\","                                      \
    "\"vector_tflops\":\"the same, fp32\","                                                        \
    "\"intra\":\"Vidur a100_dgx/send_recv.csv, our fit; SimAI has 240 GB/s\","                     \
    "\"inter\":\"SimAI: CX6 reaches 23.5 of 25 GB/s; latency: estimate, as between H100 "          \
    "nodes in Vidur (whose A100s were in a cloud: 43 us, 7.8 GB/s)\","                             \
    "\"node_network_gb_per_s\":\"8 adapters x 23.5\"," CURVE_SOURCES

static const char a100_40_dgx[] =
    "{\"name\":\"a100-40-dgx\",\"device\":\"A100 SXM4 40 GB\",\"memory_gb_per_s\":1555,"
    "\"memory_gb\":40," A100_NODE "\"sources\":{\"memory_gb_per_s\":\"glennklockwood, A100, 40 "
    "GB model\",\"memory_gb\":\"the same\"," A100_SOURCES "}}";

static const char a100_dgx[] =
    "{\"name\":\"a100-dgx\",\"device\":\"A100 SXM4 80 GB\",\"memory_gb_per_s\":2039,"
    "\"memory_gb\":80," A100_NODE "\"sources\":{\"memory_gb_per_s\":\"glennklockwood, A100\","
    "\"memory_gb\":\"the same\"," A100_SOURCES "}}";

#define H100_NODE                                                                                  \
    "\"devices_per_node\":8,\"matrix_tflops\":989.4,\"vector_tflops\":66.9," CURVES                \
    "\"intra\":{\"latency_us\":8.0,\"gb_per_s\":361.6},"                                           \
    "\"inter\":{\"latency_us\":7.1,\"gb_per_s\":48.5},\"node_network_gb_per_s\":388,"

#define H100_SOURCES                                                                               \
    "\"matrix_tflops\":\"glennklockwood, H100: bf16 dense\","                                      \
    "\"vector_tflops\":\"the same, fp32\","                                                        \
    "\"intra\":\"Vidur h100_dgx/send_recv.csv, our fit; SimAI has 371 GB/s\","                     \
    "\"inter\":\"SimAI: CX7 reaches 48.5 of 50 GB/s; latency: Vidur h100_dgx, our fit\","          \
    "\"node_network_gb_per_s\":\"DGX H100 user guide: 8 ports of 400 Gb/s; x "                     \
    "48.5\"," CURVE_SOURCES

static const char h100_dgx[] =
    "{\"name\":\"h100-dgx\",\"device\":\"H100 SXM5 80 GB\",\"memory_gb_per_s\":3350,"
    "\"memory_gb\":80," H100_NODE "\"sources\":{\"memory_gb_per_s\":\"glennklockwood, H100\","
    "\"memory_gb\":\"the same\"," H100_SOURCES "}}";

static const char h200_dgx[] =
    "{\"name\":\"h200-dgx\",\"device\":\"H200 SXM 141 GB\",\"memory_gb_per_s\":4800,"
    "\"memory_gb\":141," H100_NODE "\"sources\":{\"memory_gb_per_s\":\"NVIDIA's announcement of "
    "the H200, November 2023\",\"memory_gb\":\"the same; die and links are those of the "
    "H100\"," H100_SOURCES "}}";

static const char b200_dgx[] =
    "{\"name\":\"b200-dgx\",\"device\":\"B200 180 GB\",\"devices_per_node\":8,"
    "\"matrix_tflops\":2250,\"vector_tflops\":80,\"memory_gb_per_s\":8000,\"memory_gb\":180," CURVES
    "\"intra\":{\"latency_us\":8.0,\"gb_per_s\":720},"
    "\"inter\":{\"latency_us\":7.1,\"gb_per_s\":48.5},\"node_network_gb_per_s\":388,"
    "\"sources\":{\"matrix_tflops\":\"glennklockwood, B200 (HGX, 1000 W): bf16 dense\","
    "\"vector_tflops\":\"the same, fp32\","
    "\"memory_gb_per_s\":\"DGX B200 page: 64 TB/s for 8 (the driver's bus width and clock give "
    "7.67 "
    "TB/s a device, github.com/pytorch/ao, pull request 4002)\",\"memory_gb\":\"DGX B200 page: "
    "1,440 GB "
    "for 8\",\"intra\":\"DGX B200 page: 900 GB/s a direction (14.4 TB/s for 8, both ways), at the "
    "H100's share of 0.8: estimate; latency: estimate, as H100\",\"inter\":\"as H100: 400 Gb/s a "
    "device\","
    "\"node_network_gb_per_s\":\"as H100\"," CURVE_SOURCES "}}";

static const char rtx4090_pcie[] =
    "{\"name\":\"rtx4090-pcie\",\"device\":\"RTX 4090 24 GB\",\"devices_per_node\":8,"
    "\"matrix_tflops\":165.2,\"vector_tflops\":82.6,\"memory_gb_per_s\":1008,\"memory_gb\":"
    "24," CURVES "\"intra\":{\"latency_us\":15,\"gb_per_s\":25.6},"
    "\"inter\":{\"latency_us\":20,\"gb_per_s\":11.75},\"node_network_gb_per_s\":11.75,"
    "\"sources\":{\"matrix_tflops\":\"Ada white paper: bf16 dense, fp32 sums\","
    "\"vector_tflops\":\"the same, fp32\",\"memory_gb_per_s\":\"the same\",\"memory_gb\":\"the "
    "same\",\"intra\":\"SimAI: PCIe 4 x16 reaches 25.6 GB/s; latency is an estimate: no peer "
    "access, through host memory\",\"inter\":\"one 100 Gb/s adapter a box at 0.94; an "
    "estimate\",\"node_network_gb_per_s\":\"the same adapter\"," CURVE_SOURCES "}}";

static const struct {
    const char *name, *json;
} presets[] = {
    {"v100-dgx1", v100_dgx1},       {"a100-40-dgx", a100_40_dgx}, {"a100-dgx", a100_dgx},
    {"h100-dgx", h100_dgx},         {"h200-dgx", h200_dgx},       {"b200-dgx", b200_dgx},
    {"rtx4090-pcie", rtx4090_pcie},
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

static const char *const names[N_PRESETS + 1] = {
    "v100-dgx1", "a100-40-dgx", "a100-dgx",     "h100-dgx",
    "h200-dgx",  "b200-dgx",    "rtx4090-pcie", "local",
};

const char *const *cluster_preset_names(size_t *n)
{
    *n = N_PRESETS + 1;
    return names;
}

const char *cluster_preset_json(const char *name)
{
    for (size_t i = 0; i < N_PRESETS; i++)
        if (strcmp(presets[i].name, name) == 0) return presets[i].json;
    return NULL;
}
