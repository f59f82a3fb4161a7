/* Portable float vectors for generated kernels.
 *
 * Every generated file includes this header.  It needs a compiler with the GNU vector extensions (clang >= 8, gcc >= 10)
 * and `-ffp-contract=fast -fno-math-errno`; never `-ffast-math`: attention masks hold infinities and NaN must stay NaN.
 * x86 AVX-512, AVX2, AVX and SSE2 and ARM NEON have their own code where it matters, any other target gets 4 lanes and
 * plain C.
 *
 *   SM_W            lanes of a vector: 16 (AVX-512), 8 (AVX, AVX2), 4 (all others)
 *   f32v, i32v      SM_W floats, SM_W ints; arithmetic and comparisons by the C operators
 *   mask            an i32v whose lanes are 0 or -1, as comparisons give them: sm_select(x < y, a, b)
 *   *_n             the partial form: only lanes < n, 0 < n <= SM_W; memory of other lanes is neither read nor written
 *   sm_<f>v, sm_<f>s  function f of a vector, of a scalar.  The scalar form is lane 0 of the vector form: the same
 *                   polynomial, and the same bits unless the compiler contracts the two differently.
 *
 * Accuracy, largest error over float32 (tests/runtime/test_simd_math.py measures it):
 *   exp 1.2 ulp, log 1 ulp, tanh 3 ulp, sigmoid 2.5 ulp (exp and sigmoid give 0 for results below 2^-126),
 *   erf 6 ulp and 3.6e-7 absolute (AVX-512: 2.3 ulp, 7e-8); sqrt, abs and the roundings as IEEE operations, rsqrt as
 *   1 / sqrt; all others are libm's, lane by lane.
 */
#ifndef SM_SIMD_H
#define SM_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define SM_W 16
#elif defined(__AVX__)
#define SM_W 8
#else
#define SM_W 4
#endif

#define SM_INLINE static inline __attribute__((always_inline, unused))

typedef float f32v __attribute__((vector_size(SM_W * 4)));
typedef int i32v __attribute__((vector_size(SM_W * 4)));

/* The same in memory: aligned as an element, and free to alias any other type. */
typedef float sm_f32v_mem __attribute__((vector_size(SM_W * 4), aligned(4), may_alias));
typedef int sm_i32v_mem __attribute__((vector_size(SM_W * 4), aligned(4), may_alias));
typedef signed char sm_i8v_mem __attribute__((vector_size(SM_W), aligned(1), may_alias));
typedef unsigned char sm_u8v_mem __attribute__((vector_size(SM_W), aligned(1), may_alias));

/* SM_LANES(f) is f(0), f(1), ... f(SM_W - 1). */
#define SM_LANES_4(f, i) f((i) + 0), f((i) + 1), f((i) + 2), f((i) + 3)
#if SM_W == 16
#define SM_LANES(f) SM_LANES_4(f, 0), SM_LANES_4(f, 4), SM_LANES_4(f, 8), SM_LANES_4(f, 12)
#elif SM_W == 8
#define SM_LANES(f) SM_LANES_4(f, 0), SM_LANES_4(f, 4)
#else
#define SM_LANES(f) SM_LANES_4(f, 0)
#endif

/* ------------------------------------------------------------------------------------------------ constants, bits */

SM_INLINE f32v sm_splat(float x) {
#define SM_LANE(i) x
    return (f32v){SM_LANES(SM_LANE)};
#undef SM_LANE
}

SM_INLINE i32v sm_splat_i(int x) {
#define SM_LANE(i) x
    return (i32v){SM_LANES(SM_LANE)};
#undef SM_LANE
}

SM_INLINE i32v sm_iota(void) {
#define SM_LANE(i) (i)
    return (i32v){SM_LANES(SM_LANE)};
#undef SM_LANE
}

SM_INLINE f32v sm_iota_f(void) {
#define SM_LANE(i) (float)(i)
    return (f32v){SM_LANES(SM_LANE)};
#undef SM_LANE
}

SM_INLINE i32v sm_bits(f32v x) { return (i32v)x; }
SM_INLINE f32v sm_from_bits(i32v x) { return (f32v)x; }

/* Values: int -> float, rounded; float -> int, towards zero. */
SM_INLINE f32v sm_to_float(i32v x) { return __builtin_convertvector(x, f32v); }
SM_INLINE i32v sm_to_int(f32v x) { return __builtin_convertvector(x, i32v); }

/* The mask of lanes < n. */
SM_INLINE i32v sm_first(long n) { return (i32v)(sm_iota() < sm_splat_i((int)n)); }

/* mask ? a : b, lane by lane. */
SM_INLINE f32v sm_select(i32v mask, f32v a, f32v b) {
#if defined(__AVX512F__)
    __mmask16 k = _mm512_cmplt_epi32_mask((__m512i)mask, _mm512_setzero_si512());
    return (f32v)_mm512_mask_blend_ps(k, (__m512)b, (__m512)a);
#elif defined(__AVX__)
    return (f32v)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
    return (f32v)((mask & (i32v)a) | (~mask & (i32v)b));
#endif
}

