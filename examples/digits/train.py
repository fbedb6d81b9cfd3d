"""Train a network on scikit-learn's labelled digits, and hand it over."""

import sys

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import edgeops

x, y = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=0.5, random_state=7, stratify=y)
model = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=400, random_state=7)).fit(train_x, train_y)

done = edgeops.handover(model, train_x, out=sys.argv[1], name="digits", evaluation=(test_x, test_y))
print(f"{done.folder} is handed over; accuracy here {model.score(test_x, test_y):.3f}")
