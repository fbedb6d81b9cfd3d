#include "eo_ed25519.h"

#include "eo_digest.h"
#include "monocypher.h"

bool eo_ed25519_verify(const uint8_t signature[64], const uint8_t key[32], const void *message, size_t length) {
    uint8_t wide[64];
    uint8_t challenge[32];
    eo_sha512 sha;
    eo_sha512_init(&sha);
    eo_sha512_update(&sha, signature, 32);
    eo_sha512_update(&sha, key, 32);
    eo_sha512_update(&sha, message, length);
    eo_sha512_final(&sha, wide);
    crypto_eddsa_reduce(challenge, wide);
    return crypto_eddsa_check_equation(signature, key, challenge) == 0;
}
