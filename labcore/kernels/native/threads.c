/* A barrier whose waiting threads spin as long as that pays, and then sleep.
 *
 * A step has six barriers a layer, and threads that share the work equally reach each within microseconds: a thread that
 * sleeps there is awake again 50 to 100 microseconds late, one that spins at once. But where other programs use the
 * cores too, the thread that is waited for may not be running at all, and spinning keeps the very core from it. OpenMP
 * spins for a fixed time, which is wrong in one of the two cases. Here each thread learns from its last waits (Karlin et
 * al. 1991, "Empirical studies of competitive spinning"): where spinning brought the barrier it may spin longer the next
 * time, where it ended in sleep it spins half as long.
 *
 * An example, of two threads: the first to arrive counts `arrived` up to 1 and watches `phase`, 7, for some hundred
 * turns. The second finds 1 of 2 there, sets `arrived` back to 0 and `phase` to 8, and wakes whoever sleeps. A sleeper
 * whose kernel call comes after that does not fall asleep, because `phase` is no longer the 7 it names.
 */
#include "threads.h"

#ifdef __linux__
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#define FEWEST_SPINS 64     /* a few microseconds */
#define MOST_SPINS (1 << 14) /* some hundred microseconds, more than a wake-up takes */

static _Thread_local team_t *own_team;
static _Thread_local int spins = MOST_SPINS;

void labcore_join_team(team_t *team) { own_team = team; }

static inline void pause_spinning(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static int spin_until_past(atomic_int *phase, int now) {
    for (int i = 0; i < spins; i++, pause_spinning())
        if (atomic_load_explicit(phase, memory_order_acquire) != now) return 1;
    return 0;
}

static void sleep_until_past(team_t *team, int now) {
    atomic_fetch_add(&team->sleeping, 1);
    while (atomic_load(&team->phase) == now) {
#ifdef __linux__
        syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
#else
        sched_yield();
#endif
    }
    atomic_fetch_sub(&team->sleeping, 1);
}

static void wait_until_past(team_t *team, int now) {
    if (spin_until_past(&team->phase, now)) {
        spins = spins < MOST_SPINS ? spins * 2 : MOST_SPINS;
    } else {
        sleep_until_past(team, now);
        spins = spins > FEWEST_SPINS ? spins / 2 : FEWEST_SPINS;
    }
}

void labcore_barrier(void) {
    team_t *team = own_team;
    int threads = omp_get_num_threads();
    if (threads == 1) return;
    int now = atomic_load(&team->phase);
    if (atomic_fetch_add(&team->arrived, 1) + 1 < threads) {
        wait_until_past(team, now);
        return;
    }
    atomic_store(&team->arrived, 0); /* before the phase: nobody arrives at the next barrier until it has changed */
    atomic_store(&team->phase, now + 1);
#ifdef __linux__
    if (atomic_load(&team->sleeping)) syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
}
