"""What every page is made with: templates of this folder, pictures inside the page, whole files."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, Template

from ..whole_files import write_whole_file


def template(name: str) -> Template:
    """A template of this folder, such as ``plan_page.html``, which escapes what it is given.

    It has :func:`data_uri` as a filter.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, trim_blocks=True)
    environment.filters["data_uri"] = data_uri
    return environment.get_template(name)


def data_uri(picture: bytes, media_type: str) -> str:
    """The content of a picture's file as an address, so that a page opens without a network.

    Args:
        picture: what the file has.
        media_type: after ``image/``: ``png``, ``jpeg`` or ``svg+xml``.
    """
    return f"data:image/{media_type};base64,{base64.b64encode(picture).decode()}"


def write_text(path: str, text: str) -> None:
    """Write a page, or what belongs to it, in UTF-8.

    Raises:
        UserError: the file cannot be written.
    """
    # Names of files may have bytes that are no text.
    write_whole_file(path, lambda file: file.write(text.encode(errors="replace")))
