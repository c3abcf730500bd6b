/* Laws of figures: what fits is shown, nothing collides, equal input gives equal bytes. */
#include "t.h"
#include "viz/viz.h"
#include "viz_sample.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static viz_scene scene_of(td_arena *a, trace *t, const viz_options *o)
{
    viz_scene s;
    td_err err = {0};
    T_OK(viz_scene_build(t, 1, o, a, &s, &err), &err);
    return s;
}

static void labels_never_collide_nor_shrink(void **state)
{
    static const int shapes[][2] = {{4, 8}, {8, 64}, {16, 100}, {32, 20}, {64, 128}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        trace t;
        viz_options o = viz_default_options();
        o.comm = i % 2 == 0;
        o.memory = i % 2 == 1;
        viz_sample(shapes[i][0], shapes[i][1], 1000, *state, &t);
        const viz_scene s = scene_of(*state, &t, &o);
        for (size_t k = 0; k < s.n_labels; k++) {
            const viz_label *const l = &s.labels[k];
            assert_true(l->size >= 6.0f);
            assert_true(l->y <= s.height);
            const viz_label *const next = l + 1;
            if (k + 1 == s.n_labels || l->anchor != VIZ_MIDDLE || next->anchor != VIZ_MIDDLE ||
                next->y != l->y || l->turned || next->turned)
                continue;
            const double room = (viz_text_width(l->s, (double)l->size) +
                                 viz_text_width(next->s, (double)next->size)) /
                                2;
            assert_true((double)(next->x - l->x) >= room);
        }
        for (size_t k = 0; k < s.n_boxes; k++)
            assert_true(s.boxes[k].w >= 0.29f && s.boxes[k].x >= 0.0f &&
                        s.boxes[k].x + s.boxes[k].w <= s.width);
    }
}

/* Where its digits lie: left, right, top, bottom. */
static void extent_of(const viz_label *l, double out[4])
{
    const double half = viz_text_width(l->s, (double)l->size) / 2, cap = 0.72 * (double)l->size;
    const double x = (double)l->x, y = (double)l->y;
    const double upright[4] = {x - half, x + half, y - cap, y};
    const double turned[4] = {x - cap, x, y - half, y + half};
    memcpy(out, l->turned ? turned : upright, sizeof upright);
}

/* In boxes that are too narrow for two digits they stand turned; either way inside one box. */
static void numbers_turn_before_they_vanish(void **state)
{
    trace t;
    viz_options o = viz_default_options();
    o.legend = false;
    viz_sample(4, 16, 0, *state, &t);
    const viz_scene s = scene_of(*state, &t, &o);
    size_t shown = 0, turned = 0;
    for (size_t k = 0; k < s.n_labels; k++) {
        double e[4];
        if (s.labels[k].anchor != VIZ_MIDDLE || s.labels[k].color == 0x333333) continue;
        extent_of(&s.labels[k], e);
        size_t i = 0;
        for (; i < s.n_boxes; i++) {
            const viz_box *const b = &s.boxes[i];
            if ((double)b->x <= e[0] && (double)(b->x + b->w) >= e[1] && (double)b->y <= e[2] &&
                (double)(b->y + b->h) >= e[3])
                break;
        }
        if (i == s.n_boxes) fail_msg("%s lies in no box", s.labels[k].s);
        shown++;
        turned += s.labels[k].turned;
    }
    /* forwards of 3.6 points show one digit at most, the backwards of 7.2 all of theirs */
    assert_true(shown >= 4 * 16);
    assert_true(turned > 0);
    td_text svg = {0};
    viz_svg(&s, &svg);
    assert_non_null(strstr(svg.s, "rotate(-90)"));
    td_text_free(&svg);
}

/* Every box of the largest figure that the targets name has its tooltip. */
static void large_figures_keep_tooltips(void **state)
{
    trace t;
    viz_options o = viz_default_options();
    o.width_in = 7.0;
    o.legend = false;
    viz_sample(32, 512, 0, *state, &t);
    const viz_scene s = scene_of(*state, &t, &o);
    td_text svg = {0};
    viz_svg(&s, &svg);
    size_t tips = 0;
    for (const char *at = svg.s; (at = strstr(at, "<title>")) != NULL; at++) tips++;
    assert_int_equal(tips, s.n_boxes);
    assert_true(svg.len < 150 * s.n_boxes);
    td_text_free(&svg);
}

