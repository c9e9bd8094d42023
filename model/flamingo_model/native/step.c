/* The layers of a decoding step: a list of what to do, done by one team of threads.

   Each op reads what those before it wrote, and all threads meet behind it. */
#include <omp.h>
#include <string.h>

#include "step.h"
#include "vectors.h"

enum op_kind { PRODUCT, BEND, KEEP, ATTEND };

struct keep { /* new keys and values into the cache; before, queries and keys may be turned */
    float *qkv;               /* rows of queries, keys and values, each [its heads, head_dim] */
    float *k_cache, *v_cache; /* [places, kv_heads, head_dim] */
    const int64_t *places;    /* [rows] */
    const float *cos, *sin;   /* [rows, turned], or NULL */
    long heads, kv_heads, head_dim, turned;
    long are_neighbours; /* that turn together; else those half of `turned` apart */
};

struct op { /* as Python lays it out */
    const void *what;  /* struct linear, bend, keep or paged */
    const float *x;    /* these three are a product's */
    float *y;
    const float *residual;
    long kind;
};

/* Rotary positions of one head; as torch rounds them. */
static void turn_head(float *x, const float *cos, const float *sin, long turned, int are_neighbours) {
    const long step = are_neighbours ? 2 : 1, other = are_neighbours ? 1 : turned / 2;
    for (long i = 0; i < turned / 2 * step; i += step) {
        const float a = x[i], b = x[i + other];
        x[i] = a * cos[i] - b * sin[i];
        x[i + other] = b * cos[i + other] + a * sin[i + other];
    }
}

static void keep_together(const struct keep *a, long rows) {
    const long width = a->kv_heads * a->head_dim, both = a->heads + a->kv_heads;
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) {
        float *q = a->qkv + row * (both + a->kv_heads) * a->head_dim, *k = q + a->heads * a->head_dim;
        const long at = row * a->turned;
        for (long head = 0; a->cos && head < both; head++)
            turn_head(q + head * a->head_dim, a->cos + at, a->sin + at, a->turned, a->are_neighbours);
        memcpy(a->k_cache + a->places[row] * width, k, sizeof(float) * width);
        memcpy(a->v_cache + a->places[row] * width, k + width, sizeof(float) * width);
    }
}

/* Bytes that any of the ops takes, of products and of attention. */
static long most_bytes(const struct op *ops, long count, enum op_kind kind, long rows, int threads) {
    long most = 0;
    for (const struct op *op = ops; op < ops + count; op++) {
        if (op->kind != kind) continue;
        const long bytes = kind == PRODUCT ? input_bytes(op->what, rows, threads)
                                           : (long)sizeof(float) * scores_floats(op->what);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* All threads, or one where the products are small: they meet two or three times in every op. A team
   between would end the other threads, to be started again right after. */
static int team_for(const struct op *ops, long count, long rows, int threads) {
    long work = 0, products = 0;
    for (const struct op *op = ops; op < ops + count; op++) {
        if (op->kind != PRODUCT) continue;
        const struct linear *w = op->what;
        work += rows * w->in * w->out;
        products++;
    }
    return work < products * (SMALL / 2) ? 1 : threads;
}

/* Does the ops in order, each for so many rows. 0, or 1: no memory. */
int flamingo_step(const struct op *ops, long count, long rows, int threads) {
    threads = team_for(ops, count, rows, threads);
    void *space = room(most_bytes(ops, count, PRODUCT, rows, threads));
    const long scores_bytes = most_bytes(ops, count, ATTEND, rows, threads);
    int failed = 0;
    if (!space) return 1;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const unsigned before = drop_denormals();
        float *scores = room(scores_bytes);
        for (const struct op *op = ops; op < ops + count; op++) {
            if (op->kind == PRODUCT)
                multiply_together(op->what, op->x, rows, op->y, op->residual, space);
            else if (op->kind == BEND)
                bend_together(op->what, rows);
            else if (op->kind == KEEP) {
                _mm_setcsr(before); /* as where torch turns them */
                keep_together(op->what, rows);
                drop_denormals();
            } else
                failed |= attend_paged_together(op->what, rows, scores);
        }
        free(scores);
        _mm_setcsr(before);
    }
    free(space);
    return failed;
}

/* What the library is made of, as compiling.py names it. */
const char *flamingo_sources(void) { return SOURCES; }
