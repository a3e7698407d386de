/* The passes between the matrix products of an update, each over its data once; algorithms/loops.py calls them and says what they
 * compute. All arrays are float32 and row-major; T critics, M rows, I features, B rows with a gradient, N atoms.
 * Sums run in a fixed order, whatever the alignment, so a build gives the same bits in every run. NaN passes through everything.
 */
#include <math.h>
#include <string.h>

#define LANES 8
#define ROWS 4 /* of the bridge at once: so many that a weight is loaded once for all of them */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#ifdef __AVX512F__ /* a register's width: what is wider stays in memory */
#define WIDE (2 * LANES)
#else
#define WIDE LANES
#endif
typedef float wide __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef float few __attribute__((vector_size(16), aligned(4), may_alias));
typedef float one __attribute__((may_alias));
typedef union { float f; int i; } bits;

static inline float clip(float x, float low, float high) { return x < low ? low : (x > high ? high : x); }

/* exp by 2^n p(r), |r| <= ln 2 / 2, relative error below 2e-7; exp(-87) where x is less, exp(88) where it is more. */
static inline float exp_(float x) {
    x = clip(x, -87.0f, 88.0f);
    bits shifted = {.f = x * 1.44269504f + 12582912.0f}, power;
    float n = shifted.f - 12582912.0f, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    power.i = (shifted.i - 0x4b400000 + 127) << 23;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return ((p * r * r + r) + 1.0f) * power.f;
}

static inline float tanh_(float x) { return 1 - 2 / (exp_(2 * x) + 1); } /* absolute error 1e-7 */

/* log((1 + s) / (1 - s)), |s| <= 1/3, relative error 1e-7 */
static inline float log_ratio(float s) {
    float q = s * s, p = 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2 * s * (p * q + 1);
}

/* log of a normal number above 0: m 2^n with m in [.7, 1.41). NaN is NaN. */
static inline float log_(float x) {
    bits given = {.f = x}, m;
    int n = (given.i - 0x3f330000) >> 23;
    m.i = given.i - (int)((unsigned)n << 23);
    float log_x = log_ratio((m.f - 1) / (m.f + 1)) + n * 0.69314718f;
    return x == x ? log_x : x;
}

static inline float total_of(lanes v) {
    float part[LANES];
    memcpy(part, &v, sizeof part);
    for (int w = LANES / 2; w; w /= 2)
        for (int l = 0; l < w; l++) part[l] += part[l + w];
    return part[0];
}

static inline float sum_of(const float *x, long n) {
    lanes sum = {0}, other = {0};
    float rest = 0;
    long j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) sum += *(const lanes *)(x + j), other += *(const lanes *)(x + j + LANES);
    for (; j < n; j++) rest += x[j];
    return total_of(sum + other) + rest;
}

static inline float dot_of(const float *x, const float *y, long n) {
    lanes sum = {0}, other = {0};
    float rest = 0;
    long j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES) {
        sum += *(const lanes *)(x + j) * *(const lanes *)(y + j);
        other += *(const lanes *)(x + j + LANES) * *(const lanes *)(y + j + LANES);
    }
    for (; j < n; j++) rest += x[j] * y[j];
    return total_of(sum + other) + rest;
}

static inline float max_of(const float *x, long n) {
    float part[LANES], most = x[0];
    long j = 0;
    for (int l = 0; l < LANES; l++) part[l] = x[0];
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) part[l] = x[j + l] > part[l] ? x[j + l] : part[l];
    for (; j < n; j++) most = x[j] > most ? x[j] : most;
    for (int l = 0; l < LANES; l++) most = part[l] > most ? part[l] : most;
    return most;
}

/* Batch renormalisation. ``stats`` (8, T, I): mean, var (mean of squares until ``renorm_apply``), inverse, r, shift, scale, bend,
 * offset; x (T, M, I), or one (M, I) for both critics where ``step`` is 0. */

