/* Functions of vectors that take more than an operation: by polynomials, or by libm, lane by lane.
 *
 * A part of `simd.h`, which includes it behind what it is made of.
 *
 * Accuracy, largest error over float32 (tests/runtime/test_simd_math.py measures it):
 *   exp 1.2 ulp, log 1 ulp, tanh 3 ulp, sigmoid 2.5 ulp (exp and sigmoid give 0 for results below 2^-126), exp_below
 *   1.5 * 2^-23 (1 - x) of the result,
 *   erf 6 ulp and 3.6e-7 absolute (AVX-512: 2.3 ulp, 7e-8), gelu of positive numbers 3.5 ulp (1.7 ulp), of all 3e-7 |x|
 *   (8e-8 |x|; of negative ones down to -3 3 ulp; of -infinity 0, its limit, where the formula has NaN); sqrt, abs and
 *   the roundings as IEEE operations, rsqrt as 1 / sqrt; all others are libm's, lane by lane.
 */
#ifndef SM_SIMD_MATH_H
#define SM_SIMD_MATH_H

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

/* x - n ln 2. */
SM_INLINE f32v sm_exp_rest(f32v x, f32v n) {
    f32v r = x - n * sm_splat(0x1.63p-1f); /* n * (high part of ln 2) is exact without FMA, too */
    return r + n * sm_splat(0x1.bd0106p-13f);
}

/* q(r) of exp(r) = 1 + r + r^2 q(r), minimax to 2^-28 for |r| <= ln 2 / 2. */
SM_INLINE f32v sm_exp_series(f32v r) {
    f32v q = sm_splat(0x1.6a5134p-10f);
    q = sm_horner(q, r, 0x1.12397cp-7f);
    q = sm_horner(q, r, 0x1.5558acp-5f);
    q = sm_horner(q, r, 0x1.555492p-3f);
    return sm_horner(q, r, 0x1.fffffcp-2f);
}

/* exp(x) = 2^n exp(r), n = round(x / ln 2).
 * A result below 2^-126 is 0: x86 takes some 150 cycles for a vector with a subnormal result, and masks of -100 or -inf
 * would make one in each row of a softmax. */
SM_INLINE f32v sm_expv(f32v x) {
    const f32v shift = sm_splat(0x1.8p23f); /* adding and taking it away rounds to an integer */
    const f32v lowest = sm_splat(-0x1.5d589ep6f); /* its exp is 2^-126 */
    i32v zero = (i32v)(x < lowest);
    x = sm_min(sm_splat(89.0f), sm_max(lowest, x)); /* exp(89) is infinity */
    f32v n = (x * sm_splat(0x1.715476p0f) + shift) - shift;
    f32v r = sm_exp_rest(x, n), q = sm_horner(sm_exp_series(r), r, 1.0f);
    return sm_select(zero, sm_splat(0.0f), sm_scale2(sm_horner(q, r, 1.0f), n));
}

/* exp(x) for x <= 0, a softmax's difference from its maximum. The relative error grows with -x, as the product x / ln 2 is
 * rounded: no element of a softmax is off by more than 2^-22 of its largest one.
 * 2^y = 2^floor(y) 2^r; the polynomial is 1 at r = 0 and minimax to 2^-23.5 for r in [0, 1]. */
SM_INLINE f32v sm_exp_belowv(f32v x) {
#if defined(__AVX512DQ__)
    const f32v y = x * sm_splat(0x1.715476p0f);
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)y, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const f32v r = (f32v)_mm512_reduce_ps((__m512)y, _MM_FROUND_TO_NEG_INF);
    f32v p = sm_splat(0x1.e974fep-10f);
    p = sm_horner(p, r, 0x1.277854p-7f);
    p = sm_horner(p, r, 0x1.c91ce6p-5f);
    p = sm_horner(p, r, 0x1.ebdb56p-3f);
    p = sm_horner(p, r, 0x1.62e4bap-1f);
    p = sm_horner(p, r, 1.0f);
    return (f32v)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)y);
#else
    return sm_expv(x);
