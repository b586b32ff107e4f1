/* The ESL score of all pairs from word-region similarity S, and its gradient, fused for a CPU.
 *
 * S (rows, R, B) holds the words of all captions one after another; caption c owns rows first[c] to first[c + 1].
 * A task is one caption with LANES images: what it keeps fits the second-level cache for some 36 regions. Images are
 * innermost: each loop over `b` is a vector operation, and sums over words or regions add whole vectors.
 *
 *     g = LeakyReLU(tanh S), divided by its norm over the words or over the regions
 *     word (W):   S weighted by the softmax over the regions of tau g / |g over words|
 *     region (R): S weighted by the softmax over the words of tau g / |g over regions|
 *     score = mean of word + mean of region, over what is real
 *
 * Symbols of the C library and of the OpenMP runtime, nothing else. lib/alignment/cpu_kernel.py builds and calls it.
 *
 * Letters: B images, C captions, R regions, W words of one caption.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES
#define LANES 32 /* images of a task */
#endif

#define EACH_IMAGE _Pragma("omp simd") for (int b = 0; b < LANES; b++)
#define INLINE static inline __attribute__((always_inline))

typedef float Images[LANES]; /* a value for each image of a task */

typedef struct {
    const int64_t *first; /* (C + 1) */
    int64_t captions, regions, images;
    float scale, epsilon, slope; /* tau; added to norms; of LeakyReLU */
    int32_t threads;
    const float *real;  /* (R, B): 1 where a region is real, 0 where it is padding; NULL where all are real */
    const float *count; /* (B): real regions; NULL as well */
} Problem;

typedef struct { /* what a task keeps */
    int64_t words;
    const Images *real; /* (R), NULL where all are real */
    Images count;
    Images *S, *g, *to_word, *to_region;    /* (W, R); the last two are weights of the softmaxes */
    Images *word_norm, *word_unit, *word_total, *word;         /* (W); unit: tau / norm, to base 2 */
    Images *region_norm, *region_unit, *region_total, *region; /* (R) */
} Task;

