/* The models known by name, each with the place its sizes come from. */
#include "costmodel/model_presets.h"

#include <string.h>

/* Layer norms, biases everywhere, learned positions, tied table; four times hidden in the MLP. */
#define GPT_STYLE(preset, layers, width, heads, words, positions, one_table)                       \
    {                                                                                              \
        .name = preset, .family = MODEL_GPT2, .n_layers = layers, .hidden = width,                 \
        .n_heads = heads, .n_kv_heads = heads, .head_dim = (width) / (heads), .ffn = 4 * (width),  \
        .vocab = words, .max_positions = positions, .tied = one_table, .qkv_bias = true,           \
        .out_bias = true, .mlp_bias = true, .learned_positions = true, .causal = true,             \
        .norm_eps = 1e-5                                                                           \
    }
#define GPT2_STYLE(preset, layers, width, heads, words, positions)                                 \
    GPT_STYLE(preset, layers, width, heads, words, positions, true)

/* One model with each vocabulary of a study: NAME-32k and so on. */
#define WITH_VOCABULARIES(preset, layers, width, heads)                                            \
    GPT_STYLE(preset "-32k", layers, width, heads, 32768, 4096, false),                            \
        GPT_STYLE(preset "-64k", layers, width, heads, 65536, 4096, false),                        \
        GPT_STYLE(preset "-128k", layers, width, heads, 131072, 4096, false),                      \
        GPT_STYLE(preset "-256k", layers, width, heads, 262144, 4096, false)

/* RMS norms, no biases, rotary positions, SwiGLU, a head of its own. */
#define LLAMA_STYLE(preset, layers, width, heads, groups, inner, words, positions, theta)          \
    {                                                                                              \
        .name = preset, .family = MODEL_LLAMA, .n_layers = layers, .hidden = width,                \
        .n_heads = heads, .n_kv_heads = groups, .head_dim = (width) / (heads), .ffn = inner,       \
        .vocab = words, .max_positions = positions, .gated = true, .rms_norm = true,               \
        .causal = true, .rope_theta = theta, .norm_eps = 1e-5                                      \
    }

/* As GPT-2, but attention sees both sides and norms follow the sums. */
#define BERT_STYLE(preset, layers, width, heads, words, positions)                                 \
    {                                                                                              \
        .name = preset, .family = MODEL_BERT, .n_layers = layers, .hidden = width,                 \
        .n_heads = heads, .n_kv_heads = heads, .head_dim = (width) / (heads), .ffn = 4 * (width),  \
        .vocab = words, .max_positions = positions, .tied = true, .qkv_bias = true,                \
        .out_bias = true, .mlp_bias = true, .learned_positions = true, .norm_eps = 1e-12           \
    }

static const model_desc presets[] = {
    /* Radford et al. 2019, table 2, and the config.json files of openai-community/gpt2* */
    GPT2_STYLE("gpt2", 12, 768, 12, 50257, 1024),
    GPT2_STYLE("gpt2-124m", 12, 768, 12, 50257, 1024),
    GPT2_STYLE("gpt2-355m", 24, 1024, 16, 50257, 1024),
    GPT2_STYLE("gpt2-774m", 36, 1280, 20, 50257, 1024),
    GPT2_STYLE("gpt2-1.5b", 48, 1600, 25, 50257, 1024),
    /* Brown et al. 2020 (arXiv 2005.14165), table 2.1; context 2048 */
    GPT2_STYLE("gpt3-175b", 96, 12288, 96, 50257, 2048),
    /* Touvron et al. 2023 (arXiv 2307.09288) and meta-llama/Llama-2-*-hf config.json */
    LLAMA_STYLE("llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 4096, 10000),
    LLAMA_STYLE("llama-2-13b", 40, 5120, 40, 40, 13824, 32000, 4096, 10000),
    LLAMA_STYLE("llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 4096, 10000),
    /* Llama team 2024 (arXiv 2407.21783), table 3; vocabulary with its reserved words and context
     * as in the config.json of Meta-Llama-3-8B and -70B and of Llama-3.1-405B */
    LLAMA_STYLE("llama-3-8b", 32, 4096, 32, 8, 14336, 128256, 8192, 500000),
    LLAMA_STYLE("llama-3-70b", 80, 8192, 64, 8, 28672, 128256, 8192, 500000),
    LLAMA_STYLE("llama-3-405b", 126, 16384, 128, 8, 53248, 128256, 131072, 500000),
    /* Devlin et al. 2019 (arXiv 1810.04805), section 3; vocabulary and positions of the config.json
     * of google-bert/bert-large-uncased */
    BERT_STYLE("bert-large", 24, 1024, 16, 30522, 512),
    /* The two models that BitPipe is measured with (arXiv 2410.19367); their vocabularies are not
     * printed: an estimate, those of BERT and GPT-2 */
    BERT_STYLE("bert-64", 64, 2560, 64, 30522, 512),
    GPT2_STYLE("gpt-96", 96, 3072, 32, 50257, 1024),
    /* The models of the vocabulary parallelism paper (arXiv 2411.05288, tables 3 and 4): on 1F1B
     * with 8, 16, 32 ranks, on V-Half with 16, 24, 32; tables apart, as its runs have them */
    WITH_VOCABULARIES("vp-4b", 32, 3072, 24),
    WITH_VOCABULARIES("vp-10b", 48, 4096, 32),
    WITH_VOCABULARIES("vp-21b", 64, 5120, 40),
    WITH_VOCABULARIES("vp-7b", 32, 4096, 32),
    WITH_VOCABULARIES("vp-16b", 48, 5120, 40),
    WITH_VOCABULARIES("vp-30b", 64, 6144, 48),
    /* For tests and examples: a vocabulary of bytes */
    GPT2_STYLE("tiny-gpt2", 8, 64, 4, 256, 128),
    LLAMA_STYLE("tiny-llama", 8, 64, 4, 2, 176, 256, 128, 10000),
    BERT_STYLE("tiny-bert", 8, 64, 4, 256, 128),
};
enum { N_PRESETS = sizeof presets / sizeof *presets };

#define NAME(i) presets[i].name
static const char *const names[N_PRESETS] = {
    NAME(0),  NAME(1),  NAME(2),  NAME(3),  NAME(4),  NAME(5),  NAME(6),  NAME(7),  NAME(8),
    NAME(9),  NAME(10), NAME(11), NAME(12), NAME(13), NAME(14), NAME(15), NAME(16), NAME(17),
    NAME(18), NAME(19), NAME(20), NAME(21), NAME(22), NAME(23), NAME(24), NAME(25), NAME(26),
    NAME(27), NAME(28), NAME(29), NAME(30), NAME(31), NAME(32), NAME(33), NAME(34), NAME(35),
    NAME(36), NAME(37), NAME(38), NAME(39), NAME(40), NAME(41),
};

const char *const *model_preset_names(size_t *n)
{
    *n = N_PRESETS;
    return names;
}

const model_desc *model_preset(const char *name)
{
    for (size_t i = 0; i < N_PRESETS; i++)
        if (strcmp(presets[i].name, name) == 0) return &presets[i];
    return NULL;
}
