/* Decode attention as the steps that contain it see it. */
#ifndef LABCORE_ATTENTION_H
#define LABCORE_ATTENTION_H

/* New tokens of some sequences, and where a layer's keys and values lie: position p of a sequence in block
 * tables[sequence][p / block_size] of a pool or, without tables, in the one block that is the sequence's own. */
typedef struct {
    float *keys, *values;         /* where block 0 of head 0 begins */
    const int *tables;            /* (sequences, max_blocks), NULL: none */
    const int *sequences;         /* (tokens) which each belongs to; NULL: token i is of sequence i */
    const int *lengths;           /* (tokens) positions of its sequence up to itself; 0: it takes no part */
    const int *starts;            /* (sequences) the first that is no padding; NULL: 0 */
    const float *q, *new_k, *new_v; /* (tokens, heads, d), and the strides below between tokens */
    float *out, *parts;           /* out: (tokens, heads, d); parts: (tokens * kv_heads * splits, group, d + 2) */
    int tokens, kv_heads, group, d, block_size, max_blocks, splits;
    long block_stride, head_stride, q_stride, k_stride, v_stride; /* in floats */
} attention_t;

/* For every thread of a parallel region. Between the two stands a barrier, and one behind the second. */
void labcore_append(const attention_t *step);
void labcore_attend(const attention_t *step);

#endif
