// The window of S of a lookup step: the rows of what the dictionary answers that a tile reads. Rows shared with the tile
// before are kept, and moved to the front only when the window is full, so that every row of S is computed once.
#pragma once

#include <algorithm>
#include <cstring>

#include "plan.h"
#include "vec.h"

namespace lcnn {

struct WindowOfS {
    const Plan& plan;
    const Prepared& p;
    const Tensor& x;
    const float* input;
    float* rows;      // the window
    float* panel;
    int64_t first = 0;  // image row at its front
    int64_t have = 0;   // one past the last pixel held; pixels count from the image's first one, whole rows of p.row

    float* plane(int64_t channel) const { return rows + channel * p.window_plane; }
    /// Pixels that lie at a cache line in the image's plane do so here, too: products that read whole lines write such.
    float* at(int64_t channel, int64_t pixel) const {
        return plane(channel) + p.window_lead + pixel - (first * p.row & -LINE);
    }
    float* row(int64_t channel, int64_t y) const { return at(channel, y * p.row); }
    /// Where the lookups of a pixel of an output row read, relative to their offsets: the window, or the input itself.
    const float* source(int64_t y, int64_t column) const {
        return (p.direct ? input + y * x.stride : row(0, y)) + column;
    }
    int64_t channels() const { return p.planes; }

    /// The pixel from which S is made where it begins at a row of the image: whole lines, from the first one on that it has.
    int64_t begins(int64_t y) const { return y > 0 && p.by_lines ? y * p.row & -LINE : y * p.row; }

    void start(int64_t y) {
        first = y;
        have = begins(y);
        for (int64_t c = 0; c < channels(); ++c) std::fill(plane(c), at(c, have), 0.0f);
    }

    /// Makes rows from ``from`` on up to pixel ``until`` available.
    void fill(int64_t from, int64_t until) {
        if (p.s.split_x || p.shifted) {
            make_room(from, until);
            int64_t inside = std::min(until, x.height * p.row);
            if (have < inside) compute({have / p.row, inside / p.row, 0, p.made_rows()}, false);
            have = std::max(have, inside);
        } else {
            begin(from, until).all();
        }
        end(until);
    }

    /// As fill, but the products are left to be done; then ``end``. The tile before may be read meanwhile where it lies, by
    /// addresses taken before (beside_rows). Beside lookups, whole strips are made where the image goes on, so that none is
    /// cut where a tile ends.
    Products begin(int64_t from, int64_t until) {
        make_room(from, until);
        int64_t wanted = std::max<int64_t>(0, until - have), pixel = have;
        int64_t strip = p.beside ? BESIDE_COLS * VL : 1;
        int64_t after = std::min(have + (wanted + strip - 1) / strip * strip, x.height * x.stride);
        have = std::max(have, after);
        return products(pixel, after, 0, p.s.rows, false);
    }

    /// Zeros below the image up to pixel ``until``.
    void end(int64_t until) {
        if (until > x.height * p.row) clear(until);
    }

    /// Moves what is held to the front where the window is full, clears rows above the image.
    void make_room(int64_t from, int64_t until) {
        if (until > (first + p.window_rows) * p.row) {
            int64_t kept = std::max<int64_t>(0, have - from * p.row), before = row(0, from) - rows;
            first = from;
            for (int64_t c = 0; c < channels(); ++c) {
                float* front = row(c, from);
                memmove(front, plane(c) + before, kept * sizeof(float));
                std::fill(front - std::min(p.reach, p.window_lead), front, 0.0f);  // columns ahead of the first one
            }
            have = std::max(have, from * p.row);
        }
        clear(std::min<int64_t>(until, 0));
    }

    void clear(int64_t until) {
        int64_t zeros = until - have;
        for (int64_t c = 0; c < channels() && zeros > 0; ++c) memset(at(c, have), 0, zeros * sizeof(float));
        if (zeros > 0) have += zeros;
    }

    /// Of a window of all rows, the zeros around them.
    void surround() {
        for (int64_t c = 0; c < channels(); ++c) {
            std::fill(plane(c), row(c, first + p.up), 0.0f);
            float *below = row(c, x.height), *end = plane(c + 1);
            if (below < end) memset(below, 0, (end - below) * sizeof(float));
        }
    }

    /// Rows [from, to) of what dictionary vectors [r0, r1) of every phase and group answer.
    struct Range {
        int64_t from, to, r0, r1;
    };

    /// A thread's part of all rows of some vectors, where lookups are divided by filters: rows or, where these divide far
    /// less evenly, some of the vectors, which take all of the input.
    Range range_of(const Place& at, int64_t r0, int64_t r1) const {
        int64_t height = x.height, panels = (r1 - r0 + LCNN_ROWS - 1) / LCNN_ROWS;
        auto most = [&](int64_t total) { return (total + at.parts - 1) / at.parts; };
        bool by_rows = 4 * most(height) * panels <= 5 * most(panels) * height;
        Span mine(by_rows ? height : panels, at);
        if (by_rows) return {mine.from, mine.to, r0, r1};
        return {0, height, std::min(r1, r0 + mine.from * LCNN_ROWS), std::min(r1, r0 + mine.to * LCNN_ROWS)};
    }

