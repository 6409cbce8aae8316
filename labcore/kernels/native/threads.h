/* OpenMP's questions, also where there is no OpenMP: one thread then does everything. And a barrier for its threads. */
#ifndef LABCORE_THREADS_H
#define LABCORE_THREADS_H

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_thread_num(void) { return 0; }
#endif

#include <stdatomic.h>

/* The threads of one parallel region, which wait for one another. Zeros at the start; it lives as long as the region. */
typedef struct {
    atomic_int arrived; /* at the barrier of this phase */
    atomic_int phase;   /* barriers passed, which is what sleeping threads watch */
    atomic_int sleeping;
} team_t;

/* A thread's first act in a parallel region. */
void labcore_join_team(team_t *team);

/* Returns in every thread of the team once all have called it; what they wrote before is seen after it. In place of
 * OpenMP's barrier: see threads.c. */
void labcore_barrier(void);

#endif
