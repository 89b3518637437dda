// Reads a packed plan, checks every number that a kernel will use as an address, and packs the weights. Nothing here
// trusts the file: an index out of range is an error message, never a read.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <queue>
#include <stdexcept>

#include "load.h"
#include "vec.h"

namespace lcnn {

void fail(const char* format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw std::runtime_error(text);
}

void between(const char* what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        fail("%s is %lld; expected %lld to %lld", what, (long long)value, (long long)low, (long long)high);
}

int64_t floats_of(const char* what, std::initializer_list<int64_t> counts) {
    int64_t product = 1;
    for (int64_t count : counts)
        if (__builtin_mul_overflow(product, count, &product)) product = SPACE + 1;
    between(what, product, 0, SPACE);
    return product;
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

/// Floats of the line that a pooled row is reduced to, vectors past its end included.
int64_t pool_line(const Tensor& x, const Tensor& y, const Step& s) {
    return (x.width + s.px + VL + (y.width + 3 * VL) * s.sx + s.kw * s.dx + 15) / 16 * 16;
}

std::vector<std::pair<int32_t, int32_t>> read_phases(const Reader& in, const Step& s, int64_t step_y, int64_t step_x) {
    std::vector<std::pair<int32_t, int32_t>> phases;
    const int32_t* list = in.ints("phases", s.phase_list, 2 * s.phases);
    for (int64_t i = 0; i < s.phases; ++i) {
        between("phase", list[2 * i], 0, step_y - 1);
        between("phase", list[2 * i + 1], 0, step_x - 1);
        phases.push_back({list[2 * i], list[2 * i + 1]});
    }
    return phases;
}

void check_port(const char* what, const std::vector<Port>& ports, int64_t index, int64_t floats) {
    between(what, index, 0, int64_t(ports.size()) - 1);
    if (ports[index].size() != floats)
        fail("%s %lld has %lld floats; its step uses %lld", what, (long long)index, (long long)ports[index].size(),
             (long long)floats);
}

void check_window(const Step& s) {
    between("pool window", s.kh, 1, MAX_WINDOW);
    for (int64_t v : {s.kw, s.sy, s.sx, s.dy, s.dx}) between("pool window", v, 1, 1 << 16);
    between("pool padding", s.py, 0, s.kh);
    between("pool padding", s.px, 0, s.kw);
}

namespace {

void check_tensor(const Tensor& t, const Plan& plan) {
    between("tensor channels", t.channels, 1, 1 << 24);
    if (!t.vector()) between("tensor planes", t.channels, 1, COUNT);
    between("tensor height", t.height, 1, 1 << 20);
    between("tensor width", t.width, 1, 1 << 20);
    if (t.vector()) {
        for (int64_t size : {t.height, t.width, t.stride}) between("vector size", size, 1, 1);
        between("vector offset", t.offset, 0, (t.batched ? plan.batch : plan.arena) - t.channels);
        return;
    }
    between("tensor stride", t.stride, t.width, 1 << 21);
    between("tensor plane", t.plane, t.height * t.stride + 16, LIMIT);
    if (t.batched == 2) return between("offset of a tensor that no memory holds", t.offset, 0, 0);
    between("batched tensor", t.batched, 0, 0);
    between("tensor lead", t.lead, 16, LIMIT);
    between("tensor offset", t.offset, t.lead, plan.arena);
    between("tensor end", t.plane, 1, (plan.arena - t.offset) / t.channels);
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

void prepare_shape(Plan& plan, Prepared& p, const Reader& in) {
    const Step& s = p.s;
    Op op = Op(s.op);
    if (op == Op::export_) return check_port("output", plan.outputs, s.port, tensor(plan, "input", s.input).size());
    const Tensor& y = tensor(plan, "output", s.output);
    if (op == Op::import_ || op == Op::relayout) {
        between("source height", s.conv_height, 1, 1 << 20);
        between("source width", s.conv_width, 1, 1 << 20);
        between("source channels", s.width, 1, COUNT);
        between("phases", s.phases, 1, 1 << 16);
        between("stride", s.sy, 1, 1 << 16);
        between("stride", s.sx, 1, 1 << 16);
        p.phases = read_phases(in, s, s.sy, s.sx);
        p.pixels_to = y.vector() ? 0 : int(y.height / LEAST_ROWS);
        p.by_lines = true;
        if (y.vector() && s.phases != 1) fail("a vector has no phases");
        if (y.vector() ? y.channels != s.width * s.conv_height * s.conv_width : y.channels != s.width * s.phases)
            fail("relayout changes the number of channels");
        if (op == Op::import_) {
            check_port("input", plan.inputs, s.port, s.width * s.conv_height * s.conv_width);
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
        p.scratch = floats_of("pool line", {pool_line(x, y, s)}) + GUARD;
    }
}

/// The batch-wide part handles vectors of all images: linear layers at once, the others image by image.
void check_batch_wide(const Plan& plan, const Step& s) {
    Op op = Op(s.op);
    bool linear = op == Op::linear || op == Op::lookup_linear;
    bool elementwise = op == Op::add || op == Op::multiply || op == Op::affine || op == Op::activate;
    if (!linear && !elementwise && op != Op::concat && op != Op::export_) fail("this operation cannot be batch-wide");
    if (linear && s.second >= 0) fail("a batch-wide linear layer adds no residual");
    for (int64_t t : {s.input, s.second, s.output})
        if (t >= 0 && !plan.tensors[t].batched) fail("a batch-wide step needs batched tensors");
}

void prepare(Plan& plan, Prepared& p, const Reader& in) {
    between("operation", p.s.op, 0, int64_t(Op::count) - 1);
    for (int64_t t : {p.s.input, p.s.second, p.s.output}) between("tensor", t, -1, int64_t(plan.tensors.size()) - 1);
    bool splits = Op(p.s.op) == Op::lookup && p.s.split_x;  // its input is a grid only
    for (int64_t t : {splits ? -1 : p.s.input, p.s.second, p.s.output})
        if (t >= 0 && plan.tensors[t].batched == 2)
            fail("a step uses tensor %lld, which no memory holds", (long long)t);
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

std::vector<Port> read_ports(const char* what, const int64_t* at, int64_t count) {
    std::vector<Port> ports(count);
    memcpy(ports.data(), at, count * sizeof(Port));
    for (const Port& p : ports) {
        if (p.rank != 1 && p.rank != 3) fail("%s of rank %lld; expected 1 or 3", what, (long long)p.rank);
        between(what, p.shape[0], 1, p.rank == 3 ? COUNT : 1 << 24);
        for (int i = 1; i < 3; ++i) between(what, p.shape[i], 1, p.rank == 3 ? 1 << 20 : 1);
        if (p.size() > LIMIT / 4) fail("%s of %lld floats", what, (long long)p.size());
    }
    return ports;
}

/// The header's numbers, and that the bytes are as many as they say and as they were written.
void check_header(const int64_t* words, int64_t size) {
    if (size < HEADER_WORDS * 8 || words[0] != MAGIC) fail("not an LCNN plan");
    if (words[1] != VERSION) fail("plan version %lld; this library reads %lld", (long long)words[1], (long long)VERSION);
    between("data units", words[3], 0, LIMIT);
    between("tensors", words[4], 1, COUNT);
    between("steps", words[5], 1, COUNT);
    between("inputs", words[6], 1, 1 << 16);
    between("outputs", words[7], 1, 1 << 16);
    between("arena", words[8], 0, SPACE);
    between("batch space", words[9], 0, SPACE);
    between("first batch-wide step", words[10], 0, words[5]);
    if (words[2] != HEADER_WORDS + (words[6] + words[7]) * PORT_WORDS + words[4] * TENSOR_WORDS + words[5] * STEP_WORDS)
        fail("plan header does not fit its records");
    int64_t expected = words[2] * 8 + words[3] * 4;
    if (size != expected) fail("plan of %lld bytes; its header says %lld", (long long)size, (long long)expected);
    if (words[CHECKSUM_WORD] != int64_t(checksum(words, size))) fail("damaged: the checksum does not fit the contents");
}

void prepare_steps(Plan& plan, const int64_t* at, const Reader& in) {
    for (size_t i = 0; i < plan.steps.size(); ++i) {
        memcpy(&plan.steps[i].s, at + i * STEP_WORDS, sizeof(Step));
        try {
            prepare(plan, plan.steps[i], in);
            if (int64_t(i) >= plan.first_batch_step) check_batch_wide(plan, plan.steps[i].s);
        } catch (const std::exception& e) {
            fail("step %lld: %s", (long long)i, e.what());
        }
    }
}

/// Of every step, where in the arena all ends that lives during it: from the first to the last step that touches it.
std::vector<int64_t> tops(const Plan& plan) {
    struct Life {
        int64_t first, last, end;
        bool operator<(const Life& other) const { return end < other.end; }
    };
    std::vector<Life> lives(plan.tensors.size(), {-1, -1, 0});
    int64_t count = int64_t(plan.steps.size());
    for (int64_t i = 0; i < count; ++i)
        for (int64_t t : {plan.steps[i].s.input, plan.steps[i].s.second, plan.steps[i].s.output}) {
            if (t < 0 || plan.tensors[t].batched) continue;
            const Tensor& x = plan.tensors[t];
            lives[t] = {lives[t].first < 0 ? i : lives[t].first, i, x.offset + x.channels * x.plane};
        }
    std::sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.first < b.first; });
    std::priority_queue<Life> alive;  // the highest end first
    std::vector<int64_t> found(count, 0);
    size_t next = 0;
    for (int64_t i = 0; i < count; ++i) {
        for (; next < lives.size() && lives[next].first <= i; ++next) alive.push(lives[next]);
        while (!alive.empty() && alive.top().last < i) alive.pop();
        if (!alive.empty()) found[i] = alive.top().end;
    }
    return found;
}

/// Scratch of a step lies above all that lives during it.
void place_scratch(Plan& plan) {
    std::vector<int64_t> top = tops(plan);
    plan.space = plan.arena;
    for (size_t i = 0; i < top.size(); ++i) {
        Prepared& p = plan.steps[i];
        p.scratch += PANEL + 2 * GUARD;
        p.work = (top[i] + GUARD + 15) / 16 * 16;
        plan.space = std::max(plan.space, p.work + p.scratch);
    }
}

}  // namespace

std::unique_ptr<Plan> load_plan(const void* bytes, int64_t size, std::string& error) {
    try {
        if (reinterpret_cast<uintptr_t>(bytes) % 8) fail("the plan's bytes must start at a multiple of 8");
        const int64_t* words = static_cast<const int64_t*>(bytes);
        check_header(words, size);
        auto plan = std::make_unique<Plan>();
        plan->arena = words[8];
        plan->batch = words[9];
        plan->first_batch_step = words[10];
        const int64_t* at = words + HEADER_WORDS;
        plan->inputs = read_ports("input", at, words[6]);
        plan->outputs = read_ports("output", at += words[6] * PORT_WORDS, words[7]);
        plan->tensors.resize(words[4]);
        memcpy(plan->tensors.data(), at += words[7] * PORT_WORDS, words[4] * sizeof(Tensor));
        for (const Tensor& t : plan->tensors) check_tensor(t, *plan);
        plan->steps.resize(words[5]);
        prepare_steps(*plan, at + words[4] * TENSOR_WORDS, Reader{reinterpret_cast<const float*>(words + words[2]), words[3]});
        place_scratch(*plan);
        choose_own(*plan);
        return plan;
    } catch (const std::exception& e) {
        error = e.what();
        return nullptr;
    }
}

}  // namespace lcnn
