/* The lanes of one trace: a row of boxes for each rank, below it its messages and its memory. */
#include "viz/scene.h"

#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Below this many points a box is merged with its neighbours. */
static const double min_box = 0.3;
static const double border_from = 3.0, hairline_from = 1.2, arrows_from = 3.0, pad = 1.0,
                    smallest_font = 6.0, line_height = 0.85;

static double rank_height(const viz_layout *l) { return l->lane + l->comm + l->memory + l->gap; }

/* --- boxes too narrow to see, gathered into one of their mean colour --- */

typedef struct viz_run {
    double x0, x1, sum[3], covered;
    uint32_t record;
    bool open;
} viz_run;

static td_status run_flush(viz_layout *l, viz_run *run, double y, double h, uint32_t trace_index)
{
    if (!run->open) return TD_OK;
    run->open = false;
    const double width = fmax(run->x1 - run->x0, min_box);
    const double covered = fmin(run->covered / width, 1.0);
    uint32_t fill = 0;
    for (int i = 0; i < 3; i++) {
        const double c = run->covered > 0.0 ? run->sum[i] / run->covered : 128.0;
        fill |= (uint32_t)lround(255.0 + (c - 255.0) * covered) << (8 * i);
    }
    return viz_add_box(l, (viz_box){.x = (float)run->x0,
                                    .y = (float)y,
                                    .w = (float)width,
                                    .h = (float)h,
                                    .fill = fill,
                                    .trace = trace_index,
                                    .record = run->record});
}

static td_status run_add(viz_layout *l, viz_run *run, double x0, double x1, uint32_t fill,
                         uint32_t record, double y, double h, uint32_t trace_index)
{
    if (run->open && x1 - run->x0 > 2.0 * min_box) TD_TRY(run_flush(l, run, y, h, trace_index));
    if (!run->open) *run = (viz_run){.x0 = x0, .record = record, .open = true};
    run->x1 = x1;
    run->covered += x1 - x0;
    for (int i = 0; i < 3; i++) run->sum[i] += (double)(fill >> (8 * i) & 255u) * (x1 - x0);
    return TD_OK;
}

/* --- boxes --- */

static void box_label(const viz_layout *l, const trace *t, int32_t mb, int32_t stage,
                      uint16_t slice, char *out, size_t size)
{
    out[0] = '\0';
    if (mb < 0) return;
    char tail[16] = "";
    if (t->n_slices > 1 && !l->o->label_stage)
        (void)snprintf(tail, sizeof tail, ".%d", slice + l->o->index_base);
    if (l->o->label_stage)
        (void)snprintf(out, size, "%d.%d", stage, mb + l->o->index_base);
    else
        (void)snprintf(out, size, "%d%s", mb + l->o->index_base, tail);
}

/* The largest size, in few steps so that rows look even, at which a number fits a room. */
static double fitting_size(const viz_layout *l, const char *text, double along, double across)
{
    const double most = fmin((along - pad) / viz_text_width(text, 1.0), across / line_height);
    return fmin(l->font, floor(most * 2.0) / 2.0);
}

/* The number goes in where it fits with room to spare: upright, else turned, else not at all, since
 * print cannot show it any smaller. */
static td_status number_box(viz_layout *l, const viz_box *b, const char *text)
{
    if (text[0] == '\0' || l->font <= 0.0) return TD_OK;
    const double w = (double)b->w, h = (double)b->h, least = fmin(smallest_font, l->font);
    const double upright = fitting_size(l, text, w, h);
    const double turned = fitting_size(l, text, h, w - 0.5);
    const double size = upright >= least ? upright : turned;
    if (size < least) return TD_OK;
    const double drop = 0.36 * size; /* of the baseline below the middle of digits */
    const double x = (double)b->x + w / 2, y = (double)b->y + h / 2;
    if (size == upright)
        return viz_add_label(l, x, y + drop, size, viz_ink(b->fill), VIZ_MIDDLE, false, text);
    TD_TRY(viz_add_label(l, x + drop, y, size, viz_ink(b->fill), VIZ_MIDDLE, false, text));
    l->s->labels[l->s->n_labels - 1].turned = true;
    return TD_OK;
}

/* One frame around two halves side by side: the forward's colour and number, the backward's. */
static td_status add_pair(viz_layout *l, const trace *t, const trace_record *r, viz_box b)
{
    char text[32];
    viz_box half = b;
    half.border = 0;
    half.w = b.w / 2;
    half.fill = viz_fill(l->o->style, t, r->detail, r->stage, r->pipe, r->slice);
    TD_TRY(viz_add_box(l, half));
    box_label(l, t, r->microbatch, r->stage, r->slice, text, sizeof text);
    TD_TRY(number_box(l, &half, text));
    half.x = b.x + half.w;
    half.fill = viz_fill(l->o->style, t, r->kind2, r->stage2, r->pipe2, r->slice2);
    TD_TRY(viz_add_box(l, half));
    box_label(l, t, r->microbatch2, r->stage2, r->slice2, text, sizeof text);
    TD_TRY(number_box(l, &half, text));
    if (b.border == 0) return TD_OK;
    const double x0 = (double)b.x, x1 = x0 + (double)b.w, y0 = (double)b.y, y1 = y0 + (double)b.h;
    const double width = b.border == 1 ? 0.35 : 0.12;
    TD_TRY(viz_add_line(l, x0, y0, x1, y0, width, 0x222222, false));
    TD_TRY(viz_add_line(l, x1, y0, x1, y1, width, 0x222222, false));
    TD_TRY(viz_add_line(l, x1, y1, x0, y1, width, 0x222222, false));
    return viz_add_line(l, x0, y1, x0, y0, width, 0x222222, false);
}

