#include "eo_digest.h"

#include <string.h>

static const uint32_t k256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate32(uint32_t value, unsigned bits) { return (value >> bits) | (value << (32 - bits)); }

static uint32_t load32(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void store32(uint8_t *to, uint32_t value) {
    for (unsigned i = 0; i < 4; i++) {
        to[i] = (uint8_t)(value >> (24 - 8 * i));
    }
}

static void block256(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64];
    for (unsigned i = 0; i < 16; i++) {
        w[i] = load32(block + 4 * i);
    }
    for (unsigned i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate32(a, 7) ^ rotate32(a, 18) ^ (a >> 3)) + w[i - 7] +
               (rotate32(b, 17) ^ rotate32(b, 19) ^ (b >> 10));
    }
    uint32_t s[8];
    memcpy(s, state, sizeof s);
    for (unsigned i = 0; i < 64; i++) {
        uint32_t sum1 = rotate32(s[4], 6) ^ rotate32(s[4], 11) ^ rotate32(s[4], 25);
        uint32_t t1 = s[7] + sum1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k256[i] + w[i];
        uint32_t sum0 = rotate32(s[0], 2) ^ rotate32(s[0], 13) ^ rotate32(s[0], 22);
        uint32_t t2 = sum0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (unsigned i = 0; i < 8; i++) {
        state[i] += s[i];
    }
}

void eo_sha256_init(eo_sha256 *sha) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(sha->state, start, sizeof start);
    sha->length = 0;
}

void eo_sha256_update(eo_sha256 *sha, const void *data, size_t length) {
    const uint8_t *from = data;
    while (length > 0) {
        size_t used = sha->length % sizeof sha->block;
        size_t take = sizeof sha->block - used < length ? sizeof sha->block - used : length;
        memcpy(sha->block + used, from, take);
        sha->length += take;
        from += take;
        length -= take;
        if (used + take == sizeof sha->block) {
            block256(sha->state, sha->block);
        }
    }
}

void eo_sha256_final(eo_sha256 *sha, uint8_t digest[32]) {
    static const uint8_t padding[64] = {0x80};
    uint8_t bits[8];
    store32(bits, (uint32_t)(sha->length >> 29));
    store32(bits + 4, (uint32_t)(sha->length << 3));
    eo_sha256_update(sha, padding, 1 + (119 - sha->length % 64) % 64);
    eo_sha256_update(sha, bits, sizeof bits);
    for (unsigned i = 0; i < 8; i++) {
        store32(digest + 4 * i, sha->state[i]);
    }
}

static const uint64_t k512[80] = {
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
    0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
    0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
    0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
    0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
    0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
    0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
    0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
    0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
    0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
    0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
    0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};

static uint64_t rotate64(uint64_t value, unsigned bits) { return (value >> bits) | (value << (64 - bits)); }

static void block512(uint64_t state[8], const uint8_t *block) {
    uint64_t w[16]; /* a window: 640 bytes of stack would hurt a small device */
    for (unsigned i = 0; i < 16; i++) {
        w[i] = (uint64_t)load32(block + 8 * i) << 32 | load32(block + 8 * i + 4);
    }
    uint64_t s[8];
    memcpy(s, state, sizeof s);
    for (unsigned i = 0; i < 80; i++) {
        if (i >= 16) {
            uint64_t a = w[(i + 1) % 16], b = w[(i + 14) % 16];
            w[i % 16] += (rotate64(a, 1) ^ rotate64(a, 8) ^ (a >> 7)) + w[(i + 9) % 16] +
                         (rotate64(b, 19) ^ rotate64(b, 61) ^ (b >> 6));
        }
        uint64_t sum1 = rotate64(s[4], 14) ^ rotate64(s[4], 18) ^ rotate64(s[4], 41);
        uint64_t t1 = s[7] + sum1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k512[i] + w[i % 16];
        uint64_t sum0 = rotate64(s[0], 28) ^ rotate64(s[0], 34) ^ rotate64(s[0], 39);
        uint64_t t2 = sum0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += t1;
        s[0] = t1 + t2;
    }
    for (unsigned i = 0; i < 8; i++) {
        state[i] += s[i];
    }
}

void eo_sha512_init(eo_sha512 *sha) {
    static const uint64_t start[8] = {
        0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
        0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
    };
    memcpy(sha->state, start, sizeof start);
    sha->length = 0;
}

void eo_sha512_update(eo_sha512 *sha, const void *data, size_t length) {
    const uint8_t *from = data;
    while (length > 0) {
        size_t used = sha->length % sizeof sha->block;
        size_t take = sizeof sha->block - used < length ? sizeof sha->block - used : length;
        memcpy(sha->block + used, from, take);
        sha->length += take;
        from += take;
        length -= take;
        if (used + take == sizeof sha->block) {
            block512(sha->state, sha->block);
        }
    }
}

void eo_sha512_final(eo_sha512 *sha, uint8_t digest[64]) {
    static const uint8_t padding[128] = {0x80};
    uint8_t bits[16] = {0};
    store32(bits + 8, (uint32_t)(sha->length >> 29));
    store32(bits + 12, (uint32_t)(sha->length << 3));
    eo_sha512_update(sha, padding, 1 + (239 - sha->length % 128) % 128);
    eo_sha512_update(sha, bits, sizeof bits);
    for (unsigned i = 0; i < 8; i++) {
        store32(digest + 8 * i, (uint32_t)(sha->state[i] >> 32));
        store32(digest + 8 * i + 4, (uint32_t)sha->state[i]);
    }
}

uint32_t eo_crc32(const void *data, size_t length) {
    const uint8_t *from = data;
    uint32_t crc = 0xFFFFFFFFu;
    while (length-- > 0) {
        crc ^= *from++;
        for (unsigned bit = 0; bit < 8; bit++) {
            crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xEDB88320u : 0);
        }
    }
    return ~crc;
}

uint16_t eo_crc16(uint16_t crc, const void *data, size_t length) {
    const uint8_t *from = data;
    while (length-- > 0) {
        crc = (uint16_t)(crc ^ (*from++ << 8));
        for (unsigned bit = 0; bit < 8; bit++) {
            crc = (uint16_t)((crc << 1) ^ ((crc & 0x8000u) != 0 ? 0x1021u : 0));
        }
    }
    return crc;
}
