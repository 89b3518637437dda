// Fully connected weights: out[r] = sum_k A[r][k] * x[k], with A column by column.
//
// Vectors run along a column, so that weights are read in long runs; the next columns are fetched to the second cache
// while some are multiplied (to the first one, whose misses are few at a time, fc8 of AlexNet takes 1.4 to 1.7 times as
// long on a Zen 4). One image: bound by memory, so the columns of inputs that are zero, as ReLU leaves many, are not read at
// all; JOINED others at a time are added to the sums. Several images: TOGETHER columns at a time are multiplied for
// IMAGES images, whose sums of one vector of rows stay in registers; per column one load and IMAGES broadcasts for as
// many FMAs, so that the load ports are the bound once weights arrive in time. The columns of a turn are summed by
// themselves, which keeps rounding errors of long sums small.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

constexpr int64_t JOINED = 8;
constexpr int64_t TOGETHER = 8;
constexpr int IMAGES = 8;

/// sums += the N columns at ``column``, each times its x; the same rows of those at ``next``, if any, are fetched.
template <int N>
void add_columns(const float* const* column, const float* x, const float* const* next, float* sums, int64_t rows) {
    vf factor[N];
    for (int j = 0; j < N; ++j) factor[j] = splat(x[j]);
    for (int64_t r = 0; r < rows; r += VL) {
        if (next && r % LINE == 0)
            for (int j = 0; j < N; ++j) __builtin_prefetch(next[j] + r, 0, 2);
        vf sum = zero();
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum += factor[j] * load(column[j] + r);
        store(sums + r, load(sums + r) + sum);
    }
}

/// Columns [k0, k0 + count) of a call for several images; ``sums`` of its rows, an image every ``stride`` floats.
struct Part {
    const ColumnMatrix& a;
    int64_t k0, count, row0, rows, stride;
};

/// sums[b] += the part's columns times their x[b], for COUNT images. ``fetch``: the next columns too, to come.
template <int COUNT>
void add_part(const Part& p, const float* x, float* sums, bool fetch) {
    float factors[TOGETHER][COUNT];
    for (int64_t j = 0; j < p.count; ++j)
        for (int b = 0; b < COUNT; ++b) factors[j][b] = x[b * p.a.depth + p.k0 + j];
    const float* columns = p.a.column(p.k0) + p.row0;
    for (int64_t r = 0; r < p.rows; r += VL) {
        vf acc[COUNT];
#pragma GCC unroll 8
        for (int b = 0; b < COUNT; ++b) acc[b] = zero();
#pragma GCC unroll 4
        for (int64_t j = 0; j < p.count; ++j) {
            const float* column = columns + j * p.a.stride + r;
            if (fetch && r % LINE == 0) __builtin_prefetch(column + TOGETHER * p.a.stride, 0, 2);
            vf weights = load(column);
#pragma GCC unroll 8
            for (int b = 0; b < COUNT; ++b) acc[b] += splat(factors[j][b]) * weights;
        }
#pragma GCC unroll 8
        for (int b = 0; b < COUNT; ++b) store(sums + b * p.stride + r, load(sums + b * p.stride + r) + acc[b]);
    }
}

}  // namespace

void ColumnMatrix::pack(const float* matrix, int64_t rows_, int64_t depth_) {
    rows = rows_;
    depth = depth_;
    stride = padded(rows);
    if (stride % 256 == 0) stride += LINE;  // else all columns would lie in the same sets of the first cache
    data.assign(stride * depth + LINE, 0.0f);
    lead = (LINE - reinterpret_cast<uintptr_t>(data.data()) / sizeof(float) % LINE) % LINE;
    finite = true;
    for (int64_t r0 = 0; r0 < rows; r0 += LINE)
        for (int64_t k = 0; k < depth; ++k)
            for (int64_t r = r0; r < std::min(rows, r0 + LINE); ++r) {
                data[lead + k * stride + r] = matrix[r * depth + k];
                finite &= std::isfinite(matrix[r * depth + k]);
            }
}

void columns(const ColumnMatrix& a, const float* x, float* sums, int64_t row0, int64_t row1) {
    int64_t rows = row1 - row0;
    std::fill(sums, sums + ColumnMatrix::padded(rows), 0.0f);
    const float* column[2][JOINED];
    float factor[2][JOINED];
    int64_t found = 0, next = 0;
    bool waiting = false;
    for (int64_t k = 0; k < a.depth; ++k) {
        if (x[k] == 0 && a.finite) continue;
        column[next][found] = a.column(k) + row0;
        factor[next][found] = x[k];
        if (++found < JOINED) continue;
        if (waiting) add_columns<JOINED>(column[1 - next], factor[1 - next], column[next], sums, rows);
        waiting = true;
        next = 1 - next;
        found = 0;
    }
    if (waiting) add_columns<JOINED>(column[1 - next], factor[1 - next], nullptr, sums, rows);
    for (int64_t j = 0; j < found; ++j) add_columns<1>(column[next] + j, factor[next] + j, nullptr, sums, rows);
}

void columns(const ColumnMatrix& a, const float* x, int64_t images, float* sums, int64_t stride, int64_t row0,
             int64_t row1) {
    int64_t size = ColumnMatrix::padded(row1 - row0);
    for (int64_t b = 0; b < images; ++b) std::fill(sums + b * stride, sums + b * stride + size, 0.0f);
    for (int64_t k0 = 0; k0 < a.depth; k0 += TOGETHER) {
        Part part{a, k0, std::min(TOGETHER, a.depth - k0), row0, row1 - row0, stride};
        bool fetch = k0 + 2 * TOGETHER <= a.depth;
        for (int64_t b = 0; b < images;) {
            int64_t left = images - b, count = left >= IMAGES ? IMAGES : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            auto add = count == IMAGES ? add_part<IMAGES> : count == 4 ? add_part<4> : count == 2 ? add_part<2> : add_part<1>;
            add(part, x + b * a.depth, sums + b * stride, fetch && b == 0);
            b += count;
        }
    }
}

}  // namespace lcnn
