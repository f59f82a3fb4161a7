/* What generated kernels are written in: the vocabulary of smartmem's expressions, in OpenCL C 1.2. */
#ifdef cl_khr_fp64
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#else
#define double float
#endif
#ifdef cl_khr_fp16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif
#define _Float16 float /* scalars of halves are computed with in float */
#pragma OPENCL FP_CONTRACT ON

__constant sampler_t sm_texel = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_NONE | CLK_FILTER_NEAREST;

typedef char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef float4 f32v;
typedef int4 i32v;

#define sm_splat(x) ((float4)(x))
#define sm_splat_i(x) ((int4)(x))
#define sm_iota_f() ((float4)(0.0f, 1.0f, 2.0f, 3.0f))
#define sm_select(mask, a, b) select((b), (a), (mask))
#define sm_select_i(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))
#define sm_any4(a, b, c, d) ((float4)(a, b, c, d))

/* Maxima and minima that keep a NaN of either operand. */
#define sm_maxs(a, b) ((a) > (b) || (a) != (a) ? (a) : (b))
#define sm_mins(a, b) ((a) < (b) || (a) != (a) ? (a) : (b))
#define sm_maxd sm_maxs
#define sm_mind sm_mins
inline float4 sm_max(float4 a, float4 b) { return select(b, a, (a > b) | isnan(a)); }
inline float4 sm_min(float4 a, float4 b) { return select(b, a, (a < b) | isnan(a)); }

inline float sm_get(float4 v, int lane) {
    const float2 half_ = lane < 2 ? v.xy : v.zw;
    return (lane & 1) ? half_.y : half_.x;
}
/* The nearest halves, still as floats (ties to even): what is stored then needs no rounding. */
inline float4 sm_round_half(float4 v) {
    const uint4 bits = as_uint4(v), rounded = (bits + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u;
    return select(v, as_float4(rounded), fabs(v) < 65520.0f);
}
/* Four halves at a multiple of eight bytes in one access. NVIDIA's compiler makes four of vloada_half4: it is told. */
#ifdef SM_PTX
inline float4 sm_load_half4(const __global half *p) {
    const uint2 bits = *(const __global uint2 *)p;
    float x, y, z, w;
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(x), "=f"(y) : "r"(bits.x));
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(z), "=f"(w) : "r"(bits.y));
    return (float4)(x, y, z, w);
}
inline uint sm_half2(float x, float y) {
    uint bits;
    asm("{ .reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }" : "=r"(bits) : "f"(x), "f"(y));
    return bits;
}
inline void sm_store_half4(float4 v, __global half *p) {
    *(__global uint2 *)p = (uint2)(sm_half2(v.x, v.y), sm_half2(v.z, v.w));
}
#else
#define sm_load_half4(p) vloada_half4(0, p)
#define sm_store_half4(v, p) vstorea_half4(v, 0, p)
#endif
inline float sm_dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
inline float sm_sum4(float4 v) { return (v.x + v.y) + (v.z + v.w); }
inline float sm_prod4(float4 v) { return (v.x * v.y) * (v.z * v.w); }
inline float sm_max4(float4 v) { return sm_maxs(sm_maxs(v.x, v.y), sm_maxs(v.z, v.w)); }
inline float sm_min4(float4 v) { return sm_mins(sm_mins(v.x, v.y), sm_mins(v.z, v.w)); }

/* --check: a coordinate, or 0 if it is out of range; the first such one is kept as (count, check, coordinate, extent). */
inline int sm_check(__global int *check, int number, int where, int extent) {
    if (where >= 0 && where < extent) return where;
    if (atomic_inc(check) == 0) { check[1] = number; check[2] = where; check[3] = extent; }
    return 0;
}

/* Functions of floats: s scalar, v vector, d double. */
#define SM_UNARY(name, function) \
    inline float sm_##name##s(float x) { return function(x); } \
    inline float4 sm_##name##v(float4 x) { return function(x); }
SM_UNARY(abs, fabs) SM_UNARY(exp, exp) SM_UNARY(log, log) SM_UNARY(sqrt, sqrt) SM_UNARY(sin, sin) SM_UNARY(cos, cos)
SM_UNARY(tan, tan) SM_UNARY(asin, asin) SM_UNARY(acos, acos) SM_UNARY(atan, atan) SM_UNARY(sinh, sinh)
SM_UNARY(cosh, cosh) SM_UNARY(tanh, tanh) SM_UNARY(asinh, asinh) SM_UNARY(acosh, acosh) SM_UNARY(atanh, atanh)
SM_UNARY(floor, floor) SM_UNARY(ceil, ceil) SM_UNARY(round, rint) SM_UNARY(trunc, trunc)
inline float sm_sigmoids(float x) { return 1.0f / (1.0f + exp(-x)); }
inline float4 sm_sigmoidv(float4 x) { return 1.0f / (1.0f + exp(-x)); }
inline float4 sm_recipv(float4 x) { return 1.0f / x; }

