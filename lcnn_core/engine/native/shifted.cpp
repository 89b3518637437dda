// Lookups by kernel column: sums move one lane between columns, so that every load of S is aligned.
//
// Y[f][y][x] = sum of value * S[r][y + dy][x + dx] over a filter's lookups, from the last dx to the first. A row of S
// begins at a cache line, with the first column that any lookup of its pixels reads: at dx the sums stand dx - low lanes
// to the right of their pixels, and come one lane closer with each column (a shuffle of two vectors, of units that loads
// leave idle). What enters at the end of a row are lanes that no output needs, and none of them is stored.
//
// Loads of 512 bits at any offset cross a cache line, nearly all of them, and take two cycles instead of one: on a Zen 4,
// from the first cache, a loop of its own has 40 to 46 GMAC/s where one at any offset has 30 to 33. Some of it is lost in
// lanes, as 27 pixels take 32 instead of 29, and each column is a loop that a branch ends (load_shifted.cpp weighs this).
// With 256 bits, where every second load crosses, networks take 0.95 to 1.3 of the time.
#define LCNN_LOOKUPS
#include <algorithm>
#include <array>
#include <utility>

#include "filter_end.h"
#include "kernels.h"
#include "vec.h"

namespace lcnn {

#if LCNN_SHIFTS
namespace {

/// Sums over R rows of W vectors, of a filter's lookups in a block.
template <int R, int W>
struct Sums {
    vf at[R][W];

    LCNN_INLINE void fill(float x) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) at[r][j] = splat(x);
    }

    /// Every row's lanes one to the left.
    LCNN_INLINE void shift() {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) at[r][j] = moved_back(at[r][j], at[r][j + 1 < W ? j + 1 : j]);
    }

    LCNN_INLINE void add(const SparseMatrix& p, const int32_t* starts, const float* s) {
        for (int64_t part = 0; part < p.parts; ++part) {
            if (part) shift();
            const Lookup *next = p.lookups.data() + starts[part], *end = p.lookups.data() + starts[part + 1];
            for (; next != end; ++next) {
                vf value = splat(next->value);
                const float* x = s + next->offset;
                asm("" : "+r"(x));  // one address for all loads: GCC would rather compute each of them anew
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                    for (int j = 0; j < W; ++j) at[r][j] += value * load(x + (r * W + j) * VL);
            }
        }
    }

    LCNN_INLINE void add(const float* sums) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) at[r][j] += load(sums + (r * W + j) * VL);
    }

    LCNN_INLINE void store(float* sums) const {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) lcnn::store(sums + (r * W + j) * VL, at[r][j]);
    }
};

/// The first ``width`` lanes and no other: what lies behind them is the next row's, whose residual may stand there yet.
template <int W>
LCNN_INLINE void store_row(const vf (&row)[W], float* out, int64_t width) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) {
        int64_t lanes = width - j * VL;
        if (lanes >= VL)
            store(out + j * VL, row[j]);
        else if (lanes > 0)
            store_first(out + j * VL, row[j], lanes);
    }
}

template <int R, int W>
void rows_of(const ShiftedLookups& c, int64_t block, int64_t row) {
    const SparseMatrix& p = c.p;
    const int32_t* starts = p.starts.data() + block * p.block_starts();
    const FilterEnd end(c.epilogue, row * c.out_row, c.width, true, true, 0);
    const float* s = c.response + row * (W * VL);
    for (int64_t i = c.first; i < c.last; ++i) {
        int64_t f = p.filters[i];
        float* partial = c.sums + i * (SHIFTED_VECTORS * VL);
        Sums<R, W> sums;
        sums.fill(block == 0 && c.epilogue.bias ? c.epilogue.bias[f] : 0.0f);
        sums.add(p, starts + i * p.parts, s);
        if (block) sums.add(partial);
        if (block + 1 < p.blocks) {
            sums.store(partial);
            continue;
        }
        float* out = c.out + f * c.out_stride + row * c.out_row;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            end.add_given<W>(sums.at[r], f, out + r * c.out_row, r * c.out_row);
            end.bound<W>(sums.at[r]);
            store_row<W>(sums.at[r], out + r * c.out_row, c.width);
        }
    }
}

