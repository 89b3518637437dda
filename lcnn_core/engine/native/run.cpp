// Runs a plan: the C interface, the team of threads, and the workspaces.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <pthread.h>
#include <sys/mman.h>

#include "lcnn_engine.h"
#include "plan.h"
#include "vec.h"

namespace lcnn {
namespace {

/// Sense-reversing barrier; spins a little, then gives the core away (another process may need it). A thread that fails
/// breaks it, so that the others fail too instead of waiting.
class Barrier {
    std::atomic<int> waiting{0}, round{0};
    std::atomic<bool> broken{false};

  public:
    void give_up() { broken.store(true); }
    bool given_up() const { return broken.load(); }
    void wait(int parts) {
        if (parts == 1) return;
        int now = round.load(std::memory_order_acquire);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; ++spins) {
            if (given_up()) throw std::bad_alloc();
            if (spins > 4000) std::this_thread::yield();
        }
    }
};

/// Looks for up to 30 microseconds whether ``ready``: to sleep and be woken takes as long.
template <class Ready>
void look(Ready ready) {
    using Clock = std::chrono::steady_clock;
    for (auto end = Clock::now() + std::chrono::microseconds(30); !ready() && Clock::now() < end;) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

/// Threads that live as long as the process. One call at a time uses them; a call that finds them busy runs alone. Jobs
/// throw nothing. After a job of no more threads than cores, these look for the next one before they sleep.
class Pool {
    std::mutex users, lock;
    std::condition_variable wake, done;
    const std::function<void(int, int)>* job = nullptr;
    int started = 0, parts = 0;
    std::atomic<int> left{0};
    std::atomic<int64_t> generation{0};
    const int cores = int(std::thread::hardware_concurrency());

    void work(int index) {
        int64_t seen = 0;
        bool used = true;
        auto called = [&] { return generation != seen; };
        for (;;) {
            if (used) look(called);
            std::unique_lock<std::mutex> hold(lock);
            wake.wait(hold, called);
            seen = generation;
            used = index < parts && parts <= cores;
            if (index >= parts) continue;
            auto* current = job;
            int total = parts;
            hold.unlock();
            (*current)(index, total);
            hold.lock();
            if (--left == 0) done.notify_one();
        }
    }

  public:
    void run(int threads, const std::function<void(int, int)>& f) {
        std::unique_lock<std::mutex> mine(users, std::try_to_lock);
        if (threads <= 1 || !mine.owns_lock()) return f(0, 1);
        {
            std::lock_guard<std::mutex> hold(lock);
            for (; started < threads - 1; ++started) {
                int index = started + 1;
                std::thread([this, index] { work(index); }).detach();
            }
            job = &f;
            parts = threads;
            left = threads - 1;
            ++generation;
        }
        wake.notify_all();
        f(0, threads);
        auto finished = [&] { return left == 0; };
        if (threads <= cores) look(finished);
        std::unique_lock<std::mutex> hold(lock);
        done.wait(hold, finished);
    }
};

/// Never destroyed: its threads may outlive main. A forked process has none of them, and starts its own.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
    static int registered = [] {
        the_pool = new Pool;
        return pthread_atfork(nullptr, nullptr, [] { the_pool = new Pool; });
    }();
    (void)registered;
    return *the_pool;
}

/// Floats in huge pages where the system grants them: planes are kilobytes apart, small pages would miss the TLB. What
/// they hold at first is never used: every step seals what it writes.
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
    Barrier barrier;
    std::atomic<int64_t> next{0};

    void steps(int64_t from, int64_t to, Place place, bool batch_wide) {
        for (int64_t i = from; i < to; ++i) {
            double start = seconds ? thread_seconds() : 0;
            const Prepared& step = plan.steps[i];
            if (!batch_wide) place.scratch = place.own + step.work;
            for (int stage = 0; stage < stages(step, batch_wide, place.parts); ++stage) {
                run_step(plan, step, place, stage, batch_wide);
                barrier.wait(place.parts);
            }
            if (seconds) seconds[i] += thread_seconds() - start;
        }
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
        Place place = base;
        int64_t split = plan.first_batch_step, end = int64_t(plan.steps.size());
        place.scratch = place.own = arenas[part];
        place.arenas = arenas.data();
        bool alone = place.images > 1;  // one image a thread, else all threads on the one image
        place.part = alone ? 0 : part;
        place.parts = alone ? 1 : parts;
        place.arena = arenas[alone ? part : 0];
        place.shared = alone ? place.arena + plan.space : base.shared;
        for (int64_t image; alone && (image = next.fetch_add(1)) < place.images;) {
            place.image = image;
            steps(0, split, place, false);
        }
        if (!alone) steps(0, end, place, false);
        if (!alone) return;
        barrier.wait(parts);
        place.part = part;
        place.parts = parts;
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
    Run r{plan, {}, {}, seconds, {}, {}};
    r.base.inputs = inputs;
    r.base.outputs = outputs;
    r.base.images = images;
    r.base.image = 0;
    r.base.batch = work->need(0, plan.batch * images);
    int64_t window = images == 1 && threads > 1 ? plan.shared_window : 0;
    r.base.shared = work->need(1, std::max(plan.shared_rows * lanes, window) + GUARD);
    for (int t = 0; t < threads; ++t) r.arenas.push_back(work->need(2 + t, plan.space + own));
    pool().run(threads, [&](int part, int parts) { r.thread(part, parts); });
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
