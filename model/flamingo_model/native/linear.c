/* y = activation(norm(x) · W + b) + residual, with weights in 32, 8 or 4 bits.

   Outputs are made WIDE at a time: the weights of each such panel lie together, in the order in
   which they are read. Inputs stand as they are for float32; for the others each row is first
   rounded to 8 bits, by itself, so that a row's answer never depends on the rows beside it. */
#include <omp.h>

#include "vectors.h"

#define AT_ONCE 256 /* terms of a float32 sum: shorter chains round less */

enum kind { FLOAT32, INT8, INT4 };
enum activation { NONE, RELU, SQUARED_RELU, GELU, GELU_TANH, SILU };
enum { GROUP = 32, FEW = 4, GROUP_BYTES = WIDE * GROUP / 2 }; /* of 4-bit weights: inputs that share
    a scale; rows at once; what a panel's group takes without its scales */

struct linear { /* as Python lays it out */
    const void *weight; /* FLOAT32 [panels, in, 64]; INT8 [panels, in / 4, 64, 4]; INT4 see below */
    const float *scales;  /* INT8: [panels * 64] */
    const int32_t *shift; /* INT8: -128 times the sums of each output's weights */
    const float *bias;    /* [panels * 64], or NULL */
    const float *norm_weight, *norm_bias; /* [in], or NULL: of LayerNorm */
    long in, out;         /* `in` in multiples of 4, or of 32 for INT4 */
    int kind, activation;
    float norm_eps;       /* below 0: no norm */
};

struct input { /* what is multiplied */
    const float *x;  /* FLOAT32 */
    float *normed;   /* FLOAT32: rows; else of one row, for each thread */
    uint8_t *values; /* INT8: around 128; INT4: signed */
    float *steps;    /* INT8: of a row; INT4: of a group, and behind all of them the groups' sums */
};

/* ---- inputs, normed and in 8 bits */

static void norm_row(const struct linear *w, const float *x, float *y) {
    const long in = w->in;
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (long i = 0; i < in; i += 16)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(in - i), x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / in);
    for (long i = 0; i < in; i += 16) {
        const __mmask16 some = lanes(in - i);
        __m512 off = _mm512_maskz_sub_ps(some, _mm512_maskz_loadu_ps(some, x + i), mean);
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / in;
    const __m512 by = _mm512_set1_ps(1 / sqrtf(variance + w->norm_eps));
    for (long i = 0; i < in; i += 16) {
        const __mmask16 some = lanes(in - i);
        __m512 off = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), mean), by);
        if (w->norm_weight) off = _mm512_mul_ps(off, _mm512_maskz_loadu_ps(some, w->norm_weight + i));
        if (w->norm_bias) off = _mm512_add_ps(off, _mm512_maskz_loadu_ps(some, w->norm_bias + i));
        _mm512_mask_storeu_ps(y + i, some, off);
    }
}

static float top_of(const float *x, long count) {
    __m512 top = _mm512_setzero_ps();
    __mmask16 strange = 0;
    for (long i = 0; i < count; i += 16) {
        __m512 some = _mm512_maskz_loadu_ps(lanes(count - i), x + i);
        strange |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
        top = _mm512_max_ps(top, _mm512_abs_ps(some));
    }
    return strange ? NAN : _mm512_reduce_max_ps(top); /* a maximum would lose NaN */
}

static float round_row(const float *x, long count, uint8_t *values) {
    float step = top_of(x, count) * (1 / 127.0f);
    if (step < 1e-30f) step = 1e-30f;
    const __m512 inverse = _mm512_set1_ps(1 / step);
    for (long i = 0; i < count; i += 16) {
        __mmask16 some = lanes(count - i);
        __m512 sized = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), inverse);
        __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(sized), _mm512_set1_epi32(128));
        _mm512_mask_cvtepi32_storeu_epi8(values + i, some, whole);
    }
    return step;
}

