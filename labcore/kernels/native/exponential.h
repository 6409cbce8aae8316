/* e^x to about 2e-7, in arithmetic that compilers turn into vector code (libm's expf is a call for each number). */
#ifndef LABCORE_EXPONENTIAL_H
#define LABCORE_EXPONENTIAL_H

#include <math.h>
#include <string.h>

/* x = (n + f) ln 2 with n whole and |f| <= 1/2: 2^n goes into the exponent, 2^f is a polynomial (its Taylor series, cut
 * where fp32 ends). */
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

#endif
