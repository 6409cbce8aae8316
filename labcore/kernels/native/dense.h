/* Products of a few tokens with an fp32 matrix, row-major (rows, columns) as torch.nn.Linear keeps it. */
#ifndef LABCORE_DENSE_H
#define LABCORE_DENSE_H

#include <stddef.h>
#include <string.h>

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif
#define AT_ONCE 8 /* rows: as many sums as hide how long an addition takes */
#define LINE 16   /* floats that come from memory together */

typedef float vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float))));

typedef struct { int begin, end; } range_t;

static float sum_of(vector v) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += v[i];
    return sum;
}

/* Lanes of two vectors, by number: those of the second begin with WIDTH. */
#ifdef __clang__
#define SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
typedef int lanes __attribute__((vector_size(WIDTH * sizeof(int))));
#define SHUFFLE(A, B, ...) __builtin_shuffle(A, B, (lanes){__VA_ARGS__})
#endif

/* The sums of four vectors, in fewer additions than each by itself: neighbours of two vectors at once, then pairs. */
typedef float quarter __attribute__((vector_size(4 * sizeof(float)), aligned(sizeof(float))));
static inline quarter sums_of(vector a, vector b, vector c, vector d) {
#if WIDTH == 16
#define NEIGHBOURS(X, AT) SHUFFLE(X[0], X[1], AT, 16 + AT, 2 + AT, 18 + AT, 4 + AT, 20 + AT, 6 + AT, 22 + AT, \
                                  8 + AT, 24 + AT, 10 + AT, 26 + AT, 12 + AT, 28 + AT, 14 + AT, 30 + AT)
#define PAIRS(X, AT) SHUFFLE(X[0], X[1], AT, 1 + AT, 16 + AT, 17 + AT, 4 + AT, 5 + AT, 20 + AT, 21 + AT, \
                             8 + AT, 9 + AT, 24 + AT, 25 + AT, 12 + AT, 13 + AT, 28 + AT, 29 + AT)
#else
#define NEIGHBOURS(X, AT) SHUFFLE(X[0], X[1], AT, 8 + AT, 2 + AT, 10 + AT, 4 + AT, 12 + AT, 6 + AT, 14 + AT)
#define PAIRS(X, AT) SHUFFLE(X[0], X[1], AT, 1 + AT, 8 + AT, 9 + AT, 4 + AT, 5 + AT, 12 + AT, 13 + AT)
#endif
    vector first[2] = {a, b}, second[2] = {c, d};
    vector both[2] = {NEIGHBOURS(first, 0) + NEIGHBOURS(first, 1), NEIGHBOURS(second, 0) + NEIGHBOURS(second, 1)};
    vector quads = PAIRS(both, 0) + PAIRS(both, 2); /* a, b, c, d of four lanes each, and so on */
    quarter parts[WIDTH / 4];
    memcpy(parts, &quads, sizeof parts);
    for (int i = 1; i < WIDTH / 4; i++) parts[0] += parts[i];
    return parts[0];
}

/* Loaded once and kept: a compiler that loads anew for every product waits for loads, not for products. */
static inline vector kept(vector v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__AVX__)
    __asm__("" : "+x"(v));
#endif
    return v;
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

/* Tokens of a group: as many as a vector holds, of the last ones up to half as many as they are. */
#define FEW (WIDTH / 2)
static inline int group_of(int tokens) { return tokens > FEW ? WIDTH : tokens; }

/* x (tokens, columns) -> what products read: groups of many tokens as to[column][token], so that the same column of all
 * is one vector; few tokens as they are. */
static void beside(const float *x, float *to, int columns, int tokens) {
    for (int first = 0, group; first < tokens; first += group, to += (size_t)group * columns) {
        group = group_of(tokens - first);
        const float *from = x + (size_t)first * columns;
        if (group <= FEW) memcpy(to, from, (size_t)group * columns * sizeof(float));
        else
            for (int t = 0; t < group; t++)
                for (int c = 0; c < columns; c++)
                    to[(size_t)c * group + t] = first + t < tokens ? from[(size_t)t * columns + c] : 0.0f;
    }
}