void renorm_moments(float *restrict x, long step, long T, long M, long I, int relu, float *restrict stats) {
    for (long t = 0; t < T; t++) {
        float *restrict sum = stats + t * I, *restrict square = stats + (T + t) * I;
        memset(sum, 0, I * sizeof(float));
        memset(square, 0, I * sizeof(float));
        for (long m = 0; m < M; m += ROWS) {
            float *row = x + t * step + m * I;
            long rows = M - m < ROWS ? M - m : ROWS;
            if (relu)
                for (long i = 0; i < rows * I; i++) row[i] = row[i] < 0 ? 0 : row[i];
            if (rows == ROWS)
                for (long i = 0; i < I; i++) {
                    float a = row[i], b = row[I + i], c = row[2 * I + i], d = row[3 * I + i];
                    sum[i] += (a + b) + (c + d);
                    square[i] += (a * a + b * b) + (c * c + d * d);
                }
            else
                for (long r = 0; r < rows; r++)
                    for (long i = 0; i < I; i++) sum[i] += row[r * I + i], square[i] += row[r * I + i] * row[r * I + i];
        }
        for (long i = 0; i < I; i++) sum[i] /= M, square[i] /= M;
    }
}

typedef struct { float eps, r_max, d_max; int crossq; } renorm;

void renorm_apply(const float *restrict x, long step, long T, long M, long I, const float *restrict gamma,
                  const float *restrict beta, const float *restrict running_mean, const float *restrict running_var,
                  const char *warm, renorm c, float *restrict stats, float *restrict y) {
    long n = T * I;
    float *restrict mean = stats, *restrict var = stats + n, *restrict inverse = stats + 2 * n, *restrict r = stats + 3 * n;
    float *restrict shift = stats + 4 * n, *restrict scale = stats + 5 * n, *restrict bend = stats + 6 * n;
    float *restrict offset = stats + 7 * n;
    for (long i = 0; i < n; i++) {
        float v = var[i] - mean[i] * mean[i];
        v = v < 0 ? 0 : v;
        float inv = 1 / sqrtf(v + c.eps), running = 1 / sqrtf(running_var[i] + c.eps);
        float ratio = *warm ? clip(running / inv, 1 / c.r_max, c.r_max) : 1;
        float d = *warm ? clip((mean[i] - running_mean[i]) * running, -c.d_max, c.d_max) : 0, bent = 0;
        if (c.crossq) {
            float floor = ratio * ratio * c.eps;
            inv = 1 / sqrtf(v + floor);
            bent = v > 0 ? gamma[i] * d * floor * (inv * inv * inv) * (0.5f / sqrtf(v)) : 0;
            d = d * sqrtf(v) * inv;
        }
        var[i] = v, inverse[i] = inv, r[i] = ratio, shift[i] = d, bend[i] = bent;
        scale[i] = gamma[i] * ratio * inv;
        offset[i] = beta[i] + gamma[i] * d - mean[i] * scale[i];
    }
    for (long t = 0; t < T; t++)
        for (long m = 0; m < M; m++) {
            const float *restrict row = x + t * step + m * I, *restrict s = scale + t * I, *restrict o = offset + t * I;
            float *restrict to = y + (t * M + m) * I;
            for (long i = 0; i < I; i++) to[i] = row[i] * s[i] + o[i];
        }
}

/* Gradients of gamma and beta (T, I) from ``grad`` (T, B, I) of y's first B rows; ``through`` (2, T, I): what every row of x gets
 * by the batch's mean and, times x, by its mean of squares. */
