/* Frames of the serial line: bytes in, packets out, and back. SPEC.md, "Frame". */
#ifndef EO_FRAME_H
#define EO_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EO_PACKET_MAX 2048u /* the largest packet, header included */
#define EO_PACKET_HEADER 8u

typedef struct {
    uint32_t frames;    /* whole ones */
    uint32_t damaged;   /* dropped: marks, base64, length or crc */
    uint32_t oversized; /* dropped: larger than the buffer */
} eo_frame_counts;

typedef struct {
    eo_frame_counts counts;
    uint8_t state;
    uint8_t quad_length;
    uint8_t quad[4];
    bool begun;  /* a frame is under way */
    bool padded; /* its last group was seen */
    uint32_t length;
    uint8_t body[2 + EO_PACKET_MAX + 2];
} eo_frame_receiver;

void eo_frame_init(eo_frame_receiver *receiver);

/* Take one byte. Returns the length of a packet when this byte completed one, else 0; the packet is valid until the
 * next byte. */
size_t eo_frame_byte(eo_frame_receiver *receiver, uint8_t byte, const uint8_t **packet);

/* Send a packet as a frame. */
void eo_frame_send(const uint8_t *packet, size_t length, void (*put)(void *context, uint8_t byte), void *context);

#endif
