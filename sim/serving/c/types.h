#pragma once
/* Requests, replicas and the fleet. Field order and types of Request, Counts and StepRecord are those of
 * `sim/serving/replica_tables.py`, Kind's those of `sim/serving/replica_native.py`. */
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
    i32 computed, produced, blocks, drafts, preemptions, cached, state, cancelled, replica, client;
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
