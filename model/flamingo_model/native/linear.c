/* y = activation(norm(x) · W + b) + residual, with weights in 32, 16, 8 or 4 bits.

   Outputs are made WIDE at a time: the weights of each such panel lie together, in the order in
   which they are read. Floats of 16 bits are widened, and all sums of them float32. For weights in
   8 or 4 bits each row of inputs is first rounded to 8 bits, by itself, so that a row's answer never
   depends on the rows beside it. */
#include <omp.h>

#include "step.h"
#include "vectors.h"

#define AT_ONCE 256 /* terms of a float32 sum: shorter chains round less */

enum kind { INT8 = FLOAT16 + 1, INT4 }; /* behind the floats */
enum norm { NO_NORM, LAYER_NORM, RMS_NORM };
enum activation { NONE, RELU, SQUARED_RELU, GELU, GELU_TANH, SILU };
enum { GROUP = 32, FEW = 4, GROUP_BYTES = WIDE * GROUP / 2 }; /* of 4-bit weights: inputs that share
    a scale; rows at once; what a panel's group takes without its scales */

struct input { /* what is multiplied, where it is not x as it is */
    float *normed;   /* floats: rows; else of one row, for each thread */
    float *steps;    /* INT8: of a row; INT4: of a group, and behind all of them the groups' sums */
    uint8_t *values; /* INT8: around 128; INT4: signed */
};

/* ---- inputs, normed and in 8 bits */

static int is_float(const struct linear *w) { return w->kind < INT8; }

static long normed_floats(const struct linear *w, long rows, int threads) {
    return w->norm == NO_NORM ? 0 : w->in * (is_float(w) ? rows : threads);
}

static long step_floats(const struct linear *w, long rows) {
    return is_float(w) ? 0 : w->kind == INT8 ? rows : 2 * rows * (w->in / GROUP);
}

long input_bytes(const struct linear *w, long rows, int threads) {
    const long floats = normed_floats(w, rows, threads) + step_floats(w, rows);
    return sizeof(float) * floats + (is_float(w) ? 0 : rows * w->in);
}

static struct input input_in(const struct linear *w, long rows, int threads, void *space) {
    float *normed = space, *steps = normed + normed_floats(w, rows, threads);
    return (struct input){normed, steps, (uint8_t *)(steps + step_floats(w, rows))};
}

static void norm_row(const struct linear *w, const float *x, float *y) {
    const long in = w->in;
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (long i = 0; i < in; i += 16)
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(in - i), x + i));
    const float middle = w->norm == RMS_NORM ? 0 : _mm512_reduce_add_ps(sum) / in;
    const __m512 mean = _mm512_set1_ps(middle);
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
    if (w->norm) {
        float *y = is_float(w) ? a->normed + row * in : own;
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
            __m512 scale = load16(BFLOAT16, scales, c), base = load16(BFLOAT16, lowest, c);
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

/* ---- an activation by itself */

void bend_together(const struct bend *a, long rows) {
    enum { PART = 1024 }; /* floats: so that a single row, too, is shared */
    const long row_x = a->is_gated ? 2 * a->width : a->width;
#pragma omp for collapse(2) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long part = 0; part < a->width; part += PART)
            for (long i = part; i < least(part + PART, a->width); i += 16) {
                const __mmask16 some = lanes(a->width - i);
                const float *from = a->x + row * row_x + i;
                __m512 x = activated(a->activation, _mm512_maskz_loadu_ps(some, from));
                if (a->is_gated) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(some, from + a->width));
                _mm512_mask_storeu_ps(a->y + row * a->width + i, some, x);
            }
}

void flamingo_bend(const struct bend *a, long rows, int threads) {
    if (rows * a->width < SMALL / 16) threads = 1; /* some 16 operations each */
#pragma omp parallel num_threads(threads)
    {
        const unsigned before = drop_denormals();
        bend_together(a, rows);
        _mm_setcsr(before);
    }
}

/* ---- the whole */

#define MULTIPLY_FLOATS(type)                                                                      \
    FOR_ROWS(rows, multiply, 4, type, k > 0, is_cold, x + k, in,                                   \
             (const char *)panel + k * WIDE * bytes_of(type), WIDE, least(AT_ONCE, in - k), sums, WIDE)

