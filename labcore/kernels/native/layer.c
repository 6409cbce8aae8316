/* Transformer layers for few new tokens of some sequences, in fp32: all layers in one call or, where a cache attends in
 * a way of its own, each in two, what comes before attention and what comes after.
 *
 * At small batches a layer is a few matrix-vector products, bound by reading the weights once; PyTorch's operators
 * around them (norm, rotation, activation, residual) cost more in launches than in arithmetic. Here a step is one
 * parallel region: every thread reads its share of the rows, a barrier stands where the next product needs all of
 * the last.
 *
 * Matrices are row-major (rows, columns) as torch.nn.Linear keeps them. Missing biases and norms are NULL.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "attention.h"
#include "dense.h"
#include "exponential.h"
#include "quantized.h"
#include "threads.h"

/* One weight matrix: fp32 rows, or codes. */
typedef struct {
    const float *dense;
    const qmatrix_t *codes; /* NULL: dense */
    const float *bias;      /* of a dense one; codes bring their own */
} matrix_t;

/* A matrix's input, which each thread lays out for itself: rounded where the matrix is in codes, several tokens
 * beside each other where it is not. */
typedef struct {
    const float *x;
    void *rounded;
} input_t;

typedef struct {
    int hidden, heads, kv_heads, head_dim, intermediate;
    float eps;
    const float *input_norm, *q_norm, *k_norm, *post_norm;
    matrix_t qkv, o, gate_up, down;
} layer_t;

/* Layers, and where the keys and values of each lie. */
typedef struct {
    const layer_t *const *layers;
    float *const *keys, *const *values;
    int count;
} stack_t;

typedef struct {
    int hidden, vocab;
    float eps;
    const float *norm;
    matrix_t matrix;
} head_t;

/* What tokens drawn without asking need: a step of one token, and the memory that it works in. */
typedef struct {
    stack_t stack;
    attention_t step;
    head_t head;
    matrix_t embedding;            /* (vocab, hidden) */
    const float *freq;             /* (head_dim) minus the frequencies, then the frequencies */
    int *length;                   /* the step's lengths: counted up */
    float *x, *cos, *sin, *qkv, *logits, *scratch;
    long work;
} greedy_t;

/* This thread's share of n rows, in multiples of 16: rows are read eight at a time, codes 16. */
static range_t share(int n) {
    int threads = omp_get_num_threads(), me = omp_get_thread_num();
    int blocks = (n + BLOCK - 1) / BLOCK;
    int begin = BLOCK * (int)((long)blocks * me / threads), end = BLOCK * (int)((long)blocks * (me + 1) / threads);
    return (range_t){begin, end < n ? end : n};
}

static input_t input_of(const matrix_t *matrix, const float *x, int columns, int tokens, char *work) {
    void *room = work + tokens * qvector_bytes(columns);
    if (matrix->codes)
        for (int t = 0; t < tokens; t++) round_token(matrix->codes, x + (size_t)t * columns, room, work, tokens, t);
    else if (tokens > 1)
        beside(x, (float *)work, columns, tokens);
    return (input_t){!matrix->codes && tokens > 1 ? (float *)work : x, work};
}

/* The same of a matrix of either kind, from its row `first` on (a multiple of 16). */
static void product(const matrix_t *matrix, int first, const input_t *input, float *out, int stride, range_t rows,
                    int columns, int tokens) {
    if (matrix->codes)
        qproduct(matrix->codes, input->rounded, out - first, stride, (first + rows.begin) / BLOCK,
                 (first + rows.end + BLOCK - 1) / BLOCK, 0, tokens, tokens);
    else
        dense_product(matrix->dense + (size_t)first * columns, matrix->bias ? matrix->bias + first : NULL, input->x,
                      out, stride, rows, columns, tokens);
}

/* Zhang & Sennrich 2019, of `tokens` vectors. out may be x. */
static void rms_norm(const float *x, const float *weight, float eps, float *out, int n, int tokens) {
    for (int t = 0; t < tokens; t++, x += n, out += n) {
        float scale = 1.0f / sqrtf(dot(x, x, n) / n + eps);
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
    }
}

