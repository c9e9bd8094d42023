/* Attention in float32: of prompts and pictures (many queries), and of decoding tokens (one each).

   A query's scores are softened in one go: they fit the cache, however many keys there are. */
#include "step.h"
#include "vectors.h"

struct dense { /* strides in floats; keys of a head lie `key` apart */
    const float *q, *k, *v;
    float *out;
    long q_batch, q_row, q_head, k_batch, k_key, k_head, v_batch, v_key, v_head;
    long out_batch, out_row, out_head;
    long batch, heads, kv_heads, head_dim, queries, keys;
    struct seen seen;
    const int64_t *table; /* or NULL; of a batch of one, whose keys lie in these blocks, `k_batch` apart */
    long block_size;
};

/* Keys [first, last) are what a query at `place` sees of `keys`. */
ALWAYS long first_seen(struct seen s, long place) {
    return s.window && place >= s.window ? place - s.window + 1 : 0;
}

ALWAYS long last_seen(struct seen s, long place, long keys) {
    return s.start < 0 ? keys : least(keys, place + 1);
}

ALWAYS __mmask16 between(long first, long last, long i) { return lanes(last - i) & ~lanes(first - i); }

/* ALiBi: what is added to the scores of the keys [first, last) of a query at `place`. */
static void add_slope(float *scores, long first, long last, float slope, long place) {
    const __m512 steps = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (long i = first / 16 * 16; i < last; i += 16) {
        __m512 ahead = _mm512_add_ps(_mm512_set1_ps(i - place), steps), x = _mm512_loadu_ps(scores + i);
        FMA(x, _mm512_set1_ps(slope), ahead);
        _mm512_storeu_ps(scores + i, x);
    }
}

/* Scores [first, last) → weights before they are divided by their sum, which is the answer; scores
   count `scale` times. The others, up to `count`, a multiple of 16, become 0. */
static float soften(float *scores, long first, long last, long count, float scale) {
    const __m512 away = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale * 1.44269504f);
    __m512 top = away, sum = _mm512_setzero_ps();
    for (long i = first / 16 * 16; i < last; i += 16)
        top = _mm512_max_ps(top, _mm512_mask_loadu_ps(away, between(first, last, i), scores + i));
    const __m512 peak = _mm512_mul_ps(by, _mm512_set1_ps(_mm512_reduce_max_ps(top)));
    for (long i = 0; i < count; i += 16) {
        const __mmask16 in = between(first, last, i);
        __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + i), by, peak);
        x = _mm512_maskz_mov_ps(in, power16(x));
        _mm512_storeu_ps(scores + i, x);
        sum = _mm512_add_ps(sum, x);
    }
    return _mm512_reduce_add_ps(sum);
}

/* A query that sees nothing gets 0. */
ALWAYS __m512 divided(__m512 sums, float total) {
    return total == 0 ? _mm512_setzero_ps() : _mm512_mul_ps(sums, _mm512_set1_ps(1 / total));
}

/* What attends does so for one head of one row, or of one of a batch, with room of its own. */
typedef void attend_one(const void *a, long row, long head, float *space);

/* One for each of `rows` and each head. All threads of a team call it, each with room of its own, or
   none: then it fails with 1. */
static int attend_together(attend_one *attend, const void *a, long rows, long heads, float *space) {
#pragma omp for collapse(2) schedule(dynamic)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++)
            if (space) attend(a, row, head, space);
    return !space;
}

/* The same by a team of its own, with room for `size` floats each. */
static int attend_each(attend_one *attend, const void *a, long rows, long heads, long size,
                       int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const unsigned before = drop_denormals();
        float *space = room(size * sizeof(float));
        failed = attend_together(attend, a, rows, heads, space);
        free(space);
        _mm_setcsr(before);
    }
    return failed;
}

/* ---- many queries */

/* Rows of 16 → columns of 16. */
static void turn(__m512 x[16]) {
    __m512 y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44);
        x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xEE);
        x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44);
        x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xEE);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = i; j < i + 4; j++) {
            y[j] = _mm512_shuffle_f32x4(x[j], x[j + 4], 0x88);
            y[j + 4] = _mm512_shuffle_f32x4(x[j], x[j + 4], 0xDD);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_f32x4(y[j], y[j + 8], 0xDD);
    }
}

/* Where key `i` of a head begins. */
ALWAYS const float *key_at(const struct dense *a, const float *x, long x_block, long x_key, long i) {
    if (!a->table) return x + i * x_key;
    return x + a->table[i / a->block_size] * x_block + i % a->block_size * x_key;
}

