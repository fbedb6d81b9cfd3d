/* This machine as a board: the serial line is stdin and stdout, the flash a file, a reset starts the program anew.
 *
 *     edgeops-mcu FLASH_FILE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "eo_app.h"
#include "eo_board.h"

enum { WORD = 8, SECTOR_SIZE = 4096, SLOT_SECTORS = 64, MODEL_RAM = 1 << 20 };
enum { FLASH_SIZE = (EO_METADATA_SECTORS + EO_SLOTS * SLOT_SECTORS) * SECTOR_SIZE };

const char eo_board_name[] = "host";
const uint8_t eo_board_cpu = EO_CPU_X86_64;
const uint32_t eo_board_slot_sectors = SLOT_SECTORS;

static uint8_t *memory;
static char **arguments;
static uint32_t watchdog;
static _Alignas(64) uint8_t model_ram[MODEL_RAM];
static uint8_t sent[4096];
static size_t sent_length;

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

const void *eo_board_code(uint32_t at) { return memory + at; }

uint8_t *eo_board_model_ram(uint32_t *size) {
    *size = sizeof model_ram;
    return model_ram;
}

static void flush(void) {
    for (size_t at = 0; at < sent_length;) {
        ssize_t wrote = write(STDOUT_FILENO, sent + at, sent_length - at);
        if (wrote < 0 && errno != EINTR) {
            exit(1);
        }
        at += wrote > 0 ? (size_t)wrote : 0;
    }
    sent_length = 0;
}

static void on_fault(int signal_number) {
    (void)signal_number;
    eo_board_reset();
}

void eo_board_start(uint32_t watchdog_ms) {
    static const int faults[] = {SIGPROF, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
        sigaction(faults[i], &action, NULL);
    }
    watchdog = watchdog_ms;
    eo_board_feed_watchdog();
}

/* Time of the processor: a machine that stands still is not a model that hangs. */
void eo_board_feed_watchdog(void) {
    struct itimerval timer = {.it_value = {watchdog / 1000, (suseconds_t)(watchdog % 1000) * 1000}};
    setitimer(ITIMER_PROF, &timer, NULL);
}

int eo_board_receive(void) {
    static uint8_t buffer[4096];
    static ssize_t length, at;
    if (at < length) {
        return buffer[at++];
    }
    flush();
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(&input, 1, 50) <= 0) {
        return -1;
    }
    length = read(STDIN_FILENO, buffer, sizeof buffer);
    at = 0;
    if (length <= 0) { /* the line is gone for good */
        exit(0);
    }
    return buffer[at++];
}

void eo_board_send(uint8_t byte) {
    if (sent_length == sizeof sent) {
        flush();
    }
    sent[sent_length++] = byte;
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t eo_board_ms(void) {
    static uint64_t begin;
    begin = begin != 0 ? begin : nanoseconds();
    return (uint32_t)((nanoseconds() - begin) / 1000000u);
}

uint32_t eo_board_ticks(void) { return (uint32_t)(nanoseconds() / 1000u); }
uint32_t eo_board_ticks_hz(void) { return 1000000u; }

_Noreturn void eo_board_reset(void) {
    sigset_t none;
    flush();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv("/proc/self/exe", arguments);
    _exit(1);
}

static void open_flash(const char *path) {
    int file = open(path, O_RDWR | O_CREAT, 0600);
    struct stat found;
    if (file < 0 || fstat(file, &found) != 0 || (found.st_size != FLASH_SIZE && ftruncate(file, FLASH_SIZE) != 0)) {
        perror(path);
        exit(1);
    }
    memory = mmap(NULL, FLASH_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) {
        perror(path);
        exit(1);
    }
    if (found.st_size != FLASH_SIZE) {
        memset(memory, EO_FLASH_ERASED, FLASH_SIZE);
    }
}

int main(int argc, char **argv) {
    static eo_app app;
    if (argc != 2) {
        fprintf(stderr, "usage: %s FLASH_FILE\n", argv[0]);
        return 2;
    }
    arguments = argv;
    open_flash(argv[1]);
    eo_app_boot(&app);
    for (;;) {
        eo_app_step(&app);
    }
}
