// The kernels' interfaces. Matrices are float32 but for StoredMatrix. A "plane" is one channel on the wide grid (see plan.h): pixels are
// a flat range of it, so that neighbouring rows and their zero padding are read by the same vector.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace lcnn {

constexpr int64_t LINE = 16;  // floats of a cache line

/// What happens to an output before it is stored: + bias[row], + residual, clamp to [low, high].
struct Epilogue {
    const float* bias = nullptr;
    const float* residual = nullptr;  // at the same (row, pixel) as the output, rows residual_stride apart
    int64_t residual_stride = 0;
    float low = -__builtin_inff(), high = __builtin_inff();
    // Pixel 0 is ``column`` of a row of ``row``; bit i of inside[c] says whether a vector's lane i, from column c on, is
    // inside the image: the others are stored as zeros. Null: as they come.
    static constexpr int64_t LANES = 16;  // the most that any kernel has
    const uint16_t* inside = nullptr;
    int64_t row = 0, column = 0;
    bool exact = false;  // write no lane past the last pixel (another thread owns it)
    bool keep = false;   // sparse: write what is there past the last pixel (the output is the residual, needed later)

    bool plain() const { return !bias && !residual && low == -__builtin_inff() && high == __builtin_inff(); }
};

/// A matrix (rows x depth) cut into blocks of depth, each into panels of LCNN_ROWS rows, a panel stored depth-major.
struct PackedMatrix {
    int64_t rows = 0, depth = 0;
    std::vector<float> data;
    void pack(const float* matrix, int64_t rows, int64_t depth, int64_t stride);
    const float* panel(int64_t depth0, int64_t depth_count, int64_t row0) const {
        return data.data() + depth0 * rows + row0 * depth_count;
    }
};

constexpr int64_t DEPTH_BLOCK = 256;
constexpr int64_t AHEAD = 512;  // floats of A fetched before they are needed: large matrices lie in the last cache

/// Part of a product: a panel of up to LCNN_COLS vectors of pixels by a block of depth.
struct Strip {
    int64_t pixel = 0, cols = 0, depth0 = 0, depth = 0;
    int64_t lanes = 0;                  // to write: of a half vector, or with an exact epilogue, no more than is wanted
    bool half = false;                  // of the last vector, only the lower half is wanted
    bool first = false, last = false;   // block of depth
    bool packed = false;                // its pixels lie in the product's panel
};

/// out[r][p] = sum_k A[r][k] * input[offsets[k] + p] for rows [row0, row1) (row0 a multiple of LCNN_ROWS) and p in
/// [0, pixels), then the epilogue. ``panel`` is scratch of PANEL floats.
struct Product {
    const PackedMatrix* a = nullptr;
    const float* input = nullptr;
    const int32_t* offsets = nullptr;
    float* out = nullptr;
    int64_t out_stride = 0, pixels = 0;
    Epilogue epilogue = {};
    float* panel = nullptr;
    int64_t row0 = 0, row1 = 0;

    /// Vectors of the strip from a pixel on, where at most so many are wanted.
    int64_t vectors(int64_t pixel, int64_t most) const;
    /// Opens the part from a pixel and a depth on: its pixels are copied to the panel where that pays.
    Strip open(int64_t pixel, int64_t depth0, int64_t cols) const;
    /// Rows [row, end) of it, row a multiple of LCNN_ROWS.
    void rows(const Strip& strip, int64_t row, int64_t end) const;
};

void gemm(const Product& product);

constexpr int64_t SPLIT_CHANNELS = 16, MAX_SPLIT = 8;

/// How S of an image (channels, height, width) is made and divided: a phase holds every step_y-th row and step_x-th
/// column (1, 2, 4 or 8) from its (row, column) on, ``rows`` planes, rows of it ``stride`` floats apart, of ``lanes``.
struct Split {
    int64_t channels = 0, height = 0, width = 0, step_y = 0, step_x = 0;
    int64_t rows = 0, plane = 0, stride = 0, lanes = 0;
    std::vector<std::pair<int32_t, int32_t>> phases;
    std::vector<float> dictionary;  // (rows, channels)
};

/// Rows [from, to) of every phase, of dictionary rows [r0, r1); zeros beyond the image. ``rows``: row ``from`` of plane 0.
/// Unless ``exact``, whole vectors are written.
void split_rows(const Split& s, const float* image, float* rows, int64_t from, int64_t to, int64_t r0, int64_t r1,
                bool exact);

