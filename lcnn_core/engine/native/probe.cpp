// Measured peaks of one core, with the engine's own kernels on data that fits the cache named: the roofline that each
// step is compared with. Every result is written back, so that nothing is optimised away.
#include <chrono>
#include <vector>

#include "kernels.h"
#include "lcnn_engine.h"
#include "vec.h"

namespace lcnn {
namespace {

/// The best of runs for so long, and of so many at least.
template <class F>
double rate(double seconds, double work, F run, int least = 1) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    auto end = Clock::now() + std::chrono::duration<double>(seconds);
    do {
        auto start = Clock::now();
        run();
        best = std::max(best, work / std::chrono::duration<double>(Clock::now() - start).count());
    } while (--least > 0 || Clock::now() < end);
    return best / 1e9;
}

double matrix_peak(double seconds) {
    int64_t rows = 96, depth = 64, pixels = LCNN_COLS * VL;
    std::vector<float> a(rows * depth, 1.0f), x(depth * pixels + 64, 0.5f), y(rows * pixels + 64), panel(1 << 16);
    std::vector<int32_t> offsets(depth);
    for (int64_t k = 0; k < depth; ++k) offsets[k] = int32_t(k * pixels);
    PackedMatrix packed;
    packed.pack(a.data(), rows, depth, depth);
    return rate(seconds, 200.0 * rows * depth * pixels, [&] {
        for (int i = 0; i < 200; ++i)
            gemm({&packed, x.data(), offsets.data(), y.data(), pixels, pixels, Epilogue{}, panel.data(), 0, rows});
    });
}

double sparse_peak(double seconds, int64_t floats, bool aligned) {
    int64_t filters = 64, nnz = 64, pixels = 12 * VL;
    std::vector<float> s(floats + pixels + 64, 0.5f), y(filters * pixels + 64);
    SparseMatrix p;
    p.rows = filters;
    uint32_t state = 1;
    for (int64_t f = 0; f < filters; ++f) {
        p.starts.push_back(int32_t(p.lookups.size()));
        p.filters.push_back(int32_t(f));
        for (int64_t i = 0; i < nnz; ++i) {
            state = state * 1664525u + 1013904223u;
            int32_t offset = int32_t((state >> 8) % uint32_t(floats));
            p.lookups.push_back({aligned ? offset / VL * VL : offset, 0.01f});
        }
    }
    p.starts.push_back(int32_t(p.lookups.size()));
    float* base = s.data() + (16 - (reinterpret_cast<uintptr_t>(s.data()) / 4) % 16);
    return rate(seconds, 20.0 * filters * nnz * pixels, [&] {
        for (int i = 0; i < 20; ++i) sparse({p, base, y.data(), pixels, pixels, Epilogue{}, 0, filters, 0, 1});
    });
}

double read_rate(int64_t bytes, double seconds) {
    std::vector<float> data(bytes / 4, 1.0f);
    float sink = 0;
    auto read = [&] {
        vf sum[8] = {};
        for (size_t i = 0; i + 8 * VL <= data.size(); i += 8 * VL)
            for (int j = 0; j < 8; ++j) sum[j] += load(&data[i + j * VL]);
        for (int j = 1; j < 8; ++j) sum[0] += sum[j];
        sink += sum[0][0];
    };
    read();  // what was just written is read at half the rate
    double result = rate(seconds, double(data.size()) * 4, read, 3);
    return sink == 1 ? 0 : result;
}

}  // namespace
}  // namespace lcnn

extern "C" double lcnn_read_rate(int64_t bytes, double seconds) {
    return bytes > 0 ? lcnn::read_rate(bytes, seconds) : 0;
}

extern "C" double lcnn_probe(int which, double seconds) {
    using namespace lcnn;
    switch (which) {
        case 0: return matrix_peak(seconds);
        case 1: return sparse_peak(seconds, 5000, false);
        case 2: return sparse_peak(seconds, 5000, true);
        case 3: return sparse_peak(seconds, 64000, false);
        default: return 0;
    }
}
