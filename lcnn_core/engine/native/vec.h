// A vector of floats as wide as the instruction set it is compiled for, and the few operations the kernels use.
// LCNN_ROWS x LCNN_COLS is the register block of the matrix kernel, LCNN_ACCS the accumulators of the sparse one. Vectors
// of lookups have LOOKUP_VL lanes, those of filters or images side by side SLICED_VL: a file of such kernels defines
// LCNN_LOOKUPS or LCNN_SLICED before. LCNN_WIDE: lookups of 512 bits, which pay on some processors with AVX-512.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && !defined(LCNN_SLICED) && (!defined(LCNN_LOOKUPS) || defined(LCNN_WIDE))
#define LCNN_VL 16
#define LCNN_ROWS 8
#elif defined(__AVX__)
#define LCNN_VL 8
#define LCNN_ROWS 4
#elif defined(__aarch64__)
#define LCNN_VL 4
#define LCNN_ROWS 8
#else
#define LCNN_VL 4
#define LCNN_ROWS 4
#endif
#define LCNN_COLS 3
#if defined(__AVX512F__)
#define LCNN_ACCS 24
#define SLICED_VL 8
#else
#define LCNN_ACCS 13
#define SLICED_VL LCNN_VL
#endif
#if defined(LCNN_WIDE)
#define LOOKUP_VL 16
#else
#define LOOKUP_VL SLICED_VL
#endif
#define LCNN_BESIDE (LCNN_ACCS == 24)  // registers suffice for lookups beside a product
#define LCNN_SHIFTS (LOOKUP_VL == 16)  // lookups by kernel column: with 256 bits they take as long, or longer
#define LCNN_INLINE inline __attribute__((always_inline))