/// A matrix (rows x depth) column by column, in whole cache lines: a column whose input is zero need not be read.
struct ColumnMatrix {
    int64_t rows = 0, depth = 0, stride = 0, lead = 0;
    bool finite = true;  // no infinity or NaN: zero times any entry is zero
    std::vector<float> data;
    static int64_t padded(int64_t rows) { return (rows + 15) / 16 * 16; }
    void pack(const float* matrix, int64_t rows, int64_t depth);
    const float* column(int64_t k) const { return data.data() + lead + k * stride; }
};

/// sums[r - row0] = sum_k A[r][k] * x[k] for rows [row0, row1), row0 a multiple of 16, zeros up to padded(row1 - row0).
void columns(const ColumnMatrix& a, const float* x, float* sums, int64_t row0, int64_t row1);

/// The same of some images: x[b][k], dense; sums[b * stride + r - row0].
void columns(const ColumnMatrix& a, const float* x, int64_t images, float* sums, int64_t stride, int64_t row0,
             int64_t row1);

/// A matrix (rows x depth) in bfloat16, or in int8 with a scale for each row; one of the two is empty.
struct StoredMatrix {
    int64_t rows = 0, depth = 0;
    std::vector<uint16_t> halves;
    std::vector<int8_t> bytes;
    std::vector<float> scales;
};

/// sums[b * stride + r - row0] = sum_k A[r][k] * x[b][k], scales applied, x dense, for rows [row0, row1).
void products(const StoredMatrix& a, const float* x, int64_t images, float* sums, int64_t stride, int64_t row0,
              int64_t row1);

/// One nonzero of P: which float of the response to read, relative to the output pixel, and its coefficient.
struct Lookup {
    int32_t offset;
    float value;
};

/// P by filters sorted by their number of lookups, cut into blocks of dictionary rows that fit the cache.
struct SparseMatrix {
    static constexpr int64_t AHEAD = 3;  // lookups to come that may be fetched: so many stand behind the last one
    int64_t rows = 0, blocks = 1;
    std::vector<Lookup> lookups;      // block by block, filter by filter in sorted order
    std::vector<int32_t> odd;         // of joined columns, beside each lookup: where the next output pixel reads
    int64_t parts = 1;                // of each filter in a block: by kernel column, from the last one on
    std::vector<int32_t> starts;      // (blocks, rows * parts + 1)
    std::vector<int32_t> filters;     // sorted position -> filter
    int64_t block_starts() const { return rows * parts + 1; }
};

constexpr int64_t SLICED_FILTERS = 128;

/// P for a layer with one output pixel: chunks of SLICED_FILTERS filters, each cut into blocks of dictionary rows that
/// fit the cache. In a block, filters of about as many lookups stand side by side, one a lane: step i of a slice holds
/// the i-th lookup of SLICED_VL filters, zeros behind a filter's last (SELL; Kreutzer et al. 2014). A zero reads what the
/// filter's last lookup reads: where that is infinite, the sum is no number.
struct SlicedMatrix {
    int64_t rows = 0, blocks = 1;
    std::vector<int32_t> offsets;     // (steps, SLICED_VL)
    std::vector<float> values;        // (steps, SLICED_VL)
    std::vector<int32_t> starts;      // (chunks, blocks, slices): first step; one more at the end
    std::vector<int32_t> lanes;       // (chunks, blocks, SLICED_FILTERS): the filter of each lane, within its chunk
    int64_t chunks() const { return (rows + SLICED_FILTERS - 1) / SLICED_FILTERS; }
};

/// out[f * out_stride] = sum over lookups of filter f of value * response[offset], then the epilogue, for chunks
/// [first, last).
void sparse_single(const SlicedMatrix& p, const float* response, float* out, int64_t out_stride,
                   const Epilogue& epilogue, int64_t first, int64_t last);

/// The same of ``stride`` images side by side, of them [image0, image1), whole vectors of SLICED_VL: out[f][i] = sum of
/// value * response[offset][i], without residual.
void sparse_images(const SlicedMatrix& p, const float* response, float* out, int64_t stride, int64_t image0,
                   int64_t image1, const Epilogue& epilogue, int64_t first, int64_t last);

