/* One Transformer layer for one token in fp32, in two calls: what comes before attention and what comes after.
 *
 * At batch 1 a layer is a few matrix-vector products, bound by reading the weights once; PyTorch's operators
 * around them (norm, rotation, activation, residual) cost more in launches than in arithmetic. Here each half
 * of a layer is one parallel region: every thread reads its share of the rows, a barrier stands where the next
 * product needs all of the last. Attention itself stays with the cache, between the two calls.
 *
 * Matrices are row-major (rows, columns) as torch.nn.Linear keeps them. Missing biases and norms are NULL.
 */
#include <math.h>
#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_num_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

typedef struct {
    int hidden, heads, kv_heads, head_dim, intermediate;
    float eps;
    const float *input_norm, *qkv, *qkv_bias, *q_norm, *k_norm;
    const float *o, *o_bias, *post_norm, *gate_up, *gate_up_bias, *down, *down_bias;
} layer_t;

typedef struct { int begin, end; } range_t;

/* This thread's share of n rows, in multiples of four so that rows can be read four at a time. */
static range_t share(int n) {
    int threads = omp_get_num_threads(), me = omp_get_thread_num();
    int blocks = (n + 3) / 4;
    int begin = 4 * (int)((long)blocks * me / threads), end = 4 * (int)((long)blocks * (me + 1) / threads);
    return (range_t){begin, end < n ? end : n};
}

static float dot(const float *restrict a, const float *restrict b, int n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* out[r] = matrix[r] . x + bias[r] for r in rows; four rows at once keep four streams of memory in flight. */
static void product(const float *restrict matrix, const float *bias, const float *restrict x, float *restrict out,
                    range_t rows, int columns) {
    int r = rows.begin;
    for (; r + 4 <= rows.end; r += 4) {
        const float *a = matrix + (size_t)r * columns, *b = a + columns, *c = b + columns, *d = c + columns;
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int i = 0; i < columns; i++) {
            s0 += a[i] * x[i];
            s1 += b[i] * x[i];
            s2 += c[i] * x[i];
            s3 += d[i] * x[i];
        }
        out[r] = s0, out[r + 1] = s1, out[r + 2] = s2, out[r + 3] = s3;
    }
    for (; r < rows.end; r++) out[r] = dot(matrix + (size_t)r * columns, x, columns);
    if (bias)
        for (r = rows.begin; r < rows.end; r++) out[r] += bias[r];
}

/* Zhang & Sennrich 2019. out may be x. */
static void rms_norm(const float *x, const float *weight, float eps, float *out, int n) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / n + eps);
#pragma omp simd
    for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

/* Su et al. 2021; sin carries the minus sign of its first half, as labcore's Rope makes it. */
static void rotate(float *head, const float *cos, const float *sin, int d) {
    int half = d / 2;
    for (int i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cos[i] + second * sin[i];
        head[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

/* x (hidden) -> qkv (heads + 2 kv_heads, head_dim): normalised, projected, queries and keys rotated.
 * scratch: hidden floats for each thread. */
void labcore_before_attention(const layer_t *layer, const float *x, const float *cos, const float *sin, float *qkv,
                              float *scratch, int threads) {
    const layer_t l = *layer;
    int rows = (l.heads + 2 * l.kv_heads) * l.head_dim, turning = l.heads + l.kv_heads;
#pragma omp parallel num_threads(threads)
    {
        float *normed = scratch + (size_t)omp_get_thread_num() * l.hidden; /* cheaper than sharing it */
        rms_norm(x, l.input_norm, l.eps, normed, l.hidden);
        product(l.qkv, l.qkv_bias, normed, qkv, share(rows), l.hidden);
#pragma omp barrier
#pragma omp for schedule(static) nowait
        for (int head = 0; head < turning; head++) {
            float *at = qkv + (size_t)head * l.head_dim;
            const float *norm = head < l.heads ? l.q_norm : l.k_norm;
            if (norm) rms_norm(at, norm, l.eps, at, l.head_dim);
            rotate(at, cos, sin, l.head_dim);
        }
    }
}

/* x += o(mixed); x += down(silu(gate) * up) of the normalised x. mixed: (heads, head_dim).
 * scratch: (hidden for each thread) + hidden + 2 intermediate floats. */
void labcore_after_attention(const layer_t *layer, const float *mixed, float *x, float *scratch, int threads) {
    const layer_t l = *layer;
    float *update = scratch + (size_t)threads * l.hidden, *gate_up = update + l.hidden;
    float *gate = gate_up, *up = gate_up + l.intermediate;
#pragma omp parallel num_threads(threads)
    {
        float *normed = scratch + (size_t)omp_get_thread_num() * l.hidden;
        range_t mine = share(l.hidden), inner = share(l.intermediate);
        product(l.o, l.o_bias, mixed, update, mine, l.heads * l.head_dim);
        for (int i = mine.begin; i < mine.end; i++) x[i] += update[i];
#pragma omp barrier
        rms_norm(x, l.post_norm, l.eps, normed, l.hidden);
        product(l.gate_up, l.gate_up_bias, normed, gate, inner, l.hidden);
        product(l.gate_up + (size_t)l.intermediate * l.hidden,
                l.gate_up_bias ? l.gate_up_bias + l.intermediate : NULL, normed, up, inner, l.hidden);
        for (int i = inner.begin; i < inner.end; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
#pragma omp barrier
        product(l.down, l.down_bias, gate, update, mine, l.intermediate);
        for (int i = mine.begin; i < mine.end; i++) x[i] += update[i];
    }
}
