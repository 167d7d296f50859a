#pragma once
/* A replica's steps: `sim/serving/replica.py`. It is between two steps (`busy` 0, the next begins at `now`) or in a run of unchanged
 * ones (`busy` 1, over at `ends`). */
#include "policy.h"
#include "step_time.h"

static double uniform(u64 seed, i64 request, i64 token) { /* a number in [0, 1) of its own for each guess */
    u64 x = seed + 0x9E3779B97F4A7C15ull * (u64)(request + 1) + 0xD1B54A32D192ED03ull * (u64)(token + 1);
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

static void count(Fleet *f, Replica *r, i64 change, double at_s) {
    f->counts[r->index].request_time_s += r->in_system * (at_s - r->counted_s);
    r->in_system += change;
    r->counted_s = at_s;
}

static i64 held_blocks(const Replica *r) { return r->kind->num_blocks - free_blocks(r); }

static void begin_step(Fleet *f, Replica *r) {
    const Kind *k = r->kind;
    if (k->draft_tokens)
        for (i64 i = 0; i < r->n_running; i++) {
            Request *q = f->requests + r->running[i];
            q->drafts = q->produced && q->computed + 1 == total(q) ? (i32)k->draft_tokens : 0;
        }
    schedule(f, r);
    if (!r->n_decodes && !r->n_chunks) {
        if (!f->error) f->error = NO_PROGRESS;
        return;
    }
    r->busy = 1;
    r->started = r->now;
    for (i64 i = 0; i < r->n_chunks; i++) {
        Request *q = f->requests + r->chunks[i].request;
        if (isnan(q->scheduled_s)) q->scheduled_s = r->now;
    }
    r->run_context = 0;
    for (i64 i = 0; i < r->n_decodes; i++) r->run_context += f->requests[r->decodes[i]].computed;
    r->run_steps = r->n_chunks ? 1 : unchanged_steps(f, r);
    r->n_summed = 0;
    if (k->most_summed && r->run_steps > k->most_summed) r->run_steps = k->most_summed;
    r->ends = r->started + (r->run_steps == 1 ? step_seconds(f, r) : run_seconds(f, r, r->run_steps));
    f->next_s[r->index] = r->ends;
}

static void cut(Fleet *f, Replica *r, double at_s) {
    /* Something happens at `at_s`: the run is over at its first step's end from then on. */
    if (!r->busy || r->run_steps == 1 || at_s >= r->ends) return;
    i64 low = 1, high = r->run_steps;
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (r->started + run_seconds(f, r, middle) >= at_s) high = middle; else low = middle + 1;
    }
    if (low == r->run_steps) return;
    r->run_steps = low;
    r->ends = r->started + run_seconds(f, r, low);
    f->next_s[r->index] = r->ends;
}

static void leave(Fleet *f, Replica *r, i32 request, double at_s) {
    Request *q = f->requests + request;
    count(f, r, -1, at_s);
    f->outstanding[r->index]--;
    f->outstanding_tokens[r->index] -= q->prompt;
}

static void book(Fleet *f, Replica *r, i32 request, i64 produced) {
    Request *q = f->requests + request;
    int first = !q->produced;
    q->produced += (i32)produced;
    if (first) q->first_token_s = r->ends;
    if (q->produced < q->output) return;
    release(r, q);
    q->state = FINISHED;
    q->finished_s = r->ends;
    f->counts[r->index].last_finish_s = r->ends;
    leave(f, r, request, r->ends);
    if (q->watched) {
        if (f->n_finished == f->finished_room) {
            f->finished_room = f->finished_room ? 2 * f->finished_room : 64;
            i32 *larger = realloc(f->finished, f->finished_room * sizeof(i32));
            if (!larger) { f->error = NO_MEMORY; return; }
            f->finished = larger;
        }
        f->finished[f->n_finished++] = request;
    }
}

static void abandon(Fleet *f, Replica *r, i32 request, double at_s) {
    Request *q = f->requests + request;
    release(r, q);
    q->state = OUTSIDE;
    leave(f, r, request, at_s);
}

