/* LCNN inference engine, plain C interface. A plan is what lcnn_core.engine packs (plan.h); one handle may be used by
 * several threads at once. All functions are free of global state except the thread pool of the process. */
#ifndef LCNN_ENGINE_H
#define LCNN_ENGINE_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct lcnn_plan lcnn_plan;

/* Reads and checks a packed plan (8-byte aligned). NULL on error, with the reason in message. */
lcnn_plan* lcnn_load(const void* bytes, int64_t size, char* message, int64_t message_size);
void lcnn_free(lcnn_plan* plan);

/* Number of inputs and outputs, and floats per image of each. */
int64_t lcnn_inputs(const lcnn_plan* plan);
int64_t lcnn_outputs(const lcnn_plan* plan);
int64_t lcnn_input_size(const lcnn_plan* plan, int64_t index);
int64_t lcnn_output_size(const lcnn_plan* plan, int64_t index);

/* Runs images float32 images: inputs[i] and outputs[i] are dense (images, ...). 0 on success, 1 out of memory. */
int lcnn_run(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, int threads);

/* The same on one thread, adding to seconds[step] the processor time of every step. */
int lcnn_profile(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, double* seconds);

/* Bytes of weights held, of one image's arena, of scratch per thread. */
int64_t lcnn_memory(const lcnn_plan* plan, int which);

/* Instruction set this library was compiled for, and whether this processor has it. */
const char* lcnn_isa(void);
int lcnn_supported(void);

/* Measured peaks of one core: GMAC/s of the matrix kernel, of the lookup kernel from L1 (misaligned and aligned
 * offsets) and from L2, and GB/s of streaming reads; which = 0..4. */
double lcnn_probe(int which, double seconds);

#ifdef __cplusplus
}
#endif
#endif
