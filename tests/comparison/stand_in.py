"""What tests hand to cells in place of the real evaluation: importable, so that other processes find it."""

from __future__ import annotations

from tests.fake_method import Fake

from fewgen.errors import DataError

assert Fake.name == "fake"  # its import makes the method known in the process of a cell


class StandIn:
    """As `fewgen.evaluation.evaluation.Evaluation`, with figures that are easy to foretell."""

    def __init__(self, figures, protocol):
        self.figures, self.protocol = figures, protocol

    def to_dict(self):
        return {
            "format": "fewgen-evaluation",
            "figures": self.figures,
            "controls": {"held_out": {"frechet_distance": {"value": 0.5}, "copy_share": {"value": 0.01}}},
            "verdicts": {"new": {"answer": "no" if self.figures["copy_share"]["value"] > 0.5 else "yes"}},
            "protocol": self.protocol,
        }


def evaluate(generated, train, held_out, *, extractor, pool, useful_draws, seed):
    """Share of exact copies, and counts that tell whether every set is what the cell promised."""
    known = {image.numpy().tobytes() for image in train.images}
    share = sum(image.numpy().tobytes() in known for image in generated.images) / len(generated)
    apart = {image.numpy().tobytes() for image in pool.images}
    assert not apart & {image.numpy().tobytes() for image in held_out.images}
    assert extractor.class_names == train.class_names == generated.class_names
    figures = {
        "copy_share": {"value": share},
        "frechet_distance": {"value": 10.0 + seed},
        "n": {
            "value": float(len(generated)),
            "train": len(train),
            "held_out": len(held_out),
            "pool": len(pool),
        },
    }
    if useful_draws:
        figures["usefulness"] = {"value": 0.01 * (seed + 1), "low": 0.0, "high": 0.03}
        figures["worth_images"] = {"value": 8.0 * (seed + 1), "k": 5}
    return StandIn(figures, {"extractor": extractor.record()})


def evaluate_blindly(generated, train, held_out, *, extractor, **_):
    """A judge that knows no classes."""
    return StandIn({"copy_share": {"value": 0.0}}, {"extractor": extractor.record()})


def evaluate_badly(generated, train, held_out, **options):
    """Fail for one generator, as an unforeseen fault would."""
    if generated.name == "class_pca_gaussian":
        raise RuntimeError("a fault nobody thought of")
    if generated.name == "augmented_copies":
        raise DataError("too few images for this")
    return evaluate(generated, train, held_out, **options)
