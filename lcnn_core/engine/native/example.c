/* Runs a plan on images from a file of raw float32 numbers, without Python or PyTorch.
 *
 *     lcnn export model.pt model.lcnn
 *     cc example.c $(python -c "import lcnn_core.engine as e; print(e.c_flags())") -o example
 *     ./example model.lcnn images.f32 outputs.f32
 *
 * images.f32: any number of images, (channels, height, width) each; outputs.f32 gets their outputs, one after the other.
 * For models of one input and one output. */
#include <stdio.h>
#include <stdlib.h>

#include "lcnn_engine.h"

/* Floats of one image of a shape, which is printed. */
static int64_t describe(const char* what, int rank, const int64_t shape[3]) {
    printf("%s", what);
    for (int i = 0; i < rank; ++i) printf("%s%lld", i ? "x" : " ", (long long)shape[i]);
    printf("\n");
    return shape[0] * shape[1] * shape[2];
}

/* As many whole images as the file holds. */
static float* read_images(const char* path, int64_t floats, int64_t* images) {
    FILE* file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    *images = ftell(file) / (floats * (int64_t)sizeof(float));
    rewind(file);
    size_t count = (size_t)(*images * floats);
    float* data = malloc((count + 1) * sizeof(float));
    if (data && fread(data, sizeof(float), count, file) != count) return NULL;
    fclose(file);
    return data;
}

int main(int argc, char** argv) {
    char message[300];
    int64_t in_shape[3], out_shape[3], images = 0;
    if (argc < 4) return fprintf(stderr, "usage: %s MODEL.lcnn IMAGES.f32 OUTPUTS.f32 [THREADS]\n", argv[0]), 2;

    lcnn_plan* plan = lcnn_load_file(argv[1], message, sizeof message);
    if (!plan) return fprintf(stderr, "%s: %s\n", argv[1], message), 3;
    if (lcnn_inputs(plan) != 1 || lcnn_outputs(plan) != 1) return fprintf(stderr, "needs one input, one output\n"), 2;
    printf("%s\n", lcnn_isa());
    int64_t in_floats = describe("input", lcnn_input_shape(plan, 0, in_shape), in_shape);
    int64_t out_floats = describe("output", lcnn_output_shape(plan, 0, out_shape), out_shape);

    float* x = read_images(argv[2], in_floats, &images);
    float* y = malloc((size_t)(images * out_floats + 1) * sizeof(float));
    if (!x || !y) return fprintf(stderr, "%s: cannot be read\n", argv[2]), 3;

    const float* inputs[] = {x};
    float* outputs[] = {y};
    if (lcnn_run(plan, inputs, outputs, images, argc > 4 ? atoi(argv[4]) : 1)) return fprintf(stderr, "no memory\n"), 5;
    for (int64_t i = 0; i < images; ++i) {
        int64_t best = 0;
        for (int64_t j = 1; j < out_floats; ++j)
            if (y[i * out_floats + j] > y[i * out_floats + best]) best = j;
        printf("image %lld: largest output %lld, %g\n", (long long)i, (long long)best, y[i * out_floats + best]);
    }

    FILE* file = fopen(argv[3], "wb");
    size_t count = (size_t)(images * out_floats);
    if (!file || fwrite(y, sizeof(float), count, file) != count || fclose(file))
        return fprintf(stderr, "%s: cannot be written\n", argv[3]), 5;
    lcnn_free(plan);
    free(x);
    free(y);
    return 0;
}
