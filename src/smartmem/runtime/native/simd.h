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
 * `simd_math.h` has the functions that take more than an operation, and says how exact they are.
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
typedef unsigned short sm_u16v_mem __attribute__((vector_size(SM_W * 2), aligned(2), may_alias));
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

/* Four bytes in the place of a float: integers from 0 to 255, and `sum` plus their products with others from -128 to 127. */
SM_INLINE f32v sm_pack4v(f32v a, f32v b, f32v c, f32v d) {
    const i32v low = __builtin_convertvector(a + 256.0f * b + 65536.0f * c, i32v);
    return (f32v)(low | (__builtin_convertvector(d, i32v) << 24));
}
SM_INLINE float sm_pack4s(float a, float b, float c, float d) {
    const uint32_t packed = (uint32_t)a | (uint32_t)b << 8 | (uint32_t)c << 16 | (uint32_t)d << 24;
    float x;
    memcpy(&x, &packed, 4);
    return x;
}
SM_INLINE i32v sm_dot4(i32v sum, f32v bytes, f32v with) {
#if defined(__AVX512VNNI__)
    return (i32v)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, (__m512i)with);
#elif defined(__AVXVNNI__) && SM_W == 8
    return (i32v)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)bytes, (__m256i)with);
#else
    const i32v a = (i32v)bytes, b = (i32v)with;
    sum += (a & 255) * ((b << 24) >> 24) + ((a >> 8) & 255) * ((b << 16) >> 24);
    return sum + ((a >> 16) & 255) * ((b << 8) >> 24) + ((a >> 24) & 255) * (b >> 24);
#endif
}

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

/* Stores what is not read again while a cache holds it: without loading its line first. `sm_stream_end` before others may
 * read it. */
SM_INLINE void sm_stream(float *p, f32v v) {
#if defined(__AVX512F__)
    if (((uintptr_t)p & 63) == 0) _mm512_stream_ps(p, (__m512)v);
    else sm_store(p, v);
#elif defined(__AVX__)
    if (((uintptr_t)p & 31) == 0) _mm256_stream_ps(p, (__m256)v);
    else sm_store(p, v);
#else
    sm_store(p, v);
#endif
}
SM_INLINE void sm_stream_end(void) {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

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
#if defined(__AVX512F__)
    if (__builtin_constant_p(stride) && stride == 4) { /* from four vectors, of the last of which 13 lanes exist */
        const __m512i at = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        const __m512 last = _mm512_maskz_loadu_ps(0x1fff, p + 48);
        const __m512 low = _mm512_permutex2var_ps(_mm512_loadu_ps(p), at, _mm512_loadu_ps(p + 16));
        const __m512 high = _mm512_permutex2var_ps(_mm512_loadu_ps(p + 32), at, last);
        return (f32v)_mm512_shuffle_f32x4(low, high, 0x44);
    }
#endif
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

/* Lane i is p[at[i]], an entry of a table of n <= 2 * SM_W: a permutation of two registers. */
SM_INLINE f32v sm_lookup(const float *p, long n, i32v at) {
#if defined(__AVX512F__)
    const __m512 low = (__m512)(n < SM_W ? sm_load_n(p, n, 0.0f) : sm_load(p));
    if (n <= SM_W) return (f32v)_mm512_permutexvar_ps((__m512i)at, low);
    const __m512 high = (__m512)(n < 2 * SM_W ? sm_load_n(p + SM_W, n - SM_W, 0.0f) : sm_load(p + SM_W));
    return (f32v)_mm512_permutex2var_ps(low, (__m512i)at, high);
#else
    (void)n;
    return sm_gather(p, at);
#endif
}

/* Lane i is p[at[i]] of 256 bytes, as a float; four more bytes may be read. */
SM_INLINE f32v sm_entry(const unsigned char *p, i32v at) {
#if defined(__AVX512VBMI__)
    const __m512i *const q = (const __m512i *)p;
    const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(q), (__m512i)at, _mm512_loadu_si512(q + 1));
    const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(q + 2), (__m512i)at, _mm512_loadu_si512(q + 3));
    const __mmask16 upper = _mm512_test_epi32_mask((__m512i)at, _mm512_set1_epi32(128));
    return sm_to_float((i32v)_mm512_mask_blend_epi32(upper, low, high) & sm_splat_i(255));
