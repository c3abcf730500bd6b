/* Bodies of rotary positions, embedding and cross-entropy. Included by bodies.h only. */

static void rope(const void *p, long piece, float *scratch)
{
    const k_rope_args *a = (const k_rope_args *)p;
    const long half = a->d / 2;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        const float *cosines = a->table + (a->pos0 + r % a->seq) * a->d, *sines = cosines + half;
        for (long h = 0; h < a->heads; h++) {
            float *lo = a->x + r * a->ld + h * a->d, *hi = lo + half;
            for (long i = 0; i < half; i += LANES) {
                const long n = half - i;
                const fv c = vload_n(cosines + i, n), s = vload_n(sines + i, n) * a->sign;
                const fv x = vload_n(lo + i, n), y = vload_n(hi + i, n);
                vstore_n(lo + i, x * c - y * s, n);
                vstore_n(hi + i, y * c + x * s, n);
            }
        }
    }
}

static void embed_fwd(const void *p, long piece, float *scratch)
{
    const k_embed_args *a = (const k_embed_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        const long word = (long)a->ids[r] - a->words.first;
        const bool here = word >= 0 && word < a->words.count;
        const float *tok = here ? a->tok + word * a->cols : NULL;
        const float *pos = a->pos ? a->pos + (a->pos0 + r % a->seq) * a->cols : NULL;
        for (long c = 0; c < a->cols; c += LANES) {
            const long n = a->cols - c;
            fv v = tok ? vload_n(tok + c, n) : vset(0.0f);
            if (pos) v += vload_n(pos + c, n);
            if (a->extra) v += vload_n(a->extra + c, n);
            vstore_n(a->y + r * a->cols + c, v, n);
        }
    }
}

INLINE void add_span(float *out, const float *x, long from, long to)
{
    for (long c = from; c < to; c += LANES) {
        vstore_n(out + c, vload_n(out + c, to - c) + vload_n(x + c, to - c), to - c);
    }
}

/* One piece owns `block` columns of all tables, so rows with equal ids meet in row order. */
static void embed_bwd(const void *p, long piece, float *scratch)
{
    const k_embed_args *a = (const k_embed_args *)p;
    const long from = piece * a->block, to = k_min(a->cols, from + a->block);
    (void)scratch;
    for (long r = 0; r < a->rows; r++) {
        const float *dy = a->dy + r * a->cols;
        const long word = a->dtok ? (long)a->ids[r] - a->words.first : -1;
        if (word >= 0 && word < a->words.count) add_span(a->dtok + word * a->cols, dy, from, to);
        if (a->dpos) add_span(a->dpos + (a->pos0 + r % a->seq) * a->cols, dy, from, to);
        if (a->dextra) add_span(a->dextra, dy, from, to);
    }
}

INLINE float row_max(const float *x, long n)
{
    fv m = vset(-INFINITY);
    for (long c = 0; c < n; c += LANES) {
        m = vmax(vselect(vfirst(n - c), vload_n(x + c, n - c), vset(-INFINITY)), m);
    }
    return vmax_of(m);
}

/* Sum of e^(x - shift), in doubles from runs short enough for floats. */
INLINE double row_expsum(const float *x, long n, float shift)
{
    enum { RUN = 2048 };
    double total = 0.0;
    for (long from = 0; from < n; from += RUN) {
        const long to = k_min(n, from + RUN);
        fv sum = {0};
        for (long c = from; c < to; c += LANES) {
            const fv e = vexp(vload_n(x + c, to - c) - shift);
            sum += vselect(vfirst(to - c), e, vset(0.0f));
        }
        total += (double)vsum(sum);
    }
    return total;
}

INLINE void xent_gradient(const k_xent_args *a, long r, float lse)
{
    const float *x = a->logits + r * a->ld;
    float *dx = a->dlogits + r * a->ld;
    const bool ignored = a->target[r] < 0;
    for (long c = 0; c < a->vocab; c += LANES) {
        const long n = a->vocab - c;
        const fv p = ignored ? vset(0.0f) : vexp(vload_n(x + c, n) - lse) * a->scale;
        vstore_n(dx + c, p, n);
    }
    if (!ignored) dx[a->target[r]] -= a->scale;
}

static void xent(const void *p, long piece, float *scratch)
{
    const k_xent_args *a = (const k_xent_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        const float *x = a->logits + r * a->ld;
        const float max = row_max(x, a->vocab);
        const double lse = (double)max + log(row_expsum(x, a->vocab, max));
        a->loss[r] = a->target[r] < 0 ? 0.0 : lse - (double)x[a->target[r]];
        if (a->lse) a->lse[r] = (float)lse;
        if (a->dlogits) xent_gradient(a, r, (float)lse);
    }
}

static void xent_bwd(const void *p, long piece, float *scratch)
{
    const k_xent_args *a = (const k_xent_args *)p;
    (void)scratch;
    for (long r = piece * a->block; r < k_min(a->rows, (piece + 1) * a->block); r++) {
        xent_gradient(a, r, a->lse_in[r]);
    }
}
