/* How a step is shared out.
 *
 * Chunk c of n belongs to the share of thread c * threads / n: thread t takes its own share first, so that consecutive
 * steps over the same rows find them in the cache of the same core, and then helps the others.  What is left of a share
 * is one 64-bit word, (step counter << 32) | chunks left; taking a chunk is a compare-and-swap of the word with the word
 * less one.  The step counter makes a word of an earlier step fail that swap, so a thread that comes late either finds
 * nothing or properly takes part in the present step, and everything else about the step may be read after a chunk has
 * been taken: the step cannot end before that chunk is done.
 *
 *   caller                                        worker
 *   `pending` = chunks
 *   the workers' shares, then its own ------->    sees a new counter in its share
 *   takes chunks of its share, helps              takes chunks of its share; pending -= chunks it did
 *                                                 helps; pending -= chunks it did
 *   waits for the others' chunks      <-------    waits for the next counter
 *
 * A line of the cache that one core writes and another reads costs 50 ns or more each time it passes.  So a step writes
 * `pending` and the shares and nothing else: which step it is follows from its counter, and each thread collects the
 * arguments for itself.
 *
 * Both waits spin first and then sleep on a condition variable.  A sleeper announces itself before it looks for the last
 * time, the other side publishes before it looks for sleepers, both sequentially consistent: one of them sees the other.
 *
 * Beside other busy processes what costs most is to wait for a thread that lost its processor in the middle of a chunk.
 * So workers give way between steps, of their own accord (sm_give_way); Linux only.
 */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/resource.h>
#endif

enum { SM_LINE = 128 };                         /* two cache lines: neighbours are fetched in pairs */
static const double SM_SPIN_SECONDS = 300e-6;
static const double SM_TURN_SECONDS = 500e-6;   /* of a worker, until it gives way */
static const double SM_WATCH_SECONDS = 20e-3;   /* how often the caller looks whether it has a processor for itself */
static const double SM_PREEMPT_SECONDS = 10e-3; /* it has not, if it is preempted more often than that */
static const size_t SM_STACK_BYTES = 4u << 20;

typedef struct {
    _Alignas(SM_LINE) _Atomic uint64_t left; /* (step counter << 32) | chunks left */
} sm_share;

typedef struct {
    sm_pool *pool;
    pthread_t thread;
    int id;
} sm_worker;

struct sm_pool {
    /* Written by the caller between runs. */
    const sm_step *steps;
    void *const *pointers, *const *scratch;
    double *spans;    /* two numbers for each step and thread; NULL in a run that is not timed */
    double start;     /* of a timed run */
    uint32_t counter; /* of the run's first step */
    int spin;         /* 0 with more threads than processors: then a spinning thread only keeps another from its work */
    int threads;
    double watched;   /* when `alone` was found; how often the caller had been preempted until then */
    long preempted;
    _Atomic int processor; /* that the caller is on */
    _Atomic int alone;     /* whether the caller has that for itself */

    _Alignas(SM_LINE) _Atomic uint64_t pending; /* chunks not yet reported as done */
    _Alignas(SM_LINE) _Atomic int sleepers;     /* workers asleep */
    _Atomic int caller_sleeps;
    _Atomic int stop;

    _Alignas(SM_LINE) pthread_mutex_t mutex; /* of both condition variables */
    pthread_cond_t work, done;
    pthread_mutex_t run; /* held for the whole of a run */
    sm_worker *workers;
    sm_share shares[];
};

/* What a thread knows of the step that it works on. */
typedef struct {
    const sm_step *step;
    uint32_t counter, chunks;
    double begin; /* of its first chunk, in a timed run */
    void *args[SM_MAX_ARGS];
} sm_task;

static double sm_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sm_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does nothing on most cores */
#endif
}

/* First chunk of the share of thread t. */
static uint32_t sm_share_begin(const sm_pool *pool, uint32_t chunks, int t) {
    return (uint32_t)((uint64_t)chunks * (uint64_t)t / (uint64_t)pool->threads);
}

