// Fully connected steps, lookups over the whole of a small image among them (``positions`` pixels, D applied at each).
//
// One image: a streaming product (bound by memory, see columns.cpp and stored.cpp), then sparse dot products. A batch, in
// up to four stages, each shared by all threads of the team: with one pixel the sums of each image, else the input
// transposed, then the product with images, padded to whole vectors of lookups, as "pixels"; lookups over images side by
// side; the output transposed.
#include <algorithm>

#include "plan.h"
#include "vec.h"

namespace lcnn {
namespace {

/// Features [f0, f1) of vectors ``x_stride`` apart, side by side; zeros for the images that a vector lacks.
void transpose_in(const float* x, int64_t x_stride, int64_t images, float* out, int64_t f0, int64_t f1) {
    int64_t stride = padded_images(images);
    for (int64_t f = f0; f < f1; ++f)
        for (int64_t b = 0; b < stride; ++b) out[f * stride + b] = b < images ? x[b * x_stride + f] : 0.0f;
}

void transpose_out(const float* y, int64_t features, int64_t images, float* out, int64_t f0, int64_t f1) {
    int64_t stride = padded_images(images);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t f = f0; f < f1; ++f) out[b * features + f] = y[f * stride + b];
}

/// Rows are shared out in whole cache lines of the columns.
Span rows_of(int64_t rows, const Place& at) {
    Span lines(ColumnMatrix::padded(rows) / LINE, at);
    return {std::min(rows, lines.from * LINE), std::min(rows, lines.to * LINE)};
}

void finish_sums(const float* sums, float* out, const Epilogue& e, const Span& rows) {
    for (int64_t r = rows.from; r < rows.to; ++r) {
        float v = sums[r - rows.from] + (e.bias ? e.bias[r] : 0.0f);
        if (e.residual) v += e.residual[r];
        v = e.low > v ? e.low : v;
        out[r] = e.high < v ? e.high : v;
    }
}

/// Weights of layers whose input is one pixel: by columns, or in fewer bytes than float32.
bool one_pixel(const Prepared& p) { return p.columns.rows || p.stored.rows; }

/// This thread's rows of them times the input of each image: sums[b][r].
void sums_of(const Prepared& p, const float* x, int64_t images, float* sums, int64_t stride, const Span& rows) {
    if (p.stored.rows) return products(p.stored, x, images, sums, stride, rows.from, rows.to);
    if (images == 1) return columns(p.columns, x, sums, rows.from, rows.to);
    columns(p.columns, x, images, sums, stride, rows.from, rows.to);
}

/// This thread's rows of other dictionaries times ``pixels`` vectors side by side.
void product(const Prepared& p, const Place& at, const float* x, int64_t pixels, float* out, const Span& rows) {
    std::vector<int32_t> offsets(p.s.width);
    for (int64_t c = 0; c < p.s.width; ++c) offsets[c] = int32_t(c * pixels);
    Epilogue exact;
    exact.exact = true;  // what follows a row of S is the next one
    gemm({&p.matrices[0], x, offsets.data(), out, pixels, pixels, exact, at.scratch, rows.from, rows.to});
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
    bool lookups = Op(s.op) == Op::lookup_linear;
    int64_t count = lookups ? s.rows : s.filters;
    Span rows = rows_of(count, at);
    if (stage == 0 && rows.from < rows.to) {
        float* out = lookups ? at.shared : y;
        Epilogue own = lookups ? Epilogue{} : e;
        if (!one_pixel(p)) return product(p, at, x, s.positions, out, rows);
        sums_of(p, x, 1, at.scratch, 0, rows);
        finish_sums(at.scratch, out, own, rows);
    }
    Span chunks(p.sliced.chunks(), at);
    if (stage == 1) sparse_single(p.sliced, s.rows ? at.shared : x, y, 1, e, chunks.from, chunks.to);
}

/// Where a batch-wide step works: its input side by side or, with one pixel, the sums of each image; S; the output.
struct Batch {
    const Prepared& p;
    const Place& at;
    int64_t stride, features, rows;
    bool lookups;
    float *first, *response, *last;

    Batch(const Prepared& p_, const Place& at_)
        : p(p_), at(at_), stride(padded_images(at_.images)), features(p_.s.width * p_.s.positions),
          rows(Op(p_.s.op) == Op::lookup_linear ? p_.s.rows : p_.s.filters), lookups(Op(p_.s.op) == Op::lookup_linear) {
        first = at.shared;
        response = first + std::max(features, ColumnMatrix::padded(rows)) * stride;
        last = response + (rows ? ColumnMatrix::padded(rows) * p.s.positions : features) * stride;
    }
    int64_t from(int64_t n) const { return at.begin(n, at.part); }
    int64_t to(int64_t n) const { return at.begin(n, at.part + 1); }

    /// With one pixel no transposition is needed before the weights, and none of the output where there are no lookups.
    void by_image(const float* x, float* y, int stage) const {
        int64_t sums = ColumnMatrix::padded(rows);
        Span own = rows_of(rows, at);
        if (stage == 0 && own.from < own.to) {
            sums_of(p, x, at.images, first + own.from, sums, own);
            for (int64_t b = 0; b < at.images && !lookups; ++b)
                finish_sums(first + b * sums + own.from, y + b * rows, p.epilogue, own);
        }
        if (stage == 1 && lookups) transpose_in(first, sums, at.images, response, from(rows), to(rows));
    }
    void side_by_side(const float* x, int stage) const {
        float* to_first = rows ? first : response;
        if (stage == 0) transpose_in(x, features, at.images, to_first, from(features), to(features));
        Span own = rows_of(rows, at);
        if (stage == 1 && own.from < own.to) product(p, at, first, p.s.positions * stride, response, own);
    }
};

void whole_batch(const Plan& plan, const Prepared& p, const Place& at, int stage) {
    Place image = at;
    image.image = 0;
    const float* x = plan.at(image, p.s.input);
    float* y = plan.at(image, p.s.output);
    Batch batch(p, at);
    if (one_pixel(p))
        batch.by_image(x, y, stage);
    else
        batch.side_by_side(x, stage);
    if (!batch.lookups) return;  // one pixel, always: done
    if (stage == 2) {
        int64_t chunks = p.sliced.chunks(), vectors = batch.stride / SLICED_VL;
        bool by_chunks = chunks >= at.parts || chunks > vectors;  // else threads divide the images
        int64_t c0 = by_chunks ? batch.from(chunks) : 0, c1 = by_chunks ? batch.to(chunks) : chunks;
        int64_t v0 = by_chunks ? 0 : batch.from(vectors), v1 = by_chunks ? vectors : batch.to(vectors);
        sparse_images(p.sliced, batch.response, batch.last, batch.stride, v0 * SLICED_VL, v1 * SLICED_VL, p.epilogue,
                      c0, c1);
    }
    if (stage == 3)
        transpose_out(batch.last, p.s.filters, at.images, y, batch.from(p.s.filters), batch.to(p.s.filters));
}

}  // namespace

void run_linear(const Plan& plan, const Prepared& p, const Place& place, int stage, bool batch_wide) {
    if (batch_wide)
        whole_batch(plan, p, place, stage);
    else
        one_image(plan, p, place, stage);
}

}  // namespace lcnn
