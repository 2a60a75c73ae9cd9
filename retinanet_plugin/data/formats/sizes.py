"""Sizes of images, from the headers of their files."""

from collections.abc import Sequence

from ...errors import UserError
from ..findings import counted
from ..images.image_files import bad_image, read_headers
from ..images.image_headers import BadImage, ImageHeader
from .annotated_images import AnnotatedImage

# Their pixels are lacking, not their sizes where the annotations have them.
_DAMAGES = ("cut off", "empty")


def take_sizes(images: Sequence[AnnotatedImage]) -> list[str]:
    """Set the width and height of images that have none, and check those of the others.

    Returns:
        a note on files that are damaged, but whose sizes the annotations have.

    Raises:
        UserError: the first file that cannot be read or has another size, and the number of others.
    """
    errors: list[tuple[str, BadImage]] = []
    damaged: list[tuple[str, BadImage]] = []
    for image, header in zip(images, read_headers([image.file_name for image in images])):
        is_known = image.width > 0 and image.height > 0
        said = {"width": image.width, "height": image.height} if is_known else {}
        bad = bad_image(said, header) if header is not None else None
        if bad is not None:
            kind = damaged if is_known and bad.kind in _DAMAGES else errors
            kind.append((image.file_name, bad))
        elif isinstance(header, ImageHeader):
            image.width, image.height = header.width, header.height
    if errors:
        file_name, bad = errors[0]
        more = f" ({len(errors) - 1:,} more images like it)" if len(errors) > 1 else ""
        raise UserError(f"the image {file_name} {bad.reason}{more}: {bad.remedy}")
    if damaged:
        number = counted(len(damaged), "image is damaged", "images are damaged")
        file_name, bad = damaged[0]
        return [f"{number}: {file_name} {bad.reason}"]
    return []