#endif
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
    f32v r = sm_exp_rest(y, n - shift), q = sm_exp_series(r);
    f32v z = (q * r) * (r * s) + (r * s) + (s - sm_splat(1.0f)); /* s (r + r^2 q) + (s - 1) */
    y = -z * sm_div_fast(sm_splat(1.0f), z + sm_splat(2.0f));
    return sm_from_bits(sm_bits(y) ^ sign);
}

#if defined(__AVX512F__)
/* erf|x| = sum of c[k][i] r^k, i = round(8 |x|), r = |x| - i/8: minimax for the relative error in each interval. A
 * permutation of two registers looks a coefficient up. From 3.8125 on it is 1 to half an ulp. */
static const float sm_erf_table[5][32] __attribute__((aligned(64))) = {
    {0, 0x1.1f5e1ap-3f, 0x1.1af54ep-2f, 0x1.9dd0d2p-2f, 0x1.0a7ef6p-1f, 0x1.3f196ep-1f, 0x1.6c1c98p-1f,
     0x1.91724ap-1f, 0x1.af767ap-1f, 0x1.c6dad2p-1f, 0x1.d8865ep-1f, 0x1.e5768cp-1f, 0x1.eea556p-1f,
     0x1.f4f694p-1f, 0x1.f92d08p-1f, 0x1.fbe61ep-1f, 0x1.fd9ae2p-1f, 0x1.fea422p-1f, 0x1.ff4048p-1f,
     0x1.ff996p-1f, 0x1.ffcaa8p-1f, 0x1.ffe514p-1f, 0x1.fff2dp-1f, 0x1.fff9bap-1f, 0x1.fffd1ap-1f, 0x1.fffeb4p-1f,
     0x1.ffff7p-1f, 0x1.ffffc4p-1f, 0x1.ffffe8p-1f, 0x1.fffff6p-1f, 0x1.fffffcp-1f, 0x1p+0f},
    {0x1.20dd74p+0f, 0x1.1c62f2p+0f, 0x1.0f5d1p+0f, 0x1.f5f0ccp-1f, 0x1.c1efcap-1f, 0x1.86e96ap-1f,
     0x1.492e44p-1f, 0x1.0cab62p-1f, 0x1.a911fp-2f, 0x1.45e99cp-2f, 0x1.e4653p-3f, 0x1.5ce596p-3f, 0x1.e72372p-4f,
     0x1.499d48p-4f, 0x1.b0553p-5f, 0x1.12ceb2p-5f, 0x1.529bap-6f, 0x1.94624ep-7f, 0x1.d4143cp-8f, 0x1.06918ap-8f,
     0x1.1d8316p-9f, 0x1.2ce898p-10f, 0x1.3360ccp-11f, 0x1.30539p-12f, 0x1.24087p-13f, 0x1.0f9e1cp-14f,
     0x1.e9b3e8p-16f, 0x1.abddf2p-17f, 0x1.6a56bep-18f, 0x1.2967f8p-19f, 0x1.d93246p-21f, 0},
    {0x1.6ec55ep-16f, -0x1.1c608ep-3f, -0x1.0f5c28p-2f, -0x1.786fdep-2f, -0x1.c1f334p-2f, -0x1.e8a602p-2f,
     -0x1.edce3ap-2f, -0x1.d63478p-2f, -0x1.a90db8p-2f, -0x1.6ea13p-2f, -0x1.2ec3f4p-2f, -0x1.dfb6dcp-3f,
     -0x1.6d6b82p-3f, -0x1.0bd8e6p-3f, -0x1.7a69bap-4f, -0x1.016792p-4f, -0x1.52f694p-5f, -0x1.ae1404p-6f,
     -0x1.07e4f8p-6f, -0x1.35eee8p-7f, -0x1.612004p-8f, -0x1.8527f8p-9f, -0x1.ab8508p-10f, -0x1.ad583p-11f,
     -0x1.854aap-12f, -0x1.b25d72p-13f, -0x1.ee14dep-14f, -0x1.9ce768p-14f, -0x1.3daa44p-14f, -0x1.204cb4p-19f,
     0x1.089d72p-17f, 0},
    {-0x1.826948p-2f, -0x1.6ed248p-2f, -0x1.3c32d2p-2f, -0x1.e0b9acp-3f, -0x1.2beda4p-3f, -0x1.c8c9ap-5f,
     0x1.b48542p-6f, 0x1.7be07ap-4f, 0x1.1af1b4p-3f, 0x1.4c5654p-3f, 0x1.56d5c8p-3f, 0x1.4344a6p-3f,
     0x1.1c19dp-3f, 0x1.d65d68p-4f, 0x1.715678p-4f, 0x1.14571cp-4f, 0x1.8b40bcp-5f, 0x1.0edafp-5f, 0x1.64490cp-6f,
     0x1.c27964p-7f, 0x1.12040cp-7f, 0x1.410c3p-8f, 0x1.6a87dp-9f, 0x1.8ac558p-10f, 0x1.9f51e8p-11f,
     0x1.a4a6d6p-12f, 0x1.9d0cdp-13f, 0x1.87015ep-14f, 0x1.657f96p-15f, 0x1.3bdc6ap-16f, 0x1.0dd4f4p-17f, 0},
    {0x1.61dadap-6f, 0x1.139fd4p-4f, 0x1.01fb8p-3f, 0x1.4c819ep-3f, 0x1.7cb9b2p-3f, 0x1.6ccfd8p-3f,
     0x1.43de96p-3f, 0x1.e9302cp-4f, 0x1.0e4ecp-4f, 0x1.820b9p-6f, -0x1.2702d2p-9f, -0x1.08af6ap-5f,
     -0x1.2c8c6ap-5f, -0x1.72d9bcp-5f, -0x1.4d2484p-5f, -0x1.cbbc3ep-5f, -0x1.851f6ap-6f, -0x1.4a867ap-6f,
     -0x1.494fa8p-7f, -0x1.c2065cp-6f, -0x1.7b2edap-6f, -0x1.0fc492p-6f, 0x1.712a9ap-10f, -0x1.7bf944p-8f,
     -0x1.a78c1p-7f, 0x1.4e9964p-11f, 0x1.6d85a8p-8f, 0x1.cbd078p-7f, 0x1.da444ap-7f, -0x1.92d86p-10f,
     -0x1.791b6ap-9f, 0},
};

