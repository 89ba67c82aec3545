/* All steps, for the instruction set `SET` that this file is compiled for. */
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)

void NAMED(run_piece_, SET)(const struct step *step, const struct tiling *tiling, const struct segments *segments,
                            const struct frame *frame, int piece, int count)
{
    float *arena = frame->arena;
    const void *p = step->parameters;
    switch (step->kind) {
    case PRODUCT: product(step, tiling, segments, frame, piece, 0); break;
    case PRODUCT_U8: product(step, tiling, segments, frame, piece, 1); break;
    case POOL: pool(p, arena, piece, count); break;
    case POOL_U8: pool_bytes(p, arena, piece, count); break;
    case FUNCTION: function(p, arena, piece, count); break;
    case TABLE_U8: table(p, arena, piece, count); break;
    case AFFINE: affine(p, arena, piece, count); break;
    case AFFINE_U8: affine_bytes(p, arena, piece, count); break;
    case BINARY: binary(p, arena, piece, count); break;
    case BINARY_U8: binary_bytes(p, arena, piece, count); break;
    case RELAYOUT: relayout(p, arena, piece, count); break;
    case LOAD: load(p, frame, arena, 0, piece, count); break;
    case LOAD_U8: load(p, frame, arena, 1, piece, count); break;
    case STORE: store(p, frame, arena, 0, piece, count); break;
    case QUANTIZE: quantize(p, arena, piece, count); break;
    case DEQUANTIZE: dequantize(p, arena, piece, count); break;
    case JOIN: join(p, arena, piece, count); break;
    case JOIN_U8: join_bytes(p, arena, piece, count); break;
    case RESHAPE: reshape(p, arena, 0); break;
    case RESHAPE_U8: reshape(p, arena, 1); break;
    case SOFTMAX: softmax(p, arena); break;
    case KINDS: break;
    }
}
const int NAMED(lanes_, SET) = LANES;

/* Whether there are tiles of so many vectors. */
int NAMED(has_tile_, SET)(int bytes, int kernel, int tile)
{
    return tile >= 1 && (kernel > 1 || (tile <= LARGEST_TILE && tiles[2 * bytes + kernel][tile - 1][0]));
}
