/* Everything but products: loops over rows of pixels, left to the C compiler to make vectors of. Compiled once for each
   instruction set. No operation is contracted: what uint8 becomes is defined to the bit, see native/layers.py. */
#include <string.h>

enum { CHUNK = 64 }; /* pixels that are worked on at a time where there is a buffer between */

static uint8_t limited(float value, int zero, float low, float high)
{
    value = value > -0x1p30f ? (value < 0x1p30f ? value : 0x1p30f) : -0x1p30f;
    float level = __builtin_rintf(value) + (float)zero;
    return (uint8_t)(int32_t)(level < low ? low : level > high ? high : level);
}

/* e^x to 2e-7 of its value: 2^n times a polynomial of what is left. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) << 23};
    return p * power.value;
}

/* The natural logarithm of a positive number to 2e-7: of its exponent, and a polynomial around 1. */
static inline float logarithm(float x)
{
    union {
        float value;
        int32_t bits;
    } u = {x};
    int32_t exponent = (u.bits >> 23) - 126;
    u.bits = (u.bits & 0x007fffff) | 0x3f000000; /* 0.5 to 1 */
    float m = u.value;
    int below = m < 0.70710678f;
    float n = (float)(exponent - below), f = (below ? 2.0f * m : m) - 1.0f, z = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return n * 0.693359375f + (f + (p * f * z - n * 2.12194440e-4f - 0.5f * z));
}

static inline float between(float x, float low, float high) { return x > low ? (x < high ? x : high) : low; }

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

static inline float tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

/* The error function to 2e-7: a Chebyshev fit of its logarithm in 1/(1 + |x|/2), Numerical Recipes 6.2.2. */
static inline float error_function(float x)
{
    float a = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.5f * a);
    float p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    float tail = t * exponential(p - a * a);
    return x < 0 ? tail - 1.0f : 1.0f - tail;
}

#define EACH(expression) \
    for (int i = 0; i < n; i++) { \
        float v = x[i]; \
        y[i] = (expression); \
    } \
    break

static void apply(const struct pointwise *p, const float *restrict x, float *restrict y, int n)
{
    const float a = p->parameters[0], b = p->parameters[1];
    switch (p->kind) {
    case 0: EACH(v);
    case 1: EACH(v > a ? (v < b ? v : b) : a);                     /* Clip */
    case 2: EACH(v < 0 ? a * v : v);                               /* LeakyRelu */
    case 3: EACH(sigmoid(v));
    case 4: EACH(between(a * v + b, 0.0f, 1.0f));                  /* HardSigmoid */
    case 5: EACH(v * between(v * (1.0f / 6) + 0.5f, 0.0f, 1.0f));  /* HardSwish */
    case 6: EACH(v * sigmoid(v));                                  /* SiLU */
    case 7: EACH(0.5f * v * (1.0f + error_function(v * 0.70710678f))); /* GELU */
    case 8: EACH(0.5f * v * (1.0f + tangent(0.79788456f * (v + 0.044715f * v * v * v))));
    case 9: EACH(tangent(v));
    case 10: EACH(error_function(v));
    case 11: EACH(v < 0 ? a * (exponential(v) - 1.0f) : v);        /* Elu */
    case 12: EACH(exponential(v));
    case 13: EACH(__builtin_sqrtf(v));
    case 14: EACH((v > 0 ? v : 0) + logarithm(1.0f + exponential(v > 0 ? -v : v))); /* Softplus */
    case 15: EACH(v < 0 ? -v : v);
    case 16: EACH(-v);
    }
}

