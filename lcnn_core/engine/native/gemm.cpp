// Dense products: the dictionary stage S = D X, and 1x1 and k x k convolutions (implicit: one offset per kernel entry).
//
// out[r][p] = sum_k A[r][k] * input[offsets[k] + p]. A register block holds LCNN_ROWS rows by LCNN_COLS vectors of
// pixels; per k it loads LCNN_COLS vectors, broadcasts LCNN_ROWS values of A and does their product: 7 loads for 12
// FMAs with AVX2, so the FMA units are the bound. With AVX2, where many rows reuse the pixels (PACK_ROWS and up), these are
// first copied to a dense panel, which keeps cache-line crossings out of the inner loop (ResNet-18 accurate takes 1.06
// times as long without); with AVX-512 there are load slots to spare, and copies only cost (0.98 of ResNet-18 fast on a
// Zen 4). A is read once for each strip of pixels, from the last cache where it is large, and fetched AHEAD of its use. Of
// a last vector that is half wanted or less, half is multiplied: 0.95 of the time of 7 x 7 pixels on a Zen 4, whose
// multipliers take 256 bits.
#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

constexpr int MR = LCNN_ROWS;
constexpr int NV = LCNN_COLS;
constexpr int64_t PACK_ROWS = PANEL ? 64 : INT64_MAX;
static_assert(PANEL == 0 || PANEL == DEPTH_BLOCK * NV * VL, "a panel holds a block of depth");

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

/// One register block: PANELS panels of ROWS rows by COLS vectors, of the last of which only a half may be wanted.
template <int ROWS, int COLS, int PANELS, bool HALF, class Source>
LCNN_INLINE void block(const float* a, int64_t panel_size, Source source, int64_t depth, float* out, int64_t out_stride,
           bool first, bool last, const Epilogue& e, int64_t row, int64_t pixel, int64_t lanes) {
    constexpr int R = ROWS * PANELS, WHOLE = COLS - HALF;
    vf acc[R][COLS];
    vh tail[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) acc[r][c] = first ? zero() : load(out + r * out_stride + c * VL);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) tail[r] = lower(acc[r][COLS - 1]);
#pragma GCC unroll 2
    for (int64_t k = 0; k < depth; ++k) {
        const float* x = source.at(k);
        if (k % 2 == 0) __builtin_prefetch(a + k * ROWS + AHEAD);
        vf b[COLS];
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) b[c] = load(x + c * VL);
        vh b_tail = lower(b[COLS - 1]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            vf value = splat(a[(r / ROWS) * panel_size + k * ROWS + r % ROWS]);
#pragma GCC unroll 4
            for (int c = 0; c < WHOLE; ++c) acc[r][c] += value * b[c];
            if (HALF) tail[r] += lower(value) * b_tail;
        }
    }
    if (HALF)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][COLS - 1] = widened(tail[r]);
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
    if (!HALF && lanes >= COLS * VL) {
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

template <int ROWS, int COLS, int PANELS, bool HALF, class Source>
LCNN_INLINE void at_row(const Product& g, const Strip& t, Source source, int64_t row) {
    block<ROWS, COLS, PANELS, HALF>(g.a->panel(t.depth0, t.depth, row), ROWS * t.depth, source, t.depth,
                              g.out + row * g.out_stride + t.pixel, g.out_stride, t.first, t.last, g.epilogue, row, t.pixel,
                              t.lanes);
}

template <int COLS, class Source>
void all_rows(const Product& g, const Strip& t, Source source, int64_t row, int64_t end) {
    if (COLS == 1)
        for (; row + 2 * MR <= end; row += 2 * MR) at_row<MR, COLS, 2, false>(g, t, source, row);
    for (; LCNN_HALVES && COLS > 1 && t.half && row + MR <= end; row += MR)
        at_row<MR, COLS, 1, LCNN_HALVES && COLS != 1>(g, t, source, row);
    for (; row + MR <= end; row += MR) at_row<MR, COLS, 1, false>(g, t, source, row);
    switch (end - row) {
#define LCNN_CASE(N) \
    case N: \
        if (N < MR) at_row<(N < MR ? N : 1), COLS, 1, false>(g, t, source, row); \
        break;
        LCNN_CASE(1) LCNN_CASE(2) LCNN_CASE(3) LCNN_CASE(4) LCNN_CASE(5) LCNN_CASE(6) LCNN_CASE(7)
#undef LCNN_CASE
    }
}

template <int COLS>
void columns(const Product& g, const Strip& t, int64_t row, int64_t end) {
    if (t.packed) return all_rows<COLS>(g, t, Panel<COLS>{g.panel}, row, end);
    all_rows<COLS>(g, t, Direct{g.input + t.pixel, g.offsets + t.depth0}, row, end);
}

template <int COLS>
void copy_panel(const Product& g, const Strip& t) {
    const float* input = g.input + t.pixel;
    const int32_t* offsets = g.offsets + t.depth0;
    for (int64_t k = 0; k < t.depth; ++k)
#pragma GCC unroll 4
        for (int c = 0; c < COLS; ++c) store(g.panel + (k * COLS + c) * VL, load(input + offsets[k] + c * VL));
}

}  // namespace

