"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
    """Bad input of the user's: the message is one clear sentence, shown without a traceback (exit code 2)."""
