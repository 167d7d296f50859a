/* Replicas of a serving fleet on a simulated clock: `engine/scheduler.py`, `engine/kv_cache.py` and `sim/replica.py`
 * once more, for speed. Those are the reference; here everything happens in the same order with the same rounding, so
 * that results are equal to the bit (compile without contraction and without -ffast-math).
 *
 * A replica is a state machine: between steps (`busy` 0, the next one begins at `now`) or in a run of unchanged steps
 * (`busy` 1, over at `ends`). `fleet_advance` moves replicas through their own changes up to a time; whatever comes
 * from outside (arrivals, cancellations, failures) happens between two calls, and cuts a run at its next step's end.
 *
 * Field order and types of Request, Counts and StepRecord are those of `sim/replica_tables.py`, Kind's those of
 * `sim/native_replicas.py`.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t i32;
typedef int64_t i64;
typedef uint64_t u64;

enum { OUTSIDE, WAITING, RUNNING, FINISHED };
enum { BAD_TIME = 1, NO_PROGRESS = 2, NO_MEMORY = 3 };

typedef struct {
    double queued_s, scheduled_s, first_token_s, finished_s;
    i64 added, hash_start;
    i32 *nodes; /* of each block that may be shared: its node, or -1 */
    i32 prompt, output, received, priority, hashes, watched;
    i32 computed, produced, blocks, drafts, preemptions, cached, state, cancelled, replica;
} Request;

/* Seconds asked of Python: of one step if `steps` is 0, else of a run of so many decode steps. */
typedef double (*AskTime)(i64 chunks, const i64 *tokens, const i64 *starts, i64 decodes, const i64 *contexts, i64 steps);

typedef struct {
    i64 max_running, max_step_tokens, block_tokens, num_blocks, prefix_caching, max_waiting;
    i64 spare_blocks_per_request;
    i64 draft_tokens;
    double acceptance_rate;
    i64 most_summed; /* steps of a run summed one by one; 0: the model has a closed form */
    i64 token_knots, request_knots; /* how many; 0: ask Python */
    const double *token_knot, *token_slope, *token_base, *request_knot, *request_slope, *request_base;
    double constant_s, decode_context_s, chunk_s, prefill_pair_s, prefill_context_s;
    AskTime ask;
} Kind;

typedef struct {
    double busy_s, batch_time_s, kv_block_time_s, request_time_s, last_finish_s;
    i64 prefill_tokens, decode_tokens, context_tokens, steps, events;
    double attention_pairs;
} Counts;

typedef struct {
    double started_s, ended_s;
    i64 replica, steps, decodes, prefill_chunks, prefill_tokens, context_tokens, kv_blocks, waiting, running;
} StepRecord;

typedef struct {
    i64 content;
    i32 holders, previous, next; /* neighbours among the blocks that nobody holds, oldest first */
} Node;

typedef struct {
    i32 request, start, tokens, samples;
} Chunk;

typedef struct {
    i64 index;
    Kind *kind;
    i32 *running, *waiting, *decodes, *under_way;
    Chunk *chunks;
    i64 n_running, n_waiting, waiting_room, n_decodes, n_chunks, added;
    int has_drafts, busy;
    double now, started, ends, counted_s;
    i64 run_steps, run_context, in_system, n_cancelled;
    i64 blank, remembered; /* free blocks: without content, and with */
    Node *nodes;
    i32 *blank_nodes, *slots; /* slots: open addressing over nodes by content */
    i64 n_blank_nodes, n_slots;
    i32 oldest, newest;
    double *summed; /* seconds of the first n steps of the run */
    i64 n_summed;
    i64 *context_room; /* for Python: tokens, starts and contexts of a step */
    i64 context_capacity;
} Replica;

