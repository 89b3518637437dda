// Matrices kept in fewer bytes than float32, for fully connected layers, whose time at batch 1 is that of reading their
// weights once. Arithmetic is float32: out[r] = scale[r] * sum_k A[r][k] * x[k], with A widened in registers.
//
// Rows lie as they are: four of them are read at once, so that x is loaded once for four. A bfloat16 is the upper half of
// a float32 (one shift), an int8 is converted and its row's scale applied to the sum. Bound: memory bandwidth, over 2 and
// 4 times as many weights a second as float32.
#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

float widen(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
float widen(int8_t byte) { return byte; }

LCNN_INLINE vf widen_vector(const uint16_t* p) { return load_halves(p); }
LCNN_INLINE vf widen_vector(const int8_t* p) { return load_bytes(p); }

/// Dot products of ROWS rows with x, two accumulators each to hide the latency of the FMA.
template <int ROWS, class T>
void dot_rows(const T* a, int64_t depth, const float* x, float* sums) {
    vf acc[ROWS][2];
    for (auto& pair : acc) pair[0] = pair[1] = zero();
    int64_t k = 0;
    for (; k + 2 * VL <= depth; k += 2 * VL) {
        vf low = load(x + k), high = load(x + k + VL);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            acc[r][0] += widen_vector(a + r * depth + k) * low;
            acc[r][1] += widen_vector(a + r * depth + k + VL) * high;
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        vf both = acc[r][0] + acc[r][1];
        sums[r] = 0;
        for (int i = 0; i < VL; ++i) sums[r] += both[i];
        for (int64_t i = k; i < depth; ++i) sums[r] += widen(a[r * depth + i]) * x[i];
    }
}

template <class T>
void multiply(const T* a, int64_t depth, const float* x, float* out, int64_t row0, int64_t row1) {
    int64_t row = row0;
    for (; row + 4 <= row1; row += 4) dot_rows<4>(a + row * depth, depth, x, out + row);
    for (; row < row1; ++row) dot_rows<1>(a + row * depth, depth, x, out + row);
}

}  // namespace

void gemv(const StoredMatrix& a, const float* x, float* out, const Epilogue& e, int64_t row0, int64_t row1) {
    if (a.bytes.empty())
        multiply(a.halves.data(), a.depth, x, out, row0, row1);
    else
        multiply(a.bytes.data(), a.depth, x, out, row0, row1);
    for (int64_t r = row0; r < row1; ++r) {
        float v = a.bytes.empty() ? out[r] : out[r] * a.scales[r];
        if (e.bias) v += e.bias[r];
        if (e.residual) v += e.residual[r];
        v = e.low > v ? e.low : v;
        out[r] = e.high < v ? e.high : v;
    }
}

void gemm(const StoredMatrix& a, const float* input, const int32_t* offsets, float* out, int64_t out_stride,
          int64_t pixels, const Epilogue& epilogue, float* panel, int64_t row0, int64_t row1) {
    constexpr int64_t CHUNK = 4 * LCNN_ROWS;
    std::vector<float> rows(CHUNK * a.depth);
    PackedMatrix wide;
    for (int64_t row = row0; row < row1; row += CHUNK) {
        int64_t count = std::min(CHUNK, row1 - row);
        for (int64_t r = 0; r < count; ++r)
            for (int64_t k = 0; k < a.depth; ++k) {
                int64_t at = (row + r) * a.depth + k;
                rows[r * a.depth + k] = a.bytes.empty() ? widen(a.halves[at]) : widen(a.bytes[at]) * a.scales[row + r];
            }
        wide.pack(rows.data(), count, a.depth, a.depth);
        Epilogue e = epilogue;
        if (e.bias) e.bias += row;
        gemm(wide, input, offsets, out + row * out_stride, out_stride, pixels, e, panel, 0, count);
    }
}

}  // namespace lcnn
