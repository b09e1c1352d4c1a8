"""What Ray is started with, and what is refused before it is: addresses, temporary folders, leftovers of others."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import owner
from hoi_distill.workers.executors import ray_session
from hoi_distill.workers.executors.ray import RayExecutor
from hoi_distill.workers.executors.ray_session import SESSION, SOCKET_BYTES, _sweep, _temporary, cluster_address

ROOT = Path(__file__).parents[2]


@contextmanager
def server(answer: bytes | None) -> Iterator[str]:
    """Accepts one connection and answers it, or says nothing for as long as it lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                if answer is not None:
                    connection.sendall(answer)
                else:
                    connection.recv(100)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def refusal(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray_session, "CONNECT_SECONDS", 0.5)
    with pytest.raises(UserError) as error, RayExecutor(1):
        pass
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"RAY_ADDRESS={address.strip()}: ")
    return str(error.value)


def test_an_address_that_accepts_and_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(None) as address:
        assert "accepts and says nothing for 0.5 s; start it, or unset" in refusal(address, monkeypatch)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b""])
def test_an_address_where_something_else_answers_is_refused(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(answer) as address:
        assert "what answers there is no Ray cluster" in refusal(address, monkeypatch)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://127.0.0.1:8265/", "http://127.0.0.1"])
def test_a_dashboards_address_names_the_clusters(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "address of a dashboard; give the cluster's own, 127.0.0.1:6379" in refusal(address, monkeypatch)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1", "[::1]:1"])
def test_an_address_where_nobody_listens_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no cluster answers" in refusal(address, monkeypatch)


@pytest.mark.parametrize("address", [None, "", " ", "local"])
def test_an_empty_address_is_none(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_address() == "local"


def test_a_missing_temporary_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, folder in ((str(tmp_path / "a" / "b"), tmp_path / "a" / "b"), ("c", tmp_path / "c"), ("", Path("/tmp"))):
        monkeypatch.setenv("RAY_TMPDIR", given)
        if len(os.fsencode(folder)) + len(SESSION) <= SOCKET_BYTES:
            assert _temporary() == folder
        else:  # it is made before its length is judged, as the length of its absolute path
            with pytest.raises(UserError, match="bytes too long"):
                _temporary()
        assert folder.is_dir()


def test_a_temporary_folder_that_cannot_serve_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"w{os.getpid()}"
    (tmp_path / "file").touch()
    cases = [(tmp_path / "file" / "x", "cannot be made"), (tmp_path / ("x" * 80), "bytes too long"), (short, "chmod")]
    short.mkdir()
    short.chmod(0o777)
    try:
        for folder, words in cases:
            monkeypatch.setenv("RAY_TMPDIR", str(folder))
            with pytest.raises(UserError, match=words) as error, RayExecutor(1):
                pass
            assert str(error.value).startswith(f"RAY_TMPDIR={folder}: ")
    finally:
        short.rmdir()


def left(parent: Path, name: str, tag: str) -> Path:
    folder = parent / f"hoi-ray-{name}"
    folder.mkdir(mode=0o700)
    (folder / f"{tag}-token").touch()
    (folder / "r").mkdir()
    return folder


def test_only_folders_of_dead_processes_that_shared_our_pids_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = owner.tag().split("-")[0]
    gone = left(tmp_path, "gone", f"{host}-{dead.pid}")
    kept = [
        left(tmp_path, "ours", owner.tag()),
        left(tmp_path, "elsewhere", f"0123456789ab-{dead.pid}"),
        left(tmp_path, "strange", "no tag"),
    ]
    for folder in kept:
        os.utime(folder, (0, 0))
        os.utime(next(folder.glob("*-token")), (0, 0))
    _sweep(tmp_path)
    assert not gone.exists()
    assert all(folder.exists() for folder in kept)


SWEEP = """
import os, sys
from pathlib import Path
from hoi_distill.workers.executors.ray_session import _sweep
os.setuid(int(sys.argv[2]))
_sweep(Path(sys.argv[1]))
"""


def test_another_pid_namespace_sweeps_no_live_folder(tmp_path: Path) -> None:
    """Another container on a shared /tmp: our pid says nothing there."""
    unshare = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a pid namespace")
    folder = left(tmp_path, "ours", owner.tag())
    subprocess.run([*unshare, sys.executable, "-c", SWEEP, str(tmp_path), str(os.getuid())], cwd=ROOT, check=True)
    assert folder.exists()


def test_nobody_else_enters_the_folder_of_our_ray(tmp_path: Path) -> None:
    """Ray opens its own folder to everybody; ours above it stays shut. Its workers are as nice as we are, and another
    user's sweep leaves the folder alone."""
    with RayExecutor(1):
        import ray

        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        outer = token.parent
        assert stat.S_IMODE(outer.stat().st_mode) == 0o700
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert owner.TAG.match(token.name)
        sessions = [entry for entry in outer.rglob("session_2*") if entry.is_dir() and not entry.is_symlink()]
        assert [session.parent for session in sessions] == [outer / "r"]
        niceness = ray.remote(lambda: os.nice(0))
        assert ray.get(niceness.options(num_cpus=0).remote()) == os.nice(0)
        if os.geteuid() == 0:
            for path in (outer, token, *sessions):
                looked = subprocess.run(["ls", str(path)], user=65534, capture_output=True, text=True)
                assert "Permission denied" in looked.stderr
            subprocess.run([sys.executable, "-c", SWEEP, str(outer.parent), "65534"], cwd=ROOT, check=True)
            assert token.exists()
    assert not outer.exists()


SLOW = """
import os, signal, sys, threading, time
from hoi_distill.workers.executors import ray_session
from pathlib import Path
from hoi_distill.storage.errors import UserError
from hoi_distill.workers.executors.ray import RayExecutor

def stop_gcs():
    while True:
        for listing in Path("/proc/self/task").glob("*/children"):
            for process in listing.read_text().split():
                if os.readlink(f"/proc/{process}/exe").endswith("gcs_server"):
                    os.kill(int(process), signal.SIGSTOP)
                    return
        time.sleep(0.002)

ray_session.START_SECONDS = int(sys.argv[1])
threading.Thread(target=stop_gcs, daemon=True).start()
try:
    with RayExecutor(1):
        print("started")
except UserError as error:
    sys.exit(f"hoi-distill: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("patience", [4, 60])
def test_a_ray_that_starts_too_slowly_is_one_line(patience: int) -> None:
    """It stops in the midst, and Ray's own limits may or may not come before ours."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW, str(patience)],
        cwd=ROOT,
        env={**os.environ, "RAY_gcs_server_port_wait_time_s": "3"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hoi-distill: ")]
    assert "Ray does not start" in line
    assert line.endswith("run again when this machine is less busy, or with --executor inline")


def test_signals_to_a_whole_process_group_wait_in_what_starts_sheltered() -> None:
    with ray_session._sheltered():
        child = subprocess.Popen(["sleep", "60"])
    for number in (signal.SIGTERM, signal.SIGHUP):
        child.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    assert ray_session._asked_to_end(child.pid)
    assert child.pid in ray_session._children()
    # It was asked before: somebody else's signal ends nothing.
    with ray_session._hurried({child.pid}), pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.kill()
    child.wait()


def test_what_starts_sheltered_ends_at_once_when_ray_ends_it() -> None:
    with ray_session._sheltered():
        child = subprocess.Popen(["sleep", "60"])
    with ray_session._hurried({child.pid}):
        child.terminate()
        assert child.wait(10) == -signal.SIGKILL
