"""The memory that a process may use."""

from jaxclust import memory


def test_the_memory_is_what_a_container_or_a_process_limit_leaves(
  tmp_path, monkeypatch
):
  (tmp_path / 'max').write_text('max\n')
  (tmp_path / 'limit').write_text('1000000\n')
  names = (tmp_path / 'max', tmp_path / 'none')
  monkeypatch.setattr(memory, '_CONTAINER_LIMITS', names)
  whole = memory.host_bytes()
  assert whole > 2**28
  names = (tmp_path / 'max', tmp_path / 'limit')
  monkeypatch.setattr(memory, '_CONTAINER_LIMITS', names)
  assert memory.host_bytes() == 1_000_000
  monkeypatch.setattr(
    memory.resource, 'getrlimit', lambda kind: (900_000, 1_000_000)
  )
  assert memory.host_bytes() == 900_000
