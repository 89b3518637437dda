// Reads a packed plan, checks every number that a kernel will use as an address, and packs the weights. Nothing here
// trusts the file: an index out of range is an error message, never a read.
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <stdexcept>

#include "plan.h"
#include "vec.h"

namespace lcnn {
namespace {

[[noreturn]] void fail(const char* format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw std::runtime_error(text);
}

constexpr int64_t LIMIT = int64_t(1) << 40, COUNT = 1 << 20;  // products of three counts fit 64 bits
void between(const char* what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        fail("%s is %lld; expected %lld to %lld", what, (long long)value, (long long)low, (long long)high);
}

struct Reader {
    const float* data;
    int64_t units;
    const float* floats(const char* what, int64_t offset, int64_t count) const {
        between(what, count, 0, units);
        between(what, offset, 0, units - count);
        return data + offset;
    }
    const int32_t* ints(const char* what, int64_t offset, int64_t count) const {
        return reinterpret_cast<const int32_t*>(floats(what, offset, count));
    }
};

void check_tensor(const Tensor& t, const Plan& plan) {
    between("tensor channels", t.channels, 1, 1 << 24);
    if (!t.vector()) between("tensor planes", t.channels, 1, COUNT);
    between("tensor height", t.height, 1, 1 << 20);
    between("tensor width", t.width, 1, 1 << 20);
    if (t.vector()) {
        between("vector height", t.height * t.width * t.stride, 1, 1);
        between("vector offset", t.offset, 0, (t.batched ? plan.batch : plan.arena) - t.channels);
        return;
    }
    between("batched tensor", t.batched, 0, 0);
    between("tensor stride", t.stride, t.width, 1 << 21);
    between("tensor plane", t.plane, t.height * t.stride + 16, LIMIT);
    between("tensor lead", t.lead, 16, LIMIT);
    between("tensor offset", t.offset, t.lead, plan.arena);
    between("tensor end", t.plane, 1, (plan.arena - t.offset) / t.channels);
}

const Tensor& tensor(const Plan& plan, const char* what, int64_t index) {
    between(what, index, 0, int64_t(plan.tensors.size()) - 1);
    return plan.tensors[index];
}

void same_grid(const char* what, const Tensor& a, const Tensor& b) {
    if (a.channels != b.channels || a.height != b.height || a.width != b.width || a.vector() != b.vector() ||
        a.stride != b.stride)
        fail("%s: the two tensors of a step lie on different grids", what);
}

int64_t cache_bytes(int name, int64_t otherwise) {
    int64_t size = sysconf(name);
    return size > 0 ? size : otherwise;
}

void set_epilogue(Prepared& p, const Reader& in) {
    const Step& s = p.s;
    between("activation", s.activation, 0, int64_t(Activation::elu));
    if (s.bias >= 0) {
        between("bias", s.filters, 0, 1 << 24);
        const float* bias = in.floats("bias", s.bias, s.filters);
        p.bias.assign(bias, bias + s.filters);
        p.epilogue.bias = p.bias.data();
    }
    if (Activation(s.activation) == Activation::clamp) {
        int32_t a = int32_t(s.act_a), b = int32_t(s.act_b);
        memcpy(&p.epilogue.low, &a, 4);
        memcpy(&p.epilogue.high, &b, 4);
    }
    p.extra_activation = s.activation > int64_t(Activation::clamp);
}

/// Filters sorted by their number of lookups, the lookups cut into ``blocks`` ranges of dictionary rows.
void build_sparse(Prepared& p, const Reader& in, int64_t filters, const std::vector<int64_t>& flat, int64_t blocks,
                  const std::vector<int32_t>& block_of) {
    const int32_t* starts = in.ints("starts", p.s.starts, filters + 1);
    const float* values = in.floats("values", p.s.values, p.s.table_count);
    if (starts[0] != 0 || starts[filters] != p.s.table_count) fail("starts do not span the lookups");
    for (int64_t f = 0; f < filters; ++f)
        if (starts[f] > starts[f + 1]) fail("starts of filter %lld fall", (long long)f);
    SparseMatrix& m = p.sparse;
    m.rows = filters;
    m.blocks = blocks;
    m.filters.resize(filters);
    for (int64_t f = 0; f < filters; ++f) m.filters[f] = int32_t(f);
    std::stable_sort(m.filters.begin(), m.filters.end(), [&](int32_t a, int32_t b) {
        return starts[a + 1] - starts[a] < starts[b + 1] - starts[b];
    });
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t i = 0; i <= filters; ++i) {
            m.starts.push_back(int32_t(m.lookups.size()));
            if (i == filters) break;
            int32_t f = m.filters[i];
            size_t begin = m.lookups.size();
            for (int32_t at = starts[f]; at < starts[f + 1]; ++at)
                if (block_of[at] == block) m.lookups.push_back({int32_t(flat[at]), values[at]});
            std::sort(m.lookups.begin() + begin, m.lookups.end(),
                      [](const Lookup& a, const Lookup& b) { return a.offset < b.offset; });
        }
}

void prepare_dictionary(Prepared& p, const Reader& in) {
    const Step& s = p.s;
    between("dictionary rows", s.rows, 1, COUNT);
    between("dictionary width", s.width, 1, COUNT);
    between("dictionary groups", s.groups, 1, COUNT);
    if (s.weights_count != s.groups * s.rows * s.width) fail("dictionary does not have groups * k * m entries");
    const float* d = in.floats("dictionary", s.weights, s.weights_count);
    p.matrices.resize(s.groups);
    for (int64_t g = 0; g < s.groups; ++g) p.matrices[g].pack(d + g * s.rows * s.width, s.rows, s.width, s.width);
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
    between("conv width", width, 1, x.stride);
    if (!s.pooled && x.stride != y.stride) fail("input and output of a convolution have different row strides");
    if (y.channels != s.filters) fail("output has %lld channels", (long long)y.channels);
}

/// Every read of a flat kernel must stay inside the arena: offsets of the first plane entry to the last pixel's vector.
void check_reach(const Plan& plan, const Tensor& x, int64_t low, int64_t high, int64_t pixels) {
    if (x.offset + low < -GUARD / 2 || x.offset + high + pixels + LCNN_ACCS * VL > plan.arena + GUARD / 2)
        fail("a lookup or kernel entry reads outside its input");
}

/// Floats of the line that a pooled row is reduced to, vectors past its end included.
int64_t pool_line(const Tensor& x, const Tensor& y, const Step& s) {
    return (x.width + s.px + VL + (y.width + 3 * VL) * s.sx + s.kw * s.dx + 15) / 16 * 16;
}

void check_window(const Step& s) {
    between("pool window", s.kh, 1, MAX_WINDOW);
    for (int64_t v : {s.kw, s.sy, s.sx, s.dy, s.dx}) between("pool window", v, 1, 1 << 16);
    between("pool padding", s.py, 0, s.kh);
    between("pool padding", s.px, 0, s.kw);
}

int64_t l1_bytes() { return cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10); }
int64_t l2_bytes() { return cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10); }

