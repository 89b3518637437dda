// Tiles and blocks of the steps whose lookups may run beside products (beside.cpp), by a model of both.
#include <algorithm>
#include <cmath>
#include <limits>

#include "load.h"
#include "vec.h"

namespace lcnn {
namespace {

// Measured on a Zen 4, in cycles of its multipliers, a vector of pixels: a lookup alone, which waits for its load from the
// first cache or from the second; one beside a product.
constexpr double ALONE = 1.8, ALONE_FAR = 2.4, HIDDEN = 1.05;
constexpr double MEASURED = 1.12;  // of whole tiles, over what this model says
constexpr double NEAR_BYTES = 48 << 10;  // of S, about what the first cache holds
constexpr int64_t LEAST_VECTORS = 5;  // of pixels; fewer share too little of what a lookup reads
constexpr int64_t MOST_BLOCKS = 8;  // threads wait for each other at the end of each
constexpr int64_t LEAST_IN_BLOCK = 6;  // lookups of a filter, to pay for its partial sums
constexpr int64_t LEAST_OF_FILTER = 8;  // lookups, to pay for its end
// Cycles of a filter's end, of the store of each of its vectors, to the second cache or beyond it; of a strip's start.
constexpr double END = 10, STORE = 2, STORE_FAR = 8, STRIP = 100;

/// What a tile of so many rows takes, or a share of its dictionary rows.
struct Unit {
    double vectors, groups, products, lookups, ends, wait;
    bool many;

    Unit(const Prepared& p, const Tensor& x, int64_t channels, int64_t rows, double strips, double share) {
        vectors = double((rows * x.stride + VL - 1) / VL);
        groups = std::ceil(vectors / double(BESIDE_VECTORS));
        products = strips * (double(BESIDE_COLS) * double(channels * p.s.width) * share + STRIP * double(channels / p.s.rows));
        lookups = double(p.s.table_count) * vectors * share;
        double outputs = double(p.s.filters * x.height * x.stride) * 4;
        double store = outputs > double(l2_bytes()) ? STORE_FAR : STORE;
        ends = double(p.s.filters) * (groups * END + vectors * store * (share < 1 ? 2 : 1));
        double bytes = double(channels * (rows + p.up + p.down) * x.stride) * 4 * share;
        many = p.many;
        wait = bytes > NEAR_BYTES ? ALONE_FAR : ALONE;
    }
    double alone() const { return lookups * wait + ends; }
    /// Its lookups beside the products of another.
    double beside(double others) const {
        double v = vectors / groups, hidden = std::min(lookups, others / 16 * beside_rate(v, many) * v);
        return others + hidden * HIDDEN + (lookups - hidden) * wait + ends;
    }
};

/// Whole tiles, each beside the strips that the next one lacks (WindowOfS::begin).
double cost_of_rows(const Prepared& p, const Tensor& x, int64_t height, int64_t channels, int64_t rows) {
    Unit one(p, x, channels, rows, 1, 1);
    int64_t made = 0, pixels = x.height * x.stride, strip = BESIDE_COLS * VL;
    auto strips = [&](int64_t row) {  // that rows of outputs up to this one need
        int64_t before = made, need = std::min((row + p.down) * x.stride, pixels);
        made = std::max(made, std::min(before + (need - before + strip - 1) / strip * strip, pixels));
        return double((made - before + strip - 1) / strip) * one.products;
    };
    double cost = strips(rows);
    int64_t row = rows;
    for (; row < height; row += rows) cost += one.beside(strips(row + rows));
    return MEASURED * (cost + Unit(p, x, channels, height - (row - rows), 1, 1).alone());
}

/// The whole image, block after block of so many channels, of which the last may be smaller; as a team's stages are. A
/// thread alone hides more, and would choose larger blocks, which take 0.98 to 1.0 of its time.
double cost_of_blocks(const Prepared& p, const Tensor& x, int64_t height, int64_t channels, int64_t each) {
    int64_t whole = (channels - 1) / each;
    double strips = std::ceil(double(x.height * x.stride) / double(BESIDE_COLS * VL)), share = double(each) / double(channels);
    Unit one(p, x, channels, height, strips, share), last(p, x, channels, height, strips, 1 - share * double(whole));
    return one.products + double(whole - 1) * one.beside(one.products) + one.beside(last.products) + last.alone();
}

}  // namespace

int64_t beside_rows(const Prepared& p, const Tensor& x, int64_t height, int64_t tile_rows) {
    int64_t halo = p.up + p.down;
    int64_t between = BESIDE_COLS * VL + LINE - 1 + p.reach;  // the last strip, moved by up to a line, and what is read
    int64_t over = (between + x.stride - 1) / x.stride;
    int64_t tiles = 2 + (halo + over + tile_rows - 1) / tile_rows;
    return std::min(height, tiles * tile_rows) + halo;
}

bool may_be_beside(const Prepared& p, int64_t channels) {
    const Step& s = p.s;
    if (!LCNN_BESIDE || p.direct || s.split_x || s.pooled || p.single) return false;
    return s.table_count >= LEAST_OF_FILTER * s.filters && s.table_count <= channels * s.width;
}

Beside choose_beside(const Prepared& p, const Tensor& x, int64_t height, int64_t channels, int64_t most_bytes) {
    Beside best{std::numeric_limits<double>::infinity(), 0, 0};
    auto better = [&](const Beside& found) {
        bool wide = found.rows * x.stride > (LEAST_VECTORS - 1) * VL || found.rows == height;
        bool alone = found.rows == height && !found.block_rows;  // nothing would stand beside anything
        if (wide && !alone && found.cost < best.cost) best = found;
    };
    for (int64_t rows = 1; rows <= height; ++rows)
        if (!most_bytes || channels * beside_rows(p, x, height, rows) * x.stride * 4 <= most_bytes)
            better({cost_of_rows(p, x, height, channels, rows), rows, 0});
    if (most_bytes || p.s.groups > 1) return best;
    int64_t least = std::max(p.s.rows / MOST_BLOCKS, p.s.rows * LEAST_IN_BLOCK / (p.s.table_count / p.s.filters));
    auto blocks = [&](int64_t each) { better({cost_of_blocks(p, x, height, channels, each), height, each}); };
    if (p.s.phases > 1) blocks(p.s.rows);  // a phase each
    for (int64_t each = LCNN_ROWS; p.s.phases <= 1 && each < channels; each += LCNN_ROWS)
        if (each >= least) blocks(each);
    return best;
}

}  // namespace lcnn
