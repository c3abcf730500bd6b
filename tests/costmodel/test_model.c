/* Models: published parameter counts, both countings agree, config.json as it is in the wild, one
 * clear message for a bad one; layers are never lost. */
#include "t.h"

#include "costmodel/layout.h"
#include "costmodel/sizes.h"

static td_status parse(const char *text, model_desc *m, td_err *err)
{
    return model_parse(text, strlen(text), "models/x/config.json", m, err);
}

static model_desc preset(const char *name)
{
    td_err err = {0};
    model_desc m;
    T_OK(model_load(name, &m, &err), &err);
    return m;
}

/* Counts of the published checkpoints (Hugging Face hub) and, for gpt3, of its table of sizes. */
static void published_counts(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t params;
    } known[] = {
        {"gpt2-124m", 124439808},       {"gpt2", 124439808},
        {"gpt2-355m", 354823168},       {"gpt2-774m", 774030080},
        {"gpt2-1.5b", 1557611200},      {"llama-2-7b", 6738415616},
        {"llama-2-13b", 13015864320},   {"llama-2-70b", 68976648192},
        {"llama-3-8b", 8030261248},     {"llama-3-70b", 70553706496},
        {"llama-3-405b", 405853388800}, {"bert-large", 335174458},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const model_desc m = preset(known[i].name);
        if (model_params(&m) != known[i].params)
            fail_msg("%s has %lld parameters, wanted %lld", known[i].name,
                     (long long)model_params(&m), (long long)known[i].params);
    }
    const model_desc gpt3 = preset("gpt3-175b");
    T_CLOSE((double)model_params(&gpt3), 174.6e9, 1e-3, 0);
}

/* The closed count equals the sum over the tensors that the executor allocates. */
static void tensors_add_up(void **state)
{
    td_arena *const a = *state;
    size_t n = 0;
    const char *const *const names = model_preset_names(&n);
    for (size_t i = 0; i < n; i++) {
        const model_desc m = preset(names[i]);
        const stage_desc whole = {.n_layers = m.n_layers, .embedding = true, .head = true};
        const int64_t count = stage_params(&m, &whole, NULL, 0);
        param_tensor *const tensors = TD_NEW_N(a, param_tensor, count);
        assert_non_null(tensors);
        (void)stage_params(&m, &whole, tensors, count);
        int64_t sum = 0;
        for (int64_t t = 0; t < count; t++) sum += tensors[t].rows * tensors[t].cols;
        if (sum != model_params(&m))
            fail_msg("%s: tensors hold %lld, the model has %lld", names[i], (long long)sum,
                     (long long)model_params(&m));
    }
}

static void families_as_they_are(void **state)
{
    (void)state;
    td_err err = {0};
    model_desc m, want;
    T_OK(parse("{\"model_type\":\"gpt2\",\"n_layer\":12,\"n_embd\":768,\"n_head\":12,"
               "\"n_inner\":null,\"vocab_size\":50257,\"n_positions\":1024,"
               "\"activation_function\":\"gelu_new\",\"layer_norm_epsilon\":1e-05}",
               &m, &err),
         &err);
    assert_string_equal(m.name, "x");
    want = preset("gpt2-124m");
    memcpy(m.name, want.name, sizeof m.name);
    assert_memory_equal(&m, &want, sizeof m);

    T_OK(parse("{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":32,"
               "\"hidden_size\":4096,\"num_attention_heads\":32,\"num_key_value_heads\":8,"
               "\"intermediate_size\":14336,\"vocab_size\":128256,\"rms_norm_eps\":1e-5,"
               "\"max_position_embeddings\":8192,\"rope_theta\":500000.0,\"hidden_act\":\"silu\"}",
               &m, &err),
         &err);
    want = preset("llama-3-8b");
    memcpy(m.name, want.name, sizeof m.name);
    assert_memory_equal(&m, &want, sizeof m);

    T_OK(parse("{\"model_type\":\"qwen2\",\"num_hidden_layers\":24,\"hidden_size\":896,"
               "\"num_attention_heads\":14,\"num_key_value_heads\":2,\"intermediate_size\":4864,"
               "\"vocab_size\":151936,\"tie_word_embeddings\":true}",
               &m, &err),
         &err);
    assert_true(m.qkv_bias && !m.out_bias && m.tied && m.gated);
    assert_true(model_params(&m) == 494032768); /* Qwen2-0.5B */
}