static uint32_t sm_chunks(const sm_step *step) {
    return step->tasks <= 0 ? 0 : (uint32_t)((step->tasks - 1) / step->grain + 1);
}

/* Begins step `counter` as thread `id`, whose scratch holds nothing of it. */
static void sm_begin(const sm_pool *pool, sm_task *task, uint32_t counter, int id) {
    const sm_step *step = &pool->steps[counter - pool->counter];
    task->step = step;
    task->counter = counter;
    task->chunks = sm_chunks(step);
    for (int i = 0; i < step->nargs; i++) task->args[i] = pool->pointers[step->arg_ids[i]];
    if (pool->scratch) *(long *)pool->scratch[id] = -1;
    if (pool->spans != NULL) task->begin = sm_now();
}

static void sm_do_chunk(const sm_pool *pool, sm_task *task, long chunk, int id) {
    const sm_step *step = task->step;
    long begin = chunk * step->grain, end = begin + step->grain;
    step->fn(task->args, begin, end < step->tasks ? end : step->tasks, pool->scratch ? pool->scratch[id] : NULL);
}

/* Does what is left of the share of thread `t` as thread `id`; returns how many chunks that were. */
static uint32_t sm_do_share(sm_pool *pool, sm_task *task, int t, int id) {
    uint32_t did = 0;
    sm_share *share = &pool->shares[t];
    uint64_t left = atomic_load_explicit(&share->left, memory_order_acquire);
    while ((uint32_t)left != 0) {
        if (!atomic_compare_exchange_weak_explicit(&share->left, &left, left - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        uint32_t counter = (uint32_t)(left >> 32);
        if (task->step == NULL || task->counter != counter) sm_begin(pool, task, counter, id);
        sm_do_chunk(pool, task, (long)(sm_share_begin(pool, task->chunks, t + 1) - (uint32_t)left), id);
        did++;
        left = atomic_load_explicit(&share->left, memory_order_acquire);
    }
    if (did != 0 && pool->spans != NULL) { /* the step has not ended: `pending` still counts these chunks */
        double *span = &pool->spans[2 * ((long)(task->counter - pool->counter) * pool->threads + id)];
        span[0] = task->begin - pool->start;
        span[1] = sm_now() - pool->start;
    }
    return did;
}

/* Helps all threads but `id`; returns how many chunks that were. */
static uint32_t sm_help(sm_pool *pool, sm_task *task, int id) {
    uint32_t did = 0;
    for (int k = 1; k < pool->threads; k++) did += sm_do_share(pool, task, (id + k) % pool->threads, id);
    return did;
}

/* True once the bits `mask` of `*word` are (`until_equal`) or are not `value`; false when that took too long. */
static int sm_spin(const sm_pool *pool, const _Atomic uint64_t *word, uint64_t mask, uint64_t value, int until_equal) {
    double start = 0.0;
    for (int i = 1;; i++) {
        int equal = (atomic_load_explicit(word, memory_order_acquire) & mask) == value;
        if (equal == until_equal) return 1;
        if (!pool->spin) return 0;
        sm_relax();
        if (i % 32 != 0) continue;
        if (start == 0.0) start = sm_now();
        else if (sm_now() - start > SM_SPIN_SECONDS) return 0;
    }
}

#ifdef __linux__
/* The caller, before a run: does it have a processor for itself? */
static void sm_watch(sm_pool *pool) {
    double now = sm_now();
    if (now - pool->watched < SM_WATCH_SECONDS) return;
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    double times = (double)(usage.ru_nivcsw - pool->preempted);
    atomic_store_explicit(&pool->alone, times * SM_PREEMPT_SECONDS < now - pool->watched, memory_order_relaxed);
    pool->preempted = usage.ru_nivcsw;
    pool->watched = now;
}

/* The caller, in a step: where is it? */
static void sm_locate(sm_pool *pool) {
    int processor = sched_getcpu();
    if (processor != atomic_load_explicit(&pool->processor, memory_order_relaxed))
        atomic_store_explicit(&pool->processor, processor, memory_order_relaxed);
}

/* A worker, between two steps.  Woken beside busy processes it often finds itself on the caller's processor, where they
 * would take turns: it moves to another.  And it lets others run now, before the system makes it within a chunk; not
 * where the caller is preempted, too, for then both would seldom run at the same time. */
static void sm_give_way(sm_pool *pool, double *since) {
    if (!pool->spin) return;
    int processor = atomic_load_explicit(&pool->processor, memory_order_relaxed);
    if (sched_getcpu() == processor) {
        cpu_set_t all, others;
        if (sched_getaffinity(0, sizeof all, &all) != 0) return;
        others = all;
        CPU_CLR((size_t)processor, &others);
        if (CPU_COUNT(&others) != 0 && sched_setaffinity(0, sizeof others, &others) == 0)
            sched_setaffinity(0, sizeof all, &all);
    }
    if (!atomic_load_explicit(&pool->alone, memory_order_relaxed) || sm_now() - *since < SM_TURN_SECONDS) return;
    sched_yield();
    *since = sm_now();
}
#else
static void sm_watch(sm_pool *pool) { (void)pool; }
static void sm_locate(sm_pool *pool) { (void)pool; }
static void sm_give_way(sm_pool *pool, double *since) { (void)pool, (void)since; }
#endif

/* The worker has done `did` chunks of a step. */
static void sm_report(sm_pool *pool, uint32_t did) {
    if (did == 0 || atomic_fetch_sub(&pool->pending, did) != did || !atomic_load(&pool->caller_sleeps)) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->mutex);
}

static void *sm_work(void *argument) {
    static const uint64_t COUNTER = ~(uint64_t)0 << 32;
    sm_worker *self = argument;
    sm_pool *pool = self->pool;
    const _Atomic uint64_t *share = &pool->shares[self->id].left;
    sm_task task = {.step = NULL};
    double since = 0.0;
    uint64_t seen = 0;
    for (;;) {
        if (!sm_spin(pool, share, COUNTER, seen, 0)) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleepers, 1);
            while ((atomic_load(share) & COUNTER) == seen) pthread_cond_wait(&pool->work, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = atomic_load_explicit(share, memory_order_acquire) & COUNTER;
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) return NULL;
        sm_report(pool, sm_do_share(pool, &task, self->id, self->id));
        sm_report(pool, sm_help(pool, &task, self->id));
        sm_give_way(pool, &since);
    }
}