typedef struct {
    Request *requests;
    const i64 *contents; /* hashes of all requests, as numbers */
    Counts *counts;
    double *next_s;                       /* of each replica: when something happens in it by itself */
    i64 *outstanding, *outstanding_tokens; /* of each replica: delivered and not finished; their prompts' tokens */
    u64 seed;
    Replica **replicas;
    i64 n_replicas;
    i32 *finished; /* watched requests that finished at the time that fleet_advance gave */
    i64 n_finished, finished_room;
    StepRecord *records;
    i64 n_records, record_room;
    int recording, error;
    double bad_s;
} Fleet;

/* ---- blocks: engine/kv_cache.py ---- */

static i64 slot_of(const Replica *r, i64 content) {
    u64 x = (u64)content * 0x9E3779B97F4A7C15ull;
    return (i64)((x ^ x >> 29) & (u64)(r->n_slots - 1));
}

static i32 find(const Replica *r, i64 content) {
    for (i64 s = slot_of(r, content); r->slots[s] >= 0; s = (s + 1) & (r->n_slots - 1))
        if (r->nodes[r->slots[s]].content == content) return r->slots[s];
    return -1;
}

static void insert(Replica *r, i32 node) {
    i64 s = slot_of(r, r->nodes[node].content);
    while (r->slots[s] >= 0) s = (s + 1) & (r->n_slots - 1);
    r->slots[s] = node;
}

static void forget(Replica *r, i32 node) {
    i64 mask = r->n_slots - 1, hole = slot_of(r, r->nodes[node].content);
    while (r->slots[hole] != node) hole = (hole + 1) & mask;
    for (i64 s = (hole + 1) & mask; r->slots[s] >= 0; s = (s + 1) & mask) {
        i64 home = slot_of(r, r->nodes[r->slots[s]].content);
        if (((s - home) & mask) >= ((s - hole) & mask)) {
            r->slots[hole] = r->slots[s];
            hole = s;
        }
    }
    r->slots[hole] = -1;
}

static void unlink_node(Replica *r, i32 node) {
    Node *n = r->nodes + node;
    if (n->previous >= 0) r->nodes[n->previous].next = n->next; else r->oldest = n->next;
    if (n->next >= 0) r->nodes[n->next].previous = n->previous; else r->newest = n->previous;
    r->remembered--;
}

static i64 free_blocks(const Replica *r) { return r->blank + r->remembered; }

static i64 blocks_of(const Replica *r, i64 tokens) {
    return (tokens + r->kind->block_tokens - 1) / r->kind->block_tokens;
}

static void take(Replica *r, i64 count) {
    i64 blank = count < r->blank ? count : r->blank;
    r->blank -= blank;
    for (count -= blank; count > 0; count--) {
        i32 node = r->oldest;
        unlink_node(r, node);
        forget(r, node);
        r->blank_nodes[r->n_blank_nodes++] = node;
    }
}

static void release(Replica *r, Request *q) {
    i64 anonymous = q->blocks;
    for (i64 i = q->hashes < q->blocks ? q->hashes : q->blocks; q->nodes && i-- > 0;) {
        i32 node = q->nodes[i];
        if (node < 0) continue;
        anonymous--;
        Node *n = r->nodes + node;
        if (--n->holders) continue;
        n->previous = r->newest;
        n->next = -1;
        if (r->newest >= 0) r->nodes[r->newest].next = node; else r->oldest = node;
        r->newest = node;
        r->remembered++;
    }
    r->blank += anonymous;
    free(q->nodes);
    q->nodes = NULL;
    q->blocks = 0;
}

static void remember(Fleet *f, Replica *r, const Chunk *c) {
    Request *q = f->requests + c->request;
    if (!q->nodes) return;
    i64 last = q->computed / r->kind->block_tokens;
    if (last > q->hashes) last = q->hashes;
    for (i64 i = c->start / r->kind->block_tokens; i < last; i++) {
        i64 content = f->contents[q->hash_start + i];
        if (q->nodes[i] >= 0 || find(r, content) >= 0) continue;
        i32 node = r->blank_nodes[--r->n_blank_nodes];
        r->nodes[node].content = content;
        r->nodes[node].holders = 1;
        insert(r, node);
        q->nodes[i] = node;
    }
}

