/* What a board gives to the application. Porting is one folder under boards/ that defines these. */
#ifndef EO_BOARD_H
#define EO_BOARD_H

#include <stdint.h>

#include "eo_blob.h"
#include "eo_flash.h"

extern const char eo_board_name[];
extern const uint8_t eo_board_cpu; /* eo_cpu: blobs for another one are refused */
extern const uint32_t eo_board_slot_sectors;

/* The public keys whose signatures this firmware accepts; made by the build. */
extern const uint32_t eo_board_key_count;
extern const uint8_t eo_board_keys[][EO_KEY_SIZE];

eo_flash *eo_board_flash(void);

/* Where the flash's byte `at` can be executed. */
const void *eo_board_code(uint32_t at);

/* RAM for arena, input and output, aligned to 64. */
uint8_t *eo_board_model_ram(uint32_t *size);

/* Start what the application needs: the serial line, clocks, and a watchdog that resets the device when it is not fed
 * for `watchdog_ms`. */
void eo_board_start(uint32_t watchdog_ms);
void eo_board_feed_watchdog(void);

int eo_board_receive(void); /* a byte, or -1 when none is there now */
void eo_board_send(uint8_t byte);

uint32_t eo_board_ms(void);
uint32_t eo_board_ticks(void);
uint32_t eo_board_ticks_hz(void);

_Noreturn void eo_board_reset(void);

#endif
