"""Pascal VOC folders: what Detectron2's loader and evaluation would fail on, found before."""

import itertools

import pytest
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import BoxMode

from retinanet_plugin import UserError
from retinanet_plugin.config import load_config
from retinanet_plugin.data.checks import check_datasets

INSTANT = str(ROOT / "configs/digits/retinanet_narrow_R_50_FPN_instant_test.yaml")
XML = """<annotation><size><width>96</width><height>80</height><depth>3</depth></size>
<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>1</difficult>
<bndbox><xmin>10</xmin><ymin>12</ymin><xmax>40</xmax><ymax>44</ymax></bndbox></object></annotation>"""


@pytest.fixture
def check(tmp_path):
    """``check(xml, ids, test)`` checks a folder whose second image has this XML."""

    def run(xml=XML, ids="a\nb\nc\n", test=True, year=2007):
        (tmp_path / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "ImageSets/Main/val.txt").write_text(ids)
        for name, content in (("a", XML), ("b", xml), ("c", XML)):
            if content is not None:
                content = content.encode() if isinstance(content, str) else content
                (tmp_path / f"Annotations/{name}.xml").write_bytes(content)
        if "voc" in DatasetCatalog.list():
            DatasetCatalog.remove("voc")
            MetadataCatalog.remove("voc")
        register_pascal_voc("voc", str(tmp_path), "val", year, ("dog", "cat"))
        MetadataCatalog.get("voc").set(evaluator_type="pascal_voc")
        keys = ["DATASETS.TRAIN", "('voc',)", "MODEL.RETINANET.NUM_CLASSES", "2"]
        test_set = "('voc',)" if test else "()"
        cfg = load_config(INSTANT, [*keys, "DATASETS.TEST", test_set])
        return check_datasets(cfg)["voc"]

    return run


def test_a_folder_is_read_as_detectron2_reads_it(check):
    facts = check()
    assert facts.images == DatasetCatalog.get("voc")
    assert facts.class_counts == [0, 3]
    box = {"bbox": [9, 11, 40, 44], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    assert facts.images[1]["annotations"] == [box]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cat", "projector"), 'b.xml has an object 1 of the class "projector", which the data'),
        (("cat", "Cat"), 'the class "Cat", which the data set lacks, though it has "cat": correct'),
        ((">cat<", "> cat <"), 'the class " cat ", which the data set lacks, though it has "cat"'),
        (("<name>cat</name>", ""), "b.xml has an object 1 of the class null"),
        (("<width>96</width>", ""), "b.xml has width null in its size"),
        (("96", "0"), 'b.xml has width "0" in its size'),
        (("<xmin>10</xmin>", ""), "b.xml has an object 1 (cat) with the bndbox [null, "),
        (("<xmin>10", "<xmin>50"), '["50", "12", "40", "44"], whose xmin is larger than its xmax'),
        (("<ymin>12", "<ymin>50"), '["10", "50", "40", "44"], whose ymin is larger than its ymax'),
        (("<xmin>10", "<xmin>nan"), 'b.xml has an object 1 (cat) with the bndbox ["nan", "12"'),
        (("</annotation>", ""), "b.xml is not XML (no element found"),
        (("<annotation>", '<?xml version="1.0" encoding="x"?><annotation>'), "is not XML (unknown"),
    ],
)
@pytest.mark.parametrize("test", [False, True])
def test_files_that_cannot_be_read(check, change, message, test):
    with pytest.raises(UserError) as error:
        check(XML.replace(*change), test=test)
    assert message in str(error.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_files_in_another_encoding(check, encoding):
    xml = f'<?xml version="1.0" encoding="{encoding}"?>' + XML.replace("Left", "c\xf4t\xe9")
    with pytest.raises(UserError, match=r"b.xml is not in UTF-8 \(invalid .*: save it in UTF-8"):
        check(xml.encode(encoding))


def test_entities_that_would_fill_the_memory(check):
    names = "abcdefghij"
    more = (f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in itertools.pairwise(names))
    doctype = f'<!DOCTYPE x [<!ENTITY a "cat">{"".join(more)}]>'
    with pytest.raises(UserError, match=r"b.xml is not XML \(limit on input amplification"):
        check(doctype + XML.replace("cat", "&j;"))


def test_boxes_that_count_from_0(check, caplog):
    check(XML.replace("<xmin>10", "<xmin>0"))
    assert "1 of 3 boxes have an xmin or ymin of 0, such as one of b.jpg, but the" in caplog.text
    caplog.clear()
    check(XML.replace("<xmin>10", "<xmin>1"))
    assert "of 0" not in caplog.text


def test_an_image_without_xml(check, tmp_path):
    with pytest.raises(UserError) as error:
        check(xml=None)
    path = tmp_path / "Annotations/b.xml"
    assert f"the annotations of voc: {path} cannot be read (No such file" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<difficult>1</difficult>", ""), "needs difficult: write it as an integer"),
        (("<pose>Left</pose>", ""), "needs pose: write it"),
        (("<truncated>0", "<truncated>no"), "needs truncated: write it as an integer"),
        (("<xmin>10", "<xmin>10.5"), "needs xmin: write it as an integer"),
    ],
)
def test_what_only_evaluation_reads(check, change, message, tmp_path):
    with pytest.raises(UserError, match="evaluation " + message):
        check(XML.replace(*change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("</object>", "</object><Object><name>cat</name></Object>"), "has <Object>, which is not"),
        (("</bndbox>", "</bndbox><bndbox/>"), "has an object (cat) with a second bndbox, not read"),
    ],
)
def test_what_looks_like_an_object(check, change, message, caplog):
    check(XML.replace(*change))
    assert f"b.xml {message}" in caplog.text


def test_training_takes_decimals(check):
    facts = check(XML.replace("<xmin>10", "<xmin>10.5"), test=False)
    assert facts.images[1]["annotations"][0]["bbox"] == [9.5, 11, 40, 44]
    assert facts.images == DatasetCatalog.get("voc")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("", "it lists no image"),
        ("a\n", "only one image is listed"),
        ("a 1\nb -1\n", "line 1 is 'a 1': write the name of one image"),
        ("a\n\nb\n", "line 2 is empty: remove it"),
        ("\ufeffa\nb\n", "begins with a byte order mark"),
        ("a.jpg\nb.jpg\n", "write a instead of a.jpg into the list"),
    ],
)
def test_lists_of_images(check, ids, message):
    with pytest.raises(UserError, match=message):
        check(ids=ids)


def test_a_year_that_has_no_evaluation(check):
    with pytest.raises(UserError, match="of the year 2010: register it with 2007 or 2012"):
        check(year=2010)
