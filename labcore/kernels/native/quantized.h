/* A matrix of 8- or 4-bit codes times vectors that are rounded to 8 bits on the way.
 *
 * Codes lie in blocks of 16 rows: 64 bytes hold 4 columns of each (8 bits), or 8 (4 bits, the second four in the
 * high halves). One instruction (VNNI's vpdpbusd) then adds 4 products to each of 16 sums. Codes are unsigned;
 * their centre is taken off with the sum of the vector. Weights share a scale in groups of columns, or one a row;
 * a vector's numbers share one in groups of `x_group`, which divides the group. A group in which one number dwarfs
 * the others would leave them next to nothing of 8 bits: it is multiplied twice, in two halves of 16 bits. */
#ifndef LABCORE_QUANTIZED_H
#define LABCORE_QUANTIZED_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAVE_VNNI 1
#endif

#define BLOCK 16

typedef struct {
    int rows, columns, bits, group, x_group, centre, fine; /* fine: groups may take 16 bits */
    const uint8_t *codes;    /* (rows / 16, columns / 4 or 8, 64), 64-byte aligned */
    const uint16_t *scales;  /* fp16 (rows / 16, groups, 16), relative to row_scale */
    const uint16_t *offsets; /* the same, taken off once per column; NULL: none */
    const float *row_scale;  /* (rows / 16 * 16) */
    const float *smooth;     /* (columns) the vector is multiplied by; NULL: nothing */
    const int *order;        /* (columns) the vector is permuted by; NULL: not */
    const float *bias;       /* (rows), NULL: none */
} qmatrix_t;

/* How many times the mean magnitude of its group the largest may be before 8 bits are too few: beyond, the others
 * would be off by more than 4 % of that mean. Normal numbers reach 4. A small group with some outliers has a large
 * mean, so there the limit is lower: a quarter of the group. */
#define CREST 16.0f

/* A vector in 8 bits: codes, and for each of its groups a scale and the sum of its codes; in a fine group `lows` are
 * the lower halves of 16 bits, worth 1/256 of a code each. */
typedef struct {
    int8_t *codes, *lows;  /* (columns) */
    float *scales;         /* this and the next three: (groups) */
    int32_t *sums, *low_sums, *fine;
    int32_t *any; /* whether any group is fine */
} qvector_t;

/* Bytes of a rounded vector, in multiples of 64. */
static inline size_t qvector_bytes(int columns) {
    return ((size_t)columns + 63) / 64 * 128 + ((size_t)columns / 16 * 16 + 4 + 63) / 64 * 64;
}

static inline qvector_t qvector_at(void *memory, int columns) {
    size_t width = ((size_t)columns + 63) / 64 * 64;
    int groups = columns / 16; /* at most */
    int8_t *codes = memory;
    float *scales = (float *)(codes + 2 * width);
    int32_t *sums = (int32_t *)(scales + groups);
    return (qvector_t){codes, codes + width, scales, sums, sums + groups, sums + 2 * groups, sums + 3 * groups};
}

static inline int32_t nearest(float x) { return (int32_t)(x + (x < 0 ? -0.5f : 0.5f)); }

/* One group of n numbers in 16 bits: 256 times the upper half and the lower. */
static inline void round_finely(const float *restrict x, float inverse, int n, int8_t *restrict codes,
                                int8_t *restrict lows, int32_t *sum, int32_t *low_sum) {
    int32_t upper = 0, lower = 0;
#pragma omp simd reduction(+ : upper, lower)
    for (int j = 0; j < n; j++) {
        int32_t both = nearest(x[j] * inverse * 256), code = (both + 128) >> 8;
        codes[j] = (int8_t)code;
        lows[j] = (int8_t)(both - 256 * code);
        upper += code;
        lower += both - 256 * code;
    }
    *sum = upper, *low_sum = lower;
}

