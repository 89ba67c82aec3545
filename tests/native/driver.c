/* What a C program does with a compiled model, over and over, for sanitizers to look at.

   Arguments: files of inputs, one for each; a file for the outputs. A file holds three samples. */
#include "net.h"
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 3, RUNS = 10 };

static void fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(2);
}

int main(int count, char **arguments)
{
    const model_description *about = model_describe();
    if (count != about->input_count + 2)
        fail("one file for each input, and one for the outputs");
    float **inputs = calloc((size_t)about->input_count, sizeof *inputs);
    float **outputs = calloc((size_t)about->output_count, sizeof *outputs);
    for (int i = 0; i < about->input_count; i++) {
        size_t size = (size_t)about->inputs[i].size * BATCH;
        inputs[i] = malloc(size * sizeof(float)); /* not a byte more: the sanitizer sees what is read beyond */
        FILE *file = fopen(arguments[i + 1], "rb");
        if (!file || fread(inputs[i], sizeof(float), size, file) != size)
            fail("an input can't be read");
        fclose(file);
    }
    for (int i = 0; i < about->output_count; i++)
        outputs[i] = malloc((size_t)about->outputs[i].size * BATCH * sizeof(float));
    for (int threads = 1; threads <= 4; threads++) {
        model *m = 0, *other = 0;
        int status = model_create(threads, 0, 0, &m);
        if (!status)
            status = model_create(threads, 0, 0, &other);
        for (int run = 0; run < RUNS && !status; run++)
            for (int batch = 1; batch <= BATCH && !status; batch++)
                status = model_run(run % 2 ? m : other, batch, (const float *const *)inputs, outputs);
        if (status)
            fail(model_error(status));
        double *nanoseconds = malloc((size_t)about->layer_count * sizeof *nanoseconds);
        model_profile(m, (const float *const *)inputs, outputs, 2, nanoseconds);
        free(nanoseconds);
        model_run(m, BATCH, (const float *const *)inputs, outputs);
        model_destroy(other);
        model_destroy(m);
    }
    FILE *file = fopen(arguments[count - 1], "wb");
    for (int i = 0; i < about->output_count && file; i++)
        fwrite(outputs[i], sizeof(float), (size_t)about->outputs[i].size * BATCH, file);
    if (!file || fclose(file))
        fail("the outputs can't be written");
    for (int i = 0; i < about->input_count; i++)
        free(inputs[i]);
    for (int i = 0; i < about->output_count; i++)
        free(outputs[i]);
    free(inputs);
    free(outputs);
    return 0;
}
