// Steps that convolve: lookup layers (dictionary stage into a sliding window of S, then the lookup stage) and dense ones.
//
// A lookup step walks over tiles of output rows, and a window of S (window.h) with it. Where lookups run beside products
// (beside.cpp), those of a tile do while S of the next one is made; where an image is a tile or two, blocks of dictionary
// rows take the place of tiles.
#include <algorithm>
#include <cstring>

#include "plan.h"
#include "vec.h"
#include "window.h"

namespace lcnn {
namespace {

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

/// Whether whole vectors over ``floats`` from row y on would reach row ``end``, which is another thread's.
bool reaches(const Tensor& t, int64_t y, int64_t floats, int64_t end) {
    return end < t.height && y * t.stride + (floats + VL - 1) / VL * VL > end * t.stride;
}

/// The first filter of a part that has as many lookups as the others.
int64_t first_filter(const SparseMatrix& p, int part, int parts) {
    auto before = [&](int64_t i) {
        int64_t sum = 0;
        for (int64_t block = 0; block < p.blocks; ++block)
            sum += p.starts[block * (p.rows + 1) + i] - p.starts[block * (p.rows + 1)];
        return sum + i;  // storing a filter without lookups takes time too
    };
    int64_t wanted = share(before(p.rows), part, parts), low = 0, high = p.rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        before(middle) < wanted ? low = middle + 1 : high = middle;
    }
    return low;
}

/// What one thread computes: rows [y0, y1) of the output, of the filters at sorted positions [first, last).
struct Share {
    int64_t y0, y1, first, last;
};

Share share_of(const Prepared& p, const Tensor& y, int part, int parts) {
    if (!p.as_team(parts))
        return {share(y.height, part, parts), share(y.height, part + 1, parts), 0,
                p.single ? p.sliced.chunks() : p.s.filters};
    if (p.single) {
        int64_t chunks = p.sliced.chunks();
        return {0, 1, share(chunks, part, parts), share(chunks, part + 1, parts)};
    }
    return {0, y.height, first_filter(p.sparse, part, parts), first_filter(p.sparse, part + 1, parts)};
}

/// Rows of a convolution under a fused max-pool: a tile of one filter in ``plane``, and what the next tile reads again.
struct Pooling {
    const Prepared& p;
    const Tensor &x, &y;
    Window win;
    float *plane, *line, *carry;
    int64_t done = 0;  // conv rows computed so far

    int64_t first_row(int64_t q) const { return std::max<int64_t>(0, q * win.sy - win.py); }
    int64_t end_row(int64_t q) const { return std::min(p.s.conv_height, (q - 1) * win.sy - win.py + (win.kh - 1) * win.dy + 1); }

    /// The first conv row to compute for pooled rows from q on: windows may overlap, touch, or leave rows out.
    int64_t next_row(int64_t q) const { return std::max(done, first_row(q)); }

    /// Pooled rows [q0, q1) of the filters of ``mine``; ``response`` points at conv row next_row(q0).
    void tile(const float* response, float* out, int64_t q0, int64_t q1, const Share& mine) {
        int64_t c0 = first_row(q0), from = next_row(q0), c1 = std::max(end_row(q1), from);
        int64_t kept = (from - c0) * x.stride, fresh = (c1 - from) * x.stride;
        int64_t saved = std::max<int64_t>(c1 - first_row(q1), 0) * x.stride, most = win.kh * win.dy * x.stride;
        for (int64_t i = mine.first; i < mine.last; ++i) {
            int64_t f = p.sparse.filters[i];
            memcpy(plane, carry + i * most, kept * sizeof(float));
            sparse({p.sparse, response, plane + kept, 0, fresh, p.epilogue, i, i + 1, 0, p.sparse.blocks});
            for (int64_t q = q0; q < q1; ++q)
                max_pool_row(plane - c0 * x.stride, p.s.conv_height, p.s.conv_width, x.stride, win, q,
                             out + f * y.plane + q * y.stride, y.width, line, reaches(y, q, y.width, mine.y1));
            memcpy(carry + i * most, plane + kept + fresh - saved, saved * sizeof(float));
            finish(p, y, out, f, q0, q1);
        }
        done = c1;
    }
};

/// Lookups under a max-pool with stride 2: conv rows 2q and 2q + 1 are a pair, joined in registers as they are made.
struct Pairs {
    const Prepared& p;
    const Tensor& y;
    Window win;
    float *lines, *carries;