/* c[i], where `at` has i in its low bits. */
SM_INLINE f32v sm_table_entry(const float *c, f32v at) {
    return (f32v)_mm512_permutex2var_ps(_mm512_load_ps(c), (__m512i)sm_bits(at), _mm512_load_ps(c + 16));
}

SM_INLINE f32v sm_erfv(f32v x) {
    const f32v shift = sm_splat(0x1.8p20f); /* adding and taking it away rounds to eighths; they are its low bits */
    f32v y = sm_min(sm_splat(3.9374f), sm_absv(x));
    f32v at = y + shift;
    f32v r = y - (at - shift), p = sm_table_entry(sm_erf_table[4], at);
    p = sm_fma(p, r, sm_table_entry(sm_erf_table[3], at));
    p = sm_fma(p, r, sm_table_entry(sm_erf_table[2], at));
    p = sm_fma(p, r, sm_table_entry(sm_erf_table[1], at));
    p = sm_fma(p, r, sm_table_entry(sm_erf_table[0], at));
    return sm_from_bits(sm_bits(p) | (sm_bits(x) & sm_splat_i((int)0x80000000u)));
}

/* max(0, x) - q(|x|), q(y) = y / 2 erfc(y / sqrt(2)) = sum of c[k][i] r^k, i = round(y / s), r = y - i s: minimax for
 * the error relative to q. In the last interval, where q is less than a quarter of x's ulp, it is 0. */
