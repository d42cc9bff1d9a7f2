"""Talk to the Hugging Face hub: whether it answers, how long to wait, and what its refusals mean."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from prunebench.errors import PrunebenchError, did_you_mean, first_line
from prunebench.model.hub_cache import MAIN, Kind, cached_repositories

T = TypeVar("T")

_PROBE_S = 4.0  # seconds that the hub has to answer before it counts as unreachable
_PATIENCE_S = 60.0  # the longest time that the hub may ask us to wait
_PAUSE_S = 1.0  # if it fails and does not say how long to wait
_TRIES = 3
_BUSY = (429, 500, 502, 503, 504)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is asked of the hub, for its errors."""

    kind: Kind
    repository: str
    revision: str | None
    offline: str
    """What to do if the hub cannot be reached."""

    def __str__(self) -> str:
        noun = "model" if self.kind == "model" else "data set"
        return f"{noun} '{self.repository}'"


def require_hub(wanted: str, *, hint: str) -> str:
    """The endpoint ($HF_ENDPOINT, else the public one), after it has answered; uses proxies.

    ``wanted`` starts the error message. Raises PrunebenchError within seconds if the hub cannot be
    reached or $HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    fault = "HF_HUB_OFFLINE is set" if offline or constants.HF_HUB_OFFLINE else _probe(endpoint)
    if fault:
        raise PrunebenchError(f"{wanted}: cannot reach the hub at {endpoint}: {fault}", hint=hint)
    return endpoint


def _probe(endpoint: str) -> str | None:
    """Why the endpoint does not answer; None if it does. A refusal counts as an answer."""
    from huggingface_hub import get_session

    outcome = [f"no answer within {_PROBE_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=_PROBE_S)
            outcome[0] = ""
        except Exception as error:
            outcome[0] = first_line(error)

    # In a thread, because the request's timeout does not cover looking up the host name, which can
    # hang for much longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S + 1)
    return outcome[0] or None


def patient(call: Callable[[], T]) -> T:
    """The result of ``call``, tried again if the hub is busy or a connection was cut.

    Waits as long as the hub asks for. Raises what ``call`` raises if that is more than a minute, if
    the third try fails too, or if the hub does not answer at all: then the time is already spent.
    """
    for left in reversed(range(_TRIES)):
        try:
            return call()
        except Exception as error:
            busy = refusal(error) in _BUSY
            wait = _asked_wait(error)
            again = busy or (is_lost_connection(error) and not _is_timeout(error))
            if not left or not again or (wait or 0) > _PATIENCE_S:
                raise
            wait = _PAUSE_S if wait is None else wait
            _log.warning("the hub fails, trying again in %.0f s: %s", wait, first_line(error))
            time.sleep(wait)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def hub_errors(wanted: Wanted, endpoint: str, file: str = "") -> Iterator[None]:
    """Turn errors of requests in the block into PrunebenchErrors that say what to do.

    ``file`` is the file of the repository that is requested.
    """
    try:
        yield
    except (PrunebenchError, MemoryError):
        raise
    except Exception as error:
        raise _explained(error, wanted, endpoint, file) from error


def is_lost_connection(error: BaseException) -> bool:
    """Whether a request failed on its way: it was cut or timed out, but nobody refused it."""
    # By name, because huggingface_hub has changed its HTTP library, and may again.
    return "TransportError" in {base.__name__ for base in type(error).__mro__}


def _is_timeout(error: BaseException) -> bool:
    return "TimeoutException" in {base.__name__ for base in type(error).__mro__}


def _explained(error: Exception, wanted: Wanted, endpoint: str, file: str) -> PrunebenchError:
    from huggingface_hub import get_token

    status, code = refusal(error), _header(error, "X-Error-Code")
    if status is None:
        return _not_answered(error, wanted, endpoint)
    token = get_token() is not None
    if code == "GatedRepo" or status == 403:
        return _gated(wanted, endpoint, token=token)
    if code == "RevisionNotFound":
        return PrunebenchError(
            f"{wanted} has no revision '{wanted.revision}'",
            hint="name a branch, a tag or a commit; `main` is the newest state",
        )
    if code == "EntryNotFound":
        return PrunebenchError(
            f"{wanted} has no file {file} at the revision '{wanted.revision or MAIN}'",
            hint="check the file's name and the revision",
        )
    if status == 401 and token and code is None:
        return PrunebenchError(
            f"the hub at {endpoint} does not accept the token that was sent for {wanted}",
            hint="set HF_TOKEN to a valid token, or run `hf auth login` again",
        )
    if status in {401, 404}:
        return _unknown(wanted, endpoint, token=token)
    if status == 429:
        wait = _asked_wait(error)
        again = "later" if wait is None else f"in {wait:.0f} s"
        return PrunebenchError(
            f"{wanted}: the hub at {endpoint} has had too many requests from here",
            hint=f"run again {again}; with HF_TOKEN set, the hub allows more",
        )
    return PrunebenchError(
        f"{wanted}: the hub at {endpoint} answers with error {status}: {first_line(error)}",
        hint=f"run again later; {wanted.offline}",
    )


def _gated(wanted: Wanted, endpoint: str, *, token: bool) -> PrunebenchError:
    page = f"{endpoint}/{'datasets/' if wanted.kind == 'dataset' else ''}{wanted.repository}"
    if token:
        return PrunebenchError(
            f"{wanted} is gated, and the token that is set has no access to it",
            hint=f"accept its licence at {page} with the account of the token, and let the token "
            "read gated repositories",
        )
    return PrunebenchError(
        f"{wanted} is gated: the hub gives it only to accounts that accepted its licence",
        hint=f"accept it at {page}, then set HF_TOKEN to a token of the account "
        "(or run `hf auth login`)",
    )


def _unknown(wanted: Wanted, endpoint: str, *, token: bool) -> PrunebenchError:
    near = did_you_mean(wanted.repository, cached_repositories(wanted.kind))
    private = "let the token read it" if token else "set HF_TOKEN, or run `hf auth login`"
    start = f"{near} Otherwise check" if near.startswith("did you mean") else "check"
    return PrunebenchError(
        f"{wanted} is not on the hub at {endpoint}, or it is private",
        hint=f"{start} the spelling; if it is private, {private}",
    )


def _not_answered(error: Exception, wanted: Wanted, endpoint: str) -> PrunebenchError:
    """The error if the hub did not answer, or not as a hub does."""
    from huggingface_hub import constants

    if _is_timeout(error):
        why = f"no answer from the hub at {endpoint} within {constants.HF_HUB_ETAG_TIMEOUT} s"
        hint = f"run again; HF_HUB_ETAG_TIMEOUT sets the seconds to wait; {wanted.offline}"
    elif is_lost_connection(error):
        why = f"the connection to the hub at {endpoint} failed: {first_line(error)}"
        hint = f"run again; {wanted.offline}"
    else:
        why = f"the hub at {endpoint} gave no usable answer: {first_line(error)}"
        hint = f"check HF_ENDPOINT; {wanted.offline}"
    return PrunebenchError(f"{wanted}: {why}", hint=hint)


def refusal(error: BaseException) -> int | None:
    """The HTTP status that the hub refused a request with, also if another error wraps it."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def _header(error: BaseException, name: str) -> str | None:
    response = _response(error)
    found: str | None = None if response is None else response.headers.get(name)
    return found


def _response(error: BaseException | None) -> Any:
    seen = 0
    while error is not None and seen < 10:
        if getattr(error, "response", None) is not None:
            return error.response  # type: ignore[attr-defined]
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _asked_wait(error: BaseException) -> float | None:
    """Seconds that the hub asks to wait, by the header Retry-After or RateLimit."""
    after = _header(error, "Retry-After") or ""
    limit = re.search(r";\s*t=(\d+)", _header(error, "RateLimit") or "")
    if after.strip().isdigit():
        return float(after)
    return float(limit[1]) if limit else None
