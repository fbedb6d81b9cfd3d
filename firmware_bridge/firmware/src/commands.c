/* The SMP commands: SPEC.md, "Groups and commands". */
#include <string.h>

#include "eo_app.h"
#include "eo_board.h"
#include "eo_cbor.h"

enum { OP_READ = 0, OP_WRITE = 2 };
enum { RC_OK, RC_FAILED = 1, RC_INVALID = 3, RC_NONE = 5, RC_STATE = 6, RC_SIZE = 7, RC_UNSUPPORTED = 8, RC_DAMAGED = 9,
       RC_DENIED = 11 };

typedef struct {
    uint8_t rc;
    const char *reason; /* NULL: none */
} result;

typedef struct {
    const uint8_t *map;
    size_t length;
} request;

typedef result (*handler)(eo_app *app, request in, eo_cbor_writer *out);

static const result done = {RC_OK, NULL};
static const result invalid = {RC_INVALID, NULL};

static result result_of(eo_status status) {
    static const result results[EO_STATUS_COUNT] = {
        [EO_OK] = {RC_OK, NULL},
        [EO_FLASH] = {RC_FAILED, "flash"},
        [EO_BUSY] = {RC_STATE, "busy"},
        [EO_SIZE] = {RC_SIZE, "size"},
        [EO_OFFSET] = {RC_INVALID, "offset"},
        [EO_EMPTY] = {RC_NONE, "empty"},
        [EO_FORM] = {RC_DAMAGED, "form"},
        [EO_ABI] = {RC_DENIED, "abi"},
        [EO_CPU] = {RC_DENIED, "cpu"},
        [EO_HASH] = {RC_DAMAGED, "hash"},
        [EO_KEY] = {RC_DENIED, "key"},
        [EO_SIGNATURE] = {RC_DENIED, "signature"},
        [EO_DOWNGRADE] = {RC_DENIED, "downgrade"},
    };
    return results[status];
}

static bool find(request in, const char *key, eo_cbor_type type, eo_cbor_item *item) {
    *item = eo_cbor_find(in.map, in.length, key);
    return item->type == type;
}

static void put_uint(eo_cbor_writer *out, const char *key, uint32_t value) {
    eo_cbor_text(out, key);
    eo_cbor_uint(out, value);
}

static void put_bool(eo_cbor_writer *out, const char *key, bool value) {
    eo_cbor_text(out, key);
    eo_cbor_bool(out, value);
}

static void put_text(eo_cbor_writer *out, const char *key, const char *value) {
    eo_cbor_text(out, key);
    eo_cbor_text(out, value);
}

static void put_bytes(eo_cbor_writer *out, const char *key, const uint8_t *value, uint32_t length) {
    eo_cbor_text(out, key);
    eo_cbor_bytes(out, value, length);
}

/* os */

static result echo(eo_app *app, request in, eo_cbor_writer *out) {
    eo_cbor_item text;
    (void)app;
    if (!find(in, "d", EO_CBOR_TEXT, &text)) {
        return invalid;
    }
    eo_cbor_map(out, 1);
    eo_cbor_text(out, "r");
    eo_cbor_text_of(out, text.data, text.value);
    return done;
}

static result reset(eo_app *app, request in, eo_cbor_writer *out) {
    (void)in;
    app->reset = true;
    eo_cbor_map(out, 0);
    return done;
}

static result parameters(eo_app *app, request in, eo_cbor_writer *out) {
    (void)app;
    (void)in;
    eo_cbor_map(out, 2);
    put_uint(out, "buf_size", EO_PACKET_MAX);
    put_uint(out, "buf_count", 1);
    return done;
}

static result system_info(eo_app *app, request in, eo_cbor_writer *out) {
    static const char product[] = "edgeops-mcu " EO_SPEC_VERSION " ";
    char text[64];
    (void)app;
    (void)in;
    size_t name = strlen(eo_board_name);
    if (name > sizeof text - sizeof product) {
        name = sizeof text - sizeof product;
    }
    memcpy(text, product, sizeof product - 1);
    memcpy(text + sizeof product - 1, eo_board_name, name);
    eo_cbor_map(out, 1);
    eo_cbor_text(out, "output");
    eo_cbor_text_of(out, (const uint8_t *)text, (uint32_t)(sizeof product - 1 + name));
    return done;
}

/* image */