/* Su et al. 2021; sin carries the minus sign of its first half, as labcore's Rope makes it. */
static void rotate(float *head, const float *cos, const float *sin, int d) {
    int half = d / 2;
    for (int i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cos[i] + second * sin[i];
        head[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

/* For every thread: x (tokens, hidden) -> qkv (tokens, heads + 2 kv_heads, head_dim), normalised, projected, queries
 * and keys rotated. cos, sin: head_dim floats, `turn` floats further for the next token (0: all are at one position).
 * scratch: for each thread tokens * hidden floats and `work` bytes (a multiple of 64), which inputs are laid out in. */
static void before_attention(const layer_t *l, const float *x, const float *cos, const float *sin, int turn, float *qkv,
                             float *scratch, long work, int tokens) {
    int rows = (l->heads + 2 * l->kv_heads) * l->head_dim, turning = l->heads + l->kv_heads;
    float *normed = scratch + (size_t)omp_get_thread_num() * tokens * l->hidden; /* cheaper than sharing it */
    char *mine = (char *)(scratch + (size_t)omp_get_num_threads() * tokens * l->hidden) + omp_get_thread_num() * work;
    rms_norm(x, l->input_norm, l->eps, normed, l->hidden, tokens);
    input_t input = input_of(&l->qkv, normed, l->hidden, tokens, mine);
    product(&l->qkv, 0, &input, qkv, rows, share(rows), l->hidden, tokens);
    labcore_barrier();
    for (int item = omp_get_thread_num(); item < tokens * turning; item += omp_get_num_threads()) {
        int token = item / turning, head = item % turning;
        float *at = qkv + (size_t)token * rows + (size_t)head * l->head_dim;
        const float *norm = head < l->heads ? l->q_norm : l->k_norm;
        if (norm) rms_norm(at, norm, l->eps, at, l->head_dim, 1);
        rotate(at, cos + (size_t)token * turn, sin + (size_t)token * turn, l->head_dim);
    }
}

/* gate = silu(gate) * up, Shazeer 2020. */
static void gate_with(float *restrict gate, const float *restrict up, int n) {
#pragma omp simd
    for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

static void add(float *x, const float *update, int n, range_t rows, int tokens) {
    for (int t = 0; t < tokens; t++)
        for (int i = rows.begin; i < rows.end; i++) x[(size_t)t * n + i] += update[(size_t)t * n + i];
}

/* For every thread: x += o(mixed); x += down(silu(gate) * up) of the normalised x. mixed: (tokens, heads, head_dim).
 * scratch: tokens * (hidden for each thread, + hidden + 2 intermediate) floats, then `work` bytes a thread. */
static void after_attention(const layer_t *l, const float *mixed, float *x, float *scratch, long work, int tokens) {
    int n = l->intermediate, heads = l->heads * l->head_dim, hidden = l->hidden;
    float *normed = scratch + (size_t)omp_get_thread_num() * tokens * hidden;
    float *update = scratch + (size_t)omp_get_num_threads() * tokens * hidden;
    float *gate = update + (size_t)tokens * hidden, *up = gate + (size_t)tokens * n;
    char *own = (char *)(up + (size_t)tokens * n) + omp_get_thread_num() * work;
    range_t mine = share(hidden), inner = share(n);
    input_t input = input_of(&l->o, mixed, heads, tokens, own);
    product(&l->o, 0, &input, update, hidden, mine, heads, tokens);
    add(x, update, hidden, mine, tokens);
    labcore_barrier();
    rms_norm(x, l->post_norm, l->eps, normed, hidden, tokens);
    input = input_of(&l->gate_up, normed, hidden, tokens, own);
    product(&l->gate_up, 0, &input, gate, n, inner, hidden, tokens);
    product(&l->gate_up, n, &input, up, n, inner, hidden, tokens);
    for (int t = 0; t < tokens; t++)
        gate_with(gate + (size_t)t * n + inner.begin, up + (size_t)t * n + inner.begin, inner.end - inner.begin);
    labcore_barrier();
    input = input_of(&l->down, gate, n, tokens, own);
    product(&l->down, 0, &input, update, hidden, mine, n, tokens);
    add(x, update, hidden, mine, tokens);
}

/* The two halves by themselves, for caches whose attention is not in C. */
void labcore_before_attention(const layer_t *layer, const float *x, const float *cos, const float *sin, int turn,
                              float *qkv, float *scratch, long work, int tokens, int threads) {
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        before_attention(layer, x, cos, sin, turn, qkv, scratch, work, tokens);
    }
}

void labcore_after_attention(const layer_t *layer, const float *mixed, float *x, float *scratch, long work, int tokens,
                             int threads) {
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        after_attention(layer, mixed, x, scratch, work, tokens);
    }
}

/* For every thread: all layers of a step. x (tokens, hidden) is updated in place. `step` has all but keys and values,
 * which are each layer's own; its q, new_k and new_v lie in `qkv`. scratch: as for both halves. */
static void all_layers(const stack_t *s, const attention_t *step, float *x, const float *cos, const float *sin, int turn,
                       float *qkv, float *scratch, long work) {
    attention_t here = *step;
    for (int i = 0; i < s->count; i++) {
        before_attention(s->layers[i], x, cos, sin, turn, qkv, scratch, work, here.tokens);
        here.keys = s->keys[i], here.values = s->values[i];
        labcore_barrier();
        labcore_append(&here);
        labcore_barrier();
        labcore_attend(&here);
        labcore_barrier();
        after_attention(s->layers[i], here.out, x, scratch, work, here.tokens);
        labcore_barrier();
    }
}

void labcore_layers(const stack_t *stack, const attention_t *step, float *x, const float *cos, const float *sin, int turn,
                    float *qkv, float *scratch, long work, int threads) {
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        all_layers(stack, step, x, cos, sin, turn, qkv, scratch, work);
    }
}

/* For every thread: x (tokens, hidden), normalised, times the head's matrix -> logits (tokens, vocab). Returns its rows.
 * scratch: for each thread tokens * hidden floats and `work` bytes. */
static range_t head_product(const head_t *h, const float *x, float *logits, float *scratch, long work, int tokens) {
    range_t mine = share(h->vocab);
    float *normed = scratch + (size_t)omp_get_thread_num() * tokens * h->hidden;
    char *own = (char *)(scratch + (size_t)omp_get_num_threads() * tokens * h->hidden) + omp_get_thread_num() * work;
    rms_norm(x, h->norm, h->eps, normed, h->hidden, tokens);
    input_t input = input_of(&h->matrix, normed, h->hidden, tokens, own);
    product(&h->matrix, 0, &input, logits, h->vocab, mine, h->hidden, tokens);
    return mine;
}

void labcore_head(const head_t *head, const float *x, float *logits, float *scratch, long work, int tokens, int threads) {
#pragma omp parallel num_threads(threads)
    head_product(head, x, logits, scratch, work, tokens);
}

/* The first of the largest. */
static int largest(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) best = x[i] > x[best] ? i : best;
    return best;
}

