"""CompressAI's published compressors: names, files and hashes, and their download. Imports no Keras."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator

from keras_ci2p.utils import DiskFullError, PathLike, atomic_file, file_sha256

# Stands in the place of a compressor's name for none.
NO_COMPRESSOR = "none"
# By what a compressor codes: by tables made from its weights, or by those that its checkpoint holds.
TABLE_CHOICES = ("weights", "checkpoint")

ADDRESS = "https://compressai.s3.amazonaws.com/models/v1"

# File stem, and the first eight digits of the SHA-256 of qualities 1, 2, ...; source: CompressAI 1.2.8, `zoo/image.py`.
_FILES = {
    ("bmshj2018-factorized", "mse"): (
        "bmshj2018-factorized-prior",
        "446d5c7f 87279a02 5c6f152b 1ed4405a 866ba797 9b02ea3a 6dfd6734 5232faa3",
    ),
    ("bmshj2018-factorized", "ms-ssim"): (
        "bmshj2018-factorized-ms-ssim",
        "9781d705 4a584386 5352f123 4f91b847 b3a88897 ee028763 8c265a29 8811bd14",
    ),
    ("bmshj2018-hyperprior", "mse"): (
        "bmshj2018-hyperprior",
        "7eb97409 93677231 6d87be32 de1b779c f8b614e1 1ab9c41e 3804dcbd a583f0cf",
    ),
    ("bmshj2018-hyperprior", "ms-ssim"): (
        "bmshj2018-hyperprior-ms-ssim",
        "5cf249be 1ff60d1f 92dd7878 4377354e c34afc8d 3a6d8229 8747d3bc cc15b5f3",
    ),
    ("mbt2018-mean", "mse"): (
        "mbt2018-mean",
        "e522738d e54a039d 723404a8 6dba02a3 d504e8eb a19628ab d5d441d1 8089ae3e",
    ),
    ("mbt2018-mean", "ms-ssim"): (
        "mbt2018-mean-ms-ssim",
        "5bf9c0b6 e2a1bf3f 640ce819 12626c13 1be7f059 b83bf379 ddf9644c 0cc7b94f",
    ),
    ("mbt2018", "mse"): (
        "mbt2018",
        "3f36cd77 43b70cdd 22901978 456e2af9 b4a046dd 7052e5ea 8ba2bf82 dd0097aa",
    ),
    ("mbt2018", "ms-ssim"): (
        "mbt2018-ms-ssim",
        "2878436b c41cb208 d0dd64e8 a120e037 9b30e3b7 f8b3626f 16e6ff50 0cb49d43",
    ),
    ("cheng2020-anchor", "mse"): (
        "cheng2020-anchor",
        "dad2ebff a29008eb e49be189 98b0b468 23852949 4c052b1a",
    ),
    ("cheng2020-anchor", "ms-ssim"): (
        "cheng2020_anchor-ms-ssim",
        "20f521db c7ff5812 c23e22d5 0e658304 c0a95e77 f2dc1913",
    ),
    ("cheng2020-attn", "mse"): (
        "cheng2020_attn-mse",
        "465f2b64 e0805385 2d07bbdf f7b0ccf2 26c8920e 730501f2",
    ),
    ("cheng2020-attn", "ms-ssim"): (
        "cheng2020_attn-ms-ssim",
        "c5381d91 5dad201d 5c9be841 8b2f647e 5ca1f34c 216423ec",
    ),
}
_PIECE = 1 << 20
_TIMEOUT_SECONDS = 60


class DownloadError(OSError):
    """A published file that could not be had, or is not the published one.

    Examples:
        >>> issubclass(keras_ci2p.convert.DownloadError, OSError)
        True
    """


def published() -> Iterator[tuple[str, str, int, str, str]]:
    """Each published compressor: `(name, architecture, quality, file name, first digits of its SHA-256)`."""
    for (architecture, metric), (stem, digits) in _FILES.items():
        for quality, digest in enumerate(digits.split(), start=1):
            yield (
                f"{architecture}-{metric}-{quality}",
                architecture,
                quality,
                f"{stem}-{quality}-{digest}.pth.tar",
                digest,
            )


def zoo_names() -> list[str]:
    """Names that `Compressor.from_preset` can download, such as "bmshj2018-factorized-mse-5".

    Examples:
        >>> keras_ci2p.convert.zoo_names()[:2]
        ['bmshj2018-factorized-mse-1', 'bmshj2018-factorized-mse-2']
    """
    return [name for name, *_ in published()]


def zoo_families() -> str:
    """The names that `zoo_names()` gives, in a short sentence."""
    qualities = ((f"{'-'.join(kind)}-", len(digits.split())) for kind, (_, digits) in _FILES.items())
    return ", ".join(f"{family}1 to {last}" for family, last in qualities)


def check(file: PathLike, digest: str) -> str:
    """The SHA-256 of a file; DownloadError unless it begins with the digits `digest`."""
    sha256 = file_sha256(file)
    if not sha256.startswith(digest):
        raise DownloadError(
            f"{file} is not the published file: its SHA-256 begins with {sha256[: len(digest)]}, not {digest}. "
            "Delete it."
        )
    return sha256


def download(address: str, file: PathLike, digest: str) -> None:
    """Writes what `address` serves to `file`, under a temporary name until its SHA-256 is checked.

    Raises:
        DownloadError: It could not be had whole, or its SHA-256 does not begin with `digest`.
        keras_ci2p.utils.DiskFullError: There is no room for it.
    """
    by_hand = f"Put it there by hand as {file}; its SHA-256 must begin with {digest}."
    try:
        with atomic_file(file) as temporary:
            sha256 = hashlib.sha256()
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response, open(temporary, "wb") as target:
                received = 0
                while piece := response.read(_PIECE):
                    target.write(piece)
                    sha256.update(piece)
                    received += len(piece)
                expected = response.headers.get("Content-Length")
            if expected is not None and received != int(expected):
                raise DownloadError(f"{address} broke off after {received} of {expected} bytes. Try again. {by_hand}")
            if not sha256.hexdigest().startswith(digest):
                raise DownloadError(
                    f"What {address} serves is not the published file: its SHA-256 begins with "
                    f"{sha256.hexdigest()[: len(digest)]}, not {digest}."
                )
    except (DownloadError, DiskFullError):
        raise
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise DownloadError(f"{address} cannot be downloaded: {error}. {by_hand}") from error
