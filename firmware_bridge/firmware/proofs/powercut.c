/* The power-cut proof of the slot store. A whole life of a device (upload, trial, confirm, a blob that is never confirmed)
 * runs on a simulated flash that loses power at every word write and every sector erase, in several ways each; then
 * again with a second cut at the operations of the recovery. After each the device must still run what was confirmed,
 * forget nothing, and take the next update.
 *
 *     powercut SECTOR_SIZE SLOT_SECTORS BLOB_LENGTH WORD STRIDE SECOND_STRIDE
 *
 * STRIDE n: every n-th operation is cut (1: all); SECOND_STRIDE 0: no second cuts. Prints one JSON object; exit status
 * 1 when there were bricks. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eo_digest.h"
#include "eo_store.h"

#define ENDLESS UINT64_MAX
#define NOBODY 0u

/* How the operation that loses power leaves what it worked on. */
enum { CUT_BEFORE, CUT_TORN, CUT_TORN_OTHER, CUT_PART, CUT_AFTER, CUT_KINDS };

typedef struct {
    eo_flash flash;
    uint8_t *bytes;
    uint8_t *programmed; /* per word: written since its last erase, torn ones too */
    uint64_t operations;
    uint64_t cut_at; /* this operation loses power */
    int cut_kind;
    uint32_t noise;
    jmp_buf power;
    bool violated; /* programmed a word twice */
} sim;

static uint32_t noise(sim *s) {
    s->noise = s->noise * 1664525u + 1013904223u;
    return s->noise >> 8;
}

static uint32_t total_size(const sim *s) { return s->flash.sectors * s->flash.sector_size; }

static bool sim_read(eo_flash *flash, uint32_t at, void *to, uint32_t length) {
    sim *s = (sim *)flash;
    if (at > total_size(s) || length > total_size(s) - at) {
        return false;
    }
    memcpy(to, s->bytes + at, length);
    return true;
}

static bool sim_program(eo_flash *flash, uint32_t at, const void *from, uint32_t length) {
    sim *s = (sim *)flash;
    const uint8_t *data = from;
    uint32_t word = flash->word;
    if (at % word != 0 || length % word != 0 || at > total_size(s) || length > total_size(s) - at) {
        s->violated = true;
        return false;
    }
    for (uint32_t done = 0; done < length; done += word) {
        uint8_t *target = s->bytes + at + done;
        uint8_t *mark = s->programmed + (at + done) / word;
        if (*mark != 0) {
            s->violated = true;
            return false;
        }
        bool cut = s->operations++ == s->cut_at;
        if (cut && s->cut_kind == CUT_BEFORE) {
            longjmp(s->power, 1);
        }
        *mark = 1;
        if (cut && s->cut_kind != CUT_AFTER) {
            for (uint32_t i = 0; i < word; i++) { /* some bits had the time to become zero */
                bool reached = s->cut_kind != CUT_PART || i < word / 2;
                target[i] = reached ? (uint8_t)(data[done + i] | (s->cut_kind == CUT_PART ? 0 : noise(s))) : 0xFF;
            }
            longjmp(s->power, 1);
        }
        memcpy(target, data + done, word);
        if (cut) {
            longjmp(s->power, 1);
        }
    }
    return true;
}

static bool sim_erase(eo_flash *flash, uint32_t sector) {
    sim *s = (sim *)flash;
    if (sector >= flash->sectors) {
        s->violated = true;
        return false;
    }
    uint32_t size = flash->sector_size, words = size / flash->word;
    uint8_t *bytes = s->bytes + sector * size;
    uint8_t *marks = s->programmed + sector * words;
    bool cut = s->operations++ == s->cut_at;
    if (cut && s->cut_kind == CUT_BEFORE) {
        longjmp(s->power, 1);
    }
    if (cut && s->cut_kind != CUT_AFTER) { /* not programmable until it is erased again, whatever it reads */
        memset(marks, 1, words);
        uint32_t half = size / 2;
        if (s->cut_kind == CUT_PART) {
            memset(bytes, 0xFF, half);
        } else if (s->cut_kind == CUT_TORN_OTHER) {
            memset(bytes + half, 0xFF, half);
        } else {
            for (uint32_t i = 0; i < size; i++) { /* some bits had the time to become one */
                bytes[i] = (uint8_t)(bytes[i] | noise(s));
            }
        }
        longjmp(s->power, 1);
    }
    memset(bytes, 0xFF, size);
    memset(marks, 0, words);
    if (cut) {
        longjmp(s->power, 1);
    }
    return true;
}

/* A blob of the proof: its number, its counter, filling, SHA-256 of all that. Filling ends in erased bytes sometimes. */
static uint32_t blob_length;
static uint8_t blobs[5][1 << 16];
static uint8_t sums[5][32];

