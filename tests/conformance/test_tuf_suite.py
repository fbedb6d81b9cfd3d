"""What the public TUF conformance suite asks of a client, asked of ours over real HTTP: its own command, loaded once.

Attack classes that need no server of their own are in tests/trust/test_tuf_attacks.py and test_tuf_delegations.py.
"""

from __future__ import annotations

import argparse
import datetime
import http.server
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

import pytest
from raw_repository import DAY, SIGNERS, RawRepository, kept, version
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Delegations, Metadata, Root, SuccinctRoles, TargetFile, Targets

CLIENT = Path(__file__).parent / "tuf_client"
NEVER = "no such target"
LATER_DAYS = 18


def load_client() -> ModuleType:
    """The executable as a module: each run costs no new process."""
    loader = importlib.machinery.SourceFileLoader("tuf_client", str(CLIENT))
    spec = importlib.util.spec_from_loader("tuf_client", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


MODULE: Any = load_client()


class Rig:
    """A repository that can do anything, served over HTTP, and a client's folders."""

    def __init__(self, folder: Path) -> None:
        self.repo = RawRepository()
        for signed in (self.repo.root, self.repo.timestamp, self.repo.snapshot, self.repo.roles["targets"]):
            signed.expires = datetime.datetime.now(datetime.timezone.utc) + 30 * DAY
        self.repo.expires = self.repo.root.expires
        self.repo.publish_root()
        self.repo.publish("targets")
        self.artifacts: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.metadata, self.targets, self.root = folder / "metadata", folder / "targets", folder / "root.json"
        self.metadata.mkdir()
        self.targets.mkdir()
        rig = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, _, name = self.path.lstrip("/").partition("/")
                rig.asked.append(name)
                files = rig.repo.files if kind == "metadata" else rig.artifacts
                data = files.get(name if kind == "metadata" else unquote(name))
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def run(self, command: str, names: tuple[str, ...] = ()) -> int:
        wish = argparse.Namespace(
            command=command, metadata_dir=self.metadata, metadata_url=f"{self.url}/metadata/", root=self.root,
            target_name=list(names), target_base_url=f"{self.url}/targets/", target_dir=self.targets,
        )  # fmt: skip
        try:
            MODULE.run(wish)
        except Exception:  # noqa: BLE001  the suite knows one failure only
            return 1
        return 0

    def init(self) -> int:
        self.root.write_bytes(self.repo.files["1.root.json"])
        return self.run("init")

    def refresh(self, days: float | None = None) -> int:
        """Refresh; `days` from now, as a process under faketime."""
        if days is None:
            return self.run("refresh")
        command = [str(CLIENT), "--metadata-url", f"{self.url}/metadata/", "--metadata-dir", str(self.metadata)]
        return subprocess.run([*under(days), *command, "refresh"], capture_output=True, timeout=120).returncode

    def download(self, *names: str, days: float | None = None) -> int:
        """Download; `days` from now, as a process under faketime."""
        if days is None:
            return self.run("download", names)
        wanted = [word for name in names for word in ("--target-name", name)]
        command = [
            *under(days), str(CLIENT), "--metadata-url", f"{self.url}/metadata/", "--metadata-dir", str(self.metadata),
            *wanted, "--target-dir", str(self.targets), "--target-base-url", f"{self.url}/targets/", "download",
        ]  # fmt: skip
        return subprocess.run(command, cwd="/", env={"PATH": os.defpath}, capture_output=True, timeout=120).returncode

    def add_artifact(self, role: str, path: str, content: bytes) -> None:
        self.repo.add_target(role, path, content)
        digest = self.repo.roles[role].targets[path].hashes["sha256"]
        folder, slash, name = path.rpartition("/")
        self.artifacts[f"{folder}{slash}{digest}.{name}"] = content

    def downloaded(self) -> list[bytes]:
        files = (path for path in self.targets.rglob("*") if path.is_file())
        return [path.read_bytes() for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]

    def trusted(self) -> dict[str, int]:
        return {name.removesuffix(".json"): Metadata.from_bytes(data).signed.version
                for name, data in sorted(kept(self.metadata).items())}  # fmt: skip


def under(days: float) -> list[str]:
    program = shutil.which("faketime")
    if program is None:
        pytest.skip("faketime is not installed; `make test-system` installs it")
    return [program, str(datetime.datetime.now() + datetime.timedelta(days=days))]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def deprecated_ecdsa() -> CryptoSigner:
    """A key whose type is named as before TUF 1.0.17: by its scheme."""
    signer = CryptoSigner.generate_ecdsa()
    signer.public_key.keytype = "ecdsa-sha2-nistp256"
    return signer


@pytest.mark.filterwarnings("ignore:keytype .* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha256", size=2048),
        lambda: CryptoSigner.generate_rsa(scheme="rsassa-pss-sha512", size=2048),
        lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=2048),
        CryptoSigner.generate_ecdsa,
        lambda: CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384"),
        deprecated_ecdsa,
        CryptoSigner.generate_ed25519,
    ],
    ids=["pss-256", "pss-512", "pkcs1v15", "p256", "p384", "p256-old-name", "ed25519"],
)
def test_every_kind_of_key_of_the_specification_signs_every_role(rig: Rig, make):  # type: ignore[no-untyped-def]
    signer = make()
    assert rig.init() == 0
    old = rig.repo.signers["root"]
    for role in ("root", "timestamp", "snapshot", "targets"):
        rig.repo.rotate(role, signer)
    rig.repo.signers["root"] = [*old, signer]
    rig.repo.next_root()
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("targets")
    assert rig.refresh() == 0
    assert rig.trusted() == {"root": 2, "snapshot": 3, "targets": 2, "timestamp": 3}
    # Control: a signature of the same kind over something else is none.
    rig.repo.signers["timestamp"] = [make()]
    rig.repo.publish_timestamp()
    assert rig.refresh() == 1
    assert version(rig.metadata, "timestamp") == 3


