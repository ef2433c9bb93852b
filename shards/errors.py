"""The errors a user can cause or meet; the command line prints each as one line and exits with
2."""


class BmptError(Exception):
    """A mistake or a condition that the message explains: it names the file, the value and the
    cure."""


class ConfigError(BmptError):
    """A setting, an option or a list that cannot be used as it is."""


class FormatError(BmptError):
    """Stored data that is not what this version of the format says."""


class StorageError(BmptError):
    """A file or object that cannot be read or written."""


class SampleError(BmptError):
    """One sample whose bytes are damaged; the stream counts it and leaves its place empty."""