static void round_groups(const float *x, long count, int8_t *values, float *steps, float *sums) {
    for (long i = 0; i < count; i += GROUP) {
        float step = top_of(x + i, GROUP) * (1 / 127.0f);
        if (step < 1e-30f) step = 1e-30f;
        const __m512 inverse = _mm512_set1_ps(1 / step);
        int sum = 0;
        for (int half = 0; half < GROUP; half += 16) {
            __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i + half), inverse));
            sum += _mm512_reduce_add_epi32(whole);
            _mm_storeu_si128((__m128i *)(values + i + half), _mm512_cvtepi32_epi8(whole));
        }
        steps[i / GROUP] = step;
        sums[i / GROUP] = step * sum;
    }
}

/* Row `row` of x becomes what is multiplied; in `own` a row is normed that is rounded right after. */
static void take_row(const struct linear *w, const struct input *a, const float *x, long row,
                     long rows, float *own) {
    const long in = w->in, groups = in / GROUP;
    x += row * in;
    if (w->norm_eps >= 0) {
        float *y = w->kind == FLOAT32 ? a->normed + row * in : own;
        norm_row(w, x, y);
        x = y;
    }
    if (w->kind == INT8) a->steps[row] = round_row(x, in, a->values + row * in);
    if (w->kind == INT4)
        round_groups(x, in, (int8_t *)a->values + row * in, a->steps + row * groups,
                     a->steps + (rows + row) * groups);
}

/* ---- sums of a few rows and one panel */

