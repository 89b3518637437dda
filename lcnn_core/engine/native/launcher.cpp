// liblcnn.so, for programs without Python: the C interface, forwarded to the library of the best instruction set that
// this processor has. Those lie in the folder of this one. They cannot be one library: templates compiled for several
// instruction sets would be merged by the linker.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "lcnn_engine.h"

namespace {

/// The first library, best first, that says it is the fastest on this processor; else the first that it can run.
void* open_best(std::string& folder) {
    Dl_info self{};
    dladdr(reinterpret_cast<void*>(&open_best), &self);
    folder = std::string(self.dli_fname ? self.dli_fname : "");
    folder.resize(folder.find_last_of('/') == std::string::npos ? 0 : folder.find_last_of('/') + 1);
    const char* wanted = getenv("LCNN_ISA");
    for (int least : {wanted ? 1 : 2, 1})
        for (const char* isa : {"avx512", "avx512_wide", "avx2", "neon", "baseline"}) {
            if (wanted && std::string(wanted) != isa) continue;
            void* library = dlopen((folder + "liblcnn_" + isa + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
            auto supported = library ? reinterpret_cast<int (*)()>(dlsym(library, "lcnn_supported")) : nullptr;
            if (supported && supported() >= least) return library;
            if (library) dlclose(library);
        }
    return nullptr;
}

struct Engine {
    std::string folder;
    void* library = open_best(folder);
};

const Engine& engine() {
    static const Engine* found = new Engine;  // never closed: its threads may outlive main
    return *found;
}

template <class F>
F* function(const char* name) {
    return engine().library ? reinterpret_cast<F*>(dlsym(engine().library, name)) : nullptr;
}

lcnn_plan* no_library(char* message, int64_t size) {
    if (size > 0)
        snprintf(message, size_t(size), "no liblcnn_*.so in '%.150s' fits this processor%s", engine().folder.c_str(),
                 getenv("LCNN_ISA") ? " and the environment variable LCNN_ISA" : "");
    return nullptr;
}

}  // namespace

// Looked up once for each function. A function that takes a plan is only reached where a library was found.
#define FORWARD(name, otherwise, ...)                              \
    static auto* const real = function<decltype(name)>(#name);     \
    return real ? real(__VA_ARGS__) : otherwise

extern "C" {

lcnn_plan* lcnn_load(const void* bytes, int64_t size, char* message, int64_t message_size) {
    FORWARD(lcnn_load, no_library(message, message_size), bytes, size, message, message_size);
}
lcnn_plan* lcnn_load_file(const char* path, char* message, int64_t message_size) {
    FORWARD(lcnn_load_file, no_library(message, message_size), path, message, message_size);
}
void lcnn_free(lcnn_plan* plan) { FORWARD(lcnn_free, void(), plan); }
int64_t lcnn_inputs(const lcnn_plan* plan) { FORWARD(lcnn_inputs, 0, plan); }
int64_t lcnn_outputs(const lcnn_plan* plan) { FORWARD(lcnn_outputs, 0, plan); }
int lcnn_input_shape(const lcnn_plan* plan, int64_t index, int64_t shape[3]) {
    FORWARD(lcnn_input_shape, 0, plan, index, shape);
}
int lcnn_output_shape(const lcnn_plan* plan, int64_t index, int64_t shape[3]) {
    FORWARD(lcnn_output_shape, 0, plan, index, shape);
}
int lcnn_divide(lcnn_plan* plan, const double* parts, int count) { FORWARD(lcnn_divide, 1, plan, parts, count); }
int lcnn_run(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, int threads) {
    FORWARD(lcnn_run, 1, plan, inputs, outputs, images, threads);
}
int lcnn_profile(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, double* seconds) {
    FORWARD(lcnn_profile, 1, plan, inputs, outputs, images, seconds);
}
int64_t lcnn_memory(const lcnn_plan* plan, int which) { FORWARD(lcnn_memory, 0, plan, which); }
const char* lcnn_isa(void) { FORWARD(lcnn_isa, "none"); }
int lcnn_supported(void) { FORWARD(lcnn_supported, 0); }
double lcnn_probe(int which, double seconds) { FORWARD(lcnn_probe, 0, which, seconds); }
double lcnn_read_rate(int64_t bytes, double seconds) { FORWARD(lcnn_read_rate, 0, bytes, seconds); }

}  // extern "C"