@pytest.mark.parametrize(
    ("keys", "threshold", "signed_by", "accepted"),
    [
        ([2], 1, [1, 2], True),
        ([2], 1, [3, 2, 1, 0], True),
        ([2], 1, [2], False),
        ([2], 1, [1], False),
        ([1, 2, 3], 2, [1, 2], True),
        ([1, 2, 3], 2, [2, 3], False),
        ([1, 2, 3], 2, [1], False),
        ([1, 2, 3], 2, [1, 1], False),
    ],
)
def test_a_root_needs_the_threshold_of_the_old_and_of_the_new_one(
    rig: Rig, keys: list[int], threshold: int, signed_by: list[int], accepted: bool
):
    rig.repo.rotate("root", SIGNERS[1])
    rig.repo.publish_root()
    assert rig.init() == 0
    rig.repo.root.roles["root"].keyids.clear()
    for index in keys:
        rig.repo.root.add_key(SIGNERS[index].public_key, "root")
    rig.repo.root.roles["root"].threshold = threshold
    rig.repo.signers["root"] = [SIGNERS[index] for index in signed_by]
    rig.repo.next_root()
    assert rig.refresh() == (0 if accepted else 1)
    assert (rig.metadata / "root.json").read_bytes() == rig.repo.files[f"{1 + accepted}.root.json"]


def test_trusted_metadata_is_kept_byte_for_byte(rig: Rig):
    """Whoever compares, hashes or passes on a kept file has the signer's bytes, not ours."""
    spaced = rig.repo.files["timestamp.json"].replace(b": ", b":   ").replace(b",", b" ,")
    rig.repo.files["timestamp.json"] = spaced
    assert rig.init() == 0
    assert rig.refresh() == 0
    assert (rig.metadata / "timestamp.json").read_bytes() == spaced


@pytest.mark.parametrize("name", ["?", "#", "/role", "../role", "a b", "%2e%2e", "ж", "."])
def test_an_odd_role_name_is_quoted_once_on_the_wire_and_stays_in_the_folder(rig: Rig, name: str):
    rig.repo.delegate("targets", name, SIGNERS[4])
    rig.repo.roles["targets"].version += 1
    rig.repo.publish(name, "targets")
    assert rig.init() == 0
    assert rig.download(NEVER) == 1
    assert f"1.{quote(name, '')}.json" in rig.asked
    assert len(rig.trusted()) == 5
    assert {path.name for path in rig.metadata.parent.iterdir()} == {"metadata", "targets", "root.json"}


def test_hash_bins_are_asked_for_the_one_bin_of_a_path(rig: Rig):
    bins = SuccinctRoles([], 1, 4, "bin")
    rig.repo.roles["targets"].delegations = Delegations({}, succinct_roles=bins)
    rig.repo.roles["targets"].add_key(SIGNERS[4].public_key)
    for name in bins.get_roles():
        rig.repo.roles[name] = Targets(expires=rig.repo.expires)
        rig.repo.signers[name] = [SIGNERS[4]]
    path = "folder/file.bin"
    rig.add_artifact(bins.get_role_for_target(path), path, b"content")
    rig.repo.roles["targets"].version += 1
    rig.repo.publish(*rig.repo.roles)
    assert rig.init() == 0
    assert rig.download(path) == 0
    assert rig.downloaded() == [b"content"]
    assert [name for name in rig.asked if ".bin-" in name] == [f"1.{bins.get_role_for_target(path)}.json"]
    assert rig.download("folder/other") == 1


