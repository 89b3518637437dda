// The packed plan in memory: records as in the file (FORMAT.md, byte by byte), and what the loader makes of them.
//
// Wide grid: channel c of a tensor is a plane at offset + c * plane, row y at + y * stride, with stride - width zero
// columns at the end of each row and zeros from the last row to the next plane, so that a kernel reaching over an edge
// reads zeros. Every step that writes a tensor restores those between its rows, and the others where they are read ("seals").
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace lcnn {

constexpr int64_t MAGIC = 0x4e414c504e4e434cLL;  // "LCNNPLAN"
constexpr int64_t VERSION = 5, HEADER_WORDS = 16, PORT_WORDS = 4, TENSOR_WORDS = 8, STEP_WORDS = 42;
constexpr int64_t CHECKSUM_WORD = 15;
constexpr int32_t CUTS = 1 << 16;
constexpr int64_t GUARD = 1024;  // floats around an arena that kernels may read, never use

/// One image of an input or output as the caller sees it: a vector (rank 1) or channels, height, width (rank 3).
struct Port {
    int64_t rank, shape[3];  // ones beyond the rank
    int64_t size() const { return shape[0] * shape[1] * shape[2]; }
};

struct Tensor {
    int64_t batched;   // 1: a vector per image, kept for the whole batch; 2: a grid only, that no memory holds
    int64_t channels, height, width, stride, plane, offset, lead;  // lead: zeros before the first plane
    bool vector() const { return plane == 1; }
    int64_t size() const { return channels * height * width; }
};

enum class Op : int64_t {
    import_, export_, relayout, gemm, lookup, pool, adaptive, linear, lookup_linear, add, multiply, affine, activate, concat,
    count
};

struct Step {
    int64_t op, input, second, output;                 // tensors; -1 where there is none
    int64_t groups, rows, width, filters;              // k per group (0: identity), m / groups, n
    int64_t activation, act_a, act_b;                  // bounds or slope, as float bits
    int64_t bias, weights, weights_count;              // data offsets, -1 where there is none
    int64_t table, table_count, values, starts;        // (channel, dy, dx) int32 triples; values; int32 (n + 1)
    int64_t kh, kw, sy, sx, py, px, dy, dx;            // window of pool, also of a max-pool fused into lookup
    int64_t mode, count_pad, divisor;                  // pool: 0 max, 1 average
    int64_t phases, phase_list;                        // relayout and lookup on a strided input: int32 (y, x) pairs
    int64_t pooled, conv_height, conv_width;           // lookup with a fused max-pool: the size before pooling
    int64_t port, channel;                             // import, export: which array; concat: first output channel
    int64_t storage, scales;                           // linear: 0 float32, 1 bfloat16, 2 int8 with a scale per row
    int64_t positions;                                 // linear, lookup_linear: pixels of the input, D applied at each
    int64_t joined;                                    // pooled lookup: two columns of outputs at a time, see Joined
    int64_t split_y, split_x;                          // lookup: reads its port, divided into phases by these; 0: the input
};
static_assert(sizeof(Step) == STEP_WORDS * 8 && sizeof(Tensor) == TENSOR_WORDS * 8 && sizeof(Port) == PORT_WORDS * 8,
              "plan records");

/// How the threads of a team divide a lookup step: pixels, each making the S that it needs; pixels, each making its part of
/// S and borrowing what is around it; or filters, each making a part of S and borrowing all others.
enum class Division { pixels, exchanged, filters };

/// A step ready to run: weights packed for this instruction set, tiles chosen.
struct Prepared {
    Step s;
    std::vector<PackedMatrix> matrices;   // one a group
    ColumnMatrix columns;                 // linear: instead of matrices, for one pixel
    StoredMatrix stored;                  // linear: instead of both, where it has rows
    std::vector<int32_t> offsets;         // gemm: per depth entry, of group 0
    SparseMatrix sparse;
    SlicedMatrix sliced;                  // lookups with one output pixel: instead of sparse
    std::vector<float> bias, scale;
    Epilogue epilogue;                    // bias and clamp; residual is set per call
    std::vector<uint16_t> inside;         // see Epilogue; empty where the zeros of the output are restored afterwards
    int64_t up = 0, down = 0, low = 0, high = 0, reach = 0;  // of a kernel: rows above and below, columns, these aside
    int64_t tile_rows = 1, window_rows = 0, window_plane = 0, window_lead = 0;  // lookup: the sliding window of S
    int64_t planes = 0, row = 0, row_begin = 0;  // of S; floats from one row to the next; the column at its begin
    bool shifted = false;                 // lookup: by kernel column (shifted.cpp), rows of S begin at the first one
    int64_t scratch = 0, work = 0;        // floats it needs besides its tensors, and where in the arena these are free
    int64_t line = 0;                     // fused pooling: floats of its line
    bool paired = false, joins = false;   // fused pooling with stride 2: rows are joined two by two; columns may be, too,
                                          // as ``across`` says, with ``s.joined`` or by kernel column
    Pairing pairing = Pairing::two, across = Pairing::two;
    std::vector<std::pair<int32_t, int32_t>> phases;
    Split split;                          // lookup that reads its port
    int pixels_to = 0;                    // a team of up to so many threads divides pixels of the output; a larger one
                                          // filters, or channels
    int exchange_from = 0;                // lookup: from so many threads on these exchange S; 0: never
    bool by_lines = false;                // pixels are divided at cache lines, not at rows
    bool single = false;                  // lookup: one output pixel
    bool beside = false;                  // lookup: beside the products that make S of the next tile, or block
    bool many = false;                    // then: more than half as many lookups as multiplications by D
    bool fetches = false;                 // then: lookups fetch what those to come read
    bool turned = false;                  // then: blocks are phases, from the last to the first
    int64_t block_rows = 0;               // then, where blocks of dictionary rows are gone through over the whole image:
                                          // rows of each
    bool direct = false;                  // lookup: reads its input itself (identity dictionary)
    int64_t made_rows() const { return s.rows ? s.rows : planes; }  // dictionary rows of S, or all planes of a copy
    bool plain() const { return !s.split_x && !s.pooled && !single && !shifted; }
    Division division(int parts) const {
        if (parts > 1 && parts > pixels_to) return Division::filters;
        return parts > 1 && exchange_from && parts >= exchange_from ? Division::exchanged : Division::pixels;
    }
    bool extra_activation = false;        // not a clamp: applied after the epilogue
    bool around = true;                   // a later step reads zeros behind the last row of the output, or ahead of the first
    bool given = false;                   // what threads reach over around their pixels is made by each of them, not borrowed
};

struct Team;

/// Where one thread works: the arena of its image, which may be another's, its own, the batch space, its scratch.
struct Place {
    float* arena;
    float* own;
    float* batch;
    float* scratch;
    float* shared;     // scratch of all threads of a team
    float* const* arenas;  // of all threads
    int64_t image, images;
    const float* const* inputs;
    float* const* outputs;
    int part, parts;
    const int32_t* cuts;  // where each part begins, in 1 / CUTS of a whole; one more at the end

    int64_t begin(int64_t total, int of) const { return (total * cuts[of] + CUTS / 2) / CUTS; }
};

/// What a thread takes of a total.
struct Span {
    int64_t from, to;
    Span(int64_t from, int64_t to) : from(from), to(to) {}
    Span(int64_t total, const Place& at) : from(at.begin(total, at.part)), to(at.begin(total, at.part + 1)) {}
};

/// Of a tensor: a team of up to how many threads keeps apart what each makes of it, whether that is divided at cache lines,
/// whether zeros around the image are read, and how many pixels ahead of its own and behind them each makes, too.
struct Kept {
    int most;
    bool by_lines = false, zeros = false, copied = false;  // copied: by a relayout or an import
    int64_t ahead = 0, behind = 0;
};

struct Plan {
    std::vector<Tensor> tensors;
    std::vector<Prepared> steps;
    std::vector<Port> inputs, outputs;
    int64_t arena = 0, batch = 0, first_batch_step = 0;
    int64_t space = 0;           // the arena and, above what lives during each step, its scratch
    int64_t shared_rows = 0;     // floats per (padded) image shared by a team in batch-wide steps
    std::vector<Kept> kept;      // of each tensor

    /// Whether each thread of a team keeps the tensor's pixels that it makes in its own arena, and those that it borrows.
    bool owns(const Place& p, int64_t tensor) const { return p.parts > 1 && p.parts <= kept[tensor].most; }
    const float* image(const Place& p, int64_t port) const { return p.inputs[port] + p.image * inputs[port].size(); }
    float* at(const Place& p, int64_t tensor) const {
        const Tensor& t = tensors[tensor];
        if (t.batched) return p.batch + t.offset * p.images + p.image * t.channels;
        return (owns(p, tensor) ? p.own : p.arena) + t.offset;
    }
};

std::unique_ptr<Plan> load_plan(const void* bytes, int64_t size, std::string& error);

/// CRC-32 (as zlib's) of a plan's bytes but for the word that holds it; file.cpp.
uint32_t checksum(const void* bytes, int64_t size);
/// A whole file, 8-byte aligned. Throws std::runtime_error with the reason.
std::vector<int64_t> read_file(const char* path, int64_t& size);

/// Stages of a step that need all threads of a team to have finished the one before.
int stages(const Prepared& step, bool batch_wide, int parts);
void run_step(const Plan& plan, const Prepared& step, const Place& place, int stage, bool batch_wide);

void run_lookup(const Plan& plan, const Prepared& step, const Place& place, int stage);
void run_gemm(const Plan& plan, const Prepared& step, const Place& place);
void run_linear(const Plan& plan, const Prepared& step, const Place& place, int stage, bool batch_wide);

/// Of rows [y0, y1) of channel c, restores the zeros between them that the epilogue does not store, those around the image
/// where they are read.
void seal(const Prepared& step, const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1);
/// Zeros behind the last row and ahead of the first plane, if these rows are the first or last ones.
void seal_ends(const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1);
/// The activation of a step that is no clamp, over rows [y0, y1) of a plane, and zeros.
void finish(const Prepared& step, const Tensor& t, float* base, int64_t c, int64_t y0, int64_t y1);

/// The pixel of a grid where a part begins: that of a row or, ``by_lines``, of a cache line, so that vectors are whole lines
/// in every part. None but the first begins in the first row: it restores the zeros ahead of it.
inline int64_t cut(const Tensor& t, bool by_lines, const Place& at, int part) {
    if (!by_lines || t.height < at.parts) return at.begin(t.height, part) * t.stride;
    int64_t pixels = t.height * t.stride;
    if (part == 0 || part == at.parts) return part ? pixels : 0;
    return std::min(pixels, (std::max(at.begin(pixels, part), t.stride) + LINE - 1) & -LINE);
}

/// A thread's pixels of it.
inline Span pixels_of(const Tensor& t, bool by_lines, const Place& at) {
    return {cut(t, by_lines, at, at.part), cut(t, by_lines, at, at.part + 1)};
}

/// Of pixels [from, to) of a grid, those that the other threads of the team make: visit(part, first one, one past the last).
template <class Visit>
void of_others(const Tensor& t, bool by_lines, const Place& at, int64_t from, int64_t to, Visit visit) {
    for (int part = 0; part < at.parts; ++part) {
        int64_t begin = std::max(from, cut(t, by_lines, at, part)), end = std::min(to, cut(t, by_lines, at, part + 1));
        if (part != at.part && begin < end) visit(part, begin, end);
    }
}

/// Where each thread keeps its part of a tensor: the zeros around the image in its arena, if they are read.
void seal_own(const Plan& plan, const Place& at, int64_t tensor);

/// Copies pixels [from, to) of channels [c0, c1) of a tensor that others of the team made to this thread's arena, where
/// they are kept apart.
void borrow(const Plan& plan, const Place& at, int64_t tensor, int64_t from, int64_t to, int64_t c0, int64_t c1);

}  // namespace lcnn
