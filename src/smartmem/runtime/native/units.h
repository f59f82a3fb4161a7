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

/* Sixteen floats from step k on into the parts of a row of A that starts at `row`; no parts: into sixteen floats.  What
 * one tile has of the row, and what the next one has, lie so many floats apart. */
SM_INLINE void sm_store_parts(float *row, long k, f32v x, int parts, long apart) {
    if (!parts) {
        sm_store(row + k / 16 * apart + k % 16, x);
        return;
    }
    float *const at = row + k / 32 * parts * apart + k % 32 / 2;
    for (int p = 0; p < parts; ++p) {
        const __m256bh near = _mm512_cvtneps_pbh((__m512)x);
        memcpy(at + p * apart, &near, sizeof near);
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
SM_INLINE void sm_store_run(float *row, long from, const float *x, long count, int parts, long apart) {
    long k = 0;
    if (parts == 1) { /* whole rows of a tile at once */
        if (from % 32 && count >= SM_W) {
            sm_store_parts(row, from, sm_load(x), 1, apart);
            k = SM_W;
        }
        for (; k + 32 <= count; k += 32) {
            const __m512bh near = _mm512_cvtne2ps_pbh((__m512)sm_load(x + k + SM_W), (__m512)sm_load(x + k));
            memcpy(row + (from + k) / 32 * apart, &near, sizeof near);
        }
    }
    for (; k + SM_W <= count; k += SM_W) sm_store_parts(row, from + k, sm_load(x + k), parts, apart);
    if (k < count) sm_store_parts(row, from + k, sm_load_n(x + k, count - k, 0.0f), parts, apart);
}

/* A panel of B, `depth` rows of `vectors` vectors, as tiles: two rows side by side, zeros behind the last one. */
SM_INLINE void sm_store_panel(float *tiles, const float *panel, long depth, int vectors, int parts) {
    for (long k = 0; k < depth; k += 2) {
        float *const at = tiles + k / 32 * parts * vectors * SM_TILE + k % 32 / 2 * SM_W;
        for (int j = 0; j < vectors; ++j) {
            f32v x = sm_load(panel + (k * vectors + j) * SM_W);
            f32v y = k + 1 < depth ? sm_load(panel + ((k + 1) * vectors + j) * SM_W) : sm_splat(0.0f);
            for (int p = 0; p < parts; ++p) {
                const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
                const __m512i high = _mm512_slli_epi32(
                    _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)y)), 16);
                sm_store(at + (p * vectors + j) * SM_TILE, (f32v)_mm512_or_si512(low, high));
                x -= (f32v)_mm512_slli_epi32(low, 16);
                y -= (f32v)high;
            }
        }
    }
    for (long k = (depth + 1) / 2 * 2; k % 32; k += 2)
        for (int p = 0; p < parts * vectors; ++p)
            sm_store(tiles + (k / 32 * parts * vectors + p) * SM_TILE + k % 32 / 2 * SM_W, sm_splat(0.0f));
}
#endif
