#pragma once
/* Seconds of a step: `engine/profile/step_time.py`, or any other model, asked in Python. */
#include "types.h"

static double ramp(i64 n, const double *knot, const double *slope, const double *base, double amount, double *rest) {
    i64 i = n - 1;
    while (i > 0 && knot[i] > amount) i--;
    *rest = slope[i] * (amount - knot[i]);
    return base[i];
}

static double batch_seconds(const Kind *k, i64 tokens, i64 requests) {
    double token_rest, request_rest;
    double token = ramp(k->token_knots, k->token_knot, k->token_slope, k->token_base, (double)tokens, &token_rest);
    double request =
        ramp(k->request_knots, k->request_knot, k->request_slope, k->request_base, (double)requests, &request_rest);
    return k->constant_s + token + token_rest + request + request_rest;
}

static double valid(Fleet *f, double seconds) {
    if (!(seconds >= 0 && seconds < INFINITY)) {
        if (!f->error) f->error = BAD_TIME, f->bad_s = seconds;
        return 0;
    }
    return seconds;
}

static double ask(Fleet *f, Replica *r, i64 shift, i64 steps) {
    /* chunks first, then decodes, each with `shift` tokens more in the cache */
    i64 most = 2 * (r->n_chunks + r->n_decodes) + r->n_decodes;
    if (most > r->context_capacity) {
        free(r->context_room);
        r->context_capacity = 2 * most;
        r->context_room = malloc(r->context_capacity * sizeof(i64));
        if (!r->context_room) { f->error = NO_MEMORY; r->context_capacity = 0; return 0; }
    }
    i64 *tokens = r->context_room, *starts = tokens + r->n_chunks + r->n_decodes;
    i64 *contexts = starts + r->n_chunks + r->n_decodes, n = 0, decodes = 0;
    for (; n < r->n_chunks; n++) tokens[n] = r->chunks[n].tokens, starts[n] = r->chunks[n].start;
    for (i64 i = 0; i < r->n_decodes; i++) {
        const Request *q = f->requests + r->decodes[i];
        if (q->drafts) tokens[n] = 1 + q->drafts, starts[n++] = q->computed;
        else contexts[decodes++] = q->computed + shift;
    }
    return valid(f, r->kind->ask(n, tokens, starts, decodes, contexts, steps));
}

static double step_seconds(Fleet *f, Replica *r) {
    const Kind *k = r->kind;
    if (!k->token_knots) return ask(f, r, 0, 0);
    i64 decodes = 0, chunks = r->n_chunks, tokens = 0, context = 0, gathered = 0;
    double pairs = 0;
    for (i64 i = 0; i < r->n_chunks; i++) {
        const Chunk *c = r->chunks + i;
        tokens += c->tokens;
        pairs += c->tokens * (c->start + 0.5 * (c->tokens + 1));
        gathered += c->start;
    }
    for (i64 i = 0; i < r->n_decodes; i++) {
        const Request *q = f->requests + r->decodes[i];
        if (q->drafts) {
            i64 chunk = 1 + q->drafts;
            chunks++;
            tokens += chunk;
            pairs += chunk * (q->computed + 0.5 * (chunk + 1));
            gathered += q->computed;
        } else {
            decodes++;
            context += q->computed;
        }
    }
    if (!chunks) return valid(f, batch_seconds(k, decodes, decodes) + k->decode_context_s * context);
    return valid(f, batch_seconds(k, tokens + decodes, decodes + chunks) + k->decode_context_s * context +
                        k->chunk_s * chunks + k->prefill_pair_s * pairs + k->prefill_context_s * gathered);
}

static double run_seconds(Fleet *f, Replica *r, i64 steps) {
    /* of the first `steps` decode steps of the run */
    const Kind *k = r->kind;
    if (k->token_knots) {
        i64 contexts = steps * r->run_context + r->n_decodes * (steps * (steps - 1) / 2);
        return valid(f, steps * batch_seconds(k, r->n_decodes, r->n_decodes) + k->decode_context_s * contexts);
    }
    if (!k->most_summed) return ask(f, r, 0, steps);
    for (; r->n_summed < steps; r->n_summed++)
        r->summed[r->n_summed + 1] = r->summed[r->n_summed] + ask(f, r, r->n_summed, 0);
    return r->summed[steps];
}
