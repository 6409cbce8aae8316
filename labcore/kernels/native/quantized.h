/* A matrix of 8- or 4-bit codes times vectors that are rounded to 8 bits on the way (rounding.h).
 *
 * Codes lie in blocks of 16 rows: 64 bytes hold 4 columns of each (8 bits), or 8 (4 bits, the second four in the
 * high halves). One instruction (VNNI's vpdpbusd) then adds 4 products to each of 16 sums. Codes are unsigned;
 * their centre is taken off with the sum of the vector. Weights share a scale in groups of columns, or one a row;
 * a vector's numbers share one in groups of `x_group`, which divides the group. */
#ifndef LABCORE_QUANTIZED_H
#define LABCORE_QUANTIZED_H

#include "rounding.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAVE_VNNI 1
#endif

#define BLOCK 16

typedef struct {
    int rows, columns, bits, group, x_group, centre, fine; /* fine: groups of the vector may take 16 bits */
    const uint8_t *codes;    /* (rows / 16, columns / 4 or 8, 64), 64-byte aligned */
    const uint16_t *scales;  /* fp16 (rows / 16, groups, 16), relative to row_scale */
    const uint16_t *offsets; /* the same, taken off once per column; NULL: none */
    const float *row_scale;  /* (rows / 16 * 16) */
    const float *smooth;     /* (columns) the vector is multiplied by; NULL: nothing */
    const int *order;        /* (columns) the vector is permuted by; NULL: not */
    const float *bias;       /* (rows), NULL: none */
} qmatrix_t;

/* Token `token` of `tokens`, rounded into the memory that holds all of them. */
static inline void round_token(const qmatrix_t *m, const float *x, void *work, void *memory, int tokens, int token) {
    int first, width = tile_of(tokens, token, &first);
    qtile_t to = tile_at(memory, m->columns, first, width);
    round_vector(x, m->order, m->smooth, m->columns, m->x_group, m->fine, work, to, token - first);
}

#ifdef HAVE_VNNI
typedef __m512i codes_t;
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

/* One row as the codes stand for it, unpermuted. */
static void row_of_codes(const qmatrix_t *m, int row, float *out) {
    const int step = m->bits == 8 ? 4 : 8, groups = m->columns / m->group; /* step: columns in 64 bytes */
    const uint8_t *codes = m->codes + (size_t)(row / BLOCK) * m->columns / step * 64 + row % BLOCK * 4;
    size_t first = (size_t)(row / BLOCK) * groups * BLOCK;
    for (int g = 0; g < groups; g++) {
        reals_t scale = halves(m->scales + first + g * BLOCK), off = scale * (float)m->centre;
        if (m->offsets) off += halves(m->offsets + first + g * BLOCK);
        for (int c = g * m->group; c < (g + 1) * m->group; c++) {
            int byte = codes[c / step * 64 + c % 4], code = m->bits == 8 ? byte : c % 8 < 4 ? byte & 15 : byte >> 4;
            out[c] = m->row_scale[row] * (code * scale[row % BLOCK] - off[row % BLOCK]);
        }
    }
}

#define EACH_TOKEN _Pragma("GCC unroll 12") for (int t = 0; t < tokens; t++)

/* What the lower halves of a fine group add to 16 rows; `codes`: of that group. */
static __attribute__((noinline)) void add_lows(const qmatrix_t *m, const uint8_t *codes, const int8_t *lows, float x_scale,
                                               reals_t scale, reals_t *total) {
    sums_t sums = all_of(0), more = all_of(0);
    for (const int8_t *end = lows + m->x_group; lows < end; lows += 8) {
        codes_t these = load_codes(codes), next = m->bits == 4 ? high_codes(these) : load_codes(codes + 64);
        sums = four(sums, m->bits == 4 ? low_codes(these) : these, lows);
        more = four(more, next, lows + 4);
        codes += m->bits == 4 ? 64 : 128;
    }
    *total += reals_of(sums + more) * (scale * x_scale);
}

