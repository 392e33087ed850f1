/* GPT-2's forward pass for one token of each of several texts, as model.py has it, in one function: between some five
 * hundred small operations a machine waits longer than it computes. And the int8 product by itself, which is what FBGEMM
 * and the operations around it in quantize.py give, to the last bit.
 *
 * Nothing here depends on the rows beside a row, nor on how many threads there are. The loops are written so that
 * compilers find the CPU's instructions; of these it only knows how long vectors are, and what reads floats of 16 bits.
 * native.py compiles it and knows its structures. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined __AVX__
#include <immintrin.h>
#endif

#define LANES 16 /* sums that a product of floats is split into, always in the same way */
#define TILE 4   /* rows, and outputs, whose sums are in registers at the same time */
#define AHEAD 4  /* outputs: weights are asked for before their turn, or half of the time goes by waiting for them */
#define INLINE static inline __attribute__((always_inline)) /* so that the compiler knows the counts in a call */

/* y = x @ weight.T + bias: x (rows, n_in), y (rows, n_out). Either weight or whole is there, (n_out, n_in); whole has
 * step, what a product of one is worth where a row's span is 1, and ones, what a row of ones gives, both (n_out). */
typedef struct {
    long n_in, n_out;
    const float *weight;
    const int8_t *whole;
    const float *step, *ones, *bias;
} linear;

typedef struct {
    const float *weight, *bias;
} norm;

typedef struct {
    norm ln_1;
    linear c_attn, attn_proj;
    norm ln_2;
    linear c_fc, mlp_proj;
} block;

typedef struct {
    long n_layer, n_head, n_embd;
    const block *blocks;
    norm ln_f;
    linear head;
} model;

/* Keys and values, (n_layer, rows, n_head, positions, n_embd / n_head), floats or, if half, of 16 bits; positions is a
 * multiple of TILE. */
typedef struct {
    long rows, positions, half;
    void *k, *v;
} cache;

/* A row of x in whole numbers: low + span * q / 255. */
typedef struct {
    float low, span;
    uint8_t *q;
} rounded;

static void round_row(const float *restrict x, long n, rounded *row) {
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

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

typedef float half_lanes __attribute__((vector_size(LANES / 2 * sizeof(float))));
typedef float few_lanes __attribute__((vector_size(LANES / 4 * sizeof(float))));

/* Of all lanes: those of the second half are added to the first half's, until one is left. */
INLINE float sum(lanes s) {
    half_lanes low, high;
    memcpy(&low, &s, sizeof low), memcpy(&high, (char *)&s + sizeof low, sizeof high);
    low += high;
    few_lanes first, second;
    memcpy(&first, &low, sizeof first), memcpy(&second, (char *)&low + sizeof first, sizeof second);
    first += second;
    return (first[0] + first[2]) + (first[1] + first[3]);
}

/* products[r][j] of n_rows rows of x, apart from each other by n, and n_outs of w. */
INLINE void multiply_floats(const float *x, const float *w, long n, int n_rows, int n_outs, float products[TILE][TILE]) {
    lanes s[TILE][TILE] = {{{0}}};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        lanes a[TILE], b[TILE];
        for (int r = 0; r < n_rows; r++) a[r] = *(const lanes *)(x + r * n + i);
        for (int j = 0; j < n_outs; j++) b[j] = *(const lanes *)(w + j * n + i);
        for (int r = 0; r < n_rows; r++)
            for (int j = 0; j < n_outs; j++) s[r][j] += a[r] * b[j];
    }
    for (int r = 0; r < n_rows; r++)
        for (int j = 0; j < n_outs; j++) {
            for (long t = i; t < n; t++) s[r][j][t - i] += x[r * n + t] * w[j * n + t];
            products[r][j] = sum(s[r][j]);
        }
}

INLINE void multiply_whole(const linear *to, const rounded *rows, long o, int n_rows, int n_outs,
                           float products[TILE][TILE]) {
    const int8_t *w = to->whole + o * to->n_in;
    int32_t s[TILE][TILE] = {{0}};
    for (long i = 0; i < to->n_in; i++)
        for (int r = 0; r < n_rows; r++)
            for (int j = 0; j < n_outs; j++) s[r][j] += rows[r].q[i] * w[j * to->n_in + i];
    for (int r = 0; r < n_rows; r++)
        for (int j = 0; j < n_outs; j++) {
            /* volatile: each is rounded for itself, and none merged with the sum */
            const volatile float product = (float)s[r][j] * to->step[o + j] * rows[r].span;
            const volatile float lowest = rows[r].low * to->ones[o + j];
            products[r][j] = product + lowest;
        }
}

