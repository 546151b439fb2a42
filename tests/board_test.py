"""The event files hold the numbers of the log."""

import types

import pytest

from jaxclust import workdir
from jaxclust.errors import InputError
from jaxclust.report import board

RECORD = {'phase': 'gmm', 'seed': 3, 'step': 5, 'score': 0.5, 'restarts': [[1]]}


def events(path):
  """Returns the values that TensorBoard shows by (tag, step)."""
  files = pytest.importorskip('tensorboardX.record_writer')
  from tensorboardX.proto.event_pb2 import Event

  del files
  shown = {}
  for file in sorted((path / 'tensorboard').iterdir()):
    content = file.read_bytes()
    while content:
      length = int.from_bytes(content[:8], 'little')
      event = Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      for value in event.summary.value:
        assert (value.tag, event.step) not in shown
        shown[value.tag, event.step] = value.simple_value
  return shown


def test_the_numbers_of_a_record_have_a_tag_and_a_step():
  assert board.scalars(RECORD) == [('gmm/3/score', 0.5, 5)]
  record = {'phase': 'autoencoder', 'epoch': 2, 'train_loss': 1, 'name': 'a'}
  assert board.scalars(record) == [('autoencoder/train_loss', 1.0, 2)]


def test_all_of_the_log_is_shown_and_what_is_dropped_is_not(tmp_path):
  pytest.importorskip('tensorboardX')
  for step in (5, 10):
    workdir.log(tmp_path, **RECORD | {'step': step})
  with board.mirror(tmp_path):
    pass
  assert events(tmp_path) == {('gmm/3/score', 5): 0.5, ('gmm/3/score', 10): 0.5}
  with board.mirror(tmp_path):
    workdir.rewind_log(tmp_path, 'step', 5, phase='gmm')
    workdir.log(tmp_path, **RECORD | {'step': 10, 'score': 0.25})
  assert events(tmp_path) == {
    ('gmm/3/score', 5): 0.5,
    ('gmm/3/score', 10): 0.25,
  }


def test_looks_at_the_log_follow_it(tmp_path):
  pytest.importorskip('tensorboardX')

  def looks():
    for step in (5, 6, 7):
      workdir.log(tmp_path, **RECORD | {'step': step})
      yield False
    workdir.rewind_log(tmp_path, 'step', 5, phase='gmm')
    yield False
    workdir.log(tmp_path, **RECORD | {'step': 9})
    yield True

  answers = looks()
  done = types.SimpleNamespace(wait=lambda seconds: next(answers))
  board._follow(tmp_path, done)
  assert [step for _, step in events(tmp_path)] == [5, 9]


def test_a_package_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(board.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install '\.\[board\]'"):
    board.check()
