"""Which images a training sees, in which order: a function of its seed, wherever it starts.

Batch i holds the same images, augmented alike, in a run that was resumed and in one that was not,
with any number of workers: nothing here depends on what was read before. It is made of the streams
of Detectron2, one for each process that the training began with; as many processes as go on share
the batch out among them.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...errors import UserError
from ..images.image_files import without_bad_images
from .fingerprint import fingerprint
from .loader_workers import leave_signals_to_main_process
from .random_states import seed_cpu_generators, unchanged_random_states

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]
Context = AbstractContextManager[Any]


class TrainingLoader:
    """The batches of ``DATASETS.TRAIN`` for this process: an endless iterable of lists of inputs.

    Samplers, aspect ratio groups and sizes of batches are Detectron2's, chosen by its keys.

    Attributes:
        seed: of the order and of the augmentations; drawn, the same in all processes, if None when
            iteration begins.
        start: the first batch, counted from 0, of iterations that begin from now on.
        num_streams: how many processes the order is of.
    """

    def __init__(
        self, cfg: CfgNode, mapper: Mapper, waiting: Callable[[], Context] = nullcontext
    ) -> None:
        """
        Args:
            mapper: makes inputs of a model from a record. The place of a record that it makes None
                of is taken by the next one in the set, of the same aspect ratio group, that it does
                not.
            waiting: a context in which the main process waits for each image.
        """
        self.cfg = cfg
        self.mapper = mapper
        self.waiting = waiting
        self.seed: int | None = None
        self.start = 0
        self.num_streams = comm.get_world_size()

    @cached_property
    def images(self) -> "TrainingImages":
        """The data, read when they are first asked for."""
        return TrainingImages(self.cfg)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Batches from number ``start`` on. Workers start with the first of them.

        Raises:
            UserError: of the mapper; or it makes None of every image.
        """
        if self.seed is None:
            self.seed = comm.shared_random_seed()
        num_workers = self.cfg.DATALOADER.NUM_WORKERS
        yield from self.batches_from(self.start, self.seed, num_workers, self.waiting)

    def batches_from(
        self,
        start: int,
        seed: int,
        num_workers: int,
        waiting: Callable[[], Context] = nullcontext,
    ) -> Iterator[list[dict[str, Any]]]:
        """See :meth:`__iter__`."""
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        stream = _Inputs(self.images, self.mapper, self.cfg, seed, start, self.num_streams)
        with unchanged_random_states():  # a loader draws a seed for workers, which needs none here
            inputs = iter(
                DataLoader(
                    stream,
                    batch_size=None,
                    num_workers=num_workers,
                    collate_fn=trivial_batch_collator,
                    worker_init_fn=leave_signals_to_main_process,
                )
            )
        try:
            while True:
                batch = []
                for _ in range(batch_size):
                    with waiting():
                        sample = next(inputs)
                    if isinstance(sample, UserError):
                        raise sample
                    batch.append(sample)
                yield batch
        finally:
            del inputs  # workers end now, and not when a traceback is forgotten


class TrainingImages:
    """The records of ``DATASETS.TRAIN``, without images if DATALOADER.FILTER_EMPTY_ANNOTATIONS."""

    def __init__(self, cfg: CfgNode) -> None:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        num_records = len(records)
        records = without_bad_images(records, cfg)
        if len(records) < num_records and cfg.DATALOADER.SAMPLER_TRAIN.startswith("Weighted"):
            raise UserError(  # it reads the data sets itself
                f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} cannot leave out the "
                f"{num_records - len(records)} bad images that DATASETS.SKIP_BAD_IMAGES does: take "
                "them out of the annotation file, or use another sampler"
            )
        self.fingerprint = fingerprint(cfg.DATASETS.TRAIN, records)
        # What Detectron2 groups images by; workers share the memory of arrays.
        self.sizes = np.array([(r.get("width", 0), r.get("height", 0)) for r in records])
        self.records = DatasetFromList(records, copy=False)

    def grouped(self, indices: Iterator[int], batch_size: int) -> Iterator[int]:
        """``indices`` in the order in which Detectron2 fills batches of one aspect ratio group."""
        for batch in AspectRatioGroupedDataset(map(self._sketch, indices), batch_size):
            yield from (sketch["index"] for sketch in batch)

    def candidates(self, index: int) -> Iterator[int]:
        """``index``, and after it those that may take its place in a batch, each once."""
        yield index
        is_wide = self.sizes[:, 0] > self.sizes[:, 1]
        alike = np.flatnonzero(is_wide == is_wide[index])
        yield from np.roll(alike, -int(np.searchsorted(alike, index))).tolist()[1:]

    def _sketch(self, index: int) -> dict[str, int]:
        width, height = self.sizes[index].tolist()
        return {"index": index, "width": width, "height": height}


