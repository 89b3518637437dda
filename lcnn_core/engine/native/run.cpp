// Runs a plan: the C interface, what each thread does, and the workspaces.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <sys/mman.h>

#include "lcnn_engine.h"
#include "threads.h"
#include "vec.h"

namespace lcnn {
namespace {

/// Floats in huge pages where the system grants them: planes are kilobytes apart, small pages would miss the TLB. What
/// they hold at first reaches no result: every step seals what later ones need.
class Memory {
    float* at = nullptr;
    size_t bytes = 0;

  public:
    ~Memory() { free(at); }
    float* need(int64_t floats) {
        size_t wanted = size_t(floats + 2 * GUARD) * sizeof(float);
        if (wanted > bytes) {
            free(at);
            bytes = (wanted + (2u << 20) - 1) >> 21 << 21;
            at = static_cast<float*>(aligned_alloc(2u << 20, bytes));
            if (!at) {
                bytes = 0;
                throw std::bad_alloc();
            }
            madvise(at, bytes, MADV_HUGEPAGE);
        }
        return at + GUARD;
    }
};

struct Workspace {
    std::vector<std::unique_ptr<Memory>> memory;
    Shares shares;  // of a team on one image
    float* need(size_t index, int64_t floats) {
        while (memory.size() <= index) memory.push_back(std::make_unique<Memory>());
        return memory[index]->need(floats);
    }
};

}  // namespace
}  // namespace lcnn

using namespace lcnn;

struct lcnn_plan {
    std::unique_ptr<Plan> plan;
    std::mutex lock;
    std::vector<std::unique_ptr<Workspace>> idle;
    std::vector<int32_t> fixed;  // cuts of a team, where they do not follow its threads' speed

    std::unique_ptr<Workspace> take() {
        std::lock_guard<std::mutex> hold(lock);
        if (idle.empty()) return std::make_unique<Workspace>();
        auto w = std::move(idle.back());
        idle.pop_back();
        return w;
    }
    void give(std::unique_ptr<Workspace> w) {
        std::lock_guard<std::mutex> hold(lock);
        idle.push_back(std::move(w));
    }
};

namespace {

/// Seconds this thread has had the processor: on a shared machine, waiting for others is no part of a step.
double thread_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

constexpr int64_t FEW_IMAGES = 3;  // AlexNet fast, image by image: two take 0.6 of the time, three 0.7, four 1.0

struct Run {
    const Plan& plan;
    Place base;
    std::vector<float*> arenas;
    double* seconds;
    std::vector<double> worked;  // seconds of each thread
    Barrier barrier;
    std::atomic<int64_t> next{0};

    /// Seconds that it waited for other threads.
    double steps(int64_t from, int64_t to, Place place, bool batch_wide) {
        double waited = 0;
        for (int64_t i = from; i < to; ++i) {
            double start = seconds ? thread_seconds() : 0;
            const Prepared& step = plan.steps[i];
            if (!batch_wide) place.scratch = place.own + step.work;
            int last = stages(step, batch_wide, place.parts) - 1;
            for (int stage = 0; stage <= last; ++stage) {
                run_step(plan, step, place, stage, batch_wide);
                if (stage == last) seal_own(plan, place, step.s.output);
                waited += barrier.wait(place.parts);
            }
            if (seconds) seconds[i] += thread_seconds() - start;
        }
        return waited;
    }

    /// What one thread does. Where it runs out of memory, the whole call fails.
    void thread(int part, int parts) noexcept {
        try {
            images(part, parts);
        } catch (const std::exception&) {
            barrier.give_up();
        }
    }

