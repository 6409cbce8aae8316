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
#include "dense.h"
#include "exponential.h"
#include "threads.h"

enum { TILE = 64, MAX_GROUP = 16 };

static size_t row_of(const attention_t *s, int sequence, int head, int t) {
    size_t block = s->tables ? s->tables[(size_t)sequence * s->max_blocks + t / s->block_size] : sequence;
    return block * s->block_stride + head * s->head_stride + (size_t)(t % s->block_size) * s->d;
}

/* Ask for one row of the next run: its block may lie anywhere in the pool, where no hardware prefetcher looks. */
static inline void fetch(const float *row, int d) {
    for (int i = 0; i < d; i += 16) __builtin_prefetch(row + i);
}

/* scores[g][t] of `count` key rows with `group` queries, which are scaled already; up to four queries at a time (a constant
 * where it is called) share what is loaded of four keys. */
SPECIALISED some_scores(const float *rows, const float *next, const float *q, int d, int count, float *scores, int queries) {
    int t = 0;
    for (; t + 4 <= count; t += 4) {
        for (int i = 0; next && i < 4; i++) fetch(next + (size_t)(t + i) * d, d);
        along(rows + (size_t)t * d, q, scores + t, TILE, d, queries, 4);
    }
    for (; t < count; t++) along(rows + (size_t)t * d, q, scores + t, TILE, d, queries, 1);
}

static void all_scores(const float *rows, const float *next, const float *q, int d, int count, float *scores, int group) {
    for (int g = 0; g < group; g += 4, next = NULL) {
        const float *of = q + (size_t)g * d;
        float *to = scores + (size_t)g * TILE;
        switch (group - g) {
        case 1: some_scores(rows, next, of, d, count, to, 1); break;
        case 2: some_scores(rows, next, of, d, count, to, 2); break;
        case 3: some_scores(rows, next, of, d, count, to, 3); break;
        default: some_scores(rows, next, of, d, count, to, 4);
        }
    }
}

#define EACH(I, COUNT) _Pragma("GCC unroll 4") for (int I = 0; I < COUNT; I++)

/* out[g] += sum over t of weights[g][t] * row t, for `vectors` vectors of a row and some queries (both constants where it
 * is called), whose sums stay in registers. */
SPECIALISED mix(const float *rows, const float *next, const float *weights, int d, int count, float *out, int queries,
                int vectors) {
    vector sums[4][4];
    EACH(g, queries)
        EACH(v, vectors) sums[g][v] = *(const vector *)(out + (size_t)g * d + v * WIDTH);
    for (int t = 0; t < count; t++) {
        vector row[4];
        if (next) fetch(next + (size_t)t * d, vectors * WIDTH);
        EACH(v, vectors) row[v] = kept(*(const vector *)(rows + (size_t)t * d + v * WIDTH));
        EACH(g, queries)
            EACH(v, vectors) sums[g][v] += weights[g * TILE + t] * row[v];
    }
    EACH(g, queries)
        EACH(v, vectors) *(vector *)(out + (size_t)g * d + v * WIDTH) = sums[g][v];
}

SPECIALISED mix_values(const float *rows, const float *next, const float *weights, int d, int count, float *out, int queries) {
    int i = 0;
    for (; i + 4 * WIDTH <= d; i += 4 * WIDTH)
        mix(rows + i, next ? next + i : NULL, weights, d, count, out + i, queries, 4);
    for (; i + WIDTH <= d; i += WIDTH) mix(rows + i, next ? next + i : NULL, weights, d, count, out + i, queries, 1);
    for (; i < d; i++)
        for (int g = 0; g < queries; g++)
            for (int t = 0; t < count; t++) out[(size_t)g * d + i] += weights[g * TILE + t] * rows[(size_t)t * d + i];
}

static void add_values(const float *rows, const float *next, const float *weights, int d, int count, float *out, int group) {
    for (int g = 0; g < group; g += 4, next = NULL) {
        const float *of = weights + (size_t)g * TILE;
        float *to = out + (size_t)g * d;
        switch (group - g) {
        case 1: mix_values(rows, next, of, d, count, to, 1); break;
        case 2: mix_values(rows, next, of, d, count, to, 2); break;
        case 3: mix_values(rows, next, of, d, count, to, 3); break;
        default: mix_values(rows, next, of, d, count, to, 4);
        }
    }
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
    const float *given = s->q + token * s->q_stride + (long)head * group * d;
    float scale = 1.0f / sqrtf((float)d), q[group * d];
    float scores[MAX_GROUP * TILE], *tops = part + (size_t)group * d, *sums = tops + group;
    for (int i = 0; i < group * d; i++) q[i] = given[i] * scale;
    memset(part, 0, (size_t)group * d * sizeof(float));
    for (int g = 0; g < group; g++) tops[g] = -INFINITY, sums[g] = 0;
    for (int t = begin, count; t < end; t += count) {
        count = end - t < TILE ? end - t : TILE;
        for (int done = 0, run; done < count; done += run) {
            run = run_of(s, sequence, head, t + done, count - done);
            size_t row = row_of(s, sequence, head, t + done), next = next_of(s, sequence, head, row, t + done + run, run, end);
            all_scores(s->keys + row, next ? s->keys + next : NULL, q, d, run, scores + done, group);
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
    labcore_barrier();
    EACH_ITEM(items) merge(s, item);
}

/* A layer's step by itself, for steps whose other parts are not in C. */
void labcore_decode_attention(const attention_t *step, int threads) {
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        labcore_append(step);
        labcore_barrier();
        labcore_attend(step);
    }
}
