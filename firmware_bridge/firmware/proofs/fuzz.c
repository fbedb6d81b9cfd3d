/* Anything that a serial line may bring, against the whole application, under the sanitizers.
 *
 * With clang: -fsanitize=fuzzer,address,undefined -DEO_LIBFUZZER. Without it the program mutates packets itself:
 *
 *     fuzz SEED ROUNDS < packets    (each: two bytes of length, big-endian, and the packet) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eo_app.h"
#include "eo_board.h"

enum { WORD = 8, SECTOR_SIZE = 256, SLOT_SECTORS = 16, SECTORS = EO_METADATA_SECTORS + EO_SLOTS * SLOT_SECTORS };

const char eo_board_name[] = "fuzz";
const uint8_t eo_board_cpu = EO_CPU_X86_64;
const uint32_t eo_board_slot_sectors = SLOT_SECTORS;
const uint32_t eo_board_key_count = 1;
const uint8_t eo_board_keys[1][EO_KEY_SIZE] = {{0}};

static uint8_t memory[SECTORS * SECTOR_SIZE];
static uint8_t model_ram[4096];
static eo_app app;
static uint32_t requests, errors; /* of the devices before this one */

static bool flash_read(eo_flash *flash, uint32_t at, void *to, uint32_t length) {
    (void)flash;
    if (at > sizeof memory || length > sizeof memory - at) {
        return false;
    }
    memcpy(to, memory + at, length);
    return true;
}

static bool flash_program(eo_flash *flash, uint32_t at, const void *from, uint32_t length) {
    const uint8_t *erased = memory + at;
    (void)flash;
    if (at % WORD != 0 || length % WORD != 0 || at > sizeof memory || length > sizeof memory - at) {
        abort(); /* the store never asks for this */
    }
    for (uint32_t i = 0; i < length; i++) {
        if (erased[i] != EO_FLASH_ERASED) {
            abort();
        }
    }
    memcpy(memory + at, from, length);
    return true;
}

static bool flash_erase(eo_flash *flash, uint32_t sector) {
    if (sector >= flash->sectors) {
        abort();
    }
    memset(memory + sector * SECTOR_SIZE, EO_FLASH_ERASED, SECTOR_SIZE);
    return true;
}

eo_flash *eo_board_flash(void) {
    static eo_flash flash = {WORD, SECTOR_SIZE, SECTORS, flash_read, flash_program, flash_erase};
    return &flash;
}

const void *eo_board_code(uint32_t at) {
    (void)at;
    abort(); /* no blob is signed with the key of this program: none may ever be called */
}

uint8_t *eo_board_model_ram(uint32_t *size) {
    *size = sizeof model_ram;
    return model_ram;
}

void eo_board_start(uint32_t watchdog_ms) { (void)watchdog_ms; }
void eo_board_feed_watchdog(void) {}
int eo_board_receive(void) { return -1; }
void eo_board_send(uint8_t byte) { (void)byte; }
uint32_t eo_board_ms(void) { return 0; }
uint32_t eo_board_ticks(void) { return 0; }
uint32_t eo_board_ticks_hz(void) { return 1; }
_Noreturn void eo_board_reset(void) { abort(); }

static void put(void *context, uint8_t byte) {
    const uint8_t *packet;
    (void)context;
    size_t length = eo_frame_byte(&app.receiver, byte, &packet);
    if (length > 0) {
        (void)eo_app_answer(&app, packet, length);
        app.reset = false;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool booted;
    if (!booted || (size > 0 && data[0] == 0)) { /* some inputs come to a fresh device, others find what was before */
        memset(memory, EO_FLASH_ERASED, sizeof memory);
        requests += app.requests;
        errors += app.errors;
        eo_app_boot(&app);
        booted = true;
    }
    for (size_t i = 0; i < size; i++) { /* as bytes of the line */
        put(NULL, data[i]);
    }
    if (size >= EO_PACKET_HEADER && size <= EO_PACKET_MAX) { /* as a packet whose frame was right */
        uint8_t *exact = malloc(size);
        memcpy(exact, data, size);
        exact[2] = (uint8_t)((size - EO_PACKET_HEADER) >> 8);
        exact[3] = (uint8_t)(size - EO_PACKET_HEADER);
        (void)eo_app_answer(&app, exact, size);
        app.reset = false;
        eo_frame_send(exact, size, put, NULL);
        free(exact);
    }
    return 0;
}

#ifndef EO_LIBFUZZER
static uint64_t state;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static size_t mutate(uint8_t *data, size_t size, size_t capacity) {
    for (uint32_t rounds = draw(5); rounds > 0; rounds--) {
        uint32_t at = draw((uint32_t)size);
        switch (draw(5)) {
        case 0:
            data[at] ^= (uint8_t)(1u << draw(8));
            break;
        case 1:
            data[at] = (uint8_t)draw(256);
            break;
        case 2: /* cut off */
            size = size > 1 ? 1 + draw((uint32_t)size - 1) : 1;
            break;
        case 3: /* repeat a part */
            if (size < capacity / 2) {
                memmove(data + size, data + at, size - at);
                size += size - at;
            }
            break;
        default: /* a byte is lost */
            if (size > 1) {
                memmove(data + at, data + at + 1, size - at - 1);
                size--;
            }
        }
    }
    return size;
}

int main(int argc, char **argv) {
    enum { PACKETS_MAX = 64 };
    static uint8_t packets[PACKETS_MAX][EO_PACKET_MAX];
    static uint8_t data[2 * EO_PACKET_MAX];
    size_t sizes[PACKETS_MAX];
    uint32_t count = 0;
    if (argc != 3) {
        return 2;
    }
    state = strtoull(argv[1], NULL, 10);
    for (int high; count < PACKETS_MAX && (high = getchar()) != EOF; count++) {
        sizes[count] = (size_t)high << 8 | (size_t)getchar();
        if (sizes[count] == 0 || sizes[count] > EO_PACKET_MAX ||
            fread(packets[count], 1, sizes[count], stdin) != sizes[count]) {
            return 2;
        }
    }
    if (count == 0) {
        return 2;
    }
    for (unsigned long long round = strtoull(argv[2], NULL, 10); round > 0; round--) {
        uint32_t which = draw(count);
        memcpy(data, packets[which], sizes[which]);
        (void)LLVMFuzzerTestOneInput(data, mutate(data, sizes[which], sizeof data));
    }
    printf("{\"requests\": %u, \"errors\": %u}\n", requests + app.requests, errors + app.errors);
    return 0;
}
#endif
