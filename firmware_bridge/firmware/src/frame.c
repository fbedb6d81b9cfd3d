#include "eo_frame.h"

#include "eo_digest.h"

#define LINE_MAX 127u
#define GROUPS_PER_LINE ((LINE_MAX - 3u) / 4u)

enum { SKIP, MARK_FIRST, MARK_CONTINUE, LINE };
enum { FIRST_1 = 0x06, FIRST_2 = 0x09, CONTINUE_1 = 0x04, CONTINUE_2 = 0x14 };

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void eo_frame_init(eo_frame_receiver *receiver) { *receiver = (eo_frame_receiver){.state = SKIP}; }

static int value_of(uint8_t c) {
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static void drop(eo_frame_receiver *r, uint32_t *count) {
    if (r->begun) {
        (*count)++;
    }
    r->begun = false;
    r->state = SKIP;
}

static void begin(eo_frame_receiver *r) {
    drop(r, &r->counts.damaged);
    r->begun = true;
    r->padded = false;
    r->length = 0;
    r->quad_length = 0;
    r->state = LINE;
}

static uint32_t announced(const eo_frame_receiver *r) { return (uint32_t)r->body[0] << 8 | r->body[1]; }

/* Decode one whole group of four characters. */
static void take_quad(eo_frame_receiver *r) {
    unsigned pads = r->quad[3] != '=' ? 0 : r->quad[2] != '=' ? 1 : 2;
    uint32_t bits = 0;
    for (unsigned i = 0; i < 4; i++) {
        int value = i >= 4 - pads ? 0 : value_of(r->quad[i]);
        if (value < 0 || r->padded) {
            drop(r, &r->counts.damaged);
            return;
        }
        bits = bits << 6 | (uint32_t)value;
    }
    r->padded = pads > 0;
    r->quad_length = 0;
    for (unsigned i = 0; i < 3 - pads; i++) {
        if (r->length >= sizeof r->body) {
            drop(r, &r->counts.oversized);
            return;
        }
        r->body[r->length++] = (uint8_t)(bits >> (16 - 8 * i));
    }
    if (r->length >= 2 && announced(r) > EO_PACKET_MAX + 2) {
        drop(r, &r->counts.oversized);
    } else if (r->length >= 2 && (announced(r) < EO_PACKET_HEADER + 2 || r->length > announced(r) + 2)) {
        drop(r, &r->counts.damaged);
    }
}

/* A line is over: the packet's length if the frame is, too. */
static size_t end_line(eo_frame_receiver *r, const uint8_t **packet) {
    r->state = SKIP;
    if (r->quad_length != 0) {
        drop(r, &r->counts.damaged);
        return 0;
    }
    if (r->length < 2 || r->length < announced(r) + 2) {
        if (r->padded) {
            drop(r, &r->counts.damaged);
        }
        return 0;
    }
    if (eo_crc16(0, r->body + 2, announced(r)) != 0) { /* the crc of data with its crc is 0 */
        drop(r, &r->counts.damaged);
        return 0;
    }
    r->begun = false;
    r->counts.frames++;
    *packet = r->body + 2;
    return announced(r) - 2;
}

size_t eo_frame_byte(eo_frame_receiver *r, uint8_t byte, const uint8_t **packet) {
    if (byte == FIRST_1) {
        r->state = MARK_FIRST;
        return 0;
    }
    switch (r->state) {
    case MARK_FIRST:
        if (byte == FIRST_2) {
            begin(r);
        } else {
            drop(r, &r->counts.damaged);
        }
        return 0;
    case MARK_CONTINUE:
        r->state = byte == CONTINUE_2 && r->begun ? LINE : SKIP;
        return 0;
    case LINE:
        if (byte == '\n') {
            return end_line(r, packet);
        }
        if (byte != '\r') {
            r->quad[r->quad_length++] = byte;
            if (r->quad_length == sizeof r->quad) {
                take_quad(r);
            }
        }
        return 0;
    default:
        if (byte == CONTINUE_1) {
            r->state = MARK_CONTINUE;
        }
        return 0;
    }
}

typedef struct {
    void (*put)(void *context, uint8_t byte);
    void *context;
    unsigned groups; /* in this line */
    unsigned held;
    uint8_t bytes[3];
} sender;

static void put_group(sender *s) {
    static const uint8_t marks[2][2] = {{FIRST_1, FIRST_2}, {CONTINUE_1, CONTINUE_2}};
    if (s->groups % GROUPS_PER_LINE == 0) {
        if (s->groups > 0) {
            s->put(s->context, '\n');
        }
        s->put(s->context, marks[s->groups > 0][0]);
        s->put(s->context, marks[s->groups > 0][1]);
    }
    s->groups++;
    uint32_t bits = (uint32_t)s->bytes[0] << 16 | (uint32_t)s->bytes[1] << 8 | s->bytes[2];
    for (unsigned i = 0; i < 4; i++) {
        s->put(s->context, i <= s->held ? (uint8_t)alphabet[bits >> (18 - 6 * i) & 63u] : '=');
    }
    s->held = 0;
    s->bytes[0] = s->bytes[1] = s->bytes[2] = 0;
}

static void send_byte(sender *s, uint8_t byte) {
    s->bytes[s->held++] = byte;
    if (s->held == 3) {
        put_group(s);
    }
}

void eo_frame_send(const uint8_t *packet, size_t length, void (*put)(void *, uint8_t), void *context) {
    sender s = {put, context, 0, 0, {0, 0, 0}};
    uint16_t crc = eo_crc16(0, packet, length);
    send_byte(&s, (uint8_t)((length + 2) >> 8));
    send_byte(&s, (uint8_t)(length + 2));
    for (size_t i = 0; i < length; i++) {
        send_byte(&s, packet[i]);
    }
    send_byte(&s, (uint8_t)(crc >> 8));
    send_byte(&s, (uint8_t)crc);
    if (s.held > 0) {
        put_group(&s);
    }
    put(context, '\n');
}
