"""MCUboot images that the real imgtool signs: checked before anything is sent, and installed on a server of MCUmgr."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from imgtool.main import imgtool
from mcuboot_device import SLOT_SIZE, McubootDevice, described, hash_of
from smpclient import SMPClient
from smpclient.generics import success
from smpclient.requests.image_management import ImageStatesRead, ImageStatesWrite
from smpclient.transport.serial import SMPSerialTransport

from edgeops.cli.mcu import command
from edgeops.contracts.errors import EdgeopsError
from firmware_bridge import mcuboot
from firmware_bridge.flashers import Options
from firmware_bridge.flashers.smp import SmpFlasher
from firmware_bridge.link import SmpLink
from firmware_bridge.ports import SerialPort

KINDS = ("ed25519", "ecdsa-p256", "rsa-2048")
BODY = random.Random(5).randbytes(20_000)
PROTECTED = ("--security-counter", "7", "--custom-tlv", "0x00a0", "0x0102")


def tool(*words: str | Path) -> None:
    done = CliRunner().invoke(imgtool, [str(word) for word in words])
    assert done.exit_code == 0, done.output


class Signer:
    """A key, and what it signs."""

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        self.folder, self.private, self.public = folder, folder / f"{name}.pem", folder / f"{name}.pub.pem"
        tool("keygen", "-k", self.private, "-t", kind)
        tool("getpub", "-k", self.private, "-e", "pem", "-o", self.public)

    def sign(self, version: str = "1.2.3", body: bytes = BODY, *more: str | Path, key: bool = True) -> bytes:
        source, signed = self.folder / "body.bin", self.folder / "signed.bin"
        source.write_bytes(body)
        words = ["sign", "--header-size", "0x200", "--pad-header", "--align", "4", "--slot-size", hex(SLOT_SIZE)]
        tool(*words, "--version", version, *(("--key", self.private) if key else ()), *more, source, signed)
        return signed.read_bytes()


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Signer]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: Signer(folder, name, name.removeprefix("other-")) for name in (*KINDS, "other-ed25519")}


@pytest.fixture(scope="module")
def signer(signers: dict[str, Signer]) -> Signer:
    return signers["ed25519"]


@pytest.fixture
def device(signer: Signer) -> Iterator[McubootDevice]:
    with McubootDevice(signer.public, signer.sign("1.0.0", b"old" * 100)) as made:
        yield made


def way(device: McubootDevice, key: Path | None = None) -> SmpFlasher:
    return SmpFlasher(device.url, Options(key=key))


def running(device: McubootDevice) -> str:
    info = described(device.slots[0])
    assert info is not None
    version = info.header.ver
    return f"{version.major}.{version.minor}.{version.revision}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_image_is_read_as_others_read_it_and_is_its_keys(kind: str, signers: dict[str, Signer]):
    data = signers[kind].sign("1.2.3+4", BODY, *PROTECTED)
    image = mcuboot.verify(data, signers[kind].public)
    other = described(data)
    assert other is not None
    assert image.hash == hash_of(data)
    assert (image.version, image.counter, len(image.signatures)) == ("1.2.3.4", 7, 1)
    assert mcuboot.verify(data, signers[kind].private) == image
    stranger = next(signer for name, signer in signers.items() if name != kind)
    with pytest.raises(EdgeopsError, match="not signed by the key") as caught:
        mcuboot.verify(data, stranger.public)
    assert caught.value.code == "E-MCU-IMAGE"


def test_a_signature_over_the_whole_image_holds_too(signer: Signer, signers: dict[str, Signer]):
    data = signer.sign("1.2.3", BODY, "--pure")
    mcuboot.verify(data, signer.public)
    with pytest.raises(EdgeopsError, match="not signed by the key"):
        mcuboot.verify(data, signers["other-ed25519"].public)


def changed(data: bytes, at: int, to: bytes) -> bytes:
    at %= len(data)
    return data[:at] + to + data[at + len(to) :]


def forged(signer: Signer, other: Signer) -> bytes:
    """Another body under the right hash, with the signature of the first."""
    good, evil = signer.sign(), other.sign(body=BODY[::-1])
    return evil[:-64] + good[-64:]


BAD = {
    "nothing": (lambda _s, _o: b"", "does not begin as one"),
    "a HEX file": (lambda _s, _o: b":020000040000FA\n" * 9, "does not begin as one"),
    "a header alone": (lambda s, _o: s.sign()[:32], "do not fit"),
    "cut off in its body": (lambda s, _o: s.sign()[:5_000], "do not fit"),
    "cut off before its TLVs": (lambda s, _o: s.sign()[: 0x200 + len(BODY)], "ends before its TLVs"),
    "cut off in its TLVs": (lambda s, _o: s.sign()[:-70], "its TLVs begin with 0x6907"),
    "a body that changed": (lambda s, _o: changed(s.sign(), 9_000, b"\0\0\0\0"), "not those that its hash names"),
    "a version that changed": (lambda s, _o: changed(s.sign(), 20, b"\x09"), "not those that its hash names"),
    "a counter that changed": (
        lambda s, _o: changed(s.sign("1.2.3", BODY, *PROTECTED), 0x200 + len(BODY) + 8, b"\xff"), "not those that",
    ),
    "a header that lies": (lambda s, _o: changed(s.sign(), 8, b"\x10\0"), "do not fit"),
    "a body size that lies": (lambda s, _o: changed(s.sign(), 12, b"\xff\xff\xff\xff"), "do not fit"),
    "protected TLVs that lie": (lambda s, _o: changed(s.sign(), 10, b"\x08\0"), "its TLVs begin with 0x6907"),
    "a TLV without end": (lambda s, _o: changed(s.sign(), 0x200 + len(BODY) + 6, b"\xff\xff"), "is cut off"),
    "bytes behind it": (lambda s, _o: s.sign() + b"\0", "1 bytes follow"),
    "padded for a slot": (lambda s, _o: s.sign("1.2.3", BODY, "--pad"), "bytes follow its TLVs"),
    "no signature": (lambda s, _o: s.sign(key=False), "has no signature"),
    "another key": (lambda _s, o: o.sign(), "not signed by the key"),
    "the signature of another image": (forged, "not signed by the key"),
    "a signature that changed": (lambda s, _o: changed(s.sign(), -1, b"\x5a"), "not signed by the key"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_before_anything_is_sent(name: str, signers: dict[str, Signer], device: McubootDevice):
    make, why = BAD[name]
    data = make(signers["ed25519"], signers["other-ed25519"])
    one = way(device, signers["ed25519"].public)
    for act in (one.plan, one.write, one.verify) if mcuboot.is_image(data) else (lambda data: mcuboot.read(data),):
        with pytest.raises(EdgeopsError, match=why) as caught:
            act(data)
        assert caught.value.code == "E-MCU-IMAGE"
    assert device.requests == []


def test_an_encrypted_image_is_refused(signers: dict[str, Signer]):
    key = signers["ecdsa-p256"]
    with pytest.raises(EdgeopsError, match="encrypted") as caught:
        mcuboot.read(key.sign("1.2.3", BODY, "--encrypt", key.public))
    assert caught.value.code == "E-MCU-IMAGE"


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_refused(text: str, signer: Signer, tmp_path: Path):
    (tmp_path / "key.pem").write_text(text)
    with pytest.raises(EdgeopsError) as caught:
        mcuboot.verify(signer.sign(), tmp_path / "key.pem")
    assert caught.value.code == "E-CONFIG"


@settings(max_examples=300, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 699), st.integers(1, 255)), min_size=1, max_size=4), cut=st.integers(0, 9)
)
def test_a_changed_image_is_refused_or_says_the_same(signer: Signer, places: list[tuple[int, int]], cut: int):
    good = signer.sign(body=bytes(60))
    assert len(good) > 700
    data = bytearray(good[: len(good) - cut] if cut else good)
    for place, change in places:
        data[place] ^= change
    end = 0x200 + 60
    try:
        image = mcuboot.read(bytes(data))
    except EdgeopsError as error:
        refused = error.code
    else:
        # Whatever reads on is what its hash names; a key's hash and a signature may have changed.
        assert (bytes(data[:end]), image.hash) == (good[:end], mcuboot.read(good).hash)
        return
    assert refused == "E-MCU-IMAGE"


def test_an_image_is_installed_tried_and_confirmed_by_the_command(
    signer: Signer, device: McubootDevice, tmp_path: Path
):
    file = tmp_path / "app.signed.bin"
    file.write_bytes(signer.sign())
    done = CliRunner().invoke(command, ["install", device.url, str(file), "--key", str(signer.public)])
    assert done.exit_code == 0, done.output
    assert "upload MCUboot image 1.2.3" in done.output
    assert done.output.endswith("firmware 1.2.3 is confirmed\n")
    assert (running(device), device.confirmed) == ("1.2.3", True)
    device.reset()
    assert running(device) == "1.2.3"
    sent = device.requests.count("ImageUploadWrite")
    again = CliRunner().invoke(command, ["install", device.url, str(file), "--key", str(signer.public)])
    assert again.exit_code == 0, again.output
    assert 0 < sent == device.requests.count("ImageUploadWrite"), "what runs already is not sent again"


def test_an_image_that_is_flashed_runs_on_trial_and_the_next_reset_ends_it(signer: Signer, device: McubootDevice):
    data = signer.sign()
    one = way(device, signer.public)
    assert one.probe().board == "Zephyr"
    assert one.probe().facts["slot 0"].startswith("1.0.0 ")
    with pytest.raises(EdgeopsError, match="no slot holds"):
        one.verify(data)
    one.write(data)
    one.verify(data)
    assert running(device) == "1.0.0", "nothing runs before the reset"
    one.reset()
    assert (running(device), device.confirmed) == ("1.2.3", False)
    device.reset()
    assert (running(device), device.confirmed) == ("1.0.0", True)
    with pytest.raises(EdgeopsError, match=r"it runs 1\.0\.0") as caught:
        one.confirm(data)
    assert caught.value.code == "E-MCU-REFUSED"


def test_an_upload_survives_resets_that_make_the_server_forget_it(signer: Signer, device: McubootDevice):
    device.reset_after_uploads = 9
    data = signer.sign()
    with SmpLink(SerialPort(device.url), answer_within_s=1.0) as link:
        link.upload(data)
    assert device.slots[1] == data


def test_an_upload_that_was_cut_off_goes_on(signer: Signer, device: McubootDevice):
    data, told = signer.sign(), []

    class Cut(Exception):
        pass

    def cut(done: int, _whole: int) -> None:
        if done > 8_000:
            raise Cut

    with contextlib.suppress(Cut), SmpLink(SerialPort(device.url)) as link:
        link.upload(data, on_progress=cut)
    with SmpLink(SerialPort(device.url)) as link:
        link.upload(data, on_progress=lambda done, _: told.append(done))
    assert told[0] > 8_000
    assert device.slots[1] == data


def test_what_the_boot_loader_does_not_take_leaves_what_ran(signers: dict[str, Signer], device: McubootDevice):
    """Without a key here, the device's own check is the last one."""
    data = signers["other-ed25519"].sign()
    one = way(device)
    assert "its boot loader checks who signed" in one.plan(data)[0]
    one.write(data)
    one.reset()
    assert running(device) == "1.0.0"
    with pytest.raises(EdgeopsError, match="did not take the image"):
        one.confirm(data)


