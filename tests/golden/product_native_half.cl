/* t6 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void contraction_d262011d9b(__global float *p0, __read_only image2d_t image1, __global const half *p2) {
    __local half A[1088] __attribute__((aligned(16)));
    __local half B[512] __attribute__((aligned(16)));
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
    half4 next_A[2];
    half4 next_B[1];
    #pragma unroll
    for (int u = 0; u < 2; ++u) {
        const int load = item + u * 128;
        const int at_k = (load % 4) * 4, at_x = (load / 4) * 1;
        const int k = 0 + at_k;
        const int m = min(m0 + at_x, 7);
        const f32v t1 = read_imagef(image1, sm_texel, (int2)((k / 4), m));
        next_A[u] = convert_half4(t1);
    }
    #pragma unroll
    for (int u = 0; u < 1; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
        const int k = 0 + at_k;
        next_B[u] = convert_half4(sm_load_half4(p2 + k * 300 + min(n0 + at_x, 296)));
    }
    for (int k0 = 0; k0 < 16; k0 += 16) /* reduces */ {
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
            *(__local half4 *)(B + at_k * 32 + at_x) = next_B[u];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int step = 0; step < 16; ++step) {
            const int k = step;
            const float4 a0 = convert_float4(*(const __local half4 *)(A + k * 68 + my_m));
            const float4 b0 = convert_float4(*(const __local half4 *)(B + k * 32 + my_n));
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
            if (m < 8 && n < 300) {
                const float4 value = sum[i][j];
                *(__global float4 *)(p0 + 300*m + n) = value;
            }
        }
    }
}

/* t4 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void contraction_085e509101(__write_only image2d_t image0, __global const float *p1, __global const half *p2) {
    __local float A[1088] __attribute__((aligned(16)));
    __local half B[512] __attribute__((aligned(16)));
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
    float next_A[8];
    half4 next_B[1];
    #pragma unroll
    for (int u = 0; u < 8; ++u) {
        const int load = item + u * 128;
        const int at_k = (load % 16) * 1, at_x = (load / 16) * 1;
        const int k = 0 + at_k;
        const int m = min(m0 + at_x, 7);
        next_A[u] = 0.0f;
        if (k < 6) {
            const float t1 = p1[6*m + k];
            next_A[u] = t1;
        }
    }
    #pragma unroll
    for (int u = 0; u < 1; ++u) {
        const int load = item + u * 128;
        const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
        const int k = 0 + at_k;
        next_B[u] = convert_half4(k < 6 ? sm_load_half4(p2 + k * 16 + min(n0 + at_x, 12)) : (float4)(0.0f));
    }
    for (int k0 = 0; k0 < 6; k0 += 16) /* reduces */ {
        #pragma unroll
        for (int u = 0; u < 8; ++u) {
            const int load = item + u * 128;
            const int at_k = (load % 16) * 1, at_x = (load / 16) * 1;
            A[at_k * 68 + at_x] = next_A[u];
        }
        #pragma unroll
        for (int u = 0; u < 1; ++u) {
            const int load = item + u * 128;
            const int at_x = (load % 8) * 4, at_k = (load / 8) * 1;
            *(__local half4 *)(B + at_k * 32 + at_x) = next_B[u];
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        #pragma unroll
        for (int step = 0; step < 16; ++step) {
            const int k = step;
            const float4 a0 = *(const __local float4 *)(A + k * 68 + my_m);
            const float4 b0 = convert_float4(*(const __local half4 *)(B + k * 32 + my_n));
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
            if (m < 8 && n < 16) {
                const float4 value = sum[i][j];
                const f32v t2 = sm_max(sm_splat(0.0f), value);
                write_imagef(image0, (int2)((n / 4), m), sm_round_half(t2));
            }
        }
    }
}
