"""Packaging. Neither torch nor Detectron2 is a requirement: their builds depend on the CUDA of the
machine, and this package works with the ones that are there."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="retinanet_plugin",
    # Read, not imported: importing needs Detectron2.
    version=re.search(
        r'^__version__ = "(.+)"$', (ROOT / "retinanet_plugin/__init__.py").read_text(), re.M
    )[1],
    description="A RetinaNet of replaceable parts for Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["retinanet_plugin", "retinanet_plugin.*"]),
    package_data={"retinanet_plugin": ["py.typed", "data/planning/bases/*.yaml", "report/*.html"]},
    python_requires=">=3.10",
    # Each is a requirement of Detectron2 or PyTorch as well: nothing new arrives with this package.
    install_requires=[
        "fvcore",  # box losses, registries
        "pyyaml",  # errors in config files
        "jinja2",  # the pages of plans and reports
    ],
    extras_require={
        # python -m retinanet_plugin digits
        "digits": ["opencv-python-headless", "scikit-learn", "pillow"],
        # MODEL.FPN.BOTTOM_UP build_timm_backbone
        "timm": ["timm"],
        # Pictures, crops, tiles and to_supervision of predict; videos.
        "predict": ["supervision", "opencv-python-headless"],
        # COCO's metrics in less of the time, in report and in evaluation; pycocotools does as well.
        "report": ["faster-coco-eval"],
        # export onnx and examples/onnx_predict.py; the exporter of PyTorch writes by onnxscript.
        "export": ["onnx", "onnxscript", "onnxruntime"],
        # export openvino, with --int8 by nncf
        "openvino": ["openvino", "nncf"],
        # weights in *.safetensors
        "safetensors": ["safetensors"],
    },
)
