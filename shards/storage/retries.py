"""How long a failed request is retried.

A store that has never answered is probably misconfigured: a wrong address, a wrong key, a server
that is not running. The user should see that within seconds. A store that has answered before is
only interrupted: a run of days waits for the server to come back. What a server refuses (401, 403,
404) is never retried.

After the last retry, `base.py` raises a StorageError with the words of `buckets.py`. In a training
stream (`shards/stream/pipeline.py`) it becomes a placeholder for the sample. `data.max_failures` of
them in a row end the run (`shards/stream/failures.py`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import RetryConfig

FIRST_ANSWER_SECONDS = 10.0
"""Time for the retries of a store that has never answered."""
_MAX_RETRIES = 10_000
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 10.0
# With the random jitter of obstore the mean delay grows by 1.5 per retry.
_BACKOFF_BASE = 3


def retry_config(retry_seconds: float, *, has_answered: bool) -> RetryConfig:
    """Return the retry policy of a client of obstore.

    Only time bounds the retries: the ten retries that obstore makes by default are over within
    2 to 20 seconds.

    Args:
        retry_seconds: time for the retries of one request; 0 turns retries off.
        has_answered: whether the store has answered a request before.
    """
    seconds = retry_seconds if has_answered else min(retry_seconds, FIRST_ANSWER_SECONDS)
    return {
        "max_retries": _MAX_RETRIES if seconds else 0,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=_FIRST_BACKOFF_SECONDS),
            "max_backoff": timedelta(seconds=_MAX_BACKOFF_SECONDS),
            "base": _BACKOFF_BASE,
        },
    }