/* 2^n for a whole n. */
INLINE float power(float n) {
    int32_t bits = ((int32_t)n + 127) << 23;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

/* 2^r - 1 for |r| <= 1/2, by the series of e^(r ln 2): no cancellation near 0. */
INLINE float power_less_one(float r) {
    float x = r * 0.69314718056f, p = 1.0f / 5040;
    p = p * x + 1.0f / 720;
    p = p * x + 1.0f / 120;
    p = p * x + 1.0f / 24;
    p = p * x + 1.0f / 6;
    p = p * x + 1.0f / 2;
    return p * x * x + x;
}

INLINE float exp2_of(float x) {
    float n = rintf(x), t = power(n);
    return power_less_one(x - n) * t + t;
}

/* LeakyReLU(tanh s), where tanh |s| = -e / (e + 2) with e = exp(-2 |s|) - 1. */
INLINE float attention(float s, float slope) {
    float x = fabsf(s);
    x = (x < 10.0f ? x : 10.0f) * -2.88539008178f; /* -2 log2(e) */
    float n = rintf(x), t = power(n);
    float e = power_less_one(x - n) * t + (t - 1);
    float tanh = -e / (e + 2);
    return s > 0 ? tanh : -slope * tanh;
}

/* g, its norms, and the two weighted sums of S: everything up to the means. `keep` the weights for a gradient. */
INLINE void attend(const Problem *p, Task *k, int keep, int masked) {
    const int64_t W = k->words, R = p->regions;
    const float tau = p->scale * 1.44269504089f; /* log2(e) */
    memset(k->word_norm, 0, sizeof(Images) * 4 * (W + R)); /* all sums */
    for (int64_t w = 0; w < W; w++)
        for (int64_t r = 0; r < R; r++) {
            const int64_t i = w * R + r;
            EACH_IMAGE {
                float g = attention(k->S[i][b], p->slope);
                k->g[i][b] = g;
                k->word_norm[w][b] += g * g;
                k->region_norm[r][b] += g * g;
            }
        }
    for (int64_t w = 0; w < W; w++) EACH_IMAGE {
        k->word_norm[w][b] = sqrtf(k->word_norm[w][b]);
        k->word_unit[w][b] = tau / (k->word_norm[w][b] + p->epsilon);
    }
    for (int64_t r = 0; r < R; r++) EACH_IMAGE {
        k->region_norm[r][b] = sqrtf(k->region_norm[r][b]);
        k->region_unit[r][b] = tau / (k->region_norm[r][b] + p->epsilon);
    }
    for (int64_t w = 0; w < W; w++)
        for (int64_t r = 0; r < R; r++) {
            const int64_t i = w * R + r;
            EACH_IMAGE {
                float e = exp2_of(k->g[i][b] * k->region_unit[r][b]), f = exp2_of(k->g[i][b] * k->word_unit[w][b]);
                if (masked) e *= k->real[r][b];
                k->word_total[w][b] += e;
                k->word[w][b] += e * k->S[i][b];
                k->region_total[r][b] += f;
                k->region[r][b] += f * k->S[i][b];
                if (keep) {
                    k->to_word[i][b] = e;
                    k->to_region[i][b] = f;
                }
            }
        }
    for (int64_t w = 0; w < W; w++) EACH_IMAGE k->word[w][b] /= k->word_total[w][b];
    for (int64_t r = 0; r < R; r++) EACH_IMAGE k->region[r][b] /= k->region_total[r][b];
}

INLINE void mean(const Problem *p, const Task *k, Images score) {
    Images word = {0}, region = {0};
    for (int64_t w = 0; w < k->words; w++) EACH_IMAGE word[b] += k->word[w][b];
    for (int64_t r = 0; r < p->regions; r++) EACH_IMAGE region[b] += k->region[r][b];
    EACH_IMAGE score[b] = word[b] / k->words + region[b] / k->count[b];
}

/* S becomes the gradient with respect to it, `score` (the gradient of the scores) that with respect to tau.
 *
 * With logits tau g / (n + eps) and dl their gradient: dg = tau (dl / (n + eps) - g <dl, g> / (n (n + eps)^2)). */
INLINE void differentiate(const Problem *p, Task *k, Images score) {
    const int64_t W = k->words, R = p->regions;
    const float negative = p->slope;
    Images *word_along = k->word_total, *region_along = k->region_total; /* <dl, g>, below */
    Images scale = {0};
    for (int64_t w = 0; w < W; w++) EACH_IMAGE k->word_total[w][b] = score[b] / (W * k->word_total[w][b]);
    for (int64_t r = 0; r < R; r++)
        EACH_IMAGE k->region_total[r][b] = score[b] / (k->count[b] * k->region_total[r][b]);
    for (int64_t w = 0; w < W; w++)
        for (int64_t r = 0; r < R; r++) {
            const int64_t i = w * R + r;
            EACH_IMAGE {
                float e = k->to_word[i][b] * k->word_total[w][b], f = k->to_region[i][b] * k->region_total[r][b];
                k->to_word[i][b] = e * (k->S[i][b] - k->word[w][b]); /* gradients of the logits */
                k->to_region[i][b] = f * (k->S[i][b] - k->region[r][b]);
                k->S[i][b] = e + f; /* through the weighted sums, weights held */
            }
        }
    memset(word_along, 0, sizeof(Images) * W);
    memset(region_along, 0, sizeof(Images) * R);
    for (int64_t w = 0; w < W; w++)
        for (int64_t r = 0; r < R; r++) {
            const int64_t i = w * R + r;
            EACH_IMAGE {
                region_along[r][b] += k->to_word[i][b] * k->g[i][b]; /* a word's softmax has norms over the words */
                word_along[w][b] += k->to_region[i][b] * k->g[i][b];
            }
        }
    for (int64_t w = 0; w < W; w++) EACH_IMAGE {
        float n = k->word_norm[w][b], unit = 1 / (n + p->epsilon), along = word_along[w][b] * unit;
        scale[b] += along;
        k->word_unit[w][b] = p->scale * unit;
        k->word[w][b] = n > 0 ? p->scale * along * unit / n : 0;
    }
    for (int64_t r = 0; r < R; r++) EACH_IMAGE {
        float n = k->region_norm[r][b], unit = 1 / (n + p->epsilon), along = region_along[r][b] * unit;
        scale[b] += along;
        k->region_unit[r][b] = p->scale * unit;
        k->region[r][b] = n > 0 ? p->scale * along * unit / n : 0;
    }
    for (int64_t w = 0; w < W; w++)
        for (int64_t r = 0; r < R; r++) {
            const int64_t i = w * R + r;
            EACH_IMAGE {
                float g = k->g[i][b];
                float dg = k->to_word[i][b] * k->region_unit[r][b] + k->to_region[i][b] * k->word_unit[w][b];
                dg -= g * (k->region[r][b] + k->word[w][b]);
                float slope = g > 0 ? 1 : negative, tanh = g / slope;
                k->S[i][b] += dg * slope * (1 - tanh * tanh);
            }
        }
    EACH_IMAGE score[b] = scale[b];
}

/* Copy rows of `width` values, LANES or fewer, between S and a task; what lies beyond is 0. */
INLINE void load(Images *to, const float *from, int64_t rows, int64_t stride, int width) {
    if (width < LANES) memset(to, 0, sizeof(Images) * rows);
    for (int64_t i = 0; i < rows; i++) memcpy(to[i], from + i * stride, sizeof(float) * width);
}

INLINE void store(float *to, const Images *from, int64_t rows, int64_t stride, int width) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * stride, from[i], sizeof(float) * width);
}

