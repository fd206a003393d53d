// x W^T + b. One work item makes 16 outputs of ROWS tokens; weights are packed as (outputs / 16, inner, 16), so that it
// reads them in one stream. The sum over `inner` always goes in the same order: a token's result does not depend on how
// many others are in the step.

__kernel void linear(__global const float *x, __global const float *weight, __global const float *bias,
                     __global float *out, int tokens, int inner, int outputs, int has_bias) {
    const int tile = get_global_id(0);
    const int first = get_global_id(1) * ROWS;
    __global const float *packed = weight + (size_t)tile * inner * 16;
    const float16 start = has_bias ? vload16(tile, bias) : (float16)(0.0f);
    float16 sum[ROWS];
    __global const float *row[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        sum[r] = start;
        row[r] = x + (size_t)min(first + r, tokens - 1) * inner;
    }
    for (int i = 0; i < inner; i++) {
        const float16 w = vload16(i, packed);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            sum[r] = fma(w, (float16)(row[r][i]), sum[r]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= tokens)
            break;
        __global float *to = out + (size_t)(first + r) * outputs + tile * 16;
        if (tile * 16 + 16 <= outputs) {
            vstore16(sum[r], 0, to);
        } else {
            float values[16];
            vstore16(sum[r], 0, values);
            for (int o = 0; tile * 16 + o < outputs; o++)
                to[o] = values[o];
        }
    }
}
