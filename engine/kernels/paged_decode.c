// Attention of decoding requests on a CPU: one query per request against its whole context in a paged cache.
//
// Compiled on the machine it runs on, for one head size (D), number of queries per key head (G), block size (BLOCK)
// and number format. Bound by the cache's bytes: each key and value is read once, where it lies, for all queries that
// share it. The running maximum and sum of Milakov & Gimelshein 2018 make one pass do. A request's result depends on
// nothing else in the batch.

#include <stdint.h>
#include <string.h>

#ifdef BFLOAT16
typedef uint16_t number;
static inline float widened(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline number narrowed(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (number)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float number;
static inline float widened(number x) { return x; }
static inline number narrowed(float x) { return x; }
#endif

#define TILE 64  // keys whose scores are kept at a time
#define AHEAD 8  // keys that memory is asked for before their turn

static inline void fetch(const number *row) {
    for (int byte = 0; byte < D * (int)sizeof(number); byte += 64) __builtin_prefetch((const char *)row + byte);
}

// e^x for x <= 0 to float32's rounding: 2^whole by its bits, 2^rest (|rest| <= 1/2) by Taylor's polynomial.
static inline float exponential(float x) {
    x = (x < -87.0f ? -87.0f : x) * 1.44269504f;
    float whole = (float)(int32_t)(x - 0.5f);
    float rest = (x - whole) * 0.69314718f;
    float power = 1.0f + rest * (1.0f + rest * (0.5f + rest * (1.6666667e-1f + rest * (4.1666668e-2f +
                  rest * (8.3333338e-3f + rest * (1.3888889e-3f + rest * 1.984127e-4f))))));
    int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

// query, out [requests][heads][D], rows of query `query_stride` numbers apart; keys, values [blocks][BLOCK][kv_heads][D];
// tables [requests][table_width]; lengths [requests] with the query's own token; slopes [heads] or null; window 0: all.
void paged_decode(const number *query, const number *keys, const number *values, const int32_t *tables,
                  const int32_t *lengths, const float *slopes, number *out, int64_t requests, int64_t kv_heads,
                  int64_t table_width, int64_t query_stride, int64_t window, float scaling) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int64_t request = 0; request < requests; request++) {
        for (int64_t kv_head = 0; kv_head < kv_heads; kv_head++) {
            const int32_t *table = tables + request * table_width;
            int64_t length = lengths[request];
            float asked[G][D], mixed[G][D], best[G], total[G], slope[G], scores[G][TILE];
            for (int g = 0; g < G; g++) {
                best[g] = -1e30f;
                total[g] = 0.0f;
                slope[g] = slopes ? slopes[kv_head * G + g] : 0.0f;
                for (int d = 0; d < D; d++) {
                    asked[g][d] = scaling * widened(query[request * query_stride + (kv_head * G + g) * D + d]);
                    mixed[g][d] = 0.0f;
                }
            }
            for (int64_t first = window && length > window ? length - window : 0; first < length; first += TILE) {
                int count = length - first < TILE ? (int)(length - first) : TILE;
                for (int t = 0; t < count; t++) {
                    int64_t position = first + t;
                    int64_t slot = (int64_t)table[position / BLOCK] * BLOCK + position % BLOCK;
                    const number *key = keys + (slot * kv_heads + kv_head) * D;
                    fetch(values + (slot * kv_heads + kv_head) * D);
                    int64_t later = position + AHEAD < length ? position + AHEAD : position;
                    slot = (int64_t)table[later / BLOCK] * BLOCK + later % BLOCK;
                    fetch(keys + (slot * kv_heads + kv_head) * D);
                    for (int g = 0; g < G; g++) {
                        float score = 0.0f;
                        for (int d = 0; d < D; d++) score += asked[g][d] * widened(key[d]);
                        scores[g][t] = score + slope[g] * (float)(position - length + 1);
                    }
                }
                for (int g = 0; g < G; g++) {
                    float top = best[g], sum = 0.0f;
                    for (int t = 0; t < count; t++) top = scores[g][t] > top ? scores[g][t] : top;
                    for (int t = 0; t < count; t++) {
                        scores[g][t] = exponential(scores[g][t] - top);
                        sum += scores[g][t];
                    }
                    float fade = exponential(best[g] - top);
                    total[g] = total[g] * fade + sum;
                    best[g] = top;
                    for (int d = 0; d < D; d++) mixed[g][d] *= fade;
                }
                for (int t = 0; t < count; t++) {
                    int64_t position = first + t;
                    int64_t slot = (int64_t)table[position / BLOCK] * BLOCK + position % BLOCK;
                    const number *value = values + (slot * kv_heads + kv_head) * D;
                    for (int g = 0; g < G; g++)
                        for (int d = 0; d < D; d++) mixed[g][d] += scores[g][t] * widened(value[d]);
                }
            }
            for (int g = 0; g < G; g++)
                for (int d = 0; d < D; d++)
                    out[(request * kv_heads * G + kv_head * G + g) * D + d] = narrowed(mixed[g][d] / total[g]);
        }
    }
}