static eo_status read_slot(eo_app *app, uint8_t slot, eo_blob *blob) {
    return eo_blob_read(eo_board_flash(), eo_store_slot_address(&app->store, slot), eo_store_slot_size(&app->store),
                        blob);
}

static result image_state(eo_app *app, request in, eo_cbor_writer *out) {
    const eo_record *record = &app->store.record;
    eo_blob blob;
    uint32_t count = 0;
    (void)in;
    for (uint8_t slot = 0; slot < EO_SLOTS; slot++) {
        count += read_slot(app, slot, &blob) == EO_OK;
    }
    eo_cbor_map(out, 2);
    eo_cbor_text(out, "images");
    eo_cbor_array(out, count);
    for (uint8_t slot = 0; slot < EO_SLOTS; slot++) {
        if (read_slot(app, slot, &blob) != EO_OK) {
            continue;
        }
        eo_cbor_map(out, 7);
        put_uint(out, "slot", slot);
        put_text(out, "version", blob.version);
        put_bytes(out, "hash", blob.identity, sizeof blob.identity);
        put_bool(out, "pending", record->trial == EO_TRIAL_PENDING && slot == record->trial_slot);
        put_bool(out, "confirmed", slot == record->active);
        put_bool(out, "active", slot == app->store.running);
        put_bool(out, "permanent", false);
    }
    put_uint(out, "splitStatus", 0);
    return done;
}

/* Find the slot that holds the blob of an identity. If there is none, say what is wrong with a slot that holds
 * something else than a blob: that is what somebody uploaded and asks for. */
static eo_status find_slot(eo_app *app, const uint8_t identity[32], uint8_t *found) {
    eo_status wrong = EO_EMPTY;
    eo_blob blob;
    for (uint8_t slot = 0; slot < EO_SLOTS; slot++) {
        eo_status status = read_slot(app, slot, &blob);
        if (status == EO_OK && memcmp(blob.identity, identity, sizeof blob.identity) == 0) {
            *found = slot;
            return EO_OK;
        }
        wrong = status == EO_OK || status == EO_EMPTY ? wrong : status;
    }
    return wrong;
}

static result set_image_state(eo_app *app, request in, eo_cbor_writer *out) {
    eo_cbor_item hash, confirm;
    if (!find(in, "confirm", EO_CBOR_BOOL, &confirm) && confirm.type != EO_CBOR_ABSENT) {
        return invalid;
    }
    bool confirming = confirm.type == EO_CBOR_BOOL && confirm.value != 0;
    uint8_t slot = app->store.running;
    eo_status status = slot == EO_NO_SLOT ? EO_EMPTY : EO_OK;
    if (find(in, "hash", EO_CBOR_BYTES, &hash) && hash.value == 32) {
        status = find_slot(app, hash.data, &slot);
    } else if (hash.type != EO_CBOR_ABSENT || !confirming) {
        return invalid;
    }
    if (status != EO_OK) {
        return result_of(status);
    }
    /* Only what runs may be confirmed: a device that cannot answer must not keep what it cannot answer with. */
    if (confirming && slot != app->store.running) {
        return (result){RC_STATE, NULL};
    }
    status = confirming ? eo_store_confirm(&app->store) : eo_store_test(&app->store, slot);
    return status == EO_OK ? image_state(app, in, out) : result_of(status);
}

static result upload(eo_app *app, request in, eo_cbor_writer *out) {
    eo_cbor_item offset, data, length, sha, image;
    eo_store *store = &app->store;
    if (!find(in, "off", EO_CBOR_UINT, &offset) || !find(in, "data", EO_CBOR_BYTES, &data) ||
        (!find(in, "image", EO_CBOR_UINT, &image) && image.type != EO_CBOR_ABSENT) || image.value != 0) {
        return invalid;
    }
    uint32_t next = offset.value;
    eo_status status = EO_OK;
    if (offset.value == 0) {
        if (!find(in, "len", EO_CBOR_UINT, &length) || !find(in, "sha", EO_CBOR_BYTES, &sha) || sha.value != 32) {
            return invalid;
        }
        status = eo_store_upload_begin(store, length.value, sha.data, &next);
    } else if (!store->uploading) {
        return result_of(EO_OFFSET);
    } else {
        next = store->upload_offset;
    }
    if (status == EO_OK && next == offset.value) {
        status = eo_store_upload_write(store, next, data.data, data.value);
        next = store->upload_offset;
    }
    if (status != EO_OK) {
        return result_of(status);
    }
    bool whole = next == store->record.upload_length;
    eo_cbor_map(out, whole ? 2 : 1);
    put_uint(out, "off", next);
    if (whole) {
        put_bool(out, "match", true);
    }
    return done;
}

