// Pooling and activations. A pooled row first reduces its kh input rows to one line (contiguous vectors), then the line
// across columns; strides 1 and 2 stay vectors, others are scalar. Both passes are bound by loads and stores.
#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace lcnn {
namespace {

struct Max {
    static float start() { return -__builtin_inff(); }
    static float join(float a, float b) { return larger(a, b); }
    static LCNN_INLINE vf join(vf a, vf b) { return larger(a, b); }
};
struct Sum {
    static float start() { return 0; }
    static float join(float a, float b) { return a + b; }
    static LCNN_INLINE vf join(vf a, vf b) { return a + b; }
};

template <class Op, int ROWS>
void join_rows(const float* const* rows, int64_t count, int64_t w, float* out) {
    for (int64_t x = 0; x < w; x += VL) {
        vf v = load(rows[0] + x);
#pragma GCC unroll 4
        for (int64_t r = 1; r < (ROWS ? ROWS : count); ++r) v = Op::join(v, load(rows[r] + x));
        store(out + x, v);
    }
}

/// line[x + px] for x in [-px, length - px): the reduction over the window's rows; outside the image neutral.
template <class Op>
void reduce_rows(const float* plane, int64_t h, int64_t w, int64_t ws, const Window& win, int64_t y, int64_t length,
                 float* line) {
    const float* rows[MAX_WINDOW];
    int64_t count = 0, first = y * win.sy - win.py;
    for (int64_t ky = 0; ky < win.kh; ++ky) {
        int64_t row = first + ky * win.dy;
        if (row >= 0 && row < h) rows[count++] = plane + row * ws;
    }
    float* at = line + win.px;
    if (count == 3)
        join_rows<Op, 3>(rows, count, w, at);
    else if (count == 2)
        join_rows<Op, 2>(rows, count, w, at);
    else if (count)
        join_rows<Op, 0>(rows, count, w, at);
    for (int64_t x = 0; x < win.px; ++x) line[x] = Op::start();
    for (int64_t x = count ? w : 0; x < length - win.px; ++x) at[x] = Op::start();
}

/// Whole vectors of a pooled row; returns the first column that is left. KW 0 takes the window's width at run time.
template <class Op, int SX, int KW>
int64_t join_columns(const float* line, const Window& win, float* out, int64_t out_w, bool exact, float floor,
                     float ceiling) {
    int64_t x = 0, last = exact ? out_w - VL + 1 : out_w, step = KW ? 1 : win.dx;
    vf low = splat(floor), high = splat(ceiling);
    for (; x < last; x += VL) {
        const float* at = line + x * SX;  // joined at every column; with stride 2, every other result is kept
        vf a = load(at), b = load(at + VL);
#pragma GCC unroll 4
        for (int64_t kx = 1; kx < (KW ? KW : win.kw); ++kx) {
            a = Op::join(a, load(at + kx * step));
            if (SX == 2) b = Op::join(b, load(at + VL + kx * step));
        }
        store(out + x, vmin(high, vmax(low, SX == 1 ? a : even_lanes(a, b))));
    }
    return x;
}

template <class Op>
void reduce_columns(const float* line, const Window& win, float* out, int64_t out_w, bool exact,
                    float low = -__builtin_inff(), float high = __builtin_inff()) {
    int64_t x = 0;
    if (win.sx == 2 && win.kw == 3 && win.dx == 1)
        x = join_columns<Op, 2, 3>(line, win, out, out_w, exact, low, high);
    else if (win.sx == 2 && win.kw == 2 && win.dx == 1)
        x = join_columns<Op, 2, 2>(line, win, out, out_w, exact, low, high);
    else if (win.sx == 2)
        x = join_columns<Op, 2, 0>(line, win, out, out_w, exact, low, high);
    else if (win.sx == 1)
        x = join_columns<Op, 1, 0>(line, win, out, out_w, exact, low, high);
    for (; x < out_w; ++x) {
        float v = line[x * win.sx];
        for (int64_t kx = 1; kx < win.kw; ++kx) v = Op::join(v, line[x * win.sx + kx * win.dx]);
        v = low > v ? low : v;
        out[x] = high < v ? high : v;
    }
}

int64_t line_length(const Window& win, int64_t w, int64_t out_w) {
    return std::max(w + win.px, (out_w - 1) * win.sx + (win.kw - 1) * win.dx + 1);
}

}  // namespace

void max_pool_line(const float* line, const Window& win, float* out, int64_t out_w, bool exact, float low, float high) {
    reduce_columns<Max>(line, win, out, out_w, exact, low, high);
}

void max_pool_row(const float* plane, int64_t h, int64_t w, int64_t ws, const Window& win, int64_t y, float* out,
                  int64_t out_w, float* line, bool exact) {
    reduce_rows<Max>(plane, h, w, ws, win, y, line_length(win, w, out_w), line);
    reduce_columns<Max>(line, win, out, out_w, exact);
}

void avg_pool_row(const float* plane, int64_t h, int64_t w, int64_t ws, const Window& win, int64_t y, float* out,
                  int64_t out_w, float* line, bool exact, bool count_pad, int64_t divisor) {
    reduce_rows<Sum>(plane, h, w, ws, win, y, line_length(win, w, out_w), line);
    reduce_columns<Sum>(line, win, out, out_w, exact);
    auto extent = [&](int64_t from, int64_t kernel, int64_t size, int64_t pad) {
        int64_t low = count_pad ? from : std::max<int64_t>(from, 0);
        return std::max<int64_t>(std::min(from + kernel, count_pad ? size + pad : size) - low, 1);
    };
    int64_t rows = extent(y * win.sy - win.py, win.kh, h, win.py);
    for (int64_t x = 0; x < out_w; ++x) {
        int64_t count = divisor ? divisor : rows * extent(x * win.sx - win.px, win.kw, w, win.px);
        out[x] /= float(count);
    }
}

namespace {
template <class F>
LCNN_INLINE void each(float* x, int64_t n, F f) {
    for (int64_t i = 0; i < n; i += VL) {
        if (i + VL <= n)
            store(x + i, f(load(x + i)));
        else
            store_first(x + i, f(load(x + i)), n - i);
    }
}
LCNN_INLINE vf sigmoid(vf v) { return splat(1.0f) / (splat(1.0f) + vexp(-v)); }
}  // namespace

void activate(Activation kind, float* x, int64_t n, float a, float b) {
    switch (kind) {
        case Activation::none: return;
        case Activation::clamp: return each(x, n, [=](vf v) { return vmin(splat(b), vmax(splat(a), v)); });
        case Activation::leaky: return each(x, n, [=](vf v) { return v > zero() ? v : v * splat(a); });
        case Activation::silu: return each(x, n, [](vf v) { return v * sigmoid(v); });
        case Activation::sigmoid: return each(x, n, [](vf v) { return sigmoid(v); });
        case Activation::hard_swish:
            return each(x, n, [](vf v) { return v * vmin(splat(6), vmax(zero(), v + splat(3))) * splat(1 / 6.0f); });
        case Activation::hard_sigmoid:
            return each(x, n, [](vf v) { return vmin(splat(6), vmax(zero(), v + splat(3))) * splat(1 / 6.0f); });
        case Activation::tanh: return each(x, n, [](vf v) { return splat(2) * sigmoid(v + v) - splat(1); });
        case Activation::elu:
            return each(x, n, [=](vf v) { return v > zero() ? v : splat(a) * (vexp(v) - splat(1)); });
    }
}

}  // namespace lcnn
