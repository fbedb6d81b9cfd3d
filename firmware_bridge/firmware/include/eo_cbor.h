/* The small part of CBOR (RFC 8949) that SMP needs: look a key up in a map, write a map. */
#ifndef EO_CBOR_H
#define EO_CBOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { EO_CBOR_ABSENT, EO_CBOR_UINT, EO_CBOR_BYTES, EO_CBOR_TEXT, EO_CBOR_BOOL, EO_CBOR_OTHER } eo_cbor_type;

typedef struct {
    eo_cbor_type type;
    uint32_t value;      /* EO_CBOR_UINT; EO_CBOR_BOOL: 0 or 1; EO_CBOR_BYTES and EO_CBOR_TEXT: length */
    const uint8_t *data; /* EO_CBOR_BYTES, EO_CBOR_TEXT */
} eo_cbor_item;

/* Whether `data` is exactly one well-formed map with text keys. */
bool eo_cbor_is_map(const uint8_t *data, size_t length);

/* The value of a key in a map that `eo_cbor_is_map` accepted; EO_CBOR_ABSENT if it has none. */
eo_cbor_item eo_cbor_find(const uint8_t *data, size_t length, const char *key);

typedef struct {
    uint8_t *data;
    size_t capacity;
    size_t length;
    bool overflow; /* something did not fit; what is there is of no use */
} eo_cbor_writer;

void eo_cbor_map(eo_cbor_writer *writer, uint32_t pairs);
void eo_cbor_array(eo_cbor_writer *writer, uint32_t items);
void eo_cbor_uint(eo_cbor_writer *writer, uint32_t value);
void eo_cbor_bool(eo_cbor_writer *writer, bool value);
void eo_cbor_text(eo_cbor_writer *writer, const char *text);
void eo_cbor_text_of(eo_cbor_writer *writer, const uint8_t *text, uint32_t length);
void eo_cbor_bytes(eo_cbor_writer *writer, const uint8_t *bytes, uint32_t length);

#endif
