"""`distill`: a tiny classifier from a few images per class, and the comparison that says what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewgen.config.call import accepts_config, build, call_settings, defaults_of, unwrapped
from fewgen.config.keywords import refuse_ignored, writes_out
from fewgen.distillation.request import Distilled, DistillRequest
from fewgen.errors import ConfigError

if TYPE_CHECKING:
    from fewgen.data import ImageSet
    from fewgen.diffusion.pipeline import TextToImage
    from fewgen.distillation.work import Work
    from fewgen.runs.run import Run


@accepts_config
@writes_out
def distill(
    *,
    out: str | Path,
    novel: str | Path | ImageSet | None = None,
    data: str | Path | ImageSet | None = None,
    generator: str | Path | Run | TextToImage | ImageSet | None = None,
    student: str = "conv4",
    shots: int | None = None,
    class_split: str | None = None,
    n_way: int = 5,
    n_shot: int = 5,
    queries: int | str = "all",
    episodes: int | str = 10,
    half_width: float | None = None,
    compare: bool = False,
    competitors: str | Sequence[str] | None = None,
    per_class: int = 200,
    alpha: float = 1.0,
    pool: str | Path | ImageSet | None = None,
    joint_encoder: str = "lite",
    mixtures: int | None = None,
    teacher: str | Path | None = None,
    teacher_net: str = "resnet12",
    teacher_channels: int = 16,
    teacher_pretrain_steps: int = 2000,
    teacher_episodes: int | None = None,
    student_channels: int = 64,
    pretrain_steps: int = 1000,
    turns: str = "auto",
    base_images: int = 6000,
    training: Mapping[str, Any] | None = None,
    tint: Mapping[str, Any] | None = None,
    generator_minutes: float | None = None,
    generator_preset: str = "default",
    save_images: bool = False,
    workers: int = 1,
    seed: int = 0,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "crop",
    background: str = "error",
    convert: bool = False,
    value_range: Sequence[float] | None = None,
    data_dir: str | Path | None = None,
    download: bool = False,
    device: str = "auto",
    progress: bool = True,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Distilled:
    """Make a tiny classifier from a few images per class, or measure how much generated images help it.

    With --novel: a student for your classes. A teacher labels further images softly, and the student learns
    from them and from your images: mixtures of your images, unlabelled photographs (--pool), images that a
    generator makes (--generator), images of other classes (--data). A pretrained encoder as the teacher, such
    as --teacher lite2, needs no other images; without one the teacher is trained on --data. The folder gets
    student.safetensors, student.onnx, classes.txt, distill.json and, with a generator, synthetic.png.

    Without --novel: the comparison over few-shot episodes of the novel classes of --data, written as JSON,
    with mean accuracy, 95 % Student interval and paired differences. Teacher, student and generator learn
    from the base classes alone, and all competitors share supports, seeds, first weights and steps.

    The same command resumes what was interrupted.

    Args:
        out: a new folder for the student; or a .json file for the comparison, beside which its cells lie in
            a folder of the same name that ends in .cells.
        novel: your images: a folder with one subfolder per class.
        data: base images to prepare teacher and student on; in the comparison, the data set.
        generator: a run of tint, or of any method that was trained on your classes; a folder of images that
            were generated earlier, in subfolders of the same names; or a text-to-image model, which is
            specialised to your images: a run of diffusion, or a Stable Diffusion folder or its name on the
            hub (owner/model). The comparison takes also the name of a method, such as sq_gan, which learns
            the supports of each episode; it trains a diffusion model on its base classes if none is given.
        student: conv4 or resnet12.
        shots: images of each class to learn from, drawn by the seed, if there are more; the others measure
            the accuracy. All if left out.
        class_split: which classes of --data are base classes: all, none (with a pretrained --teacher), auto
            (the data set's own split), alphabet, counts such as 6/1/3, or a JSON file. If left out auto in
            the comparison, else all.
        n_way: classes of an episode.
        n_shot: supports of each class.
        queries: images of each class that judge, or all that are left.
        episodes: how many; auto plans them from the first ones for --half-width.
        half_width: wanted half width of the interval of the first competitor's accuracy, a share.
        compare: all competitors that can be there: tint, none (no synthetic images), augmentation (supports
            alone, random weights), augmentation_pretrained, textual_inversion, da_fusion, hard_labels,
            mixtures (of the supports), generated (mixtures and images of --generator), pool (mixtures and
            unlabelled images, with --queries K or --pool), retrieved (mixtures and --per-class images of the
            pool that are found by class name) and teacher; otherwise tint alone, or without base classes
            mixtures, and generated with such a --generator.
        competitors: only these.
        per_class: synthetic images of each class.
        alpha: of TINT images: 0 gives the supports back, 1 only shares their class.
        pool: unlabelled images that look like yours, such as a folder of photographs: the teacher says what
            they show. Images that measure the accuracy are refused. In the comparison the pool of every
            episode; if left out there, other images of the novel classes.
        joint_encoder: finds images of the pool by class name, for the competitor retrieved: lite (extra
            knowledge) or clip:FOLDER.
        mixtures: mixtures of your images (mixup, cutmix and augmented views) that the teacher labels; if left
            out 3000 with a pretrained encoder as the teacher, else none.
        teacher: a pretrained encoder, such as lite2 (extra knowledge) or clip:FOLDER; dino:FOLDER; or a
            teacher.safetensors of an earlier command. Trained on base classes if left out.
        teacher_net: network of the teacher that is trained: conv4 or resnet12.
        teacher_channels: its width.
        teacher_pretrain_steps: its training as a classifier of all base classes.
        teacher_episodes: tasks of a few base classes that it is trained on then; if left out 300, and none
            with fewer than 20 base classes.
        student_channels: width of the student; 8 to 16 make a very small one.
        pretrain_steps: training of the student on base classes, before the task.
        turns: turned base images as classes of their own when teacher and student are prepared, and a teacher
            that measures angles from the mean of base images: yes, no, or auto, with fewer than 20 base
            classes.
        base_images: base images that are shown with soft labels, evenly over the classes; 0 for all.
        training: of students, such as --training.steps 10000 or --training.flip false (for characters); if
            left out 1000 steps of 96 images, in bfloat16 where the processor multiplies such numbers, and 500
            of 90 in float32 in the comparison.
        tint: how a text-to-image model is specialised, such as --tint.textual.steps 1000 or
            --tint.guidance_scale 2; names and defaults are those of the method tint.
        generator_minutes: limit on the training of the diffusion model, or of a method in each episode.
        generator_preset: of the diffusion model or the method.
        save_images: a contact sheet of the first episode: supports and synthetic images.
        workers: episodes at the same time, each in a process with one thread.
        seed: of every draw.
        split: train or test, the part of a data set.
        size: side of the square images in pixels; the images' own, or the generator's, if left out.
        channels: 1 for grey, 3 for colour; the images' own, or the generator's, if left out.
        fit: how other shapes become square: crop, pad or stretch.
        background: transparent images: error, or put them on white or black.
        convert: accept 16-bit and CMYK images and convert them.
        value_range: the values that become black and white, such as 0 4095 for camera data or 0 1 for masks;
            0 and the largest of their type if left out.
        data_dir: folder of the named data sets; the environment variable FEWGEN_DATA_DIR if left out.
        download: fetch a missing data set from its official address.
        device: auto (CUDA where there is one), cpu or cuda.
        progress: say on standard error what is being done.
        config: YAML file (or dictionary) with any of these keywords; what is given directly wins.

    Returns:
        What was made or measured, with its notes.
    """
    from fewgen.data.registry import Reading

    reading = Reading(split, size, channels, fit, background, convert, data_dir, download, value_range)
    request = DistillRequest(
        out=out, novel=novel, data=data, generator=generator, student=student, shots=shots,
        class_split=class_split, n_way=n_way, n_shot=n_shot, queries=queries, episodes=episodes,
        half_width=half_width, compare=compare, competitors=competitors, per_class=per_class, alpha=alpha,
        pool=pool, joint_encoder=joint_encoder, mixtures=mixtures, teacher=teacher, teacher_net=teacher_net,
        teacher_channels=teacher_channels,
        teacher_pretrain_steps=teacher_pretrain_steps, teacher_episodes=teacher_episodes,
        student_channels=student_channels, pretrain_steps=pretrain_steps, turns=turns,
        base_images=base_images, training=training, tint=tint, generator_minutes=generator_minutes,
        generator_preset=generator_preset, save_images=save_images, workers=workers, seed=seed,
        reading=reading, device=device, progress=progress,
    )  # fmt: skip
    return _work(request).run()


def plan_distillation(**keywords: Any) -> str:
    """Return what `distill` would do with the same keywords, after all checks; writes nothing."""
    from fewgen.data.registry import Reading

    settings = call_settings(unwrapped(distill), keywords)
    return _work(build(DistillRequest, settings, reading=build(Reading, settings)), planning=True).plan()


def _work(request: DistillRequest, planning: bool = False) -> Work:
    from fewgen.distillation.comparison_work import ComparisonWork
    from fewgen.distillation.idle import idle_beside, idle_for_comparison, idle_for_student, refuse_idle
    from fewgen.distillation.product import PARTS_NAME
    from fewgen.distillation.student_work import StudentWork
    from fewgen.methods.registry import method_names

    given, usual = vars(request), defaults_of(distill)
    if request.generator is not None:
        own = () if request.generator in method_names() else ("generator_minutes", "generator_preset")
        refuse_ignored("with --generator, which is trained already", given, usual, *own)
    if request.novel is not None:
        compared = ("compare", "competitors", "save_images", "half_width", "n_way", "n_shot", "queries")
        others = ("episodes", "workers", "generator_preset", "joint_encoder")
        refuse_ignored("with --novel, which makes one student", given, usual, *compared, *others)
        parts = Path(request.out) / PARTS_NAME
        sources = request.generator, request.teacher, request.data
        if any(source is not None for source in sources):  # or that is what is wrong
            refuse_idle(request, usual, idle_for_student(request), parts)
        work = StudentWork(request, planning)
        refuse_idle(request, usual, idle_beside(work.source), parts)
        return work
    if request.data is None:
        raise ConfigError(
            "fewgen distill needs --novel DIR, your images, or --data D, to compare on its novel classes."
        )
    request.refuse(("shots",), "a comparison takes --n-shot images of each class")
    comparison = ComparisonWork(request, planning)
    refuse_idle(request, usual, idle_for_comparison(request, comparison.names), comparison.cells)
    return comparison