/* ---- the batching policy: engine/scheduler.py ---- */

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

/* ---- step times: engine/step_time.py ---- */

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

/* ---- a replica's steps: sim/replica.py ---- */

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
        while (kept < q->drafts && uniform(f->seed, r->decodes[i], q->produced + kept) < k->acceptance_rate) kept++;
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

/* ---- what Python calls ---- */

Fleet *fleet_new(Request *requests, const i64 *contents, Counts *counts, double *next_s, i64 *outstanding,
                 i64 *outstanding_tokens, i64 most_replicas, u64 seed, int recording) {
    Fleet *f = calloc(1, sizeof(Fleet));
    if (!f) return NULL;
    *f = (Fleet){.requests = requests, .contents = contents, .counts = counts, .next_s = next_s,
                 .outstanding = outstanding, .outstanding_tokens = outstanding_tokens, .seed = seed,
                 .recording = recording};
    f->replicas = calloc(most_replicas, sizeof(Replica *));
    if (!f->replicas) { free(f); return NULL; }
    return f;
}

static void replica_free(Replica *r) {
    if (!r) return;
    free(r->running); free(r->waiting); free(r->decodes); free(r->under_way); free(r->chunks);
    free(r->nodes); free(r->blank_nodes); free(r->slots); free(r->summed); free(r->context_room);
    free(r);
}

void fleet_free(Fleet *f, i64 n_requests) {
    for (i64 i = 0; i < n_requests; i++) free(f->requests[i].nodes);
    for (i64 i = 0; i < f->n_replicas; i++) replica_free(f->replicas[i]);
    free(f->replicas); free(f->finished); free(f->records);
    free(f);
}

i64 fleet_add_replica(Fleet *f, Kind *kind, double now_s, int with_prefixes) {
    Replica *r = calloc(1, sizeof(Replica));
    if (!r) return -1;
    i64 most = kind->max_running;
    r->kind = kind;
    r->index = f->n_replicas;
    r->now = r->counted_s = now_s;
    r->blank = kind->num_blocks;
    r->oldest = r->newest = -1;
    r->running = malloc(most * sizeof(i32));
    r->decodes = malloc(most * sizeof(i32));
    r->under_way = malloc(most * sizeof(i32));
    r->chunks = malloc(most * sizeof(Chunk));
    r->summed = calloc(kind->most_summed + 1, sizeof(double));
    int fine = r->running && r->decodes && r->under_way && r->chunks && r->summed;
    if (with_prefixes && kind->prefix_caching) {
        for (r->n_slots = 64; r->n_slots < 2 * kind->num_blocks;) r->n_slots *= 2;
        r->nodes = malloc(kind->num_blocks * sizeof(Node));
        r->blank_nodes = malloc(kind->num_blocks * sizeof(i32));
        r->slots = malloc(r->n_slots * sizeof(i32));
        fine = fine && r->nodes && r->blank_nodes && r->slots;
        if (fine) memset(r->slots, -1, r->n_slots * sizeof(i32));
        for (i64 i = 0; fine && i < kind->num_blocks; i++) r->blank_nodes[r->n_blank_nodes++] = (i32)i;
    }
    if (!fine) { replica_free(r); return -1; }
    f->next_s[r->index] = INFINITY;
    f->replicas[f->n_replicas++] = r;
    return r->index;
}

int fleet_deliver(Fleet *f, i64 replica, i32 request, double now_s) {
    /* A request arrives at a replica; 0 if as many wait there as may. */
    Replica *r = f->replicas[replica];
    Request *q = f->requests + request;
    if (r->kind->max_waiting >= 0 && r->n_waiting >= r->kind->max_waiting) return 0;
    if (!r->busy && !r->n_running && !r->n_waiting && r->now < now_s) r->now = now_s;
    cut(f, r, now_s);
    q->computed = q->produced = q->drafts = q->preemptions = q->cached = 0;
    q->queued_s = now_s;
    q->added = ++r->added;
    q->replica = (i32)replica;
    enqueue(f, r, request);
    count(f, r, +1, now_s);
    f->outstanding[replica]++;
    f->outstanding_tokens[replica] += q->prompt;
    f->next_s[replica] = when_next(r);
    return 1;
}

