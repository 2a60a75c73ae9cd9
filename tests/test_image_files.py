"""Image files: what is wrong with them is found from their headers, or by decoding them."""

import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from retinanet_plugin.data.dataset_facts import DatasetFacts
from retinanet_plugin.data.findings import Findings
from retinanet_plugin.data.images import header_cache, many_files
from retinanet_plugin.data.images.decoding import decode_images
from retinanet_plugin.data.images.header_cache import read_headers
from retinanet_plugin.data.images.image_files import (
    check_image_files,
    count_trained,
    inspect_image_files,
    without_bad_images,
)
from retinanet_plugin.data.images.image_headers import BadImage, ImageHeader, read_header
from retinanet_plugin.data.images.many_files import each_of
from retinanet_plugin.data.images.read_image import read_image
from retinanet_plugin.errors import UserError

SIZE = (40, 30)
PATIENT_NS = 10 * 10**9


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def draw(path, mode="RGB", size=SIZE, orientation=None, **save):
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        save["exif"] = exif
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **save)
    return str(path)


def cut(path, share):
    content = Path(path).read_bytes()
    with open(path, "wb") as f:
        f.write(content[: int(len(content) * share)])
    return path


def facts_of(*files, name="mine", **size):
    images = [{"file_name": str(f), "image_id": i, **size} for i, f in enumerate(files, 1)]
    return {name: DatasetFacts(name, f"the set {name}", ["thing"], images)}


def only_error(cfg, *files, **size):
    """The one error about these files."""
    findings, _ = inspect_image_files(facts_of(*files, **size), cfg)
    (error,) = findings.errors.values()
    return error


# ---- one header ----


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "bmp", "gif"])
def test_the_size_is_that_of_the_image_as_it_is_read(tmp_path, suffix):
    header = read_header(draw(tmp_path / f"a.{suffix}"))
    assert (header.width, header.height, header.orientation) == (*SIZE, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_turned_images_have_the_size_with_which_they_are_read(tmp_path, suffix, orientation):
    path = draw(tmp_path / f"a.{suffix}", orientation=orientation)
    header = read_header(path)
    assert (header.height, header.width) == read_image({"file_name": path}, "BGR").shape[:2]
    assert header.orientation == orientation


def test_a_png_may_have_its_orientation_behind_the_pixels(tmp_path):
    path = draw(tmp_path / "a.png", orientation=6)
    content = Path(path).read_bytes()
    start = content.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", content[start : start + 4])
    chunk = content[start : start + length + 12]
    content = content.replace(chunk, b"")
    end = content.index(b"IEND") - 4
    with open(path, "wb") as f:
        f.write(content[:end] + chunk + content[end:])
    header = read_header(path)
    assert (header.height, header.width) == read_image({"file_name": path}, "BGR").shape[:2]
    assert header.orientation == 6


def write_bad(path, kind):
    if kind == "not a file":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no image":
        path.write_text("<!DOCTYPE html><title>404</title>")
    elif kind == "git lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "cut off":
        cut(draw(path), 0.05)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("not a file", "is not a file"),
        ("empty", "is empty (0 bytes)"),
        ("no image", "<!DOCTYPE html>"),
        ("git lfs", "Git LFS"),
        ("cut off", "begins as a JPEG"),
    ],
)
def test_a_bad_file_is_named_with_its_kind_and_a_remedy(tmp_path, small_cfg, kind, words):
    path = write_bad(tmp_path / "a.jpg", kind)
    assert read_header(path).kind == kind
    error = str(only_error(small_cfg, path))
    assert path in error
    assert "image 1" in error
    assert words in error
    assert "SKIP_BAD_IMAGES" in error


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_in_its_pixels_is_found_by_its_end(tmp_path, suffix, share):
    header = read_header(cut(draw(tmp_path / f"a.{suffix}", size=(200, 200)), share))
    assert header.kind == "cut off"
    assert "truncated" in header.reason


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_what_stands_behind_the_end_of_an_image_does_not_matter(tmp_path, suffix):
    path = draw(tmp_path / f"a.{suffix}")
    for more in (b"\0", b"a film" * 20_000):
        with open(path, "ab") as f:
            f.write(more)
        assert read_header(path) == ImageHeader(*SIZE, "RGB", 1, False, False, False)


