"""NVIDIA's instructions for products on matrix units, and within a warp, as OpenCL C functions with inline PTX.

In: nothing. Out: `SUPPORT`, which goes in front of kernels with products, `warpgroup_products`, and `ACROSS`. `PTX` has
what other devices do not have.

The OpenCL compiler knows ``mma``, but not ``wgmma``, which is for one architecture alone (``sm_90a``). CUDA's driver
does. So instructions for it are comments until `runtime.cuda.ptx` takes the marks off; a kernel that is run
without that stops with an error.
"""

from __future__ import annotations

from smartmem.codegen.ptx_marks import ONLY_HIDDEN

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
ACROSS = """
/* What the work-item of a warp whose number differs in the bits of `mask` has. */
inline float sm_across(float x, int mask) {
    float other;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=f"(other) : "f"(x), "r"(mask));
    return other;
}
"""
SUPPORT = PTX + SPLIT  # functions that kernels with such products call
WARPGROUPS = """\
/* Where rows of 128 bytes begin in local memory, whose pieces of 16 bytes lie at their number ^ (row % 8). */
inline ulong sm_rows(const __local void *at) {
    return (((uint)(size_t)at & 0x3ffff) >> 4) | (ulong)1 << 16 | (ulong)64 << 32 | (ulong)1 << 62;
}
#define sm_commit() asm volatile("@@ wgmma.commit_group.sync.aligned;" ::: "memory")
#define sm_publish() asm volatile("fence.proxy.async.shared::cta;" ::: "memory")
""".replace("@@", ONLY_HIDDEN)
PIECES = 2  # of 16 bytes, which one instruction takes of each row: 16 halves


def warpgroup_products(columns: int, floats: bool) -> str:
    """OpenCL C for c += 64 rows of A by `columns` of B, over 16 of k; four warps call each function together.

    Work-item (g, t) of warp w has the results of rows 16w + g and 16w + g + 8, columns 8j + 2t and 8j + 2t + 1. `x` and
    `y` say where rows of A and B begin (`sm_rows`, plus `PIECES` for each 16 of k). `sm_product` takes halves, both
    from local memory; of `floats`, `sm_product_of` takes a fragment of A from registers, and `sm_first_product_of`
    starts from zero. Until `sm_finish` products are under way: nothing may be done with the registers. Each has a fence
    of its own, or the compiler puts some in, and lets one product wait for the other where it is not sure of branches.
    """
    count = columns // 2
    kind = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16"
    sums = f"{{{', '.join(f'%{i}' for i in range(count))}}}"
    changed, made = (", ".join(f'"{how}"(c[{i}])' for i in range(count)) for how in ("+f", "=&f"))
    head = f"sm_finish{'_of' if floats else ''}_{columns}(float *c)"
    finish = _function(head, "wgmma.wait_group.sync.aligned 0;", changed, "")
    if not floats:
        line = f"{kind} {sums}, %{count}, %{count + 1}, p, 1, 1, 0, 0;"
        head = f"sm_product_{columns}(float *c, ulong x, ulong y)"
        return _function(head, _with_predicate(line, "eq"), changed, '"l"(x), "l"(y)') + finish
    fragment = f"{{{', '.join(f'%{count + r}' for r in range(4))}}}"
    line = f"{kind} {sums}, {fragment}, %{count + 4}, p, 1, 1, 0;"
    inputs = ", ".join([*(f'"r"(a[{r}])' for r in range(4)), '"l"(y)'])
    arguments = f"_{columns}(float *c, const uint *a, ulong y)"
    return (
        _function(f"sm_product_of{arguments}", _with_predicate(line, "eq"), changed, inputs)
        + _function(f"sm_first_product_of{arguments}", _with_predicate(line, "ne"), made, inputs)
        + finish
    )


def _with_predicate(line: str, relation: str) -> str:
    """`line` behind its fence, in which p is true where 0 stands in this relation to itself."""
    return f"{{ .reg .pred p; setp.{relation}.u32 p, 0, 0; wgmma.fence.sync.aligned; {line} }}"


def _function(head: str, line: str, outputs: str, inputs: str) -> str:
    text = f'asm volatile("{ONLY_HIDDEN} {line}"\n        : {outputs}\n        : {inputs} : "memory")'
    return f"inline void {head} {{\n    {text};\n}}\n"
