"""The exceptions that the command line tells in one sentence, by their exit codes."""


class UserError(Exception):
    """Bad input: a config, data, a checkpoint, a mesh or a request.

    The command line prints it without a traceback and exits with code 2, so the message
    says what was wrong, what was found, what is allowed, and what to do.
    """

    exit_code = 2


class RunError(Exception):
    """A run that began well cannot go on (a loss that is not finite, a full disk).

    The command line prints it without a traceback and exits with code 1.
    """

    exit_code = 1


class PassingError(RunError):
    """What passes by itself: another host is lost or late, storage does not answer.

    The command line exits with code 75 (EX_TEMPFAIL): the same command, given again, goes on.
    """

    exit_code = 75