    void images(int part, int parts) {
        static constexpr int32_t WHOLE[] = {0, CUTS};
        Place place = base;
        auto start = Clock::now();
        int64_t split = plan.first_batch_step, end = int64_t(plan.steps.size());
        place.scratch = place.own = arenas[part];
        place.arenas = arenas.data();
        bool alone = place.images > 1;  // one image a thread, else all threads on the one image
        place.part = alone ? 0 : part;
        place.parts = alone ? 1 : parts;
        place.cuts = place.parts == 1 ? WHOLE : base.cuts;  // where the pool is busy, there is but one part, too
        place.arena = arenas[alone ? part : 0];
        place.shared = alone ? place.arena + plan.space : base.shared;
        for (int64_t image; alone && (image = next.fetch_add(1)) < place.images;) {
            place.image = image;
            steps(0, split, place, false);
        }
        if (!alone) {
            double waited = steps(0, end, place, false);
            worked[part] = seconds_since(start) - waited;
            return;
        }
        barrier.wait(parts);
        place.part = part;
        place.parts = parts;
        place.cuts = parts == 1 ? WHOLE : base.cuts;
        place.image = 0;
        place.shared = base.shared;
        batch_steps(split, end, place);
    }

    /// Linear steps take the whole batch at once, unless it is small: images side by side fill a vector badly, and weights
    /// whose input is zero would be read. The others go image by image, shared out among the threads.
    void batch_steps(int64_t from, int64_t to, Place place) {
        for (int64_t i = from; i < to; ++i) {
            Op op = Op(plan.steps[i].s.op);
            bool few = place.images <= FEW_IMAGES && !plan.steps[i].stored.rows;
            if (!few && (op == Op::linear || op == Op::lookup_linear)) {
                steps(i, i + 1, place, true);
                continue;
            }
            for (place.image = 0; place.image < place.images; ++place.image) steps(i, i + 1, place, false);
        }
    }
};

void run_chunk(lcnn_plan* handle, const float* const* inputs, float* const* outputs, int64_t images, int threads,
               double* seconds) {
    const Plan& plan = *handle->plan;
    auto work = handle->take();
    int64_t lanes = images == 1 ? 1 : padded_images(images), own = images == 1 ? 0 : plan.shared_rows + GUARD;
    if (images > 1) threads = int(std::min<int64_t>(threads, images));
    Shares even, &shares = images == 1 ? work->shares : even;
    Run r{plan, {}, {}, seconds, std::vector<double>(threads), {}, {}};
    bool fixed = images == 1 && int64_t(handle->fixed.size()) == threads + 1;
    r.base.cuts = fixed ? handle->fixed.data() : shares.cuts(threads);
    r.base.inputs = inputs;
    r.base.outputs = outputs;
    r.base.images = images;
    r.base.image = 0;
    r.base.batch = work->need(0, plan.batch * images);
    r.base.shared = work->need(1, plan.shared_rows * lanes + GUARD);
    for (int t = 0; t < threads; ++t) r.arenas.push_back(work->need(2 + t, plan.space + own));
    pool().run(threads, [&](int part, int parts) { r.thread(part, parts); });
    if (images == 1 && threads > 1 && !fixed) shares.learn(r.worked);
    handle->give(std::move(work));
    if (r.barrier.given_up()) throw std::bad_alloc();
}

constexpr int64_t BATCH_FLOATS = 1 << 26;  // of batch-wide steps: bounds their memory, and keeps offsets in 32 bits

int run(lcnn_plan* handle, const float* const* inputs, float* const* outputs, int64_t images, int threads,
        double* seconds) {
    try {
        const Plan& plan = *handle->plan;
        int64_t most = std::max<int64_t>(16, BATCH_FLOATS / std::max<int64_t>(1, plan.shared_rows) / 16 * 16);
        std::vector<const float*> in(inputs, inputs + plan.inputs.size());
        std::vector<float*> out(outputs, outputs + plan.outputs.size());
        for (int64_t done = 0; done < images; done += most) {
            int64_t count = std::min(most, images - done);
            run_chunk(handle, in.data(), out.data(), count, std::max(1, threads), seconds);
            for (size_t i = 0; i < in.size(); ++i) in[i] += count * plan.inputs[i].size();
            for (size_t i = 0; i < out.size(); ++i) out[i] += count * plan.outputs[i].size();
        }
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

/// Loads and, where that fails, tells why; no exception leaves the C interface.
template <class Load>
lcnn_plan* open(Load load, char* message, int64_t message_size) {
    std::string error;
    try {
        auto handle = std::make_unique<lcnn_plan>();
        handle->plan = load(error);
        if (handle->plan) return handle.release();
    } catch (const std::exception& e) {
        error = e.what();
    }
    if (message_size > 0) snprintf(message, size_t(message_size), "%s", error.c_str());
    return nullptr;
}

int shape_of(const std::vector<Port>& ports, int64_t index, int64_t* shape) {
    if (index < 0 || index >= int64_t(ports.size())) return 0;
    memcpy(shape, ports[size_t(index)].shape, sizeof(Port::shape));
    return int(ports[size_t(index)].rank);
}

}  // namespace

extern "C" {

lcnn_plan* lcnn_load(const void* bytes, int64_t size, char* message, int64_t message_size) {
    return open([&](std::string& error) { return load_plan(bytes, size, error); }, message, message_size);
}
lcnn_plan* lcnn_load_file(const char* path, char* message, int64_t message_size) {
    auto load = [&](std::string& error) {
        int64_t size;
        std::vector<int64_t> words = read_file(path, size);
        return load_plan(words.data(), size, error);
    };
    return open(load, message, message_size);
}
void lcnn_free(lcnn_plan* plan) { delete plan; }
int64_t lcnn_inputs(const lcnn_plan* p) { return int64_t(p->plan->inputs.size()); }
int64_t lcnn_outputs(const lcnn_plan* p) { return int64_t(p->plan->outputs.size()); }
int lcnn_input_shape(const lcnn_plan* p, int64_t i, int64_t shape[3]) { return shape_of(p->plan->inputs, i, shape); }
int lcnn_output_shape(const lcnn_plan* p, int64_t i, int64_t shape[3]) { return shape_of(p->plan->outputs, i, shape); }

int lcnn_run(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, int threads) {
    return run(plan, inputs, outputs, images, threads, nullptr);
}
int lcnn_profile(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, double* seconds) {
    return run(plan, inputs, outputs, images, 1, seconds);
}

int lcnn_divide(lcnn_plan* plan, const double* parts, int count) {
    std::vector<int32_t> cuts{0};
    double sum = 0;
    for (int i = 0; i < count; ++i) {
        if (!(parts[i] >= 0 && parts[i] <= 1)) return 1;
        cuts.push_back(int32_t(std::min(1.0, sum += parts[i]) * CUTS));
    }
    cuts.back() = count > 0 ? CUTS : 0;
    plan->fixed = std::move(cuts);
    return 0;
}

int64_t lcnn_memory(const lcnn_plan* p, int which) {
    int64_t weights = 0;
    for (const Prepared& s : p->plan->steps) {
        for (const PackedMatrix& m : s.matrices) weights += int64_t(m.data.size()) * 4;
        weights += s.columns.stride * s.columns.depth * 4 + int64_t(s.split.dictionary.size()) * 4;
        weights += int64_t(s.stored.halves.size() * 2 + s.stored.bytes.size() + s.stored.scales.size() * 4);
        weights += int64_t(s.sparse.lookups.size()) * 8 + int64_t(s.sparse.starts.size() + s.sparse.odd.size()) * 4;
        weights += int64_t(s.sliced.values.size() * 2 + s.sliced.starts.size() + s.sliced.lanes.size()) * 4;
    }
    const Plan& plan = *p->plan;
    return which == 0 ? weights : which == 1 ? (plan.arena + plan.batch) * 4 : (plan.space - plan.arena + plan.shared_rows) * 4;
}

}  // extern "C"