/* n_outs outputs from o on, of n_rows rows, whose numbers are x, or rows if whole. */
INLINE void tile(const linear *to, int whole, const float *x, const rounded *rows, long o, int n_rows, int n_outs, float *y,
                 int onto) {
    const size_t size = whole ? 1 : sizeof(float);
    const char *next = (whole ? (const char *)to->whole : (const char *)to->weight) + (o + AHEAD) * to->n_in * size;
    for (size_t i = 0; i < n_outs * to->n_in * size; i += 64) __builtin_prefetch(next + i, 0, 2);
    float products[TILE][TILE];
    if (whole) multiply_whole(to, rows, o, n_rows, n_outs, products);
    else multiply_floats(x, to->weight + o * to->n_in, to->n_in, n_rows, n_outs, products);
    for (int r = 0; r < n_rows; r++)
        for (int j = 0; j < n_outs; j++) {
            float *at = y + r * to->n_out + o + j;
            const float value = to->bias ? products[r][j] + to->bias[o + j] : products[r][j];
            *at = onto ? *at + value : value;
        }
}

/* The layer on all rows, by all threads of a parallel region. onto: added to what y holds. */
__attribute__((noinline, noclone)) static void apply(const linear *to, const float *x, long n_rows, rounded *rows,
                                                     uint8_t *q, float *y, int onto) {
    const long n = to->n_in, m = to->n_out;
    if (to->whole)
#pragma omp for
        for (long r = 0; r < n_rows; r++) {
            rows[r].q = q + r * n;
            round_row(x + r * n, n, rows + r);
        }
#pragma omp for
    for (long o = 0; o < m; o += TILE) {
        const int n_outs = m - o < TILE ? m - o : TILE;
        long r = 0;
        for (; n_outs == TILE && r + TILE <= n_rows; r += TILE)
            if (to->whole) tile(to, 1, 0, rows + r, o, TILE, TILE, y + r * m, onto);
            else tile(to, 0, x + r * n, 0, o, TILE, TILE, y + r * m, onto);
        for (; r < n_rows; r++)
            for (int j = 0; j < n_outs; j++)
                if (to->whole) tile(to, 1, 0, rows + r, o + j, 1, 1, y + r * m, onto);
                else tile(to, 0, x + r * n, 0, o + j, 1, 1, y + r * m, onto);
    }
}

static void layer_norm(const norm *by, const float *x, long n_rows, long n, float *y) {
#pragma omp for
    for (long r = 0; r < n_rows; r++) {
        const float *row = x + r * n;
        float mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
        for (long i = 0; i < n; i++) mean += row[i];
        mean /= n;
#pragma omp simd reduction(+ : square)
        for (long i = 0; i < n; i++) square += (row[i] - mean) * (row[i] - mean);
        const float scale = 1.0f / sqrtf(square / n + 1e-5f);
        for (long i = 0; i < n; i++) y[r * n + i] = (row[i] - mean) * scale * by->weight[i] + by->bias[i];
    }
}

/* e to the x, to 2 units in the last place: a power of two by its bits, the rest by a polynomial (of Cephes). Compilers
 * make many at once of it, but not of expf. */
INLINE float power_of_e(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float two;
    memcpy(&two, &bits, sizeof two);
    return p * two;
}

/* GELU by its tanh, which is 1 - 2 / (1 + e^(2u)). x (n_rows, n). */
static void gelu(float *x, long n_rows, long n) {
#pragma omp for collapse(2)
    for (long r = 0; r < n_rows; r++)
        for (long start = 0; start < n; start += 256) {
            float *at = x + r * n + start;
            const long left = n - start < 256 ? n - start : 256;
            for (long i = 0; i < left; i++) {
                const float u = 0.79788456f * (at[i] + 0.044715f * at[i] * at[i] * at[i]);
                at[i] -= at[i] / (1.0f + power_of_e(2.0f * u));
            }
        }
}

