/* Convolutions and matrix products. Compiled once for each instruction set.

   Sparse: for a tile of pixels in registers, for each output, for each entry that is not zero: load the pixels that its
   weight meets, which lie at a constant distance, and add the products. Dense: the same with every entry, and four
   outputs share each load. Where an output has a single pixel, outputs or entries take the place of pixels in a vector.

   uint8: a word holds four channels of a pixel. Four outputs are finished together, since they make up one word. */

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
enum { LARGEST_TILE = 8 };

/* Keep an address in a register: else the compiler adds it up anew for each load. */
#define IN_REGISTER(pointer) __asm__("" : "+r"(pointer))

/* Behind a loop: keep sums where the loop had them. Else gcc 12 copies them to where they are needed next each time. */
#if defined(__AVX512BW__)
#define IN_VECTOR(value) __asm__("" : "+v"(value))
#else
#define IN_VECTOR(value) __asm__("" : "+x"(value))
#endif

/* Store a vector of pixels of one plane, vector by vector as `segments` says. */
INLINE void put(const struct product *p, const struct segments *s, int vector, float *out, words value)
{
    if (p->contiguous) {
        store_words(out + vector * LANES, value);
        return;
    }
    const struct segment *segment = s->list + (long)vector * s->each;
    for (int i = 0; i < s->each; i++)
        store_some(out + segment[i].at, segment[i].mask, value);
}

INLINE words get_residual(const struct product *p, const struct segments *s, int vector, const float *residual)
{
    if (p->residual_contiguous)
        return load_words(residual + vector * LANES);
    const struct segment *segment = s->residual + (long)vector * s->each_residual;
    words value = all_words(0);
    for (int i = 0; i < s->each_residual; i++)
        value = load_some(value, residual + segment[i].at, segment[i].mask);
    return value;
}

INLINE void finish_real(const struct product *p, const struct segments *s, float *arena, int vector, int output,
                        reals value)
{
    if (p->residual_multiplier != 0) {
        const float *residual = arena + p->residual.base + (long)output * p->residual.plane;
        value = add_reals(value, as_reals(get_residual(p, s, vector, residual)));
    }
    if (p->clipped)
        value = min_reals(max_reals(value, all_reals(p->low)), all_reals(p->high));
    put(p, s, vector, arena + p->out.base + (long)output * p->out.plane, as_words(value));
}

/* What becomes of sums of uint8: bytes, bytes with a residual, or anything that a struct product can ask for. */
enum { BYTES, BYTES_AND_RESIDUAL, ANYTHING, ENDINGS };

static int ending_of(const struct product *p)
{
    if (p->to_float || p->wide || p->clipped)
        return ANYTHING;
    return p->residual_multiplier != 0 ? BYTES_AND_RESIDUAL : BYTES;
}

/* Add a residual's byte j of each word, scaled, which is exact. It is left where it stands, but for the last, whose place has a sign: a
   power of two in the multiplier makes up for that. */
INLINE reals with_residual(reals value, words bytes, int j, float multiplier)
{
    static const float places[4] = {1, 0x1p-8f, 0x1p-16f, 1};
    return multiply_add(to_reals(byte_at_its_place(bytes, j)), all_reals(multiplier * places[j]), value);
}

INLINE words bytes_of(words a, words b, words c, words d, int zero)
{
    words low = add_16(pack_16(a, b), all_16((short)zero)), high = add_16(pack_16(c, d), all_16((short)zero));
    return shuffle_8(pack_8(low, high), TRANSPOSE);
}

static __attribute__((noinline)) void finish_anything(const struct product *p, const struct segments *s, float *arena,
                                                      int vector, int quad, const words *sums)
{
    const float *m = p->multipliers + 4 * quad;
    words levels[4], bytes = all_words(0);
    if (p->residual_multiplier != 0)
        bytes = get_residual(p, s, vector, arena + p->residual.base + (long)quad * p->residual.plane);
    UNROLL for (int j = 0; j < 4; j++) {
        reals value = multiply(to_reals(sums[j]), all_reals(m[j]));
        if (p->to_float) {
            if (p->clipped)
                value = min_reals(max_reals(value, all_reals(p->low)), all_reals(p->high));
            if (4 * quad + j < p->outputs)
                put(p, s, vector, arena + p->out.base + (4L * quad + j) * p->out.plane, as_words(value));
            continue;
        }
        if (p->residual_multiplier != 0)
            value = with_residual(value, bytes, j, p->residual_multiplier);
        levels[j] = to_words(min_reals(max_reals(value, all_reals(-0x1p30f)), all_reals(0x1p30f)));
    }
    if (p->to_float)
        return;
    words result = bytes_of(levels[0], levels[1], levels[2], levels[3], p->zero);
    if (p->clipped)
        result = min_8(max_8(result, all_8((char)(int)p->low)), all_8((char)(int)p->high));
    put(p, s, vector, arena + p->out.base + (long)quad * p->out.plane, result);
}

