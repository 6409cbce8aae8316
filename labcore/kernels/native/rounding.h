/* Vectors in 8 bits, as products with codes want them: some tokens side by side, a tile.
 *
 * A vector's numbers share a scale in groups of `x_group`. A group in which one number dwarfs the others would leave
 * them next to nothing of 8 bits: it takes 16, in two halves, and is multiplied twice. */
#ifndef LABCORE_ROUNDING_H
#define LABCORE_ROUNDING_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* How many times the mean magnitude of its group the largest may be before 8 bits are too few: beyond, the others
 * would be off by more than 4 % of that mean. Normal numbers reach 4. A small group with some outliers has a large
 * mean, so there the limit is lower: a quarter of the group. */
#define CREST 16.0f

/* Tokens of a tile: 12, whose sums fill the registers, then 8 or 4 of what is left, then single ones. */
#define WIDE 12

/* `width` tokens. codes (columns / 4, width, 4): four numbers of each token, so that the next product's lie next to
 * the last's. In a fine group `lows` (width, columns) are lower halves, worth 1/256 of a code each. */
typedef struct {
    int width;
    int8_t *codes, *lows;
    float *scales;                  /* this and the next three: (groups, width) */
    int32_t *sums, *low_sums, *fine;
    int32_t *any; /* (width) whether the token has a fine group */
} qtile_t;

/* Bytes of a token in a tile, in multiples of 64. */
static inline size_t qvector_bytes(int columns) {
    return ((size_t)columns + 63) / 64 * 128 + ((size_t)columns / 16 * 16 + 4 + 63) / 64 * 64;
}

/* Tokens of the tile that `token` of `tokens` lies in; `first`: the first of them. */
static inline int tile_of(int tokens, int token, int *first) {
    int whole = tokens / WIDE * WIDE, rest = tokens - whole, width = rest >= 8 ? 8 : rest >= 4 ? 4 : 1;
    if (token < whole) return *first = token / WIDE * WIDE, WIDE;
    if (token < whole + width) return *first = whole, width;
    return *first = token, 1;
}

/* The tile in memory that holds all tokens, tile after tile. */
static inline qtile_t tile_at(void *memory, int columns, int first, int width) {
    size_t padded = ((size_t)columns + 63) / 64 * 64 * width, groups = (size_t)columns / 16 * width; /* at most */
    int8_t *codes = (int8_t *)memory + first * qvector_bytes(columns);
    float *scales = (float *)(codes + 2 * padded);
    int32_t *sums = (int32_t *)(scales + groups);
    return (qtile_t){width, codes, codes + padded, scales, sums, sums + groups, sums + 2 * groups, sums + 3 * groups};
}

static inline int32_t nearest(float x) { return (int32_t)(x + (x < 0 ? -0.5f : 0.5f)); }

/* n numbers in 8 bits; returns the sum of their codes. */
static inline int32_t round_group(const float *restrict x, float inverse, int n, int8_t *restrict codes) {
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < n; j++) {
        int32_t q = nearest(x[j] * inverse);
        codes[j] = (int8_t)q;
        sum += q;
    }
    return sum;
}

/* n numbers in 16 bits: 256 times the upper half and the lower. */
static inline int32_t round_finely(const float *restrict x, float inverse, int n, int8_t *restrict codes,
                                   int8_t *restrict lows, int32_t *low_sum) {
    int32_t upper = 0, lower = 0;
#pragma omp simd reduction(+ : upper, lower)
    for (int j = 0; j < n; j++) {
        int32_t both = nearest(x[j] * inverse * 256), code = (both + 128) >> 8;
        codes[j] = (int8_t)code;
        lows[j] = (int8_t)(both - 256 * code);
        upper += code;
        lower += both - 256 * code;
    }
    *low_sum = lower;
    return upper;
}

/* Bytes that rounding a vector works in. */
static inline size_t rounding_bytes(int columns) { return ((size_t)columns * 5 + 63) / 64 * 64; }

/* Token `t` of a tile: each group's largest magnitude becomes 127. x (columns) is first permuted by `order` and
 * multiplied by `smooth`, where they are not NULL. fine: groups may take 16 bits. */
static inline void round_vector(const float *restrict x, const int *order, const float *smooth, int columns, int group,
                                int fine, void *work, qtile_t to, int t) {
    float *row = work;
    int8_t *codes = (int8_t *)(row + columns);
    const float *from = x;
    if (order || smooth) {
        for (int i = 0; i < columns; i++) row[i] = x[order ? order[i] : i] * (smooth ? smooth[i] : 1.0f);
        from = row;
    }
    float crest = group < 4 * CREST ? group / 4.0f : CREST;
    to.any[t] = 0;
    for (int i = 0, at = t; i < columns; i += group, at += to.width) {
        float largest = 0, total = 0;
#pragma omp simd reduction(max : largest) reduction(+ : total)
        for (int j = i; j < i + group; j++) {
            float magnitude = fabsf(from[j]);
            largest = magnitude > largest ? magnitude : largest;
            total += magnitude;
        }
        float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        to.scales[at] = largest / 127.0f;
        to.fine[at] = fine && largest * group > crest * total;
        to.any[t] |= to.fine[at];
        to.sums[at] = to.fine[at] ? round_finely(from + i, inverse, group, codes + i, to.lows + (size_t)t * columns + i, to.low_sums + at)
                                  : round_group(from + i, inverse, group, codes + i);
    }
    for (int i = 0; i < columns; i += 4) memcpy(to.codes + (size_t)i * to.width + 4 * t, codes + i, 4);
}

#endif
