// The lookup stage: Y[f][p] = sum over the lookups (offset, value) of filter f of value * S[offset + p].
//
// S lies on the wide grid, so that a lookup at (row, ky, kx) is one constant offset for every pixel, and a k x k
// sparse convolution is one flat sparse-times-dense product. A group of up to LCNN_ACCS vectors of pixels stays in
// registers while the filter's lookups stream past: per lookup one broadcast and one load-and-FMA per vector. The
// bound is the load ports: two loads a cycle, one that crosses a cache line counting twice (of 256 bits every second
// one, of 512 nearly all, as offsets are arbitrary). With AVX-512 there are 32 registers, for twice the
// accumulators, and two libraries: one with vectors of 256 bits, as those of 512 take 1.3 times as long a number
// from an Ice Lake's first cache and 1.6 from the second, and one with 512 (LCNN_WIDE), first on AMD's: they take 0.73 and
// 0.78 on a Zen 5 (in this loop at 24 accumulators 57 GMAC/s of S in the first cache, 42 in the second; aligned 94 and
// 51), 0.97 on a Zen 4; first on Intel's from Sapphire Rapids on, too (0.78 to 0.97 of a network's time). Lookups run
// beside products that are to be made meanwhile: beside.cpp. Where a filter has many, with 512 bits, they go by kernel
// column, and no load crosses a line: shifted.cpp.
// Filters are sorted by their number of lookups, so that loop counts repeat and branches predict.
#define LCNN_LOOKUPS
#include <algorithm>
#include <array>
#include <utility>

#include "filter_end.h"
#include "kernels.h"
#include "vec.h"

static_assert(LCNN_VL == LOOKUP_VL, "what is planned for are other vectors");

namespace lcnn {
namespace {

template <int V>
LCNN_INLINE void accumulate(vf (&acc)[V], const float* s, const Lookup* at, const Lookup* end) {
    for (; at != end; ++at) {
        vf value = splat(at->value);
        const float* x = s + at->offset;
        asm("" : "+r"(x));  // one address for all loads: GCC would rather compute each of them anew
#pragma GCC unroll 24
        for (int j = 0; j < V; ++j) acc[j] += value * load(x + j * VL);
    }
}

template <int V, bool FIRST, bool LAST>
void group(const Lookups& c, int64_t block, int64_t pixel, int64_t lanes) {
    const int32_t* starts = c.p.starts.data() + block * (c.p.rows + 1);
    const Lookup* lookups = c.p.lookups.data();
    const FilterEnd end(c.epilogue, pixel, lanes, FIRST, LAST, V);
    const float* s = c.response + pixel;
    for (int64_t i = c.first; i < c.last; ++i) {
        int64_t f = c.p.filters[i];
        vf acc[V];
        float* out = c.out + f * c.out_stride + pixel;
        end.start<V>(acc, f);
        if (LCNN_BESIDE && c.early) end.add_given<V>(acc, f, out);
        accumulate<V>(acc, s, lookups + starts[i], lookups + starts[i + 1]);
        if (!LCNN_BESIDE || !c.early) end.add_given<V>(acc, f, out);
        end.store<V>(acc, out);
    }
}

template <int V>
void group_of(const Lookups& c, int64_t block, int64_t pixel, int64_t lanes) {
    bool first = block == 0, last = block + 1 == c.p.blocks;
    if (first && last) return group<V, true, true>(c, block, pixel, lanes);
    if (first) return group<V, true, false>(c, block, pixel, lanes);
    if (last) return group<V, false, true>(c, block, pixel, lanes);
    return group<V, false, false>(c, block, pixel, lanes);
}

using Group = void (*)(const Lookups&, int64_t, int64_t, int64_t);

template <int... V>
constexpr std::array<Group, LCNN_ACCS> groups_of(std::integer_sequence<int, V...>) {
    return {group_of<V + 1>...};
}
constexpr auto GROUPS = groups_of(std::make_integer_sequence<int, LCNN_ACCS>());  // by vectors, from 1 on

}  // namespace

void sparse(const Lookups& c, int64_t pixel) {
    int64_t done = pixel / VL, vectors = (c.pixels + VL - 1) / VL - done, groups = (vectors + LCNN_ACCS - 1) / LCNN_ACCS;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t from = done + vectors * g / groups, to = done + vectors * (g + 1) / groups;
        int64_t lanes = c.epilogue.exact || c.epilogue.keep ? c.pixels - from * VL : (to - from) * VL;
        for (int64_t block = c.block0; block < c.block1; ++block) GROUPS[to - from - 1](c, block, from * VL, lanes);
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
#pragma GCC unroll 12
        for (int j = 0; j < V; ++j) a[j] = b[j] = start;
        for (const Lookup *at = &p.lookups[p.starts[i]], *end = &p.lookups[p.starts[i + 1]]; at != end; ++at) {
            vf value = splat(at->value);
            const float *x = response + at->offset, *y = x + below;
            asm("" : "+r"(x), "+r"(y));
#pragma GCC unroll 12
            for (int j = 0; j < V; ++j) {
                a[j] += value * load(x + j * VL);
                b[j] += value * load(y + j * VL);
            }
        }
        float *to = line + i * stride, *kept = carry + i * stride;
#pragma GCC unroll 12
        for (int j = 0; j < V; ++j) {
            vf both = larger(a[j], b[j]);
            if (pairing == Pairing::two) {
                store(to + j * VL, both);
                continue;
            }
            vf before = load(kept + j * VL);
            store(to + j * VL, larger(before, pairing == Pairing::before ? both : a[j]));
            store(kept + j * VL, pairing == Pairing::before ? b[j] : both);
        }
    }
}

