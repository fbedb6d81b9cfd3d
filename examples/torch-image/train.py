"""Train a small convolutional network on MNIST with PyTorch, and hand it over."""

import sys

import torch
from torch import nn

import edgeops
from benchmarks.models.mnist_cnn import digits

torch.manual_seed(7)
images, labels = digits("train")  # uint8 [60000, 28, 28, 1], int64 [60000]
test_images, test_labels = digits("t10k")
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
)  # fmt: skip
x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for part in torch.randperm(len(x)).split(128):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[part]), y[part]).backward()
    optimizer.step()

steps = [{"step": "cast"}, {"step": "scale", "by": 1 / 255}, {"step": "layout", "change": "NHWC->NCHW"}]
done = edgeops.handover(
    model, images[:256], out=sys.argv[1], name="mnist", labels=range(10), preprocess=steps,
    postprocess=[{"step": "softmax"}], evaluation=(test_images[:2000], test_labels[:2000]),
)  # fmt: skip
print(f"{done.folder} is handed over")