/* Four outputs of a vector of pixels, from sums to bytes. */
INLINE void finish_bytes(const int ending, const struct product *p, const struct segments *s, float *arena, int vector,
                         int quad, words a, words b, words c, words d)
{
    words sums[4] = {a, b, c, d}, levels[4];
    if (ending == ANYTHING) {
        finish_anything(p, s, arena, vector, quad, sums);
        return;
    }
    const float *m = p->multipliers + 4 * quad;
    words bytes = all_words(0);
    if (ending == BYTES_AND_RESIDUAL)
        bytes = get_residual(p, s, vector, arena + p->residual.base + (long)quad * p->residual.plane);
    UNROLL for (int j = 0; j < 4; j++) {
        reals value = multiply(to_reals(sums[j]), all_reals(m[j]));
        if (ending == BYTES_AND_RESIDUAL)
            value = with_residual(value, bytes, j, p->residual_multiplier);
        levels[j] = to_words(value);
    }
    put(p, s, vector, arena + p->out.base + (long)quad * p->out.plane,
        bytes_of(levels[0], levels[1], levels[2], levels[3], p->zero));
}

INLINE void sparse_real(const int tile, const struct product *p, const struct segments *s, float *arena, int vector,
                        int first, int last)
{
    const float *in = arena + p->in.base + vector * LANES;
    const struct entry *entries = p->weights;
    const float *bias = p->bias;
    for (int output = 4 * first; output < 4 * last && output < p->outputs; output++) {
        const struct entry *e = entries + p->starts[output], *end = entries + p->starts[output + 1];
        reals sum[LARGEST_TILE], other[LARGEST_TILE];
        UNROLL for (int t = 0; t < tile; t++) {
            sum[t] = all_reals(bias[output]);
            other[t] = all_reals(0);
        }
        for (; e + 1 < end; e += 2) { /* two chains of sums: an addition waits for the one before it */
            const float *x = in + e->offset, *y = in + e[1].offset;
            IN_REGISTER(x);
            IN_REGISTER(y);
            reals w = all_reals(e->weight.real), v = all_reals(e[1].weight.real);
            UNROLL for (int t = 0; t < tile; t++)
                sum[t] = multiply_add(load_reals(x + t * LANES), w, sum[t]);
            UNROLL for (int t = 0; t < tile; t++)
                if (tile <= 4)
                    other[t] = multiply_add(load_reals(y + t * LANES), v, other[t]);
                else
                    sum[t] = multiply_add(load_reals(y + t * LANES), v, sum[t]);
        }
        if (e < end) {
            const float *x = in + e->offset;
            reals w = all_reals(e->weight.real);
            UNROLL for (int t = 0; t < tile; t++)
                sum[t] = multiply_add(load_reals(x + t * LANES), w, sum[t]);
        }
        UNROLL for (int t = 0; t < tile; t++)
            finish_real(p, s, arena, vector + t, output, tile <= 4 ? add_reals(sum[t], other[t]) : sum[t]);
    }
}

/* Dense kernels finish `SIDE` outputs together, of the eight whose weights stand together: the more, the fewer times a
   pixel is loaded; there are registers for so many sums. */
#if defined(__AVX512BW__)
enum { SIDE = 8 };
#else
enum { SIDE = 4 };
#endif
enum { TOGETHER = 8 };

INLINE void dense_real(const int tile, const struct product *p, const struct segments *s, float *arena, int vector,
                       int first, int last)
{
    const float *in = arena + p->in.base + vector * LANES;
    const float *bias = p->bias;
    for (int output = TOGETHER * first; output < TOGETHER * last && output < p->outputs; output += SIDE) {
        const float *w = (const float *)p->weights + (long)(output / TOGETHER) * TOGETHER * p->taps + output % TOGETHER;
        reals sum[SIDE][LARGEST_TILE];
        UNROLL for (int j = 0; j < SIDE; j++)
            UNROLL for (int t = 0; t < tile; t++)
                sum[j][t] = all_reals(bias[output + j]);
        int k = 0;
        do {
            const float *x = in + p->offsets[k];
            IN_REGISTER(x);
            reals pixels[LARGEST_TILE];
            UNROLL for (int t = 0; t < tile; t++)
                pixels[t] = load_reals(x + t * LANES);
            UNROLL for (int j = 0; j < SIDE; j++) {
                reals weight = all_reals(w[j]);
                UNROLL for (int t = 0; t < tile; t++)
                    sum[j][t] = multiply_add(pixels[t], weight, sum[j][t]);
            }
            w += TOGETHER;
        } while (++k < p->taps);
        UNROLL for (int j = 0; j < SIDE; j++)
            if (output + j < p->outputs)
                UNROLL for (int t = 0; t < tile; t++)
                    finish_real(p, s, arena, vector + t, output + j, sum[j][t]);
    }
}

INLINE void sparse_bytes(const int tile, const int ending, const struct product *p, const struct segments *s, float *arena, int vector,
                         int first, int last)
{
    const int32_t *in = (const int32_t *)arena + p->in.base + vector * LANES;
    const struct entry *entries = p->weights;
    const int32_t *bias = p->bias;
    for (int quad = first; quad < last; quad++) {
        words sum[4][LARGEST_TILE];
        UNROLL for (int j = 0; j < 4; j++) {
            const struct entry *e = entries + p->starts[4 * quad + j], *end = entries + p->starts[4 * quad + j + 1];
            UNROLL for (int t = 0; t < tile; t++)
                sum[j][t] = all_words(bias[4 * quad + j]);
#if defined(PAIRS)
            const struct entry *wide = entries + p->safe[4 * quad + j];
#else
            const struct entry *wide = end;
#endif
            for (; e < wide; e++) {
                const int32_t *x = in + e->offset;
                IN_REGISTER(x);
                words w = all_words(e->weight.bytes);
                UNROLL for (int t = 0; t < tile; t++)
                    sum[j][t] = dot(sum[j][t], load_words(x + t * LANES), w);
            }
            for (; e < end; e++) {
                const int32_t *x = in + e->offset;
                IN_REGISTER(x);
                words w = all_words(e->weight.bytes);
                UNROLL for (int t = 0; t < tile; t++)
                    sum[j][t] = dot_wide(sum[j][t], load_words(x + t * LANES), w);
            }
            UNROLL for (int t = 0; t < tile; t++)
                IN_VECTOR(sum[j][t]);
        }
        UNROLL for (int t = 0; t < tile; t++)
            finish_bytes(ending, p, s, arena, vector + t, quad, sum[0][t], sum[1][t], sum[2][t], sum[3][t]);
    }
}

INLINE void dense_bytes(const int tile, const int ending, const struct product *p, const struct segments *s, float *arena, int vector,
                        int first, int last)
{
    const int32_t *in = (const int32_t *)arena + p->in.base + vector * LANES;
    const int32_t *bias = p->bias;
    for (int output = TOGETHER * first; output < TOGETHER * last && output < p->outputs; output += SIDE) {
        const int32_t *w =
            (const int32_t *)p->weights + (long)(output / TOGETHER) * TOGETHER * p->taps + output % TOGETHER;
        words sum[SIDE][LARGEST_TILE];
        UNROLL for (int j = 0; j < SIDE; j++)
            UNROLL for (int t = 0; t < tile; t++)
                sum[j][t] = all_words(bias[output + j]);
        int k = 0;
        do { /* there is one at least: a loop that may not run costs registers */
            const int32_t *x = in + p->offsets[k];
            IN_REGISTER(x);
            words pixels[LARGEST_TILE];
            UNROLL for (int t = 0; t < tile; t++)
                pixels[t] = load_words(x + t * LANES);
            UNROLL for (int j = 0; j < SIDE; j++) {
                words weight = all_words(w[j]);
                UNROLL for (int t = 0; t < tile; t++)
                    sum[j][t] = dot_wide(sum[j][t], pixels[t], weight);
            }
            w += TOGETHER;
        } while (++k < p->taps);
        UNROLL for (int j = 0; j < SIDE; j++)
            UNROLL for (int t = 0; t < tile; t++)
                IN_VECTOR(sum[j][t]);
        UNROLL for (int j = 0; j < SIDE; j += 4)
            if (output + j < p->outputs)
                UNROLL for (int t = 0; t < tile; t++)
                    finish_bytes(ending, p, s, arena, vector + t, (output + j) / 4, sum[j][t], sum[j + 1][t], sum[j + 2][t],
                                 sum[j + 3][t]);
    }
}

