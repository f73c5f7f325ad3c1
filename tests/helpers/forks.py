"""Python processes that need not import Keras and torch again: 7 s less each.

They are forked from one that has imported them and done nothing else (the "forkserver" of multiprocessing): whatever
tests have done before has threads that a fork would miss, and so have JAX and TensorFlow.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["keras_ci2p.cli.train_commands", "keras_ci2p.training.train", "keras_ci2p.models"])


class Fork:
    """As `subprocess.Popen([sys.executable, script, *arguments], env=env)`, with what it has said as text."""

    def __init__(self, command, env=None):
        self._said = tempfile.TemporaryDirectory()
        self._process = _CONTEXT.Process(
            target=_run, args=(command[1:], dict(os.environ if env is None else env), Path(self._said.name))
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def stdout(self):
        return (Path(self._said.name) / "1").read_text()

    @property
    def stderr(self):
        return (Path(self._said.name) / "2").read_text()

    def poll(self):
        """As of `Popen`."""
        return self._process.exitcode

    def wait(self, timeout):
        """As of `Popen`."""
        began = time.monotonic()
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.pid, time.monotonic() - began)
        return self._process.exitcode

    def kill(self):
        """As of `Popen`."""
        self._process.kill()


_run_command = subprocess.run


def run(command, env=None, timeout=600, check=False, **options):
    """As `subprocess.run`, by a fork where the command is of that kind, with what it said as text."""
    if command[0] != sys.executable or not str(command[1]).endswith(".py"):
        return _run_command(command, env=env, timeout=timeout, check=check, **options)
    fork = Fork(command, env)
    try:
        code = fork.wait(timeout)
    finally:
        fork.kill()
    done = subprocess.CompletedProcess(command, code, fork.stdout, fork.stderr)
    if check:
        done.check_returncode()
    return done


def _run(command, env, said):
    for number in (1, 2):
        os.dup2(os.open(said / str(number), os.O_WRONLY | os.O_CREAT), number)
    # pytest's are of the process that was forked.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(command)
    # As Python does for a script.
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
