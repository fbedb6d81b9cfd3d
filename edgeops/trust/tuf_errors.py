"""python-tuf's errors in the words of edgeops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tuf.api import exceptions

from edgeops.contracts.errors import EdgeopsError


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn python-tuf's errors into errors with a code.

    Raises:
        EdgeopsError: E-TRUST-EXPIRED, E-TRUST-METADATA, E-WIRE-SIZE, E-NET-RESPONSE, E-NET-UNREACHABLE, or what a
            fetcher of ours raised.
    """
    try:
        yield
    except exceptions.ExpiredMetadataError as error:
        raise EdgeopsError(
            "E-TRUST-EXPIRED", str(error), "Check this device's clock; the control plane renews metadata while it runs."
        ) from error
    except exceptions.RepositoryError as error:
        raise EdgeopsError("E-TRUST-METADATA", str(error)) from error
    except exceptions.DownloadLengthMismatchError as error:
        raise EdgeopsError("E-WIRE-SIZE", str(error)) from error
    except (exceptions.DownloadHTTPError, exceptions.SlowRetrievalError) as error:
        raise EdgeopsError("E-NET-RESPONSE", str(error)) from error
    except exceptions.DownloadError as error:
        if isinstance(error.__cause__, EdgeopsError):
            raise error.__cause__ from None
        raise EdgeopsError("E-NET-UNREACHABLE", str(error)) from error
