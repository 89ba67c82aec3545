/* What a network is made of, as data: generated code holds one `struct step` for each loop over memory.

   All addresses in memory for activations are in words of four bytes: one FP32 value, or one pixel of four uint8
   channels. So FP32 and uint8 share all geometry. A plane holds one channel (FP32) or four (uint8); pixels of a row lie
   side by side; rows are `pitch` apart and planes `plane`. Around the pixels may be a border, which is written when a
   model is created and never after. */
#define _GNU_SOURCE
#include <stdint.h>

enum { SETS = 4 }; /* instruction sets */

/* Where a tensor lies: address of its first pixel, and distances. */
struct view {
    int32_t base, plane, pitch;
};

/* Pixels of a loop over whole tensors: planes, rows and columns. */
struct grid {
    int32_t planes, rows, columns;
};

/* A tensor that is there several times: where copy i has place x, there is pixel x + first + i * step. So a convolution
   reads along whole cache lines wherever its window is. Copies are `distance` apart; views show the one without shift. */
struct copies {
    int32_t count, first, step, distance;
};

/* A convolution. Input pixels of output pixel (y, x) are at constant distances from `in.base + y * in.pitch + x`. */
struct product {
    struct view in, out, residual;
    int32_t height, width;    /* of the output */
    int32_t outputs;          /* channels of the output */
    int32_t contiguous;       /* every vector of pixels is stored whole */
    int32_t residual_contiguous;
    struct copies copies;     /* of the output */
    int32_t wide;             /* sums may leave the range of int32 after scaling: limit them first */
    int32_t to_float;         /* uint8 to FP32 */
    int32_t clipped;          /* there are limits beyond those of uint8 */
    int32_t taps;             /* of the dense kernel: products of an output */
    const uint32_t *starts;   /* sparse: where the entries of each output begin */
    const uint32_t *safe;     /* uint8: how many of them no pair of products can overflow 16 bits */
    const int32_t *offsets;   /* dense: of each product, in words */
    const void *weights;      /* sparse: struct entry; dense: a word for each of four outputs, product by product */
    const void *bias;         /* outputs rounded up to four: FP32 or int32 */
    const float *multipliers; /* uint8: outputs rounded up to four */
    float residual_multiplier, low, high;
    int32_t zero;             /* of a uint8 output */
};

/* A non-zero word of weights, and where its input is. */
struct entry {
    int32_t offset;
    union {
        float real;
        int32_t bytes; /* four INT8 */
    } weight;
};

struct pool {
    struct view in, out;
    struct grid grid;         /* of the output */
    int32_t taps, average, whole;     /* whole: the window is the plane */
    int32_t in_rows, in_columns;
    int32_t row_step, column_step;    /* from one window to the next */
    const int32_t *offsets;           /* of a window's pixels from the first, in words */
    const float *divisors;            /* 1 / values that count, for each pixel of the output, scales included */
    int32_t in_zero, out_zero;
};

struct pointwise {            /* functions, tables, sums: one pixel to one pixel */
    struct view in, other, out;
    struct grid grid;
    int32_t kind;
    int32_t broadcast;        /* `other` has one value for each channel */
    int32_t channels;
    float a_multiplier, b_multiplier, low, high;
    int32_t a_zero, b_zero, zero;
    const float *multipliers, *offsets; /* for each channel */
    const uint8_t *table;
    float parameters[2];
};

struct transfer {             /* from one layout to another */
    struct view in, out;
    int32_t channels, height, width; /* of the input */
    int32_t row_step, column_step;   /* the output is split into so many phases, */
    int32_t phases;                  /* of which it holds the first so many */
    int32_t top, left;               /* pixels before the first one in the output */
    int32_t out_rows, out_columns;   /* of a phase */
    int32_t port;                    /* of the network */
    int32_t quantize;
    float scale;
    int32_t zero;
    int32_t first_channel;           /* of the output, for Concat */
    const uint8_t *table;            /* of uint8, or null */
    int32_t out_height, out_width;   /* of a Reshape */
};

enum kind {
    PRODUCT, PRODUCT_U8, POOL, POOL_U8, FUNCTION, TABLE_U8, AFFINE, AFFINE_U8, BINARY, BINARY_U8, RELAYOUT, LOAD,
    LOAD_U8, STORE, QUANTIZE, DEQUANTIZE, JOIN, JOIN_U8, RESHAPE, RESHAPE_U8, SOFTMAX, KINDS
};

/* How a product is cut. A plan has one of these for each step and instruction set. */
struct tiling {
    int16_t kernel;           /* 0 sparse, 1 dense, 2 an output at a time */
    int16_t tile;             /* vectors of pixels in registers */
    int16_t pixel_pieces, channel_pieces;
};

struct step {
    enum kind kind;
    const char *name, *operator_;
    const void *parameters;
    struct tiling tiling[SETS];
};

/* Where lanes of a vector of pixels are: those of `mask` from `at` on. */
struct segment {
    uint32_t mask;
    int32_t at;
};

/* Vectors of a product's pixels: the segments of each in the output, and in the residual. */
struct segments {
    int32_t vectors, each, each_residual;
    struct segment *list, *residual;
};

/* What a thread computes with: memory for the activations of a sample, and where the sample is. */
struct frame {
    float *arena;
    const float *const *inputs;
    float *const *outputs;
    long sample;
    const struct segments *segments; /* of all steps */
};

/* Whether a product can be cut into tiles of so many vectors of pixels, with the kernel that its weights are packed for. */
typedef int has_tile(int bytes, int kernel, int tile);

/* Compute one of the pieces of a step; there are `count`. */
typedef void run_piece(const struct step *step, const struct tiling *tiling, const struct segments *segments,
                       const struct frame *frame, int piece, int count);
