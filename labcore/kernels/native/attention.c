/* Decode attention: few new tokens of some sequences, in fp32, over a cache that keeps each head's rows together.
 *
 * The new key and value are written first, then every key and value is read once, for all query heads that share
 * it, with a running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022). A long sequence is split among
 * threads, and the parts merged by their maxima and sums (flash-decoding, Dao et al. 2023). Several new tokens of one
 * sequence are that many items, each of which sees what was written up to itself.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "attention.h"
#include "exponential.h"
#include "threads.h"

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif
typedef float vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float))));

enum { TILE = 64, MAX_GROUP = 16 };

static size_t row_of(const attention_t *s, int sequence, int head, int t) {
    size_t block = s->tables ? s->tables[(size_t)sequence * s->max_blocks + t / s->block_size] : sequence;
    return block * s->block_stride + head * s->head_stride + (size_t)(t % s->block_size) * s->d;
}

static inline float sum_of(vector v) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += v[i];
    return sum;
}

/* Ask for one row of the next run: its block may lie anywhere in the pool, where no hardware prefetcher looks. */
static inline void fetch(const float *row, int d) {
    for (int i = 0; i < d; i += 16) __builtin_prefetch(row + i);
}

#define SPECIALISED static inline __attribute__((always_inline)) void

/* scores[g][t] of `count` key rows with `group` queries; a constant `queries` at a time share what is loaded. */
SPECIALISED some_scores(const float *restrict rows, const float *next, const float *restrict q, int d, int count,
                        float scale, float *restrict scores, int queries) {
    for (int t = 0; t < count; t++) {
        const float *row = rows + (size_t)t * d;
        if (next) fetch(next + (size_t)t * d, d);
        vector sums[4] = {0};
        float rest[4] = {0};
        int i = 0;
        for (; i + WIDTH <= d; i += WIDTH) {
            vector key = *(const vector *)(row + i);
#pragma GCC unroll 4
            for (int g = 0; g < queries; g++) sums[g] += key * *(const vector *)(q + g * d + i);
        }
        for (; i < d; i++)
            for (int g = 0; g < queries; g++) rest[g] += row[i] * q[g * d + i];
#pragma GCC unroll 4
        for (int g = 0; g < queries; g++) scores[g * TILE + t] = (sum_of(sums[g]) + rest[g]) * scale;
    }
}

SPECIALISED group_scores(const float *rows, const float *next, const float *q, int d, int count, float scale,
                         float *scores, int group) {
    int g = 0;
    for (; g + 4 <= group; g += 4, next = NULL) some_scores(rows, next, q + g * d, d, count, scale, scores + g * TILE, 4);
    if (group - g == 3) some_scores(rows, next, q + g * d, d, count, scale, scores + g * TILE, 3);
    if (group - g == 2) some_scores(rows, next, q + g * d, d, count, scale, scores + g * TILE, 2);
    if (group - g == 1) some_scores(rows, next, q + g * d, d, count, scale, scores + g * TILE, 1);
}

/* out[g] += sum over t of weights[g][t] * row t; four rows a time, so that out is seldom loaded and stored. */
SPECIALISED mix_values(const float *restrict rows, const float *next, const float *restrict weights, int d, int count,
                       float *restrict out, int group) {
    int t = 0;
    for (; t + 4 <= count; t += 4) {
        const float *a = rows + (size_t)t * d, *b = a + d, *c = b + d, *e = c + d;
        for (int i = 0; next && i < 4; i++) fetch(next + (size_t)(t + i) * d, d);
        for (int g = 0; g < group; g++) {
            const float *w = weights + g * TILE + t;
            float *to = out + g * d;
#pragma omp simd
            for (int i = 0; i < d; i++) to[i] += w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * e[i];
        }
    }
    for (; t < count; t++)
        for (int g = 0; g < group; g++) {
            float w = weights[g * TILE + t];
#pragma omp simd
            for (int i = 0; i < d; i++) out[g * d + i] += w * rows[(size_t)t * d + i];
        }
}

/* The common case, a long run with nothing to fetch ahead, is compiled apart. */
static void all_scores(const float *rows, const float *next, const float *q, int d, int count, float scale,
                       float *scores, int group) {
    if (next) group_scores(rows, next, q, d, count, scale, scores, group);
    else group_scores(rows, NULL, q, d, count, scale, scores, group);
}

static void add_values(const float *rows, const float *next, const float *weights, int d, int count, float *out, int group) {
    if (next) mix_values(rows, next, weights, d, count, out, group);
    else mix_values(rows, NULL, weights, d, count, out, group);
}

/* Scores of one tile become weights relative to the running maximum; what was summed before is scaled down to it. */
static void soften(float *restrict scores, int count, int d, float *restrict out, float *top, float *sum) {
    float highest = *top, added = 0;
    for (int t = 0; t < count; t++) highest = scores[t] > highest ? scores[t] : highest;
    if (highest > *top) {
        float shrink = expf(*top - highest);
        *sum *= shrink;
        for (int i = 0; i < d; i++) out[i] *= shrink;
        *top = highest;
    }
#pragma omp simd reduction(+ : added)
    for (int t = 0; t < count; t++) added += scores[t] = exponential(scores[t] - highest);
    *sum += added;
}

