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
 * mean, so there the limit is lower: 0.3 times the group. */
#define CREST 16.0f

/* Tokens of a tile: 12, whose sums fill the registers, then 8 or 4 of what is left, then single ones. */
#define WIDE 12

/* `width` tokens. codes (columns / 4, width, 4): four numbers of each token, so that the next product's lie next to
 * the last's. In a fine group `lows` (width, columns) are lower halves, worth 1/256 of a code each. */
typedef struct {
    int width;
    int8_t *codes, *lows;
    float *scales, *sums;      /* (groups, width), as the next: of a code, and of the group's codes times that */
    int32_t *low_sums;         /* (groups, width) */
    uint8_t *fine;             /* (groups, width) */
    uint8_t *any;              /* (width) whether the token has a fine group */
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
    int32_t *low_sums = (int32_t *)(scales + 2 * groups);
    uint8_t *fine = (uint8_t *)(low_sums + groups);
    return (qtile_t){width, codes, codes + padded, scales, scales + groups, low_sums, fine, fine + groups};
}

/* Whether any of `width` flags is set; one comparison where the width is a constant. */
static inline int any_of(const uint8_t *flags, int width) {
    uint64_t eight = 0;
    uint32_t four = 0;
    if (width >= 8) memcpy(&eight, flags, 8);
    if (width == 12) memcpy(&four, flags + 8, 4);
    if (width == 4) memcpy(&four, flags, 4);
    return (eight | four | (width == 1 ? *flags : 0)) != 0;
}

/* 16 numbers at a time, said in vectors: a loop that stores bytes would take 64, and small groups one by one. */
typedef float reals_t __attribute__((vector_size(64)));
typedef int32_t sums_t __attribute__((vector_size(64)));
typedef int8_t bytes_t __attribute__((vector_size(16)));

/* x rounded to the nearest integers: 1.5 * 2^23 leaves no room for a fraction. |x| < 2^22. */
static inline sums_t nearest(reals_t x) {
    reals_t shifted = x + 12582912.0f;
    sums_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
}

static inline sums_t scaled_codes(const float *x, float by) {
    reals_t numbers;
    memcpy(&numbers, x, sizeof numbers);
    return nearest(numbers * by);
}

static inline void store_bytes(int8_t *to, sums_t from) {
    bytes_t bytes = __builtin_convertvector(from, bytes_t);
    memcpy(to, &bytes, sizeof bytes);
}

static inline int32_t sum_of_all(sums_t v) {
    int32_t sum = 0;
    for (int l = 0; l < 16; l++) sum += v[l];
    return sum;
}

/* n numbers, a multiple of 16, in 8 bits; returns the sum of their codes. */
static inline int32_t round_group(const float *x, float inverse, int n, int8_t *codes) {
    sums_t sum = {0};
    for (int j = 0; j < n; j += 16) {
        sums_t q = scaled_codes(x + j, inverse);
        store_bytes(codes + j, q);
        sum += q;
    }
    return sum_of_all(sum);
}

/* n numbers in 16 bits: 256 times the upper half and the lower. */
static inline int32_t round_finely(const float *x, float inverse, int n, int8_t *codes, int8_t *lows, int32_t *low_sum) {
    sums_t upper = {0}, lower = {0};
    for (int j = 0; j < n; j += 16) {
        sums_t both = scaled_codes(x + j, inverse * 256), code = (both + 128) >> 8, low = both - 256 * code;
        store_bytes(codes + j, code);
        store_bytes(lows + j, low);
        upper += code;
        lower += low;
    }
    *low_sum = sum_of_all(lower);
    return sum_of_all(upper);
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
    float crest = 0.3f * group < CREST ? 0.3f * group : CREST;
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
        int8_t *lows = to.lows + (size_t)t * columns + i;
        int32_t sum = to.fine[at] ? round_finely(from + i, inverse, group, codes + i, lows, to.low_sums + at)
                                  : round_group(from + i, inverse, group, codes + i);
        to.sums[at] = sum * to.scales[at];
    }
    for (int i = 0; i < columns; i += 4) memcpy(to.codes + (size_t)i * to.width + 4 * t, codes + i, 4);
}

#endif
