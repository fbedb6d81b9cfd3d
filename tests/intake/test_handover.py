"""Hand-overs are proved before work starts: every wrong one is refused with its place and the next step."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeops.contracts.errors import EdgeopsError
from edgeops.intake import handover
from edgeops.testkit.handovers import write_shapes_handover


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_handover(tmp_path_factory.mktemp("shapes") / "handover", calibration=8, evaluation=12)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "handover"))


def refused(folder: Path) -> EdgeopsError:
    with pytest.raises(EdgeopsError) as caught:
        handover.read(folder)
    return caught.value


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "handover.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_good_handover_is_read_whole(folder: Path):
    loaded = handover.read(folder)
    assert loaded.calibration["image"].shape == (8, 1, 8, 8, 1)
    assert loaded.evaluation is not None
    assert loaded.evaluation.labels.shape == (12,)
    assert loaded.model.inputs[0].shape == (-1, 1, 8, 8)
    assert loaded.model.weights_bytes > 1000
    assert set(loaded.file_digests) == {"model.onnx", "calibration.npz", "evaluation.npz"}


def test_digest_covers_declaration_model_and_data_but_not_the_place(folder: Path, tmp_path: Path):
    first = handover.read(folder).digest
    assert handover.read(Path(shutil.copytree(folder, tmp_path / "elsewhere"))).digest == first
    edit(folder, 'name = "shapes"', 'name = "shapes"\ndescription = "another"')
    second = handover.read(folder).digest
    images = np.load(folder / "calibration.npz")["image"]
    np.savez(folder / "calibration.npz", image=images[::-1])
    assert len({first, second, handover.read(folder).digest}) == 3


def test_samples_may_leave_out_a_batch_axis_of_one(folder: Path):
    with_axis = handover.read(folder).calibration["image"]
    np.savez(folder / "calibration.npz", image=with_axis)
    assert (handover.read(folder).calibration["image"] == with_axis).all()


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('file = "model.onnx"', 'file = "model.onnx"\nfolder = "x"', "$.model"),
        ('dtype = "uint8"', 'dtyp = "uint8"', "dtyp"),
        ('kind = "probabilities"', 'kind = "guesses"', "$.outputs[0].kind"),
        ('step = "cast"', 'step = "bake"', "$.inputs[0].preprocess[0]"),
        ("schema = 1", "schema = 99", "schema"),
        ("schema = 1", "schema = [", "TOML"),
        ('dtype = "uint8"', 'dtype = "complex64"', "complex64"),
        ('name = "image"', 'name = ""', "name of its own"),
    ],
)
def test_wrong_key_or_value_is_named(folder: Path, old: str, new: str, place: str):
    edit(folder, old, new)
    error = refused(folder)
    assert error.code == "E-HANDOVER-KEY"
    assert place in error.what
    assert error.exit_status == 2


@pytest.mark.parametrize("name", ["handover.toml", "model.onnx", "calibration.npz", "evaluation.npz"])
def test_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    error = refused(folder)
    assert error.code == "E-HANDOVER-MISSING"
    assert name in error.what


@pytest.mark.parametrize("path", ["../outside.npz", "/etc/passwd", "link.npz"])
def test_no_file_outside_the_folder_is_read(folder: Path, path: str):
    shutil.copyfile(folder / "calibration.npz", folder.parent / "outside.npz")
    (folder / "link.npz").symlink_to(folder.parent / "outside.npz")
    edit(folder, 'file = "calibration.npz"', f'file = "{path}"')
    assert refused(folder).code == "E-PATH-ESCAPE"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("shape = [1, 8, 8, 1]", "shape = [1, 8, 9, 1]", "E-HANDOVER-SHAPE"),
        ("shape = [1, 8, 8, 1]", "shape = [1, 0, 8, 1]", "E-HANDOVER-SHAPE"),
        ("shape = [1, 8, 8, 1]", "shape = [100000, 100000, 8, 1]", "E-HANDOVER-SHAPE"),
        ('model_input = "x"', 'model_input = "z"', "E-HANDOVER-SHAPE"),
        ('model_output = "y"', 'model_output = "z"', "E-HANDOVER-SHAPE"),
        (', "dots"]', "]", "E-HANDOVER-SHAPE"),
        ('  { step = "cast" },\n', "", "E-HANDOVER-STEP"),
        ("mean = [127.5]", "mean = [1.0, 2.0]", "E-HANDOVER-STEP"),
        ("std = [127.5]", "std = [0.0]", "E-HANDOVER-STEP"),
    ],
)
def test_declaration_that_disagrees_with_the_model_is_refused(folder: Path, old: str, new: str, code: str):
    edit(folder, old, new)
    assert refused(folder).code == code


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"picture": np.zeros((4, 8, 8, 1), np.uint8)}, "E-DATA-SHAPE"),
        ({"image": np.zeros((4, 8, 9, 1), np.uint8)}, "E-DATA-SHAPE"),
        ({"image": np.zeros((4, 8, 8, 1), np.float32)}, "E-DATA-SHAPE"),
        ({"image": np.zeros((0, 8, 8, 1), np.uint8)}, "E-DATA-SHAPE"),
        ({"image": np.uint8(3)}, "E-DATA-SHAPE"),
        ({"image": np.array([{"a": 1}], dtype=object)}, "E-DATA-SHAPE"),
    ],
)
def test_calibration_data_of_wrong_form_are_refused(folder: Path, arrays: dict[str, np.ndarray], code: str):
    np.savez(folder / "calibration.npz", **arrays)
    error = refused(folder)
    assert error.code == code
    assert "calibration.npz" in error.what


def test_nan_in_data_is_refused_with_its_sample(folder: Path):
    edit(folder, 'dtype = "uint8"', 'dtype = "float32"')
    images = np.zeros((5, 8, 8, 1), np.float32)
    np.savez(folder / "evaluation.npz", image=images, labels=np.zeros(5, np.int64))
    images[3, 2, 2, 0] = np.nan
    np.savez(folder / "calibration.npz", image=images)
    error = refused(folder)
    assert error.code == "E-DATA-VALUES"
    assert "sample 3" in error.what


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01\x00"])
def test_data_file_that_is_no_npz_is_refused(folder: Path, content: bytes):
    (folder / "calibration.npz").write_bytes(content)
    assert refused(folder).code == "E-DATA-SHAPE"


@pytest.mark.parametrize("labels", [None, np.zeros(5, np.int64), np.zeros(12, np.float32)])
def test_labels_that_do_not_fit_are_refused(folder: Path, labels: np.ndarray | None):
    arrays = {"image": np.load(folder / "evaluation.npz")["image"]}
    np.savez(folder / "evaluation.npz", **(arrays if labels is None else {**arrays, "labels": labels}))
    assert refused(folder).code == "E-DATA-SHAPE"


def test_reference_lists_every_key_and_step():
    """docs/reference/handover.md names each key of each table, and each step."""
    from edgeops.contracts import handover as words
    from edgeops.contracts.profile import Budgets

    text = (Path(__file__).parents[2] / "docs" / "reference" / "handover.md").read_text()
    tables = [
        words.Handover, words.ModelFile, words.Input, words.Output, words.Samples, words.Evaluation, words.Gates,
        Budgets, words.Cast, words.Scale, words.Normalize, words.ChannelOrder, words.Layout, words.Resize,
        words.Reshape, words.Crop, words.Pad, words.Standardize, words.Frame, words.Window, words.LogMel, words.Softmax,
        words.ArgMax, words.TopK,
    ]  # fmt: skip
    names = {field.encode_name for table in tables for field in msgspec.structs.fields(table)}
    names |= {str(step.__struct_config__.tag) for step in tables[8:]}
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing
