/* What the kernels share: 16 floats at once (AVX-512), and the product of a few rows. */
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define WIDE 64   /* outputs that a product makes at once: four vectors */
#define ROWS 6    /* rows that share what is read of a weight: 24 of 32 registers hold sums */
#define AHEAD 4096 /* bytes; measured */
#define SMALL (1L << 18) /* multiplications that are done before a second thread has woken */
#define ALWAYS static inline __attribute__((always_inline))

/* Written out, for gcc 12 copies the operand that its own function changes. */
#define FMA(sum, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define DOT(sum, u8, s8) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u8), "v"(s8))

/* Few rows wait for memory: what they read is asked for before it is wanted. */
ALWAYS void ask_ahead(const void *at, int lines) {
    for (int i = 0; i < lines; i++) _mm_prefetch((const char *)at + AHEAD + 64 * i, _MM_HINT_T0);
}

ALWAYS long least(long a, long b) { return a < b ? a : b; }

ALWAYS long rounded_up(long n, long step) { return (n + step - 1) / step * step; }

ALWAYS void *room(long bytes) { return aligned_alloc(64, rounded_up(bytes + 1, 64)); }

/* The first n of 16 lanes; n may be out of range. */
ALWAYS __mmask16 lanes(long n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 2 to the power of x <= 126, as Cephes has it; -inf gives 0, although r is no number then: so does
   scaling by -inf. */
ALWAYS __m512 power16(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.339887440266574e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618437357674640e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550332471162809e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402264791363012e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931472028550421e-1f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f)), n);
}

/* 1 / x within two units in the last place; x in 1 … 2^126 */
ALWAYS __m512 inverse16(__m512 x) {
    __m512 near = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(near, _mm512_fnmadd_ps(x, near, _mm512_set1_ps(2.0f)));
}

/* 1 / (1 + exp(-by · x)); NaN stays, it is the second operand. */
ALWAYS __m512 sigmoid16(__m512 x, float by) {
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f * by));
    power = power16(_mm512_min_ps(_mm512_set1_ps(126.0f), power));
    return inverse16(_mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

/* 2 / (1 + exp(-2x)) - 1 */
ALWAYS __m512 tanh16(__m512 x) {
    return _mm512_fmsub_ps(_mm512_set1_ps(2.0f), sigmoid16(x, 2), _mm512_set1_ps(1.0f));
}

/* Abramowitz and Stegun 7.1.26: within 1.5e-7. */
ALWAYS __m512 erf16(__m512 x) {
    __m512 size = _mm512_min_ps(_mm512_set1_ps(16.0f), _mm512_abs_ps(x)), one = _mm512_set1_ps(1.0f);
    __m512 t = inverse16(_mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), size, one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 square = _mm512_mul_ps(size, _mm512_mul_ps(size, _mm512_set1_ps(-1.44269504f)));
    __m512 found = _mm512_fnmadd_ps(p, _mm512_mul_ps(power16(square), t), one);
    __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(1 << 31));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(found), sign));
}

/* From here on, in this thread, numbers below 2^-126 are 0: each would cost a hundred cycles.
   Returns what `_mm_setcsr` takes to end it. */
ALWAYS unsigned drop_denormals(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}

#define SUMS(r) __m512 s##r##0 = zero, s##r##1 = zero, s##r##2 = zero, s##r##3 = zero;
#define MULTIPLY(r)                                                                                \
    if (rows > r) {                                                                                \
        __m512 x = _mm512_set1_ps(a[r * a_row + k]);                                               \
        FMA(s##r##0, x, b0);                                                                       \
        if (width > 1) FMA(s##r##1, x, b1);                                                        \
        if (width > 2) FMA(s##r##2, x, b2);                                                        \
        if (width > 3) FMA(s##r##3, x, b3);                                                        \
    }
#define STORE(r)                                                                                   \
    if (rows > r) {                                                                                \
        store(out + r * out_row, s##r##0, adds);                                                   \
        if (width > 1) store(out + r * out_row + 16, s##r##1, adds);                               \
        if (width > 2) store(out + r * out_row + 32, s##r##2, adds);                               \
        if (width > 3) store(out + r * out_row + 48, s##r##3, adds);                               \
    }

ALWAYS void store(float *out, __m512 sum, int adds) {
    _mm512_storeu_ps(out, adds ? _mm512_add_ps(_mm512_loadu_ps(out), sum) : sum);
}

enum floats { FLOAT32, BFLOAT16, FLOAT16 };

ALWAYS long bytes_of(enum floats type) { return type == FLOAT32 ? 4 : 2; }

/* The numbers 16 * i … 16 * i + 15. */
ALWAYS __m512 load16(enum floats type, const void *x, long i) {
    if (type == FLOAT32) return _mm512_loadu_ps((const float *)x + 16 * i);
    const __m256i half = _mm256_loadu_si256((const __m256i *)x + i);
    if (type == FLOAT16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* a [rows, count] · b [count, 16 * width] → out, or what is added to it. Terms are added in order,
   whatever the number of rows: a row's sums do not depend on the rows beside it. `is_cold`: b comes
   from memory. Inlined for constant rows, widths and types of b. */
ALWAYS void multiply(int rows, int width, enum floats type, int adds, int is_cold, const float *a,
                     long a_row, const void *b, long b_row, long count, float *out, long out_row) {
    const __m512 zero = _mm512_setzero_ps();
    SUMS(0) SUMS(1) SUMS(2) SUMS(3) SUMS(4) SUMS(5)
    for (long k = 0; k < count; k++, b = (const char *)b + b_row * bytes_of(type)) {
        if (is_cold) ask_ahead(b, width * bytes_of(type) / 4);
        __m512 b0 = load16(type, b, 0), b1, b2, b3;
        if (width > 1) b1 = load16(type, b, 1);
        if (width > 2) b2 = load16(type, b, 2);
        if (width > 3) b3 = load16(type, b, 3);
        MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5)
    }
    STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5)
}

#undef SUMS
#undef MULTIPLY
#undef STORE

/* Calls f(constant, ...) for the constant that `value` is, 1 … 6. */
#define FOR_ROWS(value, f, ...)                                                                    \
    switch (value) {                                                                               \
    case 1: f(1, __VA_ARGS__); break;                                                              \
    case 2: f(2, __VA_ARGS__); break;                                                              \
    case 3: f(3, __VA_ARGS__); break;                                                              \
    case 4: f(4, __VA_ARGS__); break;                                                              \
    case 5: f(5, __VA_ARGS__); break;                                                              \
    default: f(6, __VA_ARGS__);                                                                    \
    }
