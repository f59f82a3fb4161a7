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
 *   description of the step, `pending` = chunks
 *   all shares, then `epoch` + 1      ------->    sees a new `epoch`
 *   takes chunks until none is left               takes chunks until none is left
 *   pending -= chunks it did                      pending -= chunks it did
 *   waits for pending == 0            <-------    waits for the next `epoch`
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
    /* Written by the caller between steps. */
    _Alignas(SM_LINE) _Atomic uint32_t epoch;
    sm_kernel fn;
    long tasks, grain;
    uint32_t chunks;
    void *const *scratch;
    void *args[SM_MAX_ARGS];
    double *spans; /* of the present step, two numbers for each thread; NULL in a run that is not timed */
    double start;  /* of a timed run */
    int spin; /* 0 with more threads than processors: then a spinning thread only keeps another from its work */
    int threads;
    _Atomic int processor; /* that the caller is on */
    _Atomic int alone;     /* whether the caller has that for itself */
    double watched;        /* when that was found; how often the caller had been preempted until then */
    long preempted;

    _Alignas(SM_LINE) _Atomic uint32_t pending; /* chunks not yet reported as done */
    _Alignas(SM_LINE) _Atomic int sleepers;     /* workers asleep */
    _Atomic int caller_sleeps;
    _Atomic int stop;

    _Alignas(SM_LINE) pthread_mutex_t mutex; /* of both condition variables */
    pthread_cond_t work, done;
    pthread_mutex_t run; /* held for the whole of a run */
    sm_worker *workers;
    sm_share shares[];
};

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

static void sm_do_chunk(const sm_pool *pool, long chunk, int id) {
    long begin = chunk * pool->grain, end = begin + pool->grain;
    pool->fn(pool->args, begin, end < pool->tasks ? end : pool->tasks, pool->scratch ? pool->scratch[id] : NULL);
}

/* Before the first chunk of a step that thread `id` does: its scratch holds nothing of this step. */
static void sm_forget(const sm_pool *pool, int id) {
    if (pool->scratch) *(long *)pool->scratch[id] = -1;
}

/* Does chunks as thread `id` until all shares are empty; returns how many. */
static uint32_t sm_do_chunks(sm_pool *pool, int id) {
    uint32_t did = 0;
    double begin = 0.0;
    for (int k = 0, t = id; k < pool->threads; k++, t = t + 1 < pool->threads ? t + 1 : 0) {
        sm_share *share = &pool->shares[t];
        uint64_t left = atomic_load_explicit(&share->left, memory_order_acquire);
        while ((uint32_t)left != 0) {
            if (!atomic_compare_exchange_weak_explicit(&share->left, &left, left - 1, memory_order_acq_rel,
                                                       memory_order_acquire))
                continue;
            if (did == 0) {
                sm_forget(pool, id);
                if (pool->spans != NULL) begin = sm_now();
            }
            sm_do_chunk(pool, (long)(sm_share_begin(pool, pool->chunks, t + 1) - (uint32_t)left), id);
            did++;
            left = atomic_load_explicit(&share->left, memory_order_acquire);
        }
    }
    if (did != 0 && pool->spans != NULL) { /* the step has not ended: `pending` still counts these chunks */
        pool->spans[2 * id] = begin - pool->start;
        pool->spans[2 * id + 1] = sm_now() - pool->start;
    }
    return did;
}

/* True once `*word` is not `value`; false when that took too long. */
static int sm_spin_while(const sm_pool *pool, const _Atomic uint32_t *word, uint32_t value, int until_equal) {
    double start = 0.0;
    for (int i = 1;; i++) {
        int equal = atomic_load_explicit(word, memory_order_acquire) == value;
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

/* The caller, before a step: where is it? */
static void sm_locate(sm_pool *pool) { atomic_store_explicit(&pool->processor, sched_getcpu(), memory_order_relaxed); }

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

static void *sm_work(void *argument) {
    sm_worker *self = argument;
    sm_pool *pool = self->pool;
    double since = 0.0;
    uint32_t seen = 0;
    for (;;) {
        if (!sm_spin_while(pool, &pool->epoch, seen, 0)) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleepers, 1);
            while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->work, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = atomic_load_explicit(&pool->epoch, memory_order_acquire);
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) return NULL;
        uint32_t did = sm_do_chunks(pool, self->id);
        if (did != 0 && atomic_fetch_sub(&pool->pending, did) == did && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
        sm_give_way(pool, &since);
    }
}

/* Tells the workers that `epoch` has changed; wakes at most `count` of those asleep. */
static void sm_wake(sm_pool *pool, uint32_t count) {
    uint32_t sleepers = (uint32_t)atomic_load(&pool->sleepers);
    if (sleepers == 0) return;
    pthread_mutex_lock(&pool->mutex);
    if (sleepers <= count) pthread_cond_broadcast(&pool->work);
    else
        for (uint32_t i = 0; i < count; i++) pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
}

static void sm_run_shared(sm_pool *pool) {
    uint32_t epoch = atomic_load_explicit(&pool->epoch, memory_order_relaxed) + 1;
    uint32_t begin = 0;
    atomic_store_explicit(&pool->pending, pool->chunks, memory_order_relaxed);
    for (int t = 0; t < pool->threads; t++) {
        uint32_t end = sm_share_begin(pool, pool->chunks, t + 1);
        uint64_t left = (uint64_t)epoch << 32 | (uint64_t)(end - begin);
        atomic_store_explicit(&pool->shares[t].left, left, memory_order_release);
        begin = end;
    }
    sm_locate(pool);
    atomic_store(&pool->epoch, epoch);
    sm_wake(pool, pool->chunks - 1);
    uint32_t did = sm_do_chunks(pool, 0);
    if (did != 0) atomic_fetch_sub(&pool->pending, did);
    if (sm_spin_while(pool, &pool->pending, 0, 1)) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_sleeps, 1);
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
    pool->scratch = scratch;
    sm_watch(pool);
    double before = seconds_per_step ? sm_now() : 0.0;
    pool->start = before;
    for (int s = 0; s < nsteps; s++) {
        const sm_step *step = &steps[s];
        for (int i = 0; i < step->nargs; i++) pool->args[i] = pointers[step->arg_ids[i]];
        pool->fn = step->fn;
        pool->tasks = step->tasks;
        pool->grain = step->grain;
        pool->chunks = step->tasks <= 0 ? 0 : (uint32_t)((step->tasks - 1) / step->grain + 1);
        pool->spans = spans ? spans + 2 * (long)s * pool->threads : NULL;
        int shared = pool->chunks > 1 && pool->threads > 1;
        if (shared) sm_run_shared(pool);
        else {
            sm_forget(pool, 0);
            for (uint32_t c = 0; c < pool->chunks; c++) sm_do_chunk(pool, (long)c, 0);
        }
        if (seconds_per_step) {
            double now = sm_now();
            seconds_per_step[s] = now - before;
            if (spans && !shared) {
                pool->spans[0] = before - pool->start;
                pool->spans[1] = now - pool->start;
            }
            before = now;
        }
    }
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
    atomic_fetch_add(&pool->epoch, 1);
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
