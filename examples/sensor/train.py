"""Train a forest and a network on a smart watch's labelled movements, and hand both over."""

import sys

from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import edgeops
from benchmarks.models.basic_motions import CLASSES, TEST, TRAIN, windows

train, train_y = windows(TRAIN)  # float32 [n, 6 channels, 50 moments]
test, test_y = windows(TEST)
flat = [{"step": "reshape", "shape": [1, 300]}]
models = {
    "tree": RandomForestClassifier(n_estimators=40, random_state=7),
    "mlp": make_pipeline(StandardScaler(), MLPClassifier((32,), max_iter=300, random_state=7)),
}
for kind, model in models.items():
    model.fit(train.reshape(len(train), -1), train_y)
    edgeops.handover(
        model, train, out=f"{sys.argv[1]}/{kind}", name=f"motions-{kind}", labels=CLASSES, preprocess=flat,
        evaluation=(test, test_y),
    )  # fmt: skip
    print(f"{kind}: accuracy here {model.score(test.reshape(len(test), -1), test_y):.3f}")