static result erase(eo_app *app, request in, eo_cbor_writer *out) {
    (void)in;
    eo_cbor_map(out, 0);
    return result_of(eo_store_erase(&app->store));
}

/* statistics */

static bool named(const eo_cbor_item *name, const char *text) {
    return name->value == strlen(text) && memcmp(name->data, text, name->value) == 0;
}

static result statistics(eo_app *app, request in, eo_cbor_writer *out) {
    eo_cbor_item name;
    if (!find(in, "name", EO_CBOR_TEXT, &name)) {
        return invalid;
    }
    eo_cbor_map(out, 2);
    eo_cbor_text(out, "name");
    eo_cbor_text_of(out, name.data, name.value);
    eo_cbor_text(out, "fields");
    if (named(&name, "smp")) {
        eo_cbor_map(out, 5);
        put_uint(out, "frames", app->receiver.counts.frames);
        put_uint(out, "damaged", app->receiver.counts.damaged);
        put_uint(out, "oversized", app->receiver.counts.oversized);
        put_uint(out, "requests", app->requests);
        put_uint(out, "errors", app->errors);
        return done;
    }
    if (named(&name, "model")) {
        eo_cbor_map(out, 4);
        put_uint(out, "inferences", app->inferences);
        put_uint(out, "failures", app->failures);
        put_uint(out, "ticks_last", app->ticks_last);
        put_uint(out, "ticks_max", app->ticks_max);
        return done;
    }
    return (result){RC_NONE, NULL};
}

static result statistics_list(eo_app *app, request in, eo_cbor_writer *out) {
    (void)app;
    (void)in;
    eo_cbor_map(out, 1);
    eo_cbor_text(out, "stat_list");
    eo_cbor_array(out, 2);
    eo_cbor_text(out, "smp");
    eo_cbor_text(out, "model");
    return done;
}

/* model */

static result model_info(eo_app *app, request in, eo_cbor_writer *out) {
    const eo_record *record = &app->store.record;
    (void)in;
    eo_cbor_map(out, app->loaded ? 13 : 7);
    put_uint(out, "abi", EO_BLOB_ABI);
    put_uint(out, "cpu", app->policy.cpu);
    put_uint(out, "ram", app->policy.ram);
    put_uint(out, "slot", eo_store_slot_size(&app->store));
    put_uint(out, "floor", record->floor);
    put_uint(out, "outcome", record->outcome);
    put_bool(out, "trial", record->trial == EO_TRIAL_RUNNING);
    if (app->loaded) {
        put_text(out, "model", app->blob.name);
        put_text(out, "version", app->blob.version);
        put_uint(out, "counter", app->blob.counter);
        put_bytes(out, "hash", app->blob.identity, sizeof app->blob.identity);
        put_uint(out, "in", app->blob.input.size);
        put_uint(out, "out", app->blob.output.size);
    }
    return done;
}

static result model_input(eo_app *app, request in, eo_cbor_writer *out) {
    eo_cbor_item offset, data;
    if (!find(in, "off", EO_CBOR_UINT, &offset) || !find(in, "data", EO_CBOR_BYTES, &data)) {
        return invalid;
    }
    if (!app->loaded) {
        return result_of(EO_EMPTY);
    }
    uint32_t size = app->blob.input.size;
    if (offset.value > size || data.value > size - offset.value) {
        return result_of(EO_SIZE);
    }
    if (offset.value <= app->input_taken) { /* the next bytes, or a repetition */
        memcpy(app->input + offset.value, data.data, data.value);
        app->input_taken = offset.value + data.value;
        app->ran = false;
    }
    eo_cbor_map(out, 1);
    put_uint(out, "off", app->input_taken);
    return done;
}

static int32_t call_model(const eo_app *app) {
    const uint8_t *blob = eo_board_code(eo_store_slot_address(&app->store, app->store.running));
    uintptr_t entry = (uintptr_t)(blob + app->blob.entry);
#ifdef __thumb__
    entry |= 1u;
#endif
    return ((eo_model_run)entry)(app->input, app->output, app->arena);
}