#define SPECIALISED static inline __attribute__((always_inline)) void

/* The next rows are fetched meanwhile: the processor cannot guess that several streams go on where the last one ended. */
SPECIALISED fetch_rows(const float *rows, int columns, int count) {
    _Pragma("GCC unroll 8") for (int r = 0; r < count; r++) __builtin_prefetch(rows + (size_t)(count + r) * columns);
}

/* `count` rows with many tokens (both constants where it is called). Each weight is spread over a vector and multiplied
 * with a number of every token, so nothing is ever summed across a vector. out[t * stride + r]. */
SPECIALISED spread(const float *restrict rows, const float *restrict x, float *restrict out, int stride, int columns,
                   int tokens, int count) {
    vector sums[AT_ONCE] = {0};
    int i = 0;
    for (; i + LINE <= columns; i += LINE) {
        fetch_rows(rows + i, columns, count);
        for (int c = i; c < i + LINE; c++)
            _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)
                sums[r] += rows[(size_t)r * columns + c] * *(const vector *)(x + (size_t)c * WIDTH);
    }
    for (; i < columns; i++)
        _Pragma("GCC unroll 8") for (int r = 0; r < count; r++)
            sums[r] += rows[(size_t)r * columns + i] * *(const vector *)(x + (size_t)i * WIDTH);
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < count; r++) out[(size_t)t * stride + r] = sums[r][t];
}

/* `count` rows with few tokens (constants): what is loaded of a row serves all tokens, and of a token all rows. */
SPECIALISED along(const float *restrict rows, const float *restrict x, float *restrict out, int stride, int columns,
                  int tokens, int count) {
    vector sums[FEW * 4] = {0};
    int i = 0;
    for (; i + WIDTH <= columns; i += WIDTH) {
        fetch_rows(rows + i, columns, count);
        vector numbers[FEW];
        _Pragma("GCC unroll 8") for (int t = 0; t < tokens; t++)
            numbers[t] = kept(*(const vector *)(x + (size_t)t * columns + i));
        _Pragma("GCC unroll 4") for (int r = 0; r < count; r++) {
            vector weights = kept(*(const vector *)(rows + (size_t)r * columns + i));
            _Pragma("GCC unroll 8") for (int t = 0; t < tokens; t++) sums[t * 4 + r] += weights * numbers[t];
        }
    }
    _Pragma("GCC unroll 8") for (int t = 0; t < tokens; t++) {
        const vector *of = sums + t * 4;
        quarter found = sums_of(of[0], of[1], of[2], of[3]); /* those of no row are zeros */
        for (int r = 0; r < count; r++) {
            float rest = i < columns ? dot(rows + (size_t)r * columns + i, x + (size_t)t * columns + i, columns - i) : 0;
            out[(size_t)t * stride + r] = found[r] + rest;
        }
    }
}

/* Eight rows or one, as many at once as leave their sums in registers. */
SPECIALISED along_some(const float *rows, const float *x, float *out, int stride, int columns, int tokens, int count) {
    int together = count == 1 ? 1 : tokens * 4 <= 28 * WIDTH / 16 ? 4 : 2;
    for (int r = 0; r < count; r += together)
        along(rows + (size_t)r * columns, x, out + r, stride, columns, tokens, together);
}

/* Some rows with all tokens, x as `beside` lays them. */
SPECIALISED rows_with_all(const float *rows, const float *x, float *out, int stride, int columns, int tokens, int count) {
    for (int first = 0, group; first < tokens; first += group, x += (size_t)group * columns, out += (size_t)group * stride) {
        group = group_of(tokens - first);
        if (group > FEW)
            spread(rows, x, out, stride, columns, tokens - first < group ? tokens - first : group, count);
#define FEW_TOKENS(N) else if (N <= FEW && group == N) along_some(rows, x, out, stride, columns, N, count);
        FEW_TOKENS(8) FEW_TOKENS(7) FEW_TOKENS(6) FEW_TOKENS(5) FEW_TOKENS(4) FEW_TOKENS(3) FEW_TOKENS(2) FEW_TOKENS(1)
#undef FEW_TOKENS
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
