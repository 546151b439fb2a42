"""Errors that a user can act on."""


class InputError(ValueError):
  """Input that cannot be used: names the value, the bound and the remedy."""


class RunError(RuntimeError):
  """A run that cannot go on; what it has saved is intact."""


def one_line(error: Exception) -> str:
  """Returns the message of an error as one line."""
  return ' '.join(str(error).split()) or type(error).__name__