/* An output of one pixel. */

static void finish_one_real(const struct product *p, float *arena, int output, int pixel_out, int pixel_residual,
                            float value)
{
    if (p->residual_multiplier != 0)
        value += arena[p->residual.base + (long)output * p->residual.plane + pixel_residual];
    if (p->clipped)
        value = value > p->low ? (value < p->high ? value : p->high) : p->low;
    arena[p->out.base + (long)output * p->out.plane + pixel_out] = value;
}

static uint8_t *byte_at(float *arena, const struct view *view, int channel, int pixel)
{
    return (uint8_t *)(arena + view->base + (long)(channel >> 2) * view->plane + pixel) + (channel & 3);
}

static void finish_one_byte(const struct product *p, float *arena, int output, int pixel_out, int pixel_residual,
                            int32_t sum)
{
    float value = (float)sum * p->multipliers[output];
    if (p->to_float) {
        finish_one_real(p, arena, output, pixel_out, pixel_residual, value);
        return;
    }
    if (p->residual_multiplier != 0) {
        float residual = (float)*byte_at(arena, &p->residual, output, pixel_residual) * p->residual_multiplier;
        value += residual;
    }
    value = value > -0x1p30f ? (value < 0x1p30f ? value : 0x1p30f) : -0x1p30f;
    long level = _mm_cvtss_si32(_mm_set_ss(value)) + (long)p->zero;
    long low = p->clipped ? (long)p->low : 0, high = p->clipped ? (long)p->high : 255;
    *byte_at(arena, &p->out, output, pixel_out) = (uint8_t)(level < low ? low : level > high ? high : level);
}

static float sum_entries_real(const struct entry *e, const struct entry *end, const float *in)
{
    float sum = 0;
#if defined(__AVX512BW__)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    __m512 sums = _mm512_setzero_ps();
    for (; e + 16 <= end; e += 16) {
        __m512i a = _mm512_loadu_si512(e), b = _mm512_loadu_si512(e + 8);
        __m512 x = _mm512_i32gather_ps(_mm512_permutex2var_epi32(a, even, b), in, 4);
        sums = _mm512_fmadd_ps(x, _mm512_castsi512_ps(_mm512_permutex2var_epi32(a, odd, b)), sums);
    }
    sum = _mm512_reduce_add_ps(sums);
#endif
    for (; e < end; e++)
        sum += in[e->offset] * e->weight.real;
    return sum;
}

static int32_t sum_entries_bytes(const struct entry *e, const struct entry *end, const int32_t *in)
{
    int32_t sum = 0;
#if defined(__AVX512BW__)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    __m512i sums = _mm512_setzero_si512();
    for (; e + 16 <= end; e += 16) {
        __m512i a = _mm512_loadu_si512(e), b = _mm512_loadu_si512(e + 8);
        __m512i x = _mm512_i32gather_epi32(_mm512_permutex2var_epi32(a, even, b), in, 4);
        sums = dot_wide(sums, x, _mm512_permutex2var_epi32(a, odd, b));
    }
    sum = _mm512_reduce_add_epi32(sums);
#endif
    for (; e < end; e++) {
        const uint8_t *x = (const uint8_t *)(in + e->offset);
        const int8_t *w = (const int8_t *)&e->weight.bytes;
        sum += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
    }
    return sum;
}

/* Where pixel `index` of an output is read and written. */
struct place {
    int in, out, residual;
};

static struct place place_of(const struct product *p, int index)
{
    int y = index / p->width, x = index % p->width;
    struct place place = {y * p->in.pitch + x, y * p->out.pitch + x, y * p->residual.pitch + x};
    return place;
}

