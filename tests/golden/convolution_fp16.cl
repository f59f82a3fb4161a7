/* t5 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void contraction_98bc8dabc3(__global float *p0, __global const float *p1, __global const float *p2, __global const half *p3) {
    __local float A[512] __attribute__((aligned(16)));
    __local float B[4096] __attribute__((aligned(16)));
    const int item = get_local_id(0);
    const int n0 = (int)get_group_id(0) * 64, m0 = (int)get_group_id(1) * 4;
    const int b = get_group_id(2);
    const int slice = item / 16;
    const int my_n = (item % 16) % 16 * 4, my_m = (item % 16) / 16 * 4;
    float4 sum[4][1];
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            sum[i][j] = (float4)(0.0f);
        }
    }
    float next_A[2];
    float4 next_B[8];
    #pragma unroll
    for (int u = 0; u < 2; ++u) {
        const int load = item + u * 128;
        const int at_k = (load % 64) * 1, at_x = (load / 64) * 1;
        const int k = 0 + at_k;
        const int m = min(m0 + at_x, 24);
        next_A[u] = 0.0f;
        if (k < 36) {
            float t1;
            if ((uint)(2*(m / 5) + ((k / 3) % 3) - 1) < 9u && (uint)(2*(m % 5) + (k % 3) - 1) < 9u) {
                const float t2 = p1[81*(k / 9) + 18*(m / 5) + 9*((k / 3) % 3) + 2*(m % 5) + (k % 3) - 10];
                t1 = t2;
            }
            else {
                t1 = 0.0f;
            }
            next_A[u] = t1;
        }
    }
    #pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 16) * 4, at_k = (load / 16) * 1;
        const int k = 0 + at_k;
        next_B[u] = k < 36 ? sm_load_half4(p3 + k * 8 + min(n0 + at_x, 4)) : (float4)(0.0f);
    }
    for (int k0 = 0; k0 < 36; k0 += 64) /* reduces */ {
        #pragma unroll
        for (int u = 0; u < 2; ++u) {
            const int load = item + u * 128;
            const int at_k = (load % 64) * 1, at_x = (load / 64) * 1;
            A[at_k * 8 + at_x] = next_A[u];
        }
        #pragma unroll
        for (int u = 0; u < 8; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 16) * 4, at_k = (load / 16) * 1;
            *(__local float4 *)(B + at_k * 64 + at_x) = next_B[u];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int step = 0; step < 8; ++step) {
            const int k = slice * 8 + step;
            const float4 a0 = *(const __local float4 *)(A + k * 8 + my_m);
            const float4 b0 = *(const __local float4 *)(B + k * 64 + my_n);
            sum[0][0] += a0.x * b0;
            sum[1][0] += a0.y * b0;
            sum[2][0] += a0.z * b0;
            sum[3][0] += a0.w * b0;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    __local float4 parts[448];
    if (slice > 0) {
        __local float4 *const mine = parts + (item - 16) * 4;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            #pragma unroll
            for (int j = 0; j < 1; ++j) {
                mine[i * 1 + j] = sum[i][j];
            }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (slice == 0) {
        for (int other = 0; other < 7; ++other) {
            const __local float4 *const theirs = parts + (other * 16 + item) * 4;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                #pragma unroll
                for (int j = 0; j < 1; ++j) {
                    sum[i][j] += theirs[i * 1 + j];
                }
            }
        }
    }
    if (slice > 0) return;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            const int m = m0 + my_m + i / 4 * 4 + i % 4, n = n0 + my_n + j * 64;
            if (m < 25 && n < 8) {
                const float4 value = sum[i][j];
                const f32v t3 = *(const __global float4 *)(p2 + n);
                const f32v t4 = value + t3;
                const f32v t5 = sm_max(sm_splat(0.0f), t4);
                p0[25*(n + 0) + m] = t5.x;
                p0[25*(n + 1) + m] = t5.y;
                p0[25*(n + 2) + m] = t5.z;
                p0[25*(n + 3) + m] = t5.w;
            }
        }
    }
}
