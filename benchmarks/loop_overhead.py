"""What the training loop costs per step beside a bare PyTorch loop over the same network.

    python benchmarks/loop_overhead.py

Both train the same small autoencoder with AdamW, gradient clipping and a running average of the weights. The
loop of fewgen also checks for NaN, logs every 20 steps and shows progress. Blocks of steps alternate between
the two, so that other load on the machine hits both; the medians over the blocks are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fewgen.data.imageset import ImageSet
from fewgen.losses.terms import LossTerms
from fewgen.nn.ema import EMA
from fewgen.training import Batch, Context, Phase, Stage, TrainConfig, Trainer, make_sampler


class Autoencoder(nn.Module):
    """A small network with 20 parameter tensors, about as many as the methods have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [784, *[width] * 9, 784]
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])

    def loss(self, x: Tensor) -> Tensor:
        """Summed squared error of the reconstruction."""
        return (self.net(x) - x.flatten(1)).square().sum(1).mean()

    def save(self, path: object, extra: object = None) -> None:
        """Nothing to keep."""


class BareLoop:
    """A loop without any comfort."""

    def __init__(self, images: ImageSet, width: int, batch_size: int) -> None:
        torch.manual_seed(0)
        self.net = Autoencoder(width)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, fused=True)
        self.ema = EMA(self.net, 0.999)
        self.sampler = make_sampler("shuffled", images.labels, batch_size, 0)
        self.floats = images.floats()

    def run(self, steps: int) -> float:
        """Take steps; return ms per step."""
        started = time.perf_counter()
        for _ in range(steps):
            x = self.floats[self.sampler.next()]
            self.optimizer.zero_grad()
            loss = self.net.loss(x)
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
            self.optimizer.step()
            self.ema.update(self.net)
        return (time.perf_counter() - started) / steps * 1e3


class Alternating:
    """Runs a block of the bare loop after every block of ours, and takes the times of ours."""

    def __init__(self, images: ImageSet, width: int, batch_size: int, block: int) -> None:
        self.loop = BareLoop(images, width, batch_size)
        self.block = block
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.started = 0.0

    def __call__(self, batch: Batch, context: Context) -> None:
        """Start and end blocks; called in every step of ours."""
        if context.step % self.block == 0:
            if context.step:
                self.ours.append((time.perf_counter() - self.started) / self.block * 1e3)
                self.bare.append(self.loop.run(self.block))
            self.started = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--block", type=int, default=100, help="steps per block")
    parser.add_argument("--blocks", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    labels = torch.arange(300) % 10
    pixels = torch.randint(0, 256, (300, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels.to(torch.uint8), labels, tuple("0123456789"))
    torch.manual_seed(0)
    net = Autoencoder(args.width)
    alternate = Alternating(images, args.width, args.batch_size, args.block)

    def loss(batch: Batch, context: Context) -> LossTerms:
        alternate(batch, context)
        return LossTerms({"image": net.loss(batch.images)})

    stage = Stage(
        "autoencoder",
        [Phase("image", net, loss, lr=1e-3, clip=5.0)],
        steps=args.block * (args.blocks + 1) + 1,
        batch_size=args.batch_size,
    )
    config = TrainConfig(progress=False, checkpoint_every=0, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        Trainer(net, [stage], images, None, config, Path(folder) / "run").run()
    # The first block warms both up.
    ours, plain = alternate.ours[1:], alternate.bare[1:]
    differences = [a - b for a, b in zip(ours, plain, strict=True)]
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, 1 thread")
    print(f"{len(ours)} blocks of {args.block} steps, batch {args.batch_size}, width {args.width}")
    print(f"bare loop    {statistics.median(plain):7.3f} ms/step   fastest {min(plain):.3f}")
    print(f"fewgen loop  {statistics.median(ours):7.3f} ms/step   fastest {min(ours):.3f}")
    fastest = min(ours) - min(plain)
    print(f"overhead     {statistics.median(differences):7.3f} ms/step   of the fastest {fastest:.3f}")


if __name__ == "__main__":
    main()