static void record(Fleet *f, const Replica *r, i64 prefill_tokens, i64 contexts, i64 held) {
    if (f->n_records == f->record_room) {
        i64 room = f->record_room ? 2 * f->record_room : 1024;
        StepRecord *larger = realloc(f->records, room * sizeof(StepRecord));
        if (!larger) { f->error = NO_MEMORY; return; }
        f->records = larger;
        f->record_room = room;
    }
    f->records[f->n_records++] = (StepRecord){r->started,     r->ends,  r->index, r->run_steps, r->n_decodes, r->n_chunks,
                                              prefill_tokens, contexts, held,     r->n_waiting, r->n_running};
}

static void end_step(Fleet *f, Replica *r) {
    const Kind *k = r->kind;
    Counts *c = f->counts + r->index;
    i64 steps = r->run_steps, held = held_blocks(r), running = r->n_running, prefill_tokens = 0, grown = 0;
    double elapsed = r->ends - r->started;
    i64 contexts = steps * r->run_context + r->n_decodes * (steps * (steps - 1) / 2);
    for (i64 i = 0; i < r->n_chunks; i++) {
        const Chunk *chunk = r->chunks + i;
        prefill_tokens += chunk->tokens;
        c->attention_pairs += chunk->tokens * (chunk->start + 0.5 * (chunk->tokens + 1));
    }
    if (f->recording) record(f, r, prefill_tokens, contexts, held);
    c->busy_s += elapsed;
    c->batch_time_s += elapsed * (r->n_decodes + r->n_chunks);
    c->prefill_tokens += prefill_tokens;
    c->context_tokens += contexts;
    c->steps += steps;
    c->events++;
    /* Like `complete` (one step) or `complete_run`: first what was computed, then who produced and who is done. */
    for (i64 i = 0; i < r->n_decodes; i++) {
        Request *q = f->requests + r->decodes[i];
        i64 kept = 0;
        while (kept < q->drafts && uniform(f->seed, q->client, q->produced + kept) < k->acceptance_rate) kept++;
        q->drafts = (i32)(steps + kept); /* produced by this run */
        q->computed += q->drafts;
        c->decode_tokens += q->drafts;
        i64 missing = blocks_of(r, q->computed) - q->blocks;
        if (missing > 0) {
            take(r, missing);
            q->blocks += (i32)missing;
            grown += missing;
        }
    }
    c->kv_block_time_s += elapsed * (held + 0.5 * grown);
    for (i64 i = 0; i < r->n_chunks; i++) {
        const Chunk *chunk = r->chunks + i;
        f->requests[chunk->request].computed += chunk->tokens;
        remember(f, r, chunk);
    }
    i64 before_booking = r->in_system;
    for (i64 i = 0; i < r->n_decodes; i++) {
        Request *q = f->requests + r->decodes[i];
        i64 produced = q->drafts;
        q->drafts = 0;
        book(f, r, r->decodes[i], produced);
    }
    for (i64 i = 0; i < r->n_chunks; i++)
        if (r->chunks[i].samples) book(f, r, r->chunks[i].request, 1);
    for (i64 i = 0; r->n_cancelled && i < running; i++) {
        Request *q = f->requests + r->running[i];
        if (!q->cancelled) continue;
        q->cancelled = 0;
        r->n_cancelled--;
        if (q->state == RUNNING) abandon(f, r, r->running[i], r->ends);
    }
    if (r->in_system != before_booking) {
        i64 kept = 0;
        for (i64 i = 0; i < running; i++)
            if (f->requests[r->running[i]].state == RUNNING) r->running[kept++] = r->running[i];
        r->n_running = kept;
    }
    r->busy = 0;
    r->now = r->ends;
}

static double when_next(const Replica *r) {
    return r->busy ? r->ends : r->n_running || r->n_waiting ? r->now : INFINITY;
}

static int is_due(const Replica *r, double until_s) {
    return r->busy ? r->ends <= until_s : r->now < until_s && (r->n_running || r->n_waiting);
}

static void turn(Fleet *f, Replica *r) {
    if (r->busy) end_step(f, r); else begin_step(f, r);
    f->next_s[r->index] = when_next(r);
}
