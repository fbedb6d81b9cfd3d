/* The arithmetic is that of gemmlowp's fixed-point functions, as TensorFlow Lite's reference kernel for softmax uses
 * them: a value with I integer bits is an int32_t in units of 2^(I - 31), products are rounded to the nearest. */
#include "eo_softmax.h"

/* Integer bits: of a difference, of the sum of all exponentials. */
enum { DIFFERENCE_BITS = 5, SUM_BITS = 12, OUTPUT_BITS = 8 };

static int32_t product(int32_t a, int32_t b) {
    if (a == INT32_MIN && b == INT32_MIN) {
        return INT32_MAX;
    }
    int64_t exact = (int64_t)a * b;
    int64_t nudge = exact >= 0 ? (1 << 30) : 1 - (1 << 30);
    return (int32_t)((exact + nudge) / ((int64_t)1 << 31));
}

static int32_t shifted_down(int32_t value, int32_t bits) {
    int32_t mask = (int32_t)(((int64_t)1 << bits) - 1);
    int32_t rest = value & mask;
    int32_t half = (mask >> 1) + (value < 0 ? 1 : 0);
    return (value >> bits) + (rest > half ? 1 : 0);
}

static int32_t shifted_up(int32_t value, int32_t bits) {
    int32_t limit = (int32_t)(((int64_t)1 << (31 - bits)) - 1);
    if (value > limit) {
        return INT32_MAX;
    }
    return value < -limit ? INT32_MIN : (int32_t)((uint32_t)value << bits);
}

/* exp(a) for a in [-1/4, 0), no integer bits in and out: the series around -1/8 up to the fourth power. */
static int32_t exp_small(int32_t a) {
    const int32_t exp_eighth = 1895147668, third = 715827883;
    int32_t x = a + (1 << 28);
    int32_t x2 = product(x, x), x3 = product(x2, x), x4 = product(x2, x2);
    int32_t rest = shifted_down(product(shifted_down(x4, 2) + x3, third) + x2, 1);
    return exp_eighth + product(exp_eighth, x + rest);
}

/* exp(a) for a <= 0 with DIFFERENCE_BITS integer bits; none in the result. */
static int32_t exp_negative(int32_t a) {
    /* exp(-2^k) for k from -2 on */
    static const int32_t powers[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t quarter = 1 << (31 - DIFFERENCE_BITS - 2);
    int32_t part = (a & (quarter - 1)) - quarter;
    int32_t rest = part - a;
    int32_t result = exp_small(shifted_up(part, DIFFERENCE_BITS));
    for (int k = 0; k < DIFFERENCE_BITS + 2; k++) {
        if ((rest & (quarter << k)) != 0) {
            result = product(result, powers[k]);
        }
    }
    return a == 0 ? INT32_MAX : result;
}

/* 1 / (1 + a) for a in [0, 1), no integer bits: three steps of Newton and Raphson with two integer bits. */
static int32_t reciprocal(int32_t a) {
    int64_t sum = (int64_t)a + INT32_MAX;
    int32_t half = (int32_t)((sum + (sum >= 0 ? 1 : -1)) / 2);
    int32_t x = 1515870810 + product(half, -1010580540);
    for (int step = 0; step < 3; step++) {
        x += shifted_up(product(x, (1 << 29) - product(half, x)), 2);
    }
    return shifted_up(x, 1);
}

static int32_t leading_zeros(uint32_t value) {
    int32_t count = 0;
    while (count < 32 && (value & ((uint32_t)1 << 31)) == 0) {
        value <<= 1;
        count++;
    }
    return count;
}

static int32_t scaled(int32_t difference, int32_t multiplier, int32_t shift) {
    return product((int32_t)((uint32_t)difference << shift), multiplier);
}

void eo_softmax_s8(const int8_t *input, int8_t *output, int32_t rows, int32_t columns, int32_t multiplier, int32_t shift,
                   int32_t smallest) {
    for (int32_t row = 0; row < rows; row++, input += columns, output += columns) {
        int32_t most = INT8_MIN, sum = 0;
        for (int32_t i = 0; i < columns; i++) {
            most = input[i] > most ? input[i] : most;
        }
        for (int32_t i = 0; i < columns; i++) {
            int32_t difference = input[i] - most;
            if (difference >= smallest) {
                sum += shifted_down(exp_negative(scaled(difference, multiplier, shift)), SUM_BITS);
            }
        }
        int32_t zeros = leading_zeros((uint32_t)sum);
        int32_t scale = reciprocal((int32_t)(((uint32_t)sum << zeros) - ((uint32_t)1 << 31)));
        for (int32_t i = 0; i < columns; i++) {
            int32_t difference = input[i] - most, value = INT8_MIN;
            if (difference >= smallest) {
                int32_t share = product(scale, exp_negative(scaled(difference, multiplier, shift)));
                value = shifted_down(share, SUM_BITS - zeros + 31 - OUTPUT_BITS) + INT8_MIN;
                value = value > INT8_MAX ? INT8_MAX : value < INT8_MIN ? INT8_MIN : value;
            }
            output[i] = (int8_t)value;
        }
    }
}
