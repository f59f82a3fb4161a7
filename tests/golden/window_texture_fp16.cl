/* t9 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void contraction_17eedfda6d(__global float *p0, __read_only image2d_t image1, __global const half *p2) {
    __local float A[1088] __attribute__((aligned(16)));
    __local float B[512] __attribute__((aligned(16)));
    const int item = get_local_id(0);
    const int n0 = (int)get_group_id(0) * 32, m0 = (int)get_group_id(1) * 64;
    const int b = get_group_id(2);
    const int my_n = (item) % 8 * 4, my_m = (item) / 8 * 4;
    float4 sum[4][1];
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            sum[i][j] = (float4)(0.0f);
        }
    }
    float4 next_A[2];
    float4 next_B[1];
    #pragma unroll
    for (int u = 0; u < 2; ++u) {
        const int load = item + u * 128;
        const int at_k = (load % 4) * 4, at_x = (load / 4) * 1;
        const int k = 0 + at_k;
        const int m = min(m0 + at_x, 35);
        next_A[u] = 0.0f;
        if (k < 8) {
            const f32v t1 = read_imagef(image1, sm_texel, (int2)(2*(m % 6) + (k / 4), (m / 6)));
            next_A[u] = t1;
        }
    }
    #pragma unroll
    for (int u = 0; u < 1; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
        const int k = 0 + at_k;
        next_B[u] = k < 8 ? sm_load_half4(p2 + k * 4 + min(n0 + at_x, 0)) : (float4)(0.0f);
    }
    for (int k0 = 0; k0 < 8; k0 += 16) /* reduces */ {
        #pragma unroll
        for (int u = 0; u < 2; ++u) {
            const int load = item + u * 128;
            const int at_k = (load % 4) * 4, at_x = (load / 4) * 1;
            A[(at_k + 0) * 68 + at_x] = next_A[u].x;
            A[(at_k + 1) * 68 + at_x] = next_A[u].y;
            A[(at_k + 2) * 68 + at_x] = next_A[u].z;
            A[(at_k + 3) * 68 + at_x] = next_A[u].w;
        }
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
            *(__local float4 *)(B + at_k * 32 + at_x) = next_B[u];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int step = 0; step < 16; ++step) {
            const int k = step;
            const float4 a0 = *(const __local float4 *)(A + k * 68 + my_m);
            const float4 b0 = *(const __local float4 *)(B + k * 32 + my_n);
            sum[0][0] += a0.x * b0;
            sum[1][0] += a0.y * b0;
            sum[2][0] += a0.z * b0;
            sum[3][0] += a0.w * b0;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    #pragma unroll
    for (int i = 0; i < 4; i += 4) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            #pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int m = m0 + my_m + i / 4 * 64 + i % 4, n = n0 + my_n + j * 32 + c;
                if (m < 36 && n < 4) {
                    const float4 value = (float4)(sm_get(sum[i + 0][j], c), sm_get(sum[i + 1][j], c), sm_get(sum[i + 2][j], c), sm_get(sum[i + 3][j], c));
                    *(__global float4 *)(p0 + 36*n + m) = value;
                }
            }
        }
    }
}

