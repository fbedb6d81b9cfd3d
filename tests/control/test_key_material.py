"""A fleet's whole life, then a search: no private key, token or passphrase lies or is told where it must not be."""

from __future__ import annotations

import base64
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from served_fleet import BROKERS, MODEL, make_release, wait_for

from edgeops.client.api import Api
from edgeops.client.rollout_resources import RolloutWish
from edgeops.contracts.enrolment import EnrolmentToken
from edgeops.trust.keys import PASSPHRASE_VARIABLE

PASSPHRASE = "correct horse battery staple"
PROFILE = "intel-nuc"


class Life(NamedTuple):
    """What a fleet left behind, and the secrets that it had."""

    folder: Path
    told: str
    secrets: dict[str, bytes]


def edgeops(*words: object, log: Path) -> str:
    """Run a command as a person does; what it says is kept."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeops", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    with log.open("a") as out:
        out.write(done.stdout + done.stderr)
    return done.stdout


def forms_of(path: Path) -> dict[str, bytes]:
    """A private key in the forms that somebody may write it in: raw, as hex, and inside of base64 at each offset."""
    pem = path.read_bytes()
    key = load_pem_private_key(pem, PASSPHRASE.encode() if b"ENCRYPTED" in pem else None)
    if isinstance(key, EllipticCurvePrivateKey):
        raw = key.private_numbers().private_value.to_bytes(32, "big")
    else:
        assert isinstance(key, Ed25519PrivateKey)
        raw = key.private_bytes_raw()
    inside = {f"{path} as base64 {shift}": base64.b64encode(bytes(shift) + raw)[4:-4] for shift in range(3)}
    return {f"{path} raw": raw, f"{path} as hex": raw.hex().encode(), **inside}


def found_in(content: bytes, secrets: dict[str, bytes]) -> list[str]:
    """The names of the secrets that some bytes hold, also broken into lines."""
    joined = content.replace(b"\n", b"")
    return [name for name, secret in secrets.items() if secret in content or secret in joined]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Init, release, serve, enrol, roll out, fail, rotate, revoke, export and install: under a careless umask."""
    folder = tmp_path_factory.mktemp("life")
    home, device, log = folder / "home", folder / "device", folder / "told.log"
    before = os.umask(0)
    os.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    processes: list[subprocess.Popen[Any]] = []
    try:
        edgeops("trust", "init", "--home", home, "--fleet", "f1", log=log)
        make_release(home, "1.0.0")
        with log.open("a") as out:
            serve = subprocess.Popen(
                [sys.executable, "-m", "edgeops", "serve", "--home", str(home), "--broker", BROKERS[-1], "--verbose"],
                stdout=out, stderr=out,
            )  # fmt: skip
            processes.append(serve)
            wait_for((home / "serve.json").exists, "it does not serve")
            api = Api.from_home(home)
            token = api.create_token(profile=PROFILE).token
            (folder / "token").write_text(token)
            device.mkdir(mode=0o700)
            (device / "agent.toml").write_text("[downloads]\nstart_within_s = 0\n")
            agent = [sys.executable, "-m", "edgeops", "agent", "run", "--state", str(device), "--profile", PROFILE,
                     "--token-file", str(folder / "token"), "--name", "nuc-1", "--verbose"]  # fmt: skip
            processes.append(subprocess.Popen(agent, stdout=out, stderr=out))
            wait_for(lambda: any(d.online for d in api.devices()), "the device did not come")
            # A used token: the refusal must not repeat it.
            again = [str(folder / "second") if word == str(device) else word for word in agent]
            subprocess.run(again, stdout=out, stderr=out, timeout=60, check=False)
            (folder / "token").unlink()
        rollout = api.create_rollout(RolloutWish(model=MODEL, version="1.0.0", start=True))
        wait_for(lambda: api.rollout(rollout.id).state not in ("draft", "running"), "the rollout does not end")
        edgeops("trust", "rotate", "--home", home, "desired-state", log=log)
        edgeops("trust", "rotate", "--home", home, f"model-{MODEL}", log=log)
        edgeops("trust", "status", "--home", home, log=log)
        edgeops("release", "export", "--home", home, MODEL, "1.0.0", "--to", folder / "usb.edgeops",
                "--valid-for", 30, log=log)  # fmt: skip
        edgeops("agent", "install", folder / "usb.edgeops", "--state", device, log=log)
        edgeops("device", "show", "--home", home, "nuc-1", log=log)
        edgeops("trust", "rotate", "--home", home, "no-such-role", log=log)
        os.environ[PASSPHRASE_VARIABLE] = wrong = PASSPHRASE[::-1]
        edgeops("trust", "renew", "--home", home, log=log)
        edgeops("trust", "rotate", "--home", home, "root", log=log)
        told = log.read_text() + repr(api.devices()) + repr(api.tokens()) + repr(api.audit())
        told += msgspec.json.encode(api.device("nuc-1")).decode()
    finally:
        os.environ.pop(PASSPHRASE_VARIABLE)
        os.umask(before)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
    secrets = {
        "passphrase": PASSPHRASE.encode(),
        "wrong passphrase": wrong.encode(),
        "token": token.encode(),
        "token's secret": EnrolmentToken.from_text(token).secret.encode(),
        "API token": (home / "api.token").read_bytes().strip(),
    }
    for path in private_keys(folder):
        secrets.update(forms_of(path))
    return Life(folder, told + log.read_text(), secrets)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def private_keys(folder: Path) -> list[Path]:
    return [path for path in files(folder) if re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----", path.read_bytes())]


def test_the_whole_life_took_place(life: Life):
    """Otherwise there would be nothing to find; and every key that is not encrypted is found in its own file."""
    found = {path.relative_to(life.folder).parts[0] for path in private_keys(life.folder)}
    assert {"home", "device"} <= found
    assert len(private_keys(life.folder)) >= 12
    for path in private_keys(life.folder):
        if b"ENCRYPTED" not in path.read_bytes():
            assert any(name.startswith(f"{path} ") for name in found_in(path.read_bytes(), life.secrets)), path
    for word in ("nuc-1", "is replaced by", "E-TOKEN", "no-such-role", "E-TRUST-KEY", "usb.edgeops"):
        assert word in life.told, word


def test_no_secret_is_told_in_logs_reports_or_errors(life: Life):
    assert found_in(life.told.encode(), life.secrets) == []


def test_no_secret_lies_in_any_file_but_its_own(life: Life):
    """Databases, broker, repository, exported file and device: only the key files and the API's token have them."""
    own = {*private_keys(life.folder), life.folder / "home" / "api.token"}
    for path in files(life.folder):
        content = path.read_bytes()
        present = found_in(content, life.secrets)
        assert not present or path in own, (path, present)
        # The broker reads a copy of the server's key under its own user; nothing else is written twice.
        others = {Path(re.split(" as | raw", name)[0]) for name in present if name.startswith("/")} - {path}
        assert all(other.read_bytes() == content for other in others), (path, present)


def test_private_files_are_their_owners_only_whatever_the_umask(life: Life):
    private = [*private_keys(life.folder), life.folder / "home" / "api.token"]
    assert [path for path in private if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    # The broker's folder belongs to the broker's own user; the others only their owner may enter.
    folders = {path.parent for path in private if path.name != "api.token"}
    assert [path for path in folders if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    assert stat.S_IMODE((life.folder / "device").stat().st_mode) == 0o700


def test_the_search_finds_what_is_there(life: Life):
    """Negative control: one line of one key in a log, and one key in a second file, are found."""
    secret = next(secret for name, secret in life.secrets.items() if "base64 1" in name).decode()
    with pytest.raises(AssertionError):
        test_no_secret_is_told_in_logs_reports_or_errors(life._replace(told=f"{life.told} {secret}"))
    leak = life.folder / "leak"
    leak.write_text(secret)
    try:
        with pytest.raises(AssertionError, match="leak"):
            test_no_secret_lies_in_any_file_but_its_own(life)
    finally:
        leak.unlink()
