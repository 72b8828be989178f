from segdet.util.nouns import counted


def test_the_noun_agrees_with_its_number() -> None:
    assert [counted(number, "image") for number in (0, 1, 2, 1000)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,000 images",
    ]
    assert counted(1, "class", "classes") == "1 class" and counted(3, "class", "classes") == "3 classes"
    assert counted(1, "image has", "images have") == "1 image has"
