#include "eo_cbor.h"

#include <string.h>

/* Takes a check away, so that the fuzzer's own test sees it fail; nothing else may define it. */
#ifndef EO_MUTANT_UNCHECKED_LENGTH
#define EO_MUTANT_UNCHECKED_LENGTH 0
#endif

#define DEPTH_MAX 8u
#define INDEFINITE 31u
#define BREAK 0xFFu

enum { MAJOR_UINT, MAJOR_NEGATIVE, MAJOR_BYTES, MAJOR_TEXT, MAJOR_ARRAY, MAJOR_MAP, MAJOR_TAG, MAJOR_SIMPLE };

typedef struct {
    const uint8_t *at;
    const uint8_t *end;
} reader;

typedef struct {
    uint8_t major;
    uint8_t info;
    uint64_t argument;
} head;

static size_t left(const reader *in) { return (size_t)(in->end - in->at); }

static bool read_head(reader *in, head *out) {
    if (left(in) == 0) {
        return false;
    }
    out->major = *in->at >> 5;
    out->info = *in->at & 31u;
    out->argument = out->info;
    in->at++;
    if (out->info >= 24 && out->info <= 27) {
        size_t size = (size_t)1 << (out->info - 24);
        if (left(in) < size) {
            return false;
        }
        out->argument = 0;
        while (size-- > 0) {
            out->argument = out->argument << 8 | *in->at++;
        }
        return true;
    }
    return out->info < 24 || (out->info == INDEFINITE && (out->major == MAJOR_ARRAY || out->major == MAJOR_MAP));
}

static bool at_break(reader *in) {
    if (left(in) == 0 || *in->at != BREAK) {
        return false;
    }
    in->at++;
    return true;
}

static bool skip(reader *in, unsigned depth);

static bool skip_items(reader *in, const head *h, unsigned per, unsigned depth) {
    if (h->info == INDEFINITE) {
        while (!at_break(in)) {
            for (unsigned i = 0; i < per; i++) {
                if (!skip(in, depth + 1)) {
                    return false;
                }
            }
        }
        return true;
    }
    if (h->argument > left(in)) { /* an item has at least one byte */
        return false;
    }
    for (uint64_t i = 0; i < h->argument * per; i++) {
        if (!skip(in, depth + 1)) {
            return false;
        }
    }
    return true;
}

static bool skip(reader *in, unsigned depth) {
    head h;
    if (depth > DEPTH_MAX || !read_head(in, &h)) {
        return false;
    }
    switch (h.major) {
    case MAJOR_BYTES:
    case MAJOR_TEXT:
        if (h.argument > left(in)) {
            return false;
        }
        in->at += h.argument;
        return true;
    case MAJOR_ARRAY:
        return skip_items(in, &h, 1, depth);
    case MAJOR_MAP:
        return skip_items(in, &h, 2, depth);
    case MAJOR_TAG:
        return skip(in, depth + 1);
    default:
        return true;
    }
}

/* One step through the entries of a map: false at its end or at damage. */
static bool next_entry(reader *in, const head *map, uint64_t *done, head *key, const uint8_t **text) {
    if (map->info == INDEFINITE ? at_break(in) : *done >= map->argument) {
        return false;
    }
    if (!read_head(in, key) || key->major != MAJOR_TEXT ||
        (key->argument > left(in) && !EO_MUTANT_UNCHECKED_LENGTH)) {
        in->at = NULL;
        return false;
    }
    *text = in->at;
    in->at += key->argument;
    (*done)++;
    return true;
}

bool eo_cbor_is_map(const uint8_t *data, size_t length) {
    reader in = {data, data + length};
    head map, key;
    const uint8_t *text;
    uint64_t done = 0;
    if (!read_head(&in, &map) || map.major != MAJOR_MAP) {
        return false;
    }
    while (next_entry(&in, &map, &done, &key, &text)) {
        if (!skip(&in, 1)) {
            return false;
        }
    }
    return in.at == in.end;
}

static eo_cbor_item item_of(reader *in) {
    head h;
    eo_cbor_item item = {EO_CBOR_OTHER, 0, NULL};
    if (!read_head(in, &h) || h.argument > UINT32_MAX) {
        return item;
    }
    item.value = (uint32_t)h.argument;
    if (h.major == MAJOR_UINT) {
        item.type = EO_CBOR_UINT;
    } else if (h.major == MAJOR_BYTES || h.major == MAJOR_TEXT) {
        item.type = h.major == MAJOR_BYTES ? EO_CBOR_BYTES : EO_CBOR_TEXT;
        item.data = in->at;
    } else if (h.major == MAJOR_SIMPLE && (h.info == 20 || h.info == 21)) {
        item.type = EO_CBOR_BOOL;
        item.value = h.info - 20u;
    }
    return item;
}

eo_cbor_item eo_cbor_find(const uint8_t *data, size_t length, const char *key) {
    reader in = {data, data + length};
    head map, name;
    const uint8_t *text;
    uint64_t done = 0;
    if (read_head(&in, &map)) {
        while (next_entry(&in, &map, &done, &name, &text)) {
            if (name.argument == strlen(key) && memcmp(text, key, (size_t)name.argument) == 0) {
                return item_of(&in);
            }
            if (!skip(&in, 1)) {
                break;
            }
        }
    }
    return (eo_cbor_item){EO_CBOR_ABSENT, 0, NULL};
}

static void put(eo_cbor_writer *writer, const void *data, size_t length) {
    if (writer->overflow || length > writer->capacity - writer->length) {
        writer->overflow = true;
        return;
    }
    memcpy(writer->data + writer->length, data, length);
    writer->length += length;
}

static void put_head(eo_cbor_writer *writer, unsigned major, uint32_t argument) {
    uint8_t raw[5] = {(uint8_t)(major << 5)};
    size_t size = 0;
    if (argument < 24) {
        raw[0] |= (uint8_t)argument;
    } else {
        unsigned power = argument <= UINT8_MAX ? 0 : argument <= UINT16_MAX ? 1 : 2;
        size = (size_t)1 << power;
        raw[0] |= (uint8_t)(24 + power);
        for (size_t i = 0; i < size; i++) {
            raw[1 + i] = (uint8_t)(argument >> (8 * (size - 1 - i)));
        }
    }
    put(writer, raw, 1 + size);
}

void eo_cbor_map(eo_cbor_writer *writer, uint32_t pairs) { put_head(writer, MAJOR_MAP, pairs); }
void eo_cbor_array(eo_cbor_writer *writer, uint32_t items) { put_head(writer, MAJOR_ARRAY, items); }
void eo_cbor_uint(eo_cbor_writer *writer, uint32_t value) { put_head(writer, MAJOR_UINT, value); }
void eo_cbor_bool(eo_cbor_writer *writer, bool value) { put_head(writer, MAJOR_SIMPLE, value ? 21 : 20); }

void eo_cbor_text(eo_cbor_writer *writer, const char *text) {
    eo_cbor_text_of(writer, (const uint8_t *)text, (uint32_t)strlen(text));
}

void eo_cbor_text_of(eo_cbor_writer *writer, const uint8_t *text, uint32_t length) {
    put_head(writer, MAJOR_TEXT, length);
    put(writer, text, length);
}

void eo_cbor_bytes(eo_cbor_writer *writer, const uint8_t *bytes, uint32_t length) {
    put_head(writer, MAJOR_BYTES, length);
    put(writer, bytes, length);
}
