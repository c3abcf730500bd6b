/* Bodies of norms and elementwise functions. Included by bodies.h only. */

enum { COLS = 64, COL_VECS = COLS / LANES }; /* width of a piece that owns columns */

/* --- norms --- */

/* Writes x + bias + res to s and returns its sum; s may be x, then only the sum is taken. */
INLINE float gather_row(const k_norm_args *a, long r, float *s)
{
    const float *x = a->x + r * a->cols;
    const float *res = a->res ? a->res + r * a->cols : NULL;
    fv total = {0};
    for (long c = 0; c < a->cols; c += LANES) {
        const long n = a->cols - c;
        fv v = vload_n(x + c, n);
        if (a->bias) v += vload_n(a->bias + c, n);
        if (res) v += vload_n(res + c, n);
        if (s) vstore_n(s + c, v, n);
        total += v;
    }
    return vsum(total);
}

/* Where the norm's input of row r is to be kept: in sum; else in y until y is written; NULL when it
 * is x itself. */
INLINE float *kept_row(const k_norm_args *a, long r)
{
    if (a->sum) return a->sum + r * a->cols;
    return a->res || a->bias ? a->y + r * a->cols : NULL;
}

INLINE float squares(const float *s, long cols, float mean)
{
    fv total = {0};
    for (long c = 0; c < cols; c += LANES) {
        const fv v = vselect(vfirst(cols - c), vload_n(s + c, cols - c) - mean, vset(0.0f));
        total += v * v;
    }
    return vsum(total);
}

static void layernorm_fwd(const void *p, long piece, float *scratch)
{
    const k_norm_args *a = (const k_norm_args *)p;
    const float inv = 1.0f / (float)a->cols;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        float *kept = kept_row(a, r), *y = a->y + r * a->cols;
        const float mean = gather_row(a, r, kept) * inv;
        const float *s = kept ? kept : a->x + r * a->cols;
        const float rstd = 1.0f / sqrtf(squares(s, a->cols, mean) * inv + a->eps);
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c;
            const fv xhat = (vload_n(s + c, n) - mean) * rstd;
            vstore_n(y + c, xhat * vload_n(a->gamma + c, n) + vload_n(a->beta + c, n), n);
        }
        a->mean[r] = mean;
        a->rstd[r] = rstd;
    }
}

static void rmsnorm_fwd(const void *p, long piece, float *scratch)
{
    const k_norm_args *a = (const k_norm_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        float *kept = kept_row(a, r), *y = a->y + r * a->cols;
        if (kept) gather_row(a, r, kept);
        const float *s = kept ? kept : a->x + r * a->cols;
        const float mean_square = squares(s, a->cols, 0.0f) / (float)a->cols;
        const float rstd = 1.0f / sqrtf(mean_square + a->eps);
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c;
            vstore_n(y + c, vload_n(s + c, n) * rstd * vload_n(a->gamma + c, n), n);
        }
        a->rstd[r] = rstd;
    }
}

/* The gradient of row r's input; mean is 0 and centred false for the RMS norm. */
INLINE void norm_dx_row(const k_norm_args *a, long r, float mean, bool centred)
{
    const float *dy = a->dy + r * a->cols, *s = a->x + r * a->cols;
    const float *res = a->res ? a->res + r * a->cols : NULL;
    const float rstd = a->rstd_in[r], inv = 1.0f / (float)a->cols;
    fv sum_g = {0}, sum_gx = {0};
    for (long c = 0; c < a->cols; c += LANES) {
        const long n = a->cols - c;
        const fv g = vload_n(dy + c, n) * vload_n(a->gamma + c, n);
        sum_g += g;
        sum_gx += g * ((vload_n(s + c, n) - mean) * rstd);
    }
    const float mean_g = centred ? vsum(sum_g) * inv : 0.0f, mean_gx = vsum(sum_gx) * inv;
    for (long c = 0; c < a->cols; c += LANES) {
        const long n = a->cols - c;
        const fv g = vload_n(dy + c, n) * vload_n(a->gamma + c, n);
        const fv xhat = (vload_n(s + c, n) - mean) * rstd;
        fv dx = rstd * (g - mean_g - xhat * mean_gx);
        if (res) dx += vload_n(res + c, n);
        vstore_n(a->y + r * a->cols + c, dx, n);
    }
}

static void layernorm_dx(const void *p, long piece, float *scratch)
{
    const k_norm_args *a = (const k_norm_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        norm_dx_row(a, r, a->mean_in[r], true);
    }
}

static void rmsnorm_dx(const void *p, long piece, float *scratch)
{
    const k_norm_args *a = (const k_norm_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        norm_dx_row(a, r, 0.0f, false);
    }
}

INLINE void add_cols(float *out, const fv *sums, long c0, long cols)
{
    for (long i = 0, c = c0; i < COL_VECS && c < cols; i++, c += LANES) {
        vstore_n(out + c, vload_n(out + c, cols - c) + sums[i], cols - c);
    }
}

/* One piece owns COLS columns and adds up all rows in order. */
INLINE void norm_dgamma_cols(const k_norm_args *a, long c0, bool centred)
{
    fv gamma[COL_VECS] = {{0}}, beta[COL_VECS] = {{0}};
    for (long r = 0; r < a->rows; r++) {
        const float mean = centred ? a->mean_in[r] : 0.0f, rstd = a->rstd_in[r];
        const float *dy = a->dy + r * a->cols, *s = a->x + r * a->cols;
        for (long i = 0, c = c0; i < COL_VECS && c < a->cols; i++, c += LANES) {
            const fv g = vload_n(dy + c, a->cols - c);
            gamma[i] += g * ((vload_n(s + c, a->cols - c) - mean) * rstd);
            beta[i] += g;
        }
    }
    if (a->dgamma) add_cols(a->dgamma, gamma, c0, a->cols);
    if (a->dbeta) add_cols(a->dbeta, beta, c0, a->cols);
}

static void layernorm_dgamma(const void *p, long piece, float *scratch)
{
    (void)scratch;
    norm_dgamma_cols((const k_norm_args *)p, piece * COLS, true);
}

static void rmsnorm_dgamma(const void *p, long piece, float *scratch)
{
    (void)scratch;
    norm_dgamma_cols((const k_norm_args *)p, piece * COLS, false);
}

/* --- bias --- */

static void bias_add(const void *p, long piece, float *scratch)
{
    const k_row_args *a = (const k_row_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        float *y = a->y + r * a->ld;
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c;
            vstore_n(y + c, vload_n(y + c, n) + vload_n(a->bias + c, n), n);
        }
    }
}

static void colsum(const void *p, long piece, float *scratch)
{
    const k_row_args *a = (const k_row_args *)p;
    const long c0 = piece * COLS;
    fv sums[COL_VECS] = {{0}};
    (void)scratch;
    for (long r = 0; r < a->rows; r++) {
        for (long i = 0, c = c0; i < COL_VECS && c < a->cols; i++, c += LANES) {
            sums[i] += vload_n(a->x + r * a->ld + c, a->cols - c);
        }
    }
    add_cols(a->y, sums, c0, a->cols);
}