/* Keys of one head as panels [keys / 64][dim][64]; behind the last key 0, up to the next 16. */
static void pack_keys(const struct dense *a, const float *k, float *panels) {
    const long keys = a->keys, dim = a->head_dim;
    for (long first = 0; first < keys; first += 16) {
        float *panel = panels + first / WIDE * WIDE * dim + first % WIDE;
        for (long d = 0; d < dim; d += 16) {
            __m512 x[16];
            for (int i = 0; i < 16; i++) {
                const long key = least(first + i, keys - 1);
                const __mmask16 some = first + i < keys ? lanes(dim - d) : 0;
                x[i] = _mm512_maskz_loadu_ps(some, key_at(a, k, a->k_batch, a->k_key, key) + d);
            }
            turn(x);
            for (int i = 0; i < least(16, dim - d); i++)
                _mm512_storeu_ps(panel + (d + i) * WIDE, x[i]);
        }
    }
}

/* Values of one head as rows of `width` floats, in multiples of 16: behind `dim` 0. */
static void pack_values(const struct dense *a, const float *v, float *rows, long width) {
    for (long key = 0; key < a->keys; key++) {
        const float *from = key_at(a, v, a->v_batch, a->v_key, key);
        for (long d = 0; d < width; d += 16)
            _mm512_storeu_ps(rows + key * width + d, _mm512_maskz_loadu_ps(lanes(a->head_dim - d), from + d));
    }
}

/* x [rows, count] · y [count, the first `wide` of 64 columns, in multiples of 16] → out */
static void multiply_some(int rows, long wide, const float *x, long x_row, const float *y, long y_row,
                          long count, float *out, long out_row) {
    switch (wide) {
    case 16: FOR_ROWS(rows, multiply, 1, FLOAT32, 0, 0, x, x_row, y, y_row, count, out, out_row) break;
    case 32: FOR_ROWS(rows, multiply, 2, FLOAT32, 0, 0, x, x_row, y, y_row, count, out, out_row) break;
    case 48: FOR_ROWS(rows, multiply, 3, FLOAT32, 0, 0, x, x_row, y, y_row, count, out, out_row) break;
    default: FOR_ROWS(rows, multiply, 4, FLOAT32, 0, 0, x, x_row, y, y_row, count, out, out_row)
    }
}

/* One head of one of a batch; `space` is for packed keys and values, scores and sums. */
static void attend_head(const void *dense, long batch, long head, float *space) {
    const struct dense *a = dense;
    const long dim = a->head_dim, width = rounded_up(dim, 16), row = rounded_up(a->keys, WIDE);
    const long kv_head = head / (a->heads / a->kv_heads);
    float *keys = space, *values = keys + row * dim, *scores = values + row * width;
    float *sums = scores + ROWS * row;
    const float *q = a->q + batch * a->q_batch + head * a->q_head;
    float *out = a->out + batch * a->out_batch + head * a->out_head;
    const float scale = 1 / sqrtf((float)dim), slope = a->seen.slopes ? a->seen.slopes[head] : 0;
    pack_keys(a, a->k + batch * a->k_batch + kv_head * a->k_head, keys);
    pack_values(a, a->v + batch * a->v_batch + kv_head * a->v_head, values, width);
    for (long i = 0; i < a->queries; i += ROWS) {
        const int few = least(ROWS, a->queries - i);
        const long last = last_seen(a->seen, a->seen.start + i + few - 1, a->keys);
        const long first = a->seen.start < 0 ? 0 : first_seen(a->seen, a->seen.start + i);
        for (long key = first / WIDE * WIDE; key < last; key += WIDE)
            multiply_some(few, least(WIDE, rounded_up(last - key, 16)), q + i * a->q_row, a->q_row,
                          keys + key * dim, WIDE, dim, scores + key, row);
        float totals[ROWS];
        for (int r = 0; r < few; r++) {
            const long place = a->seen.start + i + r, to = last_seen(a->seen, place, a->keys);
            const long from = a->seen.start < 0 ? 0 : first_seen(a->seen, place);
            if (slope) add_slope(scores + r * row, from, to, slope / scale, place);
            totals[r] = soften(scores + r * row, from, to, rounded_up(last, 16), scale);
        }
        for (long d = 0; d < width; d += WIDE)
            multiply_some(few, least(WIDE, width - d), scores + first, row, values + first * width + d,
                          width, last - first, sums + d, width);
        for (int r = 0; r < few; r++)
            for (long d = 0; d < dim; d += 16)
                _mm512_mask_storeu_ps(out + (i + r) * a->out_row + d, lanes(dim - d),
                                      divided(_mm512_loadu_ps(sums + r * width + d), totals[r]));
    }
}

/* Fills a->out. 0, or 1: no memory. */
int flamingo_attend(const struct dense *a, int threads) {
    const long row = rounded_up(a->keys, WIDE), width = rounded_up(a->head_dim, 16);
    const long size = row * (a->head_dim + width + ROWS) + ROWS * width;
    if (a->batch * a->heads * a->queries * a->keys * a->head_dim < SMALL) threads = 1;
    return attend_each(attend_head, a, a->batch, a->heads, size, threads);
}