static result model_run(eo_app *app, request in, eo_cbor_writer *out) {
    (void)in;
    if (!app->loaded) {
        return result_of(EO_EMPTY);
    }
    if (app->input_taken != app->blob.input.size) {
        return result_of(EO_OFFSET);
    }
    uint32_t begin = eo_board_ticks();
    int32_t failed = call_model(app);
    uint32_t ticks = eo_board_ticks() - begin;
    app->inferences++;
    app->ran = failed == 0;
    if (!app->ran) {
        app->failures++;
        return (result){RC_FAILED, NULL};
    }
    app->ticks_last = ticks;
    app->ticks_max = ticks > app->ticks_max ? ticks : app->ticks_max;
    eo_cbor_map(out, 3);
    put_uint(out, "ticks", ticks);
    put_uint(out, "hz", eo_board_ticks_hz());
    put_uint(out, "len", app->blob.output.size);
    return done;
}

static result model_output(eo_app *app, request in, eo_cbor_writer *out) {
    enum { ROOM_FOR_KEYS = 32 };
    eo_cbor_item offset;
    if (!find(in, "off", EO_CBOR_UINT, &offset)) {
        return invalid;
    }
    if (!app->ran) {
        return result_of(EO_EMPTY);
    }
    if (offset.value > app->blob.output.size) {
        return result_of(EO_OFFSET);
    }
    uint32_t left = app->blob.output.size - offset.value;
    uint32_t room = (uint32_t)out->capacity - ROOM_FOR_KEYS;
    eo_cbor_map(out, 2);
    put_uint(out, "off", offset.value);
    put_bytes(out, "data", app->output + offset.value, left < room ? left : room);
    return done;
}

static const struct {
    uint16_t group;
    uint8_t command;
    uint8_t op;
    handler handle;
} commands[] = {
    {0, 0, OP_WRITE, echo},          {0, 5, OP_WRITE, reset},           {0, 6, OP_READ, parameters},
    {0, 7, OP_READ, system_info},    {1, 0, OP_READ, image_state},      {1, 0, OP_WRITE, set_image_state},
    {1, 1, OP_WRITE, upload},        {1, 5, OP_WRITE, erase},           {2, 0, OP_READ, statistics},
    {2, 1, OP_READ, statistics_list}, {224, 0, OP_READ, model_info},     {224, 1, OP_WRITE, model_input},
    {224, 2, OP_WRITE, model_run},   {224, 3, OP_READ, model_output},
};

static handler handler_of(const uint8_t *header) {
    uint16_t group = (uint16_t)(header[4] << 8 | header[5]);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (commands[i].group == group && commands[i].command == header[7] && commands[i].op == (header[0] & 7u)) {
            return commands[i].handle;
        }
    }
    return NULL;
}

size_t eo_app_answer(eo_app *app, const uint8_t *packet, size_t length) {
    if (length < EO_PACKET_HEADER || (size_t)(packet[2] << 8 | packet[3]) != length - EO_PACKET_HEADER) {
        return 0;
    }
    uint8_t op = packet[0] & 7u;
    if (op != OP_READ && op != OP_WRITE) {
        return 0;
    }
    app->requests++;
    request in = {packet + EO_PACKET_HEADER, length - EO_PACKET_HEADER};
    eo_cbor_writer out = {app->answer + EO_PACKET_HEADER, sizeof app->answer - EO_PACKET_HEADER, 0, false};
    handler handle = handler_of(packet);
    result end = handle == NULL                         ? (result){RC_UNSUPPORTED, NULL}
                 : eo_cbor_is_map(in.map, in.length) ? handle(app, in, &out)
                                                        : invalid;
    if (end.rc == RC_OK && out.overflow) {
        end = result_of(EO_SIZE);
    }
    if (end.rc != RC_OK) {
        app->errors++;
        out.length = 0;
        out.overflow = false;
        eo_cbor_map(&out, end.reason != NULL ? 2 : 1);
        put_uint(&out, "rc", end.rc);
        if (end.reason != NULL) {
            put_text(&out, "rsn", end.reason);
        }
    }
    memcpy(app->answer, packet, EO_PACKET_HEADER);
    app->answer[0] = (uint8_t)((packet[0] & 0xF8u) | (op + 1u));
    app->answer[1] = 0;
    app->answer[2] = (uint8_t)(out.length >> 8);
    app->answer[3] = (uint8_t)out.length;
    return EO_PACKET_HEADER + out.length;
}
