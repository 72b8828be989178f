from segdet.util.suggest import closest, did_you_mean


def test_closest_ignores_case_and_returns_the_valid_spelling() -> None:
    assert closest("deeplabv3PLUS", ["Unet", "DeepLabV3Plus"]) == "DeepLabV3Plus"
    assert closest("xyz", ["Unet"]) is None
    assert closest("xyz", ["Unet"], cutoff=0) == "Unet"
    assert closest("xyz", []) is None


def test_did_you_mean_lists_the_names_when_none_is_close() -> None:
    assert did_you_mean("fti", ["fit", "test"]) == "did you mean fit?"
    assert did_you_mean("xyz", ["fit", "test"]) == "choose from fit, test"
    assert did_you_mean("xyz", [f"a{i}" for i in range(30)]).endswith("a22, a23, 6 more")


def test_names_of_other_tools_have_precedence_over_similar_names() -> None:
    assert closest("train", ["fit", "strain"]) == "fit"
    assert closest("optim.learning_rate", ["optim.lr", "optim.learning_rates"]) == "optim.lr"
    assert closest("model.optim.learning_rate", ["model.optim.lr"]) == "model.optim.lr"
    assert closest("Learning_Rate", ["lr"]) == "lr"
    assert closest("source", ["run_dir", "images"]) == "images"
    assert closest("source", ["run_dir"]) is None
