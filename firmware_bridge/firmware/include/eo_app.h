/* The application: boots the store, runs the model, answers SMP. */
#ifndef EO_APP_H
#define EO_APP_H

#include <stdbool.h>
#include <stdint.h>

#include "eo_blob.h"
#include "eo_frame.h"
#include "eo_store.h"

#define EO_SPEC_VERSION "1"

typedef struct {
    eo_store store;
    eo_blob_policy policy;

    bool loaded; /* `blob` is what runs */
    eo_blob blob;
    uint8_t *input;
    uint8_t *output;
    uint8_t *arena;
    uint32_t input_taken; /* bytes of input that came */
    bool ran;             /* `output` belongs to the input that came */

    uint32_t requests, errors;
    uint32_t inferences, failures, ticks_last, ticks_max;

    bool reset; /* asked for; done when the answer is sent */
    eo_frame_receiver receiver;
    uint8_t answer[EO_PACKET_MAX];
} eo_app;

void eo_app_boot(eo_app *app);

/* One round: feed the watchdog, end a trial that nobody confirms in time, take at most one byte from the line. */
void eo_app_step(eo_app *app);

/* Answer one packet into `app->answer`; returns the answer's length, 0 for none. */
size_t eo_app_answer(eo_app *app, const uint8_t *packet, size_t length);

#endif