/// Rows per tile: the cheapest by a model of the lookup kernel in cycles per row. A group of v vectors takes, per
/// lookup, the FMA latency or its loads (three halves each), and some cycles to start and to store; a window of S that
/// leaves half of L2 pays double for its loads.
void choose_tiles(Prepared& p, const Tensor& x, int64_t height, int64_t channels) {
    int64_t halo = p.up + p.down, row_bytes = x.stride * 4 * (p.direct ? std::max<int64_t>(channels / 4, 1) : channels);
    double lookups = double(p.s.table_count) / double(p.s.filters), best = 1e30;
    for (int64_t rows = 1; rows <= height; ++rows) {
        int64_t tiles = (height + rows - 1) / rows, vectors = (rows * x.stride + VL - 1) / VL;
        if ((height + tiles - 1) / tiles != rows) continue;
        int64_t groups = (vectors + LCNN_ACCS - 1) / LCNN_ACCS;
        double v = double(vectors) / double(groups);
        double load = row_bytes * (rows + halo) > l2_bytes() / 2 ? 1.5 : 0.75;
        double cycles = double(groups * tiles) * (lookups * std::max(4.0, load * v + 0.5) + 16 + 3 * v) + 30.0 * double(tiles);
        if (cycles < best) {
            best = cycles;
            p.tile_rows = rows;
        }
    }
    p.window_lead = (p.reach + 15) / 16 * 16;
    int64_t pooled = p.s.pooled ? p.s.kh * p.s.dy + p.s.sy : 0;  // a tile ends at a whole pooling window
    p.window_rows = std::min(height + halo, 2 * p.tile_rows + pooled + halo);
    p.window_plane = p.window_lead + (p.window_rows * x.stride + VL + 15) / 16 * 16;
    if (p.window_plane % 512 == 0) p.window_plane += 16;
}

