/* SHA-256 and SHA-512 (FIPS 180-4), CRC-32 (IEEE 802.3) and CRC-16 (XMODEM). */
#ifndef EO_DIGEST_H
#define EO_DIGEST_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
} eo_sha256;

void eo_sha256_init(eo_sha256 *sha);
void eo_sha256_update(eo_sha256 *sha, const void *data, size_t length);
void eo_sha256_final(eo_sha256 *sha, uint8_t digest[32]);

typedef struct {
    uint64_t state[8];
    uint64_t length;
    uint8_t block[128];
} eo_sha512;

void eo_sha512_init(eo_sha512 *sha);
void eo_sha512_update(eo_sha512 *sha, const void *data, size_t length);
void eo_sha512_final(eo_sha512 *sha, uint8_t digest[64]);

uint32_t eo_crc32(const void *data, size_t length);
uint16_t eo_crc16(uint16_t crc, const void *data, size_t length);

#endif
