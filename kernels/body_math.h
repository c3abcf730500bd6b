/* Sixteen floats at a time, whatever the instruction set: the compiler splits the vectors where
 * registers are narrower, so the lanes, and with them the order of every sum, are always the same.
 * Included by bodies.h only. */
#include <math.h>
#include <string.h>

enum { LANES = 16 };

typedef float fv __attribute__((vector_size(64)));
typedef int32_t iv __attribute__((vector_size(64)));
typedef uint32_t uv __attribute__((vector_size(64)));
typedef double dv __attribute__((vector_size(128)));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE fv vset(float a) { return a - (fv){0}; }

INLINE fv vload(const float *p)
{
    fv v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vstore(float *p, fv v) { memcpy(p, &v, sizeof v); }

/* The first n of sixteen (all where n is larger), zeros behind them. */
INLINE fv vload_n(const float *p, long n)
{
    fv v = {0};
    if (n >= LANES) return vload(p);
    memcpy(&v, p, (size_t)n * sizeof *p);
    return v;
}

INLINE void vstore_n(float *p, fv v, long n)
{
    if (n >= LANES) {
        vstore(p, v);
    } else {
        memcpy(p, &v, (size_t)n * sizeof *p);
    }
}

INLINE fv vselect(iv mask, fv yes, fv no) { return (fv)((mask & (iv)yes) | (~mask & (iv)no)); }

INLINE fv vmax(fv a, fv b) { return vselect(a > b, a, b); }

/* Lane i counts while i < n. */
INLINE iv vfirst(long n)
{
    const iv at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return at < (iv){0} + (int32_t)(n < LANES ? n : LANES);
}

INLINE float vsum(fv v)
{
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    }
    return t[0];
}

INLINE float vmax_of(fv v)
{
    float t[LANES];
    memcpy(t, &v, sizeof t);
    for (int i = 1; i < LANES; i++) t[0] = t[i] > t[0] ? t[i] : t[0];
    return t[0];
}

/* e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 7 in r (Taylor's terms, each within
 * half an ulp of what it must be), error under 2 ulp. Below -87 gives 0, above 88 gives e^88; NaN
 * stays NaN. */
INLINE fv vexp(fv x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    const iv tiny = x < vset(-87.0f);
    const fv t = vselect(x > vset(88.0f), vset(88.0f), vselect(tiny, vset(-87.0f), x));
    const fv shifted = t * 1.44269504f + shift;
    const fv n = shifted - shift;
    const fv r = (t - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    fv p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const uv power = ((uv)shifted << 23) + (127U << 23);
    return vselect(tiny, vset(0.0f), p * (fv)power);
}

INLINE fv vsigmoid(fv x) { return 1.0f / (1.0f + vexp(-x)); }
