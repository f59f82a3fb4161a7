/* t6 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void attention_9d82778f07(__global float *p0, __global const float *p1, __global const float *p2, __global const float *p3) {
    __local float A[192] __attribute__((aligned(16)));
    __local float B[512] __attribute__((aligned(16)));
    __local float S[96] __attribute__((aligned(16)));
    __local float4 parts[448];
    __local float tree[128];
    __local float row_0[8];
    __local float row_1[8];
    const int item = get_local_id(0), b = get_group_id(1);
    const int m0 = (int)get_group_id(0) * 8;
    for (int n0 = 0; n0 < 10; n0 += 32) {
        const int slice = item / 16;
        const int my_n = (item % 16) % 8 * 4, my_m = (item % 16) / 8 * 4;
        float4 sum[4][1];
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            #pragma unroll
            for (int j = 0; j < 1; ++j) {
                sum[i][j] = (float4)(0.0f);
            }
        }
        float4 next_A[1];
        float next_B[4];
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            if (load < 32) {
                const int at_k = (load % 4) * 4, at_x = (load / 4) * 1;
                const int k = 0 + at_k;
                const int m = min(m0 + at_x, 6);
                next_A[u] = 0.0f;
                if (k < 8) {
                    const f32v t1 = *(const __global float4 *)(p1 + 56*b + 8*m + k);
                    next_A[u] = t1;
                }
            }
        }
        #pragma unroll
        for (int u = 0; u < 4; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 32) * 1, at_k = (load / 32) * 1;
            const int k = 0 + at_k;
            const int n = min(n0 + at_x, 9);
            next_B[u] = 0.0f;
            if (k < 8) {
                const float t2 = p2[80*b + 10*k + n];
                next_B[u] = t2;
            }
        }
        for (int k0 = 0; k0 < 8; k0 += 16) /* reduces */ {
            #pragma unroll
            for (int u = 0; u < 1; ++u) {
                const int load = item + u * 128;
                if (load < 32) {
                    const int at_k = (load % 4) * 4, at_x = (load / 4) * 1;
                    A[(at_k + 0) * 12 + at_x] = next_A[u].x;
                    A[(at_k + 1) * 12 + at_x] = next_A[u].y;
                    A[(at_k + 2) * 12 + at_x] = next_A[u].z;
                    A[(at_k + 3) * 12 + at_x] = next_A[u].w;
                }
            }
            #pragma unroll
            for (int u = 0; u < 4; ++u) {
                const int load = item + u * 128;
                const int at_x = (load % 32) * 1, at_k = (load / 32) * 1;
                B[at_k * 32 + at_x] = next_B[u];
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            #pragma unroll
            for (int step = 0; step < 2; ++step) {
                const int k = slice * 2 + step;
                const float4 a0 = *(const __local float4 *)(A + k * 12 + my_m);
                const float4 b0 = *(const __local float4 *)(B + k * 32 + my_n);
                sum[0][0] += a0.x * b0;
                sum[1][0] += a0.y * b0;
                sum[2][0] += a0.z * b0;
                sum[3][0] += a0.w * b0;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
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
        if (slice == 0) {
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                #pragma unroll
                for (int j = 0; j < 1; ++j) {
                    #pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        const int m = m0 + my_m + i / 4 * 8 + i % 4, n = n0 + my_n + j * 32 + c;
                        if (m < 7 && n < 10) {
                            const float value = sm_get(sum[i][j], c);
                            S[(m - m0) * 12 + n] = value;
                        }
                    }
                }
            }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    {
        const int r = item / 16, l = item % 16, m = min(m0 + r, 6);
        float total = -INFINITY;
        for (int n = l * 1; n < 10; n += 16) {
            const float t3 = S[(m - m0) * 12 + n];
            total = sm_maxs(total, t3);
        }
        tree[item] = total;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int half_ = 8; half_ > 0; half_ /= 2) {
            if (l < half_) tree[item] = sm_maxs(tree[item], tree[item + half_]);
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        if (l == 0) row_0[r] = tree[item];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    {
        const int r = item / 16, l = item % 16, m = min(m0 + r, 6);
        float total = 0;
        for (int n = l * 1; n < 10; n += 16) {
            const float t4 = S[(m - m0) * 12 + n];
            const float t5 = t4 - row_0[m - m0];
            const float t6 = sm_exps(t5);
            total = total + t6;
        }
        tree[item] = total;
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int half_ = 8; half_ > 0; half_ /= 2) {
            if (l < half_) tree[item] = tree[item] + tree[item + half_];
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        if (l == 0) row_1[r] = tree[item];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int n0 = 0; n0 < 8; n0 += 32) {
        const int slice = item / 16;
        const int my_n = (item % 16) % 8 * 4, my_m = (item % 16) / 8 * 4;
        float4 sum[4][1];
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            #pragma unroll
            for (int j = 0; j < 1; ++j) {
                sum[i][j] = (float4)(0.0f);
            }
        }
        float next_A[1];
        float4 next_B[1];
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            const int at_k = (load % 16) * 1, at_x = (load / 16) * 1;
            const int k = 0 + at_k;
            const int m = min(m0 + at_x, 6);
            next_A[u] = 0.0f;
            if (k < 10) {
                const float t7 = S[(m - m0) * 12 + k];
                const float t8 = t7 - row_0[m - m0];
                const float t9 = sm_exps(t8);
                const float t10 = t9 / row_1[m - m0];
                next_A[u] = t10;
            }
        }
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
            const int k = 0 + at_k;
            const int n = min(n0 + at_x, 4);
            next_B[u] = 0.0f;
            if (k < 10) {
                const f32v t11 = *(const __global float4 *)(p3 + 80*b + 8*k + n);
                next_B[u] = t11;
            }
        }
        for (int k0 = 0; k0 < 10; k0 += 16) /* reduces */ {
            #pragma unroll
            for (int u = 0; u < 1; ++u) {
                const int load = item + u * 128;
                const int at_k = (load % 16) * 1, at_x = (load / 16) * 1;
                A[at_k * 12 + at_x] = next_A[u];
            }
            #pragma unroll
            for (int u = 0; u < 1; ++u) {
                const int load = item + u * 128;
                const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
                *(__local float4 *)(B + at_k * 32 + at_x) = next_B[u];
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            #pragma unroll
            for (int step = 0; step < 2; ++step) {
                const int k = slice * 2 + step;
                const float4 a0 = *(const __local float4 *)(A + k * 12 + my_m);
                const float4 b0 = *(const __local float4 *)(B + k * 32 + my_n);
                sum[0][0] += a0.x * b0;
                sum[1][0] += a0.y * b0;
                sum[2][0] += a0.z * b0;
                sum[3][0] += a0.w * b0;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
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
        if (slice == 0) {
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                #pragma unroll
                for (int j = 0; j < 1; ++j) {
                    const int m = m0 + my_m + i / 4 * 8 + i % 4, n = n0 + my_n + j * 32;
                    if (m < 7 && n < 8) {
                        const float4 value = sum[i][j];
                        *(__global float4 *)(p0 + 56*b + 8*m + n) = value;
                    }
                }
            }
        }
    }
}
