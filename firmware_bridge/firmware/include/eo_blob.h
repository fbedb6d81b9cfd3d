/* Model blob: header, position-independent code, signed trailer. SPEC.md, "Model blob". */
#ifndef EO_BLOB_H
#define EO_BLOB_H

#include <stdint.h>

#include "eo_flash.h"
#include "eo_status.h"

#define EO_BLOB_ABI 1u
#define EO_BLOB_HEADER_SIZE 160u
#define EO_BLOB_TRAILER_SIZE 160u
#define EO_BLOB_NAME_SIZE 64u
#define EO_BLOB_VERSION_SIZE 56u
#define EO_KEY_SIZE 32u

typedef enum {
    EO_CPU_CORTEX_M3 = 3,
    EO_CPU_CORTEX_M4 = 4,
    EO_CPU_CORTEX_M7 = 7,
    EO_CPU_X86_64 = 64 /* the host build */
} eo_cpu;

typedef struct {
    uint8_t dtype; /* 1: int8, 2: uint8, 3: int16, 4: int32, 5: float32 */
    uint8_t rank;
    uint16_t dims[4];
    uint32_t size; /* bytes */
} eo_tensor;

typedef struct {
    uint8_t cpu;
    uint16_t abi;
    uint32_t code_size;
    uint32_t entry; /* offset of the first instruction from the blob's first byte */
    uint32_t arena_size;
    uint32_t arena_align;
    eo_tensor input;
    eo_tensor output;
    uint32_t counter;
    char name[EO_BLOB_NAME_SIZE + 1];
    char version[EO_BLOB_VERSION_SIZE + 1];
    uint8_t identity[32]; /* SHA-256 of the header and the signed part of the trailer */
} eo_blob;

/* Runs one inference: every pointer aligned to `arena_align`. Returns 0, or the model's own error. */
typedef int32_t (*eo_model_run)(const void *input, void *output, void *arena);

/* What this firmware accepts. */
typedef struct {
    uint8_t cpu;
    uint32_t ram; /* bytes for arena, input and output together */
    const uint8_t (*keys)[EO_KEY_SIZE];
    uint32_t key_count;
} eo_blob_policy;

/* Read the header at `at`; nothing of the blob is trusted yet. EO_EMPTY: the flash is erased there. EO_FORM. */
eo_status eo_blob_read(eo_flash *flash, uint32_t at, uint32_t limit, eo_blob *blob);

/* Read and check everything: form, ABI, CPU, sizes, signature, and that the code is the signed one. */
eo_status eo_blob_check(const eo_blob_policy *policy, eo_flash *flash, uint32_t at, uint32_t limit, eo_blob *blob);

/* Bytes of RAM that a blob needs, its alignment included. */
uint32_t eo_blob_ram(const eo_blob *blob);

#endif