SM_INLINE i32v sm_select_i(i32v mask, i32v a, i32v b) { return sm_bits(sm_select(mask, (f32v)a, (f32v)b)); }

/* -------------------------------------------------------------------------------------------------- loads, stores */

SM_INLINE f32v sm_load(const float *p) { return *(const sm_f32v_mem *)p; }
SM_INLINE void sm_store(float *p, f32v v) { *(sm_f32v_mem *)p = v; }
SM_INLINE i32v sm_load_i32(const int *p) { return *(const sm_i32v_mem *)p; }
SM_INLINE void sm_store_i32(int *p, i32v v) { *(sm_i32v_mem *)p = v; }

/* Lanes >= n are `fill`. */
SM_INLINE f32v sm_load_n(const float *p, long n, float fill) {
#if defined(__AVX512F__)
    return (f32v)_mm512_mask_loadu_ps((__m512)sm_splat(fill), (__mmask16)((1u << n) - 1u), p);
#elif defined(__AVX__)
    i32v k = sm_first(n);
    return sm_select(k, (f32v)_mm256_maskload_ps(p, (__m256i)k), sm_splat(fill));
#else
    float t[SM_W];
    for (long i = 0; i < SM_W; i++) t[i] = i < n ? p[i] : fill;
    return sm_load(t);
#endif
}

SM_INLINE void sm_store_n(float *p, f32v v, long n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#elif defined(__AVX__)
    _mm256_maskstore_ps(p, (__m256i)sm_first(n), (__m256)v);
#else
    for (long i = 0; i < n; i++) p[i] = v[i];
#endif
}

SM_INLINE i32v sm_load_i32_n(const int *p, long n, int fill) {
    int t[SM_W];
    for (long i = 0; i < SM_W; i++) t[i] = i < n ? p[i] : fill;
    return sm_load_i32(t);
}

SM_INLINE void sm_store_i32_n(int *p, i32v v, long n) {
    for (long i = 0; i < n; i++) p[i] = v[i];
}

/* Lane i is p[i * stride]; strides count elements. */
SM_INLINE f32v sm_load_strided(const float *p, long stride) {
#define SM_LANE(i) p[(i) * stride]
    return (f32v){SM_LANES(SM_LANE)};
#undef SM_LANE
}

SM_INLINE f32v sm_load_strided_n(const float *p, long stride, long n, float fill) {
    float t[SM_W];
    for (long i = 0; i < SM_W; i++) t[i] = i < n ? p[i * stride] : fill;
    return sm_load(t);
}

SM_INLINE void sm_store_strided(float *p, long stride, f32v v) {
#define SM_LANE(i) (void)(p[(i) * stride] = v[i])
    SM_LANES(SM_LANE);
#undef SM_LANE
}

SM_INLINE void sm_store_strided_n(float *p, long stride, f32v v, long n) {
    for (long i = 0; i < n; i++) p[i * stride] = v[i];
}

/* Lane i is p[at[i]]. */
SM_INLINE f32v sm_gather(const float *p, i32v at) {
#if defined(__AVX512F__)
    return (f32v)_mm512_i32gather_ps((__m512i)at, p, 4);
#else
#define SM_LANE(i) p[at[i]]
    return (f32v){SM_LANES(SM_LANE)};
#undef SM_LANE
#endif
}

/* Entries of an index tensor: negative ones count from the end, and none leaves [0, extent). */
SM_INLINE i32v sm_indices(i32v at, int extent) {
    at += (i32v)(at < sm_splat_i(0)) & sm_splat_i(extent);
    at = sm_select_i((i32v)(at < sm_splat_i(0)), sm_splat_i(0), at);
    return sm_select_i((i32v)(at < sm_splat_i(extent)), at, sm_splat_i(extent - 1));
}

/* Bytes: a bool is a byte that is zero or not, in memory, and a mask in a vector. */
SM_INLINE i32v sm_load_u8(const unsigned char *p) { return __builtin_convertvector(*(const sm_u8v_mem *)p, i32v); }
SM_INLINE i32v sm_load_i8(const signed char *p) { return __builtin_convertvector(*(const sm_i8v_mem *)p, i32v); }

SM_INLINE i32v sm_load_u8_n(const unsigned char *p, long n) {
    unsigned char t[SM_W] = {0};
    for (long i = 0; i < n; i++) t[i] = p[i];
    return sm_load_u8(t);
}

SM_INLINE i32v sm_load_i8_n(const signed char *p, long n) {
    signed char t[SM_W] = {0};
    for (long i = 0; i < n; i++) t[i] = p[i];
    return sm_load_i8(t);
}

SM_INLINE i32v sm_load_bool(const unsigned char *p) { return (i32v)(sm_load_u8(p) != sm_splat_i(0)); }
SM_INLINE i32v sm_load_bool_n(const unsigned char *p, long n) { return (i32v)(sm_load_u8_n(p, n) != sm_splat_i(0)); }