/* One thread's: the embedding of a token, and the angles of its position (Su et al. 2021). */
static void enter(const greedy_t *g, int token, int position) {
    int d = g->stack.layers[0]->head_dim, hidden = g->head.hidden;
    if (g->embedding.codes) row_of_codes(g->embedding.codes, token, g->x);
    else memcpy(g->x, g->embedding.dense + (size_t)token * hidden, hidden * sizeof(float));
    for (int i = 0; i < d; i++) g->cos[i] = cosf(position * g->freq[i]), g->sin[i] = sinf(position * g->freq[i]);
}

/* A single sequence's tokens one after another, with nobody asked in between: `known` given ones, then each the most
 * likely behind the last, `count` in all. tokens has room for count + 1. */
void labcore_greedy(greedy_t *g, int *tokens, int known, int count, int threads) {
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        for (int i = 0; i < count; i++) {
            if (omp_get_thread_num() == 0) enter(g, tokens[i], g->length[0]++);
            labcore_barrier();
            all_layers(&g->stack, &g->step, g->x, g->cos, g->sin, 0, g->qkv, g->scratch, g->work);
            if (i + 1 < known) continue;
            head_product(&g->head, g->x, g->logits, g->scratch, g->work, 1);
            labcore_barrier();
            if (omp_get_thread_num() == 0) tokens[i + 1] = largest(g->logits, g->head.vocab);
        }
    }
}