namespace lcnn {

constexpr int VL = LCNN_VL;
/// Floats of pixels that a product copies first (gemm.cpp): of 256 entries of depth. With AVX-512 none.
constexpr int64_t PANEL = LCNN_VL == 16 ? 0 : 256 * LCNN_COLS * LCNN_VL;
typedef float vf __attribute__((vector_size(LCNN_VL * 4)));
typedef float vf_any __attribute__((vector_size(LCNN_VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(LCNN_VL * 4)));

/// Images side by side fill whole vectors of SLICED_VL lanes.
static LCNN_INLINE int64_t padded_images(int64_t images) { return (images + SLICED_VL - 1) / SLICED_VL * SLICED_VL; }

static LCNN_INLINE vf load(const float* p) { return *(const vf_any*)p; }
static LCNN_INLINE void store(float* p, vf v) { *(vf_any*)p = v; }
static LCNN_INLINE vf splat(float x) { return x - vf{}; }
static LCNN_INLINE vf zero() { return vf{}; }

/// The lower half of a vector where a processor may do its FMA in half the time: a Zen 4 has multipliers of 256 bits.
#if LCNN_VL == 16 && defined(__AVX512F__)
#define LCNN_HALVES 1
typedef float vh __attribute__((vector_size(LCNN_VL * 2)));
static LCNN_INLINE vh lower(vf v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
static LCNN_INLINE vf widened(vh v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1);
}
#else
#define LCNN_HALVES 0
typedef vf vh;
static LCNN_INLINE vh lower(vf v) { return v; }
static LCNN_INLINE vf widened(vh v) { return v; }
#endif

/// base[at[i]] in lane i, by ordinary loads: on AMD's processors the gather instruction is slower.
static LCNN_INLINE vf gather(const float* base, const int32_t* at) {
#define LCNN_FOUR(i) base[at[i]], base[at[i + 1]], base[at[i + 2]], base[at[i + 3]]
#if LCNN_VL == 16
    return vf{LCNN_FOUR(0), LCNN_FOUR(4), LCNN_FOUR(8), LCNN_FOUR(12)};
#elif LCNN_VL == 8
    return vf{LCNN_FOUR(0), LCNN_FOUR(4)};
#else
    return vf{LCNN_FOUR(0)};
#endif
#undef LCNN_FOUR
}

/// The first n lanes only, so that nothing past them is written.
static LCNN_INLINE void store_first(float* p, vf v, int64_t n) {
#if defined(__AVX512VL__) && !defined(__SANITIZE_ADDRESS__)  // which would not see a masked store
#if LCNN_VL == 16
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
#else
    _mm256_mask_storeu_ps(p, __mmask8((1u << n) - 1), v);
#endif
#else
    memcpy(p, &v, n * sizeof(float));
#endif
}

/// Lanes to keep, by the bits of a number, lowest first; the others become zero, whatever they hold.
#if defined(__AVX512VL__) && LCNN_VL == 16
typedef __mmask16 kept_lanes;
static LCNN_INLINE vf keep(kept_lanes lanes, vf v) { return _mm512_maskz_mov_ps(lanes, v); }
static LCNN_INLINE kept_lanes lanes_of(uint32_t bits) { return kept_lanes(bits); }
#elif defined(__AVX512VL__) && LCNN_VL == 8
typedef __mmask8 kept_lanes;
static LCNN_INLINE vf keep(kept_lanes lanes, vf v) { return _mm256_maskz_mov_ps(lanes, v); }
static LCNN_INLINE kept_lanes lanes_of(uint32_t bits) { return kept_lanes(bits); }
#else
typedef vi kept_lanes;
static LCNN_INLINE vf keep(kept_lanes lanes, vf v) { return (vf)((vi)v & lanes); }
static LCNN_INLINE kept_lanes lanes_of(uint32_t bits) {
    vi bit;
    for (int i = 0; i < VL; ++i) bit[i] = 1 << i;
    return (int32_t(bits) & bit) != 0;
}
#endif

/// The first n lanes of a, the others of b.
static LCNN_INLINE vf first_lanes(vf a, vf b, int64_t n) {
    vi lane;
    for (int i = 0; i < VL; ++i) lane[i] = i;
    return lane < int32_t(n) ? a : b;
}

// max(bound, x) and min(bound, x): a NaN in x stays, as in PyTorch.
static LCNN_INLINE vf vmax(vf bound, vf x) {
#if LCNN_VL == 16 && defined(__AVX512F__)
    return _mm512_max_ps(bound, x);
#elif LCNN_VL == 8 && defined(__AVX__)
    return _mm256_max_ps(bound, x);
#elif LCNN_VL == 4 && defined(__SSE2__)
    return _mm_max_ps(bound, x);
#elif LCNN_VL == 4 && defined(__aarch64__)
    return (vf)vmaxq_f32((float32x4_t)bound, (float32x4_t)x);
#else
    return bound > x ? bound : x;
#endif
}
static LCNN_INLINE vf vmin(vf bound, vf x) {
#if LCNN_VL == 16 && defined(__AVX512F__)
    return _mm512_min_ps(bound, x);
#elif LCNN_VL == 8 && defined(__AVX__)
    return _mm256_min_ps(bound, x);
#elif LCNN_VL == 4 && defined(__SSE2__)
    return _mm_min_ps(bound, x);
#elif LCNN_VL == 4 && defined(__aarch64__)
    return (vf)vminq_f32((float32x4_t)bound, (float32x4_t)x);
#else
    return bound < x ? bound : x;
#endif
}

/// The larger one; a NaN in either stays, as in PyTorch's max-pooling.
static LCNN_INLINE vf larger(vf a, vf b) {
#if LCNN_VL == 16 && defined(__AVX512F__)
    return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
#elif LCNN_VL == 8 && defined(__AVX512VL__)
    return _mm256_mask_max_ps(a, _mm256_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
#else
    return (vf)((vi)vmax(a, b) | (vi)(a != a));
#endif
}
static LCNN_INLINE float larger(float a, float b) { return a > b || a != a ? a : b; }

/// exp(x), relative error under 2e-7: 2^i * p(r), |r| <= ln2 / 2, Taylor to r^7; flushes below -87, saturates above 88.
static LCNN_INLINE vf vexp(vf x) {
    vf bounded = vmin(splat(88.0f), vmax(splat(-87.0f), x));
    vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf shifted = bounded * splat(1.44269504088896341f) + magic;
    vf whole = shifted - magic;
    vf r = bounded - whole * splat(0.693359375f) - whole * splat(-2.12194440e-4f);
    vf p = splat(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + splat(c);
    vi exponent = ((vi)shifted - (vi)magic + 127) << 23;
    return p * (vf)exponent;
}

/// Lane i of v in lane i + 1, behind the last lane of ``before``; in lane i - 1, ahead of the first one of ``after``.
#if LCNN_VL == 16
static LCNN_INLINE vf moved_on(vf before, vf v) {
    return __builtin_shufflevector(before, v, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30);
}
static LCNN_INLINE vf moved_back(vf v, vf after) {
    return __builtin_shufflevector(v, after, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
}
#elif LCNN_VL == 8
static LCNN_INLINE vf moved_on(vf before, vf v) { return __builtin_shufflevector(before, v, 7, 8, 9, 10, 11, 12, 13, 14); }
static LCNN_INLINE vf moved_back(vf v, vf after) { return __builtin_shufflevector(v, after, 1, 2, 3, 4, 5, 6, 7, 8); }
#else
static LCNN_INLINE vf moved_on(vf before, vf v) { return __builtin_shufflevector(before, v, 3, 4, 5, 6); }
static LCNN_INLINE vf moved_back(vf v, vf after) { return __builtin_shufflevector(v, after, 1, 2, 3, 4); }
#endif

/// The even lanes of a, then those of b.
static LCNN_INLINE vf even_lanes(vf a, vf b) {
#if LCNN_VL == 16
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif LCNN_VL == 8
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}

static LCNN_INLINE vf odd_lanes(vf a, vf b) {
#if LCNN_VL == 16
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif LCNN_VL == 8
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

#if LCNN_VL == 16

/// out[i * APART][lane] = float lane * STEP + i of the STEP vectors: even and odd lanes apart, then each of them again.
template <int STEP, int APART>
static LCNN_INLINE void divide(const vf* from, vf* out) {
    if constexpr (STEP == 1) {
        out[0] = from[0];
    } else {
        vf even[STEP / 2], odd[STEP / 2];
#pragma GCC unroll 4
        for (int i = 0; i < STEP / 2; ++i) {
            even[i] = even_lanes(from[2 * i], from[2 * i + 1]);
            odd[i] = odd_lanes(from[2 * i], from[2 * i + 1]);
        }
        divide<STEP / 2, 2 * APART>(even, out);
        divide<STEP / 2, 2 * APART>(odd, out + APART);
    }
}

/// out[i][lane] = p[lane * STEP + i].
template <int STEP>
static LCNN_INLINE void divide(const float* p, vf* out) {
    vf from[STEP];
#pragma GCC unroll 8
    for (int i = 0; i < STEP; ++i) from[i] = load(p + i * VL);
    divide<STEP, 1>(from, out);
}
#else
/// Block q of four lanes from p + q * apart.
static LCNN_INLINE vf blocks(const float* p, int64_t apart) {
#if LCNN_VL == 4
    (void)apart;
    return load(p);
#else
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + apart), 1);
#endif
}

/// Of every block of four lanes: lanes A and B of a, then C and D of b.
template <int A, int B, int C, int D>
static LCNN_INLINE vf in_blocks(vf a, vf b) {
#if LCNN_VL == 8
    return _mm256_shuffle_ps(a, b, A | B << 2 | C << 4 | D << 6);
#else
    return __builtin_shufflevector(a, b, A, B, 4 + C, 4 + D);
#endif
}

/// Blocks of four vectors as 4 x 4 matrices, transposed.
static LCNN_INLINE void transpose_blocks(vf a, vf b, vf c, vf d, vf* out) {
    vf ab = in_blocks<0, 1, 0, 1>(a, b), cd = in_blocks<0, 1, 0, 1>(c, d);
    out[0] = in_blocks<0, 2, 0, 2>(ab, cd);
    out[1] = in_blocks<1, 3, 1, 3>(ab, cd);
    ab = in_blocks<2, 3, 2, 3>(a, b), cd = in_blocks<2, 3, 2, 3>(c, d);
    out[2] = in_blocks<0, 2, 0, 2>(ab, cd);
    out[3] = in_blocks<1, 3, 1, 3>(ab, cd);
}

/// out[i][lane] = p[lane * STEP + i].
template <int STEP>
static LCNN_INLINE void divide(const float* p, vf* out) {
    static_assert(STEP == 1 || STEP == 2 || STEP == 4 || STEP == 8, "steps of blocks of four lanes");
    if constexpr (STEP == 1) {
        out[0] = load(p);
    } else if constexpr (STEP == 2) {
        vf a = blocks(p, 8), b = blocks(p + 4, 8);
        out[0] = in_blocks<0, 2, 0, 2>(a, b);
        out[1] = in_blocks<1, 3, 1, 3>(a, b);
    } else {
        constexpr int64_t FOUR = 4 * STEP;
        for (int i = 0; i < STEP; i += 4)  // columns [i, i + 4) of rows of STEP
            transpose_blocks(blocks(p + i, FOUR), blocks(p + i + STEP, FOUR), blocks(p + i + 2 * STEP, FOUR),
                             blocks(p + i + 3 * STEP, FOUR), out + i);
    }
}
#endif

/// VL bfloat16 numbers: each is the upper half of a float.
static LCNN_INLINE vf load_halves(const uint16_t* p) {
#if LCNN_VL == 16 && defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif LCNN_VL == 8 && defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#elif LCNN_VL == 4 && defined(__SSE2__)
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i*)p));
#elif LCNN_VL == 4 && defined(__aarch64__)
    return (vf)vshll_n_u16(vld1_u16(p), 16);
#else
    vi bits;
    for (int i = 0; i < VL; ++i) bits[i] = int32_t(uint32_t(p[i]) << 16);
    return (vf)bits;
#endif
}

/// VL int8 numbers.
static LCNN_INLINE vf load_bytes(const int8_t* p) {
#if LCNN_VL == 16 && defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif LCNN_VL == 8 && defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif LCNN_VL == 4 && (defined(__SSE2__) || defined(__aarch64__))
    int32_t four;
    memcpy(&four, p, sizeof four);
#if defined(__SSE2__)
    __m128i bytes = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(bytes, bytes);
    return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
#else
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
#endif
#else
    vf values;
    for (int i = 0; i < VL; ++i) values[i] = p[i];
    return values;
#endif
}

}  // namespace lcnn