static void make_blob(uint32_t number) {
    uint8_t *blob = blobs[number];
    for (uint32_t i = 0; i < blob_length - 32; i++) {
        blob[i] = i % 97 < 20 ? 0xFF : (uint8_t)(i * 31 + number * 7);
    }
    memcpy(blob, &number, 4);
    memcpy(blob + 4, &number, 4);
    eo_sha256 sha;
    eo_sha256_init(&sha);
    eo_sha256_update(&sha, blob, blob_length - 32);
    eo_sha256_final(&sha, blob + blob_length - 32);
    eo_sha256_init(&sha);
    eo_sha256_update(&sha, blob, blob_length);
    eo_sha256_final(&sha, sums[number]);
}

static eo_status verify(void *context, uint32_t at, uint32_t limit, uint32_t *counter) {
    sim *s = context;
    uint8_t digest[32];
    (void)limit;
    eo_sha256 sha;
    eo_sha256_init(&sha);
    eo_sha256_update(&sha, s->bytes + at, blob_length - 32);
    eo_sha256_final(&sha, digest);
    memcpy(counter, s->bytes + at + 4, 4);
    return memcmp(digest, s->bytes + at + blob_length - 32, 32) == 0 ? EO_OK : EO_HASH;
}

static uint32_t slot_sectors;

static uint32_t running_blob(const eo_store *store, const sim *s) {
    uint32_t number = NOBODY;
    if (store->running != EO_NO_SLOT) {
        memcpy(&number, s->bytes + eo_store_slot_address(store, store->running), 4);
    }
    return number;
}

static bool upload(eo_store *store, uint32_t number) {
    uint32_t offset;
    if (eo_store_upload_begin(store, blob_length, sums[number], &offset) != EO_OK) {
        return false;
    }
    while (offset < blob_length) {
        uint32_t take = blob_length - offset < 101 ? blob_length - offset : 101; /* no multiple of any word */
        if (eo_store_upload_write(store, offset, blobs[number] + offset, take) != EO_OK) {
            return false;
        }
        offset += take;
    }
    return true;
}

static bool boot(eo_store *store, sim *s) { return eo_store_boot(store, &s->flash, slot_sectors, verify, s) == EO_OK; }

static bool update(eo_store *store, sim *s, uint32_t number) {
    return upload(store, number) && eo_store_test(store, store->record.upload_slot) == EO_OK && boot(store, s) &&
           store->record.trial == EO_TRIAL_RUNNING && running_blob(store, s) == number &&
           eo_store_confirm(store) == EO_OK;
}

/* What a cut may leave, at each point of the life: the blobs that may be the confirmed one. */
typedef struct {
    uint32_t one, other;
} allowed;

/* The life that is cut: blob 1 is confirmed; 2 is uploaded, tried and confirmed; 3 is tried and never confirmed. */
static bool life(eo_store *store, sim *s, volatile allowed *may) {
    *may = (allowed){1, 1};
    if (!boot(store, s) || running_blob(store, s) != 1 || !upload(store, 2) ||
        eo_store_test(store, store->record.upload_slot) != EO_OK || !boot(store, s) || running_blob(store, s) != 2) {
        return false;
    }
    *may = (allowed){1, 2};
    if (eo_store_confirm(store) != EO_OK) {
        return false;
    }
    *may = (allowed){2, 2};
    return upload(store, 3) && eo_store_test(store, store->record.upload_slot) == EO_OK && boot(store, s) &&
           running_blob(store, s) == 3 && boot(store, s) && running_blob(store, s) == 2 &&
           store->record.outcome == EO_OUTCOME_NOT_CONFIRMED;
}

/* After a cut: boot, and go on with the upload that was under way, as a client does that knows nothing. */
static void recover(eo_store *store, sim *s, uint32_t under_way) {
    if (boot(store, s) && store->record.trial == EO_TRIAL_NONE) {
        (void)upload(store, under_way);
    }
}

/* Say what is wrong with the device, or NULL. */
static const char *examine(eo_store *store, sim *s, allowed may) {
    s->cut_at = ENDLESS;
    if (s->violated) {
        return "a word was programmed twice";
    }
    if (!boot(store, s)) {
        return "the store does not boot";
    }
    if (store->record.trial == EO_TRIAL_RUNNING && !boot(store, s)) {
        return "the store does not boot after its trial";
    }
    if (store->record.trial != EO_TRIAL_NONE) {
        return "a trial runs twice";
    }
    uint32_t confirmed = running_blob(store, s);
    if (confirmed != may.one && confirmed != may.other) {
        return "the confirmed blob is lost";
    }
    if (store->record.floor != confirmed) {
        return "the floor is not the confirmed blob's counter";
    }
    if (!update(store, s, confirmed == 1 ? 2 : 3)) {
        return "the update cannot be finished";
    }
    if (!update(store, s, 4) || !boot(store, s) || running_blob(store, s) != 4) {
        return "the next update cannot be made";
    }
    return s->violated ? "a word was programmed twice" : NULL;
}