def test_a_replaced_artifact_has_the_same_name_and_an_exchanged_one_is_not_taken(rig: Rig):
    rig.add_artifact("targets", "file", b"first")
    rig.repo.publish("targets")
    assert rig.init() == 0
    assert rig.download("file") == 0
    rig.add_artifact("targets", "file", b"second")
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("targets")
    assert rig.download("file") == 0
    assert rig.downloaded() == [b"second"]
    rig.add_artifact("targets", "file", b"third")
    rig.add_artifact("targets", "longer", b"of a length")
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("targets")
    rig.artifacts = dict.fromkeys(rig.artifacts, b"evil!")
    assert rig.download("file") == 1
    rig.artifacts = dict.fromkeys(rig.artifacts, b"evil" * 1000)
    assert rig.download("longer") == 1
    assert rig.downloaded() == [b"second"]


def test_expired_kept_metadata_is_the_floor_and_newer_metadata_is_taken(rig: Rig):
    """The suite's clock: the process runs under faketime, weeks later."""
    in_a_week, in_three = rig.repo.expires - 23 * DAY, rig.repo.expires - 9 * DAY
    rig.repo.timestamp.expires = rig.repo.snapshot.expires = rig.repo.roles["targets"].expires = in_a_week
    rig.repo.publish("targets")
    assert rig.init() == 0
    assert rig.refresh() == 0
    before = kept(rig.metadata)
    # Freeze: the same files, or older ones, weeks later.
    assert rig.refresh(LATER_DAYS) == 1
    assert kept(rig.metadata) == before
    old = dict(rig.repo.files)
    rig.repo.timestamp.expires = rig.repo.snapshot.expires = rig.repo.roles["targets"].expires = in_three
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("targets")
    assert rig.refresh(LATER_DAYS) == 0
    assert version(rig.metadata, "targets") == 2
    rig.repo.files["timestamp.json"] = old["timestamp.json"]
    assert rig.refresh(LATER_DAYS) == 1
    assert version(rig.metadata, "timestamp") == rig.repo.timestamp.version


def test_an_expired_delegated_role_is_refused_and_its_renewal_taken(rig: Rig):
    rig.repo.delegate("targets", "role", SIGNERS[4])
    rig.add_artifact("role", "one", b"one")
    rig.repo.roles["role"].expires = datetime.datetime.now(datetime.timezone.utc) - DAY
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("role", "targets")
    assert rig.init() == 0
    assert rig.refresh() == 0
    assert rig.download("one") == 1
    assert "role" not in rig.trusted()
    rig.repo.roles["role"].expires = rig.repo.expires
    rig.repo.roles["role"].version += 1
    rig.repo.publish("role")
    assert rig.download("one") == 0


def test_an_expired_delegated_role_that_is_kept_is_used_no_more(rig: Rig):
    """As the suite does it: in a process weeks later, here in a shell that knows nothing of this environment."""
    rig.repo.delegate("targets", "role", SIGNERS[4])
    rig.add_artifact("role", "one", b"one")
    rig.add_artifact("role", "two", b"two")
    rig.repo.roles["role"].expires = rig.repo.expires - 23 * DAY
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("role", "targets")
    assert rig.init() == 0
    assert rig.download("one") == 0
    assert rig.download("two", days=LATER_DAYS) == 1
    rig.repo.roles["role"].expires = rig.repo.expires - 9 * DAY
    rig.repo.roles["role"].version += 1
    rig.repo.publish("role")
    assert rig.download("two", days=LATER_DAYS) == 0
    assert rig.downloaded() == [b"one", b"two"]


