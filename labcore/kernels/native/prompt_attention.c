/* Causal attention of a prompt, in fp32: many queries at the end of the keys, each key read once for a tile of queries.
 *
 * A tile is as many queries of one head as a vector has lanes. Scores are products of 12 keys with the tile, whose
 * queries lie one beside the other, so that every sum stays in a register; keys are laid out for it first, once for
 * all heads that share them. A running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022) need no more
 * scores at a time than a block of keys has. Keys that no query of the tile may see are never touched.
 */
#include <stddef.h>
#include <string.h>

#include "exponential.h"
#include "threads.h"

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float lanes_t __attribute__((vector_size(LANES * sizeof(float))));

enum { SIDE = 12, KEYS = 8 * SIDE, MAX_D = 256 };
#define HIDDEN -1e30f
#define FIXED static inline __attribute__((always_inline)) void

typedef struct {
    const float *q, *k, *v;
    float *out, *packed; /* out (batch, n, heads, d); packed (batch, kv_heads, keys / 12, d, 12), the rest left open */
    int batch, heads, kv_heads, n, keys, d;
    long q_strides[3], k_strides[3], v_strides[3]; /* to the next sequence, head, position */
} prompt_t;

static size_t packed_size(const prompt_t *p) { return (size_t)(p->keys + SIDE - 1) / SIDE * SIDE * p->d; }

/* 12 keys of one head with their numbers turned: (d, 12). */
static void pack(const prompt_t *p, int sequence, int head, int side) {
    const float *from = p->k + sequence * p->k_strides[0] + head * p->k_strides[1];
    float *to = p->packed + ((size_t)sequence * p->kv_heads + head) * packed_size(p) + (size_t)side * SIDE * p->d;
    for (int j = 0; j < SIDE; j++) {
        int key = side * SIDE + j < p->keys ? side * SIDE + j : p->keys - 1; /* past the end: anything, it is hidden */
        const float *row = from + key * p->k_strides[2];
        for (int i = 0; i < p->d; i++) to[i * SIDE + j] = row[i];
    }
}

/* scores[j] of 12 packed keys with a tile of queries (d, LANES). */
static void twelve_scores(const float *restrict keys, const lanes_t *restrict q, int d, lanes_t *restrict scores) {
    lanes_t sums[SIDE] = {0};
    for (int i = 0; i < d; i++, keys += SIDE) {
        lanes_t query = q[i];
#pragma GCC unroll 12
        for (int j = 0; j < SIDE; j++) sums[j] += query * keys[j];
    }
#pragma GCC unroll 12
    for (int j = 0; j < SIDE; j++) scores[j] = sums[j];
}

/* out[i] += weights[j] * values[j][i] over `count` rows, for `width` numbers of each (a constant where it is called). */
FIXED add_values(const float *restrict values, long stride, const lanes_t *restrict weights, int count,
                 lanes_t *restrict out, int width) {
    lanes_t sums[SIDE];
#pragma GCC unroll 12
    for (int i = 0; i < width; i++) sums[i] = out[i];
    for (int j = 0; j < count; j++, values += stride) {
        lanes_t weight = weights[j];
#pragma GCC unroll 12
        for (int i = 0; i < width; i++) sums[i] += weight * values[i];
    }
#pragma GCC unroll 12
    for (int i = 0; i < width; i++) out[i] = sums[i];
}

static void mix(const float *values, long stride, const lanes_t *weights, int count, lanes_t *out, int d) {
    int i = 0;
    for (; i + 12 <= d; i += 12) add_values(values + i, stride, weights, count, out + i, 12);
    for (; i + 4 <= d; i += 4) add_values(values + i, stride, weights, count, out + i, 4);
    for (; i < d; i++) add_values(values + i, stride, weights, count, out + i, 1);
}

/* Scores of a block become weights relative to the running maximum; what was summed before is scaled down to it. */
static void soften(lanes_t *scores, int count, lanes_t *top, lanes_t *sum, lanes_t *out, int d) {
    lanes_t highest = *top, shrink;
    for (int j = 0; j < count; j++)
        for (int l = 0; l < LANES; l++) highest[l] = scores[j][l] > highest[l] ? scores[j][l] : highest[l];
    for (int l = 0; l < LANES; l++) shrink[l] = exponential((*top)[l] - highest[l]);
    *top = highest;
    *sum *= shrink;
    for (int i = 0; i < d; i++) out[i] *= shrink;
    for (int j = 0; j < count; j++) {
        float weights[LANES];
        lanes_t apart = scores[j] - highest;
        memcpy(weights, &apart, sizeof weights);
#pragma omp simd
        for (int l = 0; l < LANES; l++) weights[l] = exponential(weights[l]);
        memcpy(scores + j, weights, sizeof weights);
        *sum += scores[j];
    }
}

/* Queries `first` to `first + LANES` of one head. */
static void attend(const prompt_t *p, int sequence, int head, int first) {
    const int d = p->d, shared = head / (p->heads / p->kv_heads), before = p->keys - p->n;
    const float *q = p->q + sequence * p->q_strides[0] + head * p->q_strides[1];
    const float *v = p->v + sequence * p->v_strides[0] + shared * p->v_strides[1];
    const float *packed = p->packed + ((size_t)sequence * p->kv_heads + shared) * packed_size(p);
    const int queries = p->n - first < LANES ? p->n - first : LANES, end = before + first + queries;
    lanes_t tile[MAX_D], out[MAX_D], scores[KEYS], top = {0}, sum = {0};
    float scale = 1.0f / sqrtf((float)d);
    for (int i = 0; i < d; i++)
        for (int l = 0; l < LANES; l++)
            tile[i][l] = scale * q[(first + (l < queries ? l : 0)) * p->q_strides[2] + i];
    memset(out, 0, d * sizeof *out);
    top += 2 * HIDDEN;
    for (int block = 0; block < end; block += KEYS) {
        int count = end - block < KEYS ? end - block : KEYS;
        for (int j = 0; j < count; j += SIDE) twelve_scores(packed + (size_t)(block + j) * d, tile, d, scores + j);
        for (int j = 0; j < count; j++)
            for (int l = 0; l < LANES && block + j > before + first + l; l++) scores[j][l] = HIDDEN;
        soften(scores, count, &top, &sum, out, d);
        mix(v + block * p->v_strides[2], p->v_strides[2], scores, count, out, d);
    }
    for (int l = 0; l < queries; l++) {
        float *to = p->out + (((size_t)sequence * p->n + first + l) * p->heads + head) * d;
        for (int i = 0; i < d; i++) to[i] = out[i][l] / sum[l];
    }
}

/* q (batch, heads, n, d), k and v (batch, kv_heads, keys, d): query i sees keys 0 to keys - n + i. */
void labcore_prompt_attention(const prompt_t *prompt, int threads) {
    const prompt_t p = *prompt;
    int sides = (p.keys + SIDE - 1) / SIDE, tiles = (p.n + LANES - 1) / LANES, heads = p.batch * p.heads;
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        int count = omp_get_num_threads(), me = omp_get_thread_num();
        for (long item = me; item < (long)p.batch * p.kv_heads * sides; item += count) {
            int head = item / sides;
            pack(&p, head / p.kv_heads, head % p.kv_heads, item % sides);
        }
        labcore_barrier();
        /* the longest rows first, dealt out in turns, so that threads end together */
        for (long item = me; item < (long)heads * tiles; item += count) {
            int head = item % heads, tile = tiles - 1 - item / heads;
            attend(&p, head / p.heads, head % p.heads, tile * LANES);
        }
    }
}
