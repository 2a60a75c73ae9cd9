"""What each ingredient of a modern RetinaNet gives, alone and all together: a table and a plot.

Small trainings of a narrow network from random weights, equal in iterations, on data sets in COCO's
format: those of ablation/NAME.yaml. Rows are a file; each has the learning rate that is best for
its first seed, of a grid that is widened until the best is inside. Finished trainings are kept in
OUTPUT/results.jsonl, and a call that was stopped goes on where it was.
"""

import argparse
import itertools
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

import torch
import yaml

from retinanet_plugin.commands.one_trial import Scores, scores_of
from retinanet_plugin.commands.trial_plot import mean_and_range, plot_scores
from retinanet_plugin.commands.trials import Row, Trials
from retinanet_plugin.config import load_config
from retinanet_plugin.engine import Trainer
from retinanet_plugin.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="NAME=DIR", type=named_folder,
        help="ablation/NAME.yaml is its config; in DIR train, val and annotations/train.json ...",
    )  # fmt: skip
    parser.add_argument("--rows", default=f"{HERE}/ablation/ingredients.yaml", metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; default: 1")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/ablation", metavar="DIR")
    args = parser.parse_args()
    folders = dict(args.data)
    with open(args.rows) as file:
        ingredients = yaml.safe_load(file)["rows"]
    rows = {
        f"{data}: {name}": row_of(keys, data, folders[data], args.device)
        for (name, keys), data in itertools.product(ingredients.items(), folders)
    }
    trials = Trials(rows, args.seeds, os.path.join(args.output, "results.jsonl"))
    try:
        trials.run(args.jobs, args.seconds, evaluate)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        write_table(trials, list(ingredients), list(folders), args.output)
        panels: dict[str, dict[str, Sequence[float]]] = {
            data: {name: scores(trials, f"{data}: {name}", "AP") for name in ingredients}
            for data in folders
        }
        plot_scores(panels, os.path.join(args.output, "ablation.png"))


def named_folder(text: str) -> tuple[str, str]:
    """The type of an option that is a name and a folder."""
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, os.path.abspath(folder)


def row_of(keys: dict[str, Any], data: str, folder: str, device: str) -> Row:
    """What is trained on a data set, with the config values ``keys``; see ingredients.yaml."""
    cfg = load_config(os.path.join(HERE, "ablation", f"{data}.yaml"))
    cfg.DATASETS.COCO_JSON = [
        [f"{data}_{split}", f"{folder}/annotations/{split}.json", f"{folder}/{split}"]
        for split in ("train", "val")
    ]
    cfg.MODEL.DEVICE = device
    for key, value in keys.items():
        if key != "rates":
            cfg.merge_from_list([key, value[data] if isinstance(value, dict) else value])
    return Row(cfg, keys["rates"])


def evaluate(trainer: Trainer) -> Scores:
    """AP of the last and the averaged weights, and with score voting. Of SWA, the averaged weights
    are those that count."""
    averaged = scores_of(trainer._last_eval_results["averaged"])
    is_swa = trainer.cfg.SOLVER.WEIGHT_AVERAGE.NAME == "swa"
    model = trainer._average.model if is_swa else trainer.checkpointer.model
    model.inference.score_voting = True
    voted = scores_of(Trainer.test(trainer.cfg, model))
    last = scores_of(trainer._last_eval_results)
    counting = averaged if is_swa else last
    return {**counting, "last": last["AP"], "averaged": averaged["AP"], "voted": voted["AP"]}


def scores(trials: Trials, row: str, key: str) -> list[float]:
    """Of a row, the seeds that have been trained at its best learning rate."""
    best = trials.best(row)
    return [x.get(key, 0.0) for x in best[2]] if best else []


def write_table(trials: Trials, names: list[str], sets: list[str], output: str) -> None:
    """Markdown: mean and range over the seeds, the gain over the first row, with averaged weights
    and with voting, the learning rate, and the time of a step, which means something where
    trainings did not share a device."""
    titles = "AP, mean (range) | gain | averaged weights | voting | learning rate | ms a step"
    lines = []
    for data in sets:
        lines += [f"| {data} | {titles} |", "|---" * 7 + "|"]
        lines += [f"| {name} | {cells_of(trials, data, name, names[0])} |" for name in names]
        lines.append("")
    text = "\n".join(lines)
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(output, "ablation.md"), "w") as file:
        file.write(text)
    print(f"{text}\nwrote {output}/ablation.md and ablation.png")


def cells_of(trials: Trials, data: str, name: str, first: str) -> str:
    row = f"{data}: {name}"
    best, plain = trials.best(row), scores(trials, f"{data}: {first}", "AP")
    if best is None or not plain:
        return " | " * 5
    lr, is_inside, runs = best
    found = scores(trials, row, "AP")
    count = "" if len(found) == len(trials.seeds) else f", seeds: {len(found)}"
    gain = statistics.mean(found) - statistics.mean(plain)
    others = [statistics.mean(scores(trials, row, key)) for key in ("averaged", "voted")]
    step = statistics.mean(x.get("seconds", math.nan) for x in runs)
    rate = f"{lr:g}" if is_inside else f"{lr:g} (at the end of the grid)"
    return (
        f"{mean_and_range(found)}{count} | {gain:+.1f} | {others[0]:.1f} | {others[1]:.1f} | "
        f"{rate} | {1000 * step:.0f}"
    )


if __name__ == "__main__":
    main()