def test_a_file_without_permission_is_unreadable(tmp_path, monkeypatch):
    path = draw(tmp_path / "a.jpg")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in read_header(path).reason


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    assert read_header(str(tmp_path / "a.jpg")).kind == "not a file"


def test_a_name_that_no_file_can_have_is_missing():
    assert read_header("a\0b.jpg").kind == "missing"


def test_more_pixels_than_pillow_reads_are_an_error_and_half_of_them_a_warning(
    tmp_path, small_cfg, monkeypatch
):
    path = draw(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of 1200
    assert "too large" in str(only_error(small_cfg, path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    findings, _ = inspect_image_files(facts_of(path), small_cfg)
    (warning,) = findings.warnings.values()
    assert "huge, 40 x 30 pixels" in str(warning)
    assert not findings.errors


# ---- sizes ----


def test_another_size_than_annotated_is_an_error_with_both(tmp_path, small_cfg):
    path = draw(tmp_path / "a.jpg")
    error = str(only_error(small_cfg, path, width=50, height=30))
    assert "40 x 30" in error
    assert "width 50 and height 30" in error


def test_the_unturned_size_of_a_turned_image_is_an_error_that_says_exif(tmp_path, small_cfg):
    path = draw(tmp_path / "a.jpg", orientation=6)
    error = str(only_error(small_cfg, path, width=40, height=30))
    assert "EXIF" in error
    assert "30 x 40" in error
    assert "width 40 and height 30" in error
    findings, facts = inspect_image_files(facts_of(path, width=30, height=40), small_cfg)
    assert not findings.errors
    assert facts["mine"].num_turned == 1


def test_errors_of_a_kind_are_counted_and_the_first_file_is_named(tmp_path, small_cfg):
    files = [tmp_path / f"{i}.jpg" for i in range(5)]
    error = only_error(small_cfg, *files)
    assert error.count == 5
    assert "0.jpg" in str(error)
    assert "4 more like it" in str(error)


# ---- what is read as something else ----


def test_colours_of_print_are_warned_of(tmp_path, small_cfg):
    path = draw(tmp_path / "a.jpg", "CMYK")
    findings, facts = inspect_image_files(facts_of(path), small_cfg)
    (warning,) = findings.warnings.values()
    assert f"{path}) has the colours of print (CMYK)" in str(warning)
    assert facts["mine"].modes == {"CMYK": 1}
    assert not findings.errors


@pytest.mark.parametrize(("dtype", "good"), [(np.float32, [0, 99.5, 255]), (np.int32, [0, 255])])
@pytest.mark.parametrize("bad", [[0, 0.5, 1], [-1, 7], [0, 256]])
def test_pixels_without_a_range_are_found_before_they_are_needed(
    tmp_path, small_cfg, dtype, good, bad
):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([good], dtype)).save(path)
    findings, _ = inspect_image_files(facts_of(path), small_cfg)
    assert not findings.warnings
    assert not findings.errors
    bad = [x if dtype == np.float32 else x * 300 for x in bad]
    Image.fromarray(np.array([bad], dtype)).save(path)
    error = only_error(small_cfg, path)
    assert f"{path}) cannot be decoded (its pixels have no known range and values from" in str(
        error
    )


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(("largest", "is_dark"), [(4095, True), (2**14, False), (65535, False)])
def test_deep_greys_that_stay_dark_are_warned_of(tmp_path, small_cfg, suffix, largest, is_dark):
    files = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for file, value in zip(files, (200, largest)):
        Image.fromarray(np.full(SIZE, value, np.uint16)).save(file)
    findings, _ = inspect_image_files(facts_of(*files), small_cfg)
    assert not findings.errors
    warnings = list(map(str, findings.warnings.values()))
    assert len(warnings) == is_dark
    for warning in warnings:
        assert f"image 1 ({files[0]}) has greys of 16 bits" in warning
        assert "above 4,095, read as 16 of 255: multiply the values by 16," in warning


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_that_are_read_as_meant_are_facts(tmp_path, small_cfg, mode):
    findings, facts = inspect_image_files(facts_of(draw(tmp_path / "a.png", mode)), small_cfg)
    assert not findings.warnings
    assert facts["mine"].modes == {mode: 1}


def test_of_an_animation_the_first_frame_counts(tmp_path, small_cfg):
    frames = [Image.new("L", SIZE, value) for value in (0, 128)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    findings, facts = inspect_image_files(facts_of(tmp_path / "a.gif"), small_cfg)
    assert facts["mine"].num_animated == 1
    (warning,) = findings.warnings.values()
    assert "a.gif) has several frames or pages, of which only the first is read" in str(warning)


@pytest.mark.parametrize(("alpha", "num_warnings"), [(255, 0), (254, 1)])
def test_alpha_is_warned_of_where_it_hides_something(tmp_path, small_cfg, alpha, num_warnings):
    picture = Image.new("RGBA", SIZE, (9, 9, 9, 255))
    picture.putpixel((3, 4), (9, 9, 9, alpha))
    picture.save(tmp_path / "a.png")
    findings, facts = inspect_image_files(facts_of(tmp_path / "a.png"), small_cfg)
    assert facts["mine"].num_transparent == 1
    assert [kind for kind, _ in findings.warnings] == ["transparent"] * num_warnings


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_folder_that_is_named_twice(tmp_path, small_cfg, monkeypatch, is_relative):
    (tmp_path / "train").mkdir()
    draw(tmp_path / "train/a.png", "RGB")
    monkeypatch.chdir(tmp_path)
    folder = "train" if is_relative else str(tmp_path / "train")
    error = str(only_error(small_cfg, f"{folder}/train/a.png"))
    assert f", but {folder}/a.png does: correct the image folder" in error
    assert ("looked for as" in error) == is_relative


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("sub\\a.jpg", "sub/a.jpg"),
        ("C:\\data\\a.jpg", "a.jpg"),
        ("a.jpg", "a.JPG"),
        ("a.jpg", "a.png"),
        ("a", "a.jpg"),
        ("images/a.jpg", "a.jpg"),
    ],
)
def test_a_missing_file_beside_the_one_that_is_meant(tmp_path, small_cfg, name, there):
    (tmp_path / "sub").mkdir()
    Image.new("L", SIZE).save(tmp_path / there, "png")
    error = only_error(small_cfg, tmp_path / name, tmp_path / "elsewhere.jpg")
    assert f"({tmp_path / name}) does not exist, but {tmp_path / there} does (1 more" in str(error)


def test_a_missing_folder(tmp_path, small_cfg):
    error = str(only_error(small_cfg, tmp_path / "nothing/a.jpg"))
    assert "does not exist, nor does its folder: correct the image folder" in error


def test_images_of_other_machines_are_counted_and_not_looked_at(small_cfg):
    findings, facts = inspect_image_files(facts_of("s3://bucket/a.jpg"), small_cfg)
    assert facts["mine"].num_remote == 1
    assert not findings.errors


# ---- leaving bad images out ----


def test_bad_images_can_be_left_out_with_a_warning(tmp_path, small_cfg, caplog):
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    datasets = facts_of(draw(tmp_path / "good.jpg"), write_bad(tmp_path / "bad.jpg", "empty"))
    with caplog.at_level(logging.WARNING, logger="detectron2.image_files"):
        check_image_files(datasets, small_cfg)
    assert "bad.jpg) is empty (0 bytes): it is left out" in caplog.text

    caplog.clear()
    left = without_bad_images(datasets["mine"].images, small_cfg)
    assert [os.path.basename(image["file_name"]) for image in left] == ["good.jpg"]
    assert "1 of 2 images are left out" in caplog.text
    assert "bad.jpg" in caplog.text


def test_of_a_test_set_the_warning_says_that_the_objects_count_as_missed(tmp_path, small_cfg):
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    small_cfg.DATASETS.TEST = ("mine",)
    datasets = facts_of(draw(tmp_path / "good.jpg"), tmp_path / "missing.jpg")
    findings, _ = inspect_image_files(datasets, small_cfg)
    assert "not found" in str(next(iter(findings.warnings.values())))


def test_a_set_without_any_good_image_is_an_error_all_the_same(tmp_path, small_cfg):
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    assert "none of them can be used" in str(only_error(small_cfg, tmp_path / "missing.jpg"))


def test_good_images_without_objects_are_nothing_to_train_on(tmp_path, small_cfg):
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    small_cfg.DATASETS.TRAIN = ("mine",)
    datasets = facts_of(draw(tmp_path / "good.jpg"), tmp_path / "missing.jpg")
    box = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    datasets["mine"].images[1]["annotations"] = [box]
    findings, images = inspect_image_files(datasets, small_cfg)
    assert count_trained(datasets["mine"], images["mine"], small_cfg) == 0
    (error,) = findings.errors.values()
    assert "none that has an object can be used" in str(error)


def test_by_default_bad_images_stay_and_are_an_error(tmp_path, small_cfg):
    datasets = facts_of(tmp_path / "missing.jpg", width=40, height=30)
    assert without_bad_images(datasets["mine"].images, small_cfg) is datasets["mine"].images
    with pytest.raises(UserError, match=r"missing\.jpg"):
        check_image_files(datasets, small_cfg)


def test_sizes_that_annotations_lack_are_taken_from_the_files(tmp_path, small_cfg):
    images = facts_of(draw(tmp_path / "a.jpg", orientation=6))["mine"].images
    (image,) = without_bad_images(images, small_cfg)
    assert (image["width"], image["height"]) == (30, 40)


# ---- the cache ----


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """``cached()``: headers of two images, and which files were opened for them."""
    monkeypatch.setattr(header_cache, "_MIN_FILES", 1)
    files = [draw(tmp_path / f"{i}.png") for i in range(2)]
    for file in files:
        make_old(file)
    opened = []

    def read(path):
        opened.append(path)
        return read_header(path)

    monkeypatch.setattr(header_cache, "read_header", read)

    def call():
        opened.clear()
        return read_headers(files), list(opened)

    call.files = files
    return call


def make_old(file):
    """As if the file had been written some time ago."""
    status = os.stat(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - PATIENT_NS))


