"""The one exception that is meant for the person at the keyboard: main.py prints it as one line, exit code 2."""


class UserError(Exception):
    """Bad input or wrong usage; the message says what is wrong and how to mend it."""
