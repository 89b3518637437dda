// Loading of steps with weights: checks, packing for this instruction set, tiles and blocks from the cache sizes.
#include <algorithm>
#include <cmath>

#include "load.h"
#include "vec.h"

namespace lcnn {
namespace {

/// D of every group, (groups, k, m).
const float* read_dictionary(const Step& s, const Reader& in) {
    between("dictionary rows", s.rows, 1, COUNT);
    between("dictionary width", s.width, 1, COUNT);
    between("dictionary groups", s.groups, 1, COUNT);
    if (s.weights_count != s.groups * s.rows * s.width) fail("dictionary does not have groups * k * m entries");
    return in.floats("dictionary", s.weights, s.weights_count);
}

void prepare_dictionary(Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const float* d = read_dictionary(s, in);
    p.matrices.resize(s.groups);
    for (int64_t g = 0; g < s.groups; ++g) p.matrices[g].pack(d + g * s.rows * s.width, s.rows, s.width, s.width);
}

/// Of a lookup that reads its port: S is divided as it is made, into a window of rows as those of its input's grid.
void prepare_split(const Plan& plan, Prepared& p, const Reader& in, const Tensor& x) {
    const Step& s = p.s;
    between("split rows", s.split_y, 1, 1 << 16);
    if (s.split_x != 1 && s.split_x != 2 && s.split_x != 4 && s.split_x != MAX_SPLIT)
        fail("columns are split by %lld; expected 1, 2, 4 or 8", (long long)s.split_x);
    between("split groups", s.groups, 1, 1);
    between("split channels", s.width, 1, SPLIT_CHANNELS);
    between("split phases", s.phases, 1, 1 << 16);
    between("input", s.port, 0, int64_t(plan.inputs.size()) - 1);
    const Port& image = plan.inputs[s.port];
    int64_t height = image.shape[1], width = image.shape[2];
    check_port("input", plan.inputs, s.port, s.width * height * width);
    if (x.batched != 2 || x.height != (height + s.split_y - 1) / s.split_y || x.width != (width + s.split_x - 1) / s.split_x)
        fail("the grid of a split input does not fit its port");
    const float* d = read_dictionary(s, in);
    auto phases = read_phases(in, s, s.split_y, s.split_x);
    auto ordered = phases;
    std::sort(ordered.begin(), ordered.end());
    if (std::adjacent_find(ordered.begin(), ordered.end()) != ordered.end()) fail("a phase of a split stands twice");
    int64_t lanes = p.shifted ? p.row + p.row_begin : (p.row + VL - 1) / VL * VL;  // the next rows cover what is behind one
    p.split = {s.width, height, width, s.split_y, s.split_x, s.rows, p.window_plane, p.row, lanes,
               std::move(phases), {d, d + s.weights_count}};
}

void check_groups(const Step& s, int64_t channels) {
    between("groups", s.groups, 1, channels);
    between("filters", s.filters, 1, COUNT);
    between("phases", s.phases, 0, 1 << 16);
    between("width", s.width, 1, channels);
    if (s.filters % s.groups || s.width * s.groups * std::max<int64_t>(s.phases, 1) != channels)
        fail("groups %lld, width %lld do not fit %lld channels", (long long)s.groups, (long long)s.width,
             (long long)channels);
}

/// The grid that a convolution writes before any pooling: its rows, and the stride that input and output share.
void check_grid(const Step& s, const Tensor& x, const Tensor& y, int64_t& height, int64_t& width) {
    if (x.vector() || y.vector()) fail("convolution on a vector");
    height = s.pooled ? s.conv_height : y.height;
    width = s.pooled ? s.conv_width : y.width;
    between("conv height", height, 1, 1 << 20);
    between("conv width", width, 1, s.pooled && s.joined ? 2 * x.stride : x.stride);
    if (!s.pooled && x.stride != y.stride) fail("input and output of a convolution have different row strides");
    if (y.channels != s.filters) fail("output has %lld channels", (long long)y.channels);
}

/// Every read of a flat kernel must stay inside the arena: offsets of the first plane entry to the last pixel's vector.
void check_reach(const Plan& plan, const Tensor& x, int64_t low, int64_t high, int64_t pixels) {
    if (x.offset + low < -GUARD / 2 || x.offset + high + pixels + LCNN_ACCS * LOOKUP_VL > plan.arena + GUARD / 2)
        fail("a lookup or kernel entry reads outside its input");
}

/// How a window of max-pooling joins two by two, ``padding`` before it; false where it does not.
bool pairs_in(int64_t kernel, int64_t stride, int64_t dilation, int64_t padding, Pairing& found) {
    found = kernel == 2 ? Pairing::two : padding == 1 ? Pairing::before : Pairing::after;
    return stride == 2 && dilation == 1 && (kernel == 2 ? padding == 0 : kernel == 3 && (padding == 0 || padding == 1));
}

/// Whether the pooled rows of this step are made of pairs of rows, and may be of pairs of columns, as its plan says.
void choose_pairing(Prepared& p, const Tensor& y) {
    const Step& s = p.s;
    int64_t pairs = (s.conv_height + 1) / 2;  // with padding 0, a window of 3 also sees the first row of the next pair
    p.paired = s.pooled && pairs_in(s.kh, s.sy, s.dy, s.py, p.pairing) && y.height + (p.pairing == Pairing::after) <= pairs;
    between("joined", s.joined, 0, 1);
    p.joins = p.paired && pairs_in(s.kw, s.sx, s.dx, s.px, p.across) &&
              2 * y.width + (p.across == Pairing::after) <= s.conv_width;
    if (s.joined && !p.joins) fail("this pooling cannot join columns");
}

/// Phases from the last to the first where that leaves fewer lookups for the end, which no product stands beside.
void turn_round(Prepared& p, int64_t phases, std::vector<int32_t>& blocks) {
    auto lookups = [&](int64_t phase) { return std::count(blocks.begin(), blocks.end(), int32_t(phase)); };
    p.turned = lookups(0) < lookups(phases - 1);
    for (int32_t& block : blocks) block = p.turned ? int32_t(phases) - 1 - block : block;
}

/// Which lanes of vectors from each column on are pixels of the output, where the lookup kernels are to store zeros between
/// its rows.
void choose_inside(Prepared& p, const Tensor& y) {
    if (p.s.pooled || p.single || p.shifted || p.extra_activation || y.stride == y.width) return;
    p.inside.resize(y.stride);
    for (int64_t column = 0; column < y.stride; ++column)
        for (int64_t lane = 0; lane < Epilogue::LANES; ++lane)
            p.inside[column] |= uint16_t(((column + lane) % y.stride < y.width) << lane);
    p.epilogue.inside = p.inside.data();
    p.epilogue.row = y.stride;
}

}  // namespace

void prepare_lookup(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    int64_t height, width, phases = std::max<int64_t>(s.phases, 1);
    check_groups(s, x.channels);
    check_grid(s, x, y, height, width);
    p.direct = s.rows == 0;
    if (s.split_x) between("split rows of the dictionary", s.rows, 1, COUNT);
    between("lookups", s.table_count, 0, int64_t(1) << 28);
    int64_t reads = s.joined ? 2 * s.table_count : s.table_count;  // of the even column, then of the odd one
    const int32_t* table = in.ints("lookups", s.table, 3 * reads);
    between("dictionary rows", s.rows, 0, COUNT);
    int64_t channels = p.direct ? x.channels : phases * s.groups * s.rows;
    between("planes of S", channels, 1, COUNT);
    floats_of("a row of S", {channels, x.stride});
    for (int64_t i = 0; i < reads; ++i) {
        between("lookup channel", table[3 * i], 0, channels - 1);
        between("lookup row", table[3 * i + 1], -4096, 4096);
        between("lookup column", table[3 * i + 2], -x.stride, x.stride);
        p.up = std::max<int64_t>(p.up, -table[3 * i + 1]);
        p.down = std::max<int64_t>(p.down, table[3 * i + 1]);
        p.low = std::min<int64_t>(p.low, table[3 * i + 2]);
        p.high = std::max<int64_t>(p.high, table[3 * i + 2]);
    }
    p.reach = std::max(-p.low, p.high);
    p.planes = channels;
    if (s.pooled) {
        check_window(s);
        between("pooled rows", (y.height - 1) * s.sy - s.py, -s.py, height - 1);
    }
    choose_pairing(p, y);
    p.single = !s.pooled && y.height * y.width == 1;
    p.beside = may_be_beside(p, channels);
    p.many = 2 * s.table_count > channels * s.width;
    int64_t each = choose_tiles(p, x, height, width, channels);
    choose_inside(p, y);
    std::vector<int64_t> flat(reads);
    std::vector<int32_t> blocks(s.table_count, 0), parts(s.table_count, 0);
    int64_t low = 0, high = 0;
    for (int64_t i = 0; i < reads; ++i) {
        flat[i] = table[3 * i] * (p.direct ? x.plane : p.window_plane) + table[3 * i + 1] * p.row;
        if (p.shifted)
            parts[i] = int32_t(p.high - table[3 * i + 2]);
        else
            flat[i] += table[3 * i + 2];
        low = std::min(low, flat[i]);
        high = std::max(high, flat[i]);
    }
    if (high > INT32_MAX || low < INT32_MIN) fail("tensor too large for 32-bit offsets");
    if (p.direct) check_reach(plan, x, low, high, height * x.stride);
    int64_t count = (channels + each - 1) / each;
    for (int64_t i = 0; i < s.table_count; ++i) blocks[i] = int32_t(table[3 * i] / each);
    if (p.block_rows && phases > 1) turn_round(p, count, blocks);
    if (p.shifted) p.sparse.parts = p.high - p.low + 1;
    build_sparse(p, in, s.filters, flat, count, blocks, parts);
    if (p.single) slice_sparse(p);
    int64_t scratch = 0;
    if (s.split_x) {
        prepare_split(plan, p, in, x);
    } else if (s.rows) {
        prepare_dictionary(p, in);
        p.offsets.resize(s.width);
        for (int64_t c = 0; c < s.width; ++c) p.offsets[c] = int32_t(c * x.plane);
        if (s.width * x.plane > INT32_MAX) fail("tensor too large for 32-bit offsets");
    }
    if (!p.direct)
        scratch = floats_of("window of S", {channels, p.window_plane}) + p.reach + GUARD;  // the last row's tail reads on
    if (s.joined) {
        p.line = (y.width + 1 + VL + 15) / 16 * 16;
        scratch += floats_of("pooled rows", {s.filters, p.line + 2}) + 2 * GUARD;
    } else if (p.shifted) {
        scratch += floats_of("sums", {s.filters, s.pooled ? p.row : SHIFTED_VECTORS * LOOKUP_VL}) + GUARD;
    } else if (p.paired) {
        p.line = (std::max((y.width + VL) * s.sx + VL + s.kw * s.dx, s.px + s.conv_width + VL) + 15) / 16 * 16;
        scratch += floats_of("pooled lines", {2, s.filters, p.line}) + 2 * GUARD;
    } else if (s.pooled) {
        p.line = floats_of("pool line", {pool_line(x, y, s)});
        scratch += floats_of("pooled tile", {p.tile_rows + 2 * s.kh * s.dy + s.sy, x.stride}) +
                   floats_of("pooled rows", {s.filters, s.kh * s.dy, x.stride}) + p.line + 2 * GUARD;
    }
    p.scratch = scratch;
}

void prepare_gemm(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    int64_t height, width;
    check_groups(s, x.channels);
    check_grid(s, x, y, height, width);
    if (s.pooled) fail("a dense convolution fuses no pooling");
    between("kernel entries", s.table_count, 1, int64_t(1) << 24);
    if (s.weights_count != s.filters * s.table_count) fail("weights do not have n * depth entries");
    const int32_t* table = in.ints("kernel", s.table, 3 * s.table_count);
    const float* w = in.floats("weights", s.weights, s.weights_count);
    int64_t low = 0, high = 0, last = (s.groups - 1) * s.width;
    p.pixels_to = int(y.height / LEAST_ROWS);
    p.by_lines = y.stride - y.width <= 1 && !p.extra_activation;  // a row's zeros are never another thread's in part
    for (int64_t i = 0; i < s.table_count; ++i) {
        between("kernel channel", table[3 * i], 0, x.channels - 1 - last);
        between("kernel row", table[3 * i + 1], -4096, 4096);
        between("kernel column", table[3 * i + 2], -x.stride, x.stride);
        int64_t offset = table[3 * i] * x.plane + table[3 * i + 1] * x.stride + table[3 * i + 2];
        low = std::min(low, offset);
        high = std::max(high, offset);
        p.up = std::max<int64_t>(p.up, -table[3 * i + 1]);
        p.down = std::max<int64_t>(p.down, table[3 * i + 1]);
        p.reach = std::max<int64_t>(p.reach, std::abs(table[3 * i + 2]));
        p.offsets.push_back(int32_t(offset));
    }
    if (high + last * x.plane > INT32_MAX || low < INT32_MIN) fail("tensor too large for 32-bit offsets");
    check_reach(plan, x, low, high + last * x.plane, height * x.stride);
    int64_t per_group = s.filters / s.groups;
    p.matrices.resize(s.groups);
    for (int64_t g = 0; g < s.groups; ++g)
        p.matrices[g].pack(w + g * per_group * s.table_count, per_group, s.table_count, s.table_count);
}

namespace {

/// The weights of a linear layer, or the dictionary of one with lookups: rows x width, in the storage of the step.
void prepare_rows(Prepared& p, const Reader& in, int64_t rows) {
    const Step& s = p.s;
    between("storage", s.storage, 0, 2);
    if (s.weights_count != rows * s.width) fail("weights do not have %lld x %lld entries", (long long)rows, (long long)s.width);
    if (s.storage == 0) {
        const float* weights = in.floats("weights", s.weights, s.weights_count);
        if (s.positions == 1) return p.columns.pack(weights, rows, s.width);
        p.matrices.resize(1);
        return p.matrices[0].pack(weights, rows, s.width, s.width);
    }
    p.stored.rows = rows;
    p.stored.depth = s.width;
    if (s.storage == 1) {
        auto* halves = reinterpret_cast<const uint16_t*>(in.floats("weights", s.weights, (s.weights_count + 1) / 2));
        p.stored.halves.assign(halves, halves + s.weights_count);
        return;
    }
    auto* bytes = reinterpret_cast<const int8_t*>(in.floats("weights", s.weights, (s.weights_count + 3) / 4));
    p.stored.bytes.assign(bytes, bytes + s.weights_count);
    const float* scales = in.floats("scales", s.scales, rows);
    p.stored.scales.assign(scales, scales + rows);
}

/// The lookups of a linear layer in S (k, positions) or, without a dictionary, in its input.
void prepare_linear_lookups(Prepared& p, const Reader& in) {
    const Step& s = p.s;
    int64_t channels = s.rows ? s.rows : s.width, size = floats_of("S", {channels, s.positions});
    const int32_t* table = in.ints("lookups", s.table, 3 * s.table_count);
    int64_t blocks = blocks_for(s, size), each = (channels + blocks - 1) / blocks;
    std::vector<int64_t> flat(s.table_count);
    std::vector<int32_t> block(s.table_count);
    for (int64_t i = 0; i < s.table_count; ++i) {
        between("lookup row", table[3 * i], 0, channels - 1);
        between("lookup position", table[3 * i + 1], 0, s.positions - 1);
        flat[i] = table[3 * i] * s.positions + table[3 * i + 1];
        block[i] = int32_t(table[3 * i] / each);
    }
    if (size > INT32_MAX) fail("S too large for 32-bit offsets");
    build_sparse(p, in, s.filters, flat, (channels + each - 1) / each, block, {});
    slice_sparse(p);
}

}  // namespace

void prepare_linear(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    if (!x.vector() || !y.vector()) fail("a linear layer needs vectors");
    bool lookups = Op(s.op) == Op::lookup_linear;
    between("positions", s.positions, 1, lookups && s.rows && s.storage == 0 ? COUNT : 1);
    between("width", s.width, 1, 1 << 24);
    if (s.width * s.positions != x.channels || s.filters != y.channels || s.groups != 1)
        fail("linear layer does not fit its tensors");
    between("features", s.filters, 1, 1 << 24);
    between("rows of D", s.rows, 0, COUNT);
    between("lookups", s.table_count, 0, int64_t(1) << 28);
    int64_t rows = lookups ? s.rows : s.filters;
    if (rows) prepare_rows(p, in, rows);
    if (lookups) prepare_linear_lookups(p, in);
    p.scratch = ColumnMatrix::padded(rows) + GUARD;
    int64_t first = std::max(x.channels, ColumnMatrix::padded(rows));
    int64_t response = floats_of("S of an image", {std::max(ColumnMatrix::padded(rows), rows ? 0 : x.channels), s.positions});
    plan.shared_rows = std::max(plan.shared_rows, first + response + ColumnMatrix::padded(s.filters));
}

}  // namespace lcnn
