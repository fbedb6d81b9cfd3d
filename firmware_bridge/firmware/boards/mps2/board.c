/* Arm MPS2 boards, as QEMU emulates them: AN385 (Cortex-M3), AN386 (M4), AN500 (M7).
 *
 * They have no flash that a program can write. The external RAM stands in for it: backed by a file it outlives power
 * cuts. It is RAM, so the driver enforces what flash enforces: a word is programmed once after an erase. */
#include <string.h>

#include "eo_app.h"
#include "eo_board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

#define TIMER_CTRL REGISTER(0x40000000u)
#define TIMER_VALUE REGISTER(0x40000004u)
#define TIMER_RELOAD REGISTER(0x40000008u)
#define UART_DATA REGISTER(0x40004000u)
#define UART_STATE REGISTER(0x40004004u)
#define UART_CTRL REGISTER(0x40004008u)
#define UART_INTERRUPT REGISTER(0x4000400Cu)
#define UART_BAUD_DIVISOR REGISTER(0x40004010u)
#define WATCHDOG_LOAD REGISTER(0x40008000u)
#define WATCHDOG_CTRL REGISTER(0x40008008u)
#define WATCHDOG_CLEAR REGISTER(0x4000800Cu)
#define WATCHDOG_LOCK REGISTER(0x40008C00u)
#define SYSTICK_CTRL REGISTER(0xE000E010u)
#define SYSTICK_RELOAD REGISTER(0xE000E014u)
#define NVIC_ENABLE REGISTER(0xE000E100u)
#define NVIC_CLEAR_PENDING REGISTER(0xE000E280u)
#define ICSR REGISTER(0xE000ED04u)
#define AIRCR REGISTER(0xE000ED0Cu)

enum { CLOCK_HZ = 25000000, TICK_HZ = 100 };
enum { UART_TX_FULL = 1, UART_RX_FULL = 2, UART_ENABLE = 3, UART_RX_INTERRUPT = 1 << 3, UART_RX_IRQ = 1 << 0 };
enum { WATCHDOG_ENABLE = 3, WATCHDOG_KEY = 0x1ACCE551, SYSTICK_ENABLE = 7, SYSTICK_PENDING_CLEAR = 1 << 25 };
enum { WORD = 8, SECTOR_SIZE = 4096, SLOT_SECTORS = 64, MODEL_RAM = 512 * 1024 };
enum { FLASH_SIZE = (EO_METADATA_SECTORS + EO_SLOTS * SLOT_SECTORS) * SECTOR_SIZE };
#define RESET_KEY 0x05FA0004u

const char eo_board_name[] = EO_BOARD_NAME;
const uint8_t eo_board_cpu = EO_BOARD_CPU;
const uint32_t eo_board_slot_sectors = SLOT_SECTORS;

static uint8_t *const memory = (uint8_t *)EO_BOARD_FLASH;
static _Alignas(64) uint8_t model_ram[MODEL_RAM];

static bool inside(uint32_t at, uint32_t length) { return at <= FLASH_SIZE && length <= FLASH_SIZE - at; }

static bool flash_read(eo_flash *flash, uint32_t at, void *to, uint32_t length) {
    (void)flash;
    if (!inside(at, length)) {
        return false;
    }
    memcpy(to, memory + at, length);
    return true;
}

static bool flash_program(eo_flash *flash, uint32_t at, const void *from, uint32_t length) {
    (void)flash;
    if (!inside(at, length) || at % WORD != 0 || length % WORD != 0) {
        return false;
    }
    for (uint32_t i = 0; i < length; i++) {
        if (memory[at + i] != EO_FLASH_ERASED) {
            return false;
        }
    }
    memcpy(memory + at, from, length);
    return true;
}

static bool flash_erase(eo_flash *flash, uint32_t sector) {
    if (sector >= flash->sectors) {
        return false;
    }
    memset(memory + sector * SECTOR_SIZE, EO_FLASH_ERASED, SECTOR_SIZE);
    return true;
}

eo_flash *eo_board_flash(void) {
    static eo_flash flash = {WORD, SECTOR_SIZE, FLASH_SIZE / SECTOR_SIZE, flash_read, flash_program, flash_erase};
    return &flash;
}

const void *eo_board_code(uint32_t at) {
    __asm__ volatile("dsb\n isb" ::: "memory"); /* what was programmed is what is fetched */
    return memory + at;
}

uint8_t *eo_board_model_ram(uint32_t *size) {
    *size = sizeof model_ram;
    return model_ram;
}

void eo_board_start(uint32_t watchdog_ms) {
    UART_BAUD_DIVISOR = CLOCK_HZ / 115200;
    UART_CTRL = UART_ENABLE | UART_RX_INTERRUPT;
    TIMER_RELOAD = UINT32_MAX;
    TIMER_VALUE = UINT32_MAX;
    TIMER_CTRL = 1;
    SYSTICK_RELOAD = CLOCK_HZ / TICK_HZ - 1;
    SYSTICK_CTRL = SYSTICK_ENABLE;
    NVIC_ENABLE = UART_RX_IRQ;
    /* Its first expiry is an interrupt that nobody takes, the second one resets. */
    WATCHDOG_LOCK = WATCHDOG_KEY;
    WATCHDOG_LOAD = CLOCK_HZ / 2000 * watchdog_ms;
    WATCHDOG_CTRL = WATCHDOG_ENABLE;
}

void eo_board_feed_watchdog(void) { WATCHDOG_CLEAR = 1; }

/* Interrupts stay masked: a pending one ends the wait and no handler runs. */
int eo_board_receive(void) {
    UART_INTERRUPT = 2;
    NVIC_CLEAR_PENDING = UART_RX_IRQ;
    ICSR = SYSTICK_PENDING_CLEAR;
    if ((UART_STATE & UART_RX_FULL) != 0) {
        return (int)(UART_DATA & 0xFFu);
    }
    __asm__ volatile("wfi" ::: "memory");
    return -1;
}

void eo_board_send(uint8_t byte) {
    while ((UART_STATE & UART_TX_FULL) != 0) {
    }
    UART_DATA = byte;
}

uint32_t eo_board_ticks(void) { return ~TIMER_VALUE; }
uint32_t eo_board_ticks_hz(void) { return CLOCK_HZ; }

/* Asked in every round of the application, so that no turn of the counter is missed. */
uint32_t eo_board_ms(void) {
    static uint32_t last;
    static uint64_t ticks;
    uint32_t now = eo_board_ticks();
    ticks += now - last;
    last = now;
    return (uint32_t)(ticks / (CLOCK_HZ / 1000));
}

_Noreturn void eo_board_reset(void) {
    __asm__ volatile("dsb" ::: "memory");
    AIRCR = RESET_KEY;
    for (;;) {
    }
}

extern uint32_t data_begin[], data_end[], data_source[], bss_begin[], bss_end[], stack_end[];

_Noreturn static void reset(void) {
    static eo_app app;
    __asm__ volatile("cpsid i" ::: "memory");
    for (uint32_t *to = data_begin, *from = data_source; to < data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = bss_begin; to < bss_end;) {
        *to++ = 0;
    }
    eo_app_boot(&app);
    for (;;) {
        eo_app_step(&app);
    }
}

/* Whatever goes wrong in a model ends here: the next boot falls back. */
_Noreturn static void fault(void) { eo_board_reset(); }

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))stack_end, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};