/// The same of pairs of rows, joined for a max-pool as they are made; one block.
template <int P, int W>
void pairs_of(const ShiftedPairs& c) {
    constexpr int OUT = (W + 1) / 2;
    const SparseMatrix& p = c.p;
    vf low = splat(c.e.low), high = splat(c.e.high);
    for (int64_t i = c.first; i < c.last; ++i) {
        int64_t f = p.filters[i];
        Sums<2 * P, W> sums;
        sums.fill(c.e.bias ? c.e.bias[f] : 0.0f);
        sums.add(p, p.starts.data() + i * p.parts, c.response);
        if (c.odd)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) sums.at[2 * P - 1][j] = sums.at[2 * P - 2][j];
        float* carry = c.carry + i * c.row;
        float* out = c.out + f * c.out_stride;
        vf kept[W];
#pragma GCC unroll 4
        for (int j = 0; j < W; ++j) kept[j] = c.rows == Pairing::two ? zero() : load(carry + j * VL);
#pragma GCC unroll 8
        for (int k = 0; k < P; ++k) {
            vf line[W];
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) {
                vf a = sums.at[2 * k][j], b = sums.at[2 * k + 1][j], both = larger(a, b);
                line[j] = c.rows == Pairing::two ? both : larger(kept[j], c.rows == Pairing::before ? both : a);
                kept[j] = c.rows == Pairing::before ? b : both;
            }
            if (k < c.from || k >= c.to) continue;
            vf even[OUT], odd[OUT];
#pragma GCC unroll 2
            for (int j = 0; j < OUT; ++j) {
                vf second = line[2 * j + 1 < W ? 2 * j + 1 : 2 * j];
                even[j] = even_lanes(line[2 * j], second);
                odd[j] = odd_lanes(line[2 * j], second);
            }
            float edge = -__builtin_inff();
            join_pairs<OUT>(even, odd, c.across, edge);
#pragma GCC unroll 2
            for (int j = 0; j < OUT; ++j) even[j] = vmin(high, vmax(low, even[j]));
            store_row<OUT>(even, out + k * c.out_row, c.width);
        }
        if (c.rows != Pairing::two)
#pragma GCC unroll 4
            for (int j = 0; j < W; ++j) store(carry + j * VL, kept[j]);
    }
}

using RowsOf = void (*)(const ShiftedLookups&, int64_t, int64_t);
using PairsOf = void (*)(const ShiftedPairs&);

template <int W, int... R>
constexpr std::array<RowsOf, sizeof...(R)> by_rows(std::integer_sequence<int, R...>) {
    return {rows_of<R + 1, W>...};
}

template <int W, int... P>
constexpr std::array<PairsOf, sizeof...(P)> by_pairs(std::integer_sequence<int, P...>) {
    return {pairs_of<P + 1, W>...};
}

template <int W>
void tile(const ShiftedLookups& c) {
    constexpr int MOST = SHIFTED_VECTORS / W;
    static constexpr auto ROWS = by_rows<W>(std::make_integer_sequence<int, MOST>());
    int64_t groups = (c.rows + MOST - 1) / MOST;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t from = c.rows * g / groups, to = c.rows * (g + 1) / groups;
        for (int64_t block = 0; block < c.p.blocks; ++block) ROWS[to - from - 1](c, block, from);
    }
}

template <int W>
void pairs(const ShiftedPairs& c) {
    static constexpr auto PAIRS = by_pairs<W>(std::make_integer_sequence<int, SHIFTED_VECTORS / 2 / W>());
    PAIRS[c.pairs - 1](c);
}

}  // namespace

void sparse_shifted(const ShiftedLookups& c) {
    if (c.row == VL) tile<1>(c);
    if (c.row == 2 * VL) tile<2>(c);
    if (c.row == 3 * VL) tile<3>(c);
    if (c.row == 4 * VL) tile<4>(c);
}

void shifted_pairs(const ShiftedPairs& c) {
    if (c.row == VL) pairs<1>(c);
    if (c.row == 2 * VL) pairs<2>(c);
    if (c.row == 3 * VL) pairs<3>(c);
    if (c.row == 4 * VL) pairs<4>(c);
}
#else
void sparse_shifted(const ShiftedLookups&) {}
void shifted_pairs(const ShiftedPairs&) {}
#endif

}  // namespace lcnn
