"""The global random generators: numbers that depend on a place in the training alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*place: int) -> None:
    """Let the global generators of Python, numpy and torch (CPU and CUDA) start from ``place``.

    Args:
        place: numbers from 0, such as seed, rank and iteration.
    """
    seed = seed_cpu_generators(*place)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def seed_cpu_generators(*place: int) -> int:
    """As :func:`seed_generators`, but CUDA is left alone, which workers that load data cannot use.

    Returns:
        int: what torch's generator was seeded with.
    """
    *of_numpy, of_python, of_torch = np.random.SeedSequence(place).generate_state(6).tolist()
    random.seed(of_python)
    np.random.seed(of_numpy)
    torch.random.default_generator.manual_seed(of_torch)
    return of_torch


@contextmanager
def unchanged_random_states() -> Iterator[None]:
    """What is done in here draws nothing from the random numbers of the training.

    Loaders draw a seed from them, for example, and augmentations draw what they do.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
