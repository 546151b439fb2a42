"""Processes that tests start together, and wait for."""

import socket
import subprocess

_PIPE = subprocess.PIPE

# Seconds after which processes count as hanging.
_PATIENCE = 200


def free_port() -> int:
  """A port of this machine that nothing listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def start(commands, envs):
  """Starts a process for each command."""
  return [
    subprocess.Popen(command, env=env, stdout=_PIPE, stderr=_PIPE, text=True)
    for command, env in zip(commands, envs, strict=True)
  ]


def wait(processes):
  """Statuses of all, and what they said on stderr; none is left behind."""
  try:
    said = [p.communicate(timeout=_PATIENCE)[1] for p in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said
