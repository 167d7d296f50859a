"""What goes wrong because of what the user handed in, told apart from what goes wrong in the program."""


class InputError(ValueError):
    """Bad input: the message is one line that names the file, the key or line, what was found and what is allowed.

    The command line prints it and exits with status 2; the app shows it beside the field.
    """