#elif defined(__AVX512F__)
    return sm_to_float((i32v)_mm512_i32gather_epi32((__m512i)at, p, 1) & sm_splat_i(255));
#else
#define SM_LANE(i) p[at[i]]
    return sm_to_float((i32v){SM_LANES(SM_LANE)});
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

SM_INLINE i32v sm_load_u16(const unsigned short *p) { return __builtin_convertvector(*(const sm_u16v_mem *)p, i32v); }

SM_INLINE i32v sm_load_u16_n(const unsigned short *p, long n) {
    unsigned short t[SM_W] = {0};
    for (long i = 0; i < n; i++) t[i] = p[i];
    return sm_load_u16(t);
}

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

/* Floats that lie in memory as bytes: integers from 0 to 255. */
SM_INLINE f32v sm_load_bytes(const unsigned char *p) { return sm_to_float(sm_load_u8(p)); }

SM_INLINE f32v sm_load_bytes_n(const unsigned char *p, long n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return (f32v)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1u), p)));
#else
    return sm_to_float(sm_load_u8_n(p, n));
#endif
}

SM_INLINE void sm_store_bytes(unsigned char *p, f32v v) {
    *(sm_u8v_mem *)p = __builtin_convertvector(sm_to_int(v), sm_u8v_mem);
}

SM_INLINE void sm_store_bytes_n(unsigned char *p, f32v v, long n) {
#if defined(__AVX512F__)
    _mm512_mask_cvtepi32_storeu_epi8(p, (__mmask16)((1u << n) - 1u), (__m512i)sm_to_int(v));
#else
    for (long i = 0; i < n; i++) p[i] = (unsigned char)v[i];
#endif
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

/* The maximum where neither is NaN. */
SM_INLINE f32v sm_max_ordered(f32v a, f32v b) {
#if defined(__AVX512F__)
    return (f32v)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return sm_max(a, b);
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
SM_INLINE float sm_max_ordereds(float a, float b) { return a > b ? a : b; }
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

SM_INLINE float sm_hmax_ordered(f32v v) {
    SM_FOLD(v, SM_MAX_STEP);
    return v[0];
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

/* a / x, at most 1.5 ulp from it; what follows from x alone leaves loops.  Without a normal reciprocal it is the quotient. */
SM_INLINE f32v sm_over(f32v a, float x) {
    const float size = fabsf(x);
    if (__builtin_expect(size >= 0x1p-126f && size <= 0x1p126f, 1)) return a * sm_splat(1.0f / x);
    return a / sm_splat(x);
}

/* The same, rounded as the quotient is but for few a and x, and then 1 ulp from it: 1 / x as a sum of two floats
 * (Brisebarre, Muller and Raina, "Accelerating correctly rounded floating-point division when the divisor is known in
 * advance").  Both have its sign, so that infinities and the signs of zeros come out right. */
SM_INLINE f32v sm_divide(f32v a, float x) {
#if defined(__FMA__)
    const float size = fabsf(x);
    if (__builtin_expect(size >= 0x1p-100f && size <= 0x1p100f, 1)) {
        const double inverse = 1.0 / x;
        float high = (float)inverse;
        if ((inverse - high) * inverse <= 0) high = (float)(inverse * (1 - 0x1p-24)); /* the next one towards zero */
        const f32v rest = a * sm_splat((float)(inverse - high));
#if defined(__AVX512F__)
        return (f32v)_mm512_fmadd_ps((__m512)a, (__m512)sm_splat(high), (__m512)rest);
#else
        return (f32v)_mm256_fmadd_ps((__m256)a, (__m256)sm_splat(high), (__m256)rest);
#endif
    }
#endif
    return a / sm_splat(x);
}

#include "simd_math.h"
#include "units.h"

/* ------------------------------------------------------------------------------------------------------- scalars */

#define SM_SCALAR(f) \
    SM_INLINE float sm_##f##s(float x) { return sm_##f##v(sm_splat(x))[0]; }
SM_SCALAR(exp)
SM_SCALAR(exp_below)
SM_SCALAR(log)
SM_SCALAR(tanh)
SM_SCALAR(erf)
SM_SCALAR(gelu)
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