    void start() const {
        std::fill(lines, lines + 2 * p.sparse.rows * p.line, -__builtin_inff());  // carries follow the lines
    }

    /// Pair q; makes pooled row ``row`` unless that is -1. ``response`` points at conv row 2q.
    void pair(const float* response, int64_t stride, int64_t q, int64_t row, float* out, const Share& mine) const {
        const Step& s = p.s;
        int64_t below = 2 * q + 1 < s.conv_height ? stride : 0;
        sparse_pair(p.sparse, response, below, s.conv_width, p.epilogue.bias, p.pairing, lines + s.px, carries, p.line,
                    mine.first, mine.last);
        if (row < 0) return;
        bool exact = reaches(y, row, y.width, mine.y1);
        int64_t length = (y.width - 1) * s.sx + (s.kw - 1) * s.dx + 1;
        for (int64_t i = mine.first; i < mine.last; ++i) {
            float* line = lines + i * p.line;
            for (int64_t x = s.px + s.conv_width; x < length; ++x) line[x] = -__builtin_inff();
            int64_t f = p.sparse.filters[i];
            max_pool_line(line, win, out + f * y.plane + row * y.stride, y.width, exact, p.epilogue.low, p.epilogue.high);
        }
    }
};

/// The same of two columns of outputs at a time, so that pooled rows are made in registers.
struct Joined {
    const Prepared& p;
    const Tensor& y;
    Carried carried;

    void start() const {
        std::fill(carried.rows, carried.rows + p.sparse.rows * carried.stride, -__builtin_inff());
    }

