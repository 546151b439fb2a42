"""The original files of the MNIST family: download, checks and parsing."""

import functools
import hashlib
import http.server
import shutil
import threading
import time

import numpy as np
import pytest
from image_sets import (
  ORIGINALS,
  flip_a_bit,
  forbid,
  isolate,
  read_idx,
  truncate,
  write_originals,
)

from jaxclust.data import originals
from jaxclust.errors import InputError


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
  isolate(monkeypatch, tmp_path)


@pytest.fixture
def read(tmp_path):
  """A function that reads a tiny set; its files are in raw/."""
  url_infos = write_originals(tmp_path / 'raw', 'http://files.test/')
  return functools.partial(originals.read, 'tiny', url_infos)


def test_the_arrays_are_those_of_the_files(tmp_path, read):
  arrays = read(tmp_path / 'raw')
  assert set(arrays) == set(ORIGINALS)
  for file, array in arrays.items():
    expected = read_idx(tmp_path / 'raw' / file, 3 if 'images' in file else 1)
    np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize('damage', [truncate, flip_a_bit])
@pytest.mark.parametrize('file', [ORIGINALS[0], ORIGINALS[2]])
def test_a_damaged_original_is_named(tmp_path, read, damage, file):
  path = tmp_path / 'raw' / file
  original = path.read_bytes()
  damage(path)
  with pytest.raises(InputError) as caught:
    read(tmp_path / 'raw')
  message = str(caught.value)
  assert str(path) in message
  for part in (original, path.read_bytes()):
    assert str(len(part)) in message
    assert hashlib.sha256(part).hexdigest() in message
  assert '\n' not in message


@pytest.fixture
def server(tmp_path, monkeypatch):
  """The folder of a proxy that serves its files for every host."""
  folder = tmp_path / 'served'
  folder.mkdir()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self, body=True):
      path = folder / self.path.rsplit('/', 1)[1]
      self.send_response(200 if path.exists() else 404)
      content = path.read_bytes() if path.exists() else b''
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content if body else b'')

    do_HEAD = functools.partialmethod(do_GET, body=False)

    def log_message(self, *args):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as proxy:
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{proxy.server_port}')
    yield folder
    proxy.shutdown()
    thread.join()


def test_the_files_are_downloaded_where_one_is_missing(tmp_path, read, server):
  expected = read(tmp_path / 'raw')
  shutil.copytree(tmp_path / 'raw', server, dirs_exist_ok=True)
  (tmp_path / 'raw' / ORIGINALS[1]).unlink()
  for raw_dir in (tmp_path / 'raw', None):
    for file, array in read(raw_dir).items():
      np.testing.assert_array_equal(array, expected[file], strict=True)


def test_a_download_that_is_not_the_file_is_named(tmp_path, read, server):
  shutil.copytree(tmp_path / 'raw', server, dirs_exist_ok=True)
  (server / ORIGINALS[3]).write_text('<html>Please log in</html>')
  with pytest.raises(InputError, match=f'{ORIGINALS[3]} is not the original'):
    read()
  (server / ORIGINALS[3]).unlink()
  with pytest.raises(InputError, match=r'does not send them: .*404'):
    read()


def test_a_host_that_never_answers_is_left_within_ten_seconds(
  read, monkeypatch
):
  assert originals._PROBE_SECONDS < 9
  monkeypatch.setattr(originals, '_PROBE_SECONDS', 0.1)
  over = threading.Event()
  monkeypatch.setattr('requests.head', lambda *a, **k: over.wait(60))
  monkeypatch.setattr('requests.get', forbid)
  start = time.monotonic()
  with pytest.raises(InputError, match=r'no raw_dir .* \(no answer within 0.1'):
    read()
  assert time.monotonic() - start < 9
  over.set()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'does not start an IDX file'),
    (b'\0\0\x08', 'does not start an IDX file'),
    (b'\0\0\x08\0', 'does not start an IDX file'),
    (b'\0\0\x0d\x01\0\0\0\x01abcd', '00000d01 does not start an IDX'),
    (b'\0\0\x08\x02\0\0\0\x01', 'does not start an IDX file'),
    (b'\0\0\x08\x01\0\0\0\x03ab', r'size 2 into shape \(3,\)'),
    (b'\0\0\x08\x01\0\0\0\x03abcd', r'size 4 into shape \(3,\)'),
    (b'\0\0\x08\x04' + 16 * b'\xff', 'size 0 into shape'),
  ],
)
def test_bytes_that_are_not_an_idx_file_are_refused(content, message):
  with pytest.raises(ValueError, match=message):
    originals._parse_idx(content)


def test_an_idx_file_by_hand():
  content = b'\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef'
  array = originals._parse_idx(content)
  np.testing.assert_array_equal(array, [[97, 98, 99], [100, 101, 102]])
  assert array.dtype == np.uint8