def test_headers_are_read_once(cached):
    first, opened = cached()
    assert opened == cached.files
    assert cached() == (first, [])


def test_a_changed_image_is_read_again_even_with_its_old_time(cached):
    first, _ = cached()
    status = os.stat(cached.files[0])
    draw(cached.files[0], size=(30, 40))
    os.utime(cached.files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    headers, opened = cached()
    assert opened == cached.files[:1]
    assert (headers[0].width, headers[0].height) == (30, 40)
    assert headers[1] == first[1]


def test_a_deleted_image_is_missing(cached):
    cached()
    os.unlink(cached.files[1])
    headers, _ = cached()
    assert isinstance(headers[0], ImageHeader)
    assert headers[1].kind == "missing"


def test_an_image_that_was_just_written_is_not_kept(cached):
    draw(cached.files[0])
    cached()
    assert cached()[1] == cached.files[:1]


def test_bad_images_are_not_kept(cached, monkeypatch):
    bad = BadImage("unreadable", "cannot be read", "mend its permissions")
    with monkeypatch.context() as patched:
        patched.setattr(header_cache, "read_header", lambda path: bad)
        assert cached()[0] == [bad, bad]
    assert cached()[1] == cached.files


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"40, 30", b"41, 30"),
        lambda content: b"",
        lambda content: b"\xff\x00",
    ],
)
def test_a_damaged_cache_is_not_used(cached, cache_folder, damage):
    first, _ = cached()
    (path,) = (p for p in cache_folder.rglob("*") if p.is_file())
    path.write_bytes(damage(path.read_bytes()))
    assert cached() == (first, cached.files)
    assert cached() == (first, [])


