// Tiles of rows and blocks of dictionary rows of the lookup steps, from the cache sizes and a model of the kernels.
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "load.h"
#include "vec.h"

namespace lcnn {
namespace {

int64_t cache_bytes(int name, int64_t otherwise) {
    int64_t size = sysconf(name);
    return size > 0 ? size : otherwise;
}

static_assert(VL % LOOKUP_VL == 0, "rows and planes that end at a vector end at one of the lookup kernel too");
constexpr int64_t FEW_ROWS = 8;
constexpr int64_t JOINED_ROWS = 8;     // of outputs a tile; 4 to 12 differ by 0.05 of the time
constexpr double CLOSE = 1.025;        // what a smaller window may cost
constexpr int64_t LEAST_LOOKUPS = 12;  // of a filter in a block, to pay for its partial sums
constexpr int64_t LEAST_ALONE = 7;     // rows of a thread that makes rows of S around them anew
constexpr int64_t MOST_EXCHANGED = 28;  // of one that borrows those

/// Floats of a channel of the window of S: whole cache lines, and not a multiple of 2 KiB, so that channels lie in
/// different sets of the first cache.
int64_t plane_of(const Prepared& p, int64_t rows) {
    int64_t over = (p.beside ? BESIDE_COLS : 1) * VL;  // what a product may write behind the last row
    int64_t size = p.window_lead + (LINE - 1 + rows * p.row + over + 15) / 16 * 16;
    return size % 512 ? size : size + 16;
}

/// Of S as one group of pixels of a tile of so many rows reads it.
int64_t choose_blocks(const Prepared& p, const Tensor& x, int64_t channels, int64_t rows) {
    int64_t pixels = std::min<int64_t>(rows * x.stride, LCNN_ACCS * LOOKUP_VL) + (p.up + p.down) * x.stride + p.reach;
    return p.s.pooled ? 1 : blocks_for(p.s, channels * pixels);
}

/// The same by kernel column: 30 KiB and 34 take 0.95 of the time of 20.
int64_t shifted_blocks(const Prepared& p) {
    return p.s.pooled ? 1 : blocks_for(p.s, p.planes * (p.tile_rows + p.up + p.down) * p.row, 1);
}

/// Cycles a filter that lookups in tiles of so many rows take, by a model of the kernel. A group of v vectors takes, per
/// lookup, the FMA latency or its loads (three quarters of a cycle each), and some cycles to start and to store in every
/// block; where the rows of S that a tile reads leave half of L2, its part of them is fetched, 16 bytes a cycle. Rows that
/// the next tile reads, too, are moved every second tile.
double cost_of_tiles(const Prepared& p, const Tensor& x, int64_t height, int64_t channels, int64_t rows) {
    int64_t halo = p.up + p.down, row = x.stride * (p.direct ? std::max<int64_t>(channels / 4, 1) : channels);
    double lookups = double(p.s.table_count) / double(p.s.filters), filters = double(p.s.filters);
    double blocks = double(choose_blocks(p, x, channels, rows));
    bool far = row * 4 * (rows + halo) > l2_bytes() / 2;
    auto tile = [&](int64_t some) {
        int64_t vectors = (some * x.stride + LOOKUP_VL - 1) / LOOKUP_VL, groups = (vectors + LCNN_ACCS - 1) / LCNN_ACCS;
        double v = double(vectors) / double(groups);
        double fetched = far ? double(channels) * (v * LOOKUP_VL + double(halo * x.stride)) / 4 / filters : 0;
        return double(groups) * (lookups * std::max(4.0, 0.75 * v + 0.5) + blocks * (16 + 3 * v) + fetched) + 30;
    };
    int64_t whole = height / rows, rest = height % rows, tiles = whole + (rest > 0);
    double moved = p.direct ? 0 : double((tiles - 1) / 2) * double(row) * double(halo);
    return double(whole) * tile(rows) + (rest ? tile(rest) : 0) + moved / 2 / filters;
}

/// Rows of S held at a time: of two tiles, and what is read around them.
int64_t window_rows(const Prepared& p, int64_t height, int64_t tile_rows) {
    int64_t pooled = p.s.pooled ? p.s.kh * p.s.dy + p.s.sy : 0;  // a tile ends at a whole pooling window
    return std::min(height, 2 * tile_rows + pooled) + p.up + p.down;
}

/// Rows per tile: of those whose cost is close to the least, such that the window of S, which is memory, is small.
int64_t cheapest_tile(const Prepared& p, const Tensor& x, int64_t height, int64_t channels) {
    struct Choice {
        int64_t rows, window;
        double cost;
    };
    auto evenly = [&](int64_t most) {  // rows of as few tiles as possible of at most so many
        int64_t tiles = (height + most - 1) / most;
        return (height + tiles - 1) / tiles;
    };
    std::vector<Choice> choices;
    for (int64_t rows = height; rows > 0; rows = rows > 1 ? evenly(rows - 1) : 0)
        choices.push_back({rows, window_rows(p, height, rows), cost_of_tiles(p, x, height, channels, rows)});
    auto cheaper = [](const Choice& a, const Choice& b) { return a.cost < b.cost; };
    Choice best = *std::min_element(choices.begin(), choices.end(), cheaper);
    double most = best.cost * (p.direct ? 1 : CLOSE);
    for (const Choice& c : choices)
        if (c.cost <= most && (c.window < best.window || (c.window == best.window && c.cost < best.cost))) best = c;
    return best.rows;
}

/// Floats of S where a window holds all rows of it.
int64_t whole_plane(const Prepared& p, const Tensor& x, int64_t height) {
    return plane_of(p, std::max(height + p.down, x.height) + p.up);
}

/// Whether all of S fits the cache of a core, or there are few rows.
bool holds_whole(const Prepared& p, const Tensor& x, int64_t height, int64_t channels) {
    double bytes = double(channels) * double(whole_plane(p, x, height)) * 4;
    return height <= FEW_ROWS || bytes <= double(l2_bytes()) * (p.beside ? 2 : 1);
}

/// Rows of a tile, and whether lookups run beside products where they may.
void choose_rows(Prepared& p, const Tensor& x, int64_t height, int64_t channels) {
    // Of joined columns groups are of two rows, whatever the tile is. A 1x1 kernel that reads its input itself has no
    // window: from the first row on, every group begins at a cache line, and no load crosses one.
    bool pointwise = p.direct && p.up + p.down + p.reach == 0;
    if (p.beside) {
        Beside found = choose_beside(p, x, height, channels, holds_whole(p, x, height, channels) ? 0 : 2 * l2_bytes());
        p.beside = found.rows > 0;
        p.tile_rows = found.rows;
        p.block_rows = found.block_rows;
        bool far = channels * (p.tile_rows + p.up + p.down) * x.stride * 4 > l1_bytes();
        p.fetches = p.beside && !p.block_rows && far && fetches_lookups();
    }
    if (p.s.joined)
        p.tile_rows = std::min(height, JOINED_ROWS);
    else if (!p.beside)
        p.tile_rows = pointwise ? height : cheapest_tile(p, x, height, channels);
}

void choose_window(Prepared& p, const Tensor& x, int64_t height) {
    if (p.shifted) p.window_lead = 0;
    p.window_rows = p.beside ? beside_rows(p, x, height, p.tile_rows) : window_rows(p, height, p.tile_rows);
    p.window_plane = plane_of(p, p.window_rows);
}

/// Threads divide pixels, unless rows are few and S is not to be made anew around them: then filters, of all of S. Where it
/// fits the cache of a core and rows of a thread are not many, so that much of S would be made twice, they exchange it. The
/// window then holds all rows.
void choose_team(Prepared& p, const Tensor& x, int64_t height, int64_t channels) {
    auto teams = [&](int64_t least) { return int(std::max<int64_t>(1, height / least)); };
    p.by_lines = p.plain() && !p.extra_activation;
    p.pixels_to = INT_MAX;
    if (p.direct && height <= FEW_ROWS) p.pixels_to = teams(LEAST_ROWS);
    if (p.direct || !p.s.rows || !holds_whole(p, x, height, channels)) return;  // copies may as well be made twice
    p.pixels_to = p.plain() ? teams(LEAST_ROWS) : teams(LEAST_ALONE);
    if (p.plain()) p.exchange_from = p.block_rows ? 2 : std::max(2, teams(MOST_EXCHANGED));
    p.window_rows = std::max(height + p.down, x.height) + p.up;
    p.window_plane = whole_plane(p, x, height);
}

}  // namespace

int64_t l1_bytes() {
    static const int64_t size = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
    return size;
}

/// A larger one counts as this: windows of S are scratch, which is to stay small beside the activations.
int64_t l2_bytes() {
    static const int64_t size = std::min<int64_t>(cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10), 512 << 10);
    return size;
}

int64_t blocks_for(const Step& s, int64_t floats, double part) {
    int64_t bytes = int64_t(double(l1_bytes()) * part), blocks = (floats * 4 + bytes - 1) / bytes;
    return std::max<int64_t>(1, std::min(blocks, s.table_count / s.filters / LEAST_LOOKUPS));
}

int64_t choose_tiles(Prepared& p, const Tensor& x, int64_t height, int64_t width, int64_t channels) {
    // Where S is made and read row by row, rows begin at cache lines: of two columns of outputs at a time, half of the loads
    // or more are in line with a row's begin, and cross none.
    p.row = p.s.split_x && p.s.joined ? (x.stride + LINE - 1) / LINE * LINE : x.stride;
    p.window_lead = (p.reach + 15) / 16 * 16;
    choose_rows(p, x, height, channels);
    bool shifted = choose_shifted(p, x, height, width);
    choose_window(p, x, height);
    choose_team(p, x, height, channels);
    if (p.block_rows) return p.block_rows;
    int64_t blocks = p.beside ? 1 : shifted ? shifted_blocks(p) : choose_blocks(p, x, channels, p.tile_rows);
    return (channels + blocks - 1) / blocks;
}

}  // namespace lcnn
