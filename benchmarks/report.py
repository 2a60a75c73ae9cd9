"""The benchmark's results as Markdown."""

import json
import os
import statistics
from typing import Any

from machine import BACKWARD, CONVOLUTION, MATMUL, MATMUL_SIZE, convolution_seconds
from models import BFLOAT16, OURS, STOCK


def header(results: dict[str, Any], names: list[str]) -> list[str]:
    machine, workload = results["machine"], results["workload"]
    height, width = workload["image_size"]
    return [
        f"{workload['config_file']}, {workload['num_images']} images of {height}x{width}, "
        f"{workload['num_boxes']} boxes each, {workload['num_classes']} classes; "
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}. Medians "
        f"(range), peak memory added, and in bold the speed in multiples of {STOCK}'s in float32.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]


def markdown_row(row: dict[str, Any], names: list[str]) -> str:
    cells = [row["what"]]
    medians = {name: statistics.median(values) for name, values in row["seconds"].items()}
    for name in names:
        if name not in medians:
            cells.append("")
            continue
        values = row["seconds"][name]
        cell = f"{medians[name]:.3g} s ({min(values):.3g} to {max(values):.3g})"
        if name in row["peak_mib"]:
            cell += f", {row['peak_mib'][name]:,.0f} MiB"
        if name != STOCK and STOCK in medians:
            cell += f", **{medians[STOCK] / medians[name]:.2f}x**"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def sentences(results: dict[str, Any]) -> list[str]:
    """What is said below the table, a paragraph each."""
    return [
        *(_rate(t, rates) for t, rates in results["rates"].items()),
        _bfloat16(results),
        _shares(results),
        _host(results["host"]),
        _sameness(results["differences"]),
    ]


def _rate(dtype: str, rates: dict[str, float]) -> str:
    return (
        f"This machine's rate in {dtype}, warm and at its best: {rates[MATMUL] / 1e9:.0f} GFLOP/s "
        f"in PyTorch's {MATMUL} of {MATMUL_SIZE}x{MATMUL_SIZE}, {rates[CONVOLUTION] / 1e9:.0f} in "
        f"its {CONVOLUTION} and {rates[BACKWARD] / 1e9:.0f} in the {BACKWARD}."
    )


def _bfloat16(results: dict[str, Any]) -> str:
    if "bfloat16" not in results["rates"]:
        return (
            "bfloat16 was left out: --precision did not ask for it, or a small convolution is "
            "slower in it than in float32."
        )
    seconds = {t: convolution_seconds(rates) for t, rates in results["rates"].items()}
    is_measured = any(name.endswith(BFLOAT16) for name in results["rows"][0]["seconds"])
    return (
        "Forward and backward of that convolution run "
        f"{seconds['float32'] / seconds['bfloat16']:.2f} times as fast in bfloat16 as in float32: "
        f"bfloat16 was {'measured' if is_measured else 'left out'}."
    )


def _shares(results: dict[str, Any]) -> str:
    """How near a training step comes to the machine's rate."""
    machine, shares, saved = results["machine"], [], ""
    for name, seconds in results["rows"][0]["seconds"].items():
        rate = 2e9 * machine["training_step_gmac"] / statistics.median(seconds)
        dtype = "bfloat16" if name.endswith(BFLOAT16) else "float32"
        share = rate / max(results["rates"][dtype].values())
        shares.append(f"{name} {rate / 1e9:.0f} GFLOP/s ({100 * share:.0f} %)")
        if share > 1 and name == OURS:
            saved = (
                f" Winograd's F(4x4, 3x3), which {OURS} takes on this processor, computes the same "
                "with a quarter of the products: hence more than 100 %."
            )
    return (
        f"Backbone and head take {machine['backbone_and_head_gmac']:.0f} GMAC forward and "
        f"{machine['training_step_gmac']:.0f} in a training step. Over the time of the whole step, "
        f"and as a share of the highest of the rates above, that is: {'; '.join(shares)}.{saved}"
    )


def _host(host: dict[str, dict[str, float]]) -> str:
    figures = "; ".join(
        f"{name} {of['functions']:,} calls of torch functions and {of['operators']:,} operators, "
        f"{1e3 * of['forward']:.1f} ms forward and {1e3 * of['backward']:.1f} ms backward"
        for name, of in host.items()
    )
    return (
        "The host's part of a training step on a GPU, up to the head's outputs, on the meta "
        f"device, which computes nothing: {figures}."
    )


def _sameness(differences: dict[str, float]) -> str:
    return (
        f"With the same weights, {OURS}'s numbers against {STOCK}'s in float32: losses differ by "
        "{loss:.0e} relative, the gradient of no parameter by more than {gradient:.0e} of its "
        "norm; of {detections} detections {lost} have no counterpart within 1e-5 in score and "
        "0.01 px, the others differ by at most {score:.0e} and {box:.0e} px."
    ).format(**differences)


def write(results: dict[str, Any], names: list[str], folder: str) -> None:
    """Write benchmark.json and benchmark.md, and print what is below the table."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "benchmark.json"), "w") as f:
        json.dump(results, f, indent=1)
    table = header(results, names) + [markdown_row(row, names) for row in results["rows"]]
    below = "\n\n".join(sentences(results))
    with open(os.path.join(folder, "benchmark.md"), "w") as f:
        f.write("\n".join(table) + f"\n\n{below}\n")
    print(f"\n{below}\n\nwrote {folder}/benchmark.json and benchmark.md")