/* As many floats as fit into a register, or nearly: sums of more would live in memory. */
#if defined __AVX512F__
#define WIDTH 16
#elif defined __AVX__
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float several __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));

/* Floats of 16 bits (IEEE 754) have 5 for the exponent and 10 for the fraction: with these, and the sign, in a float's
 * places, its exponent is too small by 112, for very small numbers, too. */
INLINE float one(const void *from, long i, int half) {
    if (!half) return ((const float *)from)[i];
    const uint16_t of = ((const uint16_t *)from)[i];
    const uint32_t whole = (uint32_t)(of & 0x7fff) << 13 | (uint32_t)(of & 0x8000) << 16;
    float number;
    memcpy(&number, &whole, sizeof number);
    return (of & 0x7c00) == 0x7c00 ? (of & 0x3ff ? NAN : number * INFINITY) : number * 0x1p112f;
}

/* WIDTH numbers from the i-th on. */
INLINE several some(const void *from, long i, int half) {
    if (!half) return *(const several *)((const float *)from + i);
#if defined __AVX512F__
    return (several)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)from + i)));
#elif defined __AVX__ && defined __F16C__
    return (several)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + i)));
#else
    several numbers;
    for (int l = 0; l < WIDTH; l++) numbers[l] = one(from, i + l, half);
    return numbers;
#endif
}

/* LANES of them. */
INLINE lanes many(const void *from, long i, int half) {
    lanes all;
    for (int l = 0; l < LANES; l += WIDTH) {
        const several part = some(from, i + l, half);
        memcpy((float *)&all + l, &part, sizeof part);
    }
    return all;
}

/* To the nearest of 16 bits, ties to even; what is too large becomes infinite. */
static void narrow(const float *x, long n, uint16_t *y) {
    for (long i = 0; i < n; i++) {
        const float size = fabsf(x[i]), small = (size < 65536.0f ? size : 65536.0f) * 0x1p-112f;
        uint32_t whole, sign;
        memcpy(&whole, &small, sizeof whole), memcpy(&sign, x + i, sizeof sign);
        whole += 0xfff + (whole >> 13 & 1);
        y[i] = (x[i] == x[i] ? whole >> 13 : 0x7e00) | (sign >> 16 & 0x8000);
    }
}

/* For n numbers from the i-th on, a page before their turn: there the machine's own foresight ends. */
INLINE void ask(const void *from, long i, long n, int half) {
    const long size = half ? 2 : 4;
    for (long at = 0; at < n * size; at += 64) __builtin_prefetch((const char *)from + i * size + at + 4096, 0, 2);
}

/* p: how well q fits each of n keys, and up to TILE - 1 behind them. */
INLINE void compare(const float *q, const void *k, int half, long n, long hs, float scale, float *p) {
    for (long s = 0; s < n; s += TILE) {
        lanes sums[TILE] = {{0}};
        long i = 0;
        ask(k, s * hs, TILE * hs, half);
        for (; i + LANES <= hs; i += LANES)
            for (int j = 0; j < TILE; j++) sums[j] += *(const lanes *)(q + i) * many(k, (s + j) * hs + i, half);
        for (int j = 0; j < TILE; j++) {
            float rest = 0;
            for (long t = i; t < hs; t++) rest += q[t] * one(k, (s + j) * hs + t, half);
            p[s + j] = (sum(sums[j]) + rest) * scale;
        }
    }
}

/* y: the sum of n values in the shares p. */
INLINE void gather(const float *p, const void *v, int half, long n, long hs, float *y) {
    const int at_once = 64 / WIDTH;
    long i = 0;
    for (; i + 64 <= hs; i += 64) {
        several sums[64 / WIDTH] = {{0}};
        for (long s = 0; s < n; s++) {
            ask(v, s * hs + i, 64, half);
            for (int j = 0; j < at_once; j++) sums[j] += p[s] * some(v, s * hs + i + j * WIDTH, half);
        }
        memcpy(y + i, sums, sizeof sums);
    }
    for (; i + WIDTH <= hs; i += WIDTH) {
        several total = {0};
        for (long s = 0; s < n; s++) total += p[s] * some(v, s * hs + i, half);
        memcpy(y + i, &total, sizeof total);
    }
    for (; i < hs; i++) {
        y[i] = 0;
        for (long s = 0; s < n; s++) y[i] += p[s] * one(v, s * hs + i, half);
    }
}

