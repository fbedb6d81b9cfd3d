"""The real esptool, in an environment of its own, writes to a chip that speaks the ROM's protocol."""

from __future__ import annotations

import random
import subprocess
import sys
import venv
from collections.abc import Iterator

import pytest
from esp32_rom import DEFL_DATA, FLASH_DATA, MEM_DATA, Esp32Rom

from edgeops.contracts.errors import EdgeopsError
from firmware_bridge.flashers import Options
from firmware_bridge.flashers.tools import EspTool

# esptool itself comes as source only.
REQUIREMENTS = (
    "esptool==5.6.0", "esp-pylib==1.2.0", "pyserial==3.5", "cryptography==50.0.2", "cffi==2.1.1",
    "pycparser==3.12", "click==8.5.1", "intelhex==2.3.0", "PyYAML==6.0.4", "reedsolo==1.7.0", "rich==15.0.0",
    "rich-click==1.9.9", "markdown-it-py==4.3.0", "mdurl==0.1.2", "Pygments==2.21.0", "websockets==17.4",
)  # fmt: skip
PLACE = 0x10000
IMAGE = random.Random(7).randbytes(40_000) + b"the end"
pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("esptool") / "env"
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *REQUIREMENTS]
    subprocess.run(pip, check=True, timeout=500)
    return python


@pytest.fixture(autouse=True)
def real_tool(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", environment)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.fixture
def chip() -> Iterator[Esp32Rom]:
    with Esp32Rom() as made:
        yield made


def way(chip: Esp32Rom, name: str = "esp32") -> EspTool:
    return EspTool(chip.port, Options(PLACE, name))


@pytest.mark.parametrize(
    ("image", "comes_by"), [(IMAGE, FLASH_DATA), (bytes(range(256)) * 150 + b"the end", DEFL_DATA)],
    ids=["as it is", "deflated"],
)  # fmt: skip
def test_an_image_is_written_verified_and_started(chip: Esp32Rom, image: bytes, comes_by: int):
    one = way(chip)
    found = one.probe()
    assert found.board.startswith("ESP32-D0WDQ6")
    assert found.facts["Features"].startswith("Wi-Fi")
    with pytest.raises(EdgeopsError) as caught:
        one.verify(image)
    assert caught.value.code == "E-MCU-ANSWER"
    one.write(image)
    assert {MEM_DATA, comes_by} <= set(chip.commands), "a stub is loaded first"
    assert chip.flash[PLACE : PLACE + len(image)] == image
    assert set(chip.flash[:PLACE]) == set(chip.flash[PLACE + len(image) + 4096 :]) == {0xFF}
    one.verify(image)
    one.reset()


def test_a_flash_that_keeps_a_wrong_bit_is_told():
    with Esp32Rom(flips=(PLACE + 20_000,)) as chip:
        one = way(chip)
        with pytest.raises(EdgeopsError) as caught:
            one.write(IMAGE)
        assert caught.value.code == "E-MCU-REFUSED"
        with pytest.raises(EdgeopsError) as caught:
            one.verify(IMAGE)
        assert caught.value.code == "E-MCU-ANSWER"


def test_another_chip_than_was_said_is_refused_and_keeps_its_flash(chip: Esp32Rom):
    with pytest.raises(EdgeopsError) as caught:
        way(chip, "esp32s3").write(IMAGE)
    assert caught.value.code == "E-MCU-REFUSED"
    assert set(chip.flash) == {0xFF}