/// Blocks of dictionary rows whose part of S, as one group of pixels reads it, fits L1; as long as a filter has enough
/// lookups in a block to pay for loading and storing its partial sums.
int64_t choose_blocks(const Prepared& p, const Tensor& x, int64_t channels) {
    int64_t pixels = std::min<int64_t>(p.tile_rows * x.stride, LCNN_ACCS * VL) + (p.up + p.down) * x.stride + p.reach;
    int64_t blocks = (channels * pixels * 4 + l1_bytes() * 5 / 8 - 1) / (l1_bytes() * 5 / 8);
    constexpr int64_t least = 12;
    return std::max<int64_t>(1, std::min(blocks, p.s.table_count / p.s.filters / least));
}

void prepare_lookup(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    int64_t height, width, phases = std::max<int64_t>(s.phases, 1);
    check_groups(s, x.channels);
    check_grid(s, x, y, height, width);
    p.direct = s.rows == 0;
    between("lookups", s.table_count, 0, int64_t(1) << 28);
    const int32_t* table = in.ints("lookups", s.table, 3 * s.table_count);
    between("dictionary rows", s.rows, 0, COUNT);
    int64_t channels = p.direct ? x.channels : phases * s.groups * s.rows;
    between("planes of S", channels, 1, COUNT);
    for (int64_t i = 0; i < s.table_count; ++i) {
        between("lookup channel", table[3 * i], 0, channels - 1);
        between("lookup row", table[3 * i + 1], -4096, 4096);
        between("lookup column", table[3 * i + 2], -x.stride, x.stride);
        p.up = std::max<int64_t>(p.up, -table[3 * i + 1]);
        p.down = std::max<int64_t>(p.down, table[3 * i + 1]);
        p.reach = std::max<int64_t>(p.reach, std::abs(table[3 * i + 2]));
    }
    if (s.pooled) {
        check_window(s);
        between("pooled rows", (y.height - 1) * s.sy - s.py, 0, height - 1);
    }
    choose_tiles(p, x, height, channels);
    std::vector<int64_t> flat(s.table_count);
    std::vector<int32_t> blocks(s.table_count, 0);
    int64_t low = 0, high = 0;
    for (int64_t i = 0; i < s.table_count; ++i) {
        flat[i] = table[3 * i] * (p.direct ? x.plane : p.window_plane) + table[3 * i + 1] * x.stride + table[3 * i + 2];
        low = std::min(low, flat[i]);
        high = std::max(high, flat[i]);
    }
    if (high > INT32_MAX || low < INT32_MIN) fail("tensor too large for 32-bit offsets");
    if (p.direct) check_reach(plan, x, low, high, height * x.stride);
    int64_t count = s.pooled ? 1 : choose_blocks(p, x, channels), each = (channels + count - 1) / count;
    for (int64_t i = 0; i < s.table_count; ++i) blocks[i] = int32_t(table[3 * i] / each);
    build_sparse(p, in, s.filters, flat, (channels + each - 1) / each, blocks);
    int64_t scratch = 0;
    if (!p.direct) {
        prepare_dictionary(p, in);
        p.offsets.resize(s.width);
        for (int64_t c = 0; c < s.width; ++c) p.offsets[c] = int32_t(c * x.plane);
        if (s.width * x.plane > INT32_MAX) fail("tensor too large for 32-bit offsets");
        scratch = channels * p.window_plane + GUARD;
    }
    if (s.pooled) {
        scratch += (p.tile_rows + 2 * s.kh * s.dy + s.sy) * x.stride + s.filters * s.kh * s.dy * x.stride +
                   pool_line(x, y, s) + 2 * GUARD;
        p.line = pool_line(x, y, s);
    }
    plan.scratch = std::max(plan.scratch, scratch);
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
    for (int64_t i = 0; i < s.table_count; ++i) {
        between("kernel channel", table[3 * i], 0, x.channels - 1 - last);
        between("kernel row", table[3 * i + 1], -4096, 4096);
        between("kernel column", table[3 * i + 2], -x.stride, x.stride);
        int64_t offset = table[3 * i] * x.plane + table[3 * i + 1] * x.stride + table[3 * i + 2];
        low = std::min(low, offset);
        high = std::max(high, offset);
        p.offsets.push_back(int32_t(offset));
    }
    if (high + last * x.plane > INT32_MAX) fail("tensor too large for 32-bit offsets");
    check_reach(plan, x, low, high + last * x.plane, height * x.stride);
    int64_t per_group = s.filters / s.groups;
    p.matrices.resize(s.groups);
    for (int64_t g = 0; g < s.groups; ++g)
        p.matrices[g].pack(w + g * per_group * s.table_count, per_group, s.table_count, s.table_count);
}

