#include "eo_blob.h"

#include <stdbool.h>
#include <string.h>

#include "eo_digest.h"
#include "eo_ed25519.h"

#define DOMAIN_SIZE 32u
#define SIGNED_TRAILER_SIZE 96u
#define SIGNATURE_OFFSET 96u
#define KEY_ID_SIZE 4u
#define RANK_MAX 4u
#define ALIGN_MAX 64u

static const char domain[DOMAIN_SIZE] = "edgeops mcu model blob 1";
static const uint8_t element_size[] = {0, 1, 1, 2, 4, 4};

static uint32_t get16(const uint8_t *from) { return from[0] | (uint32_t)from[1] << 8; }
static uint32_t get32(const uint8_t *from) { return get16(from) | get16(from + 2) << 16; }

/* Characters of names and versions, then zeros to the end. */
static bool read_text(const uint8_t *from, size_t size, char *to) {
    size_t length = 0;
    while (length < size && from[length] > ' ' && from[length] < 0x7F) {
        length++;
    }
    for (size_t i = length; i < size; i++) {
        if (from[i] != 0) {
            return false;
        }
    }
    memcpy(to, from, size);
    to[size] = 0;
    return length > 0;
}

static bool all(const uint8_t *from, size_t size, uint8_t value) {
    for (size_t i = 0; i < size; i++) {
        if (from[i] != value) {
            return false;
        }
    }
    return true;
}

/* A tensor's size must be what its shape says: whoever sends input relies on both. */
static bool read_tensor(const uint8_t *kind, const uint8_t *dims, uint32_t size, eo_tensor *tensor) {
    tensor->dtype = kind[0];
    tensor->rank = kind[1];
    tensor->size = size;
    if (tensor->dtype == 0 || tensor->dtype >= sizeof element_size || tensor->rank == 0 || tensor->rank > RANK_MAX) {
        return false;
    }
    uint64_t expected = element_size[tensor->dtype];
    for (unsigned i = 0; i < RANK_MAX; i++) {
        tensor->dims[i] = (uint16_t)get16(dims + 2 * i);
        if ((tensor->dims[i] != 0) != (i < tensor->rank)) {
            return false;
        }
        expected *= i < tensor->rank ? tensor->dims[i] : 1u;
        if (expected > UINT32_MAX) {
            return false;
        }
    }
    return expected == size;
}

static eo_status parse(const uint8_t raw[EO_BLOB_HEADER_SIZE], uint32_t limit, eo_blob *blob) {
    memset(blob, 0, sizeof *blob);
    if (all(raw, EO_BLOB_HEADER_SIZE, EO_FLASH_ERASED)) {
        return EO_EMPTY;
    }
    if (memcmp(raw, "EOM1", 4) != 0 || get16(raw + 4) != EO_BLOB_HEADER_SIZE) {
        return EO_FORM;
    }
    blob->abi = (uint16_t)get16(raw + 6);
    if (blob->abi != EO_BLOB_ABI) {
        return EO_ABI;
    }
    blob->cpu = raw[8];
    blob->code_size = get32(raw + 16);
    blob->entry = get32(raw + 20);
    blob->arena_size = get32(raw + 24);
    blob->arena_align = get32(raw + 28);
    if (!read_tensor(raw + 9, raw + 40, get32(raw + 32), &blob->input) ||
        !read_tensor(raw + 11, raw + 48, get32(raw + 36), &blob->output) || !all(raw + 13, 3, 0) ||
        !all(raw + 56, 8, 0) || !read_text(raw + 96, EO_BLOB_NAME_SIZE, blob->name)) {
        return EO_FORM;
    }
    if (blob->arena_align == 0 || blob->arena_align > ALIGN_MAX ||
        (blob->arena_align & (blob->arena_align - 1)) != 0 || blob->code_size == 0 ||
        blob->entry < EO_BLOB_HEADER_SIZE || blob->entry - EO_BLOB_HEADER_SIZE >= blob->code_size) {
        return EO_FORM;
    }
    if (limit < EO_BLOB_HEADER_SIZE + EO_BLOB_TRAILER_SIZE ||
        blob->code_size > limit - EO_BLOB_HEADER_SIZE - EO_BLOB_TRAILER_SIZE) {
        return EO_SIZE;
    }
    return EO_OK;
}