    void pair(const float* response, int64_t stride, int64_t q, int64_t row, float* out, const Share& mine) const {
        Epilogue e = p.epilogue;
        e.exact = row >= 0 && reaches(y, row, y.width, mine.y1);
        int64_t below = 2 * q + 1 < p.s.conv_height ? stride : 0;
        sparse_quad(p.sparse, response, below, p.pairing, p.across, carried, row < 0 ? nullptr : out + row * y.stride,
                    y.plane, y.width, e, mine.first, mine.last);
    }
};

/// Pooled rows [y0, y1): a window may need the pair before its own, or the first row of the pair behind it.
template <class Rows>
void run_pairs(const Rows& pairs, WindowOfS& response, float* out, const Share& mine, bool ready) {
    const Prepared& p = response.p;
    int64_t y0 = mine.y0, y1 = mine.y1;
    const Tensor& x = response.x;
    bool before = p.pairing == Pairing::before, after = p.pairing == Pairing::after;
    int64_t first = y0 - (before && y0 > 0), last = y1 + after;
    int64_t tile = std::max<int64_t>(1, p.tile_rows / 2);
    pairs.start();
    if (!ready) response.start(2 * first - p.up);
    for (int64_t q0 = first; q0 < last; q0 += tile) {
        int64_t q1 = std::min(q0 + tile, last);
        if (!ready) response.fill(2 * q0 - p.up, std::min(2 * q1, p.s.conv_height) + p.down);
        for (int64_t q = q0; q < q1; ++q) {
            int64_t row = after ? q - 1 : q;
            const float* source = p.direct ? response.input + 2 * q * x.stride : response.row(0, 2 * q);
            bool made = row >= y0 && row < y1;
            pairs.pair(source, x.stride, q, made ? row : -1, out, mine);
        }
        int64_t from = std::max(q0 - after, y0), to = std::min(q1 - after, y1);
        for (int64_t i = mine.first; i < mine.last && from < to; ++i)
            finish(p, pairs.y, out, p.sparse.filters[i], from, to);
    }
}

/// Rows [q0, q1) of the output, without pooling, of one pixel or whole vectors; ``source`` points at row q0 of S. Of
/// blocks [block0, block1) of dictionary rows; beside ``products`` where there are such.
void lookup_tile(const Plan& plan, const Prepared& p, const Place& place, const float* source, const Share& mine,
                 int64_t q0, int64_t q1, int64_t block0, int64_t block1, Products* products) {
    const Tensor& y = plan.tensors[p.s.output];
    float* out = plan.at(place, p.s.output);
    Epilogue e = p.epilogue;
    if (p.s.second >= 0) {
        e.residual = plan.at(place, p.s.second) + q0 * y.stride;
        e.residual_stride = plan.tensors[p.s.second].plane;
        e.keep = e.residual == out + q0 * y.stride;
    }
    int64_t first = mine.first, last = mine.last;
    if (p.single) {
        sparse_single(p.sliced, source, out, y.plane, e, first, last);
        for (int64_t f = first * SLICED_FILTERS; f < std::min(p.s.filters, last * SLICED_FILTERS); ++f)
            finish(p, y, out, f, 0, 1);
        return;
    }
    e.exact = reaches(y, q0, (q1 - q0) * y.stride, mine.y1);
    Lookups lookups{p.sparse, source, out + q0 * y.stride, y.plane, (q1 - q0) * y.stride, e, first, last, block0, block1,
                    p.beside};
    if (products)
        sparse_beside(lookups, *products);
    else
        sparse(lookups);
    for (int64_t i = first; i < last && block1 == p.sparse.blocks; ++i) finish(p, y, out, p.sparse.filters[i], q0, q1);
}

/// Tile after tile of output rows; where lookups run beside products, these make S of the next tile.
void run_tiles(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, const Share& mine, bool ready) {
    bool beside = p.beside && !ready;
    if (!ready) response.start(mine.y0 - p.up);
    for (int64_t q0 = mine.y0, q1; q0 < mine.y1; q0 = q1) {
        q1 = std::min(q0 + p.tile_rows, mine.y1);
        if (!ready && (!beside || q0 == mine.y0)) response.fill(q0 - p.up, q1 + p.down);
        const float* source = p.direct ? response.input + q0 * response.x.stride : response.row(0, q0);
        bool more = beside && q1 < mine.y1;
        int64_t next = std::min(q1 + p.tile_rows, mine.y1) + p.down;
        Products products;
        if (more) products = response.begin(q1 - p.up, next);
        lookup_tile(plan, p, place, source, mine, q0, q1, 0, p.sparse.blocks, more ? &products : nullptr);
        if (more) response.end(next);
    }
}

/// Block after block of dictionary rows over the whole image: stage i makes S of block i beside the lookups of block
/// i - 1, each shared out among the threads.
void run_blocks(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, int stage) {
    const Tensor& y = plan.tensors[p.s.output];
    int64_t blocks = p.sparse.blocks, height = response.x.height, block = p.turned ? blocks - 1 - stage : stage;
    Products products;
    if (stage < blocks) {
        bool phases = p.s.phases > 1;  // a block is one of them
        int64_t r0 = phases ? 0 : block * p.block_rows, r1 = std::min(r0 + p.block_rows, p.s.rows);
        products = response.products(WindowOfS::part_of({0, height, r0, r1}, place.part, place.parts), true);
        if (phases) products.only(block);
    }
    if (stage == 0) {
        response.surround(place.part, place.parts);
        return products.all();
    }
    Share mine = share_of(p, y, place.part, place.parts);
    lookup_tile(plan, p, place, response.row(0, 0), mine, 0, y.height, stage - 1, stage, &products);
}

}  // namespace

