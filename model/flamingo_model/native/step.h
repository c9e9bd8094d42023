/* What a decoding step is made of, and prompts in part: products, activations, attention over keys
   in blocks. */
#pragma once

#include <stdint.h>

struct linear { /* as Python lays it out */
    const void *weight; /* floats [panels, in, 64]; INT8 [panels, in / 4, 64, 4]; INT4: linear.c */
    const float *scales;  /* INT8: [panels * 64] */
    const int32_t *shift; /* INT8: -128 times the sums of each output's weights */
    const float *bias;    /* [panels * 64], or NULL */
    const float *norm_weight, *norm_bias; /* [in], or NULL */
    long in, out;         /* `in` in multiples of 4, or of 32 for INT4 */
    int kind, activation, norm;
    float norm_eps;
};

struct seen { /* which keys a query sees; query i of many stands at `start` + i */
    const float *slopes; /* [heads] of ALiBi, or NULL */
    long start;          /* -1: all keys */
    long window;         /* the last keys that are seen; 0: all */
};

struct paged { /* keys in blocks; `k` and `v` have the same strides */
    const float *q, *k, *v;
    float *out; /* as q [rows, heads, head_dim], but dense; rows of q lie `q_row` floats apart */
    long q_row;
    long block, key, head; /* strides in floats */
    long block_size, heads, kv_heads, head_dim;
    const int64_t *tables, *lengths; /* [rows, width], [rows] */
    long rows, width;
    struct seen seen;
};

struct bend { /* an activation by itself */
    const float *x; /* [rows, width]; gated: [rows, 2 * width], gates first, y = activation(gate) * x */
    float *y;       /* [rows, width] */
    long width;
    int activation, is_gated;
};

/* All threads of a team call these, and share the work; of a product also the `space`. */
void multiply_together(const struct linear *w, const float *x, long rows, float *y,
                       const float *residual, void *space);
void bend_together(const struct bend *a, long rows);
int attend_paged_together(const struct paged *a, long rows, float *scores);

long input_bytes(const struct linear *w, long rows, int threads); /* of a product's space */
long scores_floats(const struct paged *a);
