// The lookup stage: Y[f][p] = sum over the lookups (offset, value) of filter f of value * S[offset + p].
//
// S lies on the wide grid, so that a lookup at (row, ky, kx) is one constant offset for every pixel, and a k x k sparse
// convolution is one flat sparse-times-dense product. A group of up to LCNN_ACCS vectors of pixels stays in registers
// while the filter's lookups stream past: per lookup one broadcast and one load-and-FMA per vector. The bound is the
// load ports: two 256-bit loads a cycle, a load that crosses a cache line counting twice (every second one, as offsets
// are arbitrary). Filters are sorted by their number of lookups, so that loop counts repeat and branches predict.
#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

struct Call {
    const SparseMatrix& p;
    const float* response;
    float* out;
    int64_t out_stride;
    const Epilogue& e;
    int64_t first, last;
};

template <int V>
LCNN_INLINE void accumulate(vf (&acc)[V], const float* s, const Lookup* at, const Lookup* end) {
    for (; at != end; ++at) {
        vf value = splat(at->value);
        const float* x = s + at->offset;
        asm("" : "+r"(x));  // one address for all loads: GCC would rather compute each of them anew
#pragma GCC unroll 16
        for (int j = 0; j < V; ++j) acc[j] += value * load(x + j * VL);
    }
}

template <int V, bool FIRST, bool LAST>
void group(const Call& c, int64_t block, int64_t pixel, int64_t lanes) {
    const Epilogue& e = c.e;
    const int32_t* starts = c.p.starts.data() + block * (c.p.rows + 1);
    const Lookup* lookups = c.p.lookups.data();
    vf low = splat(e.low), high = splat(e.high);
    bool clamped = e.low > -__builtin_inff(), capped = e.high < __builtin_inff();
    const float* s = c.response + pixel;
    for (int64_t i = c.first; i < c.last; ++i) {
        int64_t f = c.p.filters[i];
        float* out = c.out + f * c.out_stride + pixel;
        vf acc[V];
        vf start = splat(FIRST && e.bias ? e.bias[f] : 0.0f);
#pragma GCC unroll 16
        for (int j = 0; j < V; ++j) acc[j] = FIRST ? start : load(out + j * VL);
        accumulate<V>(acc, s, lookups + starts[i], lookups + starts[i + 1]);
        if (LAST && e.residual) {
            const float* residual = e.residual + f * e.residual_stride + pixel;
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) acc[j] += load(residual + j * VL);
        }
        if (LAST && clamped)
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) acc[j] = vmax(low, acc[j]);
        if (LAST && capped)
#pragma GCC unroll 16
            for (int j = 0; j < V; ++j) acc[j] = vmin(high, acc[j]);
#pragma GCC unroll 16
        for (int j = 0; j < V - 1; ++j) store(out + j * VL, acc[j]);
        if (lanes >= V * VL)
            store(out + (V - 1) * VL, acc[V - 1]);
        else
            store_first(out + (V - 1) * VL, acc[V - 1], lanes - (V - 1) * VL);
    }
}

template <int V>
void group_of(const Call& c, int64_t block, int64_t pixel, int64_t lanes) {
    bool first = block == 0, last = block + 1 == c.p.blocks;
    if (first && last) return group<V, true, true>(c, block, pixel, lanes);
    if (first) return group<V, true, false>(c, block, pixel, lanes);
    if (last) return group<V, false, true>(c, block, pixel, lanes);
    return group<V, false, false>(c, block, pixel, lanes);
}

using Group = void (*)(const Call&, int64_t, int64_t, int64_t);
constexpr Group GROUPS[LCNN_ACCS + 1] = {nullptr,      group_of<1>,  group_of<2>, group_of<3>, group_of<4>,
                                         group_of<5>,  group_of<6>,  group_of<7>, group_of<8>, group_of<9>,
                                         group_of<10>, group_of<11>, group_of<12>, group_of<13>};

}  // namespace

