/* The tables of plan_table.h. */
#include "schedules/plan_table.h"

#include <string.h>

#define FIELD(type, name)                                                                          \
    {                                                                                              \
#name, offsetof(type, name), sizeof(((type *)0)->name), false, NULL, 0                     \
    }
#define SIGNED(type, name)                                                                         \
    {                                                                                              \
#name, offsetof(type, name), sizeof(((type *)0)->name), true, NULL, 0                      \
    }
#define WORDS(type, name, list)                                                                    \
    {                                                                                              \
#name, offsetof(type, name), sizeof(((type *)0)->name), false, list,                       \
            sizeof(list) / sizeof *(list)                                                          \
    }
#define COUNT(fields) (sizeof(fields) / sizeof *(fields))
#define TABLE(word, type, fields, array, count)                                                    \
    {                                                                                              \
        word, fields, COUNT(fields), sizeof(type), offsetof(plan, array), offsetof(plan, count)    \
    }

static const char *const kind_words[] = {"F",    "B",    "I",         "W",     "R",      "S",
                                         "T",    "E",    "G",         "PAIR",  "SEND",   "RECV",
                                         "COLL", "NORM", "OPTIMIZER", "MERGE", "VERIFY", "MARK"};
static const char *const bool_words[] = {"no", "yes"};
static const char *const mapping_words[] = {"channel", "direction", "single"};
static const char *const stream_words[] = {"compute", "send", "recv", "both", "coll"};
static const char *const channel_words[] = {"activations", "gradients", "handoff", "weights",
                                            "state"};
#define X(kind, name) name,
static const char *const size_words[] = {SIZE_KINDS(X)};
#undef X

_Static_assert(COUNT(kind_words) == TASK_KIND_COUNT, "one word for each kind of task");

const plan_field plan_stage_fields[] = {
    SIGNED(stage_desc, first_layer), SIGNED(stage_desc, n_layers),
    WORDS(stage_desc, embedding, bool_words), WORDS(stage_desc, head, bool_words),
    SIGNED(stage_desc, vocab_rows)};
const size_t plan_stage_n_fields = COUNT(plan_stage_fields);

const plan_field plan_head_fields[] = {
    SIGNED(plan, n_rows),
    SIGNED(plan, n_stages),
    SIGNED(plan, n_pipes),
    SIGNED(plan, n_microbatches),
    SIGNED(plan, n_slices),
    SIGNED(plan, seq_len),
    SIGNED(plan, chunks),
    SIGNED(plan, dp),
    SIGNED(plan, tp),
    WORDS(plan, folded_dp, bool_words),
    WORDS(plan, folded_tp, bool_words),
    WORDS(plan, mapping, mapping_words),
    SIGNED(plan, lookahead),
    SIGNED(plan, send_window),
};
const size_t plan_head_n_fields = COUNT(plan_head_fields);

static const plan_field inst_fields[] = {
    SIGNED(plan_inst, pipe), SIGNED(plan_inst, stage), SIGNED(plan_inst, forward_row),
    SIGNED(plan_inst, backward_row), WORDS(plan_inst, all_step, bool_words)};
static const plan_field class_fields[] = {
    WORDS(plan_class, kind, kind_words), FIELD(plan_class, detail),
    FIELD(plan_class, purpose),          FIELD(plan_class, inst),
    FIELD(plan_class, second),           SIGNED(plan_class, slice_len),
    SIGNED(plan_class, prefix),          FIELD(plan_class, segment),
    FIELD(plan_class, segments),         SIGNED(plan_class, bytes)};
static const plan_field channel_fields[] = {FIELD(plan_channel, src), FIELD(plan_channel, dst),
                                            WORDS(plan_channel, cls, channel_words)};
static const plan_field group_fields[] = {
    FIELD(plan_group, first_member), FIELD(plan_group, n_members), SIGNED(plan_group, true_size)};
static const plan_field coll_fields[] = {FIELD(plan_coll, group), FIELD(plan_coll, first_task),
                                         FIELD(plan_coll, root)};
static const plan_field number_fields[] = {{"value", 0, sizeof(uint32_t), false, NULL, 0}};
static const plan_field bclass_fields[] = {WORDS(plan_bclass, what, size_words),
                                           FIELD(plan_bclass, inst), SIGNED(plan_bclass, slice_len),
                                           SIGNED(plan_bclass, prefix), SIGNED(plan_bclass, bytes)};
static const plan_field rank_fields[] = {SIGNED(plan_rank, row),
                                         SIGNED(plan_rank, replica),
                                         SIGNED(plan_rank, shard),
                                         SIGNED(plan_rank, tp),
                                         SIGNED(plan_rank, device),
                                         FIELD(plan_rank, first_stream),
                                         FIELD(plan_rank, n_streams),
                                         FIELD(plan_rank, first_buffer),
                                         FIELD(plan_rank, n_buffers),
                                         SIGNED(plan_rank, arena_bytes),
                                         SIGNED(plan_rank, persistent_bytes)};