SM_INLINE void sm_store_bool(unsigned char *p, i32v mask) {
    *(sm_u8v_mem *)p = __builtin_convertvector(mask & sm_splat_i(1), sm_u8v_mem);
}

SM_INLINE void sm_store_bool_n(unsigned char *p, i32v mask, long n) {
    for (long i = 0; i < n; i++) p[i] = (unsigned char)(mask[i] & 1);
}

/* 64-bit integers keep their low 32 bits. */
SM_INLINE i32v sm_load_i64(const int64_t *p) {
#if defined(__AVX512F__)
    const __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p));
    const __m256i high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8));
    return (i32v)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
#define SM_LANE(i) (int)p[i]
    return (i32v){SM_LANES(SM_LANE)};
#undef SM_LANE
#endif
}

SM_INLINE i32v sm_load_i64_n(const int64_t *p, long n, int fill) {
    int t[SM_W];
    for (long i = 0; i < SM_W; i++) t[i] = i < n ? (int)p[i] : fill;
    return sm_load_i32(t);
}

SM_INLINE void sm_store_i64(int64_t *p, i32v v) {
    for (long i = 0; i < SM_W; i++) p[i] = v[i];
}

SM_INLINE void sm_store_i64_n(int64_t *p, i32v v, long n) {
    for (long i = 0; i < n; i++) p[i] = v[i];
}

/* ------------------------------------------------------------------------------------------------ max, min, abs */

/* NaN if either operand is, like numpy.maximum.  Put a constant FIRST: its NaN test then folds away. */
SM_INLINE f32v sm_max(f32v a, f32v b) {
#if defined(__aarch64__)
    return (f32v)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#elif defined(__AVX512F__)
    f32v m = (f32v)_mm512_max_ps((__m512)a, (__m512)b); /* b if either is NaN */
    return sm_select((i32v)(a != a), a, m);
#elif defined(__AVX__)
    f32v m = (f32v)_mm256_max_ps((__m256)a, (__m256)b);
    return sm_select((i32v)(a != a), a, m);
#else
    return sm_select((i32v)(a > b) | (i32v)(a != a), a, b);
#endif
}

SM_INLINE f32v sm_min(f32v a, f32v b) {
#if defined(__aarch64__)
    return (f32v)vminq_f32((float32x4_t)a, (float32x4_t)b);
#elif defined(__AVX512F__)
    f32v m = (f32v)_mm512_min_ps((__m512)a, (__m512)b);
    return sm_select((i32v)(a != a), a, m);
#elif defined(__AVX__)
    f32v m = (f32v)_mm256_min_ps((__m256)a, (__m256)b);
    return sm_select((i32v)(a != a), a, m);
#else
    return sm_select((i32v)(a < b) | (i32v)(a != a), a, b);
#endif
}

SM_INLINE float sm_maxs(float a, float b) { return (a > b || a != a) ? a : b; }
SM_INLINE float sm_mins(float a, float b) { return (a < b || a != a) ? a : b; }

/* x bounded to [low, high]; NaN stays. */
SM_INLINE f32v sm_clamp(f32v x, float low, float high) { return sm_min(sm_splat(high), sm_max(sm_splat(low), x)); }
SM_INLINE float sm_clamps(float x, float low, float high) { return sm_mins(high, sm_maxs(low, x)); }

SM_INLINE f32v sm_absv(f32v x) { return sm_from_bits(sm_bits(x) & sm_splat_i(0x7fffffff)); }

/* --------------------------------------------------------------------------------- reductions over the lanes */

/* Pairs at distance SM_W/2, then SM_W/4, ... 1; every lane ends with the result. */
#if SM_W == 16
#define SM_FOLD(v, op)                                                                              \
    v = op(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)); \
    v = op(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)); \
    v = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)); \
    v = op(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))
#elif SM_W == 8
#define SM_FOLD(v, op)                                                      \
    v = op(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));       \
    v = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));       \
    v = op(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6))
#else
#define SM_FOLD(v, op)                                    \
    v = op(v, __builtin_shufflevector(v, v, 2, 3, 0, 1)); \
    v = op(v, __builtin_shufflevector(v, v, 1, 0, 3, 2))
#endif
#define SM_ADD(a, b) ((a) + (b))
#define SM_MUL(a, b) ((a) * (b))

SM_INLINE float sm_hsum(f32v v) {
    SM_FOLD(v, SM_ADD);
    return v[0];
}

SM_INLINE float sm_hprod(f32v v) {
    SM_FOLD(v, SM_MUL);
    return v[0];
}

