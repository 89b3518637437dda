// What the steps that convolve share: which outputs a thread makes, and the lookup stage under a fused max-pool.
#pragma once

#include "plan.h"
#include "vec.h"
#include "window.h"

namespace lcnn {

/// What one thread computes: pixels [from, to) of the output, which lie in rows [y0, y1), of the filters at sorted positions
/// [first, last).
struct Share {
    int64_t from, to, y0, y1, first, last;
};

/// Whether whole vectors over ``floats`` from a pixel on would reach pixel ``end``, which is another thread's.
inline bool reaches(const Tensor& t, int64_t pixel, int64_t floats, int64_t end) {
    return end < t.height * t.stride && pixel + (floats + VL - 1) / VL * VL > end;
}

/// Rows of the convolution that a thread makes; more than those of its output where they are pooled (pooled.cpp).
Span conv_rows(const Prepared& p, const Share& mine);

/// Lookups under a max-pool (pooled.cpp). ``own``: scratch behind the window; ``ready``: S is made, or not needed.
void run_pooled(WindowOfS& response, float* own, float* out, const Share& mine, bool ready);

}  // namespace lcnn