void prepare_linear(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    if (!x.vector() || !y.vector()) fail("a linear layer needs vectors");
    if (s.width != x.channels || s.filters != y.channels || s.groups != 1) fail("linear layer does not fit its tensors");
    between("features", s.filters, 1, 1 << 24);
    between("rows of D", s.rows, 0, COUNT);
    between("lookups", s.table_count, 0, int64_t(1) << 28);
    bool lookups = Op(s.op) == Op::lookup_linear;
    int64_t rows = lookups ? s.rows : s.filters;
    if (!lookups) {
        if (s.weights_count != s.filters * s.width) fail("weights do not have n * m entries");
        p.matrices.resize(1);
        p.matrices[0].pack(in.floats("weights", s.weights, s.weights_count), s.filters, s.width, s.width);
    } else {
        if (s.rows) prepare_dictionary(p, in);
        const int32_t* table = in.ints("lookups", s.table, 3 * s.table_count);
        std::vector<int64_t> flat(s.table_count);
        for (int64_t i = 0; i < s.table_count; ++i) {
            between("lookup row", table[3 * i], 0, (s.rows ? s.rows : s.width) - 1);
            flat[i] = table[3 * i];
        }
        build_sparse(p, in, s.filters, flat, 1, std::vector<int32_t>(s.table_count, 0));
    }
    plan.scratch = std::max(plan.scratch, s.width * LCNN_ROWS + rows + GUARD);
    plan.shared_rows = std::max(plan.shared_rows, s.width + rows + s.filters);
}

void prepare_elementwise(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    const Tensor &x = tensor(plan, "input", s.input), &y = tensor(plan, "output", s.output);
    Op op = Op(s.op);
    if (op == Op::concat) {
        if (x.height != y.height || x.width != y.width || x.vector() != y.vector()) fail("concat of different sizes");
        between("concat channel", s.channel, 0, y.channels - x.channels);
        return;
    }
    same_grid("elementwise", x, y);
    if (op == Op::add) same_grid("add", tensor(plan, "second", s.second), y);
    if (op == Op::multiply) {
        const Tensor& m = tensor(plan, "second", s.second);
        if (!m.vector() || m.channels != y.channels) fail("multiply needs one factor a channel");
    }
    if (op == Op::affine) {
        const float* scale = in.floats("scale", s.weights, y.channels);
        p.scale.assign(scale, scale + y.channels);
        if (s.filters != y.channels || s.bias < 0) fail("affine needs scale and shift for each channel");
    }
}

void set_port(int64_t& size, int64_t floats) {
    if (size && size != floats) fail("one input or output is used with %lld and %lld floats", (long long)size, (long long)floats);
    size = floats;
}

void prepare_shape(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    Op op = Op(s.op);
    if (op == Op::import_ || op == Op::export_) {
        int64_t ports = op == Op::import_ ? plan.inputs : plan.outputs;
        between("port", s.port, 0, ports - 1);
    }
    if (op == Op::export_) {
        const Tensor& t = tensor(plan, "input", s.input);
        set_port(plan.output_sizes[s.port], t.size());
        return;
    }
    const Tensor& y = tensor(plan, "output", s.output);
    if (op == Op::import_ || op == Op::relayout) {
        between("source height", s.conv_height, 1, 1 << 20);
        between("source width", s.conv_width, 1, 1 << 20);
        between("source channels", s.width, 1, COUNT);
        between("phases", s.phases, 1, 1 << 16);
        between("stride", s.sy, 1, 1 << 16);
        between("stride", s.sx, 1, 1 << 16);
        const int32_t* list = in.ints("phases", s.phase_list, 2 * s.phases);
        for (int64_t i = 0; i < s.phases; ++i) {
            between("phase", list[2 * i], 0, s.sy - 1);
            between("phase", list[2 * i + 1], 0, s.sx - 1);
            p.phases.push_back({list[2 * i], list[2 * i + 1]});
        }
        if (y.vector() && s.phases != 1) fail("a vector has no phases");
        if (y.vector() ? y.channels != s.width * s.conv_height * s.conv_width : y.channels != s.width * s.phases)
            fail("relayout changes the number of channels");
        if (op == Op::import_) {
            set_port(plan.input_sizes[s.port], s.width * s.conv_height * s.conv_width);
        } else {
            const Tensor& x = tensor(plan, "input", s.input);
            if (x.channels != s.width || x.height != s.conv_height || x.width != s.conv_width)
                fail("relayout source does not fit its input");
        }
        return;
    }
    const Tensor& x = tensor(plan, "input", s.input);
    if (x.channels != y.channels || x.vector()) fail("pooling does not fit its tensors");
    if (op == Op::pool) {
        check_window(s);
        between("pool divisor", s.divisor, 0, 1 << 30);
        between("pool rows", (y.height - 1) * s.sy - s.py, -s.py, x.height + s.py);
        plan.scratch = std::max(plan.scratch, pool_line(x, y, s) + GUARD);
    }
}

