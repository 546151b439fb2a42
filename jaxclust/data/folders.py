"""Folders of pictures: which files are read, why others are not, and pixels.

Axes: H rows, W columns, C channels.
"""

import collections
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxclust.data.images import Dataset, check_memory, resize
from jaxclust.errors import InputError, one_line

# Formats of still pictures; to decode some others, Pillow runs other programs.
_FORMATS = (
  *('AVIF', 'BMP', 'GIF', 'ICO', 'JPEG', 'JPEG2000', 'MPO', 'PCX', 'PNG'),
  *('PPM', 'QOI', 'SGI', 'TGA', 'TIFF', 'WEBP'),
)

# EXIF orientations of a picture that lies on its side.
_SIDEWAYS = (5, 6, 7, 8)

# Pillow modes of grey pictures; pictures of any other mode are read as RGB.
_GREY = ('1', 'L', 'LA', 'La')

# What transparent pixels are laid on.
_BACKGROUND = 'white'

# Maximum number of files that a message names.
_NAMED = 10

# Maximum height or width that is suggested for pictures.
_SUITED_SIDE = 96


def read(
  name: str, root: Path, size: tuple[int, int] | None, skip_bad: bool
) -> Dataset:
  """The pictures of a folder.

  Sub-folders are labels. Where they are `train` and `test` alone, they are the
  splits, and the sub-folders of these the labels.

  Args:
    name: of the dataset.
    root: the folder.
    size: (height, width) of all pictures; None if they have one size.
    skip_bad: whether to leave out pictures that cannot be used.

  Raises:
    InputError: there is no picture, or one that cannot be used, or one beside
      the labels.
  """
  files, left_out = _walk(root)
  if not files:
    raise InputError(
      f'{root} holds no .png, .jpg or other picture that Pillow reads: give a '
      'folder of pictures'
    )
  tops = {file.split(os.sep)[0].lower() for file in files}
  is_split = tops == {'train', 'test'}
  if is_split:
    files.sort(key=_is_test)
  images, files, bad, odd = _read_images(root, files, size)
  if bad and not (skip_bad and files):
    remedy = 'or go on without them with --config.data.skip_bad=True'
    if not files:
      remedy = 'as none is left'
    raise InputError(f'{_named(root, bad)}: repair or remove them, {remedy}')
  if odd and not skip_bad:
    usual = images.shape[1:3]
    (file, why), total = odd[0], len(odd) + len(images)
    raise InputError(
      f'{root / file} {why}: {len(odd)} of {total} pictures differ from the '
      f'most common size, {usual[0]}x{usual[1]}: resize all with '
      f'--config.data.size={_suited(usual)}'
    )
  labels, names = _labels(root, files, depth=int(is_split))
  dataset = Dataset(
    *(name, images, labels),
    label_names=names,
    files=tuple(files),
    left_out=tuple(sorted([*left_out, *bad, *odd])),
  )
  if not is_split:
    return dataset
  count = sum(not _is_test(file) for file in files)
  return dataset._replace(
    images=images[:count],
    test_images=images[count:],
    labels=labels if labels is None else labels[:count],
    test_labels=labels if labels is None else labels[count:],
  )


def _is_test(file):
  return file.split(os.sep)[0].lower() == 'test'


def _suited(size):
  """A (height, width) of about the same shape that a network takes."""
  scale = min(1, _SUITED_SIDE / max(size))
  return tuple(max(1, round(side * scale)) for side in size)


def _named(root, bad):
  """Names files, each with a reason."""
  named = '; '.join(f'{root / file} {why}' for file, why in bad[:_NAMED])
  more = f'; and {len(bad) - _NAMED} more' if len(bad) > _NAMED else ''
  return named + more


def _labels(root, files, depth):
  """Labels `[N]` and their names, from the folders at a depth."""
  parts = [file.split(os.sep)[depth:] for file in files]
  groups = [part[0] if len(part) > 1 else '' for part in parts]
  names, labels = np.unique(groups, return_inverse=True)
  if names[0]:
    return labels, tuple(names.tolist())
  if len(names) > 1:
    raise InputError(
      f'{root / files[groups.index("")]} lies beside the sub-folders that are '
      'the labels: move it into one'
    )
  return None, ()


def _walk(root):
  """The paths of all pictures below a folder, in order; and for other files
  and folders, but hidden ones, a path and why it is left out."""
  from PIL import Image

  endings = Image.registered_extensions()
  endings = {end for end, kind in endings.items() if kind in _FORMATS}
  files, left_out = [], []
  for path in _visible(root, left_out):
    whole, file = os.path.join(root, path), os.path.splitext(path)
    if file[1].lower() not in endings:
      left_out.append((path, 'is no picture by its ending'))
    elif not os.path.exists(whole):
      left_out.append((path, 'is a link to nothing'))
    elif not os.path.isfile(whole):
      left_out.append((path, 'is no file'))
    else:
      files.append(path)
  return sorted(files), left_out


