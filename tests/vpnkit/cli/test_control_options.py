"""--control-tcp, --control-token-file and --gateway-api: what they demand, and that `serve` and `run` heed them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.tapdev.guests import environment
from vpnkit.cli import main

SECONDS = 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--control-tcp", "127.0.0.1:0"], "--control-tcp ADDR:PORT and --control-token-file FILE go together"),
        (["--control-token-file", "/tmp/x"], "--control-tcp ADDR:PORT and --control-token-file FILE go together"),
        (["--control-tcp", "6060", "--control-token-file", "/tmp/x"], "'6060' is not ADDR:PORT like 127.0.0.1:6060"),
        (["--control-tcp", "127.0.0.1:0", "--control-token-file", "/"], "--control-token-file / is not a file"),
    ],
)
def test_what_does_not_fit(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--link", "stdio:", *words]) == 2
    assert message in capfd.readouterr().err


def test_serve_says_where_and_asks_for_the_token() -> None:
    with tempfile.TemporaryDirectory(prefix="vk-") as name:
        token_file = Path(name, "token")
        argv = [sys.executable, "-m", "vpnkit", "serve", "--link", f"qemu:{name}/vm.sock"]
        argv += ["--control-tcp", "127.0.0.1:0", "--control-token-file", str(token_file)]
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(XDG_RUNTIME_DIR=name)
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            found = re.search(r" control-tcp=(127\.0\.0\.1:\d+)$", line.rstrip())
            assert found, line
            url = f"http://{found[1]}/v1/status"
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(url, timeout=SECONDS)
            refused.value.close()
            token = token_file.read_text().strip()
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, out, err) == (0, b"", b"")
        finally:
            process.kill()
            process.communicate()


def test_a_taken_port_is_one_line() -> None:
    with tempfile.TemporaryDirectory(prefix="vk-") as name, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        argv = [sys.executable, "-m", "vpnkit", "serve", "--link", f"qemu:{name}/vm.sock"]
        argv += ["--control-tcp", place, "--control-token-file", f"{name}/token"]
        done = subprocess.run(argv, capture_output=True, timeout=SECONDS, env=environment(XDG_RUNTIME_DIR=name))
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.fullmatch(rb"vpnkit.*: cannot listen for control on .*: Address already in use; .*\n", done.stderr)
        assert not Path(name, "vm.sock").exists()