/* 16 rows with a tile of `tokens` vectors (a constant where it is called): out[t * stride + r]. */
static inline __attribute__((always_inline)) void qtile(const qmatrix_t *m, int block, const qtile_t *x, float *out,
                                                        size_t stride, int tokens, int bits) {
    const int step = bits == 8 ? 4 : 8; /* columns in 64 bytes */
    const int groups = m->columns / m->group, per_group = m->group / m->x_group;
    const size_t span = (size_t)m->x_group / step * 64;
    const uint8_t *codes = m->codes + (size_t)block * m->columns / step * 64;
    const uint16_t *scales = m->scales + (size_t)block * groups * BLOCK;
    const uint16_t *offsets = m->offsets ? m->offsets + (size_t)block * groups * BLOCK : NULL;
    const int8_t *at = x->codes;
    reals_t totals[WIDE];
    const int any = any_of(x->any, tokens);
    EACH_TOKEN totals[t] = reals_of(all_of(0));
    for (int g = 0, xg = 0; g < groups; g++) {
        reals_t scale = halves(scales + g * BLOCK), off = scale * (float)m->centre; /* taken off each code */
        if (offsets) off += halves(offsets + g * BLOCK);
        for (int part = 0; part < per_group; part++, xg++) {
            const float *x_scale = x->scales + xg * tokens;
            const float *x_sum = x->sums + xg * tokens;
            sums_t sums[WIDE], more = all_of(0);
            EACH_TOKEN sums[t] = all_of(0);
            for (const uint8_t *end = codes + span; codes < end; codes += 64, at += 4 * tokens) {
                if (bits == 4) {
                    codes_t both = load_codes(codes), low = low_codes(both), high = high_codes(both);
                    EACH_TOKEN sums[t] = four(sums[t], low, at + 4 * t);
                    at += 4 * tokens;
                    if (tokens == 1) more = four(more, high, at); /* two chains hide latency */
                    else EACH_TOKEN sums[t] = four(sums[t], high, at + 4 * t);
                } else if (tokens == 1) {
                    sums[0] = four(sums[0], load_codes(codes), at);
                    more = four(more, load_codes(codes += 64), at += 4);
                } else {
                    codes_t these = load_codes(codes);
                    EACH_TOKEN sums[t] = four(sums[t], these, at + 4 * t);
                }
            }
            if (tokens == 1) sums[0] += more;
            EACH_TOKEN totals[t] += reals_of(sums[t]) * (scale * x_scale[t]) - off * x_sum[t];
            if (!any || !any_of(x->fine + xg * tokens, tokens)) continue;
            for (int t = 0; t < tokens; t++) {
                if (!x->fine[xg * tokens + t]) continue;
                const int8_t *lows = x->lows + (size_t)t * m->columns + xg * m->x_group;
                int32_t low_sum = x->low_sums[xg * tokens + t];
                add_lows(m, codes - span, lows, x_scale[t] / 256, scale, totals + t);
                totals[t] -= off * (x_scale[t] / 256 * (float)low_sum);
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

/* Rows of blocks `begin` to `end` with tokens `first` to `last` of `tokens`, which begin and end with a tile; x: the
 * memory that holds them. All of these tokens share one reading of a block. */
static inline void qproduct(const qmatrix_t *m, void *x, float *out, size_t stride, int begin, int end, int first,
                            int last, int tokens) {
    for (int block = begin; block < end; block++)
        for (int t = first, width; t < last; t += width) {
            width = tile_of(tokens, t, &t);
            qtile_t tile = tile_at(x, m->columns, t, width);
            float *to = out + t * stride;
#define QTILE(N) if (width == N) { \
            if (m->bits == 8) qtile(m, block, &tile, to, stride, N, 8); \
            else qtile(m, block, &tile, to, stride, N, 4); \
        }
            QTILE(12)
            QTILE(8)
            QTILE(4)
            QTILE(1)
#undef QTILE
        }
}

#endif
