"""The executable that the public TUF conformance suite drives: its command line, over real HTTP, as processes."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeops.contracts.release import TargetCustom
from edgeops.trust.founding import make_fleet
from edgeops.trust.publisher import NewTarget

CLIENT = Path(__file__).parent / "tuf_client"
TARGET = "m/1.0.0/pi.edgeops"


class Server:
    """A repository over HTTP on loopback; paths can be replaced by other answers, and requests are noted."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, bytes] = {}
        self.endless: set[str] = set()
        self.stopping = threading.Event()
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path in server.endless:
                    self.send_response(200)
                    self.end_headers()
                    try:
                        while not server.stopping.is_set():
                            self.wfile.write(b" " * 65536)
                    except OSError:
                        return
                elif self.path in server.answers:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(server.answers[self.path])
                else:
                    super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Suite:
    """What the suite does: a fresh client, its folders, and a server."""

    def __init__(self, folder: Path) -> None:
        self.publisher = make_fleet(folder / "home", "demo")
        self.file = folder / "bundle"
        self.file.write_bytes(b"content")
        self.publish("1.0.0", 1)
        self.server = Server(folder / "home" / "repository")
        self.metadata, self.targets, self.root = folder / "metadata", folder / "targets", folder / "root.json"
        self.metadata.mkdir()
        self.targets.mkdir()
        self.root.write_bytes(self.publisher.root_bytes())

    def publish(self, version: str, number: int) -> None:
        custom = TargetCustom(model="m", version=version, number=number, profile="pi", digest="x")
        self.publisher.publish([NewTarget(f"m/{version}/pi.edgeops", self.file, custom)])

    def run(self, *arguments: object) -> int:
        command = [str(CLIENT), "--metadata-dir", str(self.metadata), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    def init(self) -> int:
        return self.run("init", self.root)

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.server.url}/metadata", "refresh")

    def download(self, *names: str) -> int:
        wanted = [part for name in names for part in ("--target-name", name)]
        return self.run(
            "--metadata-url", f"{self.server.url}/metadata", *wanted,
            "--target-base-url", f"{self.server.url}/targets", "--target-dir", self.targets, "download",
        )  # fmt: skip

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in self.targets.rglob("*") if path.is_file()]


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    made = Suite(tmp_path)
    yield made
    made.server.stop()


def test_init_refresh_and_download_by_the_suites_command_line(suite: Suite):
    assert suite.init() == 0
    assert suite.server.asked == []
    assert suite.refresh() == 0
    versions = [path.name for path in sorted(suite.metadata.glob("*.json"))]
    assert versions == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    for path in suite.metadata.glob("*.json"):
        assert "signed" in json.loads(path.read_bytes())
    assert suite.download(TARGET) == 0
    assert suite.downloaded() == [b"content"]


def test_the_order_of_requests_is_the_specifications(suite: Suite):
    suite.init()
    suite.refresh()
    names = [path.removeprefix("/metadata/") for path in suite.server.asked]
    assert [name.lstrip("0123456789.").removesuffix(".json") for name in names] == [
        "root", "timestamp", "snapshot", "targets",
    ]  # fmt: skip


def test_what_was_downloaded_is_not_fetched_again(suite: Suite):
    suite.init()
    assert suite.download(TARGET) == 0
    suite.server.asked.clear()
    assert suite.download(TARGET) == 0
    assert not [path for path in suite.server.asked if path.startswith("/targets/")]


def test_failures_end_with_status_1_and_leave_no_target(suite: Suite):
    assert suite.refresh() == 1  # no root yet
    assert suite.server.asked == []
    assert suite.init() == 0
    assert suite.download("m/1.0.0/none.edgeops") == 1
    blob = next(iter((suite.publisher._home / "repository" / "targets" / "m" / "1.0.0").iterdir()))
    suite.server.answers[f"/targets/m/1.0.0/{blob.name}"] = b"changed"
    assert suite.download(TARGET) == 1
    assert suite.server.asked[-1] == f"/targets/m/1.0.0/{blob.name}"
    assert suite.run("nonsense") == 1
    assert suite.downloaded() == []


def test_several_targets_are_downloaded_by_one_process(suite: Suite):
    suite.publish("2.0.0", 2)
    suite.init()
    assert suite.download(TARGET, "m/2.0.0/pi.edgeops") == 0
    assert len(suite.downloaded()) == 2
    assert suite.download(TARGET, "m/3.0.0/pi.edgeops") == 1


@pytest.mark.parametrize("name", ["timestamp.json", "targets"])
def test_endless_data_ends_the_client_not_the_machine(suite: Suite, name: str):
    suite.init()
    if name == "targets":
        blob = next(iter((suite.publisher._home / "repository" / "targets" / "m" / "1.0.0").iterdir()))
        suite.server.endless.add(f"/targets/m/1.0.0/{blob.name}")
    else:
        suite.server.endless.add(f"/metadata/{name}")
    assert suite.download(TARGET) == 1
    assert suite.server.asked[-1] in suite.server.endless
    assert suite.downloaded() == []
    # Control: with the honest file it goes on.
    suite.server.endless.clear()
    assert suite.download(TARGET) == 0
