"""Container images by digest: what a tag names now, asked of its registry.

Names without a host are Docker Hub's (https://github.com/distribution/reference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qpack.core.errors import RegistryError
from registry.core.codes import INVALID_NAME
from registry.core.modelpack import DIGEST, INDEX_TYPE, MANIFEST_TYPE, digest_of
from registry.oci.distribution import Repository
from registry.oci.http import Http

# Images of several platforms are lists, by either specification.
_ACCEPT = ", ".join(
    (
        INDEX_TYPE,
        MANIFEST_TYPE,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_HUB, _HUB_API = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True)
class Image:
    """A name such as `vllm/vllm-openai:v0.32.0`, taken apart: where its registry answers, repository, tag or digest."""

    host: str
    repository: str
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Image:
        """The image of a name. Raises RegistryError if it is none."""
        name, _, digest = text.partition("@")
        first, slash, rest = name.partition("/")
        host, path = (first, rest) if slash and ("." in first or ":" in first or first == "localhost") else (_HUB, name)
        repository, colon, tag = path.rpartition(":") if ":" in path else (path, "", "")
        if not repository or (colon and not tag) or (digest and not DIGEST.fullmatch(digest)):
            raise RegistryError(INVALID_NAME, f"{text!r} is no name of a container image", hint="Write HOST/NAME:TAG.")
        if host == _HUB:
            repository = repository if "/" in repository else f"library/{repository}"
            host = _HUB_API
        return cls(host, repository, tag or "latest", digest or None)


def pin(images: Iterable[str], connect: Callable[[str], Http]) -> dict[str, str]:
    """Each image with the digest that its tag has now, by its name; one that has a digest stays as it is.

    Raises RegistryError for an image that its registry doesn't have.
    """
    found = {}
    for text in images:
        image = Image.parse(text)
        if image.digest is None:
            found[text] = f"{text}@{_digest(image, connect(image.host))}"
    return found


def _digest(image: Image, http: Http) -> str:
    repository = Repository(http, image.repository)
    path, accept = f"manifests/{image.tag}", {"Accept": _ACCEPT}
    answer = repository.ask("HEAD", path, headers=accept)
    digest = str(answer.headers.get("docker-content-digest", ""))
    if answer.status == 200 and DIGEST.fullmatch(digest):
        return digest
    answer = repository.ask("GET", path, headers=accept)
    if answer.status != 200:
        raise http.refused(answer, f"to send {image.repository}:{image.tag}")
    return digest_of(answer.body)