/// A linear step of the batch-wide part reads and writes all images at once.
void check_batch_wide(const Plan& plan, const Step& s) {
    if (Op(s.op) != Op::linear && Op(s.op) != Op::lookup_linear) return;
    if (s.second >= 0 || !plan.tensors[s.input].batched || !plan.tensors[s.output].batched)
        fail("a batch-wide linear layer needs batched tensors and no residual");
}

void prepare(Plan& plan, Prepared& p, const Reader& in) {
    between("operation", p.s.op, 0, int64_t(Op::count) - 1);
    set_epilogue(p, in);
    switch (Op(p.s.op)) {
        case Op::lookup: prepare_lookup(plan, p, in); break;
        case Op::gemm: prepare_gemm(plan, p, in); break;
        case Op::linear:
        case Op::lookup_linear: prepare_linear(plan, p, in); break;
        case Op::add:
        case Op::multiply:
        case Op::affine:
        case Op::activate:
        case Op::concat: prepare_elementwise(plan, p, in); break;
        default: prepare_shape(plan, p, in);
    }
    if (p.s.second >= 0 && (Op(p.s.op) == Op::lookup || Op(p.s.op) == Op::gemm || Op(p.s.op) == Op::linear ||
                            Op(p.s.op) == Op::lookup_linear)) {
        if (p.s.pooled) fail("a residual cannot be added before a fused pooling");
        same_grid("residual", tensor(plan, "second", p.s.second), plan.tensors[p.s.output]);
    }
}

}  // namespace

std::unique_ptr<Plan> load_plan(const void* bytes, int64_t size, std::string& error) {
    try {
        const int64_t* words = static_cast<const int64_t*>(bytes);
        if (size < HEADER_WORDS * 8 || words[0] != MAGIC) fail("not a packed plan");
        if (words[1] != VERSION) fail("plan version %lld; this library reads %lld", (long long)words[1], (long long)VERSION);
        int64_t tensors = words[4], steps = words[5];
        between("tensors", tensors, 1, 1 << 20);
        between("steps", steps, 1, 1 << 20);
        int64_t records = HEADER_WORDS + tensors * TENSOR_WORDS + steps * STEP_WORDS;
        if (words[2] != records) fail("plan header does not fit its records");
        between("data units", words[3], 0, LIMIT);
        if (size < records * 8 + words[3] * 4) fail("plan is truncated");
        auto plan = std::make_unique<Plan>();
        between("inputs", plan->inputs = words[6], 1, 1 << 16);
        between("outputs", plan->outputs = words[7], 1, 1 << 16);
        between("arena", plan->arena = words[8], 0, int64_t(1) << 34);
        between("batch space", plan->batch = words[9], 0, int64_t(1) << 34);
        between("first batch-wide step", plan->first_batch_step = words[10], 0, steps);
        plan->input_sizes.assign(plan->inputs, 0);
        plan->output_sizes.assign(plan->outputs, 0);
        Reader in{reinterpret_cast<const float*>(words + records), words[3]};
        plan->tensors.resize(tensors);
        memcpy(plan->tensors.data(), words + HEADER_WORDS, tensors * sizeof(Tensor));
        for (const Tensor& t : plan->tensors) check_tensor(t, *plan);
        const char* at = reinterpret_cast<const char*>(words + HEADER_WORDS + tensors * TENSOR_WORDS);
        plan->steps.resize(steps);
        plan->scratch = DEPTH_BLOCK * LCNN_COLS * VL + GUARD;
        for (int64_t i = 0; i < steps; ++i) {
            memcpy(&plan->steps[i].s, at + i * sizeof(Step), sizeof(Step));
            try {
                prepare(*plan, plan->steps[i], in);
                if (i >= plan->first_batch_step) check_batch_wide(*plan, plan->steps[i].s);
            } catch (const std::exception& e) {
                fail("step %lld: %s", (long long)i, e.what());
            }
        }
        plan->scratch += DEPTH_BLOCK * LCNN_COLS * VL + GUARD;
        return plan;
    } catch (const std::exception& e) {
        error = e.what();
        return nullptr;
    }
}

}  // namespace lcnn
