/* Enqueue a stretch of OpenCL kernels whose arguments are set: one call from Python instead of one per kernel.
 *
 * The OpenCL library is not linked: the caller has opened it and passes the address of clEnqueueNDRangeKernel. */
#include <stddef.h>

typedef int (*sm_enqueue)(void *queue, void *kernel, unsigned dims, const size_t *offset, const size_t *global,
                          const size_t *local, unsigned waits, const void *wait_list, void *event);

typedef struct {
    void *kernel;
    size_t dims, global[3], local[3]; /* local[0] 0: the driver chooses */
} sm_launch;

/* Enqueues `count` launches; stops at the first that is refused, gives its status and its number in *at. */
int sm_cl_launch(sm_enqueue enqueue, void *queue, const sm_launch *launches, long count, long *at) {
    for (long i = 0; i < count; i++) {
        const sm_launch *launch = &launches[i];
        int status = enqueue(queue, launch->kernel, (unsigned)launch->dims, NULL, launch->global,
                             launch->local[0] ? launch->local : NULL, 0, NULL, NULL);
        if (status) {
            *at = i;
            return status;
        }
    }
    return 0;
}