void sparse(const SparseMatrix& p, const float* response, float* out, int64_t out_stride, int64_t pixels,
            const Epilogue& epilogue, int64_t first, int64_t last) {
    Call call{p, response, out, out_stride, epilogue, first, last};
    int64_t vectors = (pixels + VL - 1) / VL, groups = (vectors + LCNN_ACCS - 1) / LCNN_ACCS;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t from = vectors * g / groups, to = vectors * (g + 1) / groups;
        int64_t lanes = epilogue.exact ? pixels - from * VL : (to - from) * VL;
        for (int64_t block = 0; block < p.blocks; ++block) GROUPS[to - from](call, block, from * VL, lanes);
    }
}

namespace {

constexpr int PAIR = LCNN_ACCS / 2;

template <int V>
void pair_of(const SparseMatrix& p, const float* response, int64_t below, const float* bias, Pairing pairing,
             float* line, float* carry, int64_t stride, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
        vf a[V], b[V];
        vf start = splat(bias ? bias[p.filters[i]] : 0.0f);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) a[j] = b[j] = start;
        for (const Lookup *at = &p.lookups[p.starts[i]], *end = &p.lookups[p.starts[i + 1]]; at != end; ++at) {
            vf value = splat(at->value);
            const float *x = response + at->offset, *y = x + below;
            asm("" : "+r"(x), "+r"(y));
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) {
                a[j] += value * load(x + j * VL);
                b[j] += value * load(y + j * VL);
            }
        }
        float *to = line + i * stride, *kept = carry + i * stride;
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
            vf both = vmax(a[j], b[j]);
            if (pairing == Pairing::two) {
                store(to + j * VL, both);
                continue;
            }
            vf before = load(kept + j * VL);
            store(to + j * VL, vmax(before, pairing == Pairing::before ? both : a[j]));
            store(kept + j * VL, pairing == Pairing::before ? b[j] : both);
        }
    }
}

using PairOf = void (*)(const SparseMatrix&, const float*, int64_t, const float*, Pairing, float*, float*, int64_t, int64_t,
                        int64_t);
constexpr PairOf PAIRS[PAIR + 1] = {nullptr, pair_of<1>, pair_of<2>, pair_of<3>, pair_of<4>, pair_of<5>, pair_of<6>};

}  // namespace

void sparse_pair(const SparseMatrix& p, const float* response, int64_t below, int64_t pixels, const float* bias,
                 Pairing pairing, float* line, float* carry, int64_t stride, int64_t first, int64_t last) {
    int64_t vectors = (pixels + VL - 1) / VL, groups = (vectors + PAIR - 1) / PAIR;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t from = vectors * g / groups, to = vectors * (g + 1) / groups;
        PAIRS[to - from](p, response + from * VL, below, bias, pairing, line + from * VL, carry + from * VL, stride,
                         first, last);
    }
}

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
            for (int64_t i = image0; i < image1 && from < to; i += VL) {
                vf acc[VL];  // one filter's images each
                for (vf& sum : acc) sum = zero();
                for (int64_t at = from; at < to; ++at) {
                    const int32_t* offset = p.offsets.data() + at * VL;
                    const float* value = p.values.data() + at * VL;
#pragma GCC unroll 16
                    for (int j = 0; j < VL; ++j) acc[j] += splat(value[j]) * load(response + offset[j] * stride + i);
                }
                for (int j = 0; j < VL; ++j) {
                    if (lanes[j] >= count) continue;  // lanes behind the last filter
                    float* row = rows + lanes[j] * stride + i;
                    store(row, load(row) + acc[j]);
                }
            }
        }
        for (int64_t f = 0; f < count; ++f)
            for (int64_t i = image0; i < image1; i += VL) {
                float* row = rows + f * stride + i;
                store(row, vmin(high, vmax(low, load(row))));
            }
    }
}

}  // namespace lcnn
