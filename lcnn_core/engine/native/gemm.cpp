// Dense products: the dictionary stage S = D X, and 1x1 and k x k convolutions (implicit: one offset per kernel entry).
//
// out[r][p] = sum_k A[r][k] * input[offsets[k] + p]. A register block holds LCNN_ROWS rows by LCNN_COLS vectors of
// pixels; per k it loads LCNN_COLS vectors, broadcasts LCNN_ROWS values of A and does their product: 7 loads for 12
// FMAs with AVX2, so the FMA units are the bound. Where many rows reuse the pixels (PACK_ROWS and up), the pixels are
// first copied to a dense panel, which keeps TLB and cache-line crossings out of the inner loop. A is read once for
// each panel of pixels, from the last cache where it is large, and fetched AHEAD of its use.
#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

constexpr int MR = LCNN_ROWS;
constexpr int NV = LCNN_COLS;
constexpr int64_t PACK_ROWS = 24;
constexpr int64_t AHEAD = 512;  // floats of A fetched before they are needed: large matrices lie in the last cache

struct Direct {
    const float* base;
    const int32_t* offsets;
    LCNN_INLINE const float* at(int64_t k) const { return base + offsets[k]; }
};
template <int COLS>
struct Panel {
    const float* base;
    LCNN_INLINE const float* at(int64_t k) const { return base + k * (COLS * VL); }
};

/// One register block: PANELS panels of ROWS rows by COLS vectors.
template <int ROWS, int COLS, int PANELS, class Source>
void block(const float* a, int64_t panel_size, Source source, int64_t depth, float* out, int64_t out_stride,
           bool first, bool last, const Epilogue& e, int64_t row, int64_t pixel, int64_t lanes) {
    constexpr int R = ROWS * PANELS;
    vf acc[R][COLS];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) acc[r][c] = first ? zero() : load(out + r * out_stride + c * VL);
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k) {
        const float* x = source.at(k);
        if (k % 2 == 0) __builtin_prefetch(a + k * ROWS + AHEAD);
        vf b[COLS];
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) b[c] = load(x + c * VL);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            vf value = splat(a[(r / ROWS) * panel_size + k * ROWS + r % ROWS]);
#pragma GCC unroll 4
            for (int c = 0; c < COLS; ++c) acc[r][c] += value * b[c];
        }
    }
    if (last && !e.plain()) {
        vf low = splat(e.low), high = splat(e.high);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < COLS; ++c) {
                vf v = acc[r][c];
                if (e.bias) v += splat(e.bias[row + r]);
                if (e.residual) v += load(e.residual + (row + r) * e.residual_stride + pixel + c * VL);
                acc[r][c] = vmin(high, vmax(low, v));
            }
    }
    if (lanes >= COLS * VL) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < COLS; ++c) store(out + r * out_stride + c * VL, acc[r][c]);
        return;
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < COLS - 1; ++c) store(out + r * out_stride + c * VL, acc[r][c]);
        store_first(out + r * out_stride + (COLS - 1) * VL, acc[r][COLS - 1], lanes - (COLS - 1) * VL);
    }
}

struct Tile {
    const PackedMatrix& a;
    float* out;
    int64_t out_stride, depth0, depth, pixel, lanes;
    const Epilogue& e;
    bool first, last;
};

template <int ROWS, int COLS, int PANELS, class Source>
LCNN_INLINE void at_row(const Tile& t, Source source, int64_t row) {
    const float* a = t.a.panel(t.depth0, t.depth, row);
    block<ROWS, COLS, PANELS>(a, ROWS * t.depth, source, t.depth, t.out + row * t.out_stride + t.pixel, t.out_stride,
                              t.first, t.last, t.e, row, t.pixel, t.lanes);
}

template <int COLS, class Source>
void all_rows(const Tile& t, Source source, int64_t row, int64_t end) {
    if (COLS == 1)
        for (; row + 2 * MR <= end; row += 2 * MR) at_row<MR, COLS, 2>(t, source, row);
    for (; row + MR <= end; row += MR) at_row<MR, COLS, 1>(t, source, row);
    switch (end - row) {
#define LCNN_CASE(N) \
    case N: \
        if (N < MR) at_row<(N < MR ? N : 1), COLS, 1>(t, source, row); \
        break;
        LCNN_CASE(1) LCNN_CASE(2) LCNN_CASE(3) LCNN_CASE(4) LCNN_CASE(5) LCNN_CASE(6) LCNN_CASE(7)
#undef LCNN_CASE
    }
}

template <int COLS>
void columns(const Tile& t, const float* input, const int32_t* offsets, float* panel, int64_t row0, int64_t row1) {
    offsets += t.depth0;
    input += t.pixel;
    if (row1 - row0 < PACK_ROWS) return all_rows<COLS>(t, Direct{input, offsets}, row0, row1);
    for (int64_t k = 0; k < t.depth; ++k)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) store(panel + (k * COLS + c) * VL, load(input + offsets[k] + c * VL));
    all_rows<COLS>(t, Panel<COLS>{panel}, row0, row1);
}

}  // namespace

void PackedMatrix::pack(const float* matrix, int64_t rows_, int64_t depth_, int64_t stride) {
    rows = rows_;
    depth = depth_;
    data.resize(rows * depth);
    float* at = data.data();
    for (int64_t k0 = 0; k0 < depth; k0 += DEPTH_BLOCK)
        for (int64_t r0 = 0; r0 < rows; r0 += MR)
            for (int64_t k = k0; k < std::min(depth, k0 + DEPTH_BLOCK); ++k)
                for (int64_t r = r0; r < std::min(rows, r0 + MR); ++r) *at++ = matrix[r * stride + k];
}

void gemm(const PackedMatrix& a, const float* input, const int32_t* offsets, float* out, int64_t out_stride,
          int64_t pixels, const Epilogue& epilogue, float* panel, int64_t row0, int64_t row1) {
    for (int64_t pixel = 0; pixel < pixels;) {
        int64_t vectors = (pixels - pixel + VL - 1) / VL;
        int64_t cols = vectors == 4 ? 2 : std::min<int64_t>(NV, vectors);  // 4 is 2 + 2: one column alone is slow
        int64_t lanes = epilogue.exact ? pixels - pixel : cols * VL;
        for (int64_t k0 = 0; k0 < a.depth; k0 += DEPTH_BLOCK) {
            int64_t depth = std::min(DEPTH_BLOCK, a.depth - k0);
            Tile t{a, out, out_stride, k0, depth, pixel, lanes, epilogue, k0 == 0, k0 + depth == a.depth};
            if (cols == 3) columns<3>(t, input, offsets, panel, row0, row1);
            if (cols == 2) columns<2>(t, input, offsets, panel, row0, row1);
            if (cols == 1) columns<1>(t, input, offsets, panel, row0, row1);
        }
        pixel += cols * VL;
    }
}

}  // namespace lcnn
