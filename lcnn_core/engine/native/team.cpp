// How the threads of a team work on one image: they divide the pixels of every step that allows it, each in an arena of its
// own, so that a core reads what it wrote itself. A line that another one wrote last takes it up to 130 ns, and in one
// arena what is fetched ahead of a thread's part of a plane would be the other's part. Of others, a thread borrows the few
// pixels that a kernel reaches over. Steps that go by channels, or by filters where pixels are few, use the first arena.
#include <climits>
#include <cstring>

#include "load.h"

namespace lcnn {
namespace {

/// A team of up to how many threads may keep the pixels of the step's input apart.
int reads_apart_to(const Prepared& p) {
    switch (Op(p.s.op)) {
        case Op::lookup: return p.direct ? (p.plain() ? p.pixels_to : 0) : p.single || p.s.split_x ? 0 : INT_MAX;
        case Op::gemm: return p.pixels_to;
        case Op::relayout:
        case Op::adaptive: return INT_MAX;
        default: return 0;
    }
}

/// Whether a step reads zeros around the image of its input: a kernel on the grid itself, that reaches over an edge or makes
/// rows beyond it; rows of S that begin ahead of the image's. Where S is made of pixels, its window holds the zeros.
bool reads_around(const Plan& plan, const Prepared& p) {
    bool lookup = Op(p.s.op) == Op::lookup;
    if (lookup && p.shifted) return true;
    if (Op(p.s.op) != Op::gemm && !(lookup && p.direct)) return false;
    int64_t made = p.s.pooled ? p.s.conv_height : plan.tensors[p.s.output].height;
    return p.up + p.down + p.reach > 0 || made > plan.tensors[p.s.input].height;
}

/// Copies of a grid for a kernel on it: each thread makes what it reads around its pixels.
void choose_given(Plan& plan) {
    for (Prepared& p : plan.steps) {
        bool direct = Op(p.s.op) == Op::gemm || (Op(p.s.op) == Op::lookup && p.direct);
        if (p.s.input < 0 || p.s.output < 0 || !direct || !p.by_lines) continue;
        Kept& kept = plan.kept[p.s.input];
        const Tensor &x = plan.tensors[p.s.input], &y = plan.tensors[p.s.output];
        p.given = kept.copied && x.height == y.height && x.stride == y.stride;
        if (!p.given) continue;
        kept.ahead = std::max(kept.ahead, p.up * x.stride + p.reach);
        kept.behind = std::max(kept.behind, p.down * x.stride + p.reach);
    }
}

}  // namespace

void choose_own(Plan& plan) {
    for (const Tensor& t : plan.tensors) plan.kept.push_back({int(std::min<int64_t>(t.height, INT_MAX))});
    auto limit = [&](int64_t t, int most) {
        if (t >= 0) plan.kept[t].most = std::min(plan.kept[t].most, most);
    };
    for (const Prepared& p : plan.steps) {
        limit(p.s.input, reads_apart_to(p));
        limit(p.s.second, p.pixels_to);
        limit(p.s.output, p.pixels_to);
        if (p.s.input >= 0) plan.kept[p.s.input].zeros |= reads_around(plan, p);
        if (p.s.output < 0) continue;
        plan.kept[p.s.output].by_lines = p.by_lines;
        plan.kept[p.s.output].copied = Op(p.s.op) == Op::relayout || Op(p.s.op) == Op::import_;
    }
    for (Prepared& p : plan.steps) p.around = p.s.output >= 0 && plan.kept[p.s.output].zeros;
    choose_given(plan);
}

void borrow(const Plan& plan, const Place& at, int64_t tensor, int64_t from, int64_t to, int64_t c0, int64_t c1) {
    const Tensor& t = plan.tensors[tensor];
    if (!plan.owns(at, tensor)) return;
    of_others(t, plan.kept[tensor].by_lines, at, from, to, [&](int part, int64_t begin, int64_t end) {
        for (int64_t c = c0; c < c1; ++c) {
            int64_t first = t.offset + c * t.plane + begin;
            memcpy(at.own + first, at.arenas[part] + first, (end - begin) * sizeof(float));
        }
    });
}

void seal_own(const Plan& plan, const Place& at, int64_t tensor) {
    if (tensor < 0 || !plan.owns(at, tensor) || !plan.kept[tensor].zeros) return;
    const Tensor& t = plan.tensors[tensor];
    for (int64_t c = 0; c < t.channels; ++c) seal_ends(t, at.own + t.offset, c, 0, t.height);
}

}  // namespace lcnn
