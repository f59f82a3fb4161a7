/* The matrix units of x86 processors (AMX): tiles of 16 rows of 64 bytes, here 32 bfloat16 each.
 *
 * A part of `simd.h`.  A float is taken as one or more bfloat16, its *parts*: the nearest one, the nearest one to what is
 * left, and so on.  An operand A lies in tiles of 16 rows x 32 steps of k, one part after the other; a float stands for
 * two bfloat16, or for four bytes, so that a tile has 16 x 16 floats.
 */
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__)

#define SM_TILE 256 /* floats of a tile */

/* Before the first tile of a kernel, and after the last one. */
SM_INLINE void sm_units_begin(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
}
SM_INLINE void sm_units_end(void) { _tile_release(); }

/* Sixteen floats from step k on into the parts of a row of A that starts at `row`; no parts: into sixteen floats. */
SM_INLINE void sm_store_parts(float *row, long k, f32v x, int parts) {
    if (!parts) {
        sm_store(row + k / 16 * SM_TILE + k % 16, x);
        return;
    }
    float *const at = row + k / 32 * parts * SM_TILE + k % 32 / 2;
    for (int p = 0; p < parts; ++p) {
        const __m256bh near = _mm512_cvtneps_pbh((__m512)x);
        memcpy(at + p * SM_TILE, &near, sizeof near);
        if (p + 1 < parts) x -= (f32v)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)near), 16);
    }
}

SM_INLINE void sm_copy(float *to, const float *from, long count) {
    long k = 0;
    for (; k + SM_W <= count; k += SM_W) sm_store(to + k, sm_load(from + k));
    if (k < count) sm_store_n(to + k, sm_load_n(from + k, count - k, 0.0f), count - k);
}

/* Sums of products of bytes. */
SM_INLINE f32v sm_load_sum(const float *p) { return sm_to_float(sm_load_i32((const int *)p)); }

/* `count` floats from step `from` on (a multiple of 16), and zeros up to a multiple of 16. */
SM_INLINE void sm_store_run(float *row, long from, const float *x, long count, int parts) {
    long k = 0;
    for (; k + SM_W <= count; k += SM_W) sm_store_parts(row, from + k, sm_load(x + k), parts);
    if (k < count) sm_store_parts(row, from + k, sm_load_n(x + k, count - k, 0.0f), parts);
}
#endif