static const float sm_gelu_table[5][32] __attribute__((aligned(64))) = {
    {0, 0x1.3b85bep-4f, 0x1.08b53p-3f, 0x1.4598p-3f, 0x1.5b9beep-3f, 0x1.536fa8p-3f, 0x1.36331ep-3f,
     0x1.0c7ef6p-3f, 0x1.bb4bbp-4f, 0x1.5e88ecp-4f, 0x1.0a44a4p-4f, 0x1.855878p-5f, 0x1.125bccp-5f,
     0x1.750bf8p-6f, 0x1.e9bc1ep-7f, 0x1.368b78p-7f, 0x1.7ca05p-8f, 0x1.c305d8p-9f, 0x1.02689cp-9f,
     0x1.1e6698p-10f, 0x1.3312cap-11f, 0x1.3e8b44p-12f, 0x1.3fbeb4p-13f, 0x1.36966ap-14f, 0x1.23f926p-15f,
     0x1.09a60ep-16f, 0x1.d3e028p-18f, 0x1.8ed06ep-19f, 0x1.490f32p-20f, 0x1.06d16ep-21f, 0x1.9666c6p-23f, 0},
    {0x1p-1f, 0x1.6ec212p-2f, 0x1.cd519ep-3f, 0x1.be423p-4f, 0x1.e10f8ap-7f, -0x1.c1e8acp-5f, -0x1.99c902p-4f,
     -0x1.f8e8bep-4f, -0x1.07c4dep-3f, -0x1.f1f2d8p-4f, -0x1.b42a2ep-4f, -0x1.6778fep-4f, -0x1.1904a4p-4f,
     -0x1.a2e464p-5f, -0x1.2aac88p-5f, -0x1.986fe2p-6f, -0x1.0c4784p-6f, -0x1.53031ap-7f, -0x1.9c7e9ep-8f,
     -0x1.e3a944p-9f, -0x1.116b66p-9f, -0x1.2a3d8ap-10f, -0x1.39fb94p-11f, -0x1.3f2766p-12f, -0x1.39501p-13f,
     -0x1.2921a4p-14f, -0x1.1045fp-15f, -0x1.e23bd4p-17f, -0x1.9cc724p-18f, -0x1.55908p-19f, -0x1.114332p-20f,
     0},
    {-0x1.98846cp-2f, -0x1.8b7c96p-2f, -0x1.663daep-2f, -0x1.2df1bcp-2f, -0x1.d40c0ep-3f, -0x1.4576acp-3f,
     -0x1.7ebc66p-4f, -0x1.359a6ap-5f, 0x1.34e7dcp-8f, 0x1.0febeap-5f, 0x1.8f976p-5f, 0x1.b9cb54p-5f,
     0x1.a774ccp-5f, 0x1.7100bcp-5f, 0x1.2ad0e2p-5f, 0x1.c7283p-6f, 0x1.486712p-6f, 0x1.c31a64p-7f,
     0x1.27e704p-7f, 0x1.73a4ccp-8f, 0x1.bfac5ep-9f, 0x1.02f43cp-9f, 0x1.2008dcp-10f, 0x1.344d84p-11f,
     0x1.3dc8ap-12f, 0x1.3b9eaap-13f, 0x1.2e3296p-14f, 0x1.170ee4p-15f, 0x1.f13c38p-17f, 0x1.ab87e8p-18f,
     0x1.62dc92p-19f, 0},
    {0x1.2ba1d8p-16f, 0x1.7d432ep-5f, 0x1.62652cp-4f, 0x1.d5fbap-4f, 0x1.06d832p-3f, 0x1.047ecp-3f,
     0x1.d16956p-4f, 0x1.7745ap-4f, 0x1.0d6b2cp-4f, 0x1.4a5acap-5f, 0x1.2dd654p-6f, 0x1.df21c8p-10f,
     -0x1.27c0bcp-7f, -0x1.e24398p-7f, -0x1.0ce842p-6f, -0x1.fa73d4p-7f, -0x1.ac4976p-7f, -0x1.4e173ap-7f,
     -0x1.e7af14p-8f, -0x1.4fe408p-8f, -0x1.b70c92p-9f, -0x1.1154cap-9f, -0x1.4514c8p-10f, -0x1.72146p-11f,
     -0x1.93ec06p-12f, -0x1.a7348ep-13f, -0x1.aa171p-14f, -0x1.9c95dcp-15f, -0x1.807f2p-16f, -0x1.590f24p-17f,
     -0x1.2a5b38p-18f, 0},
    {0x1.0f63f6p-4f, 0x1.fa7e0ep-5f, 0x1.8dbd7p-5f, 0x1.e371bp-6f, 0x1.12d92p-7f, -0x1.69efbap-7f,
     -0x1.a74946p-6f, -0x1.19a58p-5f, -0x1.2b892p-5f, -0x1.125446p-5f, -0x1.b9e8cp-6f, -0x1.37264ep-6f,
     -0x1.6f9f08p-7f, -0x1.38ccaap-8f, -0x1.55abe8p-13f, 0x1.5572eep-9f, 0x1.f84dfap-9f, 0x1.07523cp-8f,
     0x1.d303c2p-9f, 0x1.743356p-9f, 0x1.117634p-9f, 0x1.77934p-10f, 0x1.e62acep-11f, 0x1.2a3774p-11f,
     0x1.5c134ap-12f, 0x1.839eep-13f, 0x1.9cb9e8p-14f, 0x1.a4e262p-15f, 0x1.9b9c4p-16f, 0x1.827526p-17f,
     0x1.5ca7ecp-18f, 0},
};

