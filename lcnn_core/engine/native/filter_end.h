// How the sums of a filter over a group of pixels begin and end: what the kernels of the lookup stage share.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {  // vectors differ from file to file

struct FilterEnd {
    const Epilogue& e;
    int64_t pixel, lanes;  // the group's first pixel; how many from there on may be written
    bool first, last;      // block of dictionary rows
    vf low, high;
    bool clamped, capped;
    kept_lanes kept[LCNN_ACCS];  // of each vector, where the epilogue tells what is inside

    /// ``vectors``: of the group; 0 where the epilogue does not tell.
    LCNN_INLINE FilterEnd(const Epilogue& e, int64_t pixel, int64_t lanes, bool first, bool last, int vectors)
        : e(e), pixel(pixel), lanes(lanes), first(first), last(last), low(splat(e.low)), high(splat(e.high)),
          clamped(e.low > -__builtin_inff()), capped(e.high < __builtin_inff()) {
        if (!last || !e.inside) return;
        int64_t column = (pixel + e.column) % e.row;
        for (int j = 0; j < vectors; ++j) {
            kept[j] = lanes_of(e.inside[column]);
            for (column += VL; column >= e.row;) column -= e.row;
        }
    }

    template <int V>
    LCNN_INLINE void start(vf (&acc)[V], int64_t f) const {
        vf bias = splat(first && e.bias ? e.bias[f] : 0.0f);
#pragma GCC unroll 24
        for (int j = 0; j < V; ++j) acc[j] = bias;
    }

    /// Adds the residual, ``on`` floats on, or, in blocks behind the first, the sums so far, which may have been written
    /// over it.
    template <int V>
    LCNN_INLINE void add_given(vf (&acc)[V], int64_t f, const float* out, int64_t on = 0) const {
        const float* given = !first ? out : e.residual ? e.residual + f * e.residual_stride + pixel + on : nullptr;
        if (given)
#pragma GCC unroll 24
            for (int j = 0; j < V; ++j) acc[j] += load(given + j * VL);
    }

    /// Clamp, and zeros between an image's rows.
    template <int V>
    LCNN_INLINE void bound(vf (&acc)[V]) const {
        if (last && clamped)
#pragma GCC unroll 24
            for (int j = 0; j < V; ++j) acc[j] = vmax(low, acc[j]);
        if (last && capped)
#pragma GCC unroll 24
            for (int j = 0; j < V; ++j) acc[j] = vmin(high, acc[j]);
        if (last && e.inside)
#pragma GCC unroll 24
            for (int j = 0; j < V; ++j) acc[j] = keep(kept[j], acc[j]);
    }

    template <int V>
    LCNN_INLINE void store(vf (&acc)[V], float* out) const {
        bound<V>(acc);
#pragma GCC unroll 24
        for (int j = 0; j < V - 1; ++j) lcnn::store(out + j * VL, acc[j]);
        float* rest_out = out + (V - 1) * VL;
        int64_t rest = lanes - (V - 1) * VL;
        if (rest >= VL)
            lcnn::store(rest_out, acc[V - 1]);
        else if (e.keep && !e.exact)
            lcnn::store(rest_out, first_lanes(acc[V - 1], load(rest_out), rest));
        else
            store_first(rest_out, acc[V - 1], rest);
    }
};

/// even[j] = what a pooled column makes of a row's outputs; ``end`` is the outputs' column next to these, then of these.
template <int V>
LCNN_INLINE void join_pairs(vf (&even)[V], const vf (&odd)[V], Pairing across, float& end) {
    vf next = splat(end);
    if (across == Pairing::two) {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) even[j] = larger(even[j], odd[j]);
    } else if (across == Pairing::before) {
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) even[j] = larger(larger(moved_on(j ? odd[j - 1] : next, odd[j]), even[j]), odd[j]);
        end = odd[V - 1][VL - 1];
    } else {
        end = even[0][0];
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j)
            even[j] = larger(larger(even[j], odd[j]), moved_back(even[j], j + 1 < V ? even[j + 1] : next));
    }
}

}  // namespace
}  // namespace lcnn
