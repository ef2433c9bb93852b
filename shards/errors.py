"""The errors that a user can cause or meet; a command prints one as one line and exits with 2."""


class BmptError(Exception):
    """Base of all errors whose message explains them: the file, the value and what to do."""


class ConfigError(BmptError):
    """A setting, an option or a list cannot be used as it is."""


class FormatError(BmptError):
    """Stored data does not follow this version of the format."""


class StorageError(BmptError):
    """A file or an object cannot be read or written."""


class SampleError(BmptError):
    """The bytes of one sample are damaged; the stream counts it and leaves a placeholder."""
