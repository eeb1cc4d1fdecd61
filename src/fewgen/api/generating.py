"""`generate`: new images of classes or free texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config
from fewgen.config.keywords import writes_out
from fewgen.runs.run import Run, load_run

if TYPE_CHECKING:
    from fewgen.generation import GeneratedImages


@accepts_config
@writes_out
def generate(
    run: str | Path | Run,
    *,
    class_names: Sequence[str] | str | None = None,
    texts: Sequence[str] | str | None = None,
    n: int | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    temperature: float = 1.0,
    alpha: float | str | None = None,
    alphas: Sequence[float] | None = None,
    mode: str | None = None,
    strength: float | None = None,
    prompt: str | None = None,
    sharpen: float = 0.0,
    options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    config: str | Path | Mapping[str, Any] | None = None,
) -> GeneratedImages:
    """Make new images of classes or of free texts; image i depends on its own seed alone.

    Args:
        run: a run folder, or a model file.
        class_names: classes to draw; every class if neither classes nor texts are given.
        texts: free texts to draw, for a model with word vectors that carry meaning.
        n: images per class and text; 16 if left out, and 3 with alphas.
        seed: start of the image seeds; another seed gives other images.
        seeds: the image seeds themselves, for example to get one image again: these images are made of
            each class and text, in place of n and seed.
        temperature: scale of the noise; 0 gives the central image of a class, 1 the learned spread.
        alpha: for a method that starts from real images (tint): 0 gives them back, 1 only shares their class,
            uniform draws a number for each image.
        alphas: each image at each of these, side by side; in a picture after the real image that it starts
            from.
        mode: for a method that exchanges attributes by codes (tage): cpm (codes that its transformer
            predicts), nn (the codes nearest to random changes) or age (changes without codes).
        strength: for such a method, the factor on the change; 0 gives the pictures of a class back.
        prompt: for such a method, which attributes to draw, in words, such as a large drawing; only for runs
            that were trained with --model.prompts.encoder.
        sharpen: strength of a sharpening filter for the eye, such as 0.25; 0 is off. Marked in the file;
            do not measure sharpened images.
        options: further settings of the method, such as --options.guidance_scale 2 of diffusion.
        out: an .npz (with labels and seeds, and codes where there are some), a .png (one picture), or
            a folder (a subfolder per class).
        overwrite: replace an existing output.
        device: auto (CUDA where there is one), cpu or cuda.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        Images, labels, seeds and their provenance.
    """
    return load_run(run, device).generate(
        class_names=class_names,
        texts=texts,
        n=n,
        seed=seed,
        seeds=seeds,
        temperature=temperature,
        alpha=alpha,
        alphas=alphas,
        mode=mode,
        strength=strength,
        prompt=prompt,
        sharpen=sharpen,
        options=options,
        out=out,
        overwrite=overwrite,
    )
