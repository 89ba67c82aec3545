/* Vectors of the instruction set that this file is compiled for: what the kernels need of them, under one name. */
#include <immintrin.h>

#if defined(__AVX512BW__)
typedef __m512 reals;
typedef __m512i words;
enum { LANES = 16 };
#define load_reals(p) _mm512_loadu_ps(p)
#define load_words(p) _mm512_loadu_si512(p)
#define store_words(p, v) _mm512_storeu_si512(p, v)
#define divide(a, b) _mm512_div_ps(a, b)
#define add_words(a, b) _mm512_add_epi32(a, b)
#define max_words(a, b) _mm512_max_epi32(a, b)
#define min_words(a, b) _mm512_min_epi32(a, b)
#define either(a, b) _mm512_or_si512(a, b)
#define shift_left(v, by) _mm512_sllv_epi32(v, _mm512_set1_epi32(by))
#define widen_8(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p)))
#define all_reals(x) _mm512_set1_ps(x)
#define all_words(x) _mm512_set1_epi32(x)
#define multiply_add(a, b, c) _mm512_fmadd_ps(a, b, c)
#define multiply(a, b) _mm512_mul_ps(a, b)
#define add_reals(a, b) _mm512_add_ps(a, b)
#define max_reals(a, b) _mm512_max_ps(a, b)
#define min_reals(a, b) _mm512_min_ps(a, b)
#define to_reals(v) _mm512_cvtepi32_ps(v)
#define to_words(v) _mm512_cvtps_epi32(v)
#define as_words(v) _mm512_castps_si512(v)
#define as_reals(v) _mm512_castsi512_ps(v)
#define pack_16(a, b) _mm512_packs_epi32(a, b)
#define pack_8(a, b) _mm512_packus_epi16(a, b)
#define all_16(x) _mm512_set1_epi16(x)
#define add_16(a, b) _mm512_adds_epi16(a, b)
#define all_8(x) _mm512_set1_epi8(x)
#define max_8(a, b) _mm512_max_epu8(a, b)
#define min_8(a, b) _mm512_min_epu8(a, b)
#define byte_at_its_place(v, j) \
    ((j) == 3 ? _mm512_srli_epi32(v, 24) : _mm512_and_si512(v, _mm512_set1_epi32(0xff << 8 * ((j) & 3))))
#define TRANSPOSE _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15))
#define shuffle_8(v, by) _mm512_shuffle_epi8(v, by)
#define store_some(p, mask, v) _mm512_mask_storeu_epi32(p, (__mmask16)(mask), v)
#define load_some(old, p, mask) _mm512_mask_loadu_epi32(old, (__mmask16)(mask), p)
#define EVERY_OTHER _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define load_every_other(p) \
    _mm512_permutex2var_epi32(load_words(p), EVERY_OTHER, load_words((const int32_t *)(p) + 16))
#define gather(p, distances) _mm512_i32gather_epi32(distances, p, 4)
#define multiply_words(a, b) _mm512_mullo_epi32(a, b)
#define COUNTING _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#if defined(__AVX512VNNI__)
/* In assembler, since compilers know the instruction too well: gcc 12 copies sums from register to register for it. */
static inline __attribute__((always_inline)) words dot(words sum, words x, words w)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}
#else
#define PAIRS 1
#define dot(sum, x, w) \
    _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(x, w), _mm512_set1_epi16(1)))
#define mask_words(v, m) _mm512_and_si512(v, _mm512_set1_epi32(m))
#endif

#else /* AVX2 */
typedef __m256 reals;
typedef __m256i words;
enum { LANES = 8 };
#define load_reals(p) _mm256_loadu_ps(p)
#define load_words(p) _mm256_loadu_si256((const __m256i *)(p))
#define store_words(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define divide(a, b) _mm256_div_ps(a, b)
#define add_words(a, b) _mm256_add_epi32(a, b)
#define max_words(a, b) _mm256_max_epi32(a, b)
#define min_words(a, b) _mm256_min_epi32(a, b)
#define either(a, b) _mm256_or_si256(a, b)
#define shift_left(v, by) _mm256_sllv_epi32(v, _mm256_set1_epi32(by))
#define widen_8(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p)))
#define all_reals(x) _mm256_set1_ps(x)
#define all_words(x) _mm256_set1_epi32(x)
#define multiply_add(a, b, c) _mm256_fmadd_ps(a, b, c)
#define multiply(a, b) _mm256_mul_ps(a, b)
#define add_reals(a, b) _mm256_add_ps(a, b)
#define max_reals(a, b) _mm256_max_ps(a, b)
#define min_reals(a, b) _mm256_min_ps(a, b)
#define to_reals(v) _mm256_cvtepi32_ps(v)
#define to_words(v) _mm256_cvtps_epi32(v)
#define as_words(v) _mm256_castps_si256(v)
#define as_reals(v) _mm256_castsi256_ps(v)
#define pack_16(a, b) _mm256_packs_epi32(a, b)
#define pack_8(a, b) _mm256_packus_epi16(a, b)
#define all_16(x) _mm256_set1_epi16(x)
#define add_16(a, b) _mm256_adds_epi16(a, b)
#define all_8(x) _mm256_set1_epi8(x)
#define max_8(a, b) _mm256_max_epu8(a, b)
#define min_8(a, b) _mm256_min_epu8(a, b)
#define byte_at_its_place(v, j) \
    ((j) == 3 ? _mm256_srli_epi32(v, 24) : _mm256_and_si256(v, _mm256_set1_epi32(0xff << 8 * ((j) & 3))))
#define TRANSPOSE \
    _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15))
#define shuffle_8(v, by) _mm256_shuffle_epi8(v, by)
#define lanes_of(mask) \
    _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_set1_epi32((int)(mask)), _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128)), \
                       _mm256_setzero_si256())
#define store_some(p, mask, v) _mm256_maskstore_epi32((int *)(p), lanes_of(mask), v)
#define load_some(old, p, mask) \
    _mm256_blendv_epi8(old, _mm256_maskload_epi32((const int *)(p), lanes_of(mask)), lanes_of(mask))
#define load_every_other(p) \
    _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(load_reals((const float *)(p)), \
                                                                   load_reals((const float *)(p) + 8), 0x88)), 0xd8)
#define gather(p, distances) _mm256_i32gather_epi32(p, distances, 4)
#define multiply_words(a, b) _mm256_mullo_epi32(a, b)
#define COUNTING _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
#if defined(__AVXVNNI__)
static inline __attribute__((always_inline)) words dot(words sum, words x, words w)
{
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
}
#else
#define PAIRS 1
#define dot(sum, x, w) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)))
#define mask_words(v, m) _mm256_and_si256(v, _mm256_set1_epi32(m))
#endif
#endif

/* A word of weights times words of inputs, where pairs of products may not fit into 16 bits: each pair with a zero. */
#if defined(PAIRS)
#define dot_wide(sum, x, w) \
    dot(dot(sum, x, mask_words(w, 0x00ff00ff)), x, mask_words(w, (int)0xff00ff00))
#else
#define dot_wide(sum, x, w) dot(sum, x, w)
#endif

/* Words that are `step` apart. */
static inline __attribute__((always_inline)) words load_apart(const int32_t *p, int step)
{
    if (step == 1)
        return load_words(p);
    if (step == 2)
        return load_every_other(p);
    return gather(p, multiply_words(COUNTING, all_words(step)));
}

/* The first `count` lanes. */
static inline uint32_t first_lanes(int count) { return count >= LANES ? 0xffffffffu : (1u << count) - 1; }