/* Tells the workers that their shares have changed; wakes at most `count` of those asleep. */
static void sm_wake(sm_pool *pool, uint32_t count) {
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t sleepers = (uint32_t)atomic_load(&pool->sleepers);
    if (sleepers == 0) return;
    pthread_mutex_lock(&pool->mutex);
    if (sleepers <= count) pthread_cond_broadcast(&pool->work);
    else
        for (uint32_t i = 0; i < count; i++) pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
}

/* Hands `chunks` out as step `counter`, the caller's share last. */
static void sm_publish(sm_pool *pool, uint32_t counter, uint32_t chunks) {
    uint32_t end = chunks;
    atomic_store_explicit(&pool->pending, chunks, memory_order_relaxed);
    for (int t = pool->threads - 1; t >= 0; t--) {
        uint32_t begin = sm_share_begin(pool, chunks, t);
        uint64_t left = (uint64_t)counter << 32 | (uint64_t)(end - begin);
        atomic_store_explicit(&pool->shares[t].left, left, memory_order_release);
        end = begin;
    }
}

static void sm_run_shared(sm_pool *pool, sm_task *task, uint32_t counter, uint32_t chunks) {
    sm_publish(pool, counter, chunks);
    sm_wake(pool, chunks - 1);
    sm_locate(pool);
    uint32_t did = sm_do_share(pool, task, 0, 0);
    did += sm_help(pool, task, 0);
    if (sm_spin(pool, &pool->pending, ~(uint64_t)0, did, 1)) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_sleeps, 1);
    atomic_fetch_sub(&pool->pending, did);
    while (atomic_load(&pool->pending) != 0) pthread_cond_wait(&pool->done, &pool->mutex);
    atomic_store(&pool->caller_sleeps, 0);
    pthread_mutex_unlock(&pool->mutex);
}

