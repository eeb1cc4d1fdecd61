"""Few-shot tasks: classes split into base, validation and novel ones, and seeded episodes from each part.

An episode is a small task of its own: `n_shot` support images of each of `n_way` classes to learn from, and
query images of the same classes to judge by. Support and query never share an image.
"""

from fewgen.episodes.episode import Episode
from fewgen.episodes.sampler import EpisodeSampler
from fewgen.episodes.splits import class_split

__all__ = ["Episode", "EpisodeSampler", "class_split"]