void renorm_sums(const float *restrict grad, const float *restrict x, long step, long T, long B, long M, long I,
                 const float *restrict stats, float *restrict gamma_grad, float *restrict beta_grad, float *restrict through) {
    long n = T * I;
    const float *mean = stats, *inverse = stats + 2 * n, *r = stats + 3 * n, *shift = stats + 4 * n, *scale = stats + 5 * n;
    const float *bend = stats + 6 * n;
    for (long t = 0; t < T; t++) {
        float *restrict sum = beta_grad + t * I, *restrict product = gamma_grad + t * I;
        memset(sum, 0, I * sizeof(float));
        memset(product, 0, I * sizeof(float));
        long b = 0;
        for (; b + 2 <= B; b += 2) {
            const float *restrict g = grad + (t * B + b) * I, *restrict row = x + t * step + b * I;
            for (long i = 0; i < I; i++) {
                sum[i] += g[i] + g[I + i];
                product[i] += g[i] * row[i] + g[I + i] * row[I + i];
            }
        }
        for (; b < B; b++) {
            const float *restrict g = grad + (t * B + b) * I, *restrict row = x + t * step + b * I;
            for (long i = 0; i < I; i++) sum[i] += g[i], product[i] += g[i] * row[i];
        }
    }
    for (long i = 0; i < n; i++) {
        float sum = beta_grad[i], centred = gamma_grad[i] - mean[i] * sum;
        gamma_grad[i] = centred * (r[i] * inverse[i]) + shift[i] * sum;
        float by_square = centred * scale[i] * (inverse[i] * inverse[i]) * -0.5f + sum * bend[i];
        through[i] = (-scale[i] * sum - 2 * mean[i] * by_square) / M;
        through[n + i] = 2 * by_square / M;
    }
}

/* ``out`` (T, M, I): the gradient of what went into the relu before x (T, M, I); ``total`` (T, I): its sums over the rows. */
void renorm_input(const float *restrict grad, const float *restrict x, long T, long B, long M, long I,
                  const float *restrict stats, const float *restrict through, float *restrict out, float *restrict total) {
    long n = T * I;
    for (long t = 0; t < T; t++) {
        const float *restrict scale = stats + 5 * n + t * I, *restrict a = through + t * I, *restrict b = through + n + t * I;
        float *restrict sum = total + t * I;
        memset(sum, 0, I * sizeof(float));
        for (long m = 0; m < M; m++) {
            const float *restrict row = x + (t * M + m) * I, *restrict g = grad + (t * B + m) * I;
            float *restrict to = out + (t * M + m) * I;
            if (m < B)
                for (long i = 0; i < I; i++) {
                    float v = a[i] + row[i] * b[i] + g[i] * scale[i];
                    v = row[i] <= 0 ? 0 : v;
                    to[i] = v, sum[i] += v;
                }
            else
                for (long i = 0; i < I; i++) {
                    float v = a[i] + row[i] * b[i];
                    v = row[i] <= 0 ? 0 : v;
                    to[i] = v, sum[i] += v;
                }
        }
    }
}

/* The categorical target, the critics' loss and its gradient. ``logits`` (T, 2B, N): a critic's rows at (s, a), then at (s', a').
 * ``scalars``: loss, mean of Q, of its target, entropy, clipped share. ``work`` (4, N). */
