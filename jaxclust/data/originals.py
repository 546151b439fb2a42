"""The original files of sets of the MNIST family: download and checks."""

import contextlib
import gzip
import hashlib
import struct
import threading

import numpy as np

from jaxclust.errors import InputError, one_line
from jaxclust.paths import as_path

# Maximum seconds until a host first answers.
_PROBE_SECONDS = 5

# Maximum seconds without any byte of a download.
_STALL_SECONDS = 30


def read(name, url_infos, raw_dir=None):
  """Returns the arrays of the original files of a set, by file name.

  They are TFDS's `url_infos` of the set: file name, size and checksum by URL.
  If `raw_dir` is None or lacks one, all are downloaded.

  Raises:
    InputError: a file is not the original, or cannot be downloaded.
  """
  folder, arrays = as_path(raw_dir or ''), {}
  files = {folder / i.filename: i for i in url_infos.values()}
  if raw_dir and all(path.is_file() for path in files):
    contents = [path.read_bytes() for path in files]
  else:
    files, contents = url_infos, _download(name, url_infos, raw_dir)
  for (source, info), content in zip(files.items(), contents, strict=True):
    found = hashlib.sha256(content).hexdigest()
    if (len(content), found) != (info.size, info.checksum):
      raise InputError(
        f'{source} is not the original of {name}: expected {info.size} bytes '
        f'with SHA-256 {info.checksum}, got {len(content)} bytes with {found}; '
        f"fetch it again, or give the folder of {name}'s own files with "
        '--config.data.raw_dir'
      )
    arrays[info.filename] = _parse_idx(gzip.decompress(content))
  return arrays


def _parse_idx(content):
  """Returns the array of the bytes of an IDX file; a ValueError is raised if
  they are not one array of unsigned bytes."""
  rank = content[3] if content[:3] == b'\0\0\x08' and len(content) > 3 else 0
  start = 4 + 4 * rank
  if not rank or len(content) < start:
    raise ValueError(
      f'{content[:4].hex()} does not start an IDX file of unsigned bytes'
    )
  shape = struct.unpack_from(f'>{rank}I', content, 4)
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _download(name, url_infos, raw_dir):
  """Returns the contents of the original files.

  TFDS's own downloader retries for minutes without a network, and waits forever
  for a host that does not answer.
  """
  import requests

  def get(url):
    response = requests.get(url, timeout=_STALL_SECONDS)
    response.raise_for_status()
    return response.content

  def probe():
    with contextlib.suppress(OSError):  # the download will report it
      requests.head(first, timeout=_STALL_SECONDS)

  first = next(iter(url_infos))
  # A thread, because requests does not limit the time to look up a host name.
  thread = threading.Thread(target=probe, daemon=True)
  thread.start()
  thread.join(_PROBE_SECONDS)
  try:
    if thread.is_alive():
      raise TimeoutError(f'no answer within {_PROBE_SECONDS} seconds')
    return [get(url) for url in url_infos]
  except OSError as error:  # the base class of all errors of requests
    files = ', '.join(info.filename for info in url_infos.values())
    lacking = f'{raw_dir} lacks its files' if raw_dir else 'no raw_dir is given'
    raise InputError(
      f'{name} is not prepared, {lacking}, and {first.split("/")[2]} does not '
      'send them: use the variant :digits of the config, or '
      f'--config.data.raw_dir=FOLDER (or $JAXCLUST_RAW_DIR) with {files}, or '
      f'--config.data.dir=FOLDER where TFDS has prepared {name}, or a network '
      f'({one_line(error)})'
    ) from error
