// How the threads of a team work on one image: they divide the rows of every step that allows it, each in an arena of its
// own, so that a core reads what it wrote itself. A line that another one wrote last takes it 20 to 130 ns, and in one
// arena what is fetched ahead of a thread's part of a plane would be the other's part. Of others, a thread borrows the few
// rows that a kernel reaches over. Steps that go by channels, or by filters where rows are few, use the first arena.
#include <climits>
#include <cstring>

#include "load.h"

namespace lcnn {
namespace {

/// A team of how many threads may keep the rows of the step's input apart.
int reads_rows_to(const Prepared& p) {
    switch (Op(p.s.op)) {
        case Op::lookup: return p.s.rows && !p.s.split_x && !p.s.pooled && !p.shifted ? p.rows_to : 0;
        case Op::gemm: return p.pointwise ? p.rows_to : 0;
        case Op::relayout: return p.rows_to;
        case Op::adaptive: return INT_MAX;
        default: return 0;
    }
}

}  // namespace

void choose_own(Plan& plan) {
    for (const Tensor& t : plan.tensors) plan.own_to.push_back(int(std::min<int64_t>(t.height, INT_MAX)));
    auto limit = [&](int64_t t, int most) {
        if (t >= 0) plan.own_to[t] = std::min(plan.own_to[t], most);
    };
    for (const Prepared& p : plan.steps) {
        limit(p.s.input, reads_rows_to(p));
        limit(p.s.second, p.rows_to);
        limit(p.s.output, p.rows_to);
    }
}

void borrow(const Plan& plan, const Place& at, int64_t tensor, int64_t from, int64_t to, int64_t c0, int64_t c1) {
    const Tensor& t = plan.tensors[tensor];
    if (!plan.owns(at, tensor)) return;
    of_others(t.height, at, from, to, [&](int part, int64_t y0, int64_t y1) {
        for (int64_t c = c0; c < c1; ++c) {
            int64_t begin = t.offset + c * t.plane + y0 * t.stride;
            memcpy(at.own + begin, at.arenas[part] + begin, (y1 - y0) * t.stride * sizeof(float));
        }
    });
}

}  // namespace lcnn