/* x86 maximum and minimum drop NaN, so there it is one test before the fold instead of one in each step. */
#if defined(__AVX512F__)
#define SM_ANY_NAN(v) (_mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0)
#define SM_MAX_STEP(a, b) (f32v) _mm512_max_ps((__m512)(a), (__m512)(b))
#define SM_MIN_STEP(a, b) (f32v) _mm512_min_ps((__m512)(a), (__m512)(b))
#elif defined(__AVX__)
#define SM_ANY_NAN(v) (_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q)) != 0)
#define SM_MAX_STEP(a, b) (f32v) _mm256_max_ps((__m256)(a), (__m256)(b))
#define SM_MIN_STEP(a, b) (f32v) _mm256_min_ps((__m256)(a), (__m256)(b))
#else
#define SM_ANY_NAN(v) 0
#define SM_MAX_STEP(a, b) sm_max(a, b)
#define SM_MIN_STEP(a, b) sm_min(a, b)
#endif

SM_INLINE float sm_hmax(f32v v) {
    int nan = SM_ANY_NAN(v);
    SM_FOLD(v, SM_MAX_STEP);
    return nan ? NAN : v[0];
}

SM_INLINE float sm_hmin(f32v v) {
    int nan = SM_ANY_NAN(v);
    SM_FOLD(v, SM_MIN_STEP);
    return nan ? NAN : v[0];
}

/* ---------------------------------------------------------------------------------------------- IEEE operations */

/* f(lane) for each lane. */
#define SM_PER_LANE(name, f)                                \
    SM_INLINE f32v name(f32v x) {                           \
        float t[SM_W];                                      \
        sm_store(t, x);                                     \
        for (int i = 0; i < SM_W; i++) t[i] = f(t[i]);      \
        return sm_load(t);                                  \
    }

#if defined(__AVX512F__)
SM_INLINE f32v sm_sqrtv(f32v x) { return (f32v)_mm512_sqrt_ps((__m512)x); }
SM_INLINE f32v sm_roundv(f32v x) { return (f32v)_mm512_roundscale_ps((__m512)x, 8); }
SM_INLINE f32v sm_floorv(f32v x) { return (f32v)_mm512_roundscale_ps((__m512)x, 9); }
SM_INLINE f32v sm_ceilv(f32v x) { return (f32v)_mm512_roundscale_ps((__m512)x, 10); }
SM_INLINE f32v sm_truncv(f32v x) { return (f32v)_mm512_roundscale_ps((__m512)x, 11); }
#elif defined(__AVX__)
SM_INLINE f32v sm_sqrtv(f32v x) { return (f32v)_mm256_sqrt_ps((__m256)x); }
SM_INLINE f32v sm_roundv(f32v x) { return (f32v)_mm256_round_ps((__m256)x, 8); }
SM_INLINE f32v sm_floorv(f32v x) { return (f32v)_mm256_round_ps((__m256)x, 9); }
SM_INLINE f32v sm_ceilv(f32v x) { return (f32v)_mm256_round_ps((__m256)x, 10); }
SM_INLINE f32v sm_truncv(f32v x) { return (f32v)_mm256_round_ps((__m256)x, 11); }
#elif defined(__aarch64__)
SM_INLINE f32v sm_sqrtv(f32v x) { return (f32v)vsqrtq_f32((float32x4_t)x); }
SM_INLINE f32v sm_roundv(f32v x) { return (f32v)vrndnq_f32((float32x4_t)x); }
SM_INLINE f32v sm_floorv(f32v x) { return (f32v)vrndmq_f32((float32x4_t)x); }
SM_INLINE f32v sm_ceilv(f32v x) { return (f32v)vrndpq_f32((float32x4_t)x); }
SM_INLINE f32v sm_truncv(f32v x) { return (f32v)vrndq_f32((float32x4_t)x); }
#else
#if defined(__SSE2__)
SM_INLINE f32v sm_sqrtv(f32v x) { return (f32v)_mm_sqrt_ps((__m128)x); }
#else
SM_PER_LANE(sm_sqrtv, sqrtf)
#endif
SM_PER_LANE(sm_roundv, rintf)
SM_PER_LANE(sm_floorv, floorf)
SM_PER_LANE(sm_ceilv, ceilf)
SM_PER_LANE(sm_truncv, truncf)
#endif

SM_INLINE f32v sm_rsqrtv(f32v x) { return sm_splat(1.0f) / sm_sqrtv(x); }
SM_INLINE f32v sm_recipv(f32v x) { return sm_splat(1.0f) / x; }

/* ------------------------------------------------------------------------------------------ functions by polynomials */

/* a * x + b, for Horner's rule; one instruction with FMA. */
SM_INLINE f32v sm_fma(f32v a, f32v x, f32v b) { return a * x + b; }
SM_INLINE f32v sm_horner(f32v a, f32v x, float b) { return a * x + sm_splat(b); }

/* p * 2^n for 0.5 <= p < 2, a whole number n in [-126, 128] and a normal or infinite result. */
SM_INLINE f32v sm_scale2(f32v p, f32v n) {
#if defined(__AVX512F__)
    return (f32v)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    i32v k = sm_to_int(n), half = k >> 1;
    i32v a = (half + sm_splat_i(127)) << 23, b = (k - half + sm_splat_i(127)) << 23;
    return p * sm_from_bits(a) * sm_from_bits(b);
#endif
}