#define SUMS(r) __m512i s##r##0 = first[0], s##r##1 = first[1], s##r##2 = first[2], s##r##3 = first[3];
#define MULTIPLY(r)                                                                                \
    if (rows > r) {                                                                                \
        __m512i x = _mm512_set1_epi32(*(const int32_t *)(values + r * in + k));                    \
        DOT(s##r##0, x, b0);                                                                       \
        DOT(s##r##1, x, b1);                                                                       \
        DOT(s##r##2, x, b2);                                                                       \
        DOT(s##r##3, x, b3);                                                                       \
    }
#define STORE(r)                                                                                   \
    if (rows > r) {                                                                                \
        const __m512 step = _mm512_set1_ps(steps[r]);                                              \
        store_whole(s##r##0, step, scales, sums + r * WIDE);                                       \
        store_whole(s##r##1, step, scales + 16, sums + r * WIDE + 16);                             \
        store_whole(s##r##2, step, scales + 32, sums + r * WIDE + 32);                             \
        store_whole(s##r##3, step, scales + 48, sums + r * WIDE + 48);                             \
    }

ALWAYS void store_whole(__m512i whole, __m512 step, const float *scales, float *out) {
    __m512 scale = _mm512_mul_ps(step, _mm512_loadu_ps(scales));
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale));
}

ALWAYS void multiply8(int rows, int is_cold, const uint8_t *values, const float *steps, const int8_t *panel,
                      long in, const int32_t *shift, const float *scales, float *sums) {
    __m512i first[4];
    for (int i = 0; i < 4; i++) first[i] = _mm512_loadu_si512(shift + 16 * i);
    SUMS(0) SUMS(1) SUMS(2) SUMS(3) SUMS(4) SUMS(5)
    for (long k = 0; k < in; k += 4, panel += 4 * WIDE) {
        if (is_cold) ask_ahead(panel, 4);
        __m512i b0 = _mm512_load_si512(panel), b1 = _mm512_load_si512(panel + 64);
        __m512i b2 = _mm512_load_si512(panel + 128), b3 = _mm512_load_si512(panel + 192);
        MULTIPLY(0) MULTIPLY(1) MULTIPLY(2) MULTIPLY(3) MULTIPLY(4) MULTIPLY(5)
    }
    STORE(0) STORE(1) STORE(2) STORE(3) STORE(4) STORE(5)
}

#undef SUMS
#undef MULTIPLY
#undef STORE

ALWAYS __m512 from_bfloat16(const uint16_t *x) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* A panel is, for each group of 32 inputs, four vectors of 16 outputs: each 4 × 64 bytes, whose
   low halves are inputs 4i … 4i + 3 and whose high halves are 16 further on; then 64 scales and 64
   lowest values in bfloat16. Weight = scale · (0 … 15) + lowest. */
ALWAYS void multiply4(int rows, const int8_t *values, const float *steps, const float *totals,
                      const uint8_t *panel, long in, float *sums) {
    const __m512i low = _mm512_set1_epi8(15);
    const long groups = in / GROUP;
    __m512 found[FEW][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 4; c++) found[r][c] = _mm512_setzero_ps();
    for (long g = 0; g < groups; g++, panel += GROUP_BYTES + 4 * WIDE) {
        const uint16_t *scales = (const uint16_t *)(panel + GROUP_BYTES), *lowest = scales + WIDE;
        for (int c = 0; c < 4; c++) {
            __m512i whole[FEW];
            for (int r = 0; r < rows; r++) whole[r] = _mm512_setzero_si512();
            for (int i = 0; i < 4; i++) {
                __m512i both = _mm512_load_si512(panel + c * 256 + i * 64);
                ask_ahead(panel + c * 256 + i * 64, 1);
                __m512i near = _mm512_and_si512(both, low);
                __m512i far = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                for (int r = 0; r < rows; r++) {
                    const int32_t *x = (const int32_t *)(values + r * in + g * GROUP) + i;
                    DOT(whole[r], near, _mm512_set1_epi32(x[0]));
                    DOT(whole[r], far, _mm512_set1_epi32(x[4]));
                }
            }
            __m512 scale = from_bfloat16(scales + 16 * c), base = from_bfloat16(lowest + 16 * c);
            for (int r = 0; r < rows; r++) {
                __m512 step = _mm512_set1_ps(steps[r * groups + g]);
                __m512 total = _mm512_set1_ps(totals[r * groups + g]);
                FMA(found[r][c], _mm512_mul_ps(_mm512_cvtepi32_ps(whole[r]), step), scale);
                FMA(found[r][c], total, base);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 4; c++) _mm512_storeu_ps(sums + r * WIDE + 16 * c, found[r][c]);
}

static void multiply4_few(int rows, const int8_t *values, const float *steps, const float *totals,
                          const uint8_t *panel, long in, float *sums) {
    switch (rows) {
    case 1: multiply4(1, values, steps, totals, panel, in, sums); break;
    case 2: multiply4(2, values, steps, totals, panel, in, sums); break;
    case 3: multiply4(3, values, steps, totals, panel, in, sums); break;
    default: multiply4(4, values, steps, totals, panel, in, sums);
    }
}

/* ---- what comes behind a product */

ALWAYS __m512 activated(int activation, __m512 x) {
    const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1.0f);
    __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x); /* NaN stays: it is the second */
    switch (activation) {
    case RELU: return positive;
    case SQUARED_RELU: return _mm512_mul_ps(positive, positive);
    case SILU: return _mm512_mul_ps(x, sigmoid16(x, 1));
    case GELU: {
        __m512 erf = erf16(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
        return _mm512_mul_ps(_mm512_mul_ps(half, x), _mm512_add_ps(one, erf));
    }
    case GELU_TANH: {
        __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, x);
        __m512 bent = tanh16(_mm512_mul_ps(_mm512_set1_ps(0.79788456f), inner));
        return _mm512_mul_ps(_mm512_mul_ps(half, x), _mm512_add_ps(one, bent));
    }
    default: return x;
    }
}

static void finish(const struct linear *w, long panel, const float *sums, int rows, float *y,
                   const float *residual) {
    const long first = panel * WIDE;
    for (int r = 0; r < rows; r++)
        for (long i = 0; i < least(WIDE, w->out - first); i += 16) {
            const __mmask16 some = lanes(w->out - first - i);
            const long at = r * w->out + first + i;
            __m512 x = _mm512_loadu_ps(sums + r * WIDE + i);
            if (w->bias) x = _mm512_add_ps(x, _mm512_loadu_ps(w->bias + first + i));
            if (w->activation) x = activated(w->activation, x);
            if (residual) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(some, residual + at));
            _mm512_mask_storeu_ps(y + at, some, x);
        }
}

/* ---- the whole */

static void multiply_panel(const struct linear *w, const struct input *a, long panel, long row,
                           int rows, int is_cold, long all_rows, float *sums) {
    const long in = w->in, groups = in / GROUP;
    if (w->kind == FLOAT32) {
        const float *weight = (const float *)w->weight + panel * in * WIDE, *x = a->x + row * in;
        for (long k = 0; k < in; k += AT_ONCE)
            FOR_ROWS(rows, multiply, 4, k > 0, is_cold, x + k, in, weight + k * WIDE, WIDE,
                     least(AT_ONCE, in - k), sums, WIDE)
    } else if (w->kind == INT8) {
        const int8_t *weight = (const int8_t *)w->weight + panel * in * WIDE;
        FOR_ROWS(rows, multiply8, is_cold, a->values + row * in, a->steps + row, weight, in,
                 w->shift + panel * WIDE, w->scales + panel * WIDE, sums)
    } else {
        const uint8_t *weight = (const uint8_t *)w->weight + panel * groups * (GROUP_BYTES + 4 * WIDE);
        const float *steps = a->steps + row * groups, *totals = steps + all_rows * groups;
        for (int i = 0; i < rows; i += FEW)
            multiply4_few(least(FEW, rows - i), (int8_t *)a->values + (row + i) * in,
                          steps + i * groups, totals + i * groups, weight, in, sums + i * WIDE);
    }
}

/* Room for what inputs become; 0 where there is none. */
static int make_room(const struct linear *w, struct input *a, long rows, int threads) {
    const int is_rounded = w->kind != FLOAT32, is_normed = w->norm_eps >= 0;
    if (is_normed) a->normed = room(sizeof(float) * w->in * (is_rounded ? threads : rows));
    if (is_rounded) a->values = room(rows * w->in);
    if (is_rounded) a->steps = room(2 * sizeof(float) * rows * (w->kind == INT4 ? w->in / GROUP : 1));
    if (is_normed && !is_rounded) a->x = a->normed;
    return (a->normed || !is_normed) && ((a->values && a->steps) || !is_rounded);
}

static void give_back(struct input *a) {
    free(a->normed);
    free(a->values);
    free(a->steps);
}

/* x [rows, in] → y [rows, out], both dense; residual as y, or NULL. 0, or 1: no memory. */
int flamingo_linear(const struct linear *w, const float *x, long rows, float *y,
                    const float *residual, int threads) {
    const long panels = rounded_up(w->out, WIDE) / WIDE, at_once = 16 * ROWS;
    const long parts = (rows + at_once - 1) / at_once;
    const int is_changed = w->kind != FLOAT32 || w->norm_eps >= 0;
    struct input a = {x, NULL, NULL, NULL};
    if (rows * w->in * w->out < SMALL) threads = 1;
    if (!make_room(w, &a, rows, threads)) return give_back(&a), 1;
#pragma omp parallel num_threads(threads)
    {
        const unsigned before = drop_denormals();
        float sums[ROWS * WIDE] __attribute__((aligned(64)));
        if (is_changed) {
#pragma omp for schedule(static)
            for (long row = 0; row < rows; row++)
                take_row(w, &a, x, row, rows, a.normed + omp_get_thread_num() * w->in);
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (long panel = 0; panel < panels; panel++)
            for (long part = 0; part < parts; part++)
                for (long row = part * at_once; row < least(rows, (part + 1) * at_once); row += ROWS) {
                    const int few = least(ROWS, rows - row);
                    const long at = row * w->out;
                    multiply_panel(w, &a, panel, row, few, row == part * at_once, rows, sums);
                    finish(w, panel, sums, few, y + at, residual ? residual + at : NULL);
                }
        _mm_setcsr(before);
    }
    give_back(&a);
    return 0;
}