void critic_head(const float *restrict logits, long T, long B, long N, const float *restrict reward,
                 const float *restrict discount, const float *restrict cost, const float *log_alpha, const float *restrict atom,
                 float low, float high, float entropy_weight, float *restrict work, float *restrict grad, float *restrict scalars) {
    float *restrict p = work, *restrict e = work + N, *restrict place = work + 2 * N, *restrict target = work + 3 * N;
    float slack = 0.01f * (atom[1] - atom[0]), per_unit = (float)((N - 1) / ((double)high - low));
    float alpha = expf(*log_alpha);
    double loss = 0, q = 0, q_target = 0, negative = 0, clipped = 0;
    for (long b = 0; b < B; b++) {
        memset(p, 0, N * sizeof(float));
        for (long t = 0; t < T; t++) {
            const float *row = logits + (t * 2 * B + B + b) * N;
            float most = max_of(row, N);
            for (long j = 0; j < N; j++) e[j] = exp_(row[j] - most);
            float share = 1 / (sum_of(e, N) * T);
            for (long j = 0; j < N; j++) p[j] += e[j] * share;
        }
        float outside = 0, paid = alpha * cost[b];
        for (long j = 0; j < N; j++) {
            float y = reward[b] + discount[b] * (atom[j] - paid);
            e[j] = y < atom[0] - slack || y > atom[N - 1] + slack ? p[j] : 0;
            place[j] = clip((y - low) * per_unit, 0, N - 1);
        }
        outside = sum_of(e, N);
        memset(target, 0, N * sizeof(float));
        for (long j = 0; j < N; j++) {
            long index = place[j] >= 0 ? (long)place[j] : 0; /* a NaN place has no atom: its NaN mass goes to the first */
            index = index > N - 2 ? N - 2 : index;
            float upper = p[j] * (place[j] - index);
            target[index] += p[j] - upper;
            target[index + 1] += upper;
        }
        clipped += outside;
        q_target += dot_of(target, atom, N);
        for (long t = 0; t < T; t++) {
            const float *row = logits + (t * 2 * B + b) * N;
            float *restrict g = grad + (t * B + b) * N;
            float most = max_of(row, N);
            for (long j = 0; j < N; j++) p[j] = exp_(row[j] - most);
            float sum = sum_of(p, N), share = 1 / sum, log_sum = most + logf(sum);
            for (long j = 0; j < N; j++) {
                float log_p = row[j] - log_sum;
                p[j] *= share;
                e[j] = p[j] * log_p;
                place[j] = (entropy_weight * p[j] - target[j]) * log_p;
                g[j] = (entropy_weight * (p[j] + e[j]) - target[j]) / B;
            }
            float mean = sum_of(g, N);
            for (long j = 0; j < N; j++) g[j] -= p[j] * mean;
            loss += sum_of(place, N);
            q += dot_of(p, atom, N);
            negative += sum_of(e, N);
        }
    }
    scalars[0] = loss / B, scalars[1] = q / (T * B), scalars[2] = q_target / B, scalars[3] = -negative / (T * B);
    scalars[4] = clipped / B;
}

/* The soft bridge (algorithms/softgac/bridge.py): K steps of R rows, O and A numbers each, width H. Its products are too small for
 * a library's: they are made here, ROWS rows at a time or a row alone, and its rounding does not depend on the others. */
typedef struct {
    long R, K, O, A, H;
    int layer_norm;
    float floor; /* of a variance in the energy */
    float *scale_in, *bias_in, *weight, *bias, *scale_out, *bias_out, *heads, *heads_bias;
} bridge;

/* Of ROWS rows at one step; slope: d sigma / d raw. */
typedef struct {
    float *x, *in, *e, *centred, *out, *heads, *tanh, *u, *sigma, *slope, inverse_in[ROWS], inverse_out[ROWS];
} block;

#define NORM_EPS 1e-6f

/* bias + x (n,) w (n,), w in strides of m. In line, two callers might round it in two ways. */
__attribute__((noipa)) static float column(const float *x, const float *w, float bias, long n, long m) {
    for (long i = 0; i < n; i++) bias += x[i] * w[i * m];
    return bias;
}

/* ``units`` times ``width`` columns of ``linear`` from j on, for rows of x, and j moves on: all sums stay in registers. */
#define COLUMNS(type, width, units, rows)                                                                       \
    for (; j + units * width <= m; j += units * width) {                                                        \
        type sum[units][rows] = {0};                                                                            \
        UNROLLED for (int u = 0; u < units; u++)                                                                \
            UNROLLED for (int r = 0; r < rows; r++) if (bias) sum[u][r] = *(const type *)(bias + j + u * width); \
        for (long i = 0; i < n; i++)                                                                            \
            UNROLLED for (int u = 0; u < units; u++) {                                                          \
                type column = *(const type *)(w + i * m + j + u * width);                                       \
                UNROLLED for (int r = 0; r < rows; r++) sum[u][r] += x[r * n + i] * column;                     \
            }                                                                                                   \
        UNROLLED for (int u = 0; u < units; u++)                                                                \
            UNROLLED for (int r = 0; r < rows; r++) *(type *)(out + r * m + j + u * width) = sum[u][r];          \
    }
#define UNROLLED _Pragma("GCC unroll 8")