/// out[f][p] = sum over lookups of filter f of value * response[offset + p], p in [0, pixels), then the epilogue.
/// Filters at sorted positions [first, last), blocks [block0, block1) of dictionary rows: the first one starts with the
/// bias and the residual, others with what is there; the last one clamps. out and residual rows are indexed by filter.
/// ``early``: residuals and sums so far come first, so that a sum is the same beside products and alone.
struct Lookups {
    const SparseMatrix& p;
    const float* response;
    float* out;
    int64_t out_stride, pixels;
    Epilogue epilogue;
    int64_t first, last, block0, block1;
    bool early = false;
    bool fetch = false;  // beside products: what lookups to come read is fetched to the first cache

    /// Those of one block.
    Lookups of(int64_t block) const {
        Lookups one = *this;
        one.block0 = block;
        one.block1 = block + 1;
        return one;
    }
};

/// Pixels before ``from``, whole vectors of any kernel, are done already.
void sparse(const Lookups& lookups, int64_t from = 0);

constexpr int64_t SHIFTED_VECTORS = 16, MOST_ROW = 4;  // vectors of pixels at a time, of a row

/// The same by kernel column (shifted.cpp), of ``rows`` rows of ``width`` pixels, out_row floats apart. Rows of S are
/// ``row`` floats apart, one to four whole vectors, and aligned; offsets are those of rows. Of an output row, ``width``
/// floats are written, whatever the epilogue says of others. Needs LCNN_SHIFTS.
struct ShiftedLookups {
    const SparseMatrix& p;
    const float* response;
    int64_t row;
    float* out;
    int64_t out_stride, out_row, width, rows;
    Epilogue epilogue;
    int64_t first, last;
    float* sums;  // scratch of SHIFTED_VECTORS aligned vectors a filter, where there are several blocks
};

void sparse_shifted(const ShiftedLookups& lookups);

/// Products of a tile of S that are done piece by piece: ``product``, again for each of the parts that follow, a phase or
/// a group whose input and output lie a step on, or a block of rows of the one matrix.
struct Products {
    Product product;
    const PackedMatrix* matrices = nullptr;  // of part i: i % groups
    int64_t groups = 1, input_step = 0, out_step = 0;
    int64_t block_rows = 0;                  // of each part, where these are blocks of rows
    int64_t part = 0, parts = 0;             // the one at hand, one past the last
    // Lookups beside them read what part i makes in their block i, up to so many floats behind a pixel; less than 0: they
    // read what is made already.
    int64_t ahead = -1;
    bool many = false;                       // lookups beside them: twice as many at a time
    Strip strip;                             // the one at hand, and the row that is next
    int64_t row = 0;

    /// Leaves one part to be done.
    Products& only(int64_t one) {
        product.input += one * input_step;
        product.out += one * out_step;
        part = one;
        parts = one + 1;
        return *this;
    }
    /// From the last part to the first.
    void turn() {
        product.input += (parts - 1) * input_step;
        product.out += (parts - 1) * out_step;
        input_step = -input_step;
        out_step = -out_step;
    }
    /// One part's rows, block after block.
    void by_blocks(int64_t each) {
        block_rows = each;
        input_step = out_step = 0;
        parts = (matrices->rows + each - 1) / each;
    }
    /// Opens the first strip, of at most ``cols`` vectors as all that follow. Without pixels or rows, all is done.
    void start(int64_t cols);
    bool done() const { return part >= parts; }
    /// Whether so many pixels of a part are done.
    bool reached(int64_t wanted, int64_t pixels) const {
        return part > wanted || (part == wanted && strip.pixel >= pixels);
    }
    /// The rest of the strip at hand; opens the next one.
    void finish_strip(int64_t cols);
    void all();
};

constexpr int64_t BESIDE_VECTORS = 9, BESIDE_COLS = 2;  // vectors of pixels of a lookup, of a strip of the product
/// Lookups for each entry of a product's depth: about a quarter of its FMAs, or twice as many.
constexpr double beside_rate(double vectors, bool many) {
    return (vectors > 4 ? 0.5 : vectors > 2 ? 1 : vectors > 1 ? 2 : 5) * (many ? 2 : 1);
}

/// The lookups, and the products beside them: those keep the load ports busy, these the multipliers. Needs LCNN_BESIDE.
/// Products that are left at the end are done, too.
void sparse_beside(const Lookups& lookups, Products& products);

