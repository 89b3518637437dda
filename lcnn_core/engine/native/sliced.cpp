// The lookup stage where filters, not pixels, stand side by side: layers with one output pixel, one image or several.
//
// One image: SLICED_VL filters a vector, each lane reading its own place of the response. Several: a vector of images of
// one filter at a time, so that a lookup is again one broadcast and one load-and-FMA. With AVX-512 too the vectors are of
// 256 bits: eight images fill one, and a D that is applied at several pixels is not multiplied with eight images that are
// not there.
#define LCNN_SLICED
#include <algorithm>

#include "kernels.h"
#include "vec.h"

static_assert(LCNN_VL == SLICED_VL, "P is sliced for other vectors");

namespace lcnn {

void sparse_single(const SlicedMatrix& p, const float* response, float* out, int64_t out_stride, const Epilogue& e,
                   int64_t first, int64_t last) {
    constexpr int64_t SLICES = SLICED_FILTERS / VL;
    for (int64_t chunk = first; chunk < last; ++chunk) {
        float sums[SLICED_FILTERS] = {};
        const int32_t* lanes = p.lanes.data() + chunk * p.blocks * SLICED_FILTERS;
        const int32_t* starts = p.starts.data() + chunk * p.blocks * SLICES;
        for (int64_t slice = 0; slice < p.blocks * SLICES; ++slice, lanes += VL) {
            vf even = zero(), odd = zero();
            int64_t at = starts[slice], end = starts[slice + 1];
            const int32_t* offset = p.offsets.data() + at * VL;
            const float* value = p.values.data() + at * VL;
            for (; at + 2 <= end; at += 2, offset += 2 * VL, value += 2 * VL) {
                even += load(value) * gather(response, offset);
                odd += load(value + VL) * gather(response, offset + VL);
            }
            if (at < end) even += load(value) * gather(response, offset);
            even += odd;
            for (int i = 0; i < VL; ++i) sums[lanes[i]] += even[i];
        }
        int64_t f0 = chunk * SLICED_FILTERS, f1 = std::min(p.rows, f0 + SLICED_FILTERS);
        for (int64_t f = f0; f < f1; ++f) {
            float v = sums[f - f0] + (e.bias ? e.bias[f] : 0.0f);
            if (e.residual) v += e.residual[f * e.residual_stride];
            v = e.low > v ? e.low : v;
            out[f * out_stride] = e.high < v ? e.high : v;
        }
    }
}

namespace {

constexpr int WIDE = LCNN_ACCS >= 2 * VL ? 2 : 1;  // vectors of images at once, as registers allow

/// rows[lane] += the lookups [from, to) of the VL filters of a slice, for V vectors of images.
template <int V>
void add_slice(const SlicedMatrix& p, int64_t from, int64_t to, const int32_t* lanes, int64_t count,
               const float* response, float* rows, int64_t stride) {
    vf acc[VL][V];
#pragma GCC unroll 8
    for (int j = 0; j < VL; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[j][v] = zero();
    for (int64_t at = from; at < to; ++at) {
        const int32_t* offset = p.offsets.data() + at * VL;
        const float* value = p.values.data() + at * VL;
#pragma GCC unroll 8
        for (int j = 0; j < VL; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) acc[j][v] += splat(value[j]) * load(response + offset[j] * stride + v * VL);
    }
#pragma GCC unroll 8
    for (int j = 0; j < VL; ++j) {
        if (lanes[j] >= count) continue;  // lanes behind the last filter
        float* row = rows + lanes[j] * stride;
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) store(row + v * VL, load(row + v * VL) + acc[j][v]);
    }
}

}  // namespace

void sparse_images(const SlicedMatrix& p, const float* response, float* out, int64_t stride, int64_t image0,
                   int64_t image1, const Epilogue& e, int64_t first, int64_t last) {
    constexpr int64_t SLICES = SLICED_FILTERS / VL;
    vf low = splat(e.low), high = splat(e.high);
    for (int64_t chunk = first; chunk < last; ++chunk) {
        int64_t f0 = chunk * SLICED_FILTERS, count = std::min(p.rows - f0, SLICED_FILTERS);
        float* rows = out + f0 * stride;
        for (int64_t f = 0; f < count; ++f)
            for (int64_t i = image0; i < image1; i += VL) store(rows + f * stride + i, splat(e.bias ? e.bias[f0 + f] : 0.0f));
        for (int64_t slice = 0; slice < p.blocks * SLICES; ++slice) {
            int64_t from = p.starts[chunk * p.blocks * SLICES + slice], to = p.starts[chunk * p.blocks * SLICES + slice + 1];
            const int32_t* lanes = p.lanes.data() + (chunk * p.blocks * SLICES + slice) * VL;
            if (from == to) continue;
            int64_t i = image0;
            for (; i + WIDE * VL <= image1; i += WIDE * VL)
                add_slice<WIDE>(p, from, to, lanes, count, response + i, rows + i, stride);
            for (; i < image1; i += VL) add_slice<1>(p, from, to, lanes, count, response + i, rows + i, stride);
        }
        for (int64_t f = 0; f < count; ++f)
            for (int64_t i = image0; i < image1; i += VL) {
                float* row = rows + f * stride + i;
                store(row, vmin(high, vmax(low, load(row))));
            }
    }
}

}  // namespace lcnn
