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
int64_t first_filter(const SparseMatrix& p, int part, int parts) {
    auto before = [&](int64_t i) {
        int64_t sum = 0;
        for (int64_t block = 0; block < p.blocks; ++block)
            sum += p.starts[block * p.block_starts() + i * p.parts] - p.starts[block * p.block_starts()];
        return sum + i;  // storing a filter without lookups takes time too
    };
    int64_t wanted = share(before(p.rows), part, parts), low = 0, high = p.rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        before(middle) < wanted ? low = middle + 1 : high = middle;
    }
    return low;
}

Share share_of(const Prepared& p, const Tensor& y, int part, int parts) {
    if (p.division(parts) != Division::filters)
        return {share(y.height, part, parts), share(y.height, part + 1, parts), 0,
                p.single ? p.sliced.chunks() : p.s.filters};
    if (p.single) {
        int64_t chunks = p.sliced.chunks();
        return {0, 1, share(chunks, part, parts), share(chunks, part + 1, parts)};
    }
    return {0, y.height, first_filter(p.sparse, part, parts), first_filter(p.sparse, part + 1, parts)};
}

/// Behind the window of S.
float* own_scratch(const Prepared& p, const Place& place) {
    return place.scratch + PANEL + (p.direct ? 0 : p.planes * p.window_plane + GUARD);
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
    if (p.shifted) {
        sparse_shifted({p.sparse, source, p.row, out + q0 * y.stride, y.plane, y.stride, y.width, q1 - q0, e, first, last,
                        own_scratch(p, place)});
        for (int64_t i = first; i < last; ++i) finish(p, y, out, p.sparse.filters[i], q0, q1);
        return;
    }
    e.exact = reaches(y, q0, (q1 - q0) * y.stride, mine.y1);
    Lookups lookups{p.sparse, source, out + q0 * y.stride, y.plane, (q1 - q0) * y.stride, e, first, last, block0, block1,
                    p.beside};
    if (products)
        sparse_beside(lookups, *products);
    else
        sparse(lookups);
    if (block1 < p.sparse.blocks || (e.inside && 0 < q0 && q1 < y.height)) return;  // the zeros between rows are stored
    for (int64_t i = first; i < last; ++i) finish(p, y, out, p.sparse.filters[i], q0, q1);
}

/// Tile after tile of output rows; where lookups run beside products, these make S of the next tile.
void run_tiles(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, const Share& mine, bool ready) {
    bool beside = p.beside && !ready;
    if (!ready) response.start(mine.y0 - p.up);
    for (int64_t q0 = mine.y0, q1; q0 < mine.y1; q0 = q1) {
        q1 = std::min(q0 + p.tile_rows, mine.y1);
        if (!ready && (!beside || q0 == mine.y0)) response.fill(q0 - p.up, q1 + p.down);
        const float* source = response.source(q0);
        bool more = beside && q1 < mine.y1;
        int64_t next = std::min(q1 + p.tile_rows, mine.y1) + p.down;
        Products products;
        if (more) products = response.begin(q1 - p.up, next);
        lookup_tile(plan, p, place, source, mine, q0, q1, 0, p.sparse.blocks, more ? &products : nullptr);
        if (more) response.end(next);
    }
}

/// Block after block of dictionary rows over the whole image. A thread alone makes S as far ahead as the lookups beside it
/// allow; of a team, stage i makes block i beside the lookups of block i - 1, each shared out among the threads.
void run_blocks(const Plan& plan, const Prepared& p, const Place& place, WindowOfS& response, const Share& mine, int stage) {
    int64_t blocks = p.sparse.blocks;
    Products products;
    auto look_up = [&](int64_t from, int64_t to) {
        lookup_tile(plan, p, place, response.row(0, mine.y0), mine, mine.y0, mine.y1, from, to, &products);
    };
    if (stage == 0) response.surround(place);
    if (place.parts == 1) {
        products = response.blocks();
        return look_up(0, blocks);
    }
    if (stage < blocks) products = response.block(stage, place);
    if (stage == 0) return products.all();
    auto [first, last] = response.planes_of(stage - 1);
    response.borrow_rows(place, mine.y0, mine.y1, first, last);
    look_up(stage - 1, stage);
}

}  // namespace

void run_lookup(const Plan& plan, const Prepared& p, const Place& place, int stage) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    Division division = p.direct ? Division::rows : p.division(place.parts);
    bool whole = division != Division::rows;
    float* window = division == Division::filters ? place.shared : place.scratch + PANEL;
    const float* input = s.split_x ? place.inputs[s.port] + place.image * plan.inputs[s.port].size() : plan.at(place, s.input);
    WindowOfS response{plan, p, x, input, window, place.scratch};
    if (whole || p.block_rows) response.first = -p.up;
    Share mine = share_of(p, y, place.part, place.parts);
    if (p.block_rows) return run_blocks(plan, p, place, response, mine, stage);
    if (whole && stage == 0) {
        response.surround(place);
        return response.make_part(place);
    }
    float* out = plan.at(place, s.output);
    if (mine.y0 == mine.y1 || mine.first == mine.last) return;
    if (whole)
        response.borrow_rows(place, mine.y0, mine.y1, 0, p.planes);
    else if (s.rows && !s.split_x)
        borrow(plan, place, s.input, mine.y0 - p.up, mine.y1 + p.down, 0, x.channels);
    bool ready = p.direct || whole;
    s.pooled ? run_pooled(response, own_scratch(p, place), out, mine, ready) : run_tiles(plan, p, place, response, mine, ready);
}

void run_gemm(const Plan& plan, const Prepared& p, const Place& place) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    const float* input = plan.at(place, s.input);
    float* out = plan.at(place, s.output);
    int64_t n = s.filters / s.groups;
    int64_t r0 = 0, r1 = n, y0 = 0, y1 = y.height;
    if (place.parts <= p.rows_to || n < 2 * LCNN_ROWS * place.parts) {
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