static int64_t longest(const Problem *p) {
    int64_t most = 0;
    for (int64_t c = 0; c < p->captions; c++) {
        int64_t words = p->first[c + 1] - p->first[c];
        most = words > most ? words : most;
    }
    return most;
}

INLINE int run(const Problem *p, const float *S, float *grad_S, float *scores, int64_t stride) {
    const int64_t R = p->regions, B = p->images, parts = (B + LANES - 1) / LANES, most = longest(p);
    int failed = 0;
#pragma omp parallel num_threads(p->threads)
    {
        const size_t whole = most * R * (grad_S ? 4 : 2), vectors = whole + 4 * (most + R) + R;
        Images *kept = aligned_alloc(64, sizeof(Images) * vectors);
        if (!kept) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < p->captions * parts; task++) {
            if (!kept) continue;
            const int64_t c = task / parts, start = task % parts * LANES, W = p->first[c + 1] - p->first[c];
            const int width = B - start < LANES ? (int)(B - start) : LANES;
            const int64_t offset = p->first[c] * R * B + start;
            Task k = {.words = W, .S = kept, .g = kept + W * R};
            Images *next = kept + 2 * W * R, score = {0};
            if (grad_S) {
                k.to_word = next, k.to_region = next + W * R;
                next += 2 * W * R;
            }
            k.word_norm = next, k.word_total = next + W, k.word = next + 2 * W, k.word_unit = next + 3 * W;
            next += 4 * W;
            k.region_norm = next, k.region_total = next + R, k.region = next + 2 * R, k.region_unit = next + 3 * R;
            next += 4 * R;
            load(k.S, S + offset, W * R, B, width);
            EACH_IMAGE k.count[b] = R;
            if (p->real) {
                load(next, p->real + start, R, B, width);
                k.real = next;
                memcpy(k.count, p->count + start, sizeof(float) * width);
                attend(p, &k, grad_S != NULL, 1);
            } else
                attend(p, &k, grad_S != NULL, 0);
            if (grad_S) {
                memcpy(score, scores + c * stride + start, sizeof(float) * width);
                differentiate(p, &k, score);
                store(grad_S + offset, k.S, W * R, B, width);
            } else
                mean(p, &k, score);
            memcpy(scores + c * stride + start, score, sizeof(float) * width);
        }
        free(kept);
    }
    return failed;
}

/* Scores (C, B), rows `stride` apart, of S. Returns 0, or 1 where memory is short. */
int alignment_scores(const Problem *p, const float *S, float *scores, int64_t stride) {
    return run(p, S, NULL, scores, stride);
}

/* S becomes the gradient with respect to S; `upstream` (C, B), the gradient of the scores, that with respect to tau. */
int alignment_gradients(const Problem *p, float *S, float *upstream, int64_t stride) {
    return run(p, S, S, upstream, stride);
}