static void single_outputs(const struct product *p, int bytes, float *arena, int first, int last)
{
    const struct entry *entries = p->weights;
    for (int pixel = 0; pixel < p->height * p->width; pixel++) {
        struct place at = place_of(p, pixel);
        const float *in = arena + p->in.base + at.in;
        for (int output = 4 * first; output < 4 * last && output < p->outputs; output++) {
            const struct entry *e = entries + p->starts[output], *end = entries + p->starts[output + 1];
            if (bytes)
                finish_one_byte(p, arena, output, at.out, at.residual,
                                ((const int32_t *)p->bias)[output] + sum_entries_bytes(e, end, (const int32_t *)in));
            else
                finish_one_real(p, arena, output, at.out, at.residual,
                                ((const float *)p->bias)[output] + sum_entries_real(e, end, in));
        }
    }
}

/* Dense, with outputs as lanes: weights are a word for each of 16 outputs, product by product. */
static void lanes_of_outputs(const struct product *p, int bytes, float *arena, int first, int last)
{
    enum { GROUP = 16, VECTORS = GROUP / LANES };
    for (int pixel = 0; pixel < p->height * p->width; pixel++) {
        struct place at = place_of(p, pixel);
        const float *in = arena + p->in.base + at.in;
        for (int group = first; group < last; group++) {
            const float *w = (const float *)p->weights + (long)GROUP * group * p->taps;
            int count = p->outputs - GROUP * group < GROUP ? p->outputs - GROUP * group : GROUP;
            if (bytes) {
                words sum[2 * VECTORS];
                int32_t sums[GROUP];
                UNROLL for (int v = 0; v < 2 * VECTORS; v++)
                    sum[v] = all_words(0);
                int k = 0;
                for (; k + 1 < p->taps; k += 2, w += 2 * GROUP) {
                    words x = all_words(((const int32_t *)in)[p->offsets[k]]);
                    words y = all_words(((const int32_t *)in)[p->offsets[k + 1]]);
                    UNROLL for (int v = 0; v < VECTORS; v++) {
                        sum[v] = dot_wide(sum[v], x, load_words(w + v * LANES));
                        sum[VECTORS + v] = dot_wide(sum[VECTORS + v], y, load_words(w + GROUP + v * LANES));
                    }
                }
                if (k < p->taps) {
                    words x = all_words(((const int32_t *)in)[p->offsets[k]]);
                    UNROLL for (int v = 0; v < VECTORS; v++)
                        sum[v] = dot_wide(sum[v], x, load_words(w + v * LANES));
                }
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    int32_t half[LANES];
                    store_words(sums + v * LANES, sum[v]);
                    store_words(half, sum[VECTORS + v]);
                    for (int i = 0; i < LANES; i++)
                        sums[v * LANES + i] += half[i];
                }
                for (int i = 0; i < count; i++) {
                    int output = GROUP * group + i;
                    finish_one_byte(p, arena, output, at.out, at.residual,
                                    ((const int32_t *)p->bias)[output] + sums[i]);
                }
            } else {
                reals sum[4 * VECTORS];
                float sums[GROUP];
                UNROLL for (int v = 0; v < 4 * VECTORS; v++)
                    sum[v] = all_reals(0);
                int k = 0;
                for (; k + 3 < p->taps; k += 4, w += 4 * GROUP)
                    UNROLL for (int i = 0; i < 4; i++)
                        UNROLL for (int v = 0; v < VECTORS; v++)
                            sum[i * VECTORS + v] = multiply_add(all_reals(in[p->offsets[k + i]]),
                                                                load_reals(w + i * GROUP + v * LANES),
                                                                sum[i * VECTORS + v]);
                for (; k < p->taps; k++, w += GROUP)
                    UNROLL for (int v = 0; v < VECTORS; v++)
                        sum[v] = multiply_add(all_reals(in[p->offsets[k]]), load_reals(w + v * LANES), sum[v]);
                UNROLL for (int v = 0; v < VECTORS; v++)
                    store_words(sums + v * LANES,
                                as_words(add_reals(add_reals(sum[v], sum[VECTORS + v]),
                                                   add_reals(sum[2 * VECTORS + v], sum[3 * VECTORS + v]))));
                for (int i = 0; i < count; i++) {
                    int output = GROUP * group + i;
                    finish_one_real(p, arena, output, at.out, at.residual, ((const float *)p->bias)[output] + sums[i]);
                }
            }
        }
    }
}