static void multiply_floats(enum floats type, const float *x, int rows, int is_cold, const void *panel,
                            long in, float *sums) {
    for (long k = 0; k < in; k += AT_ONCE) switch (type) {
        case FLOAT32: MULTIPLY_FLOATS(FLOAT32) break;
        case BFLOAT16: MULTIPLY_FLOATS(BFLOAT16) break;
        case FLOAT16: MULTIPLY_FLOATS(FLOAT16) break;
        }
}

#undef MULTIPLY_FLOATS

static const char *panel_of(const struct linear *w, long panel) {
    return (const char *)w->weight + panel * w->in * WIDE * bytes_of(w->kind);
}

/* Many rows share the widening of 16 bits, where arithmetic is the cost; from so many on it pays. */
static int is_widened(const struct linear *w, long rows) {
    return (w->kind == BFLOAT16 || w->kind == FLOAT16) && rows > 6 * ROWS;
}

static void multiply_widened(const struct linear *w, const float *x, long panel, long rows, float *sums) {
    float part[AT_ONCE * WIDE] __attribute__((aligned(64)));
    for (long k = 0; k < w->in; k += AT_ONCE) {
        const long count = least(AT_ONCE, w->in - k);
        const char *halves = panel_of(w, panel) + k * WIDE * bytes_of(w->kind);
        for (long i = 0; i < count * WIDE / 16; i++) {
            ask_ahead(halves + 32 * i, 1);
            _mm512_store_ps(part + 16 * i, load16(w->kind, halves, i));
        }
        for (long row = 0; row < rows; row += ROWS)
            FOR_ROWS(least(ROWS, rows - row), multiply, 4, FLOAT32, k > 0, 0, x + row * w->in + k, w->in,
                     part, WIDE, count, sums + row * WIDE, WIDE)
    }
}

static void multiply_panel(const struct linear *w, const struct input *a, const float *x, long panel,
                           long row, int rows, int is_cold, long all_rows, float *sums) {
    const long in = w->in, groups = in / GROUP;
    if (is_float(w)) {
        multiply_floats(w->kind, x + row * in, rows, is_cold, panel_of(w, panel), in, sums);
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

/* x [rows, in] → y [rows, out], both dense; residual as y, or NULL. All threads of a team call it,
   and share the work and the `space`. */
void multiply_together(const struct linear *w, const float *x, long rows, float *y,
                       const float *residual, void *space) {
    enum { MOST = 32 * ROWS }; /* rows at once, of a panel that is widened for them */
    const struct input a = input_in(w, rows, omp_get_num_threads(), space);
    const int is_wide = is_widened(w, rows);
    const long panels = rounded_up(w->out, WIDE) / WIDE, tile = is_wide ? MOST : ROWS;
    const long at_once = is_wide ? MOST : 16 * ROWS; /* rows of a part, in such tiles */
    const long parts = (rows + at_once - 1) / at_once;
    float sums[MOST * WIDE] __attribute__((aligned(64)));
    if (!is_float(w) || w->norm) {
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++)
            take_row(w, &a, x, row, rows, a.normed + omp_get_thread_num() * w->in);
        if (is_float(w)) x = a.normed;
    }
#pragma omp for collapse(2) schedule(dynamic)
    for (long panel = 0; panel < panels; panel++)
        for (long part = 0; part < parts; part++) {
            const long first = part * at_once, last = least(rows, first + at_once);
            for (long row = first; row < last; row += tile) {
                const int few = least(tile, last - row);
                const long at = row * w->out;
                if (is_wide)
                    multiply_widened(w, x + row * w->in, panel, few, sums);
                else
                    multiply_panel(w, &a, x, panel, row, few, row == first, rows, sums);
                finish(w, panel, sums, few, y + at, residual ? residual + at : NULL);
            }
        }
}

/* The same by a team of its own. 0, or 1: no memory. */
int flamingo_linear(const struct linear *w, const float *x, long rows, float *y,
                    const float *residual, int threads) {
    if (rows * w->in * w->out < SMALL) threads = 1;
    void *space = room(input_bytes(w, rows, threads));
    if (!space) return 1;
#pragma omp parallel num_threads(threads)
    {
        const unsigned before = drop_denormals();
        multiply_together(w, x, rows, y, residual, space);
        _mm_setcsr(before);
    }
    free(space);
    return 0;
}
