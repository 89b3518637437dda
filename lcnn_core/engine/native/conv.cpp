// Steps that convolve: lookup layers (dictionary stage into a sliding window of S, then the lookup stage) and dense ones.
//
// A lookup step walks over tiles of output rows, and a window of S (window.h) with it. Where lookups run beside products
// (beside.cpp), those of a tile do while S of the next one is made; where an image is a tile or two, blocks of dictionary
// rows take the place of tiles. With a fused max-pool: pooled.cpp.
#include <algorithm>
#include <cstring>

#include "conv.h"

namespace lcnn {
namespace {

/// The first filter of a part that has as many lookups as the others.
int64_t first_filter(const SparseMatrix& p, const Place& at, int part) {
    auto before = [&](int64_t i) {
        int64_t sum = 0;
        for (int64_t block = 0; block < p.blocks; ++block)
            sum += p.starts[block * p.block_starts() + i * p.parts] - p.starts[block * p.block_starts()];
        return sum + i;  // storing a filter without lookups takes time too
    };
    int64_t wanted = at.begin(before(p.rows), part), low = 0, high = p.rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        before(middle) < wanted ? low = middle + 1 : high = middle;
    }
    return low;
}

Share share_of(const Prepared& p, const Tensor& y, const Place& at) {
    int64_t all = y.height * y.stride;
    if (p.division(at.parts) != Division::filters) {
        Span mine = pixels_of(y, p.by_lines, at);
        int64_t filters = p.single ? p.sliced.chunks() : p.s.filters;
        return {mine.from, mine.to, mine.from / y.stride, (mine.to + y.stride - 1) / y.stride, 0, filters};
    }
    if (p.single) {
        Span chunks(p.sliced.chunks(), at);
        return {0, all, 0, 1, chunks.from, chunks.to};
    }
    return {0, all, 0, y.height, first_filter(p.sparse, at, at.part), first_filter(p.sparse, at, at.part + 1)};
}

/// One past the last pixel of S, in rows of p.row, that a thread's output rows up to ``q`` read.
int64_t pixels_read(const Prepared& p, const Tensor& y, const Share& mine, int64_t q) {
    int64_t rows = (q + p.down) * p.row;
    return q * y.stride > mine.to ? std::min(rows, mine.to + p.down * p.row + p.reach) : rows;
}

/// What a kernel reads of its input around pixels [from, to).
void borrow_around(const Plan& plan, const Prepared& p, const Place& place, int64_t from, int64_t to) {
    if (p.given) return;
    const Tensor& x = plan.tensors[p.s.input];
    borrow(plan, place, p.s.input, from - p.up * x.stride - p.reach, to + p.down * x.stride + p.reach, 0, x.channels);
}

/// What a thread reads of its input to make its part of S, or the rows of S that its outputs need.
void borrow_input(const Plan& plan, const Prepared& p, const Place& place, const WindowOfS& response, const Share& mine) {
    const Tensor& x = plan.tensors[p.s.input];
    int64_t beside = p.shifted ? p.reach : 0;  // rows of S begin ahead of those of the image
    auto rows = [&](int64_t from, int64_t to) {
        borrow(plan, place, p.s.input, from * x.stride - beside, to * x.stride + beside, 0, x.channels);
    };
    switch (p.division(place.parts)) {
        case Division::exchanged: {
            Span made = pixels_of(x, true, place);
            return borrow(plan, place, p.s.input, made.from, made.to, 0, x.channels);
        }
        case Division::filters: {
            if (p.block_rows) return rows(0, x.height);  // each block may be divided in another way
            WindowOfS::Range made = response.range_of(place, 0, p.made_rows());
            return rows(made.from, made.to);
        }
        case Division::pixels: {
            if (p.plain())
                return borrow(plan, place, p.s.input, response.begins(mine.y0 - p.up),
                              pixels_read(p, plan.tensors[p.s.output], mine, mine.y1), 0, x.channels);
            Span made = conv_rows(p, mine);
            return rows(made.from - p.up, made.to + p.down);
        }
    }
}

/// Behind the window of S.
float* own_scratch(const Prepared& p, const Place& place) {
    return place.scratch + PANEL + (p.direct ? 0 : p.planes * p.window_plane + GUARD);
}

/// Pixels [from, to) of the output, without pooling, whole rows unless ``p.by_lines``; ``source`` points at the first of S.
/// Of blocks [block0, block1) of dictionary rows; beside ``products`` where there are such.
void lookup_tile(const Plan& plan, const Prepared& p, const Place& place, const float* source, const Share& mine,
                 int64_t from, int64_t to, int64_t block0, int64_t block1, Products* products) {
    if (from == to) return products ? products->all() : void();  // of S, it may have a part
    const Tensor& y = plan.tensors[p.s.output];
    float* out = plan.at(place, p.s.output);
    Epilogue e = p.epilogue;
    if (p.s.second >= 0) {
        e.residual = plan.at(place, p.s.second) + from;
        e.residual_stride = plan.tensors[p.s.second].plane;
        e.keep = e.residual == out + from;
    }
    int64_t first = mine.first, last = mine.last, q0 = from / y.stride, q1 = to / y.stride;  // rows that end in these pixels
    if (p.single) {
        sparse_single(p.sliced, source, out, y.plane, e, first, last);
        for (int64_t f = first * SLICED_FILTERS; f < std::min(p.s.filters, last * SLICED_FILTERS); ++f)
            finish(p, y, out, f, 0, 1);
        return;
    }
    if (p.shifted) {
        sparse_shifted({p.sparse, source, p.row, out + from, y.plane, y.stride, y.width, q1 - q0, e, first, last,
                        own_scratch(p, place)});
        for (int64_t i = first; i < last; ++i) finish(p, y, out, p.sparse.filters[i], q0, q1);
        return;
    }
    e.exact = reaches(y, from, to - from, mine.to);
    e.column = from % y.stride;
    Lookups lookups{p.sparse, source, out + from, y.plane, to - from, e, first, last, block0, block1, p.beside, p.fetches};
    if (products)
        sparse_beside(lookups, *products);
    else
        sparse(lookups);
    bool between = 0 < q0 && q1 < y.height;  // the zeros between rows are stored
    if (block1 < p.sparse.blocks || (e.inside && (between || !p.around))) return;
    for (int64_t i = first; i < last; ++i) finish(p, y, out, p.sparse.filters[i], q0, q1);
}

/// Tile after tile of output rows; where lookups run beside products, these make S of the next tile.
void run_tiles(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, const Share& mine, bool ready) {
    const Tensor& y = plan.tensors[p.s.output];
    bool beside = p.beside && !ready;
    if (!ready) response.start(mine.y0 - p.up);
    for (int64_t q0 = mine.y0, q1; q0 < mine.y1; q0 = q1) {
        q1 = std::min(q0 + p.tile_rows, mine.y1);
        if (!ready && (!beside || q0 == mine.y0)) response.fill(q0 - p.up, pixels_read(p, y, mine, q1));
        int64_t from = std::max(mine.from, q0 * y.stride), to = std::min(mine.to, q1 * y.stride);
        bool more = beside && q1 < mine.y1;
        int64_t next = pixels_read(p, y, mine, std::min(q1 + p.tile_rows, mine.y1));
        const float* source = response.source(q0, from - q0 * y.stride);
        Products products;
        if (more) products = response.begin(q1 - p.up, next);
        lookup_tile(plan, p, place, source, mine, from, to, 0, p.sparse.blocks, more ? &products : nullptr);
        if (more) response.end(next);
    }
}

/// Block after block of dictionary rows over the whole image. A thread alone makes S as far ahead as the lookups beside it
/// allow; of a team, stage i makes block i beside the lookups of block i - 1, each shared out among the threads.
void run_blocks(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, const Share& mine, int stage) {
    int64_t blocks = p.sparse.blocks;
    Products products;
    auto look_up = [&](int64_t from, int64_t to) {
        lookup_tile(plan, p, place, response.row(0, 0) + mine.from, mine, mine.from, mine.to, from, to, &products);
    };
    if (stage == 0) response.surround();
    if (place.parts == 1) {
        products = response.blocks();
        return look_up(0, blocks);
    }
    if (stage < blocks) products = response.block(stage, place);
    if (stage == 0) return products.all();
    if (stage == 1 && p.s.second >= 0) borrow(plan, place, p.s.second, mine.from, mine.to, 0, p.s.filters);
    auto [first, last] = response.planes_of(stage - 1);
    response.borrow(place, mine.from, mine.to, first, last);
    look_up(stage - 1, stage);
}

}  // namespace

