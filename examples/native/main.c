/* A compiled model in a C program: values of one sample from stdin, as text; the outputs on stdout.

       python -m acdc_export.native model.onnx
       cc -O2 main.c model.so -Wl,-rpath,'$ORIGIN' -o main
       ./main < sample.txt

   `model.h` says what each function does. The program needs model.so beside it, and nothing else of ours. */
#include "model.h"
#include <stdio.h>
#include <stdlib.h>

static void stop(const char *what)
{
    fprintf(stderr, "main: %s\n", what);
    exit(1);
}

static float *room_for(const model_port *port)
{
    float *values = malloc((size_t)port->size * sizeof *values);
    if (!values)
        stop("there is not enough memory");
    return values;
}

int main(void)
{
    const model_description *about = model_describe();
    if (about->abi != MODEL_ABI)
        stop("model.so is of another version than model.h");

    float **inputs = calloc((size_t)about->input_count, sizeof *inputs);
    float **outputs = calloc((size_t)about->output_count, sizeof *outputs);
    if (!inputs || !outputs)
        stop("there is not enough memory");
    for (int i = 0; i < about->input_count; i++) {
        inputs[i] = room_for(&about->inputs[i]);
        for (long at = 0; at < about->inputs[i].size; at++)
            if (scanf("%f", &inputs[i][at]) != 1)
                stop("stdin has fewer values than the inputs");
    }
    for (int i = 0; i < about->output_count; i++)
        outputs[i] = room_for(&about->outputs[i]);

    model *m; /* create it once, and run it as often as you like */
    int status = model_create(2, 0, 0, &m); /* two threads, on the processors of this one */
    if (status)
        stop(model_error(status));
    status = model_run(m, 1, (const float *const *)inputs, outputs); /* a batch of one sample */
    if (status)
        stop(model_error(status));
    model_destroy(m);

    for (int i = 0; i < about->output_count; i++) {
        printf("%s", about->outputs[i].name);
        for (long at = 0; at < about->outputs[i].size; at++)
            printf(" %.7g", outputs[i][at]);
        printf("\n");
        free(outputs[i]);
    }
    for (int i = 0; i < about->input_count; i++)
        free(inputs[i]);
    free(inputs);
    free(outputs);
    return 0;
}
