// Which instruction set this library is compiled for, and whether it is the one for this processor.
#if defined(LCNN_WIDE)
#include <cpuid.h>

#include <cstring>
#endif

#include "lcnn_engine.h"
#include "load.h"

#if defined(LCNN_WIDE)
namespace {

bool is_from(const char* vendor) {
    unsigned a, found[3];
    return __get_cpuid(0, &a, &found[0], &found[2], &found[1]) && !memcmp(found, vendor, sizeof found);
}

/// AMD's and, from Sapphire Rapids on, Intel's, which have AVX512-FP16: there wide lookups are as fast or faster, see
/// sparse.cpp.
bool prefers_wide_lookups() {
    unsigned a, b, c, d;
    return is_from("AuthenticAMD") || (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 23));
}

}  // namespace

bool lcnn::fetches_lookups() { return is_from("GenuineIntel"); }
#else
bool lcnn::fetches_lookups() { return false; }
#endif

extern "C" {

const char* lcnn_isa(void) {
#if defined(LCNN_WIDE)
    return "avx512_wide";
#elif defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "baseline";
#endif
}

int lcnn_supported(void) {
#if defined(__AVX512F__)
    bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#if defined(LCNN_WIDE)
    if (has && prefers_wide_lookups()) return 2;
#endif
    return has;
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}

}  // extern "C"
