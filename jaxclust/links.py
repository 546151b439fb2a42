"""Links between the processes of a run, which tell how each of them ends.

Every process has a TCP connection with process 0. The operating system closes
it when the process ends, whatever ends it, so that no process waits for one
that is gone. A process that cannot go on says why; process 0 prints it, and
ends all with one status. It is the last to end.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator

from jaxclust import signals

# Status of processes that end since another one is gone.
_GONE = 3

# Seconds in which all processes are to connect, and then to say who they are.
_SECONDS_TO_CONNECT, _SECONDS_TO_SPEAK = 60, 5

# Maximum number of characters in which a process says who it is.
_MOST_CHARACTERS = 64

# Seconds after which a process that waits for others says so.
_SECONDS_OF_SILENCE = 2

# Seconds in which the end of a process explains the error of another one, and
# seconds in which all others are to end.
_SECONDS_TO_EXPLAIN, _SECONDS_TO_END = 1, 5

# Seconds after which a stopped process no longer waits for process 0 to save.
_SECONDS_TO_SAVE = 60

# Options of TCP, by which the end of a machine is noticed in 40 seconds, also
# where it has not confirmed what was said.
_KEEPALIVE = {'TCP_KEEPIDLE': 10, 'TCP_KEEPINTVL': 10, 'TCP_KEEPCNT': 3}
_KEEPALIVE['TCP_USER_TIMEOUT'] = 40_000  # milliseconds

# Connections by process, the threads that listen to them, the number of this
# process, what the thread that ends it holds for good, folders to remove then,
# and whether it has met others.
_open = types.SimpleNamespace(
  files={},
  listeners=[],
  number=0,
  ends=threading.RLock(),
  folders=[],
  begun=False,
)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
  """Says that this process waits for others, if it does, and ends it if they
  are not there within some seconds."""
  _open.begun = True
  met = threading.Event()

  def watch():
    if not met.wait(_SECONDS_OF_SILENCE):
      print('waiting for the other processes ...', flush=True)
    if not met.wait(seconds):
      _tell(
        f'the other processes are not there after {seconds:g} seconds: start '
        'all, each with its own --process_id, where they reach --coordinator'
      )
      os._exit(2)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    met.set()


def serve(host: str) -> tuple[socket.socket, dict]:
  """Process 0 listens; returns its socket, and where and how others reach it.

  Args:
    host: its name or address; '' to find some.
  """
  options = {}
  if socket.has_dualstack_ipv6():
    options = {'family': socket.AF_INET6, 'dualstack_ipv6': True}
  server = socket.create_server(('', 0), **options)
  hosts, port = [host] if host else _own_hosts(), server.getsockname()[1]
  return server, {'hosts': hosts, 'port': port, 'token': secrets.token_hex(8)}


def _own_hosts():
  """The name of this machine, and the address of packets that leave it."""
  hosts = [socket.gethostname()]
  with (
    contextlib.suppress(OSError),  # there may be no way out
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
  ):
    probe.connect(('192.0.2.1', 1))  # sends nothing
    hosts.append(probe.getsockname()[0])
  return hosts


def accept(server: socket.socket, token: str, count: int) -> None:
  """Process 0 takes the connections of all other ones.

  Raises:
    OSError: if one does not connect in time.
  """
  deadline = time.monotonic() + _SECONDS_TO_CONNECT
  with server:
    while len(_open.files) < count - 1:
      server.settimeout(max(0.1, deadline - time.monotonic()))
      _introduce(server.accept()[0], token)
  _listen(_heard_by_first)


def _introduce(link, token):
  """Keeps the link of a process that knows the token; closes a stranger's."""
  link.settimeout(_SECONDS_TO_SPEAK)
  file = link.makefile('rw', errors='replace')
  with contextlib.suppress(OSError, ValueError):
    own, _, number = file.readline(_MOST_CHARACTERS).strip().partition(' ')
    if secrets.compare_digest(own.encode(), token.encode()):
      return _keep(link, file, int(number))
  file.close()
  link.close()


def reach(place: dict, number: int) -> None:
  """A process connects with process 0, which has told its place.

  Raises:
    OSError: if it cannot.
  """
  link = _connect(place['hosts'], place['port'])
  file = link.makefile('rw')
  print(place['token'], number, file=file, flush=True)
  _open.number = number
  _keep(link, file, 0)
  _listen(_heard_by_others)