static int sm_valid(const sm_step *step) {
    return step->grain >= 1 && step->nargs >= 0 && step->nargs <= SM_MAX_ARGS &&
           (step->tasks <= 0 || (step->tasks - 1) / step->grain < (long)INT32_MAX);
}

int sm_pool_run_timed(sm_pool *pool, const sm_step *steps, int nsteps, void *const *pointers, void *const *scratch,
                      double *seconds_per_step, double *spans) {
    for (int s = 0; s < nsteps; s++)
        if (!sm_valid(&steps[s])) return -1;
    pthread_mutex_lock(&pool->run);
    sm_task task = {.step = NULL};
    uint32_t first = pool->counter;
    pool->steps = steps;
    pool->pointers = pointers;
    pool->scratch = scratch;
    pool->spans = spans;
    sm_watch(pool);
    double before = seconds_per_step ? sm_now() : 0.0;
    pool->start = before;
    for (int s = 0; s < nsteps; s++) {
        uint32_t chunks = sm_chunks(&steps[s]), counter = first + (uint32_t)s;
        int shared = chunks > 1 && pool->threads > 1;
        if (shared) sm_run_shared(pool, &task, counter, chunks);
        else {
            sm_begin(pool, &task, counter, 0);
            for (uint32_t c = 0; c < chunks; c++) sm_do_chunk(pool, &task, (long)c, 0);
        }
        if (seconds_per_step) {
            double now = sm_now();
            seconds_per_step[s] = now - before;
            if (spans && !shared) {
                double *span = &spans[2 * (long)s * pool->threads];
                span[0] = before - pool->start;
                span[1] = now - pool->start;
            }
            before = now;
        }
    }
    pool->counter = first + (uint32_t)nsteps;
    pthread_mutex_unlock(&pool->run);
    return 0;
}

int sm_pool_run(sm_pool *pool, const sm_step *steps, int nsteps, void *const *pointers, void *const *scratch) {
    return sm_pool_run_timed(pool, steps, nsteps, pointers, scratch, NULL, NULL);
}

/* Starts worker `id` with all signals blocked: they belong to the threads of the application. */
static int sm_start(sm_pool *pool, int id) {
    sm_worker *worker = &pool->workers[id];
    pthread_attr_t attributes;
    sigset_t all, before;
    worker->pool = pool;
    worker->id = id;
    if (pthread_attr_init(&attributes) != 0) return -1;
    pthread_attr_setstacksize(&attributes, SM_STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&worker->thread, &attributes, sm_work, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return failed ? -1 : 0;
}

/* Ends workers 1 .. threads - 1 and frees the pool. */
static void sm_end(sm_pool *pool, int threads) {
    atomic_store(&pool->stop, 1);
    sm_publish(pool, pool->counter, 0);
    sm_wake(pool, UINT32_MAX);
    for (int id = 1; id < threads; id++) pthread_join(pool->workers[id].thread, NULL);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
    pthread_mutex_destroy(&pool->run);
    free(pool->workers);
    free(pool);
}

sm_pool *sm_pool_create(int threads) {
    if (threads < 1 || threads > SM_MAX_THREADS) return NULL;
    void *memory = NULL;
    size_t bytes = sizeof(sm_pool) + (size_t)threads * sizeof(sm_share);
    if (posix_memalign(&memory, SM_LINE, bytes) != 0) return NULL;
    memset(memory, 0, bytes);
    sm_pool *pool = memory;
    pool->threads = threads;
    pool->counter = 1; /* the workers have seen 0 */
    pool->spin = threads <= sysconf(_SC_NPROCESSORS_ONLN);
    pool->workers = calloc((size_t)threads, sizeof(sm_worker));
    if (pool->workers == NULL) {
        free(pool);
        return NULL;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_mutex_init(&pool->run, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    for (int id = 1; id < threads; id++)
        if (sm_start(pool, id) != 0) {
            sm_end(pool, id);
            return NULL;
        }
    return pool;
}

void sm_pool_destroy(sm_pool *pool) {
    if (pool != NULL) sm_end(pool, pool->threads);
}
