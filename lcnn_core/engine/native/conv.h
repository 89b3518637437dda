// What the steps that convolve share: which outputs a thread makes, and the lookup stage under a fused max-pool.
#pragma once

#include "plan.h"
#include "vec.h"
#include "window.h"

namespace lcnn {

/// What one thread computes: rows [y0, y1) of the output, of the filters at sorted positions [first, last).
struct Share {
    int64_t y0, y1, first, last;
};

/// Whether whole vectors over ``floats`` from row y on would reach row ``end``, which is another thread's.
inline bool reaches(const Tensor& t, int64_t y, int64_t floats, int64_t end) {
    return end < t.height && y * t.stride + (floats + VL - 1) / VL * VL > end * t.stride;
}

/// Lookups under a max-pool (pooled.cpp). ``own``: scratch behind the window; ``ready``: S is made, or not needed.
void run_pooled(WindowOfS& response, float* own, float* out, const Share& mine, bool ready);

}  // namespace lcnn
