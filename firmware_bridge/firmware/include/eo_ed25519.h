/* Ed25519 signatures (RFC 8032), verification only; curve arithmetic by Monocypher. */
#ifndef EO_ED25519_H
#define EO_ED25519_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool eo_ed25519_verify(const uint8_t signature[64], const uint8_t key[32], const void *message, size_t length);

#endif
