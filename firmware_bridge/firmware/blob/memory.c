/* What compilers call without being asked; a blob has no C library. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t length) {
    uint8_t *out = to;
    const uint8_t *in = from;
    while (length-- > 0) {
        *out++ = *in++;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t length) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (out <= in) {
        return memcpy(to, from, length);
    }
    while (length-- > 0) {
        out[length] = in[length];
    }
    return to;
}

void *memset(void *to, int value, size_t length) {
    uint8_t *out = to;
    while (length-- > 0) {
        *out++ = (uint8_t)value;
    }
    return to;
}