@pytest.mark.parametrize("together", [True, False])
def test_a_role_that_two_delegate_is_held_against_the_one_on_the_way(rig: Rig, together: bool):
    """One of the two named other keys: what the other vouches for counts on its own way only."""
    for name in ("left", "right"):
        rig.repo.delegate("targets", name, SIGNERS[4], paths=(f"{name}/*",))
    rig.repo.delegate("left", "shared", SIGNERS[5], paths=("*/*",))
    rig.repo.delegate("right", "shared", SIGNERS[6], paths=("*/*",))
    rig.add_artifact("shared", "left/file", b"left")
    rig.add_artifact("shared", "right/file", b"right")
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("shared", "left", "right", "targets")
    assert rig.init() == 0
    if together:
        assert rig.download("left/file", "right/file") == 1
    else:
        assert rig.download("left/file") == 0
        assert rig.download("right/file") == 1
        assert rig.download("left/file") == 0
    assert rig.downloaded() == [b"left"]
    # Control: signed by both keys it is good on both ways.
    rig.repo.signers["shared"] = [SIGNERS[5], SIGNERS[6]]
    rig.repo.roles["shared"].version += 1
    rig.repo.publish("shared")
    assert rig.download("left/file", "right/file") == 0


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_is_missing_stops_the_refresh_where_it_is_missing(rig: Rig, role: str):
    assert rig.init() == 0
    assert rig.refresh() == 0
    before = rig.trusted()
    rig.repo.roles["targets"].version += 1
    rig.repo.publish("targets")
    name = "timestamp.json" if role == "timestamp" else f"{before[role] + 1}.{role}.json"
    data = rig.repo.files.pop(name)
    rig.asked.clear()
    assert rig.refresh() == 1
    assert rig.asked[-1] == name
    order = ("timestamp", "snapshot", "targets")
    came = order[: order.index(role)]
    assert rig.trusted() == {part: number + (part in came) for part, number in before.items()}
    rig.repo.files[name] = data
    assert rig.refresh() == 0
    assert rig.trusted() == {part: number + (part in order) for part, number in before.items()}


@pytest.mark.parametrize(
    ("algorithms", "status"), [(["sha256"], 0), (["sha512"], 0), (["sha256", "sha512"], 0), (["no-hash"], 1)]
)
def test_an_artifact_is_checked_by_the_hashes_that_are_known(rig: Rig, algorithms: list[str], status: int):
    content = b"content"
    target = TargetFile.from_data("file", content, ["sha512"] if algorithms == ["no-hash"] else algorithms)
    if algorithms == ["no-hash"]:
        target.hashes["no-hash"] = target.hashes.pop("sha512")
    rig.repo.roles["targets"].targets["file"] = target
    rig.artifacts = {f"{digest}.file": content for digest in target.hashes.values()}
    rig.repo.publish("targets")
    assert rig.init() == 0
    assert rig.download("file") == status
    assert rig.downloaded() == ([content] if status == 0 else [])


@pytest.mark.parametrize("damaged", ["", "00", "no hex"])
def test_a_bad_signature_beside_enough_good_ones_does_no_harm(rig: Rig, damaged: str):
    rig.repo.root.add_key(SIGNERS[4].public_key, "timestamp")
    rig.repo.signers["timestamp"].append(SIGNERS[4])
    rig.repo.next_root()
    rig.repo.publish_timestamp()
    metadata = Metadata.from_bytes(rig.repo.files["timestamp.json"])
    metadata.signatures[SIGNERS[4].public_key.keyid].signature = damaged
    rig.repo.files["timestamp.json"] = metadata.to_bytes()
    assert rig.init() == 0
    assert rig.refresh() == 0
    # Control: alone it is not enough.
    del metadata.signatures[next(iter(metadata.signatures))]
    metadata.signed.version += 1
    rig.repo.files["timestamp.json"] = metadata.to_bytes()
    assert rig.refresh() == 1


def test_many_root_rotations_are_walked_one_by_one(rig: Rig):
    assert rig.init() == 0
    for index in range(40):
        old = rig.repo.signers["root"]
        rig.repo.rotate("root", SIGNERS[index % 2 + 4])
        rig.repo.signers["root"] += old
        rig.repo.next_root()
        rig.repo.signers["root"] = rig.repo.signers["root"][:1]
    assert rig.refresh() == 0
    assert [name for name in rig.asked if "root" in name] == [f"{number}.root.json" for number in range(2, 43)]
    assert version(rig.metadata, "root") == 41


def test_a_repository_without_consistent_snapshots_is_read_by_plain_names(rig: Rig):
    rig.repo.root = Root(expires=rig.repo.expires, consistent_snapshot=False)
    for role, signers in rig.repo.signers.items():
        rig.repo.root.add_key(signers[0].public_key, role)
    rig.repo.publish_root()
    rig.add_artifact("targets", "folder/file", b"content")
    rig.repo.publish("targets")
    rig.repo.files["snapshot.json"] = rig.repo.files[f"{rig.repo.snapshot.version}.snapshot.json"]
    rig.repo.files["targets.json"] = rig.repo.files["1.targets.json"]
    rig.artifacts = {"folder/file": b"content"}
    assert rig.init() == 0
    assert rig.download("folder/file") == 0
    assert rig.asked == ["2.root.json", "timestamp.json", "snapshot.json", "targets.json", "folder/file"]
