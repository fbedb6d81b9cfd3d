"""Take a published voice activity detector, which carries state, and hand it over."""

import sys

import edgeops
from benchmarks.models.silero_vad import MODEL, spoken
from edgeops.cli.demo.packages import fetch

model = fetch(MODEL)
samples = spoken(model)  # the inputs of each call: sound, the state as the last call left it, the rate
calibration, evaluation = (
    {name: values[part] for name, values in samples.items()} for part in (slice(40), slice(40, None))
)

done = edgeops.handover(
    model,
    calibration,
    out=sys.argv[1],
    name="voice-activity",
    states={"state": "stateN"},
    evaluation=(evaluation, None),
)
print(f"{done.folder} is handed over")