/* t4 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void contraction_f3d8f137b8(__write_only image2d_t image0, __global const float *p1, __global const half *p2) {
    __local float A[1088] __attribute__((aligned(16)));
    __local float B[512] __attribute__((aligned(16)));
    const int item = get_local_id(0);
    const int n0 = (int)get_group_id(0) * 32, m0 = (int)get_group_id(1) * 64;
    const int b = get_group_id(2);
    const int my_n = (item) % 8 * 4, my_m = (item) / 8 * 4;
    float4 sum[4][1];
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            sum[i][j] = (float4)(0.0f);
        }
    }
    float4 next_A[2];
    float4 next_B[1];
    #pragma unroll
    for (int u = 0; u < 2; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 16) * 4, at_k = (load / 16) * 1;
        const int k = 0 + at_k;
        const int m = min(m0 + at_x, 32);
        next_A[u] = 0.0f;
        if (k < 3) {
            const f32v t1 = *(const __global float4 *)(p1 + 36*k + m);
            next_A[u] = t1;
        }
    }
    #pragma unroll
    for (int u = 0; u < 1; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
        const int k = 0 + at_k;
        next_B[u] = k < 3 ? sm_load_half4(p2 + k * 8 + min(n0 + at_x, 4)) : (float4)(0.0f);
    }
    for (int k0 = 0; k0 < 3; k0 += 16) /* reduces */ {
        #pragma unroll
        for (int u = 0; u < 2; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 16) * 4, at_k = (load / 16) * 1;
            *(__local float4 *)(A + at_k * 68 + at_x) = next_A[u];
        }
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
            *(__local float4 *)(B + at_k * 32 + at_x) = next_B[u];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int step = 0; step < 16; ++step) {
            const int k = step;
            const float4 a0 = *(const __local float4 *)(A + k * 68 + my_m);
            const float4 b0 = *(const __local float4 *)(B + k * 32 + my_n);
            sum[0][0] += a0.x * b0;
            sum[1][0] += a0.y * b0;
            sum[2][0] += a0.z * b0;
            sum[3][0] += a0.w * b0;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        #pragma unroll
        for (int j = 0; j < 1; ++j) {
            const int m = m0 + my_m + i / 4 * 64 + i % 4, n = n0 + my_n + j * 32;
            if (m < 36 && n < 8) {
                const float4 value = sum[i][j];
                const f32v t2 = value * sm_splat(0.1666666716337204f);
                const f32v t3 = t2 + sm_splat(0.5f);
                const f32v t4 = sm_min(sm_splat(1.0f), t3);
                const f32v t5 = sm_max(sm_splat(0.0f), t4);
                const f32v t6 = value * t5;
                write_imagef(image0, (int2)(2*(m % 6) + (n / 4), (m / 6)), sm_round_half(t6));
            }
        }
    }
}

/* t7 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void reduction_af73a920cf(__write_only image2d_t image0, __read_only image2d_t image1, __global const float *p2, __global const float *p3) {
    __local float4 parts[128];
    const int self = get_local_id(0) % 32, part = get_local_id(0) / 32;
    const int item = min((int)get_group_id(0) * 32 + self, 71);
    const int i0 = (item / 12);
    const int i1 = (item / 2) % 6;
    const int i2 = item % 2;
    const int i3 = item % 1 * 4;
    float4 total1 = (float4)(0);
    for (int term = part; term < 3; term += 4) {
        const int i4 = term;
        float4 row2[3];
        #pragma unroll
        for (int i5 = 0; i5 < 3; ++i5) /* reduces */ {
            f32v t3;
            if ((uint)(i0 + i4 - 1) < 6u && (uint)(i1 + i5 - 1) < 6u) {
                const f32v t4 = read_imagef(image1, sm_texel, (int2)(2*i1 + 2*i5 + i2 - 2, i0 + i4 - 1));
                t3 = t4;
            }
            else {
                t3 = sm_splat(0.0f);
            }
            row2[i5] = t3;
        }
        #pragma unroll
        for (int i5 = 0; i5 < 3; ++i5) /* reduces */ {
            const f32v t5 = *(const __global float4 *)(p3 + 24*i4 + 8*i5 + 4*i2 + i3);
            total1 += row2[i5] * t5;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    parts[part * 32 + self] = total1;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_ = 2; half_ > 0; half_ /= 2) {
        if (part < half_) parts[part * 32 + self] = parts[part * 32 + self] + parts[(part + half_) * 32 + self];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float4 t6 = parts[self];
    const f32v t7 = *(const __global float4 *)(p2 + 4*i2 + i3);
    const f32v t8 = t6 + t7;
    if (part != 0 || (int)get_group_id(0) * 32 + self >= 72) return;
    write_imagef(image0, (int2)(2*i1 + i2, i0), sm_round_half(t8));
}
