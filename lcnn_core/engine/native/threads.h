// The threads that run a plan: a barrier, the pool, and how the work of a team is divided among them.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <pthread.h>

#include "plan.h"

namespace lcnn {
namespace {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Sense-reversing barrier; spins a little, then gives the core away (another process may need it). A thread that fails
/// breaks it, so that the others fail too instead of waiting.
class Barrier {
    std::atomic<int> waiting{0}, round{0};
    std::atomic<bool> broken{false};

  public:
    void give_up() { broken.store(true); }
    bool given_up() const { return broken.load(); }
    /// Seconds that it took for the others to come.
    double wait(int parts) {
        if (parts == 1) return 0;
        int now = round.load(std::memory_order_acquire);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return 0;
        }
        auto start = Clock::now();
        for (int spins = 0; round.load(std::memory_order_acquire) == now; ++spins) {
            if (given_up()) throw std::bad_alloc();
            if (spins > 4000) std::this_thread::yield();
        }
        return seconds_since(start);
    }
};

/// Looks for up to 100 microseconds whether ``ready``: to be woken takes tens, and so does Python between two calls.
template <class Ready>
void look(Ready ready) {
    for (auto end = Clock::now() + std::chrono::microseconds(100); !ready() && Clock::now() < end;) {
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

/// How a team's work is divided among its threads: by how fast each of them was in the calls before. On a shared machine
/// a core may have two thirds of another's speed for a second, and all wait for the slowest.
class Shares {
    static constexpr double RATE = 0.25, MOST_CHANGE = 1.25, LEAST = 0.5;  // of a call; of an equal share
    static constexpr int32_t STEADY = CUTS / 32;  // of a part; what differs less is left: caches hold what they did
    std::vector<double> shares;
    std::vector<int32_t> found;

    void cut() {
        std::vector<int32_t> now{0};
        double sum = 0;
        for (double share : shares) now.push_back(int32_t(CUTS * (sum += share) + 0.5));
        now.back() = CUTS;
        bool same = now.size() == found.size();
        int32_t most = STEADY / int32_t(shares.size());
        for (size_t i = 0; same && i < now.size(); ++i) same = std::abs(now[i] - found[i]) < most;
        if (!same) found = now;
    }

  public:
    /// Where each part begins, in 1 / CUTS; one more at the end. Valid until ``learn``.
    const int32_t* cuts(int parts) {
        if (int(shares.size()) != parts) {
            shares.assign(parts, 1.0 / parts);
            cut();
        }
        return found.data();
    }
    /// seconds: that each thread worked in a call.
    void learn(const std::vector<double>& seconds) {
        double sum = 0;
        std::vector<double> speeds;
        for (size_t i = 0; i < seconds.size(); ++i) {
            if (seconds[i] <= 0) return;
            speeds.push_back(double(found[i + 1] - found[i]) / seconds[i]);
            sum += speeds[i];
        }
        double total = 0;
        for (size_t i = 0; i < speeds.size(); ++i) {
            double wanted = std::clamp(speeds[i] / sum, shares[i] / MOST_CHANGE, shares[i] * MOST_CHANGE);
            shares[i] = std::max(shares[i] + RATE * (wanted - shares[i]), LEAST / double(speeds.size()));
            total += shares[i];
        }
        for (double& share : shares) share /= total;
        cut();
    }
};

}  // namespace
}  // namespace lcnn
