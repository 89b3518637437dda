// Everything between convolutions: import and export, changes of layout, pooling, elementwise steps. All are bound by
// memory; channels are shared out among the threads of a team.
#include <algorithm>
#include <cstring>

#include "plan.h"
#include "vec.h"

namespace lcnn {

void seal_ends(const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1) {
    if (c == 0 && y0 == 0) memset(base - t.lead, 0, t.lead * sizeof(float));
    if (y1 < t.height) return;
    float *at = base + c * t.plane + t.height * t.stride, *end = base + (c + 1) * t.plane;  // at least 16 floats
    for (; at < end - VL; at += VL) store(at, zero());
    store(end - VL, zero());
}

void seal(const Prepared& p, const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1) {
    int64_t pad = p.inside.empty() ? t.stride - t.width : 0;
    float* at = base + c * t.plane + y0 * t.stride + t.width;
    if (pad == 1) {  // the usual case
        int64_t rows = y1 - y0, stride = t.stride;
        for (; rows >= 4; rows -= 4, at += 4 * stride) at[0] = at[stride] = at[2 * stride] = at[3 * stride] = 0;
        for (; rows > 0; --rows, at += stride) *at = 0;
    } else if (pad) {
        for (int64_t y = y0; y < y1; ++y, at += t.stride) memset(at, 0, pad * sizeof(float));
    }
    if (p.around) seal_ends(t, base, c, y0, y1);
}

void finish(const Prepared& p, const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1) {
    if (p.extra_activation) {
        float a, b;
        int32_t bits_a = int32_t(p.s.act_a), bits_b = int32_t(p.s.act_b);
        memcpy(&a, &bits_a, 4);
        memcpy(&b, &bits_b, 4);
        activate(Activation(p.s.activation), base + c * t.plane + y0 * t.stride, (y1 - y0) * t.stride, a, b);
    }
    seal(p, t, base, c, y0, y1);
}

namespace {

/// ``vectors`` vectors of every SX-th float of each of ``rows`` rows.
template <int SX>
void copy_rows(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t vectors) {
    for (; rows > 0; --rows, from += from_stride, to += to_stride)
        for (int64_t v = 0; v < vectors * VL; v += VL) {
            vf phases[SX];
            divide<SX>(from + SX * v, phases);
            store(to + v, phases[0]);
        }
}

/// A phase of a grid, and how it is copied: every sx-th pixel of every sy-th row from (py, px) on.
struct Phase {
    int64_t sx, step, begin;            // floats from one row to the next, to the first pixel
    int64_t rows, count, vectors;       // inside the source; vectors of a row
    Phase(const Step& s, const Tensor& t, std::pair<int32_t, int32_t> at, int64_t stride)
        : sx(s.sx), step(s.sy * stride), begin(at.first * stride + at.second),
          rows(inside(s.conv_height, at.first, s.sy, t.height)), count(inside(s.conv_width, at.second, s.sx, t.width)),
          vectors((count + VL - 1) / VL) {}

