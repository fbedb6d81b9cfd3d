/* What an operation of the firmware ended with. SPEC.md, "Status". */
#ifndef EO_STATUS_H
#define EO_STATUS_H

typedef enum {
    EO_OK = 0,
    EO_FLASH,     /* the flash driver refused or failed */
    EO_BUSY,      /* the slot runs a trial; confirm it or reset first */
    EO_SIZE,      /* larger than the slot, or than the memory that the application gives */
    EO_OFFSET,    /* not the next byte of the upload */
    EO_EMPTY,     /* no such slot, or nothing in it */
    EO_FORM,      /* not a model blob */
    EO_ABI,       /* a blob for another calling convention */
    EO_CPU,       /* a blob for another processor */
    EO_HASH,      /* the code is not the code that the header names */
    EO_KEY,       /* signed by a key that this firmware does not hold */
    EO_SIGNATURE, /* the signature is wrong */
    EO_DOWNGRADE, /* its counter is below the floor */
    EO_STATUS_COUNT
} eo_status;

#endif
