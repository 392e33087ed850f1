/* The product of gpt2/quantize.py in one pass over the weights: what FBGEMM and the operations around it give, to the
 * last bit. gpt2/native.py compiles it where there is a compiler. Knows nothing of which CPU it runs on: the loops are
 * written so that compilers find its instructions for eight bits. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define TILE 4  /* rows, and outputs, whose sums are in registers at the same time */
#define AHEAD 4 /* outputs: weights are asked for before their turn, or half of the time goes by waiting for them */

/* y = x @ w.T + bias: x (rows, n_in), w (n_out, n_in), bias (n_out) or none, y (rows, n_out). */
typedef struct {
    long n_in, n_out;
    const int8_t *w;
    const float *step; /* (n_out): what a product of one is worth where a row's span is 1 */
    const float *ones; /* (n_out): what a row of ones gives */
    const float *bias;
} layer;

/* A row of x is low + span * q / 255. */
typedef struct {
    float low, span;
    uint8_t *q; /* (n_in) */
} whole;

static void round_row(const float *restrict x, long n, whole *row) {
    const float steps = 1.0f / (1.0f / 255.0f);
    uint8_t *restrict q = row->q;
    float low = x[0], high = x[0];
    int finite = 1;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(& : finite)
    for (long i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        finite &= x[i] - x[i] == 0.0f;
    }
    const float span = high - low > 1e-12f ? high - low : 3e38f;
    for (long i = 0; i < n; i++) q[i] = finite ? (int)rintf((x[i] - low) / span * steps) : 0;
    row->low = finite ? low : NAN;
    row->span = finite ? span : NAN;
}

/* Some outputs from o on, of some rows. Inlined, so that the compiler knows how many sums to keep. */
static inline __attribute__((always_inline)) void tile(const layer *to, const whole *rows, int n_rows, long o,
                                                       int n_outs, float *y) {
    const int8_t *w = to->w + o * to->n_in;
    const int8_t *next = w + AHEAD * to->n_in;
    for (long i = 0; i < n_outs * to->n_in; i += 64) __builtin_prefetch(next + i);
    int32_t sums[TILE][TILE] = {{0}};
    for (long i = 0; i < to->n_in; i++)
        for (int r = 0; r < n_rows; r++)
            for (int j = 0; j < n_outs; j++) sums[r][j] += rows[r].q[i] * w[j * to->n_in + i];
    for (int r = 0; r < n_rows; r++)
        for (int j = 0; j < n_outs; j++) {
            const float product = (float)sums[r][j] * to->step[o + j] * rows[r].span + rows[r].low * to->ones[o + j];
            y[r * to->n_out + o + j] = to->bias ? product + to->bias[o + j] : product;
        }
}

/* Returns 0, or 1 where there is no memory. */
int int8_linear(const float *x, long n_rows, const layer *to, float *y) {
    whole *rows = malloc(n_rows * sizeof(whole));
    uint8_t *q = malloc(n_rows * to->n_in);
    if (!rows || !q) {
        free(rows), free(q);
        return 1;
    }
#pragma omp parallel
    {
#pragma omp for
        for (long r = 0; r < n_rows; r++) {
            rows[r].q = q + r * to->n_in;
            round_row(x + r * to->n_in, to->n_in, rows + r);
        }
#pragma omp for
        for (long o = 0; o < to->n_out; o += TILE) {
            const int n_outs = to->n_out - o < TILE ? to->n_out - o : TILE;
            long r = 0;
            if (n_outs == TILE)
                for (; r + TILE <= n_rows; r += TILE) tile(to, rows + r, TILE, o, TILE, y + r * to->n_out);
            for (; r < n_rows; r++)
                for (int j = 0; j < n_outs; j++) tile(to, rows + r, 1, o + j, 1, y + r * to->n_out);
        }
    }
    free(rows), free(q);
    return 0;
}
