"""Shared by all tests: the data folder, one thread, no network, repeatable properties."""

import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fewgen", deadline=None, derandomize=True, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fewgen")

# Sums depend on the number of threads in their last bits, and workers share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets; its absence is a failure where it was promised."""
    promised = os.environ.get("FEWGEN_DATA_DIR")
    folder = Path(promised) if promised else Path(__file__).parents[2] / "shared" / "datasets"
    if folder.is_dir():
        return folder.resolve()
    if promised or os.environ.get("CI"):
        pytest.fail(f"The data folder {folder} is missing; FEWGEN_DATA_DIR must name it.")
    pytest.skip("no real data here; set FEWGEN_DATA_DIR")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise OSError(f"tests must not use the network, but tried {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", local_only)