static td_status compute_lane(viz_layout *l, const trace *t, uint32_t index, const trace_stream *s,
                              double y)
{
    viz_run run = {0};
    for (uint32_t i = 0; i < s->n; i++) {
        const trace_record *const r = &t->records[s->first + i];
        if (r->kind == TASK_MARK || r->end_ns <= r->begin_ns) continue;
        const double x0 = viz_x(l, r->begin_ns), x1 = viz_x(l, r->end_ns);
        const uint8_t kind = r->kind == TASK_PAIR ? r->detail : r->kind;
        const uint32_t fill = viz_fill(l->o->style, t, kind, r->stage, r->pipe, r->slice);
        if (x1 - x0 < min_box) {
            TD_TRY(run_add(l, &run, x0, x1, fill, s->first + i, y, l->lane, index));
            continue;
        }
        TD_TRY(run_flush(l, &run, y, l->lane, index));
        const viz_box b = {.x = (float)x0,
                           .y = (float)y,
                           .w = (float)(x1 - x0),
                           .h = (float)l->lane,
                           .fill = fill,
                           .trace = index,
                           .record = s->first + i,
                           .border = x1 - x0 >= border_from     ? 1
                                     : x1 - x0 >= hairline_from ? 2
                                                                : 0};
        if (r->kind == TASK_PAIR) {
            TD_TRY(add_pair(l, t, r, b));
            continue;
        }
        TD_TRY(viz_add_box(l, b));
        char text[32];
        box_label(l, t, r->kind < PASS_COUNT ? r->microbatch : -1, r->stage, r->slice, text,
                  sizeof text);
        TD_TRY(number_box(l, &b, text));
    }
    return run_flush(l, &run, y, l->lane, index);
}

/* --- messages and memory --- */

/* Sends and collectives; receives mirror the sends and are shown by the arrows. */
static td_status message_lane(viz_layout *l, const trace *t, uint32_t index, const trace_stream *s,
                              double y)
{
    viz_run run = {0};
    const double h = l->comm - 1.0;
    for (uint32_t i = 0; i < s->n; i++) {
        const trace_record *const r = &t->records[s->first + i];
        if (r->kind == TASK_RECV) continue;
        const double x0 = viz_x(l, r->begin_ns), x1 = viz_x(l, r->end_ns);
        const uint32_t fill = viz_fill(l->o->style, t, r->kind, -1, -1, 0);
        if (x1 - x0 < min_box) {
            TD_TRY(run_add(l, &run, x0, x1, fill, s->first + i, y, h, index));
            continue;
        }
        TD_TRY(run_flush(l, &run, y, h, index));
        TD_TRY(viz_add_box(l, (viz_box){.x = (float)x0,
                                        .y = (float)y,
                                        .w = (float)(x1 - x0),
                                        .h = (float)h,
                                        .fill = fill,
                                        .trace = index,
                                        .record = s->first + i}));
    }
    return run_flush(l, &run, y, h, index);
}

static td_status add_arrows(viz_layout *l, const trace *t, double top)
{
    uint64_t sends = 0;
    for (uint64_t i = 0; i < t->n_records; i++) sends += t->records[i].kind == TASK_SEND;
    if (sends == 0 || (l->x1 - l->x0) * t->n_ranks / (double)sends < arrows_from) return TD_OK;
    uint32_t *partner = NULL;
    TD_TRY(trace_match_messages(t, l->a, &partner, l->err));
    for (uint64_t i = 0; i < t->n_records; i++) {
        const trace_record *const send = &t->records[i];
        if (send->kind != TASK_SEND || partner[i] == UINT32_MAX) continue;
        const trace_record *const recv = &t->records[partner[i]];
        const uint32_t from = t->streams[send->stream].rank, to = t->streams[recv->stream].rank;
        const double y1 = top + from * rank_height(l) + (to > from ? l->lane : 0.0);
        const double y2 = top + to * rank_height(l) + (to > from ? 0.0 : l->lane);
        TD_TRY(viz_add_line(l, viz_x(l, send->begin_ns), y1, viz_x(l, recv->end_ns), y2, 0.35,
                            0x333333, true));
    }
    return TD_OK;
}