    /// Of planes [c0, c1), all of a block or of S, what other threads made of it: around output pixels [from, to) or, where
    /// lookups are divided by filters, all.
    void borrow(const Place& place, int64_t from, int64_t to, int64_t c0, int64_t c1) {
        auto copy = [&](int part, int64_t c, int64_t begin, int64_t end) {
            float* mine = at(c, begin);
            memcpy(mine, place.arenas[part] + (mine - place.own), (end - begin) * sizeof(float));
        };
        if (p.division(place.parts) == Division::exchanged) {
            from -= p.up * p.row + p.reach;
            to += p.down * p.row + p.reach;
            of_others(x, true, place, from, to, [&](int part, int64_t begin, int64_t end) {
                for (int64_t c = c0; c < c1; ++c) copy(part, c, begin, end);
            });
            return;
        }
        int64_t vectors = p.made_rows(), r0 = 0, r1 = vectors;
        if (p.block_rows && p.s.phases <= 1) r0 = c0, r1 = c1;
        Place other = place;
        for (other.part = 0; other.part < place.parts; ++other.part) {
            Range made = range_of(other, r0, r1);
            for (int64_t c = c0; c < c1 && other.part != place.part; ++c)
                if (made.r0 <= c % vectors && c % vectors < made.r1) copy(other.part, c, made.from * p.row, made.to * p.row);
        }
    }

    /// A thread's part of what dictionary vectors [r0, r1) of every phase and group answer.
    Products part_of(const Place& at, int64_t r0, int64_t r1) {
        if (p.division(at.parts) == Division::filters) return products(range_of(at, r0, r1), true);
        Span mine = pixels_of(x, true, at);
        return products(mine.from, mine.to, r0, r1, true);
    }

    /// A thread's part of all S.
    void make_part(const Place& at) {
        if (p.s.split_x || p.shifted) return compute(range_of(at, 0, p.made_rows()), true);
        part_of(at, 0, p.s.rows).all();
    }

    /// exact: no lane past the last pixel, which another thread owns, or which is zero.
    void compute(const Range& r, bool exact) {
        if (!p.s.split_x) return p.shifted ? rows_apart(r) : products(r, exact).all();
        if (r.from == r.to || r.r0 == r.r1) return;
        split_rows(p.split, input, row(0, r.from) - p.row_begin, r.from, r.to, r.r0, r.r1, exact);
        for (int64_t c = 0; c < channels() && p.row_begin; ++c)
            for (int64_t y = r.from; y < r.to && r.r0 <= c % p.s.rows && c % p.s.rows < r.r1; ++y)
                std::fill(row(c, y), row(c, y) - p.row_begin, 0.0f);
    }

    /// Row by row, each from the first column on that lookups read; zeros beside the image are those beside its rows.
    void rows_apart(const Range& r) {
        const float* from = input + p.row_begin;
        for (int64_t c = r.r0; c < r.r1 && !p.s.rows; ++c)
            for (int64_t y = r.from; y < r.to; ++y) memcpy(row(c, y), from + c * x.plane + y * x.stride, p.row * sizeof(float));
        for (int64_t y = r.from; y < r.to && p.s.rows; ++y) {
            Products made = products(0, p.row, r.r0, r.r1, true);
            made.product.input = from + y * x.stride;
            made.product.out = row(0, y);
            made.all();
        }
    }

    /// A thread's part of a block of S over the whole image: a phase or, where there is but one, of dictionary rows.
    Products block(int64_t index, const Place& at) {
        if (p.s.phases > 1) return in_turn(part_of(at, 0, p.s.rows)).only(index);
        int64_t r0 = index * p.block_rows, r1 = std::min(r0 + p.block_rows, p.s.rows);
        return part_of(at, r0, r1);
    }

    /// Planes of S that it makes: from the first one to one past the last.
    std::pair<int64_t, int64_t> planes_of(int64_t index) const {
        int64_t each = p.s.phases > 1 ? p.s.rows : p.block_rows, blocks = p.sparse.blocks;
        int64_t c = (p.turned ? blocks - 1 - index : index) * each;
        return {c, std::min(c + each, channels())};
    }

    /// All blocks of it, ahead of the lookups.
    Products blocks() {
        Products made = in_turn(products({0, x.height, 0, p.s.rows}, true));
        if (p.s.phases <= 1) made.by_blocks(p.block_rows);
        made.ahead = p.down * p.row + p.high;
        return made;
    }

    /// Phase after phase, in the order of the lookups' blocks.
    Products in_turn(Products made) {
        if (p.turned) made.turn();
        return made;
    }

    Products products(const Range& r, bool exact) {
        return products(r.from * x.stride, r.to * x.stride, r.r0, r.r1, exact);
    }

    Products products(int64_t pixel, int64_t end, int64_t r0, int64_t r1, bool exact) {
        Products made;
        Epilogue e;
        e.exact = exact;
        made.product = {nullptr, input + pixel, p.offsets.data(), at(0, pixel), p.window_plane, end - pixel, e, panel, r0, r1};
        made.matrices = p.matrices.data();
        made.groups = p.s.groups;
        made.input_step = p.s.width * x.plane;
        made.out_step = p.s.rows * p.window_plane;
        made.many = p.many;
        made.parts = channels() / p.s.rows;  // phase-major, then group
        return made;
    }
};

}  // namespace lcnn
