"""Names of weights, from those of one program to those of another."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError, listed
from ..weights.finite_numbers import is_finite

# A pattern for a whole name, and what takes its place.
Rule = tuple[str, str]
# Names by which a kind of weights is known, and what to do with them.
_KINDS = (
    (
        r"(^|\.)head\.classification_head\.cls_logits\.",
        "a RetinaNet of torchvision: name the format torchvision",
    ),
    (r"(^|\.)bbox_head\.retina_", "a RetinaNet of mmdetection: name the format mmdetection"),
    (r"(^|\.)head\.cls_score\.", "a RetinaNet of Detectron2: MODEL.WEIGHTS takes it as it is"),
    (
        r"(^|\.)(roi_heads|roi_head|rpn_head|bbox_head|head\.classification_head)\.",
        "another detector than RetinaNet",
    ),
    (
        r"(layer4\.\d+\.conv2|fc|classifier)\.weight$",
        "a network for classification: if it is a ResNet, name the format backbone",
    ),
)


def weights_below(
    state: dict[str, Tensor], marker: str, source: str, kind: str
) -> dict[str, Tensor]:
    """The weights of a model that may be part of another, under their names in it.

    Args:
        state: of a file.
        marker: the end of a name that only this kind of model has.
        source: what names the file, for errors.
        kind: "a RetinaNet of torchvision".

    Raises:
        UserError: there is no such name.
    """
    found = [name for name in state if name == marker or name.endswith(f".{marker}")]
    if not found:
        others = ((pattern, text) for pattern, text in _KINDS if not text.startswith(kind))
        known = (text for pattern, text in others if any(re.search(pattern, n) for n in state))
        what = next(known, f"something else, with names such as {next(iter(state))}")
        raise UserError(f"{source} holds no {marker}, so that it is not {kind} but {what}")
    prefix = min(found, key=len).removesuffix(marker)
    return {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}


def rename(
    state: dict[str, Tensor], rules: Sequence[Rule], ignored: Sequence[str], source: str
) -> dict[str, Tensor]:
    """Weights under their new names, as float32.

    Args:
        state: under the old names.
        rules: the first whose pattern is the whole name is taken.
        ignored: ends of names that are left out.
        source: what names the file, for errors.

    Raises:
        UserError: no rule has a name, or numbers are integers or not finite.
    """
    renamed, unknown = {}, []
    for name, x in state.items():
        if name.endswith(tuple(ignored)):
            continue
        matches = ((re.fullmatch(pattern, name), new) for pattern, new in rules)
        new = next((match.expand(new) for match, new in matches if match), None)
        if new is None:
            unknown.append(name)
        elif not torch.as_tensor(x).is_floating_point():
            raise UserError(
                f"{source} holds {name} as {x.dtype}: it is quantised, so take the model that it "
                "was made from"
            )
        elif not is_finite(torch.as_tensor(x)):
            raise UserError(
                f"{source} holds {name} with numbers that are not finite: it is of a training that "
                "failed, so take an earlier checkpoint"
            )
        else:
            renamed[new] = torch.as_tensor(x).float()
    if unknown:
        raise UserError(
            f"{source} has {listed(unknown, 1)}, for which this model has no place: only ResNets "
            "with plain blocks, and heads without other branches, are translated"
        )
    return renamed