int64_t Product::vectors(int64_t pixel, int64_t most) const {
    int64_t left = (pixels - pixel + VL - 1) / VL;
    return left == 4 && most == 3 ? 2 : std::min(most, left);  // 4 is 2 + 2: one column alone is slow
}

Strip Product::open(int64_t pixel, int64_t depth0, int64_t cols) const {
    Strip t;
    t.pixel = pixel;
    t.cols = cols;
    t.depth0 = depth0;
    t.depth = std::min(DEPTH_BLOCK, a->depth - depth0);
    t.first = depth0 == 0;
    t.last = depth0 + t.depth == a->depth;
    int64_t wanted = pixels - pixel, halves = (cols - 1) * VL + VL / 2;
    t.half = LCNN_HALVES && cols > 1 && wanted <= halves;
    t.lanes = std::min(epilogue.exact ? wanted : cols * VL, t.half ? halves : cols * VL);
    t.packed = row1 - row0 >= PACK_ROWS;
    if (t.packed && cols == 3) copy_panel<3>(*this, t);
    if (t.packed && cols == 2) copy_panel<2>(*this, t);
    if (t.packed && cols == 1) copy_panel<1>(*this, t);
    return t;
}

void Product::rows(const Strip& t, int64_t row, int64_t end) const {
    if (t.cols == 3) columns<3>(*this, t, row, end);
    if (t.cols == 2) columns<2>(*this, t, row, end);
    if (t.cols == 1) columns<1>(*this, t, row, end);
}

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

void Products::start(int64_t cols) {
    if (block_rows) {
        product.row0 = part * block_rows;
        product.row1 = std::min(product.row0 + block_rows, matrices->rows);
    }
    if (product.pixels <= 0 || product.row0 >= product.row1) part = parts;
    if (done()) return;
    product.a = matrices + part % groups;
    strip = product.open(0, 0, product.vectors(0, cols));
    row = product.row0;
}

void Products::finish_strip(int64_t cols) {
    if (row < product.row1) product.rows(strip, row, product.row1);
    row = product.row0;
    int64_t pixel = strip.pixel, depth0 = strip.depth0 + strip.depth;
    if (depth0 == product.a->depth) {
        depth0 = 0;
        pixel += strip.cols * VL;
    }
    if (pixel < product.pixels) {
        strip = product.open(pixel, depth0, depth0 ? strip.cols : product.vectors(pixel, cols));
        return;
    }
    ++part;
    product.input += input_step;
    product.out += out_step;
    start(cols);
}

void Products::all() {
    for (start(NV); !done();) finish_strip(NV);
}

void gemm(const Product& product) {
    Products one;
    one.product = product;
    one.matrices = product.a;
    one.parts = 1;
    one.all();
}

}  // namespace lcnn