static bool says(const viz_scene *s, const char *text)
{
    for (size_t i = 0; i < s->n_labels; i++)
        if (strcmp(s->labels[i].s, text) == 0) return true;
    return false;
}

static void legend_explains_shades(void **state)
{
    trace t;
    viz_options o = viz_default_options();
    viz_sample(4, 4, 0, *state, &t);
    viz_scene s = scene_of(*state, &t, &o);
    assert_false(says(&s, "pipes 0, 1") || says(&s, "slices 0 to 3"));
    t.n_pipes = 2;
    t.n_slices = 4;
    s = scene_of(*state, &t, &o);
    assert_true(says(&s, "pipes 0, 1") && says(&s, "slices 0 to 3"));
    o.index_base = 1;
    s = scene_of(*state, &t, &o);
    assert_true(says(&s, "slices 1 to 4"));
}

/* Boxes of one lane follow each other, also where many narrow ones became one. */
static void boxes_never_overlap(void **state)
{
    static const int shapes[][2] = {{4, 8}, {4, 300}, {3, 3000}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        trace t;
        viz_options o = viz_default_options();
        o.legend = false;
        viz_sample(shapes[i][0], shapes[i][1], 0, *state, &t);
        const viz_scene s = scene_of(*state, &t, &o);
        for (size_t k = 1; k < s.n_boxes; k++) {
            const viz_box *const b = &s.boxes[k], *const last = b - 1;
            if (b->y == last->y) assert_true(b->x >= last->x + last->w - 0.31f);
        }
        /* a lane never has more boxes than a writer can show */
        assert_true((double)s.n_boxes <= shapes[i][0] * (double)s.width / 0.3);
    }
}

/* The coloured area of each lane is the busy time of its rank. */
static void boxes_cover_the_busy_time(void **state)
{
    trace t;
    viz_options o = viz_default_options();
    o.legend = false;
    viz_sample(4, 8, 0, *state, &t);
    const viz_scene s = scene_of(*state, &t, &o);
    double covered = 0.0, busy = 0.0;
    for (size_t k = 0; k < s.n_boxes; k++) covered += (double)s.boxes[k].w;
    for (uint64_t i = 0; i < t.n_records; i++)
        if (t.records[i].kind < PASS_COUNT)
            busy += (double)(t.records[i].end_ns - t.records[i].begin_ns);
    const double scale = (double)(s.boxes[1].x - s.boxes[0].x) / 1e6;
    T_CLOSE(covered, busy * scale, 1e-4, 0.0);
    assert_int_equal(s.n_boxes, 4 * 8 * 2);
}

static int lightness(uint32_t fill)
{
    return (int)(fill & 255) + (int)(fill >> 8 & 255) + (int)(fill >> 16);
}

/* Every pass of the second direction is lighter than every one of the first, whatever its chunk;
 * pipes and chunks of a direction differ. */
static void directions_are_told_apart(void **state)
{
    trace t;
    viz_sample(4, 8, 0, *state, &t);
    t.n_slices = 1;
    for (int pipes = 2; pipes <= 6; pipes += 2)
        for (int chunks = 1; chunks <= 4; chunks++) {
            t.n_pipes = pipes;
            t.chunks = chunks;
            t.n_stages = 4 * chunks;
            int lightest = 0, darkest = 999, n = 0;
            uint32_t seen[32];
            for (int pipe = 0; pipe < pipes; pipe++)
                for (int chunk = 0; chunk < (pipes == 2 ? chunks : 1); chunk++) {
                    const uint32_t f = viz_fill(VIZ_DEFAULT, &t, PASS_F, 4 * chunk, pipe, 0);
                    for (int i = 0; i < n; i++) assert_true(seen[i] != f);
                    seen[n++] = f;
                    if (pipe < pipes / 2 && lightness(f) > lightest) lightest = lightness(f);
                    if (pipe >= pipes / 2 && lightness(f) < darkest) darkest = lightness(f);
                }
            assert_true(darkest > lightest + 60);
        }
}

