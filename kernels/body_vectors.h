/* Bodies of vector functions, the optimizer, and attention's softmax. Included by bodies.h only. */

#define FOR_PIECE(a, i)                                                                            \
    for (long i = piece * (a)->block, end_ = k_min((a)->n, (piece + 1) * (a)->block); i < end_; i++)

static void fill(const void *p, long piece, float *scratch)
{
    const k_vec_args *a = (const k_vec_args *)p;
    float *z = a->z;
    const float value = a->a;
    (void)scratch;
    FOR_PIECE(a, i) z[i] = value;
}

static void scale(const void *p, long piece, float *scratch)
{
    const k_vec_args *a = (const k_vec_args *)p;
    float *z = a->z;
    const float factor = a->a;
    (void)scratch;
    FOR_PIECE(a, i) z[i] *= factor;
}

static void axpy(const void *p, long piece, float *scratch)
{
    const k_vec_args *a = (const k_vec_args *)p;
    const float *x = a->x, factor = a->a;
    float *z = a->z;
    (void)scratch;
    FOR_PIECE(a, i) z[i] += factor * x[i];
}

static void add(const void *p, long piece, float *scratch)
{
    const k_vec_args *a = (const k_vec_args *)p;
    const float *x = a->x, *y = a->y;
    float *z = a->z;
    (void)scratch;
    FOR_PIECE(a, i) z[i] = x[i] + y[i];
}

INLINE dv square(const float *x, long n)
{
    const dv wide = __builtin_convertvector(vload_n(x, n), dv);
    return wide * wide;
}

/* Two sums of sixteen lanes, so that additions need not wait for each other. */
static void sumsq(const void *p, long piece, float *scratch)
{
    const k_vec_args *a = (const k_vec_args *)p;
    const long from = piece * a->block, to = k_min(a->n, from + a->block);
    dv even = {0}, odd = {0};
    double t[LANES], total = 0.0;
    long i = from;
    (void)scratch;
    for (; i + 2 * LANES <= to; i += 2 * LANES) {
        even += square(a->x + i, LANES);
        odd += square(a->x + i + LANES, LANES);
    }
    for (; i < to; i += LANES) even += square(a->x + i, to - i);
    even += odd;
    memcpy(t, &even, sizeof t);
    for (int lane = 0; lane < LANES; lane++) total += t[lane];
    a->sums[piece] = total;
}

static void adamw(const void *p, long piece, float *scratch)
{
    const k_adamw_args *a = (const k_adamw_args *)p;
    const float b1 = a->p.beta1, b2 = a->p.beta2, lr = a->p.lr, eps = a->p.eps;
    const float decay = a->p.weight_decay, grad_scale = a->p.grad_scale;
    const float s1 = a->scale1, s2 = a->scale2;
    const long from = piece * a->block, n = k_min(a->n, from + a->block) - from;
    float *restrict w = a->w + from, *restrict g = a->g + from;
    float *restrict m = a->m + from, *restrict v = a->v + from;
    const bool clear = a->p.clear_grad;
    (void)scratch;
    for (long i = 0; i < n; i++) {
        const float grad = g[i] * grad_scale;
        if (clear) g[i] = 0.0f;
        m[i] = b1 * m[i] + (1.0f - b1) * grad;
        v[i] = b2 * v[i] + (1.0f - b2) * grad * grad;
        w[i] -= lr * (m[i] * s1 / (sqrtf(v[i] * s2) + eps) + decay * w[i]);
    }
}

/* --- attention's softmax --- */

INLINE void scale_row(float *x, long n, float factor)
{
    for (long c = 0; c < n; c += LANES) vstore_n(x + c, vload_n(x + c, n - c) * factor, n - c);
}

INLINE void zero_row(float *x, long from, long to)
{
    for (long c = from; c < to; c++) x[c] = 0.0f;
}

static void softmax_tile(const k_tile *t, bool first, float *s, float *max, float *sum, float *o)
{
    for (long r = 0; r < t->rows; r++) {
        float *row = s + r * t->cols;
        const long seen = k_min(t->cols, t->visible0 + r);
        zero_row(row, seen > 0 ? seen : 0, t->cols);
        if (seen <= 0) continue;
        fv top = vset(first ? -INFINITY : max[r]);
        for (long c = 0; c < seen; c += LANES) {
            const fv v = vload_n(row + c, seen - c) * t->scale;
            top = vmax(vselect(vfirst(seen - c), v, vset(-INFINITY)), top);
        }
        const float new_max = vmax_of(top);
        fv total = {0};
        for (long c = 0; c < seen; c += LANES) {
            const fv e = vexp(vload_n(row + c, seen - c) * t->scale - new_max);
            total += vselect(vfirst(seen - c), e, vset(0.0f));
            vstore_n(row + c, e, seen - c);
        }
        if (first) {
            sum[r] = vsum(total);
        } else {
            const float shrink = expf(max[r] - new_max);
            sum[r] = sum[r] * shrink + vsum(total);
            scale_row(o + r * t->o_ld, t->d, shrink);
        }
        max[r] = new_max;
    }
}

static void softmax_end(const k_tile *t, const float *sum, const float *max, float *o, float *lse)
{
    for (long r = 0; r < t->rows; r++) {
        scale_row(o + r * t->o_ld, t->d, 1.0f / sum[r]);
        lse[r] = max[r] + logf(sum[r]);
    }
}

static void softmax_bwd(const k_tile *t, const float *lse, const float *delta, float *s, float *dp)
{
    for (long r = 0; r < t->rows; r++) {
        float *p = s + r * t->cols, *ds = dp + r * t->cols;
        const long seen = k_min(t->cols, t->visible0 + r);
        zero_row(p, seen > 0 ? seen : 0, t->cols);
        zero_row(ds, seen > 0 ? seen : 0, t->cols);
        for (long c = 0; c < seen; c += LANES) {
            const long n = seen - c;
            const fv e = vexp(vload_n(p + c, n) * t->scale - lse[r]);
            vstore_n(p + c, e, n);
            vstore_n(ds + c, e * (vload_n(ds + c, n) - delta[r]) * t->scale, n);
        }
    }
}

static void row_dots(const k_tile *t, const float *o, const float *dout, float *delta)
{
    for (long r = 0; r < t->rows; r++) {
        fv total = {0};
        for (long c = 0; c < t->d; c += LANES) {
            const long n = t->d - c, at = r * t->o_ld + c;
            total += vload_n(o + at, n) * vload_n(dout + at, n);
        }
        delta[r] = vsum(total);
    }
}
