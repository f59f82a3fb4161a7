/* t2 */
__kernel __attribute__((reqd_work_group_size(128, 1, 1)))
void row_reduction_262a76df17(__global int *check, __global float *p1, __global const float *p2) {
    const int first_check = 0;
    __local float parts[128];
    const int l = get_local_id(0) % 32, r = get_local_id(0) / 32;
    const int row = (int)get_group_id(0) * 4 + r, m = min(row, 4), b = 0;
    float total1 = -INFINITY;
    for (int n = l; n < 49; n += 32) {
        const float t2 = p2[sm_check(check, first_check + 0, 49*m + n, 245)];
        total1 = sm_maxs(total1, t2);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    parts[r * 32 + l] = total1;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_ = 16; half_ > 0; half_ /= 2) {
        if (l < half_) parts[r * 32 + l] = sm_maxs(parts[r * 32 + l], parts[r * 32 + l + half_]);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float t3 = parts[r * 32];
    float total4 = 0;
    for (int n = l; n < 49; n += 32) {
        const float t5 = p2[sm_check(check, first_check + 0, 49*m + n, 245)];
        const float t6 = t5 - t3;
        const float t7 = sm_exps(t6);
        total4 = total4 + t7;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    parts[r * 32 + l] = total4;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_ = 16; half_ > 0; half_ /= 2) {
        if (l < half_) parts[r * 32 + l] = parts[r * 32 + l] + parts[r * 32 + l + half_];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float t8 = parts[r * 32];
    if (row < 5) {
        for (int n = l; n < 49; n += 32) {
            const float t9 = p2[sm_check(check, first_check + 0, 49*m + n, 245)];
            const float t10 = t9 - t3;
            const float t11 = sm_exps(t10);
            const float t12 = t11 / t8;
            p1[sm_check(check, first_check + 1, 49*m + n, 245)] = t12;
        }
    }
}