static bool read_trailer(eo_flash *flash, uint32_t at, const uint8_t header[EO_BLOB_HEADER_SIZE],
                         uint8_t raw[EO_BLOB_TRAILER_SIZE], eo_blob *blob) {
    if (!flash->read(flash, at + EO_BLOB_HEADER_SIZE + blob->code_size, raw, EO_BLOB_TRAILER_SIZE)) {
        return false;
    }
    eo_sha256 sha;
    eo_sha256_init(&sha);
    eo_sha256_update(&sha, header, EO_BLOB_HEADER_SIZE);
    eo_sha256_update(&sha, raw, SIGNED_TRAILER_SIZE);
    eo_sha256_final(&sha, blob->identity);
    blob->counter = get32(raw + 8);
    return memcmp(raw, "EOS1", 4) == 0 && read_text(raw + 12, EO_BLOB_VERSION_SIZE, blob->version) &&
           all(raw + 68, SIGNED_TRAILER_SIZE - 68, 0);
}

eo_status eo_blob_read(eo_flash *flash, uint32_t at, uint32_t limit, eo_blob *blob) {
    uint8_t header[EO_BLOB_HEADER_SIZE];
    uint8_t trailer[EO_BLOB_TRAILER_SIZE];
    if (limit < sizeof header || !flash->read(flash, at, header, sizeof header)) {
        return EO_FLASH;
    }
    eo_status status = parse(header, limit, blob);
    if (status == EO_OK && !read_trailer(flash, at, header, trailer, blob)) {
        status = EO_FORM;
    }
    return status;
}

static uint32_t aligned(uint32_t size, uint32_t align) {
    return size > UINT32_MAX - align ? UINT32_MAX : (size + align - 1) / align * align;
}

uint32_t eo_blob_ram(const eo_blob *blob) {
    uint64_t sum = (uint64_t)aligned(blob->input.size, ALIGN_MAX) + aligned(blob->output.size, ALIGN_MAX) +
                   aligned(blob->arena_size, ALIGN_MAX);
    return sum > UINT32_MAX ? UINT32_MAX : (uint32_t)sum;
}

static const uint8_t *find_key(const eo_blob_policy *policy, const uint8_t id[KEY_ID_SIZE]) {
    for (uint32_t i = 0; i < policy->key_count; i++) {
        uint8_t digest[32];
        eo_sha256 sha;
        eo_sha256_init(&sha);
        eo_sha256_update(&sha, policy->keys[i], EO_KEY_SIZE);
        eo_sha256_final(&sha, digest);
        if (memcmp(digest, id, KEY_ID_SIZE) == 0) {
            return policy->keys[i];
        }
    }
    return NULL;
}

static eo_status check_code(eo_flash *flash, uint32_t at, uint32_t size, const uint8_t expected[32]) {
    uint8_t part[64];
    uint8_t digest[32];
    eo_sha256 sha;
    eo_sha256_init(&sha);
    for (uint32_t done = 0; done < size;) {
        uint32_t take = size - done < sizeof part ? size - done : sizeof part;
        if (!flash->read(flash, at + done, part, take)) {
            return EO_FLASH;
        }
        eo_sha256_update(&sha, part, take);
        done += take;
    }
    eo_sha256_final(&sha, digest);
    return memcmp(digest, expected, sizeof digest) == 0 ? EO_OK : EO_HASH;
}

eo_status eo_blob_check(const eo_blob_policy *policy, eo_flash *flash, uint32_t at, uint32_t limit, eo_blob *blob) {
    struct {
        char domain[DOMAIN_SIZE];
        uint8_t header[EO_BLOB_HEADER_SIZE];
        uint8_t trailer[EO_BLOB_TRAILER_SIZE];
    } raw;
    memcpy(raw.domain, domain, sizeof raw.domain);
    if (limit < sizeof raw.header || !flash->read(flash, at, raw.header, sizeof raw.header)) {
        return EO_FLASH;
    }
    eo_status status = parse(raw.header, limit, blob);
    if (status != EO_OK) {
        return status;
    }
    if (blob->cpu != policy->cpu) {
        return EO_CPU;
    }
    if (eo_blob_ram(blob) > policy->ram) {
        return EO_SIZE;
    }
    if (!read_trailer(flash, at, raw.header, raw.trailer, blob)) {
        return EO_FORM;
    }
    const uint8_t *key = find_key(policy, raw.trailer + 4);
    if (key == NULL) {
        return EO_KEY;
    }
    /* The message is the domain, the header and the signed part of the trailer, as they lie in `raw`. */
    if (!eo_ed25519_verify(raw.trailer + SIGNATURE_OFFSET, key, &raw,
                           DOMAIN_SIZE + EO_BLOB_HEADER_SIZE + SIGNED_TRAILER_SIZE)) {
        return EO_SIGNATURE;
    }
    return check_code(flash, at + EO_BLOB_HEADER_SIZE, blob->code_size, raw.header + 64);
}
