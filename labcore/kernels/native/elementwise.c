/* Elementwise operations in one pass: every number is read once and written once.
 *
 * PyTorch's operators write each intermediate result to memory and read it back; for vectors longer than the
 * caches that traffic is all that they cost.
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

/* e^x to about 2e-7, in arithmetic that compilers turn into vector code (libm's expf is a call for each number).
 * x = (n + f) ln 2 with n whole and |f| <= 1/2: 2^n goes into the exponent, 2^f is a polynomial (its Taylor
 * series, cut where fp32 ends). */
static inline float exponential(float x) {
    float scaled = x * 1.44269504f;
    scaled = scaled < -126.0f ? -126.0f : scaled > 127.0f ? 127.0f : scaled;
    float whole = rintf(scaled), f = (scaled - whole) * 0.69314718f;
    float series = 1.0f + f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f / 720)))));
    int bits = ((int)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * series;
}

/* gate_up (rows, 2 width), gate first -> out (rows, width): silu(gate) * up. Shazeer 2020. */
void labcore_swiglu(const float *gate_up, float *out, long rows, long width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *gate = gate_up + (size_t)r * 2 * width, *up = gate + width;
        float *to = out + (size_t)r * width;
#pragma omp simd
        for (long i = 0; i < width; i++) to[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
    }
}
