// Matrices kept in fewer bytes than float32, for fully connected layers: sums[b][r] = scale[r] * sum_k A[r][k] * x[b][k],
// with A widened in registers; arithmetic is float32.
//
// Rows lie as they are: four of them are read at once, for up to three images, so that x is loaded once for four rows and
// a weight widened once for three images. A bfloat16 is the upper half of a float32 (one shift), an int8 is converted and
// its row's scale applied to the sum. Bound: for one image memory bandwidth, over 2 and 4 times as many weights a second
// as float32; for several the FMA units, 12 FMAs for 11 loads and conversions.
#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

constexpr int64_t ROWS = 4, IMAGES = 3;

float widen(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
float widen(int8_t byte) { return byte; }

LCNN_INLINE vf widen_vector(const uint16_t* p) { return load_halves(p); }
LCNN_INLINE vf widen_vector(const int8_t* p) { return load_bytes(p); }

/// Dot products of R rows with I images, sums ``stride`` apart; of one image two accumulators each, to hide the latency
/// of the FMA.
template <int R, int I, class T>
void dots(const T* a, int64_t depth, const float* x, float* sums, int64_t stride) {
    constexpr int PARTS = I == 1 ? 2 : 1;
    vf acc[R][I][PARTS];
    for (auto& row : acc)
        for (auto& image : row)
            for (vf& part : image) part = zero();
    int64_t k = 0;
    for (; k + PARTS * VL <= depth; k += PARTS * VL)
#pragma GCC unroll 2
        for (int p = 0; p < PARTS; ++p) {
            vf in[I];
#pragma GCC unroll 4
            for (int i = 0; i < I; ++i) in[i] = load(x + i * depth + k + p * VL);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                vf weights = widen_vector(a + r * depth + k + p * VL);
#pragma GCC unroll 4
                for (int i = 0; i < I; ++i) acc[r][i][p] += weights * in[i];
            }
        }
    for (int i = 0; i < I; ++i)
        for (int r = 0; r < R; ++r) {
            float sum = 0;
            vf all = PARTS == 1 ? acc[r][i][0] : acc[r][i][0] + acc[r][i][PARTS - 1];
            for (int lane = 0; lane < VL; ++lane) sum += all[lane];
            for (int64_t rest = k; rest < depth; ++rest) sum += widen(a[r * depth + rest]) * x[i * depth + rest];
            sums[i * stride + r] = sum;
        }
}

template <int R, class T>
void all_images(const T* a, int64_t depth, const float* x, int64_t images, float* sums, int64_t stride) {
    if (images == 1) return dots<R, 1>(a, depth, x, sums, stride);
    int64_t b = 0;
    for (; images - b >= IMAGES && images - b != 4; b += IMAGES)  // 4 is 2 + 2: every image of a batch is summed alike
        dots<R, IMAGES>(a, depth, x + b * depth, sums + b * stride, stride);
    for (; b < images; b += 2) dots<R, 2>(a, depth, x + b * depth, sums + b * stride, stride);
}

template <class T>
void multiply(const T* a, int64_t depth, const float* x, int64_t images, float* sums, int64_t stride, int64_t rows) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) all_images<ROWS>(a + r * depth, depth, x, images, sums + r, stride);
    for (; r < rows; ++r) all_images<1>(a + r * depth, depth, x, images, sums + r, stride);
}

}  // namespace

void products(const StoredMatrix& a, const float* x, int64_t images, float* sums, int64_t stride, int64_t row0,
              int64_t row1) {
    int64_t first = row0 * a.depth, rows = row1 - row0;
    if (a.bytes.empty()) return multiply(a.halves.data() + first, a.depth, x, images, sums, stride, rows);
    multiply(a.bytes.data() + first, a.depth, x, images, sums, stride, rows);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t r = 0; r < rows; ++r) sums[b * stride + r] *= a.scales[row0 + r];
}

}  // namespace lcnn
