"""NVIDIA's instructions for products on matrix units, as OpenCL C functions with inline PTX.

In: nothing. Out: `SUPPORT`, which goes in front of kernels that call them. `PTX` has what other devices do not have.
"""

from __future__ import annotations

PTX = """
inline void sm_multiply(float *c, const uint *a, const uint *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Upper bits of both operands, which is what the units read of floats. */
inline void sm_multiply_upper(float *c, const uint *a, const uint *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Four (two) blocks of 8 rows of 16 bytes; each work-item names the start of one row. _t: of halves, transposed. */
#define SM_BLOCKS(name, form) \
    inline void name(uint *r, const __local void *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint)(size_t)row) : "memory"); \
    } \
    inline void name##_2(uint *r, const __local void *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" form ".shared.b16 {%0, %1}, [%2];" \
                     : "=r"(r[0]), "=r"(r[1]) : "r"((uint)(size_t)row) : "memory"); \
    }
SM_BLOCKS(sm_blocks, "")
SM_BLOCKS(sm_blocks_t, ".trans")
/* Copies 16 (8) bytes without waiting, or zeros where `inside` is 0. */
inline void sm_copy_16(__local void *to, const __global void *from, int inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((uint)(size_t)to), "l"((ulong)from), "r"(inside ? 16 : 0) : "memory");
}
inline void sm_copy_8(__local void *to, const __global void *from, int inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"((uint)(size_t)to), "l"((ulong)from), "r"(inside ? 8 : 0) : "memory");
}
/* Floats x and y as halves: in one register the nearest ones, x below, in another 2^11 times what they lack. */
inline void sm_to_halves(uint *upper, uint *lower, uint x, uint y) {
    float x_, y_;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*upper) : "f"(as_float(y)), "f"(as_float(x)));
    asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(x_), "=f"(y_) : "r"(*upper));
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*lower)
        : "f"((as_float(y) - y_) * 0x1p11f), "f"((as_float(x) - x_) * 0x1p11f));
}
/* The floats that such halves stand for. */
inline void sm_from_halves(uint *x, uint *y, uint upper, uint lower) {
    float x_, y_, dx, dy;
    asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(x_), "=f"(y_) : "r"(upper));
    asm("{ .reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(dx), "=f"(dy) : "r"(lower));
    *x = as_uint(x_ + dx * 0x1p-11f), *y = as_uint(y_ + dy * 0x1p-11f);
}
/* Whether `is` holds for any work-item of the group; a barrier. */
inline int sm_any(int is) {
    int any;
    asm volatile("{ .reg .pred p, q; setp.ne.s32 p, %1, 0; bar.red.or.pred q, 0, p; selp.s32 %0, 1, 0, q; }"
                 : "=r"(any) : "r"(is) : "memory");
    return any;
}
#define sm_copied() asm volatile("cp.async.commit_group;" ::: "memory")
#define sm_wait_copies(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
"""
SPLIT = """\
/* A float as the sum of two numbers of 11 bits: `x` keeps the nearest one, so that the rest may have either sign, and
   what is left out of products does not add up. */
inline void sm_split(uint *x, uint *lower) {
    const float value = as_float(*x);
    *x = (*x + 0x1000u) & 0xffffe000u;
    *lower = as_uint(fmin(value - as_float(*x), 0x1p117f)); /* the rest of an infinity is no NaN */
}
"""
SUPPORT = PTX + SPLIT  # functions that kernels with such products call
