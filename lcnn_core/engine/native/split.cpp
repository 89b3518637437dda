// The dictionary stage of a first layer: S = D x of an image as the caller gave it, divided into phases as it is made.
//
// The image is read once, from the caller's memory. A part of a row is divided into the cache (two shuffles a vector,
// see vec.h), then the few rows of D multiply each phase of it: per vector of S one load and FMA a channel, one store.
// No divided copy of the image is written to memory and read again.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

constexpr int64_t AHEAD = 512;  // floats of the image fetched before they are needed
constexpr int64_t PART = 4;  // vectors of each phase at a time

/// Where the phases of one row go: dictionary row r of phase i to at[i] + r * plane, nowhere if at[i] is null.
struct Target {
    float* at[MAX_SPLIT] = {};
    int64_t plane, lanes;  // lanes: floats of a row that may be written
};

/// A part of a row of every channel, divided; a phase's vectors side by side.
template <int STEP, int CHANNELS>
using Divided = vf[CHANNELS ? CHANNELS : SPLIT_CHANNELS][STEP][PART];

/// PART vectors of each phase of a row of which ``left`` floats are left, in ``vectors`` of them; zeros beyond.
template <int STEP>
LCNN_INLINE void divide_part(const float* from, int64_t left, int64_t vectors, vf (*x)[PART]) {
    vf phases[STEP];
    int64_t v = 0;
    for (int64_t full = std::min(vectors, left / (STEP * VL)); v < full; ++v) {
        divide<STEP>(from + v * (STEP * VL), phases);
#pragma GCC unroll 8
        for (int i = 0; i < STEP; ++i) {
            if (i * VL % LINE == 0) __builtin_prefetch(from + v * (STEP * VL) + i * VL + AHEAD);
            x[i][v] = phases[i];
        }
    }
    for (; v < PART; ++v) {
        float rest[STEP * VL] = {};
        int64_t at = v * (STEP * VL);
        if (at < left) memcpy(rest, from + at, (left - at) * sizeof(float));
        divide<STEP>(rest, phases);
        for (int i = 0; i < STEP; ++i) x[i][v] = phases[i];
    }
}

/// Dictionary rows [r0, r1) of one row of the image. CHANNELS 0: as many as there are.
template <int STEP, int CHANNELS>
void split_row(const Split& s, const float* image, const Target& target, int64_t r0, int64_t r1) {
    const int64_t channels = CHANNELS ? CHANNELS : s.channels, plane = target.plane, lanes = target.lanes;
    Divided<STEP, CHANNELS> x;
    for (int64_t column = 0; column < lanes; column += PART * VL) {
        int64_t vectors = std::min(PART, (lanes - column + VL - 1) / VL), at = column * STEP;
        for (int64_t c = 0; c < channels; ++c)
            divide_part<STEP>(image + c * s.height * s.width + at, s.width - at, vectors, x[c]);
        bool whole = column + vectors * VL <= lanes;
        for (int64_t r = r0; r < r1; ++r) {
            const float* d = s.dictionary.data() + r * channels;
            vf factors[CHANNELS ? CHANNELS : SPLIT_CHANNELS];
            for (int64_t c = 0; c < channels; ++c) factors[c] = splat(d[c]);
#pragma GCC unroll 8
            for (int i = 0; i < STEP; ++i) {
                if (!target.at[i]) continue;
                float* out = target.at[i] + r * plane + column;
                vf sum[PART] = {};
                for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 4
                    for (int v = 0; v < PART; ++v) sum[v] += factors[c] * x[c][i][v];
                if (whole && vectors == PART) {
#pragma GCC unroll 4
                    for (int v = 0; v < PART; ++v) store(out + v * VL, sum[v]);
                } else {
                    for (int v = 0; v < vectors; ++v)
                        store_first(out + v * VL, sum[v], std::min<int64_t>(lanes - column - v * VL, VL));
                }
            }
        }
    }
}

using SplitRow = void (*)(const Split&, const float*, const Target&, int64_t, int64_t);

template <int STEP>
SplitRow split_by(int64_t channels) {
    return channels == 1 ? split_row<STEP, 1> : channels == 3 ? split_row<STEP, 3> : split_row<STEP, 0>;
}

}  // namespace

void split_rows(const Split& s, const float* image, float* rows, int64_t from, int64_t to, int64_t r0, int64_t r1,
                bool exact) {
    SplitRow split = s.step_x == 1   ? split_by<1>(s.channels)
                     : s.step_x == 2 ? split_by<2>(s.channels)
                     : s.step_x == 4 ? split_by<4>(s.channels)
                                     : split_by<8>(s.channels);
    for (int64_t y = from; y < to; ++y)
        for (int64_t phase_y = 0; phase_y < s.step_y; ++phase_y) {
            Target target;
            target.plane = s.plane;
            target.lanes = s.lanes;
            if (exact) target.lanes = std::min(target.lanes, (to - y) * s.stride);
            int64_t row = y * s.step_y + phase_y;
            for (size_t i = 0; i < s.phases.size(); ++i) {
                if (s.phases[i].first != phase_y) continue;
                float* at = rows + int64_t(i) * s.rows * s.plane + (y - from) * s.stride;
                target.at[s.phases[i].second] = at;
                for (int64_t r = r0; r < r1 && row >= s.height; ++r) memset(at + r * s.plane, 0, s.stride * sizeof(float));
            }
            if (row < s.height) split(s, image + row * s.width, target, r0, r1);
        }
}

}  // namespace lcnn
