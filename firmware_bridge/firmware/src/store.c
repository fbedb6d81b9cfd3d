#include "eo_store.h"

#include <string.h>

#include "eo_digest.h"

/* Each mutant breaks one rule that keeps devices alive. The power-cut proof must find bricks in every one of them;
 * nothing else may define them. */
#ifndef EO_MUTANT_SAME_SECTOR
#define EO_MUTANT_SAME_SECTOR 0
#endif
#ifndef EO_MUTANT_TRIAL_UNRECORDED
#define EO_MUTANT_TRIAL_UNRECORDED 0
#endif
#ifndef EO_MUTANT_RESUME_MID_SECTOR
#define EO_MUTANT_RESUME_MID_SECTOR 0
#endif

#define RECORD_MAGIC 0x444D4F45u /* "EOMD" */

static uint32_t get32(const uint8_t *from) {
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void put32(uint8_t *to, uint32_t value) {
    for (unsigned i = 0; i < 4; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static void encode_record(const eo_record *record, uint8_t raw[EO_RECORD_SIZE]) {
    memset(raw, 0, EO_RECORD_SIZE);
    put32(raw, RECORD_MAGIC);
    put32(raw + 4, record->sequence);
    raw[8] = record->active;
    raw[9] = record->trial_slot;
    raw[10] = record->trial;
    raw[11] = record->outcome;
    put32(raw + 12, record->floor);
    raw[16] = record->upload_slot;
    put32(raw + 20, record->upload_length);
    memcpy(raw + 24, record->upload_sha256, EO_SHA256_SIZE);
    put32(raw + 60, eo_crc32(raw, 60));
}

static bool is_slot(uint8_t slot) { return slot < EO_SLOTS; }

static bool decode_record(const uint8_t raw[EO_RECORD_SIZE], eo_record *record) {
    if (get32(raw) != RECORD_MAGIC || get32(raw + 60) != eo_crc32(raw, 60)) {
        return false;
    }
    record->sequence = get32(raw + 4);
    record->active = raw[8];
    record->trial_slot = raw[9];
    record->trial = raw[10];
    record->outcome = raw[11];
    record->floor = get32(raw + 12);
    record->upload_slot = raw[16];
    record->upload_length = get32(raw + 20);
    memcpy(record->upload_sha256, raw + 24, EO_SHA256_SIZE);
    return (is_slot(record->active) || record->active == EO_NO_SLOT) && record->trial <= EO_TRIAL_RUNNING &&
           (record->trial == EO_TRIAL_NONE || is_slot(record->trial_slot)) &&
           (record->upload_length == 0 || is_slot(record->upload_slot));
}

static eo_record empty_record(void) {
    return (eo_record){.active = EO_NO_SLOT, .trial_slot = EO_NO_SLOT, .upload_slot = EO_NO_SLOT};
}

/* Find the newest whole record. Having none is a fresh device, not an error. */
static eo_status load(eo_store *store) {
    store->record = empty_record();
    store->record_sector = EO_NO_SLOT;
    for (uint8_t sector = 0; sector < EO_METADATA_SECTORS; sector++) {
        uint8_t raw[EO_RECORD_SIZE];
        eo_record found;
        if (!store->flash->read(store->flash, sector * store->flash->sector_size, raw, sizeof raw)) {
            return EO_FLASH;
        }
        if (decode_record(raw, &found) &&
            (store->record_sector == EO_NO_SLOT || found.sequence > store->record.sequence)) {
            store->record = found;
            store->record_sector = sector;
        }
    }
    return EO_OK;
}

/* Write `next` beside the newest record, never over it: a cut at any moment leaves one of the two whole. */
static eo_status commit(eo_store *store, eo_record next) {
    uint8_t sector = store->record_sector == 0 ? 1 : 0;
    if (EO_MUTANT_SAME_SECTOR) {
        sector = 0;
    }
    uint8_t raw[EO_RECORD_SIZE];
    next.sequence = store->record.sequence + 1;
    encode_record(&next, raw);
    if (!store->flash->erase(store->flash, sector) ||
        !store->flash->program(store->flash, sector * store->flash->sector_size, raw, sizeof raw)) {
        return EO_FLASH;
    }
    store->record = next;
    store->record_sector = sector;
    return EO_OK;
}

uint32_t eo_store_slot_size(const eo_store *store) { return store->slot_sectors * store->flash->sector_size; }

uint32_t eo_store_slot_address(const eo_store *store, uint8_t slot) {
    return (EO_METADATA_SECTORS + slot * store->slot_sectors) * store->flash->sector_size;
}

/* A blob may run if its checks pass and its counter is not below the floor. */
static eo_status check(const eo_store *store, uint8_t slot, uint32_t *counter) {
    eo_status status =
        store->verify(store->verify_context, eo_store_slot_address(store, slot), eo_store_slot_size(store), counter);
    return status == EO_OK && *counter < store->record.floor ? EO_DOWNGRADE : status;
}

static eo_record without_trial(eo_record record, eo_outcome outcome) {
    record.trial = EO_TRIAL_NONE;
    record.trial_slot = EO_NO_SLOT;
    record.outcome = (uint8_t)outcome;
    return record;
}

/* Decide the fate of a trial that stands in the record. */
static eo_status boot_trial(eo_store *store) {
    uint32_t counter;
    eo_record next = store->record;
    if (next.trial == EO_TRIAL_RUNNING) {
        return commit(store, without_trial(next, EO_OUTCOME_NOT_CONFIRMED));
    }
    if (check(store, next.trial_slot, &counter) != EO_OK) {
        return commit(store, without_trial(next, EO_OUTCOME_INVALID));
    }
    /* Recorded before it runs: a blob that hangs or resets the device has had its one chance. */
    next.trial = EO_TRIAL_RUNNING;
    eo_status status = EO_MUTANT_TRIAL_UNRECORDED ? EO_OK : commit(store, next);
    if (status == EO_OK) {
        store->running = next.trial_slot;
    }
    return status;
}

eo_status eo_store_boot(eo_store *store, eo_flash *flash, uint32_t slot_sectors, eo_verify verify, void *context) {
    *store = (eo_store){.flash = flash,
                        .verify = verify,
                        .verify_context = context,
                        .slot_sectors = slot_sectors,
                        .record_sector = EO_NO_SLOT,
                        .running = EO_NO_SLOT};
    eo_status status = load(store);
    if (status == EO_OK && store->record.trial != EO_TRIAL_NONE) {
        status = boot_trial(store);
    }
    /* Also when a record could not be written: the confirmed blob needs none. */
    if (store->running == EO_NO_SLOT && is_slot(store->record.active)) {
        uint32_t counter;
        if (check(store, store->record.active, &counter) == EO_OK) {
            store->running = store->record.active;
        }
    }
    return status;
}

/* The slot that may be written: not the confirmed one, and not one that runs. EO_NO_SLOT: there is none now. */
static uint8_t spare_slot(const eo_store *store) {
    uint8_t slot = store->record.active == 0 ? 1 : 0;
    return slot == store->running ? EO_NO_SLOT : slot;
}

static eo_status erase_from(eo_store *store, uint8_t slot, uint32_t first) {
    uint32_t base = eo_store_slot_address(store, slot) / store->flash->sector_size;
    for (uint32_t sector = first; sector < store->slot_sectors; sector++) {
        if (!store->flash->erase(store->flash, base + sector)) {
            return EO_FLASH;
        }
    }
    return EO_OK;
}

static eo_status hash_slot(const eo_store *store, uint8_t slot, uint32_t length, uint8_t digest[EO_SHA256_SIZE]) {
    eo_sha256 sha;
    uint8_t part[64];
    eo_sha256_init(&sha);
    for (uint32_t done = 0; done < length;) {
        uint32_t take = length - done < sizeof part ? length - done : sizeof part;
        if (!store->flash->read(store->flash, eo_store_slot_address(store, slot) + done, part, take)) {
            return EO_FLASH;
        }
        eo_sha256_update(&sha, part, take);
        done += take;
    }
    eo_sha256_final(&sha, digest);
    return EO_OK;
}

/* Find where the written part of a slot ends: the offset after its last byte that is not erased. */
static eo_status written_end(const eo_store *store, uint8_t slot, uint32_t *end) {
    enum { PART = 64 };
    uint8_t part[PART];
    for (uint32_t at = eo_store_slot_size(store); at > 0; at -= PART) {
        if (!store->flash->read(store->flash, eo_store_slot_address(store, slot) + at - PART, part, PART)) {
            return EO_FLASH;
        }
        for (uint32_t i = PART; i > 0; i--) {
            if (part[i - 1] != EO_FLASH_ERASED) {
                *end = at - PART + i;
                return EO_OK;
            }
        }
    }
    *end = 0;
    return EO_OK;
}

static void open_upload(eo_store *store, uint32_t offset) {
    store->uploading = offset < store->record.upload_length;
    store->upload_offset = offset;
    store->tail_length = 0;
}

/* Go on with the upload that the record names. Its last sector may hold a torn word, and words that were programmed
 * with the erased value: from there on everything is erased and comes again. */
static eo_status resume(eo_store *store, uint8_t slot, uint32_t *offset) {
    uint32_t end;
    uint8_t digest[EO_SHA256_SIZE];
    eo_status status = hash_slot(store, slot, store->record.upload_length, digest);
    if (status == EO_OK && memcmp(digest, store->record.upload_sha256, sizeof digest) == 0) {
        *offset = store->record.upload_length;
        open_upload(store, *offset);
        return EO_OK;
    }
    if (status == EO_OK) {
        status = written_end(store, slot, &end);
    }
    if (status != EO_OK) {
        return status;
    }
    uint32_t first = end > 0 ? (end - 1) / store->flash->sector_size : 0;
    *offset = first * store->flash->sector_size;
    if (EO_MUTANT_RESUME_MID_SECTOR) {
        *offset = end / store->flash->word * store->flash->word;
    } else {
        status = erase_from(store, slot, first);
    }
    open_upload(store, *offset);
    return status;
}

eo_status eo_store_upload_begin(eo_store *store, uint32_t length, const uint8_t sha256[EO_SHA256_SIZE],
                                uint32_t *offset) {
    uint8_t slot = spare_slot(store);
    if (slot == EO_NO_SLOT) {
        return EO_BUSY;
    }
    if (length == 0 || length > eo_store_slot_size(store)) {
        return EO_SIZE;
    }
    bool same = store->record.upload_length == length && store->record.upload_slot == slot &&
                memcmp(store->record.upload_sha256, sha256, EO_SHA256_SIZE) == 0;
    if (same && store->uploading) {
        *offset = store->upload_offset;
        return EO_OK;
    }
    if (same) {
        return resume(store, slot, offset);
    }
    eo_status status = eo_store_erase(store);
    if (status != EO_OK) {
        return status;
    }
    /* Recorded after the erase: who resumes may trust that what was not written is erased. */
    eo_record next = store->record;
    next.upload_slot = slot;
    next.upload_length = length;
    memcpy(next.upload_sha256, sha256, EO_SHA256_SIZE);
    status = commit(store, next);
    if (status == EO_OK) {
        *offset = 0;
        open_upload(store, 0);
    }
    return status;
}

static eo_record without_upload(eo_record record) {
    record.upload_slot = EO_NO_SLOT;
    record.upload_length = 0;
    memset(record.upload_sha256, 0, sizeof record.upload_sha256);
    return record;
}

/* Program the whole words of the tail and `data`; keep the rest as the new tail. */
static eo_status program_words(eo_store *store, const uint8_t *data, uint32_t length) {
    uint32_t word = store->flash->word;
    uint32_t at = eo_store_slot_address(store, store->record.upload_slot) + store->upload_offset - store->tail_length;
    store->upload_offset += length;
    while (length > 0) {
        if (store->tail_length == 0 && length >= word) {
            uint32_t whole = length / word * word;
            if (!store->flash->program(store->flash, at, data, whole)) {
                return EO_FLASH;
            }
            at += whole;
            data += whole;
            length -= whole;
            continue;
        }
        uint32_t take = word - store->tail_length < length ? word - store->tail_length : length;
        memcpy(store->tail + store->tail_length, data, take);
        store->tail_length += take;
        data += take;
        length -= take;
        if (store->tail_length == word) {
            if (!store->flash->program(store->flash, at, store->tail, word)) {
                return EO_FLASH;
            }
            at += word;
            store->tail_length = 0;
        }
    }
    return EO_OK;
}

static eo_status finish_upload(eo_store *store) {
    uint8_t digest[EO_SHA256_SIZE];
    if (store->tail_length > 0) {
        uint8_t slot = store->record.upload_slot;
        memset(store->tail + store->tail_length, EO_FLASH_ERASED, store->flash->word - store->tail_length);
        uint32_t at = eo_store_slot_address(store, slot) + store->upload_offset - store->tail_length;
        if (!store->flash->program(store->flash, at, store->tail, store->flash->word)) {
            return EO_FLASH;
        }
    }
    eo_status status = hash_slot(store, store->record.upload_slot, store->record.upload_length, digest);
    if (status == EO_OK && memcmp(digest, store->record.upload_sha256, sizeof digest) != 0) {
        status = commit(store, without_upload(store->record));
        return status == EO_OK ? EO_HASH : status;
    }
    return status;
}

eo_status eo_store_upload_write(eo_store *store, uint32_t offset, const uint8_t *data, uint32_t length) {
    if (!store->uploading || offset != store->upload_offset) {
        return EO_OFFSET;
    }
    if (length > store->record.upload_length - offset) {
        return EO_SIZE;
    }
    /* After a failed program the words on flash are unknown: only a new begin, which reads them, may go on. */
    store->uploading = false;
    eo_status status = program_words(store, data, length);
    if (status != EO_OK) {
        return status;
    }
    if (store->upload_offset == store->record.upload_length) {
        return finish_upload(store);
    }
    store->uploading = true;
    return EO_OK;
}

eo_status eo_store_test(eo_store *store, uint8_t slot) {
    if (!is_slot(slot)) {
        return EO_EMPTY;
    }
    if (store->record.trial == EO_TRIAL_RUNNING) {
        return slot == store->record.trial_slot ? EO_OK : EO_BUSY;
    }
    if (slot == store->record.active) {
        return store->record.trial == EO_TRIAL_NONE
                   ? EO_OK
                   : commit(store, without_trial(store->record, EO_OUTCOME_NONE));
    }
    if (store->record.trial == EO_TRIAL_PENDING) {
        return EO_OK; /* there are two slots: it is this one */
    }
    uint32_t counter;
    eo_status status = check(store, slot, &counter);
    if (status != EO_OK) {
        return status;
    }
    eo_record next = store->record;
    next.trial = EO_TRIAL_PENDING;
    next.trial_slot = slot;
    next.outcome = EO_OUTCOME_NONE;
    return commit(store, next);
}

eo_status eo_store_confirm(eo_store *store) {
    if (store->record.trial != EO_TRIAL_RUNNING) {
        return EO_OK;
    }
    uint32_t counter;
    eo_status status = check(store, store->record.trial_slot, &counter);
    if (status != EO_OK) {
        return status;
    }
    eo_record next = without_upload(without_trial(store->record, EO_OUTCOME_CONFIRMED));
    next.active = store->record.trial_slot;
    next.floor = counter;
    return commit(store, next);
}

eo_status eo_store_erase(eo_store *store) {
    uint8_t slot = spare_slot(store);
    if (slot == EO_NO_SLOT) {
        return EO_BUSY;
    }
    /* Nothing may point at the slot when its first sector goes. */
    store->uploading = false;
    if (store->record.trial != EO_TRIAL_NONE || store->record.upload_length != 0) {
        eo_outcome outcome = store->record.trial == EO_TRIAL_NONE ? store->record.outcome : EO_OUTCOME_NONE;
        eo_status status = commit(store, without_upload(without_trial(store->record, outcome)));
        if (status != EO_OK) {
            return status;
        }
    }
    return erase_from(store, slot, 0);
}