static const plan_field stream_fields[] = {
    WORDS(plan_stream, kind, stream_words), FIELD(plan_stream, rank),
    FIELD(plan_stream, first_task), FIELD(plan_stream, n_tasks), FIELD(plan_stream, channel)};
static const plan_field member_fields[] = {
    WORDS(plan_member, kind, kind_words), FIELD(plan_member, slice),
    FIELD(plan_member, microbatch),       FIELD(plan_member, cls),
    FIELD(plan_member, first_use),        FIELD(plan_member, n_uses)};
static const plan_field buffer_fields[] = {FIELD(plan_buffer, birth), FIELD(plan_buffer, death),
                                           FIELD(plan_buffer, offset), FIELD(plan_buffer, bclass)};
static const plan_field task_fields[] = {WORDS(plan_task, kind, kind_words),
                                         FIELD(plan_task, microbatch),
                                         FIELD(plan_task, slice),
                                         FIELD(plan_task, flags),
                                         FIELD(plan_task, cls),
                                         FIELD(plan_task, link),
                                         FIELD(plan_task, gate),
                                         FIELD(plan_task, join),
                                         FIELD(plan_task, first_use)};

const plan_table plan_tables[] = {
    TABLE("inst", plan_inst, inst_fields, insts, n_insts),
    TABLE("class", plan_class, class_fields, classes, n_classes),
    TABLE("channel", plan_channel, channel_fields, channels, n_channels),
    TABLE("group", plan_group, group_fields, groups, n_groups),
    TABLE("group-member", uint32_t, number_fields, group_members, n_group_members),
    TABLE("coll", plan_coll, coll_fields, colls, n_colls),
    TABLE("coll-task", uint32_t, number_fields, coll_tasks, n_coll_tasks),
    TABLE("rank", plan_rank, rank_fields, ranks, n_ranks),
    TABLE("stream", plan_stream, stream_fields, streams, n_streams),
    TABLE("bclass", plan_bclass, bclass_fields, bclasses, n_bclasses),
    TABLE("buffer", plan_buffer, buffer_fields, buffers, n_buffers),
    TABLE("member", plan_member, member_fields, members, n_members),
    TABLE("task", plan_task, task_fields, tasks, n_tasks),
    TABLE("use", uint32_t, number_fields, uses, n_uses),
};
const size_t plan_n_tables = COUNT(plan_tables);

int64_t plan_field_get(const void *record, const plan_field *f)
{
    const char *const at = (const char *)record + f->offset;
    switch (f->size) {
    case 1: return *(const uint8_t *)at;
    case 2: {
        uint16_t v;
        memcpy(&v, at, sizeof v);
        return v;
    }
    case 4: {
        uint32_t v;
        memcpy(&v, at, sizeof v);
        return f->is_signed ? (int64_t)(int32_t)v : (int64_t)v;
    }
    default: {
        int64_t v;
        memcpy(&v, at, sizeof v);
        return v;
    }
    }
}

void plan_field_set(void *record, const plan_field *f, int64_t value)
{
    char *const at = (char *)record + f->offset;
    const uint16_t two = (uint16_t)value;
    const uint32_t four = (uint32_t)value;
    switch (f->size) {
    case 1: *(uint8_t *)at = (uint8_t)value; break;
    case 2: memcpy(at, &two, sizeof two); break;
    case 4: memcpy(at, &four, sizeof four); break;
    default: memcpy(at, &value, sizeof value);
    }
}

bool plan_field_fits(const plan_field *f, int64_t value)
{
    if (f->words != NULL) return value >= 0 && value < f->n_words;
    switch (f->size) {
    case 1: return value >= 0 && value <= UINT8_MAX;
    case 2: return value >= 0 && value <= UINT16_MAX;
    case 4:
        return f->is_signed ? value >= INT32_MIN && value <= INT32_MAX
                            : value >= 0 && value <= UINT32_MAX;
    default: return true;
    }
}

td_status plan_copy(const plan *p, td_arena *a, plan *out, td_err *err)
{
    *out = *p;
    for (size_t t = 0; t < plan_n_tables; t++) {
        const plan_table *const table = &plan_tables[t];
        const size_t n = plan_table_count(p, table);
        /* the tasks' array ends with a sentinel */
        const size_t extra = table->array_offset == offsetof(plan, tasks);
        void *const items = td_alloc(a, n + extra, table->record_bytes);
        if (items == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a plan");
        if (n + extra > 0 && plan_table_array(p, table) != NULL)
            memcpy(items, plan_table_array(p, table), (n + extra) * table->record_bytes);
        *(void **)(void *)((char *)out + table->array_offset) = items;
    }
    if (p->stages == NULL) return TD_OK;
    out->stages = TD_NEW_N(a, stage_desc, p->n_stages);
    if (out->stages == NULL) return td_fail(err, TD_ENOMEM, "out of memory for a plan");
    memcpy(out->stages, p->stages, (size_t)p->n_stages * sizeof *out->stages);
    return TD_OK;
}