/* How many positions from t on, `most` at most, lie one behind the other: blocks that follow each other are one run. */
static int run_of(const attention_t *s, int sequence, int head, int t, int most) {
    int run = s->block_size - t % s->block_size;
    size_t row = row_of(s, sequence, head, t);
    while (run < most && row_of(s, sequence, head, t + run) == row + (size_t)run * s->d) run += s->block_size;
    return run < most ? run : most;
}

/* Where position t behind this run lies, if it must be fetched ahead; 0 where it follows in memory or there is none. */
static size_t next_of(const attention_t *s, int sequence, int head, size_t row, int t, int run, int end) {
    size_t next = t < end ? row_of(s, sequence, head, t) : 0;
    return next == row + (size_t)run * s->d ? 0 : next;
}

/* Positions begin..end with one token and KV head. part: (group, d + 2): weighted values, then maximum and sum. */
static void attend(const attention_t *s, int token, int sequence, int head, int begin, int end, float *part) {
    int d = s->d, group = s->group;
    const float *q = s->q + token * s->q_stride + (long)head * group * d;
    float scale = 1.0f / sqrtf((float)d), scores[MAX_GROUP * TILE], *tops = part + (size_t)group * d, *sums = tops + group;
    memset(part, 0, (size_t)group * d * sizeof(float));
    for (int g = 0; g < group; g++) tops[g] = -INFINITY, sums[g] = 0;
    for (int t = begin, count; t < end; t += count) {
        count = end - t < TILE ? end - t : TILE;
        for (int done = 0, run; done < count; done += run) {
            run = run_of(s, sequence, head, t + done, count - done);
            size_t row = row_of(s, sequence, head, t + done), next = next_of(s, sequence, head, row, t + done + run, run, end);
            all_scores(s->keys + row, next ? s->keys + next : NULL, q, d, run, scale, scores + done, group);
        }
        for (int g = 0; g < group; g++) soften(scores + g * TILE, count, d, part + g * d, tops + g, sums + g);
        for (int done = 0, run; done < count; done += run) {
            run = run_of(s, sequence, head, t + done, count - done);
            size_t row = row_of(s, sequence, head, t + done), next = next_of(s, sequence, head, row, t + done + run, run, end);
            add_values(s->values + row, next ? s->values + next : NULL, scores + done, d, run, part, group);
        }
    }
}

/* Each thread's items, dealt out in turn: sequences differ in length. */
#define EACH_ITEM(COUNT) for (int item = omp_get_thread_num(); item < (COUNT); item += omp_get_num_threads())

static int sequence_of(const attention_t *s, int token) { return s->sequences ? s->sequences[token] : token; }

/* The new keys and values go to the last position of their tokens. */
void labcore_append(const attention_t *s) {
    size_t bytes = s->d * sizeof(float);
    EACH_ITEM(s->tokens * s->kv_heads) {
        int token = item / s->kv_heads, head = item % s->kv_heads;
        if (!s->lengths[token]) continue;
        size_t row = row_of(s, sequence_of(s, token), head, s->lengths[token] - 1);
        memcpy(s->keys + row, s->new_k + token * s->k_stride + (long)head * s->d, bytes);
        memcpy(s->values + row, s->new_v + token * s->v_stride + (long)head * s->d, bytes);
    }
}

/* Merge the splits of one token and KV head into its rows of `out`. */
static void merge(const attention_t *s, int item) {
    int d = s->d, group = s->group;
    size_t size = (size_t)group * (d + 2);
    const float *parts = s->parts + (size_t)item * s->splits * size;
    for (int g = 0; g < group; g++) {
        float *to = s->out + ((size_t)item * group + g) * d, top = -INFINITY, sum = 0;
        for (int p = 0; p < s->splits; p++) {
            float one = parts[p * size + (size_t)group * d + g];
            top = one > top ? one : top;
        }
        memset(to, 0, d * sizeof(float));
        for (int p = 0; p < s->splits; p++) {
            const float *part = parts + p * size, *tail = part + (size_t)group * d;
            if (tail[group + g] == 0) continue; /* an empty split; a row that is all padding has only these */
            float weight = expf(tail[g] - top);
            sum += weight * tail[group + g];
            for (int i = 0; i < d; i++) to[i] += weight * part[g * d + i];
        }
        for (int i = 0; i < d && sum > 0; i++) to[i] /= sum;
    }
}

/* One split of what a token sees, for one KV head. */
static void attend_split(const attention_t *s, int work) {
    int item = work / s->splits, split = work % s->splits, token = item / s->kv_heads, head = item % s->kv_heads;
    int sequence = sequence_of(s, token), length = s->lengths[token], start = s->starts ? s->starts[sequence] : 0;
    start = start < length ? start : length > 0 ? length - 1 : 0; /* padding sees itself */
    int share = (length - start + s->splits - 1) / s->splits, begin = start + split * share;
    int end = begin + share < length ? begin + share : length;
    attend(s, token, sequence, head, begin, end, s->parts + (size_t)work * s->group * (s->d + 2));
    if (s->splits == 1) merge(s, item); /* nobody else's to wait for */
}

void labcore_attend(const attention_t *s) {
    int items = s->tokens * s->kv_heads;
    EACH_ITEM(items * s->splits) attend_split(s, item);
    if (s->splits == 1) return;
#pragma omp barrier
    EACH_ITEM(items) merge(s, item);
}

/* A layer's step by itself, for steps whose other parts are not in C. */
void labcore_decode_attention(const attention_t *step, int threads) {
#pragma omp parallel num_threads(threads)
    {
        labcore_append(step);
#pragma omp barrier
        labcore_attend(step);
    }
}
