"""External delegates of LiteRT: a real library with the documented interface, built here, and libraries that fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from affine_models import write_tflite

from edgeops.contracts.errors import EdgeopsError
from edgeops.runtimes.protocol import LoadOptions
from edgeops.runtimes.registry import backend

A = np.array([[1.0, -2.5, 3.0, 0.0]], np.float32)
B = np.array([[0.5, 0.25, -8.0, 4.0]], np.float32)
# The interface of TensorFlow Lite's external_delegate_interface.h and `TfLiteDelegate` of common.h. It takes no
# operator; `device` is written to the file `told`, and some devices are refused.
_DELEGATE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Delegate {
  void *data;
  int (*prepare)(void *context, struct Delegate *self);
  void *from_handle, *to_handle, *free_handle;
  int64_t flags;
  void *opaque;
};

static int ready(void *context, struct Delegate *self) { (void)context; (void)self; return 0; }
static int broken(void *context, struct Delegate *self) { (void)context; (void)self; return 1; }

struct Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  const char *device = "", *told = NULL;
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(keys[i], "device")) device = values[i];
    if (!strcmp(keys[i], "told")) told = values[i];
  }
  if (!strcmp(device, "unplugged")) { report("no device is plugged in"); return NULL; }
  struct Delegate *made = calloc(1, sizeof *made);
  made->prepare = strcmp(device, "broken") ? ready : broken;
  if (told) { FILE *file = fopen(told, "w"); fputs(device, file); fclose(file); }
  return made;
}

void tflite_plugin_destroy_delegate(struct Delegate *made) { free(made); }
"""
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not there: apt-get install gcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delegate")
    (folder / "delegate.c").write_text(_DELEGATE)
    target = folder / "libbenchtop.so"
    words = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(target), str(folder / "delegate.c")]
    subprocess.run(words, check=True, timeout=60)
    return target


@needs_gcc
def test_litert_runs_on_a_delegate_that_the_profile_names(library: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    options = {"delegate": str(library), "delegate.device": "usb:0", "delegate.told": str(told)}
    session = backend("litert").load(write_tflite(tmp_path / "m.tflite"), LoadOptions(options=options))
    assert session.provider == str(library)
    assert told.read_text() == "usb:0"
    np.testing.assert_array_equal(session.run({"a": A, "b": B})["total"], A + B)
    session.close()


@needs_gcc
@pytest.mark.parametrize(("device", "why"), [("unplugged", "no device is plugged in"), ("broken", "")])
def test_litert_goes_on_without_a_delegate_that_cannot_work(
    library: Path, tmp_path: Path, device: str, why: str
) -> None:
    options = {"delegate": str(library), "delegate.device": device}
    session = backend("litert").load(write_tflite(tmp_path / "m.tflite"), LoadOptions(options=options))
    assert session.provider.startswith(f"XNNPACK ({library}: ")
    assert why in session.provider
    np.testing.assert_array_equal(session.run({"a": A, "b": B})["gap"], A - B)


@pytest.mark.parametrize("name", ["libedgetpu-that-nobody-has.so.1", "libm.so.6"])
def test_litert_says_why_a_library_is_no_delegate(tmp_path: Path, name: str) -> None:
    """One that is not there, and one that is something else."""
    artifact = write_tflite(tmp_path / "m.tflite")
    session = backend("litert").load(artifact, LoadOptions(options={"delegate": name, "xnnpack": "off"}))
    assert session.provider.startswith(f"built-in kernels ({name}: ")
    np.testing.assert_array_equal(session.run({"a": A, "b": B})["total"], A + B)


def test_litert_that_can_run_nothing_without_its_delegate_names_both_reasons(tmp_path: Path) -> None:
    artifact = write_tflite(tmp_path / "m.tflite")
    artifact.write_bytes(artifact.read_bytes()[: artifact.stat().st_size // 2])
    with pytest.raises(EdgeopsError, match="libedgetpu-that-nobody-has") as caught:
        backend("litert").load(artifact, LoadOptions(options={"delegate": "libedgetpu-that-nobody-has.so.1"}))
    assert caught.value.code == "E-RUNTIME-LOAD"