/* num / den where 2^-100 < den < 2^100; num may be NaN.  Up to one ulp from the quotient. */
SM_INLINE f32v sm_div_fast(f32v num, f32v den) {
#if defined(__AVX512F__)
    /* Half the time of vdivps: 14 bits, one Newton step for 1/den, one for the quotient. */
    f32v r = (f32v)_mm512_rcp14_ps((__m512)den);
    r = r + r * (sm_splat(1.0f) - den * r);
    f32v q = num * r;
    return q + r * (num - den * q);
#else
    return num / den;
#endif
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 q(r), minimax to 2^-28.
 * A result below 2^-126 is 0: x86 takes some 150 cycles for a vector with a subnormal result, and masks of -100 or -inf
 * would make one in each row of a softmax. */
SM_INLINE f32v sm_expv(f32v x) {
    const f32v shift = sm_splat(0x1.8p23f); /* adding and taking it away rounds to an integer */
    const f32v lowest = sm_splat(-0x1.5d589ep6f); /* its exp is 2^-126 */
    i32v zero = (i32v)(x < lowest);
    x = sm_min(sm_splat(89.0f), sm_max(lowest, x)); /* exp(89) is infinity */
    f32v n = (x * sm_splat(0x1.715476p0f) + shift) - shift;
    f32v r = x - n * sm_splat(0x1.63p-1f); /* n * (high part of ln 2) is exact without FMA, too */
    r = r + n * sm_splat(0x1.bd0106p-13f);
    f32v q = sm_splat(0x1.6a5134p-10f);
    q = sm_horner(q, r, 0x1.12397cp-7f);
    q = sm_horner(q, r, 0x1.5558acp-5f);
    q = sm_horner(q, r, 0x1.555492p-3f);
    q = sm_horner(q, r, 0x1.fffffcp-2f);
    q = sm_horner(q, r, 1.0f);
    return sm_select(zero, sm_splat(0.0f), sm_scale2(sm_horner(q, r, 1.0f), n));
}

/* log(x) = e ln 2 + log(1 + f), x = 2^e (1 + f), f in [-1/3, 1/3]; log(1 + f) = f - f^2/2 + f^3 q(f). */
SM_INLINE f32v sm_logv(f32v x) {
    const i32v two_thirds = sm_splat_i(0x3f2aaaab);
    i32v tiny = (i32v)(x < sm_splat(0x1p-126f));
    f32v scaled = sm_select(tiny, x * sm_splat(0x1p23f), x);
    i32v e = (sm_bits(scaled) - two_thirds) >> 23;
    f32v f = sm_from_bits(sm_bits(scaled) - (e << 23)) - sm_splat(1.0f);
    f32v n = sm_to_float(e) - sm_select(tiny, sm_splat(23.0f), sm_splat(0.0f));
    f32v q = sm_splat(-0x1.07bca2p-3f);
    q = sm_horner(q, f, 0x1.1e753cp-3f);
    q = sm_horner(q, f, -0x1.f333bep-4f);
    q = sm_horner(q, f, 0x1.1ed3e8p-3f);
    q = sm_horner(q, f, -0x1.559c82p-3f);
    q = sm_horner(q, f, 0x1.99d060p-3f);
    q = sm_horner(q, f, -0x1.fffef8p-3f);
    q = sm_horner(q, f, 0x1.555506p-2f);
    f32v square = f * f;
    f32v low = square * (f * q) - n * sm_splat(0x1.bd0106p-13f);
    f32v y = (low - sm_splat(0.5f) * square) + f + n * sm_splat(0x1.63p-1f);
    y = sm_select((i32v)(x == sm_splat(INFINITY)) | (i32v)(x != x), x, y);
    y = sm_select((i32v)(x == sm_splat(0.0f)), sm_splat(-INFINITY), y);
    return sm_select((i32v)(x < sm_splat(0.0f)), sm_splat(NAN), y);
}

/* tanh|x| = -z / (z + 2), z = exp(-2|x|) - 1, as in expv but with the 1 taken away before it can swamp a small z. */
SM_INLINE f32v sm_tanhv(f32v x) {
    const f32v shift = sm_splat(0x1.8p23f);
    const i32v sign = sm_bits(x) & sm_splat_i((int)0x80000000u);
    f32v y = sm_max(sm_splat(-20.0f), sm_splat(-2.0f) * sm_absv(x)); /* tanh there is 1 */
    f32v n = y * sm_splat(0x1.715476p0f) + shift;
    f32v s = sm_from_bits((sm_bits(n) + sm_splat_i(127)) << 23); /* 2^n */
    n = n - shift;
    f32v r = y - n * sm_splat(0x1.63p-1f);
    r = r + n * sm_splat(0x1.bd0106p-13f);
    f32v q = sm_splat(0x1.6a5134p-10f);
    q = sm_horner(q, r, 0x1.12397cp-7f);
    q = sm_horner(q, r, 0x1.5558acp-5f);
    q = sm_horner(q, r, 0x1.555492p-3f);
    q = sm_horner(q, r, 0x1.fffffcp-2f);
    f32v z = (q * r) * (r * s) + (r * s) + (s - sm_splat(1.0f)); /* s (r + r^2 q) + (s - 1) */
    y = -z * sm_div_fast(sm_splat(1.0f), z + sm_splat(2.0f));
    return sm_from_bits(sm_bits(y) ^ sign);
}

#if defined(__AVX512F__)
/* erf|x| = sum of c[k][i] r^k, i = round(8 |x|), r = |x| - i/8: minimax for the relative error in each interval. A
 * permutation of two registers looks a coefficient up. From 3.8125 on it is 1 to half an ulp. */
SM_INLINE f32v sm_erfv(f32v x) {
    static const float c[5][32] __attribute__((aligned(64))) = {
                {0, 0x1.1f5e1ap-3f, 0x1.1af54ep-2f, 0x1.9dd0d2p-2f, 0x1.0a7ef6p-1f, 0x1.3f196ep-1f,
         0x1.6c1c98p-1f, 0x1.91724ap-1f, 0x1.af767ap-1f, 0x1.c6dad2p-1f, 0x1.d8865ep-1f, 0x1.e5768cp-1f,
         0x1.eea556p-1f, 0x1.f4f694p-1f, 0x1.f92d08p-1f, 0x1.fbe61ep-1f, 0x1.fd9ae2p-1f, 0x1.fea422p-1f,
         0x1.ff4048p-1f, 0x1.ff996p-1f, 0x1.ffcaa8p-1f, 0x1.ffe514p-1f, 0x1.fff2dp-1f, 0x1.fff9bap-1f,
         0x1.fffd1ap-1f, 0x1.fffeb4p-1f, 0x1.ffff7p-1f, 0x1.ffffc4p-1f, 0x1.ffffe8p-1f, 0x1.fffff6p-1f,
         0x1.fffffcp-1f, 0x1p+0f},
                {0x1.20dd74p+0f, 0x1.1c62f2p+0f, 0x1.0f5d1p+0f, 0x1.f5f0ccp-1f, 0x1.c1efcap-1f, 0x1.86e96ap-1f,
         0x1.492e44p-1f, 0x1.0cab62p-1f, 0x1.a911fp-2f, 0x1.45e99cp-2f, 0x1.e4653p-3f, 0x1.5ce596p-3f,
         0x1.e72372p-4f, 0x1.499d48p-4f, 0x1.b0553p-5f, 0x1.12ceb2p-5f, 0x1.529bap-6f, 0x1.94624ep-7f,
         0x1.d4143cp-8f, 0x1.06918ap-8f, 0x1.1d8316p-9f, 0x1.2ce898p-10f, 0x1.3360ccp-11f, 0x1.30539p-12f,
         0x1.24087p-13f, 0x1.0f9e1cp-14f, 0x1.e9b3e8p-16f, 0x1.abddf2p-17f, 0x1.6a56bep-18f, 0x1.2967f8p-19f,
         0x1.d93246p-21f, 0},
                {0x1.6ec55ep-16f, -0x1.1c608ep-3f, -0x1.0f5c28p-2f, -0x1.786fdep-2f, -0x1.c1f334p-2f,
         -0x1.e8a602p-2f, -0x1.edce3ap-2f, -0x1.d63478p-2f, -0x1.a90db8p-2f, -0x1.6ea13p-2f, -0x1.2ec3f4p-2f,
         -0x1.dfb6dcp-3f, -0x1.6d6b82p-3f, -0x1.0bd8e6p-3f, -0x1.7a69bap-4f, -0x1.016792p-4f, -0x1.52f694p-5f,
         -0x1.ae1404p-6f, -0x1.07e4f8p-6f, -0x1.35eee8p-7f, -0x1.612004p-8f, -0x1.8527f8p-9f, -0x1.ab8508p-10f,
         -0x1.ad583p-11f, -0x1.854aap-12f, -0x1.b25d72p-13f, -0x1.ee14dep-14f, -0x1.9ce768p-14f,
         -0x1.3daa44p-14f, -0x1.204cb4p-19f, 0x1.089d72p-17f, 0},
                {-0x1.826948p-2f, -0x1.6ed248p-2f, -0x1.3c32d2p-2f, -0x1.e0b9acp-3f, -0x1.2beda4p-3f,
         -0x1.c8c9ap-5f, 0x1.b48542p-6f, 0x1.7be07ap-4f, 0x1.1af1b4p-3f, 0x1.4c5654p-3f, 0x1.56d5c8p-3f,
         0x1.4344a6p-3f, 0x1.1c19dp-3f, 0x1.d65d68p-4f, 0x1.715678p-4f, 0x1.14571cp-4f, 0x1.8b40bcp-5f,
         0x1.0edafp-5f, 0x1.64490cp-6f, 0x1.c27964p-7f, 0x1.12040cp-7f, 0x1.410c3p-8f, 0x1.6a87dp-9f,
         0x1.8ac558p-10f, 0x1.9f51e8p-11f, 0x1.a4a6d6p-12f, 0x1.9d0cdp-13f, 0x1.87015ep-14f, 0x1.657f96p-15f,
         0x1.3bdc6ap-16f, 0x1.0dd4f4p-17f, 0},
                {0x1.61dadap-6f, 0x1.139fd4p-4f, 0x1.01fb8p-3f, 0x1.4c819ep-3f, 0x1.7cb9b2p-3f, 0x1.6ccfd8p-3f,
         0x1.43de96p-3f, 0x1.e9302cp-4f, 0x1.0e4ecp-4f, 0x1.820b9p-6f, -0x1.2702d2p-9f, -0x1.08af6ap-5f,
         -0x1.2c8c6ap-5f, -0x1.72d9bcp-5f, -0x1.4d2484p-5f, -0x1.cbbc3ep-5f, -0x1.851f6ap-6f, -0x1.4a867ap-6f,
         -0x1.494fa8p-7f, -0x1.c2065cp-6f, -0x1.7b2edap-6f, -0x1.0fc492p-6f, 0x1.712a9ap-10f, -0x1.7bf944p-8f,
         -0x1.a78c1p-7f, 0x1.4e9964p-11f, 0x1.6d85a8p-8f, 0x1.cbd078p-7f, 0x1.da444ap-7f, -0x1.92d86p-10f,
         -0x1.791b6ap-9f, 0},
    };
    const f32v shift = sm_splat(0x1.8p20f); /* adding and taking it away rounds to eighths; they are its low bits */
    f32v y = sm_min(sm_splat(3.9374f), sm_absv(x));
    f32v at = y + shift;
    f32v r = y - (at - shift);
#define SM_ENTRY(k) (f32v) _mm512_permutex2var_ps(_mm512_load_ps(c[k]), (__m512i)sm_bits(at), _mm512_load_ps(c[k] + 16))
    f32v p = SM_ENTRY(4);
    p = sm_fma(p, r, SM_ENTRY(3));
    p = sm_fma(p, r, SM_ENTRY(2));
    p = sm_fma(p, r, SM_ENTRY(1));
    p = sm_fma(p, r, SM_ENTRY(0));
#undef SM_ENTRY
    return sm_from_bits(sm_bits(p) | (sm_bits(x) & sm_splat_i((int)0x80000000u)));
}
#else
/* erf(x) = x p(x^2) / q(x^2): minimax up to 3.92 with coefficients searched for small rounding errors.  Past the bound
 * the quotient exceeds 1, so the last line makes it exactly 1. */
SM_INLINE f32v sm_erfv(f32v x) {
    x = sm_clamp(x, -4.08f, 4.08f);
    f32v t = x * x;
    f32v p = sm_splat(0x1.13282ep-19f), q = sm_splat(0x1.3f8952p-15f);
    p = sm_horner(p, t, 0x1.2ab8e4p-12f);
    q = sm_horner(q, t, 0x1.30c10ap-10f);
    p = sm_horner(p, t, 0x1.ed924ap-9f);
    q = sm_horner(q, t, 0x1.ea8376p-7f);
    p = sm_horner(p, t, 0x1.b01e50p-5f);
    q = sm_horner(q, t, 0x1.d36466p-4f);
    p = sm_horner(p, t, 0x1.85f438p-3f);
    q = sm_horner(q, t, 0x1.011036p-1f);
    p = sm_horner(p, t, 0x1.20dd76p+0f);
    q = sm_horner(q, t, 1.0f);
    return sm_clamp(x * sm_div_fast(p, q), -1.0f, 1.0f);
}
#endif

/* sigmoid(x) = 1 / (1 + exp(-|x|)), times exp(-|x|) where x < 0: nothing overflows and small
 * results keep their bits. */
SM_INLINE f32v sm_sigmoidv(f32v x) {
    f32v e = sm_expv(-sm_absv(x));
    f32v num = sm_select((i32v)(x < sm_splat(0.0f)), e, sm_splat(1.0f));
    return sm_div_fast(num, sm_splat(1.0f) + e);
}

/* ------------------------------------------------------------------------------------------------ lane by lane */

SM_PER_LANE(sm_sinv, sinf)
SM_PER_LANE(sm_cosv, cosf)
SM_PER_LANE(sm_tanv, tanf)
SM_PER_LANE(sm_asinv, asinf)
SM_PER_LANE(sm_acosv, acosf)
SM_PER_LANE(sm_atanv, atanf)
SM_PER_LANE(sm_sinhv, sinhf)
SM_PER_LANE(sm_coshv, coshf)
SM_PER_LANE(sm_asinhv, asinhf)
SM_PER_LANE(sm_acoshv, acoshf)
SM_PER_LANE(sm_atanhv, atanhf)
SM_PER_LANE(sm_log1pv, log1pf)
SM_PER_LANE(sm_expm1v, expm1f)
SM_PER_LANE(sm_log2v, log2f)
SM_PER_LANE(sm_erfcv, erfcf)

/* Remainder with the sign of the divisor, exact as fmod is; a zero has it too. */
SM_INLINE float sm_mods(float x, float y) {
    const float r = fmodf(x, y);
    return r == 0 ? copysignf(0.0f, y) : (r < 0) != (y < 0) && r == r ? r + y : r;
}

#define SM_PER_LANE_2(name, f)                                  \
    SM_INLINE f32v name(f32v x, f32v y) {                       \
        float t[SM_W], u[SM_W];                                 \
        sm_store(t, x);                                         \
        sm_store(u, y);                                         \
        for (int i = 0; i < SM_W; i++) t[i] = f(t[i], u[i]);    \
        return sm_load(t);                                      \
    }

SM_PER_LANE_2(sm_powv, powf)
SM_PER_LANE_2(sm_fmodv, fmodf)
SM_PER_LANE_2(sm_modv, sm_mods)
SM_PER_LANE_2(sm_atan2v, atan2f)

/* ------------------------------------------------------------------------------------------------------- scalars */

#define SM_SCALAR(f) \
    SM_INLINE float sm_##f##s(float x) { return sm_##f##v(sm_splat(x))[0]; }
SM_SCALAR(exp)
SM_SCALAR(log)
SM_SCALAR(tanh)
SM_SCALAR(erf)
SM_SCALAR(sigmoid)

SM_INLINE float sm_selects(int mask, float a, float b) { return mask ? a : b; }
SM_INLINE float sm_abss(float x) { return fabsf(x); }
SM_INLINE float sm_sqrts(float x) { return sqrtf(x); }
SM_INLINE float sm_rsqrts(float x) { return 1.0f / sqrtf(x); }
SM_INLINE float sm_recips(float x) { return 1.0f / x; }
SM_INLINE float sm_rounds(float x) { return rintf(x); }
SM_INLINE float sm_floors(float x) { return floorf(x); }
SM_INLINE float sm_ceils(float x) { return ceilf(x); }
SM_INLINE float sm_truncs(float x) { return truncf(x); }
SM_INLINE float sm_sins(float x) { return sinf(x); }
SM_INLINE float sm_coss(float x) { return cosf(x); }
SM_INLINE float sm_tans(float x) { return tanf(x); }
SM_INLINE float sm_asins(float x) { return asinf(x); }
SM_INLINE float sm_acoss(float x) { return acosf(x); }
SM_INLINE float sm_atans(float x) { return atanf(x); }
SM_INLINE float sm_sinhs(float x) { return sinhf(x); }
SM_INLINE float sm_coshs(float x) { return coshf(x); }
SM_INLINE float sm_asinhs(float x) { return asinhf(x); }
SM_INLINE float sm_acoshs(float x) { return acoshf(x); }
SM_INLINE float sm_atanhs(float x) { return atanhf(x); }
SM_INLINE float sm_log1ps(float x) { return log1pf(x); }
SM_INLINE float sm_expm1s(float x) { return expm1f(x); }
SM_INLINE float sm_log2s(float x) { return log2f(x); }
SM_INLINE float sm_erfcs(float x) { return erfcf(x); }
SM_INLINE float sm_pows(float x, float y) { return powf(x, y); }
SM_INLINE float sm_fmods(float x, float y) { return fmodf(x, y); }
SM_INLINE float sm_atan2s(float x, float y) { return atan2f(x, y); }

/* ------------------------------------------------------------------------------------------------------ transpose */

/* v[i] lane j <-> v[j] lane i. */
#if SM_W == 16
#define SM_SHUFFLE(v, a, b, ...) __builtin_shufflevector(v[a], v[b], __VA_ARGS__)
SM_INLINE void sm_transpose(f32v *v) {
    f32v t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = SM_SHUFFLE(v, i, i + 1, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = SM_SHUFFLE(v, i, i + 1, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        v[i] = SM_SHUFFLE(t, i, i + 2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        v[i + 1] = SM_SHUFFLE(t, i, i + 2, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        v[i + 2] = SM_SHUFFLE(t, i + 1, i + 3, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        v[i + 3] = SM_SHUFFLE(t, i + 1, i + 3, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = SM_SHUFFLE(v, i, i + 4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        t[i + 4] = SM_SHUFFLE(v, i, i + 4, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        t[i + 8] = SM_SHUFFLE(v, i + 8, i + 12, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        t[i + 12] = SM_SHUFFLE(v, i + 8, i + 12, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        v[i] = SM_SHUFFLE(t, i, i + 8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        v[i + 8] = SM_SHUFFLE(t, i, i + 8, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
}
#else
SM_INLINE void sm_transpose(f32v *v) {
    float t[SM_W * SM_W];
    for (int i = 0; i < SM_W; i++) sm_store(t + i * SM_W, v[i]);
    for (int i = 0; i < SM_W; i++) v[i] = sm_load_strided(t + i, SM_W);
}
#endif

#endif
