/* LCNN inference engine, C interface: run the plan of a lookup-based CNN without Python or PyTorch.
 *
 * `lcnn export model.pt model.lcnn` writes a plan (FORMAT.md); example.c is a whole program. To build against an
 * installed lcnn package, which holds this header and liblcnn.so:
 *
 *     cc example.c $(python -c "import lcnn_core.engine as e; print(e.c_flags())") -o example
 *
 * liblcnn.so picks at the first call the library of the best instruction set that the processor has, from its own
 * folder: ship it together with the liblcnn_*.so beside it. The environment variable LCNN_ISA names another one. Or link
 * one of those alone (-llcnn_avx2): each has the same interface, for processors with that instruction set.
 *
 * A plan may be used by several threads at once. There is no global state but the threads that calls with threads > 1
 * start and keep. */
#ifndef LCNN_ENGINE_H
#define LCNN_ENGINE_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef struct lcnn_plan lcnn_plan;

/* Load a plan from a file, or from memory that starts at a multiple of 8 bytes and may be freed afterwards. Every number
 * in it is checked. NULL on error, with the reason in message (one line of at most message_size bytes). */
lcnn_plan* lcnn_load_file(const char* path, char* message, int64_t message_size);
lcnn_plan* lcnn_load(const void* bytes, int64_t size, char* message, int64_t message_size);
void lcnn_free(lcnn_plan* plan);

/* Number of inputs and outputs, and the shape of one image of each: returns its rank, 1 (features) or 3 (channels,
 * height, width), with ones beyond the rank; 0 where there is no such index. */
int64_t lcnn_inputs(const lcnn_plan* plan);
int64_t lcnn_outputs(const lcnn_plan* plan);
int lcnn_input_shape(const lcnn_plan* plan, int64_t index, int64_t shape[3]);
int lcnn_output_shape(const lcnn_plan* plan, int64_t index, int64_t shape[3]);

/* Run any number of images: inputs[i] and outputs[i] are dense float32 arrays (images, shape...). 0 on success; 1 where
 * there is not enough memory, or a thread cannot be started. */
int lcnn_run(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, int threads);

/* The same on one thread, adding to seconds[step] the processor time of every step. */
int lcnn_profile(lcnn_plan* plan, const float* const* inputs, float* const* outputs, int64_t images, double* seconds);

/* Fixes which part of one image each of a team of count threads takes, from 0 to 1; the last one takes what is left. Else
 * each part is as large as its thread was fast in the calls before. 1 where a part is no such number, else 0. Not while a
 * thread runs the plan. */
int lcnn_divide(lcnn_plan* plan, const double* parts, int count);

/* Bytes of weights held (which = 0), of one image's activations (1), of one thread's scratch (2). */
int64_t lcnn_memory(const lcnn_plan* plan, int which);

/* The instruction set in use ("avx512", "avx512_wide", "avx2", "baseline", "neon"); whether this processor has it (0: no,
 * 1: yes, 2: yes, and no other library is faster on it). */
const char* lcnn_isa(void);
int lcnn_supported(void);

/* Measured peaks of one core: GMAC/s of the matrix kernel, of the lookup kernel from L1 (misaligned and aligned
 * offsets) and from L2; which = 0..3. */
double lcnn_probe(int which, double seconds);

/* Measured GB/s of one core that reads the same so many bytes again and again, as a network reads its weights. */
double lcnn_read_rate(int64_t bytes, double seconds);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
