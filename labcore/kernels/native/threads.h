/* OpenMP's questions, also where there is no OpenMP: one thread then does everything. */
#ifndef LABCORE_THREADS_H
#define LABCORE_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

#endif