/* Round to 8 bits: each group's largest magnitude becomes 127. `row`: columns floats to work in. */
static inline void round_vector(const qmatrix_t *m, const float *restrict x, float *restrict row, qvector_t to) {
    const float *from = x;
    if (m->order || m->smooth) {
        for (int i = 0; i < m->columns; i++) row[i] = x[m->order ? m->order[i] : i] * (m->smooth ? m->smooth[i] : 1.0f);
        from = row;
    }
    float crest = m->x_group < 4 * CREST ? m->x_group / 4.0f : CREST;
    *to.any = 0;
    for (int g = 0, i = 0; i < m->columns; g++, i += m->x_group) {
        float largest = 0, total = 0;
        int32_t sum = 0;
#pragma omp simd reduction(max : largest) reduction(+ : total)
        for (int j = i; j < i + m->x_group; j++) {
            float magnitude = fabsf(from[j]);
            largest = magnitude > largest ? magnitude : largest;
            total += magnitude;
        }
        float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        to.scales[g] = largest / 127.0f;
        to.fine[g] = m->fine && largest * m->x_group > crest * total;
        if (to.fine[g]) {
            *to.any = 1;
            round_finely(from + i, inverse, m->x_group, to.codes + i, to.lows + i, to.sums + g, to.low_sums + g);
            continue;
        }
#pragma omp simd reduction(+ : sum)
        for (int j = i; j < i + m->x_group; j++) {
            int32_t q = nearest(from[j] * inverse);
            to.codes[j] = (int8_t)q;
            sum += q;
        }
        to.sums[g] = sum;
    }
}