/* What a query gathers from the values of n positions; k and v are of its head. p has room for all positions. */
INLINE void attend_as(const float *q, const void *k, const void *v, int half, long n, long hs, float *p, float *y) {
    float most = -INFINITY, total = 0;
    compare(q, k, half, n, hs, 1.0f / sqrtf((float)hs), p);
#pragma omp simd reduction(max : most)
    for (long s = 0; s < n; s++) most = p[s] > most ? p[s] : most;
    for (long s = 0; s < n; s++) p[s] = power_of_e(p[s] - most);
#pragma omp simd reduction(+ : total)
    for (long s = 0; s < n; s++) total += p[s];
    gather(p, v, half, n, hs, y);
    for (long i = 0; i < hs; i++) y[i] /= total;
}

/* Keys and values of the new tokens into the cache; y is what their queries gather. qkv (n_rows, 3 n_embd). */
static void attend(const float *qkv, long n_rows, long n_head, long n_embd, const long *pos, const cache *of, long layer,
                   float *scores, float *y) {
    const long hs = n_embd / n_head;
#pragma omp for collapse(2)
    for (long r = 0; r < n_rows; r++)
        for (long h = 0; h < n_head; h++) {
            const float *q = qkv + 3 * r * n_embd + h * hs;
            const long at = ((layer * of->rows + r) * n_head + h) * of->positions * hs, new = at + pos[r] * hs;
            float *p = scores + (r * n_head + h) * of->positions, *to = y + r * n_embd + h * hs;
            if (of->half) {
                uint16_t *k = of->k, *v = of->v;
                narrow(q + n_embd, hs, k + new), narrow(q + 2 * n_embd, hs, v + new);
                attend_as(q, k + at, v + at, 1, pos[r] + 1, hs, p, to);
            } else {
                float *k = of->k, *v = of->v;
                memcpy(k + new, q + n_embd, hs * sizeof *k), memcpy(v + new, q + 2 * n_embd, hs * sizeof *v);
                attend_as(q, k + at, v + at, 0, pos[r] + 1, hs, p, to);
            }
        }
}

/* x (n_rows, n_embd): the embedded tokens, which are overwritten; pos (n_rows): their positions; logits (n_rows, vocabulary).
 * Returns 0, or 1 where there is no memory. */
int step(const model *of, float *x, long n_rows, const long *pos, const cache *past, float *logits) {
    const long C = of->n_embd, L = of->n_layer, H = of->n_head;
    float *memory = malloc(n_rows * (5 * C + H * past->positions) * sizeof(float));
    rounded *rows = malloc(n_rows * sizeof(rounded));
    uint8_t *q = malloc(n_rows * 4 * C);
    if (!memory || !rows || !q) {
        free(memory), free(rows), free(q);
        return 1;
    }
    float *h = memory, *wide = h + n_rows * C, *scores = wide + n_rows * 4 * C;
#pragma omp parallel
    {
        for (const block *b = of->blocks; b < of->blocks + L; b++) {
            layer_norm(&b->ln_1, x, n_rows, C, h);
            apply(&b->c_attn, h, n_rows, rows, q, wide, 0);
            attend(wide, n_rows, H, C, pos, past, b - of->blocks, scores, h);
            apply(&b->attn_proj, h, n_rows, rows, q, x, 1);
            layer_norm(&b->ln_2, x, n_rows, C, h);
            apply(&b->c_fc, h, n_rows, rows, q, wide, 0);
            gelu(wide, n_rows, 4 * C);
            apply(&b->mlp_proj, wide, n_rows, rows, q, x, 1);
        }
        layer_norm(&of->ln_f, x, n_rows, C, h);
        apply(&of->head, h, n_rows, rows, q, logits, 0);
    }
    free(memory), free(rows), free(q);
    return 0;
}

/* y (n_rows, n_out). Returns 0, or 1 where there is no memory. */
int int8_linear(const linear *to, const float *x, long n_rows, float *y) {
    rounded *rows = malloc(n_rows * sizeof(rounded));
    uint8_t *q = malloc(n_rows * to->n_in);
    if (!rows || !q) {
        free(rows), free(q);
        return 1;
    }
#pragma omp parallel
    apply(to, x, n_rows, rows, q, y, 0);
    free(rows), free(q);
    return 0;
}