/// Rows or columns of outputs that a pooling window joins two by two: how a pair and what is before or after it make a
/// pooled row or column.
enum class Pairing { two, before, after };

/// Two rows of outputs at once, joined by their maximum in registers, for max-pooling with stride 2: rows a at
/// ``response`` and b ``below`` floats on (0: there is no b). Of every filter, at ``i * stride`` for sorted position i:
///   two (kernel 2)              line = max(a, b)
///   before (kernel 3, padded)   line = max(carry, a, b), then carry = b
///   after (kernel 3)            line = max(carry, a), then carry = max(a, b)
/// Bias is added, the clamp is left to what follows. Filters at sorted positions [first, last). Writes whole vectors.
void sparse_pair(const SparseMatrix& p, const float* response, int64_t below, int64_t pixels, const float* bias,
                 Pairing pairing, float* line, float* carry, int64_t stride, int64_t first, int64_t last);

/// What pooled rows keep while they are made from top to bottom: of every filter, at ``i * stride`` for sorted position
/// i, the row that the next pair needs; and of each of its two rows the column that the next vectors need.
struct Carried {
    float *rows, *ends;
    int64_t stride;
};

/// Two rows and two columns of outputs at once, joined in registers, for max-pooling with stride 2 in both: lane x of
/// ``even`` and ``odd`` sums is output column 2x and 2x + 1. Rows as in sparse_pair, columns by ``across`` likewise:
///   two      max(even[x], odd[x])
///   before   max(odd[x - 1], even[x], odd[x])
///   after    max(even[x], odd[x], even[x + 1])
/// out[f * out_stride + x] for x in [0, width), bias and clamp included, unless ``out`` is null. Unless the epilogue is
/// exact, whole vectors are written.
void sparse_quad(const SparseMatrix& p, const float* response, int64_t below, Pairing rows, Pairing across,
                 const Carried& carried, float* out, int64_t out_stride, int64_t width, const Epilogue& epilogue,
                 int64_t first, int64_t last);

/// Pairs of rows by kernel column, joined as in sparse_pair, then pairs of columns as in sparse_quad: of up to
/// SHIFTED_VECTORS / 2 vectors. Pooled rows [from, to) of them are stored, out_row floats apart, ``width`` pixels each.
/// carry: ``row`` floats a filter, aligned.
struct ShiftedPairs {
    const SparseMatrix& p;
    const float* response;
    int64_t row, pairs;
    bool odd;  // the last pair lacks its second row
    Pairing rows, across;
    float *carry, *out;
    int64_t out_stride, out_row, width, from, to;
    const Epilogue& e;
    int64_t first, last;
};

void shifted_pairs(const ShiftedPairs& pairs);

enum class Activation : int64_t { none, clamp, leaky, silu, sigmoid, hard_swish, hard_sigmoid, tanh, elu };

/// In place over n floats; a and b are the bounds of clamp, or the slope of leaky and elu. Writes up to the last lane.
void activate(Activation kind, float* x, int64_t n, float a, float b);

struct Window {
    int64_t kh, kw, sy, sx, py, px, dy, dx;
    /// Rows of the input from which row q is made: the first one inside, the last one.
    int64_t first(int64_t q) const { return q * sy > py ? q * sy - py : 0; }
    int64_t last(int64_t q) const { return q * sy - py + (kh - 1) * dy; }
};

constexpr int64_t MAX_WINDOW = 64;

/// One pooled row of a plane of h rows of w, ws apart. ``line`` is scratch of 2 * (pooled width + VL) * stride + kernel
/// floats. Unless ``exact``, lanes past the row's end may be written (and are sealed later).
/// Columns of a line whose rows are joined already: out[x] = clamp(max over the window). line[0] is column -px.
void max_pool_line(const float* line, const Window& win, float* out, int64_t out_w, bool exact, float low, float high);
void max_pool_row(const float* plane, int64_t h, int64_t w, int64_t ws, const Window& win, int64_t y, float* out,
                  int64_t out_w, float* line, bool exact);
void avg_pool_row(const float* plane, int64_t h, int64_t w, int64_t ws, const Window& win, int64_t y, float* out,
                  int64_t out_w, float* line, bool exact, bool count_pad, int64_t divisor);

}  // namespace lcnn