#ifdef HAVE_VNNI
typedef __m512i codes_t;
typedef int32_t sums_t __attribute__((vector_size(64)));
typedef float reals_t __attribute__((vector_size(64)));
static inline sums_t all_of(int32_t v) { return (sums_t)_mm512_set1_epi32(v); }
static inline reals_t reals_of(sums_t v) { return (reals_t)_mm512_cvtepi32_ps((__m512i)v); }
static inline reals_t halves(const uint16_t *p) { return (reals_t)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static inline sums_t four(sums_t sums, codes_t codes, const int8_t *x) {
    int32_t together;
    memcpy(&together, x, 4);
    return (sums_t)_mm512_dpbusd_epi32((__m512i)sums, codes, _mm512_set1_epi32(together));
}
static inline codes_t load_codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
static inline codes_t low_codes(codes_t v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
static inline codes_t high_codes(codes_t v) { return low_codes(_mm512_srli_epi16(v, 4)); }
#else
/* The same in plain C, for processors without VNNI; compilers make vectors of it. */
typedef int32_t sums_t __attribute__((vector_size(64)));
typedef float reals_t __attribute__((vector_size(64)));
static inline sums_t all_of(int32_t v) { return (sums_t){0} + v; }
static inline reals_t reals_of(sums_t v) { return __builtin_convertvector(v, reals_t); }
static inline float half_of(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    float value;
    memcpy(&value, &rest, 4);
    value *= 5.192296858534828e33f; /* 2^112: the exponents' biases differ by as much */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}
static inline reals_t halves(const uint16_t *p) {
    reals_t v;
    for (int r = 0; r < BLOCK; r++) v[r] = half_of(p[r]);
    return v;
}
typedef struct { uint8_t at[64]; } codes_t;
static inline codes_t load_codes(const uint8_t *p) { codes_t v; memcpy(&v, p, 64); return v; }
static inline codes_t low_codes(codes_t v) { for (int i = 0; i < 64; i++) v.at[i] &= 15; return v; }
static inline codes_t high_codes(codes_t v) { for (int i = 0; i < 64; i++) v.at[i] >>= 4; return v; }
static inline sums_t four(sums_t sums, codes_t codes, const int8_t *x) {
    for (int r = 0; r < BLOCK; r++)
        sums[r] += codes.at[4 * r] * x[0] + codes.at[4 * r + 1] * x[1] + codes.at[4 * r + 2] * x[2] + codes.at[4 * r + 3] * x[3];
    return sums;
}
#endif

/* Most tokens that share one reading of the codes: their sums fill the registers. */
#define WIDE 12
#define EACH_TOKEN _Pragma("GCC unroll 12") for (int t = 0; t < tokens; t++)

/* What the lower halves of group `xg` add to 16 rows, before the weights' scale; `codes`: of that group. */
static __attribute__((noinline)) void add_lows(const qmatrix_t *m, const uint8_t *codes, const int8_t *lows, int32_t low_sum,
                                               float x_scale, reals_t scale, reals_t *total) {
    sums_t sums = all_of(-m->centre * low_sum), more = all_of(0);
    for (const int8_t *end = lows + m->x_group; lows < end; lows += 8) {
        codes_t these = load_codes(codes), next = m->bits == 4 ? high_codes(these) : load_codes(codes + 64);
        sums = four(sums, m->bits == 4 ? low_codes(these) : these, lows);
        more = four(more, next, lows + 4);
        codes += m->bits == 4 ? 64 : 128;
    }
    *total += reals_of(sums + more) * (scale * (x_scale / 256));
}

/* 16 rows with `tokens` vectors (a constant where it is called): out[t * stride + r]. any: one has fine groups. */
static inline __attribute__((always_inline)) void qtile(const qmatrix_t *m, int block, const qvector_t *x, float *out,
                                                        size_t stride, int any, int tokens, int bits) {
    const int step = bits == 8 ? 4 : 8; /* columns in 64 bytes */
    const int groups = m->columns / m->group, per_group = m->group / m->x_group;
    const uint8_t *codes = m->codes + (size_t)block * m->columns / step * 64;
    const uint16_t *scales = m->scales + (size_t)block * groups * BLOCK;
    const uint16_t *offsets = m->offsets ? m->offsets + (size_t)block * groups * BLOCK : NULL;
    reals_t totals[WIDE];
    EACH_TOKEN totals[t] = reals_of(all_of(0));
    for (int g = 0, xg = 0, column = 0; g < groups; g++) {
        reals_t scale = halves(scales + g * BLOCK);
        for (int part = 0; part < per_group; part++, xg++) {
            sums_t sums[WIDE], more = all_of(0);
            EACH_TOKEN sums[t] = all_of(-m->centre * x[t].sums[xg]);
            for (int end = column + m->x_group; column < end; column += step, codes += 64) {
                if (bits == 4) {
                    codes_t both = load_codes(codes), low = low_codes(both), high = high_codes(both);
                    EACH_TOKEN sums[t] = four(sums[t], low, x[t].codes + column);
                    if (tokens == 1) more = four(more, high, x[0].codes + column + 4); /* chains hide latency */
                    else EACH_TOKEN sums[t] = four(sums[t], high, x[t].codes + column + 4);
                } else if (tokens == 1) {
                    sums[0] = four(sums[0], load_codes(codes), x[0].codes + column);
                    more = four(more, load_codes(codes + 64), x[0].codes + column + 4);
                    column += step, codes += 64;
                } else {
                    codes_t these = load_codes(codes);
                    EACH_TOKEN sums[t] = four(sums[t], these, x[t].codes + column);
                }
            }
            if (tokens == 1) sums[0] += more;
            EACH_TOKEN totals[t] += reals_of(sums[t]) * (scale * x[t].scales[xg]);
            if (offsets) {
                reals_t offset = halves(offsets + g * BLOCK);
                EACH_TOKEN totals[t] -= offset * (x[t].scales[xg] * (float)x[t].sums[xg]);
            }
            if (!any) continue;
            const uint8_t *start = codes - (size_t)m->x_group / step * 64;
            for (int t = 0; t < tokens; t++) {
                if (!x[t].fine[xg]) continue;
                float x_scale = x[t].scales[xg];
                add_lows(m, start, x[t].lows + column - m->x_group, x[t].low_sums[xg], x_scale, scale, totals + t);
                if (offsets) totals[t] -= halves(offsets + g * BLOCK) * (x_scale / 256 * (float)x[t].low_sums[xg]);
            }
        }
    }
    int first = block * BLOCK, rows = m->rows - first < BLOCK ? m->rows - first : BLOCK;
    reals_t row_scale, bias = {0};
    memcpy(&row_scale, m->row_scale + first, sizeof row_scale);
    if (m->bias) memcpy(&bias, m->bias + first, rows * sizeof(float));
    EACH_TOKEN {
        reals_t found = totals[t] * row_scale + bias;
        if (rows == BLOCK) memcpy(out + t * stride + first, &found, sizeof found);
        else memcpy(out + t * stride + first, &found, rows * sizeof(float));
    }
}

/* Rows of blocks begin to end with all tokens; x: the tokens' rounded vectors. Many tokens share one reading. */
static inline void qproduct(const qmatrix_t *m, const qvector_t *x, float *out, size_t stride, int begin, int end,
                            int tokens) {
    for (int block = begin; block < end; block++) {
        int t = 0;
#define QTILE(N) for (; t + N <= tokens; t += N) { \
            int any = 0; \
            for (int i = 0; i < N; i++) any |= *x[t + i].any; \
            if (m->bits == 8) qtile(m, block, x + t, out + t * stride, stride, any, N, 8); \
            else qtile(m, block, x + t, out + t * stride, stride, any, N, 4); \
        }
        QTILE(12)
        QTILE(8)
        QTILE(4)
        QTILE(1)
#undef QTILE
    }
}

#endif