/* A tile of so many vectors, with the number as a constant: it decides what is in registers. */
typedef void tile_of(const struct product *p, const struct segments *s, float *arena, int vector, int first, int last);
#define TILE(name, tile, ...) \
    (const struct product *p, const struct segments *s, float *arena, int vector, int first, int last) \
    { \
        name(tile, ##__VA_ARGS__, p, s, arena, vector, first, last); \
    }
#define REAL(name, tile) static void name##_##tile TILE(name, tile)
#define BYTE(name, tile) \
    static void name##_##tile##_plain TILE(name, tile, BYTES) \
    static void name##_##tile##_residual TILE(name, tile, BYTES_AND_RESIDUAL) \
    static void name##_##tile##_any TILE(name, tile, ANYTHING)
#define ENDINGS_OF(name, tile) {name##_##tile##_plain, name##_##tile##_residual, name##_##tile##_any}
#define ALWAYS(name, tile) {name##_##tile, name##_##tile, name##_##tile}
REAL(sparse_real, 1) REAL(sparse_real, 2) REAL(sparse_real, 3) REAL(sparse_real, 4)
REAL(dense_real, 1) REAL(dense_real, 2) REAL(dense_real, 3)
BYTE(sparse_bytes, 1) BYTE(sparse_bytes, 2) BYTE(sparse_bytes, 3)
BYTE(dense_bytes, 1) BYTE(dense_bytes, 2) BYTE(dense_bytes, 3)
#if defined(__AVX512BW__)
REAL(sparse_real, 5) REAL(sparse_real, 6) REAL(sparse_real, 7) REAL(sparse_real, 8)
BYTE(sparse_bytes, 4) BYTE(sparse_bytes, 5) BYTE(sparse_bytes, 6) BYTE(sparse_bytes, 7)
#define MORE(of, name) of(name, 4), of(name, 5), of(name, 6), of(name, 7)
#else
#define MORE(of, name)
#endif
static tile_of *const tiles[4][LARGEST_TILE][ENDINGS] = {
#if defined(__AVX512BW__)
    {ALWAYS(sparse_real, 1), ALWAYS(sparse_real, 2), ALWAYS(sparse_real, 3), MORE(ALWAYS, sparse_real),
     ALWAYS(sparse_real, 8)},
#else
    {ALWAYS(sparse_real, 1), ALWAYS(sparse_real, 2), ALWAYS(sparse_real, 3), ALWAYS(sparse_real, 4)},
#endif
    {ALWAYS(dense_real, 1), ALWAYS(dense_real, 2), ALWAYS(dense_real, 3)},
    {ENDINGS_OF(sparse_bytes, 1), ENDINGS_OF(sparse_bytes, 2), ENDINGS_OF(sparse_bytes, 3), MORE(ENDINGS_OF, sparse_bytes)},
    {ENDINGS_OF(dense_bytes, 1), ENDINGS_OF(dense_bytes, 2), ENDINGS_OF(dense_bytes, 3)},
};

/* The part of `total` that piece `index` of `count` has: from *first up to *last. */
static void part(int total, int index, int count, int *first, int *last)
{
    *first = (int)((long)total * index / count);
    *last = (int)((long)total * (index + 1) / count);
}

INLINE void product(const struct step *step, const struct tiling *tiling, const struct segments *segments,
                    const struct frame *frame, int piece, int bytes)
{
    const struct product *p = step->parameters;
    float *arena = frame->arena;
    int first, last, from, to;
    if (tiling->kernel >= 2) {
        int lanes = tiling->kernel == 3 ? 16 : 4;
        part((p->outputs + lanes - 1) / lanes, piece, tiling->channel_pieces, &first, &last);
        (tiling->kernel == 3 ? lanes_of_outputs : single_outputs)(p, bytes, arena, first, last);
        return;
    }
    int group = tiling->kernel == 1 ? TOGETHER : 4;
    part((p->outputs + group - 1) / group, piece / tiling->pixel_pieces, tiling->channel_pieces, &first, &last);
    part(segments->vectors, piece % tiling->pixel_pieces, tiling->pixel_pieces, &from, &to);
    int ending = bytes ? ending_of(p) : 0;
    for (int count = (to - from + tiling->tile - 1) / tiling->tile; count > 0; count--) { /* tiles of equal size */
        int size = (to - from + count - 1) / count;
        tiles[2 * bytes + tiling->kernel][size - 1][ending](p, segments, arena, from, first, last);
        from += size;
    }
}
