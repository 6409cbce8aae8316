/* A quantized linear layer on any number of tokens. */
#include "quantized.h"
#include "threads.h"

#define TOGETHER (4 * WIDE) /* tokens whose rounded vectors wait in the caches while the matrix passes by */

/* x (tokens, columns) -> out (tokens, rows). scratch: tokens rounded vectors, then what each thread rounds in. */
void labcore_quantized_linear(const qmatrix_t *matrix, const float *x, float *out, void *scratch, int tokens,
                              int threads) {
    const qmatrix_t m = *matrix;
    size_t bytes = qvector_bytes(m.columns);
    int blocks = (m.rows + BLOCK - 1) / BLOCK;
    team_t team = {0};
#pragma omp parallel num_threads(threads)
    {
        labcore_join_team(&team);
        int count = omp_get_num_threads(), me = omp_get_thread_num();
        char *work = (char *)scratch + tokens * bytes + me * rounding_bytes(m.columns);
        for (int t = (int)((long)tokens * me / count); t < (int)((long)tokens * (me + 1) / count); t++)
            round_token(&m, x + (size_t)t * m.columns, work, scratch, tokens, t);
        labcore_barrier();
        int begin = (int)((long)blocks * me / count), end = (int)((long)blocks * (me + 1) / count);
        for (int first = 0; first < tokens; first += TOGETHER) {
            int last = tokens - first < TOGETHER ? tokens : first + TOGETHER;
            qproduct(&m, scratch, out, m.rows, begin, end, first, last, tokens);
        }
    }
}

/* Rows as the codes stand for them, one for each token: out (tokens, columns). */
void labcore_quantized_rows(const qmatrix_t *matrix, const int64_t *rows, float *out, int tokens) {
    for (int t = 0; t < tokens; t++) row_of_codes(matrix, (int)rows[t], out + (size_t)t * matrix->columns);
}
