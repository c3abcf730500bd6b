/* The fields of a plan as tables: its text form, equality and hash are loops over them, so that
 * none can forget a field. */
#ifndef SCHEDULES_PLAN_TABLE_H
#define SCHEDULES_PLAN_TABLE_H

#include "schedules/plan.h"

typedef struct plan_field {
    const char *name;
    uint16_t offset;
    uint8_t size; /* 1, 2, 4 or 8 bytes */
    bool is_signed;
    const char *const *words; /* names of its values, or NULL */
    uint8_t n_words;
} plan_field;

/* One array of a plan. */
typedef struct plan_table {
    const char *name; /* of one record, the first word of its line */
    const plan_field *fields;
    uint8_t n_fields;
    uint16_t record_bytes, array_offset, count_offset;
} plan_table;

extern const plan_field plan_stage_fields[]; /* of a stage_desc */
extern const size_t plan_stage_n_fields;
extern const plan_field plan_head_fields[];
extern const size_t plan_head_n_fields;
extern const plan_table plan_tables[];
extern const size_t plan_n_tables;

/* A field of a record, whatever its width. Setting requires plan_field_fits. */
int64_t plan_field_get(const void *record, const plan_field *f);
void plan_field_set(void *record, const plan_field *f, int64_t value);
/* Whether a value fits the field (and is one of its words). */
bool plan_field_fits(const plan_field *f, int64_t value);

static inline uint32_t plan_table_count(const plan *p, const plan_table *t)
{
    return *(const uint32_t *)(const void *)((const char *)p + t->count_offset);
}
static inline const char *plan_table_array(const plan *p, const plan_table *t)
{
    return *(char *const *)(const void *)((const char *)p + t->array_offset);
}

#endif
