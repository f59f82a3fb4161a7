/* Scalar helpers of generated code: integer arithmetic with the meaning ONNX gives it, double functions, indices. */
#ifndef SM_SCALAR_H
#define SM_SCALAR_H

#include <math.h>
#include <stdint.h>

#define SM_SCALAR static inline __attribute__((unused))

/* Truncating division and remainder; a zero divisor gives 0 instead of a trap. */
SM_SCALAR int64_t sm_idiv(int64_t a, int64_t b) { return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b; }
SM_SCALAR int64_t sm_irem(int64_t a, int64_t b) { return b == 0 || b == -1 ? 0 : a % b; }
SM_SCALAR uint64_t sm_umod(uint64_t a, uint64_t b) { return b == 0 ? 0 : a % b; }

/* Remainder with the sign of the divisor. */
SM_SCALAR int64_t sm_imod(int64_t a, int64_t b) {
    int64_t r = sm_irem(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

SM_SCALAR int64_t sm_ipow(int64_t base, int64_t exponent) {
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent % 2 ? -1 : 1) : 0;
    uint64_t result = 1, factor = (uint64_t)base;
    for (; exponent; exponent >>= 1, factor *= factor)
        if (exponent & 1) result *= factor;
    return (int64_t)result;
}

SM_SCALAR uint64_t sm_shl(uint64_t a, uint64_t n) { return n > 63 ? 0 : a << n; }
SM_SCALAR uint64_t sm_shr(uint64_t a, uint64_t n) { return n > 63 ? 0 : a >> n; }
/* Arithmetic: the sign is shifted in. A negative count, like one past the width, leaves nothing but the sign. */
SM_SCALAR int64_t sm_sar(int64_t a, uint64_t n) { return a >> (n > 63 ? 63 : n); }

/* Towards zero, saturating; NaN is 0. */
SM_SCALAR int64_t sm_to_i64(double x) {
    if (x != x) return 0;
    if (x >= 9223372036854775807.0) return INT64_MAX;
    if (x <= -9223372036854775808.0) return INT64_MIN;
    return (int64_t)x;
}

/* An entry of an index tensor: negative counts from the end, and no value leaves [0, extent). */
SM_SCALAR long sm_index(int64_t entry, long extent) {
    if (entry < 0) entry += extent;
    return entry < 0 ? 0 : entry >= extent ? extent - 1 : (long)entry;
}

#define SM_DOUBLE(f, libm) \
    SM_SCALAR double sm_##f##d(double x) { return libm(x); }
SM_DOUBLE(exp, exp)
SM_DOUBLE(log, log)
SM_DOUBLE(sqrt, sqrt)
SM_DOUBLE(sin, sin)
SM_DOUBLE(cos, cos)
SM_DOUBLE(tan, tan)
SM_DOUBLE(asin, asin)
SM_DOUBLE(acos, acos)
SM_DOUBLE(atan, atan)
SM_DOUBLE(sinh, sinh)
SM_DOUBLE(cosh, cosh)
SM_DOUBLE(tanh, tanh)
SM_DOUBLE(asinh, asinh)
SM_DOUBLE(acosh, acosh)
SM_DOUBLE(atanh, atanh)
SM_DOUBLE(erf, erf)
SM_DOUBLE(floor, floor)
SM_DOUBLE(ceil, ceil)
SM_DOUBLE(round, rint)
SM_DOUBLE(trunc, trunc)
SM_DOUBLE(abs, fabs)
SM_SCALAR double sm_sigmoidd(double x) { return 1.0 / (1.0 + exp(-x)); }
SM_SCALAR double sm_maxd(double a, double b) { return (a > b || a != a) ? a : b; }
SM_SCALAR double sm_mind(double a, double b) { return (a < b || a != a) ? a : b; }
SM_SCALAR double sm_powd(double x, double y) { return pow(x, y); }
SM_SCALAR double sm_fmodd(double x, double y) { return fmod(x, y); }
/* Remainder with the sign of the divisor, exact as fmod is; a zero has it too. */
SM_SCALAR double sm_modd(double x, double y) {
    const double r = fmod(x, y);
    return r == 0 ? copysign(0.0, y) : (r < 0) != (y < 0) && r == r ? r + y : r;
}

/* bfloat16 is the upper half of a float; rounded to nearest, ties to even; NaN stays NaN. */
SM_SCALAR float sm_from_bf16(uint16_t x) {
    const union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}
SM_SCALAR uint16_t sm_to_bf16(float x) {
    const union { float value; uint32_t bits; } u = {x};
    if (x != x) return (uint16_t)(u.bits >> 16 | 0x40);
    return (uint16_t)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
}
#define sm_to_f16(x) ((_Float16)(x))

#endif
