/* Products of a few tokens with an fp32 matrix, row-major (rows, columns) as torch.nn.Linear keeps it. */
#ifndef LABCORE_DENSE_H
#define LABCORE_DENSE_H

#include <stddef.h>

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif
#define AT_ONCE 8 /* rows: as many sums as hide how long an addition takes */
#define LINE 16   /* floats that come from memory together */

typedef float vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float))));
typedef float eight __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float))));

typedef struct { int begin, end; } range_t;

static float sum_of(vector v) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += v[i];
    return sum;
}

static float dot(const float *restrict a, const float *restrict b, int n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* One row with one vector. A matrix read row after row is a single stream, which memory serves fastest; four
 * sums keep the additions from waiting for one another. */
static float streamed_dot(const float *restrict row, const float *restrict x, int columns) {
    vector sums[4] = {0};
    int i = 0;
    for (; i + 4 * WIDTH <= columns; i += 4 * WIDTH)
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) sums[s] += *(const vector *)(row + i + s * WIDTH) * *(const vector *)(x + i + s * WIDTH);
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) + dot(row + i, x + i, columns - i);
}

/* Tokens lie side by side in groups: as many as the widest vector holds, the last ones in one of eight where
 * those suffice. */
static inline int lanes_of(int tokens) { return WIDTH > 8 && tokens > 8 ? WIDTH : 8; }

/* x (tokens, columns) -> to[group][column][lane]: the same column of all tokens of a group is one vector. */
static void beside(const float *x, float *to, int columns, int tokens) {
    for (int first = 0, lanes; first < tokens; first += lanes, to += (size_t)lanes * columns) {
        lanes = lanes_of(tokens - first);
        for (int t = 0; t < lanes; t++)
            for (int c = 0; c < columns; c++)
                to[(size_t)c * lanes + t] = first + t < tokens ? x[(size_t)(first + t) * columns + c] : 0.0f;
    }
}

/* `count` (a constant where it is called) rows with a group of tokens. Each weight is spread over a vector and
 * multiplied with a number of every token, so nothing is ever summed across a vector. Meanwhile the next rows are
 * fetched: the processor cannot guess that eight streams go on where the last one ended.
 * out[t * stride + r] for r in 0..count-1. */
#define SPREAD(NAME, VECTOR)                                                                                          \
    static inline __attribute__((always_inline)) void NAME(const float *restrict rows, const float *restrict x,       \
                                                           float *restrict out, int stride, int columns, int tokens,  \
                                                           int count) {                                               \
        enum { LANES = sizeof(VECTOR) / sizeof(float) };                                                              \
        VECTOR sums[AT_ONCE] = {0};                                                                                   \
        int i = 0;                                                                                                    \
        for (; i + LINE <= columns; i += LINE) {                                                                      \
            _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)                                                   \
                __builtin_prefetch(rows + (size_t)(count + r) * columns + i);                                         \
            for (int c = i; c < i + LINE; c++)                                                                        \
                _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)                                               \
                    sums[r] += rows[(size_t)r * columns + c] * *(const VECTOR *)(x + (size_t)c * LANES);              \
        }                                                                                                             \
        for (; i < columns; i++)                                                                                      \
            _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)                                                   \
                sums[r] += rows[(size_t)r * columns + i] * *(const VECTOR *)(x + (size_t)i * LANES);                  \
        for (int t = 0; t < tokens; t++)                                                                              \
            for (int r = 0; r < count; r++) out[(size_t)t * stride + r] = sums[r][t];                                 \
    }
SPREAD(spread, vector)
SPREAD(spread_eight, eight)

/* Some rows with all tokens, x as `beside` lays them. */
static inline __attribute__((always_inline)) void rows_with_all(const float *rows, const float *x, float *out, int stride,
                                                                int columns, int tokens, int count) {
    for (int first = 0, lanes; first < tokens; first += lanes, x += (size_t)lanes * columns, out += (size_t)lanes * stride) {
        lanes = lanes_of(tokens - first);
        int some = tokens - first < lanes ? tokens - first : lanes;
        if (lanes == WIDTH)
            spread(rows, x, out, stride, columns, some, count);
        else
            spread_eight(rows, x, out, stride, columns, some, count);
    }
}

/* out[t][r] = matrix[r] . x[t] + bias[r] for these rows and all tokens; out has `stride` floats a token.
 * x: of one token as it is, of several as `beside` lays them. */
static void dense_product(const float *matrix, const float *bias, const float *x, float *out, int stride, range_t rows,
                          int columns, int tokens) {
    int r = rows.begin;
    if (tokens == 1)
        for (; r < rows.end; r++) out[r] = streamed_dot(matrix + (size_t)r * columns, x, columns);
    for (; r + AT_ONCE <= rows.end; r += AT_ONCE)
        rows_with_all(matrix + (size_t)r * columns, x, out + r, stride, columns, tokens, AT_ONCE);
    for (; r < rows.end; r++) rows_with_all(matrix + (size_t)r * columns, x, out + r, stride, columns, tokens, 1);
    if (bias)
        for (int t = 0; t < tokens; t++)
            for (r = rows.begin; r < rows.end; r++) out[(size_t)t * stride + r] += bias[r];
}

#endif
