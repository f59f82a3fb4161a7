/* A thread pool for one model: runs a list of steps in order, the tasks of a step in parallel.
 *
 * One model instance owns one pool.  The thread that calls sm_pool_run works as thread 0, the pool has threads - 1
 * workers.  A step's tasks [0, tasks) are handed out in chunks of `grain`; all its tasks have returned before the next
 * step starts.  A step with one chunk runs on the caller and wakes nobody.
 *
 * Between runs the workers sleep.  Inside a run a waiting thread spins for some 300 microseconds and then sleeps too, so
 * more threads than cores cost time but never spin for ever.
 */
#ifndef SM_POOL_H
#define SM_POOL_H

#ifdef __cplusplus
extern "C" {
#endif

/* Does tasks [begin, end).  `scratch` belongs to the running thread.  Its first long is -1 in the first call of a thread
 * in a step; what a kernel writes there says, in later calls of that thread and step, what the rest of scratch holds. */
typedef void (*sm_kernel)(void *const *args, long begin, long end, void *scratch);

typedef struct {
    sm_kernel fn;
    long tasks;
    long grain;         /* tasks of a chunk, at least 1 */
    const int *arg_ids; /* args[i] = pointers[arg_ids[i]] */
    int nargs;          /* at most SM_MAX_ARGS */
} sm_step;

enum { SM_MAX_ARGS = 64, SM_MAX_THREADS = 256 };

typedef struct sm_pool sm_pool;

/* NULL where threads < 1, memory is short or a thread cannot be started. */
sm_pool *sm_pool_create(int threads);

/* Not while a run is in progress. */
void sm_pool_destroy(sm_pool *pool);

/* 0, or -1 and nothing done where a step is not valid (grain < 1, nargs > SM_MAX_ARGS).  `scratch` has one pointer for
 * each thread, to 8 bytes at least, or is NULL.  One run at a time: a second caller waits until the first is done. */
int sm_pool_run(sm_pool *pool, const sm_step *steps, int nsteps, void *const *pointers, void *const *scratch);

/* The same, with times: the wall-clock seconds of each step; and from when to when, in seconds since the call, thread t
 * worked on step s, in spans[2 * (s * threads + t)] and the entry after it, which stay as they are where it did not. */
int sm_pool_run_timed(sm_pool *pool, const sm_step *steps, int nsteps, void *const *pointers, void *const *scratch,
                      double *seconds_per_step, double *spans);

#ifdef __cplusplus
}
#endif
#endif