def _visible(root: Path, left_out: list) -> Iterator[str]:
  """Paths of files that are not hidden, below the root; links to a folder
  elsewhere, or to a hidden one, are followed, and no folder is read twice."""
  inside = os.path.realpath(root)
  seen = set()

  def path_of(folder, name):
    return os.path.relpath(os.path.join(folder, name), root)

  def note(error):
    path = os.path.relpath(error.filename, root)
    left_out.append((path, f'cannot be read ({error.strerror})'))

  def is_new(folder, name):
    place = os.path.join(folder, name)
    target = os.path.realpath(place)
    common = os.path.commonpath([target, inside])
    is_hidden = f'{os.sep}.' in target.removeprefix(inside)
    is_here = common == target or (common == inside and not is_hidden)
    if target in seen or (is_here and os.path.islink(place)):
      left_out.append((path_of(folder, name), 'is a folder read elsewhere'))
      return False
    seen.add(target)
    return True

  for folder, names, files in os.walk(root, onerror=note, followlinks=True):
    shown = [name for name in sorted(names) if not name.startswith('.')]
    names[:] = [name for name in shown if is_new(folder, name)]
    yield from (path_of(folder, f) for f in files if not f.startswith('.'))


def _read_images(root, files, size):
  """Pictures of one size as one array, and their files; files that cannot be
  used, and files of another size, each with why. RGB, unless all are grey.

  All headers are read first, so that nothing is decoded that would not fit.
  """
  headers, bad = {}, []
  for file in files:
    found, why = _try(root / file, _header)
    if why:
      bad.append((file, why))
    else:
      headers[file] = found
  if not headers:
    return None, [], bad, []
  sizes = collections.Counter(found for found, _ in headers.values())
  ((usual, _),) = sizes.most_common(1)
  odd = [
    (file, f'has {found[0]}x{found[1]} pixels (height x width)')
    for file, (found, _) in headers.items()
    if size is None and found != usual
  ]
  for file, _ in odd:
    del headers[file]
  is_grey = all(mode in _GREY for _, mode in headers.values())
  mode = 'L' if is_grey else 'RGB'
  areas = {file: math.prod(found) for file, (found, _) in headers.items()}
  largest = max(areas, key=areas.get)
  check_memory(root / largest, areas[largest] * len(mode))
  item = np.dtype((np.uint8, (*(size or usual), len(mode))))
  check_memory(root, len(headers) * item.itemsize)
  images, good = np.empty(len(headers), item), []
  for file in headers:
    pixels, why = _try(root / file, _pixels, mode)
    if why:
      bad.append((file, why))
    else:
      images[len(good)] = resize(pixels, item.shape[:2])
      good.append(file)
  return images[: len(good)], good, sorted(bad), odd


def _try(path, read, *options):
  """What a function reads of a picture, and why it cannot."""
  from PIL import Image

  # JPEG's reader opens MPO; a build of Pillow may lack others.
  formats = [name for name in _FORMATS if name in Image.OPEN]
  try:
    with Image.open(path, formats=formats) as image:
      return read(image, *options), ''
  except _UnusableError as error:
    return None, str(error)
  # A damaged file can fail in any layer of a reader, with any exception.
  except Exception as error:
    return None, f'cannot be read as a picture ({one_line(error)})'


class _UnusableError(Exception):
  """A picture is whole, and of a kind that is not read."""


def _header(image):
  """Returns the (height, width) of a picture once it is upright, and its mode.

  If `info` has no EXIF, `getexif` would decode a whole PNG to look for it.
  """
  from PIL import ExifTags

  deep = image.tile and ';16' in str(image.tile[0][3])
  if image.mode[0] in 'IF' or deep:  # Pillow would clip or cut the values
    raise _UnusableError(
      f'has mode {image.mode}, more than 8 bits per channel: convert it'
    )
  if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
    raise _UnusableError('has several frames or pages: save one of them alone')
  tags = image.getexif() if 'exif' in image.info else {}
  is_turned = tags.get(ExifTags.Base.Orientation) in _SIDEWAYS
  return image.size if is_turned else image.size[::-1], image.mode


def _pixels(image, mode):
  """Returns the pixels `[H, W, C]` of an upright picture in a Pillow mode,
  without transparency."""
  from PIL import Image, ImageOps

  if 'exif' in image.info:
    image = ImageOps.exif_transpose(image)
  if image.has_transparency_data:
    below = Image.new('RGBA', image.size, _BACKGROUND)
    image = Image.alpha_composite(below, image.convert('RGBA'))
  pixels = np.asarray(image.convert(mode))
  return pixels.reshape(*pixels.shape[:2], len(mode))