def test_a_cache_of_another_version_is_not_used(cached, monkeypatch):
    cached()
    monkeypatch.setattr(header_cache, "_VERSION", b"another")
    assert cached()[1] == cached.files


@pytest.mark.parametrize("place", ["a file", "relative"])
def test_without_a_place_for_the_cache_headers_are_read_each_time(
    cached, cache_folder, monkeypatch, place
):
    if place == "a file":
        (cache_folder / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder / "file"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cached()[1] == cached()[1] == cached.files
    assert not os.path.exists("relative")


def test_sets_that_share_a_folder_keep_each_others_headers(cached):
    for file in cached.files:
        read_headers([file])
    assert cached()[1] == []


# ---- decoding ----


def decoded(cfg, *files):
    findings, (datasets) = Findings(), facts_of(*files)
    _, facts = inspect_image_files(datasets, cfg)
    decode_images(datasets["mine"], facts["mine"], cfg, findings)
    return findings, facts["mine"]


def test_a_damaged_file_is_found(tmp_path, small_cfg):
    damaged = draw(tmp_path / "damaged.png", size=(200, 200))
    content = bytearray(Path(damaged).read_bytes())
    content[len(content) // 2] ^= 0xFF
    Path(damaged).write_bytes(content)
    findings, facts = decoded(small_cfg, draw(tmp_path / "good.jpg"), damaged)
    assert list(facts.bad) == [1]
    (error,) = map(str, findings.errors.values())
    assert damaged in error
    assert "cannot be read" in error


def test_a_jpeg_whose_pixels_end_early_is_warned_of(tmp_path, small_cfg):
    pytest.importorskip("cv2")
    half = draw(tmp_path / "half.jpg", size=(200, 200))
    content = Path(half).read_bytes()
    Path(half).write_bytes(content[: len(content) // 2] + b"\xff\xd9")  # its end is there
    findings, _ = decoded(small_cfg, draw(tmp_path / "good.jpg"), half)
    (warning,) = map(str, findings.warnings.values())
    assert half in warning
    assert "premature end of data" in warning


def test_files_that_are_cut_off_alike_are_one_finding(tmp_path, small_cfg):
    files = [cut(draw(tmp_path / f"{i}.bmp", size=(90 + i, 90)), 0.6) for i in range(4)]
    findings, _ = decoded(small_cfg, *files)
    (error,) = findings.errors.values()
    assert error.count == 4


def test_with_skipping_a_damaged_image_is_a_warning(tmp_path, small_cfg):
    small_cfg.DATASETS.SKIP_BAD_IMAGES = True
    findings, _ = decoded(small_cfg, cut(draw(tmp_path / "a.bmp", size=(90, 90)), 0.6))
    assert not findings.errors
    assert "left out" in str(next(iter(findings.warnings.values())))


# ---- many files ----


def test_results_of_processes_are_those_of_one(tmp_path):
    files = [draw(tmp_path / f"{i}.png", size=(10 + i, 5)) for i in range(20)]
    assert list(each_of(read_header, files, "test", min_items=1)) == [*map(read_header, files)]


def test_where_no_process_can_be_started_this_one_does_the_work(monkeypatch):
    class NoProcesses:
        def __init__(self, *args):
            raise OSError("no more processes")

    monkeypatch.setattr(many_files, "ProcessPoolExecutor", NoProcesses)
    assert list(each_of(str, [1, 2, 3], "test", min_items=1)) == ["1", "2", "3"]


def end_process(number):
    if number == 3 and os.getpid() != PARENT:
        os._exit(9)  # as when memory runs out
    return number


PARENT = os.getpid()


def test_a_process_that_is_ended_does_not_end_the_work():
    assert list(each_of(end_process, range(200), "test", min_items=1)) == list(range(200))