enum { SM_TOGETHER = 2 };

/* Of at most SM_TOGETHER vectors, one step of all after the other: processors have few places for instructions that
 * wait. */
SM_INLINE void sm_gelu_together(f32v *x, const int count) {
    const float step = 0x1.7p-3f;
    const f32v shift = sm_splat(0x1.8p23f); /* adding and taking it away rounds; its low bits are the number */
    f32v y[SM_TOGETHER], at[SM_TOGETHER], q[SM_TOGETHER];
#define SM_ALL _Pragma("GCC unroll 4") for (int k = 0; k < count; ++k)
#if defined(__AVX512DQ__)
    SM_ALL y[k] = (f32v)_mm512_range_ps((__m512)x[k], (__m512)sm_splat(31 * step), 10); /* the smaller size, positive */
#else
    SM_ALL y[k] = sm_min(sm_splat(31 * step), sm_absv(x[k]));
#endif
    SM_ALL at[k] = sm_fma(y[k], sm_splat(1 / step), shift);
    SM_ALL y[k] = sm_fma(at[k] - shift, sm_splat(-step), y[k]);
    SM_ALL q[k] = sm_table_entry(sm_gelu_table[4], at[k]);
    SM_ALL q[k] = sm_fma(q[k], y[k], sm_table_entry(sm_gelu_table[3], at[k]));
    SM_ALL q[k] = sm_fma(q[k], y[k], sm_table_entry(sm_gelu_table[2], at[k]));
    SM_ALL q[k] = sm_fma(q[k], y[k], sm_table_entry(sm_gelu_table[1], at[k]));
    SM_ALL q[k] = sm_fma(q[k], y[k], sm_table_entry(sm_gelu_table[0], at[k]));
    SM_ALL x[k] = (f32v)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x[k]) - q[k]; /* the maximum with NaN is NaN */
#undef SM_ALL
}

SM_INLINE f32v sm_geluv(f32v x) {
    sm_gelu_together(&x, 1);
    return x;
}

SM_INLINE void sm_gelu_each(f32v *x, long count) {
#pragma GCC unroll 16
    for (long k = 0; k < count; k += SM_TOGETHER)
        sm_gelu_together(x + k, k + SM_TOGETHER <= count ? SM_TOGETHER : (int)(count - k));
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

SM_INLINE f32v sm_geluv(f32v x) {
    return x * sm_splat(0.5f) * (sm_erfv(x * sm_splat(0x1.6a09e6p-1f)) + sm_splat(1.0f));
}

SM_INLINE void sm_gelu_each(f32v *x, long count) {
    for (long k = 0; k < count; ++k) x[k] = sm_geluv(x[k]);
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

#endif
