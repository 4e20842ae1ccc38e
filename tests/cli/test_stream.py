"""`compress` and `decompress` of input that is longer than one frame, through files and pipes."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from tests.cli.conftest import command, environment, process

LINES = b"".join(
    b"%d boats lie in the harbour, and the tide turns at %d.\n" % (n, n * 7) for n in range(190_000)
)


def test_files(tmp_path: Path) -> None:
    assert len(LINES) > 8 << 20
    (tmp_path / "log").write_bytes(LINES)
    done = process("compress", "log", "--preset", "fast", cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout and b"log.cz: " in done.stderr, done.stderr
    assert process("decompress", "log.cz", "-o", "back", cwd=tmp_path).returncode == 0
    assert (tmp_path / "back").read_bytes() == LINES
    whole = (tmp_path / "log.cz").read_bytes()
    (tmp_path / "cut.cz").write_bytes(whole[:-30])
    failed = process("decompress", "cut.cz", cwd=tmp_path)
    assert failed.returncode == 1 and b"truncated" in failed.stderr and failed.stderr.count(b"\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "cut.cz", "log", "log.cz"]


def test_pipes(tmp_path: Path) -> None:
    """Sender and receiver side by side, as over a network."""
    with subprocess.Popen(
        command("compress", "-", "--preset", "fast"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as sender:
        assert sender.stdin is not None and sender.stdout is not None
        with subprocess.Popen(
            command("decompress", "-"), stdin=sender.stdout, stdout=subprocess.PIPE, env=environment()
        ) as receiver:
            sender.stdout.close()
            feeding = threading.Thread(target=lambda: (sender.stdin.write(LINES), sender.stdin.close()))
            feeding.start()
            assert receiver.stdout is not None
            assert receiver.stdout.read() == LINES
            feeding.join()
    assert (sender.returncode, receiver.returncode) == (0, 0)