static sim base, now, after_cut;

static void copy(sim *to, const sim *from) {
    to->flash = from->flash;
    memcpy(to->bytes, from->bytes, total_size(from));
    memcpy(to->programmed, from->programmed, total_size(from) / from->flash.word);
    to->operations = 0;
    to->violated = false;
    to->noise = from->noise;
}

static void make(sim *s, uint32_t sector_size, uint32_t word) {
    s->flash = (eo_flash){.word = word,
                          .sector_size = sector_size,
                          .sectors = EO_METADATA_SECTORS + EO_SLOTS * slot_sectors,
                          .read = sim_read,
                          .program = sim_program,
                          .erase = sim_erase};
    s->bytes = malloc(total_size(s));
    s->programmed = calloc(total_size(s) / word, 1);
    if (s->bytes == NULL || s->programmed == NULL) {
        exit(2);
    }
    memset(s->bytes, 0xFF, total_size(s));
    s->cut_at = ENDLESS;
    s->noise = 1;
}

static uint64_t cuts, second_cuts, bricks;
static const char *first_brick = "";
static uint64_t first_brick_at;

static void judge(eo_store *store, allowed may, uint64_t at) {
    const char *wrong = examine(store, &now, may);
    if (wrong != NULL && bricks++ == 0) {
        first_brick = wrong;
        first_brick_at = at;
    }
}

static eo_store store;
static volatile allowed may;

static void cut_now_at(const sim *from, uint64_t at, int kind) {
    copy(&now, from);
    now.cut_at = at;
    now.cut_kind = kind;
    now.noise = (uint32_t)(at * CUT_KINDS) + (uint32_t)kind;
}

/* Live until the power goes; false: the life ended before. */
static bool cut_life(uint64_t at, int kind) {
    cut_now_at(&base, at, kind);
    if (setjmp(now.power) != 0) {
        return true;
    }
    (void)life(&store, &now, &may);
    return false;
}

static bool cut_recovery(uint32_t under_way, uint64_t at, int kind) {
    cut_now_at(&after_cut, at, kind);
    if (setjmp(now.power) != 0) {
        return true;
    }
    recover(&store, &now, under_way);
    return false;
}

static void prove(uint64_t at, int kind, uint64_t second_stride) {
    if (!cut_life(at, kind)) {
        return;
    }
    cuts++;
    copy(&after_cut, &now);
    allowed left = {may.one, may.other};
    judge(&store, left, at);
    if (second_stride == 0) {
        return;
    }
    uint32_t under_way = left.one == 1 ? 2 : 3;
    copy(&now, &after_cut);
    now.cut_at = ENDLESS;
    recover(&store, &now, under_way);
    uint64_t recovery = now.operations;
    for (uint64_t second = (at + (uint64_t)kind) % second_stride; second < recovery; second += second_stride) {
        if (cut_recovery(under_way, second, (int)((second + (uint64_t)kind) % CUT_KINDS))) {
            second_cuts++;
            judge(&store, left, at);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 7) {
        return 2;
    }
    uint32_t sector_size = (uint32_t)atoi(argv[1]), word = (uint32_t)atoi(argv[4]);
    uint64_t stride = (uint64_t)atoi(argv[5]), second_stride = (uint64_t)atoi(argv[6]);
    slot_sectors = (uint32_t)atoi(argv[2]);
    blob_length = (uint32_t)atoi(argv[3]);
    if (blob_length < 64 || blob_length > sizeof blobs[0] || blob_length > slot_sectors * sector_size || stride == 0) {
        return 2;
    }
    for (uint32_t number = 1; number <= 4; number++) {
        make_blob(number);
    }
    make(&base, sector_size, word);
    make(&now, sector_size, word);
    make(&after_cut, sector_size, word);
    bool lived = boot(&store, &base) && update(&store, &base, 1);
    copy(&now, &base);
    now.cut_at = ENDLESS;
    lived = lived && life(&store, &now, &may);
    uint64_t operations = now.operations;
    if (!lived) {
        bricks++;
        first_brick = "the life goes wrong without any cut";
        first_brick_at = operations;
    }
    for (uint64_t at = 0; lived && at < operations; at += stride) {
        for (int kind = 0; kind < CUT_KINDS; kind++) {
            prove(at, kind, second_stride);
        }
    }
    printf("{\"operations\": %llu, \"cuts\": %llu, \"second_cuts\": %llu, \"bricks\": %llu, "
           "\"first_brick\": \"%s\", \"first_brick_at\": %llu}\n",
           (unsigned long long)operations, (unsigned long long)cuts, (unsigned long long)second_cuts,
           (unsigned long long)bricks, first_brick, (unsigned long long)first_brick_at);
    return bricks == 0 ? 0 : 1;
}
