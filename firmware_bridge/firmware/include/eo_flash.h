/* Non-volatile memory as the store sees it: sectors to erase, words to program once. */
#ifndef EO_FLASH_H
#define EO_FLASH_H

#include <stdbool.h>
#include <stdint.h>

#define EO_FLASH_ERASED 0xFFu
#define EO_FLASH_WORD_MAX 32u

/* A driver. `program` takes whole words at word-aligned addresses, and must refuse a word that is not erased:
 * a store that relies on overwriting works in RAM and fails on flash. Each call returns false when it failed. */
typedef struct eo_flash eo_flash;
struct eo_flash {
    uint32_t word;        /* bytes programmed at once: a power of two, 4 to EO_FLASH_WORD_MAX */
    uint32_t sector_size; /* bytes erased at once: a multiple of 64 and of `word` */
    uint32_t sectors;
    bool (*read)(eo_flash *flash, uint32_t at, void *to, uint32_t length);
    bool (*program)(eo_flash *flash, uint32_t at, const void *from, uint32_t length);
    bool (*erase)(eo_flash *flash, uint32_t sector);
};

#endif
