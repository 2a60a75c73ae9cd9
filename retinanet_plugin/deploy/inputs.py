"""What the command ``predict`` is given: images, folders, globs, videos and cameras."""

import glob
import os
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UserError
from .pictures import images_in
from .videos import SUFFIXES, Video, open_video


class Inputs(NamedTuple):
    """Files, each once, by their absolute paths, and numbers of cameras."""

    images: list[str]
    videos: list[Video]
    cameras: list[int]
    unreadable: dict[str, str]  # what is said of videos that cannot be read, by their paths

    @property
    def paths(self) -> list[str]:
        return [*self.images, *(video.path for video in self.videos), *self.unreadable]


def find_inputs(given: Sequence[str]) -> Inputs:
    """What paths, folders and globs name, and numbers that are no files.

    Raises:
        UserError: one names nothing.
    """
    paths: list[str] = []
    inputs = Inputs([], [], [], {})
    for name in given:
        if os.path.isdir(name):
            paths += images_in(name)
        elif os.path.isfile(name):
            paths.append(name)
        elif found := sorted(filter(os.path.isfile, glob.glob(name, recursive=True))):
            paths += found
        elif name.isdecimal():
            inputs.cameras.append(int(name))
        else:
            raise UserError(f"there is no file or folder {name}: correct the path or the glob")
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        if os.path.splitext(path)[1].lower() not in SUFFIXES:
            inputs.images.append(path)
            continue
        try:
            inputs.videos.append(open_video(path))
        except UserError as error:
            inputs.unreadable[path] = str(error)
    return inputs
