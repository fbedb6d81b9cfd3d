"""Preprocessing steps: what they do to values and shapes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.contracts.handover import Cast, ChannelOrder, Layout, Normalize, Reshape, Resize, Scale
from edgeops.runtimes.steps import TensorForm, apply, propagate

FORM = TensorForm("uint8", (1, 4, 6, 3))


def test_every_step_changes_values_and_form_alike():
    steps = (
        Cast(),
        ChannelOrder(order=(2, 1, 0)),
        Resize(height=8, width=3, interpolation="linear"),
        Normalize(mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 4.0)),
        Scale(by=2.0, offset=-1.0),
        Layout(change="NHWC->NCHW"),
        Reshape(shape=(1, 72)),
    )
    values = apply(steps, np.arange(72, dtype=np.uint8).reshape(FORM.shape))
    form = propagate(steps, FORM, where="input")
    assert (values.dtype.name, values.shape) == form == ("float32", (1, 72))


def test_order_scale_and_layout_do_what_they_say():
    pixel = np.array([[[[10, 20, 30]]]], np.uint8)
    steps = (Cast(), ChannelOrder(order=(2, 1, 0)), Scale(by=0.5, offset=1.0), Layout(change="NHWC->NCHW"))
    assert apply(steps, pixel).ravel().tolist() == [16.0, 11.0, 6.0]
    assert apply(steps, pixel).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("interpolation", "wanted"), [("linear", [0.0, 0.25, 0.75, 1.0]), ("nearest", [0.0, 0.0, 1.0, 1.0])]
)
def test_resize_uses_half_pixel_centres(interpolation, wanted):
    row = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1)
    assert apply((Resize(height=1, width=4, interpolation=interpolation),), row).ravel().tolist() == wanted


@pytest.mark.parametrize(
    "step",
    [
        Scale(by=2.0),
        Resize(height=2, width=2, interpolation="linear"),
        Normalize(mean=(0.0,), std=(1.0,)),
        ChannelOrder(order=(0, 1)),
        ChannelOrder(order=(0, 0, 1)),
        Reshape(shape=(1, 71)),
        Reshape(shape=(-1, 72)),
    ],
)
def test_step_that_does_not_fit_is_refused_with_its_place(step):
    with pytest.raises(EdgeopsError) as caught:
        propagate((step,), FORM, where="input 'image'")
    assert caught.value.code == "E-HANDOVER-STEP"
    assert "input 'image': preprocess[0]" in caught.value.what