class _Inputs(IterableDataset):
    """Inputs of one process from batch ``start`` on; in a worker, those that are its turn."""

    def __init__(
        self,
        images: TrainingImages,
        mapper: Mapper,
        cfg: CfgNode,
        seed: int,
        start: int,
        num_streams: int,
    ) -> None:
        self.images = images
        self.mapper = mapper
        self.seed = seed
        self.start = start
        self.num_streams = num_streams
        self.of_stream = cfg.SOLVER.IMS_PER_BATCH // num_streams  # images in a batch
        size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        self.slots = range(comm.get_rank() * size, (comm.get_rank() + 1) * size)
        self.is_grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        seeded = cfg.clone()
        seeded.defrost()
        seeded.SEED = seed  # which samplers of the newest main take
        with unchanged_random_states():
            np.random.seed(seed)  # from which others draw theirs
            parts = build_detection_train_loader.from_config(
                seeded, mapper=mapper, dataset=images.records
            )
        self.sampler = parts["sampler"]

    def __iter__(self) -> Iterator[dict[str, Any] | UserError]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for stream, place, index in itertools.islice(self._order(), first, None, step):
            with unchanged_random_states():
                sample = self._first_good(stream, place, index)
            yield sample

    def _order(self) -> Iterator[tuple[int, int, int]]:
        """Stream, place in it and number of each image of this process from batch ``start`` on."""
        orders: dict[int, Iterator[tuple[int, int]]] = {}
        places = ((batch, slot) for batch in itertools.count(self.start) for slot in self.slots)
        for batch, slot in places:
            stream, place = slot // self.of_stream, slot % self.of_stream
            place += batch * self.of_stream
            if stream not in orders:
                orders[stream] = itertools.islice(enumerate(self._stream(stream)), place, None)
            yield (stream, *next(x for x in orders[stream] if x[0] == place))

    def _stream(self, stream: int) -> Iterator[int]:
        """What a process with the rank ``stream`` of ``num_streams`` has in Detectron2."""
        sampler = copy.copy(self.sampler)
        sampler._rank, sampler._world_size = stream, self.num_streams
        order = iter(sampler)
        return self.images.grouped(order, self.of_stream) if self.is_grouped else order

    def _first_good(self, stream: int, place: int, index: int) -> dict[str, Any] | UserError:
        for candidate in self.images.candidates(index):
            seed_cpu_generators(self.seed, stream, place)
            try:
                sample = self.mapper(self.images.records[candidate])
            except UserError as error:
                # Raised in a worker, it would become a traceback in its own message.
                return error
            if sample is not None:
                return sample
        return UserError(
            f"none of the {len(self.images.records):,} images to train on can be read: correct the "
            "files, or the image folder in DATASETS.COCO_JSON"
        )


class Restarted:
    """Batches of ``loader`` for something that is done every so often, such as precise BN.

    An iterator of it starts anew, from batch number ``iteration()``, in each new iteration: what
    it gives then does not depend on how often it was done before.
    """

    def __init__(self, loader: TrainingLoader, iteration: Callable[[], int]) -> None:
        self.loader = loader
        self.iteration = iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        assert self.loader.seed is not None, "a training gives its loader a seed"
        while True:
            iteration = self.iteration()
            for batch in self.loader.batches_from(iteration, self.loader.seed, num_workers=0):
                yield batch
                if self.iteration() != iteration:
                    break