def _connect(hosts, port):
  """A connection with the first host that answers."""
  *some, last = hosts
  for host in some:
    with contextlib.suppress(OSError):
      return socket.create_connection((host, port), _SECONDS_TO_SPEAK)
  return socket.create_connection((last, port), _SECONDS_TO_CONNECT)


def _keep(link, file, number):
  """Keeps the file of a link, which is open as long as the file is."""
  link.settimeout(None)
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name):
      link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  link.close()
  _open.files[number] = file


def _listen(hear: Callable):
  """Waits in threads for the last words of the others."""
  signals.before_the_end(_by_signal)
  for number, file in _open.files.items():
    listener = threading.Thread(target=hear, args=(number, file), daemon=True)
    _open.listeners.append(listener)
    listener.start()


def _last_words(file):
  """What a process said before it ended, or {}."""
  try:
    return json.loads(file.readline() or '{}')
  except (OSError, ValueError):
    return {}


def _heard_by_first(number, file):
  words = _last_words(file)
  # This thread ends when the process has, for which `end` waits.
  threading.Thread(target=_end_for, args=(number, words), daemon=True).start()
  with contextlib.suppress(OSError, ValueError):
    file.read()


def _end_for(number, words):
  """Ends all since a process has ended, unless process 0 ends them itself."""
  if words:  # process 0 may say the same, or hear of another that is gone
    is_odd = words.get('status', _GONE) == _GONE
    time.sleep(_SECONDS_TO_EXPLAIN * (2 if is_odd else 0.5))
  _open.ends.acquire()
  _tell(f'process {number}: {words["text"]}' if words else _gone(number))
  end(words.get('status', _GONE))


def _gone(number):
  return (
    f'process {number} is gone: start all again, in the same run directory, to '
    'resume'
  )


def _tell(text):
  print('error:', text, file=sys.stderr, flush=True)


def _heard_by_others(_, file):
  words = _last_words(file)
  if not words:
    _tell(_gone(0))
  _leave(words.get('status', _GONE))


def are_begun() -> bool:
  """Whether this process has met others, or has tried to."""
  return _open.begun


def fail(status: int, text: str) -> None:
  """Says why this process cannot go on; returns in process 0 alone, which is
  to print it, and in a process without others."""
  if not _open.files:
    return
  if _open.number:
    _say(_open.files[0], status=status, text=text)
    _wait()
  _ignore_signals()
  if status == _GONE:
    time.sleep(_SECONDS_TO_EXPLAIN)
  _open.ends.acquire()


def _ignore_signals():
  """Lets no signal disturb what ends all anyway."""
  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      signal.signal(number, signal.SIG_IGN)


def end(status: int) -> None:
  """Ends all processes when process 0 ends; in another one waits for that."""
  if _open.number:
    _wait()
  _ignore_signals()
  _open.ends.acquire()
  while signals.is_saving():
    time.sleep(0.1)
  for file in _open.files.values():
    _say(file, status=status)
  deadline = time.monotonic() + _SECONDS_TO_END
  for listener in _open.listeners:
    listener.join(max(0, deadline - time.monotonic()))
  _leave(status)


def _wait():
  """Waits for process 0 to end all; a signal asks it to do so."""
  try:
    with signals.listening():
      threading.Event().wait()
  except signals.Stopped as stopped:
    _say(_open.files[0], status=stopped.status, text=str(stopped))
    _ignore_signals()
    time.sleep(_SECONDS_TO_SAVE)
    _leave(stopped.status)


def _by_signal(status, text):
  """Ends all when a signal ends this process."""
  if _open.number:
    _say(_open.files[0], status=status, text=text)
    time.sleep(_SECONDS_TO_END)
    return
  _open.ends.acquire()
  _tell(text)
  end(status)


def _say(file, **words):
  with contextlib.suppress(OSError):  # that process may be gone
    print(json.dumps(words), file=file, flush=True)


def remove_at_end(folder: str) -> None:
  """Removes a folder when this process ends."""
  _open.folders.append(folder)


def _leave(status):
  """Ends this process, without waiting for its devices."""
  for folder in _open.folders:
    shutil.rmtree(folder, ignore_errors=True)
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  os._exit(status)
