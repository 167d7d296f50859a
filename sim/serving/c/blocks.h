#pragma once
/* The KV blocks of a replica: `engine/kv_cache.py`. Blocks without a known content are only counted; one whose content may
 * be found again is a node. A node that nobody holds keeps its place in a list, oldest first, until room is needed. */
#include "types.h"

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
