// Fully connected steps. One image: a streaming matrix-vector product (bound by memory: every weight is read once),
// then sparse dot products. A batch: features by images, images padded to whole vectors, so that the convolution kernels
// serve with "pixels" = images; four stages, each shared by all threads of the team.
#include <algorithm>

#include "plan.h"
#include "vec.h"

namespace lcnn {
namespace {

int64_t padded(int64_t images) { return (images + VL - 1) / VL * VL; }

void transpose_in(const float* x, int64_t features, int64_t images, float* out, int64_t f0, int64_t f1) {
    int64_t stride = padded(images);
    for (int64_t f = f0; f < f1; ++f)
        for (int64_t b = 0; b < stride; ++b) out[f * stride + b] = b < images ? x[b * features + f] : 0.0f;
}

void transpose_out(const float* y, int64_t features, int64_t images, float* out, int64_t f0, int64_t f1) {
    int64_t stride = padded(images);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t f = f0; f < f1; ++f) out[b * features + f] = y[f * stride + b];
}

int64_t panel_share(int64_t rows, int part, int parts) {
    int64_t panels = (rows + LCNN_ROWS - 1) / LCNN_ROWS;
    return std::min(rows, share(panels, part, parts) * LCNN_ROWS);
}

/// Rows [row0, row1) of weights times one vector.
void rows_of(const Prepared& p, const float* x, float* out, const Epilogue& e, float* scratch, int64_t row0, int64_t row1) {
    if (p.stored.rows)
        gemv(p.stored, x, out, e, row0, row1);
    else
        gemv(p.matrices[0], x, out, e, scratch, row0, row1);
}

void one_image(const Plan& plan, const Prepared& p, const Place& at, int stage) {
    const Step& s = p.s;
    const float* x = plan.at(at, s.input);
    float* y = plan.at(at, s.output);
    Epilogue e = p.epilogue;
    if (s.second >= 0) {
        e.residual = plan.at(at, s.second);
        e.residual_stride = 1;
    }
    if (Op(s.op) == Op::linear) {
        if (stage == 0)
            rows_of(p, x, y, e, at.scratch, panel_share(s.filters, at.part, at.parts),
                 panel_share(s.filters, at.part + 1, at.parts));
        return;
    }
    float* response = at.shared;
    if (stage == 0 && s.rows)
        rows_of(p, x, response, Epilogue{}, at.scratch, panel_share(s.rows, at.part, at.parts),
             panel_share(s.rows, at.part + 1, at.parts));
    if (stage == 1)
        sparse_single(p.sparse, s.rows ? response : x, y, 1, e, share(s.filters, at.part, at.parts),
                      share(s.filters, at.part + 1, at.parts));
}

std::vector<int32_t> row_offsets(int64_t rows, int64_t stride) {
    std::vector<int32_t> offsets(rows);
    for (int64_t r = 0; r < rows; ++r) offsets[r] = int32_t(r * stride);
    return offsets;
}

/// P with its row indices turned into offsets of rows ``stride`` floats apart.
SparseMatrix spread(const SparseMatrix& p, int64_t stride) {
    SparseMatrix out = p;
    for (Lookup& l : out.lookups) l.offset = int32_t(l.offset * stride);
    return out;
}

void whole_batch(const Plan& plan, const Prepared& p, const Place& at, int stage) {
    const Step& s = p.s;
    bool lookups = Op(s.op) == Op::lookup_linear;
    int64_t stride = padded(at.images), k = lookups ? s.rows : 0;
    Place first = at;
    first.image = 0;
    const float* x = plan.at(first, s.input);
    float *xt = at.shared, *st = xt + s.width * stride, *yt = st + k * stride;
    auto from = [&](int64_t n) { return share(n, at.part, at.parts); };
    auto to = [&](int64_t n) { return share(n, at.part + 1, at.parts); };
    if (stage == 0) transpose_in(x, s.width, at.images, xt, from(s.width), to(s.width));
    if (stage == 1 && (!lookups || k)) {
        int64_t rows = lookups ? k : s.filters;
        std::vector<int32_t> offsets = row_offsets(s.width, stride);
        auto product = [&](const auto& matrix) {
            gemm(matrix, xt, offsets.data(), lookups ? st : yt, stride, stride, lookups ? Epilogue{} : p.epilogue,
                 at.scratch, panel_share(rows, at.part, at.parts), panel_share(rows, at.part + 1, at.parts));
        };
        p.stored.rows ? product(p.stored) : product(p.matrices[0]);
    }
    if (stage == 2 && lookups)
        sparse(spread(p.sparse, stride), k ? st : xt, yt, stride, stride, p.epilogue, from(s.filters), to(s.filters));
    if (stage == 3) transpose_out(yt, s.filters, at.images, plan.at(first, s.output), from(s.filters), to(s.filters));
}

}  // namespace

void run_linear(const Plan& plan, const Prepared& p, const Place& place, int stage, bool batch_wide) {
    if (batch_wide)
        whole_batch(plan, p, place, stage);
    else
        one_image(plan, p, place, stage);
}

}  // namespace lcnn
