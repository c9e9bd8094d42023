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

/* Cephes' polynomial, within two units in the last place; NaN stays: it is the second operand. */
ALWAYS __m512 exp16(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-105.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* 2 to the power of x <= 0, as Cephes has it; what is below -126 becomes 0 in steps, and so does
   -inf, although r is no number then: scaling by -inf gives 0. */
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

ALWAYS __m512 sigmoid16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* 1 - 2 / (1 + exp(2x)) */
ALWAYS __m512 tanh16(__m512 x) {
    __m512 two = _mm512_set1_ps(2.0f), one = _mm512_set1_ps(1.0f);
    return _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(one, exp16(_mm512_mul_ps(two, x)))));
}

/* Abramowitz and Stegun 7.1.26: within 1.5e-7. */
ALWAYS __m512 erf16(__m512 x) {
    __m512 size = _mm512_abs_ps(x), one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), size, one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 tail = _mm512_mul_ps(exp16(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(x, x))), t);
    __m512 found = _mm512_fnmadd_ps(p, tail, one);
    __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(1 << 31));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(found), sign));
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

/* a [rows, count] · b [count, 16 * width] → out, or what is added to it. Terms are added in order,
   whatever the number of rows: a row's sums do not depend on the rows beside it. `is_cold`: b comes
   from memory. Inlined for constant rows and widths. */
ALWAYS void multiply(int rows, int width, int adds, int is_cold, const float *a, long a_row, const float *b,
                     long b_row, long count, float *out, long out_row) {
    const __m512 zero = _mm512_setzero_ps();
    SUMS(0) SUMS(1) SUMS(2) SUMS(3) SUMS(4) SUMS(5)
    for (long k = 0; k < count; k++, b += b_row) {
        if (is_cold) ask_ahead(b, width);
        __m512 b0 = _mm512_loadu_ps(b), b1, b2, b3;
        if (width > 1) b1 = _mm512_loadu_ps(b + 16);
        if (width > 2) b2 = _mm512_loadu_ps(b + 32);
        if (width > 3) b3 = _mm512_loadu_ps(b + 48);
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
