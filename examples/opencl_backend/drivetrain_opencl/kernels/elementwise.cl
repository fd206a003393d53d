// Norms, activations and rows picked out of a matrix. LANES work items share a row.

enum { SILU, GELU, GELU_TANH, GELU_QUICK, RELU, RELU2 };

static float total(float mine, __local float *partial) {
    const int lane = get_local_id(0);
    partial[lane] = mine;
    barrier(CLK_LOCAL_MEM_FENCE);
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++)
        sum += partial[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    return sum;
}

// out = norm(x + delta); with a delta, x becomes x + delta.
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))
void norm_rows(__global float *x, __global const float *delta, __global const float *weight,
               __global const float *bias, __global float *out, int width, float eps, float offset, int centred,
               int has_delta, int has_weight, int has_bias) {
    __local float partial[LANES];
    const int lane = get_local_id(0);
    const size_t start = (size_t)get_group_id(0) * width;
    float sum = 0.0f;
    for (int i = lane; i < width; i += LANES) {
        if (has_delta)
            x[start + i] += delta[start + i];
        sum += x[start + i];
    }
    const float mean = centred ? total(sum, partial) / width : 0.0f;
    float squares = 0.0f;
    for (int i = lane; i < width; i += LANES) {
        const float away = x[start + i] - mean;
        squares += away * away;
    }
    const float scale = 1.0f / sqrt(total(squares, partial) / width + eps);
    for (int i = lane; i < width; i += LANES) {
        float y = (x[start + i] - mean) * scale;
        if (has_weight)
            y *= weight[i] + offset;
        out[start + i] = has_bias ? y + bias[i] : y;
    }
}

static float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static float activated(float x, int kind) {
    switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case GELU_QUICK: return x * sigmoid(1.702f * x);
    case RELU: return fmax(x, 0.0f);
    default: return fmax(x, 0.0f) * fmax(x, 0.0f);
    }
}

__kernel void activate(__global const float *x, __global float *out, int kind) {
    const size_t i = get_global_id(0);
    out[i] = activated(x[i], kind);
}

// out = activation(first half of a row) * second half.
__kernel void activate_gate(__global const float *x, __global float *out, int kind) {
    const size_t width = get_global_size(0), i = get_global_id(0), row = get_global_id(1);
    __global const float *from = x + row * 2 * width;
    out[row * width + i] = activated(from[i], kind) * from[width + i];
}

__kernel void take_rows(__global const float *x, __global const int *index, __global float *out) {
    const size_t width = get_global_size(0), i = get_global_id(0), row = get_global_id(1);
    out[row * width + i] = x[index[row] * width + i];
}

__kernel void add(__global const float *x, __global const float *y, __global float *out) {
    const size_t i = get_global_id(0);
    out[i] = x[i] + y[i];
}
