// Rotary positions, keys and values into pages, and causal attention over pages.
//
// A token's place is page * page_size + offset; at a place, a layer holds (key-value heads, head size) of keys in one
// buffer and of values in another, as KV.

#ifdef HALF_PAGES
#define KV half
#define LOAD(from, i) vload_half(i, from)
#define STORE(to, i, value) vstore_half_rte(value, i, to)
#else
#define KV float
#define LOAD(from, i) from[i]
#define STORE(to, i, value) to[i] = value
#endif

// Turns the first `heads` heads of each token in place: global size (heads, tokens).
__kernel void rotate_heads(__global float *x, int stride, int size, __global const float *cosines,
                           __global const float *sines, int pairs, int interleaved, __global const int *positions) {
    const int token = get_global_id(1);
    __global float *head = x + (size_t)token * stride + get_global_id(0) * size;
    const size_t angle = (size_t)positions[token] * pairs;
    const int apart = interleaved ? 1 : pairs, step = interleaved ? 2 : 1;
    for (int pair = 0; pair < pairs; pair++) {
        const float c = cosines[angle + pair], s = sines[angle + pair];
        const float a = head[pair * step], b = head[pair * step + apart];
        head[pair * step] = a * c - b * s;
        head[pair * step + apart] = b * c + a * s;
    }
}

// Global size (key-value heads * head size, tokens).
__kernel void store(__global const float *k, __global const float *v, int k_stride, int v_stride, int k_offset,
                    int v_offset, __global const int *places, __global KV *k_pages, __global KV *v_pages) {
    const size_t i = get_global_id(0), token = get_global_id(1);
    const size_t to = places[token] * get_global_size(0) + i;
    STORE(k_pages, to, k[token * k_stride + k_offset + i]);
    STORE(v_pages, to, v[token * v_stride + v_offset + i]);
}

// One work group a query head and token: its LANES items score as many keys at once, then each mixes its part of the
// head out of them; the softmax is carried from tile to tile. Global size (query heads * LANES, tokens).
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))
void attend(__global const float *q, int q_stride, __global const KV *k_pages, __global const KV *v_pages,
            __global float *out, __global const int *positions, __global const int *token_row,
            __global const int *tables, int table_width, int page_size, int num_tokens, int kv_heads, int size,
            float scale, int window, float soft_cap, __global const float *sinks, int has_sinks,
            __global const float *slopes, int has_slopes) {
    __local float query[MAX_HEAD_DIM], scores[LANES], weights[LANES];
    __local int places[LANES];
    const int lane = get_local_id(0), head = get_group_id(0), token = get_group_id(1), heads = get_num_groups(0);
    __global float *to = out + ((size_t)token * heads + head) * size;
    if (token >= num_tokens) { // padding comes back finite, whatever its pages hold
        for (int d = lane; d < size; d += LANES)
            to[d] = 0.0f;
        return;
    }
    const int kv_head = head / (heads / kv_heads), last = positions[token];
    __global const int *table = tables + (size_t)token_row[token] * table_width;
    for (int d = lane; d < size; d += LANES)
        query[d] = q[(size_t)token * q_stride + head * size + d] * scale;
    barrier(CLK_LOCAL_MEM_FENCE);

    float mixed[MAX_HEAD_DIM / LANES];
    for (int part = 0; part < MAX_HEAD_DIM / LANES; part++)
        mixed[part] = 0.0f;
    float best = has_sinks ? sinks[head] : -INFINITY, sum = has_sinks ? 1.0f : 0.0f;
    for (int first = window > 0 ? max(0, last - window + 1) : 0; first <= last; first += LANES) {
        const int count = min(LANES, last - first + 1);
        if (lane < count) {
            const int key = first + lane;
            const int place = table[key / page_size] * page_size + key % page_size;
            const size_t from = ((size_t)place * kv_heads + kv_head) * size;
            float score = 0.0f;
            for (int d = 0; d < size; d++)
                score += query[d] * LOAD(k_pages, from + d);
            if (soft_cap > 0.0f)
                score = soft_cap * tanh(score / soft_cap);
            if (has_slopes)
                score += slopes[head] * (key - last);
            scores[lane] = score;
            places[lane] = place;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        float top = best;
        for (int i = 0; i < count; i++)
            top = fmax(top, scores[i]);
        if (lane < count)
            weights[lane] = exp(scores[lane] - top);
        barrier(CLK_LOCAL_MEM_FENCE);
        const float kept = exp(best - top);
        sum *= kept;
        for (int i = 0; i < count; i++)
            sum += weights[i];
        for (int part = 0; part * LANES + lane < size; part++) {
            const int d = part * LANES + lane;
            float value = mixed[part] * kept;
            for (int i = 0; i < count; i++)
                value += weights[i] * LOAD(v_pages, ((size_t)places[i] * kv_heads + kv_head) * size + d);
            mixed[part] = value;
        }
        best = top;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int part = 0; part * LANES + lane < size; part++)
        to[part * LANES + lane] = mixed[part] / sum;
}