/* out (ROWS, m) = bias + x (ROWS, n) w (n, m); no bias where it is NULL. */
static void linear(const float *restrict x, const float *restrict w, const float *restrict bias, float *restrict out, long n,
                   long m) {
    long j = 0;
    COLUMNS(wide, WIDE, 2 * LANES / WIDE, ROWS)
    COLUMNS(lanes, LANES, 1, ROWS)
    COLUMNS(few, 4, 1, ROWS)
    if (j < m && m > 4) {
        j = m - 4; /* some of the last columns once more: they get the same */
        COLUMNS(few, 4, 1, ROWS)
    }
    for (; j < m; j++)
        for (long r = 0; r < ROWS; r++) out[r * m + j] = column(x + r * n, w + j, bias ? bias[j] : 0, n, m);
}

/* ``linear`` of one row, with the same bits. */
static void linear_one(const float *restrict x, const float *restrict w, const float *restrict bias, float *restrict out, long n,
                       long m) {
    long j = 0;
    COLUMNS(wide, WIDE, 8 * LANES / WIDE, 1)
    COLUMNS(wide, WIDE, 1, 1)
    COLUMNS(lanes, LANES, 1, 1)
    COLUMNS(few, 4, 1, 1)
    if (j < m && m > 4) {
        j = m - 4;
        COLUMNS(few, 4, 1, 1)
    }
    for (; j < m; j++) out[j] = column(x, w + j, bias[j], n, m);
}

/* Columns j to j + width of ``outer``, and j moves on: the rows of g stay in registers. */
#define PRODUCTS(type, width)                                                                                    \
    for (; j + width <= m; j += width) {                                                                         \
        type a = *(const type *)(g + j), b = *(const type *)(g + m + j);                                         \
        type c = *(const type *)(g + 2 * m + j), d = *(const type *)(g + 3 * m + j);                             \
        *(type *)(total + j) += (a + b) + (c + d);                                                               \
        for (long i = 0; i < n; i++)                                                                             \
            *(type *)(w + i * m + j) += (x[i] * a + x[n + i] * b) + (x[2 * n + i] * c + x[3 * n + i] * d);       \
    }

/* w (n, m) += x' g and total (m,) += sums of g, over ROWS rows. */
static void outer(const float *restrict x, const float *restrict g, float *restrict w, float *restrict total, long n, long m) {
    long j = 0;
    PRODUCTS(wide, WIDE)
    PRODUCTS(lanes, LANES)
    PRODUCTS(few, 4)
    PRODUCTS(one, 1)
}

/* y = scale centred + bias of one row, centred = (x - mean) inverse; returns inverse. ``centred`` may be x. */
static float layer_norm(const float *x, const float *restrict scale, const float *restrict bias, float *centred,
                        float *restrict y, long n) {
    float mean = sum_of(x, n) / n;
    for (long i = 0; i < n; i++) centred[i] = x[i] - mean;
    float inverse = 1 / sqrtf(dot_of(centred, centred, n) / n + NORM_EPS);
    for (long i = 0; i < n; i++) centred[i] *= inverse, y[i] = centred[i] * scale[i] + bias[i];
    return inverse;
}

/* The gradient by x of ``layer_norm``, in place of that by y, and scale's and bias's added to theirs. */
static void layer_norm_grad(float *restrict g, const float *restrict centred, const float *restrict scale, float inverse,
                            float *restrict scale_grad, float *restrict bias_grad, long n) {
    for (long i = 0; i < n; i++) scale_grad[i] += g[i] * centred[i], bias_grad[i] += g[i], g[i] *= scale[i];
    float mean = sum_of(g, n) / n, along = dot_of(g, centred, n) / n;
    for (long i = 0; i < n; i++) g[i] = inverse * (g[i] - mean - centred[i] * along);
}

