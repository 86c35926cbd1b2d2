"""The exceptions that core raises: a caller asked for something that cannot be, or can be no more."""


class Rejected(Exception):
    """A caller's mistake, in words that say what to do next.

    `code` is the AWS error code (ClientException, TooManyRequestsException); `message` is shown as it is.
    """

    def __init__(self, message: str, code: str = "ClientException") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Denied(Rejected):
    """Understood, and not allowed to whoever asks."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "AccessDeniedException")


class Outdated(Rejected):
    """What the caller's change was made from has changed itself: it is to be made anew from what is there now."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was changed by somebody else in this moment. Try again.")
