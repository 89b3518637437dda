// Lookups beside products: the lookup stage of one tile while the dictionary stage makes S of the next one.
//
// Lookups wait for the load ports (a load for each FMA, crossing cache lines), products for the multipliers (10 loads for
// 16 FMAs). Done in turns they leave the other's units idle; here a lookup over V vectors of pixels follows every entry of
// a product's depth or every second one, some where V is small. On a Zen 4 both then run at the multipliers' rate: 57 to 58
// GMAC/s of its 59, where lookups alone reach 24 from the second cache and products 57, 0.76 to 0.80 of the time of both in
// turns; twice as many lookups beside a product run at 48 to 50. It takes 32 registers: 16 sums of the product (8 rows by 2
// vectors), up to 9 of the lookups, and their operands; with 16 registers nothing is gained.
//
// On Intel's processors from Sapphire Rapids on what lookups to come read is fetched, where a tile's S is larger than the
// first cache: in a loop of its own on an Emerald Rapids 57 to 62 GMAC/s instead of 53 to 56; rows that lie in the first
// cache, or begin at cache lines, had 67 to 76. Lines are reached by kernel column (shifted.cpp), but beside products that
// took 0.93 to 0.98 of the time of layers of 56x56, no better than fetching, and 1.0 to 1.5 of smaller ones, whose parts
// have few lookups.
#include <algorithm>
#include <array>
#include <utility>

#include "filter_end.h"
#include "kernels.h"
#include "vec.h"

namespace lcnn {

namespace {

constexpr int COLS = BESIDE_COLS, MOST = BESIDE_VECTORS, MR = LCNN_ROWS;

/// Lookups of one block over V vectors of pixels, filter by filter; it may be left at any lookup, and taken up again.
struct Stream {
    const Lookups& c;
    FilterEnd end;
    const int32_t* starts;
    const float* s;
    int64_t filter;                // sorted position
    const Lookup *at, *filter_end;
    vf sums[MOST];

    Stream(const Lookups& c, int64_t block, int64_t pixel, int64_t lanes, int64_t vectors)
        : c(c), end(c.epilogue, pixel, lanes, block == 0, block + 1 == c.p.blocks, int(vectors)),
          starts(c.p.starts.data() + block * (c.p.rows + 1)), s(c.response + pixel), filter(c.first) {}

    bool done() const { return filter == c.last; }
    float* out() const { return c.out + c.p.filters[filter] * c.out_stride + end.pixel; }

    template <int V>
    LCNN_INLINE void open(vf (&acc)[V], const Lookup*& next) {
        end.start<V>(acc, c.p.filters[filter]);
        end.add_given<V>(acc, c.p.filters[filter], out());  // now, as it may come from afar: products go on meanwhile
        next = c.p.lookups.data() + starts[filter];
        filter_end = c.p.lookups.data() + starts[filter + 1];
    }