/* One step's network on ``rows`` rows, 1 or ROWS, from ``first``; those beyond the last repeat it. */
static void bridge_step(const bridge *p, long k, const float *obs, const float *z, long first, long rows, block *s) {
    long I = p->O + p->A, H = p->H, A = p->A;
    for (long r = 0; r < rows; r++) {
        long row = first + r < p->R ? first + r : p->R - 1;
        float *x = s->x + r * I, *in = s->in + r * I;
        memcpy(x, obs + row * p->O, p->O * sizeof(float));
        memcpy(x + p->O, z + row * A, A * sizeof(float));
        memcpy(s->tanh + r * A, z + row * A, A * sizeof(float)); /* its tanh is taken below */
        const float *scale = p->scale_in + k * I, *bias = p->bias_in + k * I;
        if (p->layer_norm) s->inverse_in[r] = layer_norm(x, scale, bias, x, in, I);
        else
            for (long i = 0; i < I; i++) in[i] = x[i] * scale[i] + bias[i];
    }
    (rows == 1 ? linear_one : linear)(s->in, p->weight + k * I * H, p->bias + k * H, s->e, I, H);
    for (long j = 0; j < rows * H; j++) {
        float x = s->e[j], below = exp_(x) - 1;
        s->e[j] = x > 0 ? x : below; /* elu */
    }
    for (long r = 0; r < rows; r++)
        s->inverse_out[r] =
            layer_norm(s->e + r * H, p->scale_out + k * H, p->bias_out + k * H, s->centred + r * H, s->out + r * H, H);
    (rows == 1 ? linear_one : linear)(s->out, p->heads + k * H * 2 * A, p->heads_bias + k * 2 * A, s->heads, H, 2 * A);
    for (long r = 0; r < rows; r++) {
        memcpy(s->u + r * A, s->heads + r * 2 * A, A * sizeof(float));
        memcpy(s->sigma + r * A, s->heads + r * 2 * A + A, A * sizeof(float));
    }
    for (long i = 0; i < rows * A; i++) {
        float raw = s->sigma[i], y = exp_(raw < 0 ? raw : -raw), share = 1 / (1 + y);
        s->sigma[i] = (raw < 0 ? 0 : raw) + log_ratio(y / (2 + y)); /* softplus */
        s->slope[i] = raw < 0 ? y * share : share;
        s->tanh[i] = tanh_(s->tanh[i]);
    }
}

static float *carve(const bridge *p, block *s, float *work) {
    long I = p->O + p->A, A = p->A, sizes[] = {I, I, p->H, p->H, p->H, 2 * A, A, A, A, A};
    float **parts[] = {&s->x, &s->in, &s->e, &s->centred, &s->out, &s->heads, &s->tanh, &s->u, &s->sigma, &s->slope};
    for (int i = 0; i < 10; i++) *parts[i] = work, work += ROWS * sizes[i];
    return work;
}

/* ``z`` (K+1, R, A): the path; ``action`` (R, A); ``cost`` (R,): its control energy; ``sigma``: the mean of all. */
void bridge_forward(bridge p, const float *obs, const float *noise, float *work, float *z, float *action, float *cost,
                    float *sigma) {
    block s;
    carve(&p, &s, work);
    float h = 1.0f / p.K, kick = sqrtf(2 * h);
    long rows = p.R == 1 ? 1 : ROWS;
    double total = 0;
    for (long r = 0; r < p.R; r++) {
        memcpy(z + r * p.A, noise + r * (p.K + 1) * p.A, p.A * sizeof(float));
        cost[r] = -0.5f * p.K * p.A;
    }
    for (long k = 0; k < p.K; k++)
        for (long first = 0; first < p.R; first += rows) {
            const float *now = z + k * p.R * p.A;
            bridge_step(&p, k, obs, now, first, rows, &s);
            for (long i = 0; i < rows * p.A; i++) {
                float drift = s.u[i] + 2 * s.tanh[i], variance = s.sigma[i] * s.sigma[i] + p.floor;
                s.tanh[i] = 0.5f * (variance + 0.5f * h * drift * drift - log_(variance)); /* what it costs */
            }
            for (long r = 0; r < rows && first + r < p.R; r++) {
                long at = (first + r) * p.A;
                const float *eps = noise + ((first + r) * (p.K + 1) + k + 1) * p.A;
                for (long a = 0; a < p.A; a++) {
                    long i = r * p.A + a;
                    z[(k + 1) * p.R * p.A + at + a] = now[at + a] + h * s.u[i] + s.sigma[i] * kick * eps[a];
                    cost[first + r] += s.tanh[i];
                    total += s.sigma[i];
                }
            }
        }
    for (long i = 0; i < p.R * p.A; i++) action[i] = tanh_(z[p.K * p.R * p.A + i]);
    *sigma = total / (p.K * p.R * p.A);
}

