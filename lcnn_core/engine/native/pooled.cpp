// Lookups under a fused max-pool: conv rows are made and pooled tile by tile, those that the next tile needs are kept.
#include <algorithm>
#include <cstring>

#include "conv.h"

namespace lcnn {
namespace {

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

Window window_of(const Step& s) { return {s.kh, s.kw, s.sy, s.sx, s.py, s.px, s.dy, s.dx}; }

/// The pooled row that pair q of conv rows completes.
int64_t pooled_row(const Prepared& p, int64_t q) { return q - (p.pairing == Pairing::after); }

/// Pairs of conv rows for a thread's pooled rows: a window may need the pair before its own, or the first row of the one
/// behind it.
Span pairs_of(const Prepared& p, const Share& mine) {
    return {mine.y0 - (p.pairing == Pairing::before && mine.y0 > 0), mine.y1 + (p.pairing == Pairing::after)};
}

/// Where the second row of pair q of conv rows lies, beyond the first one; 0 where there is none.
int64_t below(const Prepared& p, int64_t q) { return 2 * q + 1 < p.s.conv_height ? p.row : 0; }

/// Rows of a convolution under a fused max-pool: a tile of one filter in ``plane``, and what the next tile reads again.
struct Pooling {
    const Prepared& p;
    const Tensor &x, &y;
    Window win;
    float *plane, *line, *carry;
    int64_t done = 0;  // conv rows computed so far

    Pooling(const Prepared& p, const Tensor& x, const Tensor& y, float* own)
        : p(p), x(x), y(y), win(window_of(p.s)), plane(own) {
        line = plane + round16((p.tile_rows + p.s.kh * p.s.dy + p.s.sy) * x.stride + LCNN_ACCS * LOOKUP_VL);
        carry = line + p.line;
    }

    int64_t first_row(int64_t q) const { return win.first(q); }
    int64_t end_row(int64_t q) const { return std::min(p.s.conv_height, win.last(q - 1) + 1); }

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
                             out + f * y.plane + q * y.stride, y.width, line, reaches(y, q * y.stride, y.width, mine.to));
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

    int64_t most() const { return 1; }

    /// Pairs [q, end), at most ``most``, and of their pooled rows those of ``mine``; ``response`` points at conv row 2q.
    void make(const float* response, int64_t q, int64_t, float* out, const Share& mine) const {
        const Step& s = p.s;
        int64_t row = pooled_row(p, q);
        sparse_pair(p.sparse, response, below(p, q), s.conv_width, p.epilogue.bias, p.pairing, lines + s.px, carries, p.line,
                    mine.first, mine.last);
        if (row < mine.y0 || row >= mine.y1) return;
        bool exact = reaches(y, row * y.stride, y.width, mine.to);
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

    int64_t most() const { return 1; }

    void make(const float* response, int64_t q, int64_t, float* out, const Share& mine) const {
        Epilogue e = p.epilogue;
        int64_t row = pooled_row(p, q);
        bool wanted = row >= mine.y0 && row < mine.y1;
        e.exact = wanted && reaches(y, row * y.stride, y.width, mine.to);
        sparse_quad(p.sparse, response, below(p, q), p.pairing, p.across, carried, wanted ? out + row * y.stride : nullptr,
                    y.plane, y.width, e, mine.first, mine.last);
    }
};

/// The same of several pairs at a time, by kernel column.
struct Shifted {
    const Prepared& p;
    const Tensor& y;
    float* carry;

    void start() const { std::fill(carry, carry + p.sparse.rows * p.row, -__builtin_inff()); }
    int64_t most() const { return p.tile_rows / 2; }

    void make(const float* response, int64_t q, int64_t end, float* out, const Share& mine) const {
        int64_t row = pooled_row(p, q);
        shifted_pairs({p.sparse, response, p.row, end - q, 2 * end > p.s.conv_height, p.pairing, p.across, carry,
                       out + row * y.stride, y.plane, y.stride, y.width, mine.y0 - row, mine.y1 - row, p.epilogue,
                       mine.first, mine.last});
    }
};

template <class Pairs>
void run_pairs(const Pairs& pairs, WindowOfS& response, float* out, const Share& mine, bool ready) {
    const Prepared& p = response.p;
    Span all = pairs_of(p, mine);
    int64_t tile = std::max<int64_t>(1, p.tile_rows / 2);
    pairs.start();
    if (!ready) response.start(2 * all.from - p.up);
    for (int64_t q0 = all.from; q0 < all.to; q0 += tile) {
        int64_t q1 = std::min(q0 + tile, all.to);
        if (!ready) response.fill(2 * q0 - p.up, (std::min(2 * q1, p.s.conv_height) + p.down) * p.row);
        for (int64_t q = q0, end; q < q1; q = end) {
            end = std::min(q + pairs.most(), q1);
            pairs.make(response.source(2 * q, 0), q, end, out, mine);
        }
        int64_t from = std::max(pooled_row(p, q0), mine.y0), to = std::min(pooled_row(p, q1), mine.y1);
        for (int64_t i = mine.first; i < mine.last && from < to; ++i)
            finish(p, pairs.y, out, p.sparse.filters[i], from, to);
    }
}

/// Any window: tiles of conv rows, pooled from memory.
void run_windows(Pooling pooling, WindowOfS& response, float* out, const Share& mine, bool ready) {
    const Prepared& p = response.p;
    int64_t tile = std::max<int64_t>(1, p.tile_rows / p.s.sy);
    pooling.done = pooling.first_row(mine.y0);
    for (int64_t q0 = mine.y0; q0 < mine.y1; q0 += tile) {
        int64_t q1 = std::min(q0 + tile, mine.y1);
        int64_t c0 = pooling.next_row(q0), c1 = std::max(pooling.end_row(q1), c0);
        if (!ready) {
            if (q0 == mine.y0) response.start(c0 - p.up);
            response.fill(c0 - p.up, (c1 + p.down) * p.row);
        }
        pooling.tile(response.source(c0, 0), out, q0, q1, mine);
    }
}

}  // namespace

Span conv_rows(const Prepared& p, const Share& mine) {
    if (!p.s.pooled) return {mine.y0, mine.y1};
    if (p.paired) {
        Span pairs = pairs_of(p, mine);
        return {2 * pairs.from, std::min(2 * pairs.to, p.s.conv_height)};
    }
    Window win = window_of(p.s);
    return {win.first(mine.y0), std::min(p.s.conv_height, win.last(mine.y1 - 1) + 1)};
}

void run_pooled(WindowOfS& response, float* own, float* out, const Share& mine, bool ready) {
    const Prepared& p = response.p;
    const Tensor& y = response.plan.tensors[p.s.output];
    if (p.s.joined) return run_pairs(Joined{p, y, {own, own + p.s.filters * p.line, p.line}}, response, out, mine, ready);
    if (p.shifted) return run_pairs(Shifted{p, y, own}, response, out, mine, ready);
    if (p.paired)
        return run_pairs(Pairs{p, y, window_of(p.s), own, own + p.sparse.rows * p.line}, response, out, mine, ready);
    run_windows(Pooling(p, response.x, y, own), response, out, mine, ready);
}

}  // namespace lcnn