    static int64_t inside(int64_t size, int64_t at, int64_t step, int64_t most) {
        return at < size ? std::min(most, (size - at + step - 1) / step) : 0;
    }
};

/// Some rows of it. Vectors may write past the end of a row (rows are written in ascending order, and the output is sealed
/// afterwards) and read past it, but not past ``end``: such last rows go pixel by pixel.
void copy_phase(const Phase& p, const float* from, const Tensor& t, float* to, const Span& wanted, const float* end) {
    int64_t y0 = wanted.from, rows = std::min(wanted.to, p.rows), fast = y0;
    from += p.begin;
    if (p.sx == 1 || p.sx == 2 || p.sx == 4) {
        fast = std::max(y0, rows);
        while (fast > y0 && from + (fast - 1) * p.step + p.sx * p.vectors * VL > end) --fast;
    }
    const float* first = from + y0 * p.step;
    float* out = to + y0 * t.stride;
    if (p.sx == 1) copy_rows<1>(first, p.step, out, t.stride, fast - y0, p.vectors);
    if (p.sx == 2) copy_rows<2>(first, p.step, out, t.stride, fast - y0, p.vectors);
    if (p.sx == 4) copy_rows<4>(first, p.step, out, t.stride, fast - y0, p.vectors);
    for (int64_t y = fast; y < rows; ++y)
        for (int64_t x = 0; x < p.count; ++x) to[y * t.stride + x] = from[y * p.step + x * p.sx];
    if (rows == wanted.to && p.count == t.width) return;
    for (int64_t y = y0; y < wanted.to; ++y)
        for (int64_t x = y < rows ? p.count : 0; x < t.width; ++x) to[y * t.stride + x] = 0;
}

/// The pixels of a relayout's output that a thread of a team makes where each keeps its own.
Span copied_pixels(const Plan& plan, const Prepared& p, const Place& at) {
    const Tensor& y = plan.tensors[p.s.output];
    const Kept& kept = plan.kept[p.s.output];
    Span mine = pixels_of(y, p.by_lines, at);
    if (mine.from == mine.to) return mine;
    return {std::max<int64_t>(0, mine.from - kept.ahead), std::min(mine.to + kept.behind, y.height * y.stride)};
}

/// Planes of ``width`` channels to the output's grid, one output plane per phase and channel; or to a dense vector. Threads
/// divide pixels, or channels; where each keeps its own, rows of which it makes a part are copied as a whole.
void relayout(const Plan& plan, const Prepared& p, const Place& at, const float* source, int64_t plane, int64_t stride,
              const float* end) {
    const Step& s = p.s;
    const Tensor& y = plan.tensors[s.output];
    float* out = plan.at(at, s.output);
    Span channels(s.width, at), rows(0, y.height);
    if (y.vector()) {
        for (int64_t c = channels.from; c < channels.to; ++c)
            for (int64_t row = 0; row < s.conv_height; ++row)
                memcpy(out + (c * s.conv_height + row) * s.conv_width, source + c * plane + row * stride,
                       s.conv_width * sizeof(float));
        return;
    }
    if (plan.owns(at, s.output)) {
        Span pixels = copied_pixels(plan, p, at);
        channels = {0, s.width};
        rows = {pixels.from / y.stride, (pixels.to + y.stride - 1) / y.stride};
    }
    std::vector<Phase> phases;
    for (auto phase : p.phases) phases.emplace_back(s, y, phase, stride);
    for (int64_t c = channels.from; c < channels.to; ++c)  // the phases of a channel one after the other: it is in the cache
        for (size_t i = 0; i < phases.size(); ++i) {
            int64_t channel = int64_t(i) * s.width + c;
            copy_phase(phases[i], source + c * plane, y, out + channel * y.plane, rows, end);
            seal(p, y, out, channel, rows.from, rows.to);
        }
}

void run_relayout(const Plan& plan, const Prepared& p, const Place& at) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    if (plan.owns(at, s.output)) {
        Span pixels = copied_pixels(plan, p, at);
        int64_t row = s.sy * x.stride;  // between two rows that are read; a pixel behind one may lie beyond it
        auto source = [&](int64_t pixel) { return pixel / y.stride * row + std::min(pixel % y.stride * s.sx, row); };
        int64_t farthest = 0;
        for (auto [down, right] : p.phases) farthest = std::max(farthest, down * x.stride + right);
        borrow(plan, at, s.input, source(pixels.from), source(pixels.to - 1) + farthest + 1, 0, x.channels);
    } else {
        Span channels(x.channels, at);
        borrow(plan, at, s.input, 0, x.height * x.stride, channels.from, channels.to);
    }
    const float* image = plan.at(at, s.input);  // an arena has a guard behind its last plane
    relayout(plan, p, at, image, x.plane, x.stride, image + x.channels * x.plane + GUARD / 2);
}

void run_export(const Plan& plan, const Prepared& p, const Place& at) {
    const Tensor& t = plan.tensors[p.s.input];
    const float* from = plan.at(at, p.s.input);
    float* out = at.outputs[p.s.port] + at.image * t.size();
    if (t.vector()) {
        Span span(t.channels, at);
        memcpy(out + span.from, from + span.from, (span.to - span.from) * sizeof(float));
        return;
    }
    Span span(t.channels, at);
    for (int64_t c = span.from; c < span.to; ++c)
        for (int64_t y = 0; y < t.height; ++y)
            memcpy(out + (c * t.height + y) * t.width, from + c * t.plane + y * t.stride, t.width * sizeof(float));
}

void run_pool(const Plan& plan, const Prepared& p, const Place& at) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    Window win{s.kh, s.kw, s.sy, s.sx, s.py, s.px, s.dy, s.dx};
    float* line = at.scratch + 64;
    Span span(y.channels, at);
    for (int64_t c = span.from; c < span.to; ++c) {
        const float* plane = plan.at(at, s.input) + c * x.plane;
        float* out = plan.at(at, s.output) + c * y.plane;
        for (int64_t row = 0; row < y.height; ++row) {
            if (s.mode == 0)
                max_pool_row(plane, x.height, x.width, x.stride, win, row, out + row * y.stride, y.width, line,
                             y.vector());
            else
                avg_pool_row(plane, x.height, x.width, x.stride, win, row, out + row * y.stride, y.width, line,
                             y.vector(), s.count_pad, s.divisor);
        }
        if (!y.vector()) finish(p, y, plan.at(at, s.output), c, 0, y.height);
    }
}