void run_lookup(const Plan& plan, const Prepared& p, const Place& place, int stage) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    Division division = p.direct ? Division::pixels : p.division(place.parts);
    bool whole = division != Division::pixels;
    const float* input = s.split_x ? plan.image(place, s.port) : plan.at(place, s.input);
    WindowOfS response{plan, p, x, input, place.scratch + PANEL, place.scratch};
    if (whole || p.block_rows) response.first = -p.up;
    Share mine = share_of(p, y, place);
    if (whole && stage == 0) borrow_input(plan, p, place, response, mine);
    if (p.block_rows) return run_blocks(plan, p, place, response, mine, stage);
    if (whole && stage == 0) {
        response.surround();
        return response.make_part(place);
    }
    float* out = plan.at(place, s.output);
    if (mine.from == mine.to || mine.first == mine.last) return;
    if (s.second >= 0) borrow(plan, place, s.second, mine.from, mine.to, 0, y.channels);
    if (whole)
        response.borrow(place, mine.from, mine.to, 0, p.planes);
    else if (p.direct)
        borrow_around(plan, p, place, mine.from, mine.to);
    else
        borrow_input(plan, p, place, response, mine);
    bool ready = p.direct || whole;
    s.pooled ? run_pooled(response, own_scratch(p, place), out, mine, ready) : run_tiles(plan, p, place, response, mine, ready);
}

