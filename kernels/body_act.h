/* Bodies of the activation functions. Included by bodies.h only. */

/* y = f(x + bias) or y = f(x + bias) * dy, over a block of rows. */
#define ACTIVATION(name, expression)                                                               \
    static void name(const void *p, long piece, float *scratch)                                    \
    {                                                                                              \
        const k_row_args *a = (const k_row_args *)p;                                               \
        (void)scratch;                                                                             \
        for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {         \
            for (long c = 0; c < a->cols; c += LANES) {                                            \
                const long n = a->cols - c, at = r * a->cols + c;                                  \
                fv u = vload_n(a->x + at, n);                                                      \
                if (a->bias) u += vload_n(a->bias + c, n);                                         \
                vstore_n(a->y + at, (expression), n);                                              \
            }                                                                                      \
        }                                                                                          \
    }

/* u/2 (1 + tanh z) is u sigmoid(2z), which keeps its relative precision for negative u. */
#define TWO_ROOT_2_PI 1.5957691216f /* 2 sqrt(2/pi) */
#define CUBIC 0.044715f

INLINE fv gelu_tanh(fv u) { return u * vsigmoid(TWO_ROOT_2_PI * (u + CUBIC * u * u * u)); }

INLINE fv gelu_tanh_slope(fv u)
{
    const fv s = vsigmoid(TWO_ROOT_2_PI * (u + CUBIC * u * u * u));
    return s + u * s * (1.0f - s) * (TWO_ROOT_2_PI * (1.0f + 3.0f * CUBIC * u * u));
}

/* The normal distribution up to u, and e^(-u^2/2): Abramowitz and Stegun 7.1.26, absolute error of
 * the former under 1e-7. */
INLINE fv normal_cdf(fv u, fv *bell)
{
    const iv negative = u < vset(0.0f);
    const fv z = vselect(negative, -u, u) * 0.70710678f;
    const fv t = 1.0f / (1.0f + 0.3275911f * z);
    fv p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    *bell = vexp(-z * z);
    const fv tail = 0.5f * p * t * *bell;
    return vselect(negative, tail, 1.0f - tail);
}

INLINE fv gelu_erf(fv u)
{
    fv bell;
    return u * normal_cdf(u, &bell);
}

INLINE fv gelu_erf_slope(fv u)
{
    fv bell;
    const fv cdf = normal_cdf(u, &bell);
    return cdf + u * bell * 0.39894228f; /* 1/sqrt(2 pi) */
}

ACTIVATION(gelu_tanh_fwd, gelu_tanh(u))
ACTIVATION(gelu_tanh_bwd, gelu_tanh_slope(u) * vload_n(a->dy + at, n))
ACTIVATION(gelu_erf_fwd, gelu_erf(u))
ACTIVATION(gelu_erf_bwd, gelu_erf_slope(u) * vload_n(a->dy + at, n))

static void swiglu_fwd(const void *p, long piece, float *scratch)
{
    const k_row_args *a = (const k_row_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c, at = r * a->ld + c;
            const fv gate = vload_n(a->x + at, n);
            vstore_n(a->y + r * a->cols + c, gate * vsigmoid(gate) * vload_n(a->up + at, n), n);
        }
    }
}

static void swiglu_bwd(const void *p, long piece, float *scratch)
{
    const k_row_args *a = (const k_row_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c, at = r * a->ld + c;
            const fv gate = vload_n(a->x + at, n), up = vload_n(a->up + at, n);
            const fv dy = vload_n(a->dy + r * a->cols + c, n), s = vsigmoid(gate);
            vstore_n(a->y + r * a->ldd + c, dy * up * (s * (1.0f + gate * (1.0f - s))), n);
            vstore_n(a->dup + r * a->ldd + c, dy * gate * s, n);
        }
    }
}