static td_status add_point(viz_layout *l, double x, double y)
{
    viz_scene *const s = l->s;
    TD_TRY(TD_GROW(l->a, s->points, s->points_cap, s->n_points + 1, l->err));
    s->points[s->n_points++] = (viz_point){(float)x, (float)y};
    return TD_OK;
}

/* One area below the curve; moments that share a column keep their highest. */
static td_status memory_curve(viz_layout *l, const trace *t, uint64_t from, uint64_t to,
                              int64_t most, double y)
{
    viz_scene *const s = l->s;
    const double h = l->memory - 2.0;
    viz_area area = {.first = (uint32_t)s->n_points, .fill = 0xc9d7e6};
    double last_x = l->x0, last_y = y + h, high = y + h;
    TD_TRY(add_point(l, l->x0, y + h));
    for (uint64_t i = from; i < to; i++) {
        const double x = fmin(fmax(viz_x(l, t->memory[i].at_ns), l->x0), l->x1);
        const double level = y + h - h * (double)t->memory[i].bytes / (double)most;
        high = fmin(high, level);
        if (i + 1 < to && viz_x(l, t->memory[i + 1].at_ns) - last_x < min_box) continue;
        TD_TRY(add_point(l, x, last_y));
        if (high < last_y && high < level) TD_TRY(add_point(l, x, high));
        TD_TRY(add_point(l, x, level));
        last_x = x;
        last_y = level;
        high = level;
    }
    TD_TRY(add_point(l, viz_x(l, t->step_ns), last_y));
    TD_TRY(add_point(l, viz_x(l, t->step_ns), y + h));
    area.n = (uint32_t)s->n_points - area.first;
    TD_TRY(TD_GROW(l->a, s->areas, s->areas_cap, s->n_areas + 1, l->err));
    s->areas[s->n_areas++] = area;
    return viz_add_line(l, l->x0, y + h, l->x1, y + h, 0.25, 0x888888, false);
}

/* The peak of a rank: bytes, or activations where no model gave them a size. */
static void print_peak(const trace *t, int64_t bytes, char *text, size_t size)
{
    const char *const unit = trace_meta_get(t, "activation_bytes");
    const double activation = unit == NULL ? 0.0 : strtod(unit, NULL);
    if (activation > 0.0)
        (void)snprintf(text, size, "%.4g act.", (double)bytes / activation);
    else
        (void)td_print_bytes(text, size, bytes);
}

static td_status add_memory(viz_layout *l, const trace *t, double top)
{
    int64_t most = 0;
    for (uint64_t i = 0; i < t->n_memory; i++)
        if (t->memory[i].bytes > most) most = t->memory[i].bytes;
    if (most <= 0) return TD_OK;
    for (uint64_t from = 0; from < t->n_memory;) {
        const uint32_t rank = t->memory[from].rank;
        uint64_t to = from;
        int64_t peak = 0;
        for (; to < t->n_memory && t->memory[to].rank == rank; to++)
            if (t->memory[to].bytes > peak) peak = t->memory[to].bytes;
        const double y = top + rank * rank_height(l) + l->lane + l->comm + 1.0;
        TD_TRY(memory_curve(l, t, from, to, most, y));
        if (l->memory >= 8.0) {
            char text[40];
            print_peak(t, peak, text, sizeof text);
            TD_TRY(viz_add_label(l, l->x0 - 3.0, y + l->memory / 2 + 1.2, 6.0, 0x3b5b7d, VIZ_END,
                                 false, text));
        }
        from = to;
    }
    return TD_OK;
}

/* --- all --- */

td_status viz_add_lanes(viz_layout *l, const trace *t, uint32_t index)
{
    const double top = l->y, step = rank_height(l);
    int every = 1;
    while (step * every < 7.5) every *= 2;
    for (uint32_t r = 0; r < t->n_ranks; r++) {
        const double y = top + r * step;
        if (r % (uint32_t)every == 0) {
            char text[32];
            (void)snprintf(text, sizeof text, every == 1 ? "Rank %u" : "%u",
                           r + (uint32_t)l->o->index_base);
            const double size = fmin(7.0, fmax(6.0, l->lane * 0.75));
            TD_TRY(viz_add_label(l, l->x0 - 3.0, y + l->lane / 2 + 0.36 * size, size, 0, VIZ_END,
                                 false, text));
        }
    }
    for (uint32_t i = 0; i < t->n_streams; i++) {
        const trace_stream *const s = &t->streams[i];
        const double y = top + s->rank * step;
        if (s->kind == STREAM_COMPUTE)
            TD_TRY(compute_lane(l, t, index, s, y));
        else if (l->comm > 0.0)
            TD_TRY(message_lane(l, t, index, s, y + l->lane + 0.5));
    }
    const double bottom = top + t->n_ranks * step - l->gap;
    TD_TRY(viz_add_line(l, l->x0, top, l->x0, bottom, 0.4, 0x666666, false));
    if (l->comm > 0.0) TD_TRY(add_arrows(l, t, top));
    if (l->memory > 0.0) TD_TRY(add_memory(l, t, top));
    l->y = top + t->n_ranks * step;
    return TD_OK;
}
