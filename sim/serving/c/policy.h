#pragma once
/* The batching policy: `engine/scheduler.py`. */
#include "blocks.h"

static i64 total(const Request *q) { return (i64)q->prompt + q->produced; }

static int before(const Fleet *f, i32 a, i32 b) {
    const Request *x = f->requests + a, *y = f->requests + b;
    if (x->priority != y->priority) return x->priority < y->priority;
    if (x->queued_s != y->queued_s) return x->queued_s < y->queued_s;
    return x->added < y->added;
}

static void enqueue(Fleet *f, Replica *r, i32 request) { /* a binary heap, first in rank on top */
    if (r->n_waiting == r->waiting_room) {
        i64 room = r->waiting_room ? 2 * r->waiting_room : 64;
        i32 *larger = realloc(r->waiting, room * sizeof(i32));
        if (!larger) { f->error = NO_MEMORY; return; }
        r->waiting = larger;
        r->waiting_room = room;
    }
    i64 at = r->n_waiting++;
    while (at && before(f, request, r->waiting[(at - 1) / 2])) {
        r->waiting[at] = r->waiting[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    r->waiting[at] = request;
    f->requests[request].state = WAITING;
}

static void unqueue(Fleet *f, Replica *r, i64 at) {
    i32 moved = r->waiting[--r->n_waiting];
    if (at == r->n_waiting) return;
    while (at && before(f, moved, r->waiting[(at - 1) / 2])) {
        r->waiting[at] = r->waiting[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= r->n_waiting) break;
        if (child + 1 < r->n_waiting && before(f, r->waiting[child + 1], r->waiting[child])) child++;
        if (before(f, moved, r->waiting[child])) break;
        r->waiting[at] = r->waiting[child];
        at = child;
    }
    r->waiting[at] = moved;
}

static void run_in_order(Fleet *f, Replica *r, i32 request) {
    i64 at = r->n_running++;
    for (; at && before(f, request, r->running[at - 1]); at--) r->running[at] = r->running[at - 1];
    r->running[at] = request;
    f->requests[request].state = RUNNING;
}

static void preempt(Fleet *f, Replica *r) { /* who is last in rank */
    i32 request = r->running[--r->n_running];
    Request *q = f->requests + request;
    release(r, q);
    q->computed = q->drafts = 0;
    q->preemptions++;
    enqueue(f, r, request);
}

static int grow(Fleet *f, Replica *r, i32 request) {
    Request *q = f->requests + request;
    if (q->computed < q->blocks * r->kind->block_tokens) return 1;
    while (!free_blocks(r)) {
        int itself = r->running[r->n_running - 1] == request;
        preempt(f, r);
        if (itself) return 0;
    }
    take(r, 1);
    q->blocks++;
    return 1;
}

static i64 grow_for_drafts(Replica *r, Request *q, i64 budget) {
    i64 drafts = q->drafts, left = q->output - q->produced - 1;
    if (drafts > budget) drafts = budget;
    if (drafts > left) drafts = left;
    i64 missing = blocks_of(r, q->computed + 1 + drafts) - q->blocks;
    i64 spare = free_blocks(r) - r->n_running;
    if (spare < 0) spare = 0;
    if (missing > 0) {
        if (missing > spare) missing = spare;
        take(r, missing);
        q->blocks += missing;
    }
    i64 room = q->blocks * r->kind->block_tokens - q->computed - 1;
    return drafts < room ? drafts : room;
}

static int admit(Fleet *f, Replica *r, i32 request) {
    Request *q = f->requests + request;
    i64 shared = 0, unheld = 0;
    if (r->kind->prefix_caching && q->hashes) {
        i64 most = (total(q) - 1) / r->kind->block_tokens;
        if (most > q->hashes) most = q->hashes;
        q->nodes = malloc(q->hashes * sizeof(i32));
        if (!q->nodes) { f->error = NO_MEMORY; return 0; }
        for (; shared < most; shared++) {
            i32 node = find(r, f->contents[q->hash_start + shared]);
            if (node < 0) break;
            q->nodes[shared] = node;
            unheld += !r->nodes[node].holders;
        }
    }
    i64 missing = blocks_of(r, total(q)) - shared;
    if (missing + unheld + r->kind->spare_blocks_per_request * r->n_running > free_blocks(r)) {
        free(q->nodes);
        q->nodes = NULL;
        return 0;
    }
    for (i64 i = 0; i < shared; i++)
        if (!r->nodes[q->nodes[i]].holders++) unlink_node(r, q->nodes[i]);
    for (i64 i = shared; q->nodes && i < q->hashes; i++) q->nodes[i] = -1;
    take(r, missing);
    q->blocks = (i32)(shared + missing);
    i64 found = shared * r->kind->block_tokens;
    i64 received = q->preemptions ? 0 : q->received;
    q->computed = (i32)(found > received ? found : received);
    if (!q->preemptions) q->cached = (i32)found;
    return 1;
}

static i64 append_chunk(Fleet *f, Replica *r, i32 request, i64 budget) {
    Request *q = f->requests + request;
    i64 left = total(q) - q->computed, tokens = left < budget ? left : budget;
    r->chunks[r->n_chunks++] = (Chunk){request, q->computed, (i32)tokens, tokens == left};
    return tokens;
}

static i64 join(Fleet *f, Replica *r, i64 budget, i32 ahead_of) {
    while (budget && r->n_waiting && r->n_running < r->kind->max_running) {
        i32 request = r->waiting[0];
        if ((ahead_of >= 0 && before(f, ahead_of, request)) || !admit(f, r, request)) break;
        unqueue(f, r, 0);
        run_in_order(f, r, request);
        budget -= append_chunk(f, r, request, budget);
    }
    return budget;
}

static void schedule(Fleet *f, Replica *r) {
    i64 budget = r->kind->max_step_tokens, n_under_way = 0;
    r->n_decodes = r->n_chunks = r->has_drafts = 0;
    for (i64 position = 0; position < r->n_running;) {
        i32 request = r->running[position++];
        Request *q = f->requests + request;
        if (q->computed + 1 < total(q) || !q->produced) {
            r->under_way[n_under_way++] = request;
        } else if (budget && grow(f, r, request)) {
            r->decodes[r->n_decodes++] = request;
            budget--;
            if (q->drafts) r->has_drafts = 1;
        }
    }
    for (i64 i = 0; r->has_drafts && i < r->n_decodes; i++) {
        Request *q = f->requests + r->decodes[i];
        q->drafts = (i32)grow_for_drafts(r, q, budget);
        budget -= q->drafts;
    }
    for (i64 i = 0; i < n_under_way; i++) {
        i32 request = r->under_way[i];
        if (f->requests[request].state != RUNNING) continue;
        budget = join(f, r, budget, request);
        if (budget) budget -= append_chunk(f, r, request, budget);
    }
    join(f, r, budget, -1);
}

static i64 growth(const Fleet *f, const Replica *r, i64 steps) {
    i64 sum = 0;
    for (i64 i = 0; i < r->n_decodes; i++) {
        const Request *q = f->requests + r->decodes[i];
        i64 needed = blocks_of(r, q->computed + steps) - q->blocks;
        if (needed > 0) sum += needed;
    }
    return sum;
}

static i64 unchanged_steps(const Fleet *f, const Replica *r) {
    if (r->n_chunks || r->has_drafts || r->n_decodes != r->n_running) return 1;
    i64 steps = INT64_MAX, free = free_blocks(r);
    for (i64 i = 0; i < r->n_decodes; i++) {
        const Request *q = f->requests + r->decodes[i];
        if (q->output - q->produced < steps) steps = q->output - q->produced;
    }
    if (growth(f, r, steps) <= free) return steps;
    i64 low = 1, high = steps;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (growth(f, r, middle) <= free) low = middle; else high = middle;
    }
    return low;
}