/// Reduction of columns [x0, x1) of rows [y0, y1) of a plane: the sum in float lanes, or the maximum.
float reduce_cell(const float* plane, int64_t stride, int64_t y0, int64_t y1, int64_t x0, int64_t x1, bool sum) {
    vf lanes = splat(sum ? 0.0f : -__builtin_inff());
    float rest = lanes[0];
    for (int64_t y = y0; y < y1; ++y) {
        const float* row = plane + y * stride;
        int64_t x = x0;
        for (; x + VL <= x1; x += VL) lanes = sum ? lanes + load(row + x) : larger(lanes, load(row + x));
        for (; x < x1; ++x) rest = sum ? rest + row[x] : larger(rest, row[x]);
    }
    float left[VL];
    store(left, lanes);
    for (int half = VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) left[i] = sum ? left[i] + left[i + half] : larger(left[i], left[i + half]);
    return sum ? rest + left[0] : larger(rest, left[0]);
}

/// Output cell (i, j) covers rows floor(i h / oh) to ceil((i + 1) h / oh), as PyTorch's adaptive pooling. A whole image
/// is summed flat, its zero padding included.
void run_adaptive(const Plan& plan, const Prepared& p, const Place& at) {
    const Tensor &x = plan.tensors[p.s.input], &y = plan.tensors[p.s.output];
    Span span(y.channels, at);
    borrow(plan, at, p.s.input, 0, x.height * x.stride, span.from, span.to);
    bool sum = p.s.mode != 0;
    for (int64_t c = span.from; c < span.to; ++c) {
        const float* plane = plan.at(at, p.s.input) + c * x.plane;
        float* out = plan.at(at, p.s.output) + c * y.plane;
        if (sum && y.height * y.width == 1) {
            out[0] = reduce_cell(plane, 0, 0, 1, 0, x.height * x.stride, true) / float(x.height * x.width);
        } else {
            for (int64_t i = 0; i < y.height; ++i)
                for (int64_t j = 0; j < y.width; ++j) {
                    int64_t y0 = i * x.height / y.height, y1 = ((i + 1) * x.height + y.height - 1) / y.height;
                    int64_t x0 = j * x.width / y.width, x1 = ((j + 1) * x.width + y.width - 1) / y.width;
                    float v = reduce_cell(plane, x.stride, y0, y1, x0, x1, sum);
                    out[i * y.stride + j] = sum ? v / float((y1 - y0) * (x1 - x0)) : v;
                }
        }
        if (!y.vector()) finish(p, y, plan.at(at, p.s.output), c, 0, y.height);
    }
}

/// Elementwise over one run of n floats of channel c.
void elementwise(const Prepared& p, const float* x, const float* second, float* y, int64_t n, int64_t c) {
    const Epilogue& e = p.epilogue;
    vf low = splat(e.low), high = splat(e.high), scale = splat(1), shift = zero();
    if (Op(p.s.op) == Op::affine) {
        scale = splat(p.scale[c]);
        shift = splat(e.bias[c]);
    }
    if (Op(p.s.op) == Op::multiply) scale = splat(second[c]);
    bool add = Op(p.s.op) == Op::add;
    for (int64_t i = 0; i < n; i += VL) {
        vf v = load(x + i) * scale + shift;
        if (add) v += load(second + i);
        v = vmin(high, vmax(low, v));
        if (i + VL <= n)
            store(y + i, v);
        else
            store_first(y + i, v, n - i);
    }
}

