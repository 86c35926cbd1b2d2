"""The one exception that core raises: a caller asked for something that cannot be."""


class Rejected(Exception):
    """A caller's mistake, in words that say what to do next.

    `code` is the AWS error code (ClientException, TooManyRequestsException); `message` is shown as it is.
    """

    def __init__(self, message: str, code: str = "ClientException") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