static void text_is_readable_on_every_fill(void **state)
{
    trace t;
    viz_sample(4, 8, 0, *state, &t);
    t.chunks = 4;
    t.n_pipes = t.n_slices = 2;
    for (int style = 0; style < VIZ_STYLE_COUNT; style++)
        for (uint8_t kind = 0; kind < PASS_COUNT; kind++)
            for (int v = 0; v < 16; v++) {
                const uint32_t f =
                    viz_fill((viz_style)style, &t, kind, v % 4, v / 4 % 2, (uint16_t)(v / 8));
                const int sum =
                    (int)(f & 255) * 114 + (int)(f >> 8 & 255) * 587 + (int)(f >> 16) * 299;
                if (sum > 170000) assert_int_equal(viz_ink(f), 0x000000);
                if (sum < 70000) assert_int_equal(viz_ink(f), 0xffffff);
            }
}

static void files_are_equal_and_whole(void **state)
{
    static const char *const names[] = {
        "fig.svg",
        "fig.csv",
#if TD_HAVE_CAIRO
        "fig.png",
        "fig.pdf"
#endif
    };
    trace t;
    td_err err = {0};
    viz_options o = viz_default_options();
    o.title = "A & <b> \"c\"";
    o.comm = o.memory = true;
    viz_sample(4, 8, 1000, *state, &t);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *first = NULL, *second = NULL;
        size_t n = 0, m = 0;
        T_OK(viz_draw(&t, 1, &o, names[i], &err), &err);
        T_OK(td_read_file(*state, names[i], 1 << 24, &first, &n, &err), &err);
        T_OK(viz_draw(&t, 1, &o, names[i], &err), &err);
        T_OK(td_read_file(*state, names[i], 1 << 24, &second, &m, &err), &err);
        assert_int_equal(n, m);
        assert_memory_equal(first, second, n);
        assert_int_equal(unlink(names[i]), 0);
        if (i > 0) continue;
        assert_non_null(strstr(first, "A &amp; &lt;b&gt; &quot;c&quot;"));
        assert_non_null(strstr(first, "<title>F 0, rank 0"));
        assert_non_null(strstr(first, "F=1,B=2"));
    }
}

static void bad_requests_are_refused(void **state)
{
    trace t;
    td_err err = {0};
    viz_options o = viz_default_options();
    viz_style style;
    double width;
    viz_sample(2, 2, 0, *state, &t);
    T_FAILS(viz_draw(&t, 1, &o, "x.html", &err), TD_EUSAGE, &err, "not there yet");
    T_FAILS(viz_draw(&t, 1, &o, "x.gif", &err), TD_EUSAGE, &err, ".svg");
    T_FAILS(viz_draw(&t, 1, &o, "no/such/x.svg", &err), TD_EIO, &err, "cannot write");
    T_FAILS(viz_draw(&t, 0, &o, "x.svg", &err), TD_EUSAGE, &err, "no trace");
    T_FAILS(viz_style_parse("megatrom", &style, &err), TD_EUSAGE, &err, "megatron");
    T_FAILS(viz_width_parse("0.1", &width, &err), TD_EUSAGE, &err, "column");
    T_FAILS(viz_width_parse("wide", &width, &err), TD_EUSAGE, &err, "column");
    T_OK(viz_width_parse("page", &width, &err), &err);
    T_CLOSE(width, 7.0, 0.0, 1e-12);
    assert_int_not_equal(access("x.html", F_OK), 0);
    assert_int_not_equal(access("x.svg", F_OK), 0);
}

static void terminal_shows_the_schedule(void **state)
{
    trace t;
    td_text out = {0};
    viz_sample(4, 8, 0, *state, &t);
    viz_terminal(&t, 33 + 6, false, &out);
    assert_string_equal(out.s, "  r0  FFFF......BBFBBFBBFBBFBB.BB.BB.BB\n"
                               "  r1  .FFF....BBFBBFBBFBBFBBFBB.BB.BB..\n"
                               "  r2  ..FF..BBFBBFBBFBBFBBFBBFBB.BB....\n"
                               "  r3  ...FBBFBBFBBFBBFBBFBBFBBFBB......\n");
    td_text_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T_TEST(numbers_turn_before_they_vanish),
        T_TEST(large_figures_keep_tooltips),
        T_TEST(legend_explains_shades),
        T_TEST(labels_never_collide_nor_shrink),
        T_TEST(boxes_cover_the_busy_time),
        T_TEST(directions_are_told_apart),
        T_TEST(text_is_readable_on_every_fill),
        T_TEST(files_are_equal_and_whole),
        T_TEST(bad_requests_are_refused),
        T_TEST(terminal_shows_the_schedule),
        T_TEST(boxes_never_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
