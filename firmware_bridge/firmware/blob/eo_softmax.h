/* Softmax over int8, in the fixed-point arithmetic of TensorFlow Lite for Microcontrollers, bit for bit. */
#ifndef EO_SOFTMAX_H
#define EO_SOFTMAX_H

#include <stdint.h>

/* `multiplier`, `shift`: what a step of the input is worth, in units of 2^-26; `smallest`: differences below this give
 * -128. The output's scale is 1/256, its zero point -128. Input and output may be the same memory. */
void eo_softmax_s8(const int8_t *input, int8_t *output, int32_t rows, int32_t columns, int32_t multiplier, int32_t shift,
                   int32_t smallest);

#endif