using PairOf = void (*)(const SparseMatrix&, const float*, int64_t, const float*, Pairing, float*, float*, int64_t, int64_t,
                        int64_t);

template <int... V>
constexpr std::array<PairOf, PAIR> pairs_of(std::integer_sequence<int, V...>) {
    return {pair_of<V + 1>...};
}
constexpr auto PAIRS = pairs_of(std::make_integer_sequence<int, PAIR>());

}  // namespace

void sparse_pair(const SparseMatrix& p, const float* response, int64_t below, int64_t pixels, const float* bias,
                 Pairing pairing, float* line, float* carry, int64_t stride, int64_t first, int64_t last) {
    int64_t vectors = (pixels + VL - 1) / VL, groups = (vectors + PAIR - 1) / PAIR;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t from = vectors * g / groups, to = vectors * (g + 1) / groups;
        PAIRS[to - from - 1](p, response + from * VL, below, bias, pairing, line + from * VL, carry + from * VL, stride,
                         first, last);
    }
}

namespace {

constexpr int QUAD = LCNN_ACCS == 24 ? 7 : 3;  // vectors of pooled columns, of four accumulators each

struct QuadCall {
    const SparseMatrix& p;
    const float* response;
    int64_t below;
    Pairing rows, across;
    const Carried& carried;
    float* out;
    int64_t out_stride, width;
    const Epilogue& e;
    int64_t first, last;
};

/// Pooled columns from ``x`` on, V vectors.
template <int V>
void quad_of(const QuadCall& c, int64_t x) {
    vf low = splat(c.e.low), high = splat(c.e.high);
    for (int64_t i = c.first; i < c.last; ++i) {
        vf a[V], a_odd[V], b[V], b_odd[V];
        vf start = splat(c.e.bias ? c.e.bias[c.p.filters[i]] : 0.0f);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) a[j] = a_odd[j] = b[j] = b_odd[j] = start;
        for (int64_t at = c.p.starts[i], end = c.p.starts[i + 1]; at != end; ++at) {
            vf value = splat(c.p.lookups[at].value);
            const float *even = c.response + c.p.lookups[at].offset + x, *odd = c.response + c.p.odd[at] + x;
            const float *even_below = even + c.below, *odd_below = odd + c.below;
            asm("" : "+r"(even), "+r"(odd), "+r"(even_below), "+r"(odd_below));
#pragma GCC unroll 8
            for (int j = 0; j < V; ++j) {
                a[j] += value * load(even + j * VL);
                a_odd[j] += value * load(odd + j * VL);
                b[j] += value * load(even_below + j * VL);
                b_odd[j] += value * load(odd_below + j * VL);
            }
        }
        join_pairs<V>(a, a_odd, c.across, c.carried.ends[2 * i]);
        join_pairs<V>(b, b_odd, c.across, c.carried.ends[2 * i + 1]);
        float* kept = c.carried.rows + i * c.carried.stride + x;
        float* out = c.out ? c.out + c.p.filters[i] * c.out_stride + x : nullptr;
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) {
            vf both = larger(a[j], b[j]), made = both;
            if (c.rows != Pairing::two) {
                made = larger(load(kept + j * VL), c.rows == Pairing::before ? both : a[j]);
                store(kept + j * VL, c.rows == Pairing::before ? b[j] : both);
            }
            int64_t lanes = c.width - x - j * VL;
            if (!out || lanes <= 0) continue;
            made = vmin(high, vmax(low, made));
            if (c.e.exact && lanes < VL)
                store_first(out + j * VL, made, lanes);
            else
                store(out + j * VL, made);
        }
    }
}

using QuadOf = void (*)(const QuadCall&, int64_t);

template <int... V>
constexpr std::array<QuadOf, QUAD> quads_of(std::integer_sequence<int, V...>) {
    return {quad_of<V + 1>...};
}
constexpr auto QUADS = quads_of(std::make_integer_sequence<int, QUAD>());

}  // namespace

void sparse_quad(const SparseMatrix& p, const float* response, int64_t below, Pairing rows, Pairing across,
                 const Carried& carried, float* out, int64_t out_stride, int64_t width, const Epilogue& epilogue,
                 int64_t first, int64_t last) {
    QuadCall call{p, response, below, rows, across, carried, out, out_stride, width, epilogue, first, last};
    int64_t columns = width + (across == Pairing::after), vectors = (columns + VL - 1) / VL;
    int64_t groups = (vectors + QUAD - 1) / QUAD;
    std::fill(carried.ends + 2 * first, carried.ends + 2 * last, -__builtin_inff());
    for (int64_t step = 0; step < groups; ++step) {  // each group needs a column of the one before, or of the one after
        int64_t g = across == Pairing::after ? groups - 1 - step : step;
        int64_t from = vectors * g / groups, to = vectors * (g + 1) / groups;
        QUADS[to - from - 1](call, from * VL);
    }
}

}  // namespace lcnn
