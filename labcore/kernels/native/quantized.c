/* A quantized linear layer on any number of tokens. */
#include "quantized.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_num_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

#define TOGETHER 48 /* tokens whose rounded vectors wait in the caches while the matrix passes by */

/* x (tokens, columns) -> out (tokens, rows). scratch: tokens rounded vectors, then columns floats a thread. */
void labcore_quantized_linear(const qmatrix_t *matrix, const float *x, float *out, void *scratch, int tokens,
                              int threads) {
    const qmatrix_t m = *matrix;
    size_t bytes = qvector_bytes(m.columns);
    int blocks = (m.rows + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads)
    {
        int team = omp_get_num_threads(), me = omp_get_thread_num();
        float *row = (float *)((char *)scratch + tokens * bytes) + (size_t)me * m.columns;
        for (int t = (int)((long)tokens * me / team); t < (int)((long)tokens * (me + 1) / team); t++)
            round_vector(&m, x + (size_t)t * m.columns, row, qvector_at((char *)scratch + t * bytes, m.columns));
#pragma omp barrier
        int begin = (int)((long)blocks * me / team), end = (int)((long)blocks * (me + 1) / team);
        for (int first = 0; first < tokens; first += TOGETHER) {
            qvector_t vectors[TOGETHER];
            int count = tokens - first < TOGETHER ? tokens - first : TOGETHER;
            for (int t = 0; t < count; t++) vectors[t] = qvector_at((char *)scratch + (first + t) * bytes, m.columns);
            qproduct(&m, vectors, out + (size_t)first * m.rows, m.rows, begin, end, count);
        }
    }
}