void vector_elementwise(const Plan& plan, const Prepared& p, const Place& at) {
    const Tensor& t = plan.tensors[p.s.output];
    const float* x = plan.at(at, p.s.input);
    const float* second = p.s.second >= 0 ? plan.at(at, p.s.second) : nullptr;
    float* y = plan.at(at, p.s.output);
    Span span(t.channels, at);
    int64_t n = span.to - span.from;
    if (n == 0) return;
    if (Op(p.s.op) == Op::add || Op(p.s.op) == Op::activate) {
        elementwise(p, x + span.from, second ? second + span.from : nullptr, y + span.from, n, 0);
    } else {
        for (int64_t c = span.from; c < span.to; ++c) {
            float scale = Op(p.s.op) == Op::affine ? p.scale[c] : second[c];
            float v = x[c] * scale + (Op(p.s.op) == Op::affine ? p.bias[c] : 0.0f);
            v = p.epilogue.low > v ? p.epilogue.low : v;
            y[c] = p.epilogue.high < v ? p.epilogue.high : v;
        }
    }
    if (p.extra_activation) {
        float a, b;
        int32_t bits_a = int32_t(p.s.act_a), bits_b = int32_t(p.s.act_b);
        memcpy(&a, &bits_a, 4);
        memcpy(&b, &bits_b, 4);
        activate(Activation(p.s.activation), y + span.from, n, a, b);
    }
}

void run_elementwise(const Plan& plan, const Prepared& p, const Place& at) {
    const Step& s = p.s;
    const Tensor &x = plan.tensors[s.input], &y = plan.tensors[s.output];
    if (y.vector()) return vector_elementwise(plan, p, at);
    Span span(y.channels, at);
    for (int64_t c = span.from; c < span.to; ++c) {
        const float* second = nullptr;
        if (Op(s.op) == Op::add) second = plan.at(at, s.second) + c * plan.tensors[s.second].plane;
        if (Op(s.op) == Op::multiply) second = plan.at(at, s.second);
        elementwise(p, plan.at(at, s.input) + c * x.plane, second, plan.at(at, s.output) + c * y.plane,
                    y.height * y.stride, c);
        finish(p, y, plan.at(at, s.output), c, 0, y.height);
    }
}

void run_concat(const Plan& plan, const Prepared& p, const Place& at) {
    const Tensor &x = plan.tensors[p.s.input], &y = plan.tensors[p.s.output];
    const float* from = plan.at(at, p.s.input);
    float* out = plan.at(at, p.s.output);
    Span span(x.channels, at);
    for (int64_t c = span.from; c < span.to; ++c) {
        if (y.vector()) {
            out[p.s.channel + c] = from[c];
            continue;
        }
        for (int64_t row = 0; row < x.height; ++row)
            memcpy(out + (p.s.channel + c) * y.plane + row * y.stride, from + c * x.plane + row * x.stride,
                   x.width * sizeof(float));
        seal(p, y, out, p.s.channel + c, 0, y.height);
    }
}

}  // namespace

int stages(const Prepared& p, bool batch_wide, int parts) {
    if (Op(p.s.op) == Op::lookup && (p.direct || p.division(parts) == Division::pixels)) return 1;
    if (Op(p.s.op) == Op::lookup) return p.block_rows ? int(p.sparse.blocks) + 1 : 2;
    if (Op(p.s.op) != Op::lookup_linear) return 1;
    return batch_wide ? 4 : 2;
}

void run_step(const Plan& plan, const Prepared& p, const Place& at, int stage, bool batch_wide) {
    const Step& s = p.s;
    switch (Op(s.op)) {
        case Op::import_: {
            int64_t plane = s.conv_height * s.conv_width;
            const float* image = at.inputs[s.port] + at.image * s.width * plane;
            return relayout(plan, p, at, image, plane, s.conv_width, image + s.width * plane);
        }
        case Op::export_: return run_export(plan, p, at);
        case Op::relayout: return run_relayout(plan, p, at);
        case Op::gemm: return run_gemm(plan, p, at);
        case Op::lookup: return run_lookup(plan, p, at, stage);
        case Op::pool: return run_pool(plan, p, at);
        case Op::adaptive: return run_adaptive(plan, p, at);
        case Op::linear:
        case Op::lookup_linear: return run_linear(plan, p, at, stage, batch_wide);
        case Op::concat: return run_concat(plan, p, at);
        default: return run_elementwise(plan, p, at);
    }
}

}  // namespace lcnn
