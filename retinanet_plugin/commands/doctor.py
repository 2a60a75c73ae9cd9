"""Look at config, data, weights and device before a training, and say what is wrong.

The report has facts, then warnings and errors, each with its remedy: it does not end at the first
one. The exit status is 1 if there are errors. Of image files the headers are read; --images decodes
them whole.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from detectron2.config import CfgNode
from torch import nn

from ..data.checks import inspect_datasets
from ..data.dataset_facts import DatasetFacts
from ..data.findings import Findings
from ..data.images.decoding import decode_images
from ..data.images.image_files import ImageFacts, count_trained, inspect_image_files
from ..data.resized_boxes import resized_boxes
from ..engine import Checkpointer, check_weights
from ..engine.checks.config_checks import config_errors, config_warnings
from ..engine.checks.device_checks import check_devices, check_processes, check_trained
from ..engine.checks.expected_results import check_expected_results
from ..engine.checks.output_dir import check_output_dir
from ..engine.checks.startup_checks import check_weights_fit
from ..errors import UserError
from ..report.dataset_report import describe_dataset, unreached_warnings
from ..report.training_report import (
    describe_machine,
    describe_model,
    describe_schedule,
    learning_rate_warnings,
    length_warnings,
)
from ..weights.building import check_model
from .arguments import add_config_arguments, read_config

Result = TypeVar("Result")
_INTERRUPTED = 130
# A run of one process, which nothing here is asked about otherwise.
_ONE_PROCESS = argparse.Namespace(num_gpus=1, num_machines=1, eval_only=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", action="store_true", help="decode every image file, until Ctrl-C"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    cfg.freeze()
    doctor = Doctor(cfg)
    is_interrupted = False
    try:
        doctor.examine(args.config_file, args.images)
    except KeyboardInterrupt:
        is_interrupted = True
    doctor.print_findings()
    if is_interrupted:
        print("interrupted: not everything was looked at", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    if doctor.errors:
        raise UserError(
            f"the doctor found {_count(doctor.errors, 'error')}: mend what the report says of each"
        )


class Doctor:
    """Prints facts as they are found, and keeps errors and warnings for the end of the report."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.datasets: dict[str, DatasetFacts] = {}
        self.images: dict[str, ImageFacts] = {}

    def examine(self, config_file: str, decode: bool) -> None:
        """Every part that can be looked at in spite of what is wrong with others.

        Args:
            config_file: for the title.
            decode: whether image files are decoded.
        """
        cfg = self.cfg
        print(f"What {config_file} amounts to")
        self.errors += config_errors(cfg)
        if not self.errors:
            self.warnings += [*config_warnings(cfg), *learning_rate_warnings(cfg)]
            self._attempt(check_devices, cfg, _ONE_PROCESS)
            self._attempt(check_processes, cfg, _ONE_PROCESS)
            self._attempt(check_output_dir, cfg.OUTPUT_DIR)
        self._section("machine", describe_machine, cfg)
        model = self._attempt(check_model, cfg)
        self._section("model", describe_model, cfg, model)
        if model is not None:
            self._attempt(check_trained, cfg, model)
        self._section("weights", self._weights, model)
        self._attempt(self._read_data)
        if all(name in self.datasets for name in cfg.DATASETS.TEST):
            self._attempt(check_expected_results, cfg, self.datasets)
        for name in self.datasets:
            self._section(f"data set {name}", self._dataset, name, model)
        num_trained = self._num_trained()
        self._section("training", describe_schedule, cfg, num_trained)
        if not self.errors:
            self.warnings += length_warnings(cfg, num_trained)
        if decode:
            for name in self.images:
                self._section(f"image files of {name}", self._decode, name)

    def print_findings(self) -> None:
        """The end of the report: bad files, then a line for each warning and error."""
        for name, images in self.images.items():
            records = self.datasets[name].images
            bad = [f"{records[i]['file_name']}: {why}" for i, why in sorted(images.bad.items())]
            if bad:
                _print_section(f"bad image files of {name}", bad)
        _print_section(
            f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')}",
            [f"warning: {text}" for text in self.warnings]
            + [f"error: {text}" for text in self.errors],
        )

    def _attempt(self, look: Callable[..., Result], *args: Any, **kwargs: Any) -> Result | None:
        """What ``look`` returns; None after an error, which is kept."""
        try:
            return look(*args, **kwargs)
        except UserError as error:
            self.errors.append(str(error))
        except Exception:
            if not self.errors:
                raise
            # A config with mistakes may make anything fail: they are what is to be mended.
        return None

    def _section(self, title: str, describe: Callable[..., list[str]], *args: Any) -> None:
        lines = self._attempt(describe, *args)
        _print_section(title, ["not known, because of an error"] if lines is None else lines)

    def _keep(self, findings: Findings) -> None:
        self.errors += map(str, findings.errors.values())
        self.warnings += map(str, findings.warnings.values())

    def _weights(self, model: nn.Module | None) -> list[str]:
        path = self.cfg.MODEL.WEIGHTS
        check_weights(path)
        if model is None:
            return [f"{path}: not compared, since there is no model"]
        lines = ["MODEL.WEIGHTS is empty: all weights are new"]
        if path:
            lines = [str(Checkpointer(model, cfg=self.cfg).load_model(path)[0])]
        self._attempt(check_weights_fit, self.cfg, model, None, eval_only=False)
        return lines

    def _read_data(self) -> None:
        findings, self.datasets = inspect_datasets(self.cfg)
        self._keep(findings)
        findings, self.images = inspect_image_files(self.datasets, self.cfg)
        self._keep(findings)

    def _dataset(self, name: str, model: nn.Module | None) -> list[str]:
        facts, images = self.datasets[name], self.images.get(name)
        is_train = name in self.cfg.DATASETS.TRAIN
        boxes = resized_boxes(self.cfg, facts, model, is_train)
        if is_train:
            self.warnings += unreached_warnings(self.cfg, facts, boxes)
        return describe_dataset(self.cfg, facts, images, boxes, is_train)

    def _num_trained(self) -> int | None:
        """Images that a training takes; None: some data set could not be read."""
        names = self.cfg.DATASETS.TRAIN
        if not names or any(name not in self.datasets for name in names):
            return None
        return sum(
            count_trained(self.datasets[name], self.images.get(name), self.cfg) for name in names
        )

    def _decode(self, name: str) -> list[str]:
        findings = Findings()
        try:
            count = decode_images(self.datasets[name], self.images[name], self.cfg, findings)
        finally:  # after Ctrl-C, too
            self._keep(findings)
        return [f"{count:,} decoded; {len(self.images[name].bad):,} files are bad"]


def _print_section(title: str, lines: list[str]) -> None:
    print(f"\n{title}", flush=True)
    for line in lines:
        print(f"  {line}".rstrip())


def _count(texts: list[str], what: str) -> str:
    return f"{len(texts) or 'no'} {what}{'s' * (len(texts) != 1)}"
