#include "eo_app.h"

#include "eo_board.h"

/* A hung model resets the device within this time; longer than the slowest inference and the longest erase. */
#ifndef EO_WATCHDOG_MS
#define EO_WATCHDOG_MS 8000u
#endif
/* A trial that nobody confirms within this time ends by a reset, and the confirmed blob comes back. */
#ifndef EO_TRIAL_LIMIT_MS
#define EO_TRIAL_LIMIT_MS 600000u
#endif
#define BUFFER_ALIGN 64u

static eo_status verify(void *context, uint32_t at, uint32_t limit, uint32_t *counter) {
    const eo_blob_policy *policy = context;
    eo_blob blob;
    eo_status status = eo_blob_check(policy, eo_board_flash(), at, limit, &blob);
    *counter = blob.counter;
    return status;
}

static uint32_t padded(uint32_t size) { return (size + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN; }

void eo_app_boot(eo_app *app) {
    uint8_t *ram;
    *app = (eo_app){.loaded = false};
    ram = eo_board_model_ram(&app->policy.ram);
    app->policy.cpu = eo_board_cpu;
    app->policy.keys = eo_board_keys;
    app->policy.key_count = eo_board_key_count;
    eo_frame_init(&app->receiver);
    eo_board_start(EO_WATCHDOG_MS);
    /* A store that cannot be read leaves no model running; the protocol works, so that somebody can find out. */
    (void)eo_store_boot(&app->store, eo_board_flash(), eo_board_slot_sectors, verify, &app->policy);
    uint8_t slot = app->store.running;
    if (slot != EO_NO_SLOT && eo_blob_read(eo_board_flash(), eo_store_slot_address(&app->store, slot),
                                           eo_store_slot_size(&app->store), &app->blob) == EO_OK) {
        app->input = ram;
        app->output = app->input + padded(app->blob.input.size);
        app->arena = app->output + padded(app->blob.output.size);
        app->loaded = true;
    }
}

static void send(void *context, uint8_t byte) {
    (void)context;
    eo_board_send(byte);
}

void eo_app_step(eo_app *app) {
    const uint8_t *packet;
    eo_board_feed_watchdog();
    if (app->store.record.trial == EO_TRIAL_RUNNING && eo_board_ms() > EO_TRIAL_LIMIT_MS) {
        eo_board_reset();
    }
    int byte = eo_board_receive();
    size_t length = byte < 0 ? 0 : eo_frame_byte(&app->receiver, (uint8_t)byte, &packet);
    size_t answer = length > 0 ? eo_app_answer(app, packet, length) : 0;
    if (answer > 0) {
        eo_frame_send(app->answer, answer, send, NULL);
    }
    if (app->reset) {
        eo_board_reset();
    }
}
