/* Replicas of a serving fleet on a simulated clock: the engine's scheduler and `sim/serving/replica.py` once more, for speed.
 *
 * Those are the reference; here everything happens in the same order with the same rounding, so that results are equal
 * to the bit (compile without contraction and without -ffast-math). `fleet_advance` moves replicas through their own
 * changes up to a time; whatever comes from outside (arrivals, cancellations, failures) happens between two calls.
 * These are the functions that `sim/serving/replica_native.py` calls.
 */
#include "steps.h"

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
     * finishes, which is the result (who did is in `finished`); else infinity. Not a number after an error. */
    f->n_finished = 0;
    if (!watching) {
        for (i64 i = 0; i < f->n_replicas; i++)
            if (f->next_s[i] <= until_s)
                while (!f->error && is_due(f->replicas[i], until_s)) turn(f, f->replicas[i]);
        return f->error ? NAN : INFINITY;
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
    return f->error ? NAN : f->n_finished ? until_s : INFINITY;
}

int fleet_error(const Fleet *f, double *bad_s) { *bad_s = f->bad_s; return f->error; }
i64 fleet_finished(const Fleet *f, const i32 **requests) { *requests = f->finished; return f->n_finished; }
i64 fleet_records(const Fleet *f, const StepRecord **records) { *records = f->records; return f->n_records; }
double fleet_busy(const Fleet *f, i64 replica, double now_s) {
    /* Seconds in steps, the one under way included. */
    const Replica *r = f->replicas[replica];
    return f->counts[replica].busy_s + (r->busy ? now_s - r->started : 0);
}

i64 fleet_waiting(const Fleet *f, i64 replica) { return f->replicas[replica]->n_waiting; }