    /// While the filter at hand has no lookup left: stores it and opens the next one.
    template <int V>
    LCNN_INLINE void advance(vf (&acc)[V], const Lookup*& next) {
        while (next == filter_end) {
            end.store<V>(acc, out());
            if (++filter == c.last) return;
            open<V>(acc, next);
        }
    }
};

template <int V>
LCNN_INLINE void look_up(vf (&acc)[V], const float* s, const Lookup* at) {
    vf value = splat(at->value);
    const float* x = s + at->offset;
    asm("" : "+r"(x));
#pragma GCC unroll 9
    for (int j = 0; j < V; ++j) acc[j] += value * load(x + j * VL);
}

/// What a lookup reads, which crosses a cache line.
template <int V>
LCNN_INLINE void fetch(const float* s, const Lookup* at) {
    const float* x = s + at->offset;
#pragma GCC unroll 10
    for (int j = 0; j <= V; ++j) __builtin_prefetch(x + j * VL);
}

template <int V>
LCNN_INLINE void copy(vf* to, const vf* from) {
#pragma GCC unroll 9
    for (int j = 0; j < V; ++j) to[j] = from[j];
}

template <int V>
void begin(Stream& lookups) {
    vf sums[V];
    lookups.open<V>(sums, lookups.at);
    lookups.advance<V>(sums, lookups.at);
    copy<V>(lookups.sums, sums);
}

template <class Last>
LCNN_INLINE Last wanted(vf v);  // all of a vector, or its lower half
template <>
LCNN_INLINE vf wanted<vf>(vf v) { return v; }
#if LCNN_HALVES
template <>
LCNN_INLINE vh wanted<vh>(vf v) { return lower(v); }
#endif

LCNN_INLINE vf whole(vf v) { return v; }
#if LCNN_HALVES
LCNN_INLINE vf whole(vh v) { return widened(v); }
#endif

/// Of the second vector, only a half may be wanted.
template <class Last>
LCNN_INLINE void multiply(vf (&acc)[MR], Last (&last)[MR], const float* a, const float* x) {
    vf b = load(x);
    Last b_last = wanted<Last>(load(x + VL));
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
        vf value = splat(a[r]);
        acc[r] += value * b;
        last[r] += wanted<Last>(value) * b_last;
    }
}

/// Register blocks of the strip at hand with lookups between, until whole ones or the lookups end.
template <int V, class Last, bool MANY>
void blocks_beside(Products& g, Stream& lookups) {
    constexpr double RATE = beside_rate(V, MANY);
    constexpr int EVERY = RATE < 1 ? 2 : 1, TIMES = RATE < 1 ? 1 : int(RATE);
    const Product& product = g.product;
    const Strip& t = g.strip;
    const float *s = lookups.s, *input = product.input + t.pixel;
    const int32_t* offsets = product.offsets + t.depth0;
    const int64_t out_stride = product.out_stride, lanes = t.lanes;
    const bool fetches = lookups.c.fetch;
    const Lookup* at = lookups.at;
    vf sums[V];
    copy<V>(sums, lookups.sums);
    for (; g.row + MR <= product.row1 && !lookups.done(); g.row += MR) {
        const float* a = product.a->panel(t.depth0, t.depth, g.row);
        float* out = product.out + g.row * out_stride + t.pixel;
        vf acc[MR];
        Last last[MR];
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
            acc[r] = t.first ? zero() : load(out + r * out_stride);
            last[r] = wanted<Last>(t.first ? zero() : load(out + r * out_stride + VL));
        }
        int64_t k = 0;
        while (k + EVERY <= t.depth) {
#pragma GCC unroll 2
            for (int i = 0; i < EVERY; ++i) {
                multiply(acc, last, a + k * MR, input + offsets[k]);
                if (i % 2 == 0) __builtin_prefetch(a + k * MR + AHEAD);
                ++k;
#pragma GCC unroll 8
                for (int j = i * TIMES / EVERY; j < (i + 1) * TIMES / EVERY; ++j) {
                    look_up<V>(sums, s, at);
                    if (fetches) fetch<V>(s, at + SparseMatrix::AHEAD);
                    if (__builtin_expect(++at != lookups.filter_end, 1)) continue;
                    lookups.advance<V>(sums, at);
                    if (lookups.done()) goto rest;
                }
            }
        }
    rest:
        for (; k < t.depth; ++k) multiply(acc, last, a + k * MR, input + offsets[k]);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
            store(out + r * out_stride, acc[r]);
            vf second = whole(last[r]);
            if (lanes >= COLS * VL)
                store(out + r * out_stride + VL, second);
            else
                store_first(out + r * out_stride + VL, second, lanes - VL);
        }
    }
    lookups.at = at;
    copy<V>(lookups.sums, sums);
}

/// Lookups over V vectors of pixels beside products, as long as there are some; the rest of these lookups alone.
template <int V>
void stream_beside(Products& g, Stream& lookups) {
    begin<V>(lookups);
    while (!lookups.done() && !g.done()) {
        if (g.strip.cols != COLS || g.row + MR > g.product.row1)
            g.finish_strip(COLS);
        else if (g.many)
            g.strip.half ? blocks_beside<V, vh, true>(g, lookups) : blocks_beside<V, vf, true>(g, lookups);
        else
            g.strip.half ? blocks_beside<V, vh, false>(g, lookups) : blocks_beside<V, vf, false>(g, lookups);
    }
    vf sums[V];
    copy<V>(sums, lookups.sums);
    for (const Lookup* at = lookups.at; !lookups.done(); lookups.advance<V>(sums, at))
        for (; at != lookups.filter_end; ++at) look_up<V>(sums, lookups.s, at);
}

template <int... V>
constexpr std::array<void (*)(Products&, Stream&), MOST> streams(std::integer_sequence<int, V...>) {
    return {stream_beside<V + 1>...};
}

}  // namespace

#if LCNN_BESIDE
void sparse_beside(const Lookups& c, Products& g) {
    static constexpr auto STREAMS = streams(std::make_integer_sequence<int, MOST>());  // by vectors, from 1 on
    int64_t vectors = (c.pixels + VL - 1) / VL, groups = (vectors + MOST - 1) / MOST;
    g.start(COLS);
    for (int64_t block = c.block0; block < c.block1; ++block) {
        int64_t done = 0;
        for (int64_t i = 0; i < groups && c.first < c.last; ++i) {
            int64_t to = vectors * (i + 1) / groups, needed = std::min(to * VL + g.ahead, g.product.pixels);
            while (g.ahead >= 0 && !g.reached(block, needed)) g.finish_strip(COLS);
            if (g.done()) break;
            int64_t lanes = c.epilogue.exact || c.epilogue.keep ? c.pixels - done * VL : (to - done) * VL;
            Stream lookups(c, block, done * VL, lanes, to - done);
            STREAMS[to - done - 1](g, lookups);
            done = to;
        }
        if (done < vectors) sparse(c.of(block), done * VL);
    }
    while (!g.done()) g.finish_strip(LCNN_COLS);
}
#else
void sparse_beside(const Lookups& c, Products& g) {
    g.all();
    sparse(c);
}
#endif

}  // namespace lcnn
