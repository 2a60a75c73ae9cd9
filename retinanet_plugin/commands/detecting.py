"""The work of ``predict``: this process's share of images and frames, noted in the journal."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from detectron2.structures import Instances
from tqdm import tqdm

from ..deploy import Predictor
from ..deploy.inputs import Inputs
from ..deploy.journal import Journal
from ..deploy.tiles import detect_in_tiles
from ..deploy.videos import Camera, Video, frames_of
from ..engine import torchrun
from ..errors import UserError

Place = tuple[str, int | None]  # path, and number of a video's frame
_Work = Iterable[tuple[Place, Any]]  # places, and a path or an array each


def detect(
    predictor: Predictor,
    inputs: Inputs,
    cameras: Sequence[Camera],
    journal: Journal,
    done: set[Place],
    tiles: int | None,
) -> list[str]:
    """Note what is found in this process's share of all that is not done yet.

    Returns:
        what is said of files that cannot be read, or not to their end.
    """
    unreadable: list[str] = []
    number, size = torchrun.rank(), torchrun.num_processes()

    def note(error: object) -> None:
        unreadable.append(str(error))
        if number == 0:
            tqdm.write(f"WARNING: {error}", file=sys.stderr)

    for error in inputs.unreadable.values() if number == 0 else ():
        note(error)
    left = [path for path in inputs.images if (path, None) not in done]
    left = left[len(left) * number // size : len(left) * (number + 1) // size]
    frames = sum(video.num_frames for video in inputs.videos)
    frames -= sum(frame is not None for _, frame in done)
    works = [
        _images(left),
        *(_frames(video, done, note) for video in inputs.videos),
        *(_images(camera.frames()) for camera in cameras),
    ]
    with tqdm(
        total=None if cameras else len(left) + max(0, frames) // size,
        unit=" images",
        file=sys.stderr,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
        delay=0,  # else tqdm.write shows a bar whose line is not ended, if it closes soon
        disable=number > 0,
    ) as bar:
        for (path, frame), found in itertools.chain(*(_found(predictor, w, tiles) for w in works)):
            if isinstance(found, UserError):
                note(found)
            else:
                journal.add(path, frame, found)
            bar.update()
    return unreadable


def _images(paths: Iterable[str]) -> _Work:
    return (((path, None), path) for path in paths)


def _frames(video: Video, done: set[Place], note: Callable[[object], None]) -> _Work:
    """Frames that are not done, and of several processes every so many."""
    number, size = torchrun.rank(), torchrun.num_processes()
    start = next(i for i in itertools.count() if (video.path, i) not in done)
    try:
        for i, frame in enumerate(frames_of(video, start), start):
            if i % size == number and (video.path, i) not in done:
                yield (video.path, i), frame
    except UserError as error:
        if number == 0:
            note(error)


def _found(
    predictor: Predictor, work: _Work, tiles: int | None
) -> Iterator[tuple[Place, Instances | UserError]]:
    places: list[Place] = []  # of images that are read ahead

    def sources() -> Iterator[Any]:
        for place, source in work:
            places.append(place)
            yield source

    found = _in_tiles(predictor, sources(), tiles) if tiles else predictor.stream(sources())
    for result in found:
        yield places.pop(0), result


def _in_tiles(
    predictor: Predictor, sources: Iterable[Any], side: int
) -> Iterator[Instances | UserError]:
    for source in sources:
        try:
            yield detect_in_tiles(predictor, source, side)
        except UserError as error:
            yield error