double fleet_cancel(Fleet *f, i32 request, double now_s) {
    /* The client goes away. A step under way still computes the request, which leaves at its end: the result. */
    Request *q = f->requests + request;
    if (q->state != WAITING && q->state != RUNNING) return now_s;
    Replica *r = f->replicas[q->replica];
    if (q->state == WAITING) {
        i64 at = 0;
        while (r->waiting[at] != request) at++;
        unqueue(f, r, at);
        abandon(f, r, request, now_s);
    } else if (q->state == RUNNING && r->busy) {
        cut(f, r, now_s);
        q->cancelled = 1;
        r->n_cancelled++;
        return r->ends;
    } else {
        i64 at = 0;
        while (r->running[at] != request) at++;
        memmove(r->running + at, r->running + at + 1, (--r->n_running - at) * sizeof(i32));
        abandon(f, r, request, now_s);
    }
    f->next_s[r->index] = when_next(r);
    return now_s;
}

i64 fleet_clear(Fleet *f, i64 replica, double now_s, i32 *lost) {
    /* A replica dies: whoever is in it is lost, with everything in its cache. */
    Replica *r = f->replicas[replica];
    i64 n = 0;
    for (i64 i = 0; i < r->n_running; i++) lost[n++] = r->running[i];
    for (; r->n_waiting; unqueue(f, r, 0)) lost[n++] = r->waiting[0]; /* in order of rank */
    if (r->busy) f->counts[replica].busy_s += now_s - r->started;
    for (i64 i = 0; i < n; i++) {
        Request *q = f->requests + lost[i];
        free(q->nodes);
        q->nodes = NULL;
        q->blocks = q->cancelled = 0;
        q->state = OUTSIDE;
        leave(f, r, lost[i], now_s);
    }
    r->busy = 0;
    r->n_running = r->n_cancelled = 0;
    r->blank = r->kind->num_blocks;
    r->remembered = 0;
    r->oldest = r->newest = -1;
    if (r->nodes) {
        memset(r->slots, -1, r->n_slots * sizeof(i32));
        r->n_blank_nodes = 0;
        for (i64 i = 0; i < r->kind->num_blocks; i++) r->blank_nodes[r->n_blank_nodes++] = (i32)i;
    }
    r->now = now_s;
    f->next_s[replica] = INFINITY;
    return n;
}

double fleet_advance(Fleet *f, double until_s, int watching) {
    /* Up to `until_s`, steps that begin then excluded. Watching: only up to the first time at which a watched request
     * finishes, which is the result (who did is in `finished`); else infinity. */
    f->n_finished = 0;
    if (!watching) {
        for (i64 i = 0; i < f->n_replicas; i++)
            if (f->next_s[i] <= until_s)
                while (!f->error && is_due(f->replicas[i], until_s)) turn(f, f->replicas[i]);
        return INFINITY;
    }
    while (!f->error) {
        i64 first = -1;
        double first_s = INFINITY;
        for (i64 i = 0; i < f->n_replicas; i++)
            if (f->next_s[i] < first_s && is_due(f->replicas[i], until_s)) first_s = f->next_s[first = i];
        if (first < 0) break;
        turn(f, f->replicas[first]);
        if (f->n_finished) until_s = first_s; /* others that finish at the same time still count */
    }
    return f->n_finished ? until_s : INFINITY;
}

int fleet_error(const Fleet *f, double *bad_s) { *bad_s = f->bad_s; return f->error; }
i64 fleet_finished(const Fleet *f, const i32 **requests) { *requests = f->finished; return f->n_finished; }
i64 fleet_records(const Fleet *f, const StepRecord **records) { *records = f->records; return f->n_records; }
i64 fleet_waiting(const Fleet *f, i64 replica) { return f->replicas[replica]->n_waiting; }