/* ---- one query each */

ALWAYS const float *block_of(const struct paged *a, const float *x, long row, long key, long head) {
    return x + a->tables[row * a->width + key / a->block_size] * a->block + head * a->head;
}

/* A head's part of a key is short, the next one far away: no hardware would ask for it. */
ALWAYS void ask_for(const float *x, long dim) {
    for (long d = 0; d < dim; d += 16) _mm_prefetch((const char *)(x + d), _MM_HINT_T0);
}

/* `dim` in 16s, and what is left of it; a constant where it is the usual one. `next` is read next. */
ALWAYS void block_scores(const float *q, const float *k, const float *next, long k_key, long count,
                         long dim, float *scores) {
    for (long key = 0; key < count; key++, k += k_key, next += k_key) {
        __m512 sum = _mm512_setzero_ps();
        ask_for(next, dim);
        for (long d = 0; d < dim; d += 16) {
            const __mmask16 some = lanes(dim - d);
            FMA(sum, _mm512_maskz_loadu_ps(some, q + d), _mm512_maskz_loadu_ps(some, k + d));
        }
        scores[key] = _mm512_reduce_add_ps(sum);
    }
}

ALWAYS void add_block(const float *weights, const float *v, const float *next, long v_key,
                      long count, long dim, float *out) {
    __m512 sums[4];
    for (int i = 0; i < 4; i++) sums[i] = _mm512_maskz_loadu_ps(lanes(dim - 16 * i), out + 16 * i);
    for (long key = 0; key < count; key++, v += v_key, next += v_key) {
        ask_for(next, least(WIDE, dim));
        for (int i = 0; i < 4; i++)
            FMA(sums[i], _mm512_set1_ps(weights[key]),
                _mm512_maskz_loadu_ps(lanes(dim - 16 * i), v + 16 * i));
    }
    for (int i = 0; i < 4; i++) _mm512_mask_storeu_ps(out + 16 * i, lanes(dim - 16 * i), sums[i]);
}

static void attend_token(const void *paged, long row, long head, float *scores) {
    const struct paged *a = paged;
    const long dim = a->head_dim, size = a->block_size, length = a->lengths[row];
    const float *q = a->q + row * a->q_row + head * dim;
    float *out = a->out + (row * a->heads + head) * dim;
    const long kv_head = head / (a->heads / a->kv_heads), first = first_seen(a->seen, length - 1);
    const long begin = first / size * size;
    const float *k = block_of(a, a->k, row, begin, kv_head), *next;
    const float *v = block_of(a, a->v, row, begin, kv_head);
    for (long key = begin; key < length; key += size, k = next) {
        const long count = least(size, length - key);
        next = key + size < length ? block_of(a, a->k, row, key + size, kv_head) : v;
        if (dim == WIDE)
            block_scores(q, k, next, a->key, count, WIDE, scores + key);
        else
            block_scores(q, k, next, a->key, count, dim, scores + key);
    }
    const float scale = 1 / sqrtf((float)dim);
    if (a->seen.slopes) add_slope(scores, first, length, a->seen.slopes[head] / scale, length - 1);
    const float total = soften(scores, first, length, rounded_up(length, 16), scale);
    for (long d = 0; d < dim; d++) out[d] = 0;
    for (long key = begin; key < length; key += size, v = next) {
        const long count = least(size, length - key);
        next = key + size < length ? block_of(a, a->v, row, key + size, kv_head) : v;
        if (dim == WIDE)
            add_block(scores + key, v, next, a->key, count, WIDE, out);
        else
            for (long d = 0; d < dim; d += WIDE)
                add_block(scores + key, v + d, next + d, a->key, count, dim - d, out + d);
    }
    for (long d = 0; d < dim; d += 16) {
        const __mmask16 some = lanes(dim - d);
        __m512 sums = _mm512_maskz_loadu_ps(some, out + d);
        _mm512_mask_storeu_ps(out + d, some, divided(sums, total));
    }
}

long scores_floats(const struct paged *a) { return rounded_up(a->width * a->block_size, 16); }

int attend_paged_together(const struct paged *a, long rows, float *scores) {
    return attend_together(attend_token, a, rows, a->heads, scores);
}

/* Fills a->out; a length of 0 gives 0. 0, or 1: no memory. */
int flamingo_attend_paged(const struct paged *a, int threads) {
    long work = 0;
    for (long row = 0; row < a->rows; row++) work += a->lengths[row] * a->heads * a->head_dim;
    if (work < SMALL) threads = 1;
    return attend_each(attend_token, a, a->rows, a->heads, scores_floats(a), threads);
}
