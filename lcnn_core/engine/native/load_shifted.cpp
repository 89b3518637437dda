// Whether the lookups of a step go by kernel column (shifted.cpp), and then its rows of S and tiles.
#include <algorithm>

#include "load.h"
#include "vec.h"

namespace lcnn {
namespace {

// Measured on a Zen 4, in cycles a vector of pixels: a lookup at any offset, where nearly all loads cross a cache line, in
// pairs of rows of one vector more, as sums wait for each other; an aligned one; a step to the next column; a filter's end;
// an FMA of a product, a copy where there is none.
constexpr double ANY_OFFSET = 1.9, PAIRED = 2.5, ALIGNED = 1.15, STEP = 2.5, END = 3, FMA = 1, COPY = 3;
constexpr int64_t MOST_BEFORE = 15;  // columns that a row begins before its first pixel: zeros stand before every plane
constexpr int64_t MOST_COLUMNS = 16;  // of a kernel

/// Cycles a row of outputs and filter that lookups by kernel column save.
double saved(const Prepared& p, const Tensor& x, double vectors) {
    double lookups = double(p.s.table_count) / double(p.s.filters), flat = double(x.stride) / VL;
    double planes = double(p.planes) / double(p.s.filters), product = p.s.rows ? planes * double(p.s.width) : 0;
    double any = std::max(ANY_OFFSET * flat, p.s.pooled ? PAIRED : 0);
    return lookups * (any - ALIGNED * vectors) - double(p.high - p.low) * STEP * vectors -
           (END + FMA * product) * (vectors - flat) - (p.s.rows ? 0 : COPY * planes * vectors);
}

}  // namespace

bool choose_shifted(Prepared& p, const Tensor& x, int64_t height, int64_t width) {
    const Step& s = p.s;
    int64_t row = (width + p.high - p.low + LOOKUP_VL - 1) / LOOKUP_VL * LOOKUP_VL, vectors = row / LOOKUP_VL;
    bool fits = vectors <= MOST_ROW && p.high - p.low < MOST_COLUMNS && -p.low <= MOST_BEFORE;
    bool aligned = p.direct && p.up + p.down + p.reach == 0;  // already
    bool may = LCNN_SHIFTS && !aligned && !p.single && !p.beside && !s.joined && (!s.pooled || p.joins);
    if (!may || !fits || saved(p, x, double(vectors)) <= 0) return false;
    p.shifted = true;
    p.direct = false;
    p.row = row;
    p.row_begin = p.low;
    int64_t most = SHIFTED_VECTORS / vectors, tiles = (height + most - 1) / most;
    bool far = p.planes * (most + p.up + p.down) * row * 4 > 2 * l1_bytes();  // S of pairs, which is in one block
    p.tile_rows = s.pooled ? std::max<int64_t>(2, (far ? most / 2 : most) / 2 * 2) : (height + tiles - 1) / tiles;
    return true;
}

}  // namespace lcnn