static void bad_files(void **state)
{
    (void)state;
    td_err err = {0};
    model_desc m;
    T_FAILS(parse("{\n\"model_type\":\"gpt2\",\n\"n_layer\":12", &m, &err), TD_EPARSE, &err,
            "config.json:3:");
    T_FAILS(parse("{\"n_layer\":1,\"n_layer\":2}", &m, &err), TD_EPARSE, &err, "duplicate");
    T_FAILS(parse("[1]", &m, &err), TD_EPARSE, &err, "object");
    T_FAILS(parse("{\"model_type\":\"gpt2\"}", &m, &err), TD_EPARSE, &err, "n_layer");
    T_FAILS(parse("{\"model_type\":\"gpt9\"}", &m, &err), TD_EPARSE, &err, ":1:2: model_type");
    T_FAILS(parse("{\"model_type\":\"gpt2\",\n \"n_layer\":\"many\"}", &m, &err), TD_EPARSE, &err,
            ":2:2: n_layer: wants a whole number");
    T_FAILS(parse("{\"model_type\":\"gpt2\",\"n_layer\":1,\"n_embd\":10,\"n_head\":3,"
                  "\"vocab_size\":9,\"n_positions\":9}",
                  &m, &err),
            TD_EPARSE, &err, "3 heads");
    T_FAILS(parse("{\"model_type\":\"gpt2\",\"n_layer\":60000,\"n_embd\":16777216,\"n_head\":1,"
                  "\"vocab_size\":2000000000,\"n_positions\":9}",
                  &m, &err),
            TD_EPARSE, &err, "overflow");
    T_FAILS(parse("{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":8,"
                  "\"num_attention_heads\":4,\"num_key_value_heads\":3,\"intermediate_size\":8,"
                  "\"vocab_size\":9}",
                  &m, &err),
            TD_EPARSE, &err, "key-value");
    T_FAILS(model_load("gpt2-125m", &m, &err), TD_EUSAGE, &err, "did you mean 'gpt2-124m'");
    T_FAILS(model_load("no/such/config.json", &m, &err), TD_EUSAGE, &err, "config.json");
}

/* --- layers --- */

static void counts(const layer_request *q, const model_desc *m, const char *want)
{
    td_err err = {0};
    stage_desc out[64];
    char got[300] = "";
    T_OK(layers_assign(m, q, out, &err), &err);
    int64_t at = 0;
    for (int64_t s = 0; s < q->n_stages; s++) {
        assert_true(out[s].first_layer == at);
        assert_true(out[s].embedding == (s == 0) && out[s].head == (s + 1 == q->n_stages));
        at += out[s].n_layers;
        (void)snprintf(got + strlen(got), sizeof got - strlen(got), "%s%lld", s > 0 ? "," : "",
                       (long long)out[s].n_layers);
    }
    assert_true(at == m->n_layers);
    assert_string_equal(got, want);
}

static void layers_of_stages(void **state)
{
    (void)state;
    td_err err = {0};
    stage_desc out[64];
    model_desc m = preset("tiny-gpt2");
    const int32_t list[] = {1, 3, 0, 4}, short_list[] = {1, 3, 0, 3};
    counts(&(layer_request){.n_stages = 4, .pp = 2}, &m, "2,2,2,2");
    counts(&(layer_request){.n_stages = 4, .pp = 4, .explicit_layers = list}, &m, "1,3,0,4");
    T_FAILS(layers_assign(&m,
                          &(layer_request){.n_stages = 4, .pp = 4, .explicit_layers = short_list},
                          out, &err),
            TD_EUSAGE, &err, "add 1");
    T_FAILS(layers_assign(&m, &(layer_request){.n_stages = 3, .pp = 3}, out, &err), TD_EUSAGE, &err,
            "3*2,2*1");
    m.n_layers = 30;
    counts(
        &(layer_request){.n_stages = 4, .pp = 4, .account_embedding = true, .account_head = true},
        &m, "7,8,8,7");
    T_FAILS(layers_assign(&m, &(layer_request){.n_stages = 4, .pp = 4}, out, &err), TD_EUSAGE, &err,
            "--account-for-loss");
}

static void layout_maps(void **state)
{
    (void)state;
    td_err err = {0};
    layout_stage s[64];
    int64_t n = 0;
    model_desc m = preset("llama-3-70b");
    counts(&(layer_request){.n_stages = 40, .pp = 8, .layout = "Et*2|(t*2|)*34,t*3|(t*2|)*3,tL"},
           &m, "2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,2,3,2,2,2,1");
    m = preset("tiny-gpt2");
    counts(&(layer_request){.n_stages = 5, .pp = 5, .layout = "Et*2|(tt|)*3,L"}, &m, "2,2,2,2,0");

    T_OK(layout_parse("E|(t|)*3,m|m||L", s, 64, &n, &err), &err);
    assert_int_equal(n, 8);
    assert_true(s[0].embedding && s[0].layers == 0 && s[3].layers == 1 && s[4].mtp_layers == 1 &&
                s[6].layers == 0 && s[7].loss);
    T_OK(layout_parse("Et*3|(tt|)*29,m|L", s, 64, &n, &err), &err);
    assert_int_equal(n, 32);
    assert_true(s[0].layers == 3 && s[29].layers == 2 && s[30].mtp_layers == 1 && s[31].loss);

    static const struct {
        const char *text, *why;
    } bad[] = {
        {"t|L", "E is missing"},    {"Et", "L is missing"},
        {"EtEL", "layout:1:3"},     {"E(t(t)L", "nest"},
        {"E(tL", "no )"},           {"Et*0L", "at least 1"},
        {"EmtL", "may not follow"}, {"ELt", "nothing may follow"},
        {"EtqL", "layout:1:3"},     {"Et*99999999L", "too large"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        T_FAILS(layout_parse(bad[i].text, s, 64, &n, &err), TD_EPARSE, &err, bad[i].why);
    stage_desc out[64];
    T_FAILS(layers_assign(&m, &(layer_request){.n_stages = 4, .pp = 4, .layout = "Ett|tt|tt|tL"},
                          out, &err),
            TD_EUSAGE, &err, "7 layers");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_counts),
        cmocka_unit_test_setup_teardown(tensors_add_up, t_arena_setup, t_arena_teardown),
        cmocka_unit_test(families_as_they_are),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(layers_of_stages),
        cmocka_unit_test(layout_maps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