/* Adds the parameters' gradient to ``g``, from that of ``action`` (R, A) and ``cost`` (R,); steps are computed again from ``z``. */
void bridge_backward(bridge p, bridge g, const float *obs, const float *noise, float *work, const float *z, const float *action,
                     const float *action_grad, const float *cost_grad) {
    block s;
    long I = p.O + p.A, H = p.H, A = p.A;
    float *grad_heads = carve(&p, &s, work), *grad_h = grad_heads + ROWS * 2 * A, *grad_x = grad_h + ROWS * H;
    float *weight_t = grad_x + ROWS * I, *heads_t = weight_t + I * H, *gz = heads_t + 2 * A * H; /* (R, A) */
    float h = 1.0f / p.K, kick = sqrtf(2 * h);
    for (long i = 0; i < p.R * A; i++) gz[i] = action_grad[i] * (1 - action[i] * action[i]);
    for (long k = p.K - 1; k >= 0; k--) {
        for (long j = 0; j < H; j++) {
            for (long i = 0; i < I; i++) weight_t[j * I + i] = p.weight[(k * I + i) * H + j];
            for (long a = 0; a < 2 * A; a++) heads_t[a * H + j] = p.heads[(k * H + j) * 2 * A + a];
        }
        for (long first = 0; first < p.R; first += ROWS) {
            long rows = p.R - first < ROWS ? p.R - first : ROWS;
            bridge_step(&p, k, obs, z + k * p.R * A, first, ROWS, &s);
            memset(grad_heads, 0, ROWS * 2 * A * sizeof(float)); /* rows beyond the last give none */
            for (long r = 0; r < rows; r++)
                for (long a = 0; a < A; a++) {
                    long at = (first + r) * A + a;
                    float u = s.u[r * A + a], scale = s.sigma[r * A + a], tanh_z = s.tanh[r * A + a];
                    float paid = cost_grad[first + r], eps = noise[((first + r) * (p.K + 1) + k + 1) * A + a];
                    float drift = h * (u + 2 * tanh_z), by_scale = scale - scale / (scale * scale + p.floor);
                    grad_heads[r * 2 * A + a] = h * gz[at] + 0.5f * paid * drift;
                    grad_heads[r * 2 * A + A + a] = (gz[at] * kick * eps + paid * by_scale) * s.slope[r * A + a];
                    gz[at] += paid * drift * (1 - tanh_z * tanh_z);
                }
            outer(s.out, grad_heads, g.heads + k * H * 2 * A, g.heads_bias + k * 2 * A, H, 2 * A);
            linear(grad_heads, heads_t, NULL, grad_h, 2 * A, H);
            for (long r = 0; r < ROWS; r++)
                layer_norm_grad(grad_h + r * H, s.centred + r * H, p.scale_out + k * H, s.inverse_out[r], g.scale_out + k * H,
                                g.bias_out + k * H, H);
            for (long j = 0; j < ROWS * H; j++) grad_h[j] *= s.e[j] > 0 ? 1 : s.e[j] + 1;
            outer(s.in, grad_h, g.weight + k * I * H, g.bias + k * H, I, H);
            linear(grad_h, weight_t, NULL, grad_x, H, I);
            for (long r = 0; r < rows; r++) {
                float *gx = grad_x + r * I, *scale_grad = g.scale_in + k * I, *bias_grad = g.bias_in + k * I;
                const float *x = s.x + r * I, *scale = p.scale_in + k * I;
                if (p.layer_norm) layer_norm_grad(gx, x, scale, s.inverse_in[r], scale_grad, bias_grad, I);
                else
                    for (long i = 0; i < I; i++) scale_grad[i] += gx[i] * x[i], bias_grad[i] += gx[i], gx[i] *= scale[i];
                for (long a = 0; a < A; a++) gz[(first + r) * A + a] += gx[p.O + a];
            }
        }
    }
}
