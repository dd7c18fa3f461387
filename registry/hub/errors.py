"""Translates errors of the huggingface_hub client. Messages contain no URLs: those of uploads are signed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from qpack.core.errors import RegistryError
from registry.core.codes import (
    INVALID_NAME,
    LOGIN_REFUSED,
    NO_SUCH_RELEASE,
    NO_SUCH_VERSION,
    REGISTRY_REFUSED,
    UNREACHABLE,
)
from registry.hub.client import unusable

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_HINTS = {
    401: "Set HF_TOKEN to a valid token, or run `hf auth login`.",
    403: "Create a token with write access to this repository.",
    409: "The repository is being changed by somebody else: run the command again.",
    412: "The repository was changed by somebody else: check what changed, then run the command again.",
    429: "Rate limit of the Hub: wait a few minutes, then run the command again.",
}


class Transient(RegistryError):
    """A temporary failure; retry."""


@contextmanager
def translate_errors(name: str, token: str | None) -> Iterator[None]:
    """Turn the client's errors in the block into a RegistryError about `hf://name`, without the token."""
    import httpx2  # the client's own HTTP library; it raises its errors
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def clean(text: str) -> str:
        text = text.replace(token, "***") if token else text
        return "".join(c for c in " ".join(text.split()) if c.isprintable())[:300]

    try:
        yield
    except RegistryError:
        raise
    except HFValidationError as error:
        raise RegistryError(INVALID_NAME, f"hf://{name} is not a valid name on the Hub: {clean(str(error))}") from None
    except OfflineModeIsEnabled:
        raise RegistryError(UNREACHABLE, f"hf://{name}: the client is offline", hint="Unset HF_HUB_OFFLINE.") from None
    except GatedRepoError:
        raise RegistryError(
            LOGIN_REFUSED, f"hf://{name}: access is gated", hint="Accept its terms on its page on the Hub."
        ) from None
    except RevisionNotFoundError:
        raise RegistryError(
            NO_SUCH_VERSION, f"hf://{name} has no such version, branch or commit", hint="Check its tags on the Hub."
        ) from None
    except RepositoryNotFoundError:
        raise RegistryError(
            NO_SUCH_RELEASE,
            f"hf://{name}: no such repository, or the token has no access to it",
            hint="Check the name; for a private repository set HF_TOKEN.",
        ) from None
    except Exception as error:
        chain = list(_chain(error))
        answered = next((e for e in chain if isinstance(e, HfHubHTTPError) and e.response is not None), None)
        if answered is not None:
            status = answered.response.status_code
            words = clean(answered.server_message or "")
            kind = Transient if status in _TRANSIENT else RegistryError
            said = f": {words}" if words else ""
            hint = _HINTS.get(status, "Run the command again: it resumes the upload.")
            raise kind(REGISTRY_REFUSED, f"hf://{name}: the Hub answered HTTP {status}{said}", hint=hint) from None
        if any(isinstance(e, httpx2.HTTPStatusError) for e in chain):
            refused = next(e for e in chain if isinstance(e, httpx2.HTTPStatusError))
            status = refused.response.status_code
            kind = Transient if status in _TRANSIENT else RegistryError
            raise kind(
                REGISTRY_REFUSED, f"hf://{name}: the Hub's storage answered HTTP {status}", hint=_HINTS.get(status, "")
            ) from None
        if any(isinstance(e, (httpx2.HTTPError, ConnectionError, LocalEntryNotFoundError)) for e in chain):
            raise Transient(
                UNREACHABLE,
                f"hf://{name}: the Hub can't be reached, or the connection broke ({type(chain[-1]).__name__})",
                hint="Check the network, then run the command again: it resumes.",
            ) from None
        if isinstance(error, ValueError) or _is_of_the_client(error):
            raise unusable(name, clean(f"{type(error).__name__}: {error}")) from None
        raise


def _is_of_the_client(error: Exception) -> bool:
    """Whether the error comes from the client (an unexpected answer) and not from qpack."""
    if not isinstance(error, (LookupError, TypeError, AttributeError, RecursionError)):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith("huggingface_hub.") for frame, _ in frames)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
