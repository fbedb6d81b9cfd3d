/* Two model slots and their metadata, whole after a power cut at any moment. SPEC.md, "Slot store". */
#ifndef EO_STORE_H
#define EO_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "eo_flash.h"
#include "eo_status.h"

#define EO_SLOTS 2u
#define EO_NO_SLOT 0xFFu
#define EO_METADATA_SECTORS 2u
#define EO_RECORD_SIZE 64u
#define EO_SHA256_SIZE 32u

typedef enum { EO_TRIAL_NONE = 0, EO_TRIAL_PENDING = 1, EO_TRIAL_RUNNING = 2 } eo_trial;

/* How the last trial ended. */
typedef enum {
    EO_OUTCOME_NONE = 0,
    EO_OUTCOME_CONFIRMED = 1,
    EO_OUTCOME_NOT_CONFIRMED = 2, /* the device was reset before anybody confirmed */
    EO_OUTCOME_INVALID = 3        /* the blob failed its checks at boot */
} eo_outcome;

typedef struct {
    uint32_t sequence;
    uint8_t active; /* the confirmed slot, or EO_NO_SLOT */
    uint8_t trial_slot;
    uint8_t trial;   /* eo_trial */
    uint8_t outcome; /* eo_outcome */
    uint32_t floor;  /* smallest counter that a blob may have */
    uint8_t upload_slot;
    uint32_t upload_length; /* 0: no upload is under way */
    uint8_t upload_sha256[EO_SHA256_SIZE];
} eo_record;

/* Says whether the blob at `at` (at most `limit` bytes) may run here, and its counter. */
typedef eo_status (*eo_verify)(void *context, uint32_t at, uint32_t limit, uint32_t *counter);

typedef struct {
    eo_flash *flash;
    eo_verify verify;
    void *verify_context;
    uint32_t slot_sectors;

    eo_record record;
    uint8_t record_sector; /* holds the newest record; EO_NO_SLOT: there is none yet */
    uint8_t running;       /* slot whose blob this boot runs, or EO_NO_SLOT */

    bool uploading;
    uint32_t upload_offset; /* bytes taken, the tail included */
    uint32_t tail_length;
    uint8_t tail[EO_FLASH_WORD_MAX]; /* the last bytes, until they fill a word */
} eo_store;

/* Read the metadata and decide which slot runs; record what must be known if this boot does not end well.
 * After it `running` and `record` are valid. EO_FLASH: the metadata could not be read or written; a trial does not
 * run then, the confirmed blob does if it is known. */
eo_status eo_store_boot(eo_store *store, eo_flash *flash, uint32_t slot_sectors, eo_verify verify, void *context);

uint32_t eo_store_slot_size(const eo_store *store);
uint32_t eo_store_slot_address(const eo_store *store, uint8_t slot);

/* Begin an upload of `length` bytes into the slot that is not active, or go on with the same one.
 * `offset` is set to the first byte that is wanted: `length` when the slot already holds exactly this. */
eo_status eo_store_upload_begin(eo_store *store, uint32_t length, const uint8_t sha256[EO_SHA256_SIZE],
                                uint32_t *offset);

/* Take the next bytes. EO_OFFSET: `offset` is not the next byte; EO_HASH: that was the last byte, and the whole is not
 * what was announced: the upload is over and the next one begins anew. */
eo_status eo_store_upload_write(eo_store *store, uint32_t offset, const uint8_t *data, uint32_t length);

/* Let `slot` run at the next boot, once. The active slot: take back a trial that has not begun. */
eo_status eo_store_test(eo_store *store, uint8_t slot);

/* Make the running trial the active slot and raise the floor to its counter. Nothing to do when no trial runs. */
eo_status eo_store_confirm(eo_store *store);

/* Erase the slot that is neither active nor running. */
eo_status eo_store_erase(eo_store *store);

#endif