class EqualToAll(bytes):
    def __ne__(self, _other: object) -> bool:
        return False


def test_without_the_look_at_its_hash_a_changed_image_is_sent(
    signer: Signer, device: McubootDevice, monkeypatch: pytest.MonkeyPatch
):
    """Negative control; and the boot loader is the last to look."""
    data = changed(signer.sign(), 9_000, b"\0\0\0\0")
    with pytest.raises(EdgeopsError, match="not those that its hash names"):
        way(device).write(data)
    monkeypatch.setattr(mcuboot, "hashlib", SimpleNamespace(new=lambda *_: SimpleNamespace(digest=EqualToAll)))
    way(device).write(data)
    assert device.slots[1] == data
    device.reset()
    assert running(device) == "1.0.0"


def test_refusals_of_the_server_are_told_in_words(signer: Signer, device: McubootDevice):
    with SmpLink(SerialPort(device.url)) as link:
        with pytest.raises(EdgeopsError, match="too large for the slot"):
            link.upload(signer.sign() + bytes(SLOT_SIZE))
        with pytest.raises(EdgeopsError, match="no MCUboot image"):
            link.upload(b"\0" * 4_000)
        with pytest.raises(EdgeopsError, match="it has no such command"):
            link.model_info()
    one = way(device)
    one.write(signer.sign())
    with pytest.raises(EdgeopsError, match="no slot is free") as caught:
        one.write(signer.sign("2.0.0", BODY[::-1]))
    assert caught.value.code == "E-MCU-REFUSED"
    assert described(device.slots[1]) is not None


def test_the_device_is_one_that_smpclient_updates(signer: Signer, device: McubootDevice):
    """The control of all of the above: another client finds the same server."""
    data = signer.sign()

    async def drive() -> None:
        async with SMPClient(SMPSerialTransport(), device.url) as client:
            offsets = [offset async for offset in client.upload(data)]
            assert offsets[-1] == len(data)
            states = await client.request(ImageStatesRead())
            assert success(states)
            assert [image.version for image in states.images] == ["1.0.0", "1.2.3"]
            assert states.images[1].hash == mcuboot.read(data).hash
            assert success(await client.request(ImageStatesWrite(hash=states.images[1].hash)))

    asyncio.run(drive())
    device.reset()
    assert running(device) == "1.2.3"
