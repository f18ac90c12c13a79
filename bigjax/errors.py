"""The one exception for bad input."""


class UserError(Exception):
    """Bad input: a config, data, a checkpoint, a mesh or a request.

    The command line prints it without a traceback and exits with code 2, so the message
    says what was wrong, what was found, what is allowed, and what to do.
    """


class RunError(Exception):
    """A run that began well cannot go on (a loss that is not finite, a full disk).

    The command line prints it without a traceback and exits with code 1.
    """