void run_lookup(const Plan& plan, const Prepared& p, const Place& place, int stage) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    bool shared = place.parts > 1 && stages(p, false, place.parts) > 1, ready = p.direct || shared;
    float* window = shared ? place.shared : place.scratch + PANEL;
    const float* input = s.split_x ? place.inputs[s.port] + place.image * plan.inputs[s.port].size() : plan.at(place, s.input);
    WindowOfS response{plan, p, x, input, window, place.scratch};
    if (shared || p.block_rows) response.first = -p.up;
    if (p.block_rows) return run_blocks(plan, p, place, response, stage);
    if (shared && stage == 0) {
        response.surround(place.part, place.parts);
        return response.compute(WindowOfS::part_of({0, x.height, 0, s.rows}, place.part, place.parts), true);
    }
    float* out = plan.at(place, s.output);
    Share mine = share_of(p, y, place.part, place.parts);
    if (mine.y0 == mine.y1 || mine.first == mine.last) return;
    float* plane = place.scratch + PANEL + (p.direct ? 0 : response.channels() * p.window_plane + GUARD);
    Window win{s.kh, s.kw, s.sy, s.sx, s.py, s.px, s.dy, s.dx};
    if (s.joined) return run_pairs(Joined{p, y, {plane, plane + s.filters * p.line, p.line}}, response, out, mine, ready);
    if (p.paired) return run_pairs(Pairs{p, y, win, plane, plane + p.sparse.rows * p.line}, response, out, mine, ready);
    if (!s.pooled) return run_tiles(plan, p, place, response, mine, ready);
    int64_t plane_size = round16((p.tile_rows + s.kh * s.dy + s.sy) * x.stride + LCNN_ACCS * LOOKUP_VL);
    Pooling pooling{p, x, y, win, plane, plane + plane_size, plane + plane_size + p.line};
    int64_t per_tile = std::max<int64_t>(1, p.tile_rows / s.sy);
    pooling.done = pooling.first_row(mine.y0);
    for (int64_t q0 = mine.y0; q0 < mine.y1; q0 += per_tile) {
        int64_t q1 = std::min(q0 + per_tile, mine.y1);
        int64_t c0 = pooling.next_row(q0), c1 = std::max(pooling.end_row(q1), c0);
        if (!ready) {
            if (q0 == mine.y0) response.start(c0 - p.up);
            response.fill(c0 - p.up, c1 + p.down);
        }
        pooling.tile(p.direct ? response.input + c0 * x.stride : response.row(0, c0), out, q0, q1, mine);
    }
}

void run_gemm(const Plan& plan, const Prepared& p, const Place& place) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    const float* input = plan.at(place, s.input);
    float* out = plan.at(place, s.output);
    int64_t n = s.filters / s.groups;
    int64_t r0 = 0, r1 = n, y0 = 0, y1 = y.height;
    if (y.height >= 4 * place.parts || n < 2 * LCNN_ROWS * place.parts) {
        y0 = share(y.height, place.part, place.parts);
        y1 = share(y.height, place.part + 1, place.parts);
    } else {
        int64_t panels = (n + LCNN_ROWS - 1) / LCNN_ROWS;
        r0 = share(panels, place.part, place.parts) * LCNN_ROWS;
        r1 = std::min(n, share(panels, place.part + 1, place.parts) * LCNN_ROWS);
    }
    if (y0 == y1 || r0 == r1) return;
    for (int64_t g = 0; g < s.groups; ++g) {
        Epilogue e = p.epilogue;
        if (e.bias) e.bias += g * n;
        if (s.second >= 0) {
            e.residual = plan.at(place, s.second) + y0 * y.stride + g * n * plan.tensors[s.second].plane;
            e.residual_stride = plan.tensors[s.second].plane;
        }
        e.exact = y1 < y.height;
        gemm({&p.matrices[g], input + g * s.width * x.plane + y0 * x.stride, p.offsets.data(),
              out + g * n * y.plane + y0 * y.stride, y.plane, (y1 - y0) * y.stride, e, place.scratch, r0, r1});
        for (int64_t f = g * n + r0; f < g * n + r1; ++f) finish(p, y, out, f, y0, y1);
    }
}

}  // namespace lcnn