void run_gemm(const Plan& plan, const Prepared& p, const Place& place) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    const float* input = plan.at(place, s.input);
    float* out = plan.at(place, s.output);
    int64_t n = s.filters / s.groups, panels = (n + LCNN_ROWS - 1) / LCNN_ROWS;
    Span pixels(0, y.height * y.stride), rows(0, n);
    if (place.parts <= p.pixels_to || n < 2 * LCNN_ROWS * place.parts) {
        pixels = pixels_of(y, p.by_lines, place);
    } else {
        Span mine(panels, place);
        rows = {mine.from * LCNN_ROWS, std::min(n, mine.to * LCNN_ROWS)};
    }
    int64_t from = pixels.from, to = pixels.to;
    if (from == to || rows.from == rows.to) return;
    borrow_around(plan, p, place, from, to);
    if (s.second >= 0) borrow(plan, place, s.second, from, to, 0, y.channels);
    for (int64_t g = 0; g < s.groups; ++g) {
        Epilogue e = p.epilogue;
        if (e.bias) e.bias += g * n;
        if (s.second >= 0) {
            e.residual = plan.at(place, s.second) + from + g * n * plan.tensors[s.second].plane;
            e.residual_stride = plan.tensors[s.second].plane;
        }
        e.exact = to < y.height * y.stride;
        gemm({&p.matrices[g], input + g * s.width * x.plane + from, p.offsets.data(), out + g * n * y.plane + from, y.plane,
              to - from, e, place.scratch, rows.from, rows.to});
        for (int64_t f = g * n + rows.from; f < g * n + rows.to; ++f) finish(p, y, out, f, from / y.stride, to / y.stride);
    }
}

}  // namespace lcnn
