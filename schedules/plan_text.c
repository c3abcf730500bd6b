/* A plan as text: one line a record, its index first, then name=value. "-" is none. */
#include "schedules/plan_table.h"

#include <string.h>

static void print_value(const plan_field *f, int64_t value, td_text *out)
{
    if (f->words != NULL && value >= 0 && value < f->n_words) {
        /* words may hold blanks in listings; the text form joins them */
        for (const char *c = f->words[value]; *c != '\0'; c++)
            td_text_addn(out, *c == ' ' ? "_" : c, 1);
    } else if (f->size == 4 && !f->is_signed && value == PLAN_NONE) {
        td_text_add(out, "-");
    } else {
        td_text_addf(out, "%lld", (long long)value);
    }
}

static void print_record(const void *record, const plan_field *fields, size_t n, td_text *out)
{
    for (size_t i = 0; i < n; i++) {
        td_text_addf(out, " %s=", fields[i].name);
        print_value(&fields[i], plan_field_get(record, &fields[i]), out);
    }
    td_text_add(out, "\n");
}

static void print_stages(const plan *p, td_text *out)
{
    for (int32_t i = 0; p->stages != NULL && i < p->n_stages; i++) {
        td_text_addf(out, "stage %d", i);
        print_record(&p->stages[i], plan_stage_fields, plan_stage_n_fields, out);
    }
}

void plan_print(const plan *p, td_text *out)
{
    td_text_addf(out, "# tandem plan 1\n# schedule %s\n# after %s\nplan",
                 p->schedule_name == NULL ? "-" : p->schedule_name,
                 p->stage_of_run == NULL ? "memory" : p->stage_of_run);
    print_record(p, plan_head_fields, plan_head_n_fields, out);
    print_stages(p, out);
    for (size_t t = 0; t < plan_n_tables; t++) {
        const plan_table *const table = &plan_tables[t];
        const char *const items = plan_table_array(p, table);
        for (uint32_t i = 0; i < plan_table_count(p, table); i++) {
            td_text_addf(out, "%s %u", table->name, i);
            print_record(items + (size_t)i * table->record_bytes, table->fields, table->n_fields,
                         out);
        }
    }
}

/* --- equality and hash --- */

static bool same_record(const void *a, const void *b, const plan_field *fields, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (plan_field_get(a, &fields[i]) != plan_field_get(b, &fields[i])) return false;
    return true;
}

static bool same_stages(const plan *a, const plan *b)
{
    if (a->stages == NULL || b->stages == NULL) return a->stages == b->stages;
    for (int32_t i = 0; i < a->n_stages; i++)
        if (!same_record(&a->stages[i], &b->stages[i], plan_stage_fields, plan_stage_n_fields))
            return false;
    return true;
}

bool plan_equal(const plan *a, const plan *b)
{
    if (!same_record(a, b, plan_head_fields, plan_head_n_fields) || !same_stages(a, b))
        return false;
    for (size_t t = 0; t < plan_n_tables; t++) {
        const plan_table *const table = &plan_tables[t];
        const uint32_t n = plan_table_count(a, table);
        if (n != plan_table_count(b, table)) return false;
        for (uint32_t i = 0; i < n; i++)
            if (!same_record(plan_table_array(a, table) + (size_t)i * table->record_bytes,
                             plan_table_array(b, table) + (size_t)i * table->record_bytes,
                             table->fields, table->n_fields))
                return false;
    }
    return true;
}

static uint64_t hash_value(uint64_t h, int64_t value)
{
    for (int i = 0; i < 8; i++) h = (h ^ ((uint64_t)value >> (8 * i) & 0xff)) * 0x100000001b3u;
    return h;
}

static uint64_t hash_record(uint64_t h, const void *record, const plan_field *fields, size_t n)
{
    for (size_t i = 0; i < n; i++) h = hash_value(h, plan_field_get(record, &fields[i]));
    return h;
}

uint64_t plan_hash(const plan *p)
{
    uint64_t h = hash_record(0xcbf29ce484222325u, p, plan_head_fields, plan_head_n_fields);
    for (int32_t i = 0; p->stages != NULL && i < p->n_stages; i++)
        h = hash_record(h, &p->stages[i], plan_stage_fields, plan_stage_n_fields);
    for (size_t t = 0; t < plan_n_tables; t++) {
        const plan_table *const table = &plan_tables[t];
        const uint32_t n = plan_table_count(p, table);
        h = hash_value(h, n);
        for (uint32_t i = 0; i < n; i++)
            h = hash_record(h, plan_table_array(p, table) + (size_t)i * table->record_bytes,
                            table->fields, table->n_fields);
    }
    return h;
}