/* The rows of a grid that piece `piece` of `count` has; `body` sees `plane`, `row` and the addresses. */
#define ROWS(grid) \
    int first_row, last_row; \
    part((grid).planes * (grid).rows, piece, count, &first_row, &last_row); \
    for (int index = first_row; index < last_row; index++) { \
        int plane = index / (grid).rows, row = index % (grid).rows; \
        (void)plane, (void)row;
#define END }
#define ROW(v) (arena + (v).base + (long)plane * (v).plane + (long)row * (v).pitch)

static void function(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        apply(p, ROW(p->in), ROW(p->out), p->grid.columns);
    END
}

static void table(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        const uint8_t *restrict x = (const uint8_t *)ROW(p->in);
        uint8_t *restrict y = (uint8_t *)ROW(p->out);
        for (int i = 0; i < 4 * p->grid.columns; i++)
            y[i] = p->table[x[i]];
    END
}

static void affine(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        const float *restrict x = ROW(p->in);
        float *restrict y = ROW(p->out);
        if (p->broadcast) { /* one plane is one channel */
            float m = p->multipliers[plane], o = p->offsets[plane];
            for (int i = 0; i < p->grid.columns; i++) {
                float v = x[i] * m + o;
                y[i] = v > p->low ? (v < p->high ? v : p->high) : p->low;
            }
        } else
            for (int i = 0; i < p->grid.columns; i++) {
                float v = x[i] * p->multipliers[i] + p->offsets[i];
                y[i] = v > p->low ? (v < p->high ? v : p->high) : p->low;
            }
    END
}

/* Values of four channels, four times over: what 16 bytes of four pixels meet. */
static void repeated(const float *values, float *sixteen)
{
    for (int i = 0; i < 16; i++)
        sixteen[i] = values[i & 3];
}

static void affine_bytes(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        const uint8_t *restrict x = (const uint8_t *)ROW(p->in);
        uint8_t *restrict y = (uint8_t *)ROW(p->out);
        float m[16], o[16];
        repeated(p->multipliers + 4 * plane, m);
        repeated(p->offsets + 4 * plane, o);
        int i = 0, n = 4 * p->grid.columns;
        for (; i + 16 <= n; i += 16)
            for (int j = 0; j < 16; j++) {
                float v = (float)x[i + j] * m[j];
                y[i + j] = limited(v + o[j], p->zero, p->low, p->high);
            }
        for (; i < n; i++) {
            float v = (float)x[i] * m[i & 3];
            y[i] = limited(v + o[i & 3], p->zero, p->low, p->high);
        }
    END
}

#define PAIR(expression) \
    for (int i = 0; i < n; i++) { \
        float a = x[i], b = p->broadcast ? single : o[i]; \
        float v = (expression); \
        y[i] = v > p->low ? (v < p->high ? v : p->high) : p->low; \
    } \
    break

static void binary(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        const float *x = ROW(p->in), *o = p->broadcast ? 0 : ROW(p->other);
        float *y = ROW(p->out);
        float single = p->broadcast ? arena[p->other.base + (long)plane * p->other.plane] : 0;
        int n = p->grid.columns;
        switch (p->kind) {
        case 0: PAIR(a + b);
        case 1: PAIR(a - b);
        case 2: PAIR(a * b);
        case 3: PAIR(a / b);
        }
    END
}

static void binary_bytes(const struct pointwise *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        const uint8_t *restrict x = (const uint8_t *)ROW(p->in);
        const uint8_t *restrict o = (const uint8_t *)(p->broadcast ? arena + p->other.base + (long)plane * p->other.plane
                                                                   : ROW(p->other));
        uint8_t *restrict y = (uint8_t *)ROW(p->out);
        int n = 4 * p->grid.columns;
        if (p->kind == 0 && !p->broadcast) {
            for (int i = 0; i < n; i++) {
                float a = (float)(x[i] - p->a_zero) * p->a_multiplier, b = (float)(o[i] - p->b_zero) * p->b_multiplier;
                y[i] = limited(a + b, p->zero, p->low, p->high);
            }
        } else if (p->kind == 0) {
            for (int i = 0; i < n; i++) {
                float a = (float)(x[i] - p->a_zero) * p->a_multiplier;
                float b = (float)(o[i & 3] - p->b_zero) * p->b_multiplier;
                y[i] = limited(a + b, p->zero, p->low, p->high);
            }
        } else if (!p->broadcast) {
            for (int i = 0; i < n; i++)
                y[i] = limited((float)((x[i] - p->a_zero) * (o[i] - p->b_zero)) * p->a_multiplier, p->zero, p->low,
                               p->high);
        } else {
            int32_t b[16];
            for (int i = 0; i < 16; i++)
                b[i] = o[i & 3] - p->b_zero;
            int i = 0;
            for (; i + 16 <= n; i += 16)
                for (int j = 0; j < 16; j++)
                    y[i + j] = limited((float)((x[i + j] - p->a_zero) * b[j]) * p->a_multiplier, p->zero, p->low,
                                       p->high);
            for (; i < n; i++)
                y[i] = limited((float)((x[i] - p->a_zero) * b[i & 3]) * p->a_multiplier, p->zero, p->low, p->high);
        }
    END
}

/* The first pixel of the window of a row's first output. */
#define WINDOW (arena + p->in.base + (long)plane * p->in.plane + (long)row * p->row_step * p->in.pitch + p->offsets[0])

static void pool(const struct pool *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        float *y = ROW(p->out);
        if (p->whole) {
            const float *x = arena + p->in.base + (long)plane * p->in.plane;
            float sums[16] = {0}, best = x[0];
            for (int r = 0; r < p->in_rows; r++, x += p->in.pitch) {
                int c = 0;
                for (; c + 16 <= p->in_columns; c += 16)
                    for (int j = 0; j < 16; j++)
                        sums[j] += x[c + j];
                for (; c < p->in_columns; c++)
                    sums[c & 15] += x[c];
                if (!p->average)
                    for (c = 0; c < p->in_columns; c++)
                        best = x[c] > best ? x[c] : best;
            }
            float sum = 0;
            for (int j = 0; j < 16; j++)
                sum += sums[j];
            y[0] = p->average ? sum * p->divisors[0] : best;
            continue;
        }
        for (int from = 0; from < p->grid.columns; from += LANES) {
            const int32_t *x = (const int32_t *)WINDOW + from * p->column_step;
            reals value = as_reals(load_apart(x, p->column_step));
            for (int k = 1; k < p->taps; k++) {
                reals other = as_reals(load_apart(x + p->offsets[k] - p->offsets[0], p->column_step));
                value = p->average ? add_reals(value, other) : max_reals(value, other);
            }
            if (p->average)
                value = multiply(value, load_reals(p->divisors + row * p->grid.columns + from));
            store_some(y + from, first_lanes(p->grid.columns - from), as_words(value));
        }
    END
}

static void pool_bytes(const struct pool *p, float *arena, int piece, int count)
{
    ROWS(p->grid)
        uint8_t *y = (uint8_t *)ROW(p->out);
        if (p->whole) {
            int32_t sums[4] = {0};
            uint8_t best[4] = {0};
            words total = all_words(0);
            const float *at = arena + p->in.base + (long)plane * p->in.plane;
            for (int r = 0; r < p->in_rows; r++, at += p->in.pitch) {
                const uint8_t *x = (const uint8_t *)at;
                int i = 0, n = 4 * p->in_columns;
                if (p->average) {
                    for (; i + LANES <= n; i += LANES)
                        total = add_words(total, widen_8(x + i));
                    for (; i < n; i++)
                        sums[i & 3] += x[i];
                } else
                    for (; i < n; i++)
                        best[i & 3] = x[i] > best[i & 3] ? x[i] : best[i & 3];
            }
            int32_t lanes[LANES];
            store_words(lanes, total);
            for (int i = 0; i < LANES; i++)
                sums[i & 3] += lanes[i];
            int pixels = p->in_rows * p->in_columns;
            for (int j = 0; j < 4; j++) {
                int32_t sum = sums[j] - pixels * p->in_zero;
                y[j] = p->average ? limited((float)sum * p->divisors[0], p->out_zero, 0, 255) : best[j];
            }
            continue;
        }
        for (int from = 0; !p->average && from < p->grid.columns; from += LANES) {
            const int32_t *x = (const int32_t *)WINDOW + from * p->column_step;
            words value = load_apart(x, p->column_step);
            for (int k = 1; k < p->taps; k++)
                value = max_8(value, load_apart(x + p->offsets[k] - p->offsets[0], p->column_step));
            store_some(y + 4 * from, first_lanes(p->grid.columns - from), value);
        }
        for (int from = 0; p->average && from < p->grid.columns; from += CHUNK) {
            int pixels = p->grid.columns - from < CHUNK ? p->grid.columns - from : CHUNK;
            int32_t sums[4 * CHUNK] = {0};
            for (int k = 0; k < p->taps; k++) {
                const uint8_t *x = (const uint8_t *)(WINDOW + p->offsets[k] - p->offsets[0] + from * p->column_step);
                for (int i = 0; i < pixels; i++)
                    for (int j = 0; j < 4; j++)
                        sums[4 * i + j] += x[4 * i * p->column_step + j] - p->in_zero;
            }
            for (int i = 0; i < 4 * pixels; i++) {
                float divisor = p->divisors[row * p->grid.columns + from + i / 4];
                y[4 * from + i] = limited((float)sums[i] * divisor, p->out_zero, 0, 255);
            }
        }
    END
}

/* From one layout to another. */

/* The columns of a phase's row that are pixels, where the first one is at `shift`. */
static void columns_of(const struct transfer *t, int shift, int *from, int *to)
{
    *from = 0, *to = t->out_columns;
    while (*from < *to && *from * t->column_step + shift < 0)
        ++*from;
    while (*to > *from && (*to - 1) * t->column_step + shift >= t->width)
        --*to;
}

static void relayout(const struct transfer *t, float *arena, int piece, int count)
{
    int phases = t->phases;
    struct grid grid = {t->channels * phases, t->out_rows, 0};
    ROWS(grid)
        int phase = plane % phases, y = row * t->row_step + phase / t->column_step - t->top;
        int shift = phase % t->column_step - t->left; /* column of the first pixel of a row of this phase */
        if (y < 0 || y >= t->height)
            continue;
        const float *restrict x = arena + t->in.base + (long)(plane / phases) * t->in.plane + (long)y * t->in.pitch;
        float *restrict out = ROW(t->out);
        int step = t->column_step, from, to;
        columns_of(t, shift, &from, &to);
        if (step == 1)
            memcpy(out + from, x + from + shift, (size_t)(to - from) * sizeof *out);
        else if (step == 2)
            for (int i = from; i < to; i++)
                out[i] = x[2 * i + shift];
        else
            for (int i = from; i < to; i++)
                out[i] = x[i * step + shift];
    END
}

static uint8_t level_of(float value, const struct transfer *t) { return limited(value / t->scale, t->zero, 0, 255); }

/* Four channels of FP32 pixels as words of uint8; channels are `apart`, and only `channels` of them are there. */
INLINE words quad_of(const float *pixels, int step, long apart, const struct transfer *t, int channels)
{
    words quad = all_words(0);
    for (int j = 0; j < 4 && j < channels; j++) {
        reals value = divide(as_reals(load_apart((const int32_t *)(pixels + j * apart), step)), all_reals(t->scale));
        value = min_reals(max_reals(value, all_reals(-0x1p30f)), all_reals(0x1p30f));
        words level = add_words(to_words(value), all_words(t->zero));
        level = min_words(max_words(level, all_words(0)), all_words(255));
        quad = either(quad, shift_left(level, 8 * j));
    }
    return quad;
}

/* An input of the network, straight into the layout that its reader wants, row by row of the input. */
static void load(const struct transfer *t, const struct frame *frame, float *arena, int bytes, int piece, int count)
{
    int planes = bytes ? (t->channels + 3) / 4 : t->channels;
    long image = (long)t->height * t->width;
    const float *input = frame->inputs[t->port] + frame->sample * t->channels * image;
    struct grid grid = {planes, t->height, 0};
    ROWS(grid)
        int down = (row + t->top) % t->row_step, at = (row + t->top) / t->row_step;
        const float *x = input + (bytes ? 4 : 1) * plane * image + (long)row * t->width;
        for (int across = 0; across < t->column_step; across++) {
            int phase = down * t->column_step + across, shift = across - t->left, from, to;
            if (phase >= t->phases || at >= t->out_rows)
                continue;
            columns_of(t, shift, &from, &to);
            float *out = arena + t->out.base + (long)(plane * t->phases + phase) * t->out.plane + (long)at * t->out.pitch;
            int step = t->column_step, i = from;
            for (; i + LANES <= to && (i + LANES) * step + shift <= t->width; i += LANES) {
                const float *pixels = x + i * step + shift;
                if (bytes)
                    store_words(out + i, quad_of(pixels, step, image, t, t->channels - 4 * plane));
                else
                    store_words(out + i, load_apart((const int32_t *)pixels, step));
            }
            for (; i < to; i++) {
                const float *pixel = x + i * step + shift;
                uint32_t word = 0;
                for (int j = 0; j < 4 && bytes && 4 * plane + j < t->channels; j++)
                    word |= (uint32_t)level_of(pixel[j * image], t) << (8 * j);
                memcpy(out + i, bytes ? (const void *)&word : (const void *)pixel, sizeof word);
            }
        }
    END
}

static void store(const struct transfer *t, const struct frame *frame, float *arena, int bytes, int piece, int count)
{
    (void)bytes;
    struct grid grid = {t->channels, t->height, 0};
    float *output = frame->outputs[t->port] + frame->sample * t->channels * t->height * t->width;
    ROWS(grid)
        memcpy(output + (long)index * t->width, ROW(t->in), (size_t)t->width * sizeof *output);
    END
}

static void quantize(const struct transfer *t, float *arena, int piece, int count)
{
    struct grid grid = {(t->channels + 3) / 4, t->height, 0};
    ROWS(grid)
        for (int i = 0; i < t->width; i++) {
            uint32_t word = 0;
            for (int j = 0; j < 4 && 4 * plane + j < t->channels; j++) {
                float x = arena[t->in.base + (4L * plane + j) * t->in.plane + (long)row * t->in.pitch + i];
                word |= (uint32_t)level_of(x, t) << (8 * j);
            }
            memcpy(ROW(t->out) + i, &word, sizeof word);
        }
    END
}

static void dequantize(const struct transfer *t, float *arena, int piece, int count)
{
    struct grid grid = {t->channels, t->height, 0};
    ROWS(grid)
        const uint8_t *restrict x = byte_at(arena, &t->in, plane, row * t->in.pitch);
        float *restrict y = ROW(t->out);
        for (int i = 0; i < t->width; i++)
            y[i] = (float)(x[4 * i] - t->zero) * t->scale;
    END
}

/* Channels of one tensor into those of another from `first_channel` on. */
static void join(const struct transfer *t, float *arena, int piece, int count)
{
    struct grid grid = {t->channels, t->height, 0};
    ROWS(grid)
        memcpy(ROW(t->out) + (long)t->first_channel * t->out.plane, ROW(t->in), (size_t)t->width * sizeof(float));
    END
}

static void join_bytes(const struct transfer *t, float *arena, int piece, int count)
{
    if (t->first_channel % 4 == 0 && t->channels % 4 == 0) {
        struct grid grid = {t->channels / 4, t->height, 0};
        ROWS(grid)
            const uint8_t *restrict x = (const uint8_t *)ROW(t->in);
            uint8_t *restrict y = (uint8_t *)(ROW(t->out) + (long)t->first_channel / 4 * t->out.plane);
            if (!t->table)
                memcpy(y, x, 4 * (size_t)t->width);
            else
                for (int i = 0; i < 4 * t->width; i++)
                    y[i] = t->table[x[i]];
        END
        return;
    }
    int first, last; /* of groups of four channels of the output, so that no two threads write to the same word */
    part((t->first_channel + t->channels + 3) / 4 - t->first_channel / 4, piece, count, &first, &last);
    for (int channel = 0; channel < t->channels; channel++) {
        int to = t->first_channel + channel, quad = to / 4 - t->first_channel / 4;
        if (quad < first || quad >= last)
            continue;
        for (int row = 0; row < t->height; row++) {
            const uint8_t *x = byte_at(arena, &t->in, channel, row * t->in.pitch);
            uint8_t *y = byte_at(arena, &t->out, to, row * t->out.pitch);
            for (int i = 0; i < t->width; i++)
                y[4 * i] = t->table ? t->table[x[4 * i]] : x[4 * i];
        }
    }
}

/* Values in the order (channels, rows, columns), in another shape. One thread does it. */
static void reshape(const struct transfer *t, float *arena, int bytes)
{
    int channel = 0, y = 0, x = 0;
    for (int c = 0; c < t->channels; c++)
        for (int row = 0; row < t->height; row++)
            for (int i = 0; i < t->width; i++) {
                int from = row * t->in.pitch + i, to = y * t->out.pitch + x;
                if (bytes)
                    *byte_at(arena, &t->out, channel, to) = *byte_at(arena, &t->in, c, from);
                else
                    arena[t->out.base + (long)channel * t->out.plane + to] =
                        arena[t->in.base + (long)c * t->in.plane + from];
                if (++x == t->out_width) {
                    x = 0;
                    if (++y == t->out_height) {
                        y = 0;
                        channel++;
                    }
                }
            }
}

static void softmax(const struct pointwise *p, float *arena)
{
    const float *x = arena + p->in.base;
    float *y = arena + p->out.base, sum = 0, most = x[0];
    int in = p->in.plane, out = p->out.plane;
    for (int i = 1; i < p->channels; i++)
        most = x[i * in] > most ? x[i * in] : most;
    for (int i = 0; i < p->channels; i++)
        sum += exponential(x[i * in] - most);
    float shift = logarithm(sum);
    for (int i = 0; i < p->channels; i++)
        y[i * out] = p->kind ? x[i * in] - most - shift : exponential(x[i * in] - most) / sum;
}
