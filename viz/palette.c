/* Colours: a hue for each kind of pass, a tint for chunk and pipe, a shade for slices. The default
 * follows Okabe and Ito's colour-blind-safe set, with luminances kept apart for grey printing; the
 * others follow the figures of the papers they are named after. */
#include "viz/viz.h"

#include "base/text.h"

#include <math.h>
#include <string.h>

enum { OTHER = PASS_COUNT, COMM, COLL, KINDS };

static const uint32_t palettes[VIZ_STYLE_COUNT][KINDS] = {
    /*                 F         B         I         W         R         S         T
                       E         G         other     comm      coll */
    [VIZ_DEFAULT] = {0x0072b2, 0xe69f00, 0xf0c75e, 0x009e73, 0x9f90c8, 0xf0e442, 0xc4b820, 0xcc79a7,
                     0x9c4f7b, 0x777777, 0xb8b8b8, 0x4d4d4d},
    [VIZ_MEGATRON] = {0x3b6fb6, 0x6aa84f, 0x93c47d, 0x38761d, 0x9f90c8, 0xffd966, 0xe0b83c,
                      0xc27ba0, 0x9c4f7b, 0x777777, 0xb8b8b8, 0x4d4d4d},
    [VIZ_ZB] = {0x397af2, 0x2ab0c0, 0x44d3da, 0xe0f0e7, 0x9f90c8, 0xffd966, 0xe0b83c, 0xc27ba0,
                0x9c4f7b, 0xc85308, 0xffd35b, 0xc9a227},
    [VIZ_DUALPIPE] = {0xf0b036, 0x7cd44e, 0x7cd44e, 0x74bcf8, 0x9f90c8, 0xffd966, 0xe0b83c,
                      0xc27ba0, 0x9c4f7b, 0x777777, 0xb8b8b8, 0x4d4d4d},
    [VIZ_VOCAB] = {0x4285f4, 0xe69138, 0xf6b26b, 0x6aa84f, 0x9f90c8, 0xffd966, 0xf1c232, 0xc27ba0,
                   0xa64d79, 0x777777, 0xb8b8b8, 0x4d4d4d},
    [VIZ_SEQ1F1B] = {0xfcd4d4, 0xf6dfae, 0xfcf0c4, 0xb4d8f0, 0xd9d2e9, 0xffe599, 0xffd966, 0xead1dc,
                     0xd5a6bd, 0x999999, 0xc8c8c8, 0x666666},
    [VIZ_TORCH] = {0x1f4fd8, 0xff9f1c, 0x008080, 0x2e8b57, 0x9f90c8, 0xffd966, 0xe0b83c, 0xc27ba0,
                   0x9c4f7b, 0x777777, 0xb8b8b8, 0x4d4d4d},
};

static const char *const style_names[] = {
#define X(id, name) name,
    VIZ_STYLES(X)
#undef X
        NULL};

viz_options viz_default_options(void)
{
    return (viz_options){.style = VIZ_DEFAULT, .width_in = 3.33, .legend = true};
}

td_status viz_style_parse(const char *name, viz_style *out, td_err *err)
{
    for (int i = 0; i < VIZ_STYLE_COUNT; i++) {
        if (strcmp(name, style_names[i]) != 0) continue;
        *out = (viz_style)i;
        return TD_OK;
    }
    const char *const near = td_nearest(name, style_names, VIZ_STYLE_COUNT);
    if (near != NULL)
        return td_fail(err, TD_EUSAGE, "--style %s: unknown style; did you mean %s?", name, near);
    return td_fail(err, TD_EUSAGE,
                   "--style %s: unknown style; there are default, megatron, zb, dualpipe, vocab, "
                   "seq1f1b, torch",
                   name);
}

td_status viz_width_parse(const char *text, double *inches, td_err *err)
{
    static const struct {
        const char *name;
        double inches;
    } widths[] = {{"column", 3.33}, {"page", 7.0}, {"neurips", 5.5}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        if (strcmp(text, widths[i].name) != 0) continue;
        *inches = widths[i].inches;
        return TD_OK;
    }
    if (td_parse_f64(text, 1.5, 100.0, "--width", inches, err) == TD_OK) return TD_OK;
    return td_fail(err, TD_EUSAGE,
                   "--width %s: expected column, page, neurips or inches from 1.5 to 100", text);
}

/* Moves a colour towards black (to = 0) or white (to = 255). */
static uint32_t mix(uint32_t color, double part, double to)
{
    uint32_t out = 0;
    for (int shift = 16; shift >= 0; shift -= 8) {
        const double c = (double)(color >> shift & 255u);
        out |= (uint32_t)lround(c + (to - c) * part) << shift;
    }
    return out;
}

static int palette_row(uint8_t kind)
{
    if (kind < PASS_COUNT) return kind;
    if (kind == TASK_SEND || kind == TASK_RECV) return COMM;
    return kind == TASK_COLL ? COLL : OTHER;
}

/* How far towards white. Chunks differ a lot where there is one pipe. With several, the second half
 * of the pipes is the lighter half, and within a half chunks or pipes are grades of one tint. */
static double tint_of(const trace *t, int32_t stage, int32_t pipe)
{
    double chunk = 0.0;
    if (t->chunks > 1 && stage > 0 && t->n_stages > 0)
        chunk = (double)((int64_t)stage * t->chunks / t->n_stages) / (double)(t->chunks - 1);
    if (t->n_pipes < 2) return 0.55 * chunk;
    const int32_t half = (t->n_pipes + 1) / 2;
    const bool second = pipe >= half;
    const double grade =
        half > 1 && pipe >= 0 ? (double)(pipe - (second ? half : 0)) / (double)(half - 1) : 0.0;
    return (second ? 0.5 : 0.0) + 0.16 * grade + (half > 1 ? 0.1 : 0.26) * chunk;
}

uint32_t viz_fill(viz_style style, const trace *t, uint8_t kind, int32_t stage, int32_t pipe,
                  uint16_t slice)
{
    uint32_t color = palettes[style][palette_row(kind)];
    if (kind >= PASS_COUNT) return color;
    const double tint = tint_of(t, stage, pipe);
    if (tint > 0.0) color = mix(color, tint, 255.0);
    if (t->n_slices > 1) color = mix(color, 0.28 * (double)slice / (double)(t->n_slices - 1), 0.0);
    return color;
}

/* Relative luminance as WCAG 2.1 defines it. */
static double luminance(uint32_t color)
{
    static const double weight[3] = {0.0722, 0.7152, 0.2126};
    double sum = 0.0;
    for (int i = 0; i < 3; i++) {
        const double c = (double)(color >> (8 * i) & 255u) / 255.0;
        sum += weight[i] * (c <= 0.03928 ? c / 12.92 : pow((c + 0.055) / 1.055, 2.4));
    }
    return sum;
}

uint32_t viz_ink(uint32_t fill)
{
    const double l = luminance(fill);
    return 1.05 / (l + 0.05) > (l + 0.05) / 0.05 ? 0xffffff : 0x000000;
}

double viz_text_width(const char *s, double size)
{
    double em = 0.0;
    for (; *s != '\0'; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c >= 0x80 && c < 0xc0) continue;
        if (strchr(" .,:;|!'ijlI", c) != NULL)
            em += 0.35;
        else if (strchr("mwMW%@", c) != NULL)
            em += 0.98;
        else
            em += c >= 'A' && c <= 'Z' ? 0.72 : 0.64;
    }
    return em * size;
}
