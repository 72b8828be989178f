import pytest

from segdet.data.formats.voc import VOCReader
from segdet.data.formats.voc_xml import read_annotation
from segdet.util.errors import BadSample


def faults_of(path) -> list[str]:
    return [error.fault for error in read_annotation(path).errors]


@pytest.fixture
def xml(tmp_path):
    def write(content: str):
        path = tmp_path / "Annotations" / "a.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path

    return write


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"


def test_every_fault_of_a_file_is_listed(xml, tmp_path):
    path = xml(
        f"<annotation><object>{BOX}</object><object><name>cat</name></object><object><name>cow</name>{BOX}</object>"
        "<object><name>dog</name><bndbox><xmin>x</xmin><ymin>2</ymin><xmax>nan</xmax></bndbox></object>"
        f"<object><name>ant</name>{BOX}{BOX}</object>"
        f"<object><name>bee</name><difficult>maybe</difficult>{BOX}</object></annotation>"
    )
    faults = [
        "object 1 has no <name>",
        "an object of class 'cat' has no <bndbox>",
        "<xmin> of an object of class 'dog' is 'x', not a number",
        "<xmax> of an object of class 'dog' is 'nan', not a number",
        "the <bndbox> of an object of class 'dog' has no <ymax>",
        "an object of class 'ant' has 2 <bndbox>",
        "<difficult> of an object of class 'bee' is 'maybe', not 0 or 1",
    ]
    assert faults_of(path) == faults and read_annotation(path).names == ["cow"]
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    reader = VOCReader(tmp_path, ["train"], "detection")
    assert [fault.fault for fault in reader.faults(0, "detection") if fault.fatal] == faults
    with pytest.raises(BadSample) as caught:
        reader.objects(0)
    assert caught.value.fault == faults[0]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            f"<annotation><objects><object><name>cat</name>{BOX}</object></objects></annotation>",
            "1 <bndbox> element not in",
        ),
        (f"<annotation><Object><name>cat</name>{BOX}</Object></annotation>", "1 <bndbox> element not in"),
        (
            "<annotation><object><name>cat</name><BndBox><xmin>1</xmin></BndBox></object></annotation>",
            "an object of class 'cat' has no <bndbox>",
        ),
        (
            f'<annotation xmlns="http://x.org/y"><object><name>cat</name>{BOX}</object></annotation>',
            "1 <bndbox> element not in",
        ),
        ("<annotations><image><box xtl='1' label='cat'/></image></annotations>", "its root element is <annotations>"),
    ],
)  # fmt: skip
def test_xml_of_another_structure_is_a_fault(xml, content, fault):
    assert faults_of(xml(content))[0].startswith(fault)


def test_parts_and_empty_annotations_are_no_faults(xml):
    part = f"<part><name>head</name>{BOX}</part>"
    assert not faults_of(xml(f"<annotation><object><name>cat</name>{part}{BOX}</object></annotation>"))
    assert not faults_of(xml("<annotation/>"))


def test_an_annotation_of_another_image_is_a_fault(xml, tmp_path):
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    (tmp_path / "JPEGImages").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "JPEGImages" / name).touch()

    def faults(filename: str) -> list[str]:
        xml(f"<annotation><filename>{filename}</filename><object><name>cat</name>{BOX}</object></annotation>")
        reader = VOCReader(tmp_path, ["train"], "detection")
        return [fault.fault for fault in reader.faults(0, "detection")]

    stated = "states <filename>b.jpg</filename> but is used for the image a.jpg"
    assert faults("b.jpg") == faults("D:\\images\\b.jpg") == [stated]
    assert not faults("a.jpg") and not faults("a.png") and not faults("a name of long ago.jpg")
