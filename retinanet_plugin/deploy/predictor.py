"""Predictor: from images to detections, as evaluation finds them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from detectron2.structures import Instances

from ..errors import UserError
from .networks import open_network
from .pictures import ORDERS, SOURCE_TYPES, Source, sources_of
from .score_thresholds import ScoreThresholds
from .workers import Workers

if TYPE_CHECKING:
    import supervision

# Images of one size that a GPU, or an exported model, is given at a time.
_MOST_IMAGES = 8
_MOST_NAMED = 5  # classes in repr()

Prepared = dict[str, Any] | UserError


class Predictor:
    """Detections in images: those that evaluation finds, with the same rules for files and sizes.

    ::

        predictor = Predictor("output/model_final.pth")
        for found in predictor(["a.jpg", "b.jpg"]):
            print(found.pred_boxes, found.scores, found.pred_classes)

    On a CPU the batch norms are folded into the convolutions, and several images are computed at a
    time, in threads: results are those of evaluation up to rounding (1e-5 in score, 0.01 px).
    Images of different sizes are never padded to one, which would change what is found near
    borders. It may be called from several threads and, with PyTorch on the CPU, in forks. A
    pickle or a copy opens the files anew.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        device: str = "",
        opts: Sequence[object] = (),
        score_thresholds: str | os.PathLike[str] = "",
    ) -> None:
        """
        Args:
            model: a checkpoint of this package, which carries its config, class names and
                preprocessing; a file of ``export`` (``.onnx``, ``.xml`` or ``.pt2``), which runs on
                the CPU; or a config (``.yaml``).
            weights: for a config: any that ``MODEL.WEIGHTS`` can be; "": the config names them.
            device: of PyTorch, such as "cpu" or "cuda:1"; "": the config's if this machine has it,
                else the CPU.
            opts: config keys and values, ``[KEY, VALUE, ...]``, such as
                ``["MODEL.RETINANET.SCORE_THRESH_TEST", 0.5]`` or
                ``["MODEL.RETINANET.BFLOAT16", True]``.
            score_thresholds: report.json of ``report``, whose best threshold of each class leaves
                out what scores less; "": all that the config's threshold keeps.

        Raises:
            UserError: a file cannot be read, does not fit the other, or there is no such device.
        """
        self._given = os.fspath(model), os.fspath(weights), device, [str(x) for x in opts]
        self._network = open_network(*self._given)
        self._report = os.fspath(score_thresholds)
        self._threshold = ScoreThresholds(self._report, self._network.class_names)
        self._process = os.getpid()
        self._workers = Workers(share_torch=self._network.runs_on_cpu)

    def __reduce__(self) -> Any:
        model, weights, device, opts = self._given
        options: dict[str, Any] = {"device": device, "opts": opts, "score_thresholds": self._report}
        return partial(Predictor, **options), (model, weights)

    def __repr__(self) -> str:
        cfg, names = self._network.cfg, self.class_names[:_MOST_NAMED]
        number = cfg.MODEL.RETINANET.NUM_CLASSES
        names += ["..."] * (number > len(names) > 0)
        classes = f"{number} classes" + (f" ({', '.join(names)})" if names else "")
        least = self._report or cfg.MODEL.RETINANET.SCORE_THRESH_TEST
        model = " ".join(filter(None, self._given[:2]))
        return f"<Predictor {model} on {cfg.MODEL.DEVICE}: {classes}, scores from {least}>"

    @property
    def class_names(self) -> list[str]:
        """Of ``pred_classes`` 0, 1, ...; empty if the weights do not say."""
        return self._network.class_names

    def __call__(self, images: Source | Sequence[Source], *, order: str = "BGR") -> list[Instances]:
        """
        Args:
            images: a path, an array, an image of Pillow, a list of these, or a folder, whose images
                are taken by name. An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or
                uint16; alpha is dropped.
            order: of an array's colours: "BGR", as OpenCV reads files and Detectron2's
                ``DefaultPredictor`` takes them, or "RGB".

        Returns:
            list[Instances]: of each image, also if there is only one: ``pred_boxes`` (x1, y1, x2,
            y2) in pixels of the image, ``scores``, best first, and ``pred_classes``, in the memory
            of the CPU.

        Raises:
            UserError: an image cannot be read, or an array is none.
        """
        found = []
        for result in self.stream(sources_of(images), order=order):
            if isinstance(result, UserError):
                raise result
            found.append(result)
        return found

    def stream(
        self, images: Source | Iterable[Source], *, order: str = "BGR"
    ) -> Iterator[Instances | UserError]:
        """Detections in very many images, or in frames as they come: only some are held at a time.

        Args:
            images: paths, arrays and images of Pillow, read a few ahead; or one of these, or a
                folder, as :meth:`__call__` takes it.
            order: of the colours of arrays.

        Raises:
            UserError: ``order`` is another, or the process a fork (see the class).

        Yields:
            in the order of the images, an ``Instances``, or the error of an image that is none.
        """
        if order not in ORDERS:
            raise UserError(f"the order of colours is {order!r}: choose from {', '.join(ORDERS)}")
        is_fork = os.getpid() != self._process
        if is_fork and not self._network.runs_on_cpu:
            raise UserError(
                f"the Predictor of {self._given[0]} was opened before this process was forked, "
                "which what it runs on does not survive: open it in each process"
            )

        def prepare(source: Source) -> Prepared:
            try:
                return self._network.preprocessing.prepare(source, order)
            except UserError as error:
                return error

        def prepare_and_detect(source: Source) -> Instances | UserError:
            prepared = prepare(source)
            return prepared if isinstance(prepared, UserError) else self._detect([prepared])[0]

        if isinstance(images, SOURCE_TYPES):
            images = sources_of(images)
        # With all threads of PyTorch, which a fork would wait for without end.
        if isinstance(images, list) and len(images) == 1 and not is_fork:
            return iter([prepare_and_detect(images[0])])
        if self._network.runs_on_cpu:
            return self._workers.each(prepare_and_detect, images)
        return self._in_batches(self._workers.each(prepare, images))

    def to_supervision(self, found: Instances) -> "supervision.Detections":
        """Detections for the package supervision, with ``class_name`` in their data.

        Raises:
            UserError: supervision is not installed.
        """
        from .supervision_detections import to_supervision

        return to_supervision(found, self.class_names)

    def _detect(self, batch: list[dict[str, Any]]) -> list[Instances]:
        return [self._threshold(found) for found in self._network.detect(batch)]

    def _in_batches(self, images: Iterable[Prepared]) -> Iterator[Instances | UserError]:
        """Detect in neighbours of one size at a time: padding to another size changes features."""
        batch: list[dict[str, Any]] = []
        for image in images:
            if isinstance(image, UserError):
                yield from self._detect(batch) if batch else ()
                batch = []
                yield image
                continue
            if batch and (
                len(batch) == _MOST_IMAGES or batch[0]["image"].shape != image["image"].shape
            ):
                yield from self._detect(batch)
                batch = []
            batch.append(image)
        if batch:
            yield from self._detect(batch)