SM_UNARY(erf, erf) SM_UNARY(erfc, erfc)
inline float sm_pows(float a, float b) { return pow(a, b); }
inline float4 sm_powv(float4 a, float4 b) { return pow(a, b); }
inline float sm_fmods(float a, float b) { return fmod(a, b); }
inline float4 sm_fmodv(float4 a, float4 b) { return fmod(a, b); }
inline float sm_mods(float a, float b) {
    const float r = fmod(a, b);
    return r == 0 ? copysign(0.0f, b) : (r < 0) != (b < 0) && r == r ? r + b : r;
}
inline float4 sm_modv(float4 a, float4 b) {
    return (float4)(sm_mods(a.x, b.x), sm_mods(a.y, b.y), sm_mods(a.z, b.z), sm_mods(a.w, b.w));
}
/* Doubles, or floats on devices without: there no tensor of doubles is in memory. */
#define SM_DOUBLE(name, function) inline double sm_##name##d(double x) { return function(x); }
SM_DOUBLE(abs, fabs) SM_DOUBLE(exp, exp) SM_DOUBLE(log, log) SM_DOUBLE(sqrt, sqrt) SM_DOUBLE(sin, sin)
SM_DOUBLE(cos, cos) SM_DOUBLE(tan, tan) SM_DOUBLE(asin, asin) SM_DOUBLE(acos, acos) SM_DOUBLE(atan, atan)
SM_DOUBLE(sinh, sinh) SM_DOUBLE(cosh, cosh) SM_DOUBLE(tanh, tanh) SM_DOUBLE(asinh, asinh) SM_DOUBLE(acosh, acosh)
SM_DOUBLE(atanh, atanh) SM_DOUBLE(erf, erf) SM_DOUBLE(floor, floor) SM_DOUBLE(ceil, ceil) SM_DOUBLE(round, rint)
SM_DOUBLE(trunc, trunc)
inline double sm_sigmoidd(double x) { return 1 / (1 + exp(-x)); }
inline double sm_powd(double a, double b) { return pow(a, b); }
inline double sm_fmodd(double a, double b) { return fmod(a, b); }
inline double sm_modd(double a, double b) {
    const double r = fmod(a, b);
    return r == 0 ? copysign((double)0, b) : (r < 0) != (b < 0) && r == r ? r + b : r;
}

/* bfloat16 is the upper half of a float; rounded to nearest, ties to even; NaN stays NaN. */
inline float sm_from_bf16(uint16_t x) { return as_float((uint)x << 16); }
inline uint16_t sm_to_bf16(float x) {
    const uint bits = as_uint(x);
    return x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
/* The nearest half, still as a float: below 2^-14 halves are multiples of 2^-24, which is what 0.5f leaves. */
inline float sm_to_f16(float x) {
    const float size = fabs(x);
    const uint bits = as_uint(x);
    if (size != size) return x;
    if (size >= 65520.0f) return copysign(INFINITY, x);
    if (size < 0x1p-14f) return copysign((size + 0.5f) - 0.5f, x);
    return as_float((bits + 0xfffu + (bits >> 13 & 1u)) & 0xffffe000u);
}

/* Integers, as ONNX says; nothing traps: a zero divisor gives 0. */
inline int64_t sm_idiv(int64_t a, int64_t b) { return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b; }
inline int64_t sm_irem(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
inline int64_t sm_imod(int64_t a, int64_t b) {
    const int64_t r = sm_irem(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
inline uint64_t sm_umod(uint64_t a, uint64_t b) { return b == 0 ? 0 : a % b; }
inline int64_t sm_sar(int64_t a, uint64_t n) { return a >> (n > 63 ? 63 : n); }
inline uint64_t sm_shl(uint64_t a, uint64_t n) { return n > 63 ? 0 : a << n; }
inline uint64_t sm_shr(uint64_t a, uint64_t n) { return n > 63 ? 0 : a >> n; }
inline int64_t sm_ipow(int64_t base, int64_t exponent) {
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 ? -1 : 1) : 0;
    uint64_t result = 1, factor = (uint64_t)base;
    for (; exponent; exponent >>= 1, factor *= factor) if (exponent & 1) result *= factor;
    return (int64_t)result;
}
inline int64_t sm_to_i64(double x) { return convert_long_sat(x); }
/* An entry of an index tensor: negative counts from the end, clamped. */
inline int sm_index(int64_t entry, int extent) {
    return (int)clamp(entry < 0 ? entry + extent : entry, (int64_t)0, (int64_t)(extent - 1));
}
