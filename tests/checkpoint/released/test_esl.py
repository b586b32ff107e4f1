"""Released files: every key has its meaning, nothing is guessed, and they convert to ours and back bit for bit."""

from __future__ import annotations

import argparse
import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lib.checkpoint import Checkpoint, convert, load_model, read_checkpoint, save_checkpoint
from lib.checkpoint.loading import check_complete
from lib.checkpoint.released import esl as released
from lib.core.errors import InputError
from lib.core.fragments import Fragments, Tokens
from lib.files.pytorch import read_file
from tests.checkpoint.released.layouts import (
    BERT,
    IMG_DIM,
    KINDS,
    assert_same_released,
    assert_same_tensors,
    released_content,
    released_shapes,
    second_name,
    small_config,
    small_model,
)
from tests.conftest import SHARED, needs_shared

FULL_BERT = {**BERT, "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "intermediate_size": 3072, "max_position_embeddings": 512}  # fmt: skip
RESNET101, RESNEXT101, RESNET152 = ((3, 4, 23, 3), 1, 64), ((3, 4, 23, 3), 32, 8), ((3, 8, 36, 3), 1, 64)


@pytest.fixture
def bert_folder(tmp_path):
    """Writes the configuration of a BERT into a folder, as --bert_path names it; returns the folder."""

    def writer(values):
        folder = tmp_path / "bert"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**values, "model_type": "bert"}))
        return folder

    return writer


@pytest.fixture
def write(tmp_path):
    """Writes a released file of a kind, after a change to its content; returns its path."""

    def writer(kind, change=lambda content: None, name="model_best.pth", **options):
        content = released_content(kind)
        change(content)
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return writer


def refusal(path, *args) -> str:
    with pytest.raises(InputError) as caught:
        load_model(read_checkpoint(path, *args))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_tells_what_it_is_and_loads(kind, write):
    checkpoint = read_checkpoint(write(kind))
    assert checkpoint.config == small_config(kind)
    assert checkpoint.origin == "released" and checkpoint.description.startswith("released ")
    assert (checkpoint.epoch, checkpoint.step, checkpoint.best_rsum) == (7, 1234, 512.5)
    assert checkpoint.settings["batch_size"] == 128
    model = load_model(checkpoint)
    assert_same_tensors(model.state_dict(), checkpoint.model)


@pytest.mark.parametrize("kind", KINDS)
def test_released_to_ours_to_released_keeps_every_bit(kind, write, tmp_path):
    source = write(kind)
    convert(source, tmp_path / "ours.pth", "ours")
    convert(tmp_path / "ours.pth", tmp_path / "again.pth", "released")
    assert_same_released(read_file(source), read_file(tmp_path / "again.pth"))


@pytest.mark.parametrize("kind", KINDS)
def test_ours_to_released_to_ours_keeps_every_bit_and_fills_the_documented_keys(kind, tmp_path):
    model = small_model(kind)
    save_checkpoint(tmp_path / "ours.pth", model, epoch=2, best_rsum=100.0, settings={"learning_rate": 1e-3})
    convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released")
    content = read_file(tmp_path / "released.pth")
    assert content["opt"].learning_rate == 1e-3 and content["opt"].embed_size == model.config.embed_size
    for part, shapes in zip(content["model"], released_shapes(kind), strict=True):
        assert {key: tuple(tensor.shape) for key, tensor in part.items()} == {
            f"module.{k}": v for k, v in shapes.items()
        }
    convert(tmp_path / "released.pth", tmp_path / "again.pth", "ours")
    again = read_checkpoint(tmp_path / "again.pth")
    assert again.config == model.config and (again.epoch, again.best_rsum) == (2, 100.0)
    assert_same_tensors(again.model, model.state_dict())


def test_a_written_file_has_a_value_for_every_setting_that_the_original_code_asks_for(tmp_path):
    unused = {"kernel_size": None, "backbone_source": None, "input_scale_factor": None}  # flags of other models
    save_checkpoint(tmp_path / "ours.pth", small_model("vse_infty"), settings={"margin": 0.3, **unused})
    convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released")
    opt = vars(read_file(tmp_path / "released.pth")["opt"])
    assert opt["margin"] == 0.3 and opt["precomp_enc_type"] == "basic" and opt["img_dim"] == IMG_DIM
    assert [name for name, value in opt.items() if value is None] == []
    assert read_checkpoint(tmp_path / "released.pth").config == small_config("vse_infty")


def test_tensors_without_a_place_in_the_released_layout_are_named(tmp_path):
    def refused(weights, extras=None) -> str:
        checkpoint = Checkpoint(small_config("vse_infty"), weights, extras=extras or {}, path=tmp_path / "ours.pth")
        with pytest.raises(InputError) as caught:
            released.write(tmp_path / "released.pth", checkpoint)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    assert refused({"similarity.log_scale": torch.tensor(1.0)}) == (
        f"{tmp_path / 'released.pth'}: the released layout has no place for similarity.log_scale"
    )
    assert refused({}, {"sim_vec.a": torch.tensor(1.0)}) == (  # VSE∞ files have no third state dict
        f"{tmp_path / 'ours.pth'}: extras holds sim_vec.a, expected img_enc, txt_enc in front"
    )


def test_each_weight_of_the_heads_lands_where_its_meaning_is(write):
    parts = [{}, {}, {}]

    def keep(content):
        for part, dictionary in zip(parts, content["model"], strict=True):
            part.update({key.removeprefix("module."): tensor for key, tensor in dictionary.items()})

    head = load_model(read_checkpoint(write("esl_h", keep))).similarity
    sims = "sims.calculator_1"
    assert torch.equal(head.contribution.p, parts[2][f"{sims}.sim_eval.weight"][0])
    assert head.log_scale == parts[2][f"{sims}.temp_scale.weight"].item()
    assert head.contribution.sigma == parts[2][f"{sims}.temp_scale_1.weight"].item()
    assert head.contribution.log_sharpness == parts[2][f"{sims}.temp_scale_2.weight"].item()
    for k in range(9):
        assert torch.equal(head.correspondences[k].matrix, parts[2][f"{sims}.masks_{k}.weight"])
        assert torch.equal(head.correspondences[k].norm.bias, parts[2][f"{sims}.lynorm_{k}.bias"])
    for side, short, aggregator in (("image", "img", head.image_aggregator), ("text", "txt", head.caption_aggregator)):
        for k in range(1, 9):
            key = f"plus_encoder.encoders_1.{side}_levels.kernel_{short}_{k}.weight"
            assert torch.equal(aggregator.weights[k - 1], parts[2][key])
    head = load_model(read_checkpoint(write("esl_a", keep))).similarity
    for side, aggregator in (("image", head.image_aggregator), ("text", head.caption_aggregator)):
        for k in range(1, 9):
            assert torch.equal(aggregator.weights[k - 1],
                               parts[2][f"plus_encoder.encoders_1.{side}_levels.masks_{k}.weight"])  # fmt: skip


def test_each_weight_of_the_encoders_lands_where_its_meaning_is(write):
    content = released_content("vse_infty")
    image, text = ({key.removeprefix("module."): x for key, x in part.items()} for part in content["model"])
    model = load_model(read_checkpoint(write("vse_infty")))
    mlp = model.image_encoder.mlp
    for module, name in ((mlp.hidden, "mlp.layers.0"), (mlp.norm, "mlp.bns.0"), (mlp.output, "mlp.layers.1")):
        assert torch.equal(module.weight, image[f"{name}.weight"]) and torch.equal(module.bias, image[f"{name}.bias"])
    assert torch.equal(mlp.norm.running_var, image["mlp.bns.0.running_var"])
    assert torch.equal(model.similarity.image_pool.gru.weight_hh_l0, image["gpool.gru.weight_hh_l0"])
    assert torch.equal(model.similarity.caption_pool.linear.weight, text["gpool.linear.weight"])
    content = released_content("vse_infty grid")
    image = {key.removeprefix("module."): tensor for key, tensor in content["model"][0].items()}
    backbone = load_model(read_checkpoint(write("vse_infty grid"))).image_encoder.backbone.state_dict()
    assert_same_tensors(backbone, {key.removeprefix("backbone.resnet."): tensor for key, tensor in image.items()
                                   if key.startswith("backbone.resnet.") and second_name(key) != key})  # fmt: skip


@pytest.mark.parametrize("kind", ["esl_a", "vse_infty grid"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_key_without_a_meaning_is_an_error_that_names_it(kind, part, write):
    path = write(kind, lambda content: content["model"][part].update({"module.mystery.weight": torch.zeros(1)}))
    assert f"{('img_enc', 'txt_enc')[part]}: mystery.weight" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_any_missing_key_is_an_error_that_names_it_as_released_or_is_one_without_influence(kind, write):
    for part, shapes in enumerate(released_shapes(kind)):
        for key in list(shapes)[:: 83 if "grid" in kind else 11]:
            path = write(kind, lambda content: content["model"][part].pop(f"module.{key}"))  # noqa: B023
            unused = key.startswith(("mlp.bns.1.", "backbone.resnet.")) or (kind[:5] == "esl_a" and "scale_" in key)
            if unused:
                load_model(read_checkpoint(path))
            else:
                assert key in refusal(path)


def test_a_weight_of_another_shape_is_an_error_that_names_it(write):
    for key, shape in (("masks_3", (32, 5)), ("sim_eval", (9,)), ("temp_scale", (1,))):
        name = f"sims.calculator_1.{key}.weight"
        path = write("esl_h", lambda c: c["model"][2].update({f"module.{name}": torch.zeros(shape)}))  # noqa: B023
        assert name in refusal(path)


@pytest.mark.parametrize("kind", ["esl_a", "vse_infty grid"])
def test_keys_with_and_without_module_and_names_of_old_libraries_load_alike(kind, write):
    expected = read_checkpoint(write(kind)).model

    def older(content):
        for number, part in enumerate(content["model"]):
            renamed = OrderedDict()
            for index, (key, tensor) in enumerate(part.items()):
                key = key.removeprefix("module.") if number == 0 or (number == 1 and index % 2) else key
                key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                renamed[key] = tensor
            content["model"][number] = renamed
        content["model"][1]["module.bert.embeddings.position_ids"] = torch.arange(12)[None]
        content["model"] = tuple(content["model"])

    checkpoint = read_checkpoint(write(kind, older, "old.tar", _use_new_zipfile_serialization=False))
    assert_same_tensors(load_model(checkpoint).state_dict(), expected)
    assert "txt_enc.bert.embeddings.position_ids" in checkpoint.extras


def test_strange_characters_of_a_file_do_not_break_the_one_line_of_a_message(write):
    path = write("esl_a", lambda content: content["model"][0].update({"a\nb" + 500 * "c": torch.zeros(1)}))
    assert "a?bcc" in refusal(path) and len(refusal(path)) < 300 + len(str(path))
    path = write("esl_a", lambda content: setattr(content["opt"], "embed_size", "4\n4"))
    assert "embed_size 4?4" in refusal(path)


def test_settings_of_strange_types_are_an_error_or_without_effect(write):
    circle = []
    circle.append(circle)
    assert "contain themselves" in refusal(write("esl_a", lambda content: setattr(content["opt"], "x", circle)))
    assert "embed_size tensor" in refusal(write("esl_a", lambda c: setattr(c["opt"], "embed_size", torch.zeros(2))))
    assert "kernel_size [2]" in refusal(write("esl_a", lambda content: setattr(content["opt"], "kernel_size", [2])))
    assert "Eiters is nan" in refusal(write("esl_a", lambda content: content.update(Eiters=float("nan"))))
    assert "best_rsum is None" in refusal(write("esl_a", lambda content: content.update(best_rsum=None)))
    path = write("vse_infty", lambda content: vars(content["opt"]).update({1: torch.zeros(3), "names": {"a", "b"}}))
    load_model(read_checkpoint(path))


def test_a_key_twice_is_an_error(write):
    path = write("esl_a", lambda content: content["model"][1].update({"linear.weight": torch.zeros(256, 64)}))
    assert "linear.weight twice" in refusal(path)


def test_repeated_backbone_layers_may_be_absent_and_may_differ_but_not_in_shape(write, tmp_path):
    def drop(content):
        for key in [key for key in content["model"][0] if ".resnet." in key]:
            del content["model"][0][key]

    expected = read_checkpoint(write("vse_infty grid"))
    assert list(expected.extras) == ["img_enc.backbone.resnet.fc.weight", "img_enc.backbone.resnet.fc.bias"]
    assert_same_tensors(read_checkpoint(write("vse_infty grid", drop)).model, expected.model)

    key = "module.backbone.resnet.layer2.0.conv1.weight"
    path = write("vse_infty grid", lambda c: c["model"][0].update({key: torch.ones_like(c["model"][0][key])}))
    assert_same_tensors(read_checkpoint(path).model, expected.model)
    convert(path, tmp_path / "ours.pth", "ours")
    convert(tmp_path / "ours.pth", tmp_path / "again.pth", "released")
    assert_same_released(read_file(path), read_file(tmp_path / "again.pth"))

    path = write("vse_infty grid", lambda c: c["model"][0].update({key: torch.zeros(3, 3, 1, 1)}))
    assert "backbone.resnet.layer2.0.conv1.weight" in refusal(path)


def test_a_written_backbone_shares_the_tensors_of_both_names(tmp_path):
    save_checkpoint(tmp_path / "ours.pth", small_model("vse_infty grid"))
    convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released")
    image = read_file(tmp_path / "released.pth")["model"][0]
    one, other = (image[f"module.backbone.{name}.0.conv1.weight"] for name in ("resnet.layer3", "base.6"))
    assert one.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("kind", ["esl_a", "esl_h", "vse_infty"])
def test_released_esl_chose_its_epoch_on_test_and_a_model_of_ours_keeps_its_own_choice(kind, write, tmp_path):
    assert read_checkpoint(write(kind)).chosen_on == (None if kind == "vse_infty" else "test")
    save_checkpoint(tmp_path / "ours.pth", small_model(kind), chosen_on="dev")
    convert(tmp_path / "ours.pth", tmp_path / "released.pth", "released")
    for name in ("ours.pth", "released.pth"):
        assert read_checkpoint(tmp_path / name).chosen_on == "dev"


@pytest.mark.parametrize("kind", ["esl_a", "vse_infty"])
def test_conversion_keeps_what_is_known_of_how_the_epoch_was_chosen(kind, write, tmp_path):
    convert(write(kind), tmp_path / "ours.pth", "ours")
    assert read_checkpoint(tmp_path / "ours.pth").chosen_on == (None if kind == "vse_infty" else "test")
    save_checkpoint(tmp_path / "latest.pth", small_model(kind), settings={"val_split": "dev"}, chosen_on=None)
    convert(tmp_path / "latest.pth", tmp_path / "released.pth", "released")
    convert(tmp_path / "released.pth", tmp_path / "again.pth", "ours")
    for name in ("latest.pth", "released.pth", "again.pth"):
        assert read_checkpoint(tmp_path / name).chosen_on is None


def test_a_file_without_settings_tells_its_configuration_all_the_same(write):
    expected = small_config("esl_a")
    for opt in (argparse.Namespace(), None, {"margin": 0.2}, ["margin"]):
        assert read_checkpoint(write("esl_a", lambda content: content.update(opt=opt))).config == expected  # noqa: B023
    assert read_checkpoint(write("esl_a", lambda content: content.pop("opt"))).config == expected


def test_settings_count_whether_they_are_a_namespace_or_a_dict(write):
    for given in (argparse.Namespace, dict):
        opt = given(no_imgnorm=True, no_txtnorm=True, input_scale_factor=2.0)
        config = read_checkpoint(write("vse_infty grid", lambda content: content.update(opt=opt))).config  # noqa: B023
        assert config.similarity_options == {"no_imgnorm": True, "no_txtnorm": True}
        assert config.image_options == {"backbone_source": "tiny", "input_scale_factor": 2.0}
    opt = {"embed_size": 512}
    text = refusal(write("esl_a", lambda content: content.update(opt=opt)))
    assert "its opt says embed_size 512, but its weights say 256; the file was altered" in text


def test_numpy_numbers_in_a_file_become_plain_ones(write, tmp_path):
    def change(content):
        content["best_rsum"] = np.float64(499.25)
        content["Eiters"] = torch.tensor(77)
        content["opt"].learning_rate = np.float32(0.5)
        content["opt"].big_endian = np.dtype(">i8").type(5).astype(">i8")
        content["opt"].flags = [np.bool_(True), np.uint8(200), np.float16(1.5)]

    path = write("esl_a", change)
    for protocol in ("numpy.core.multiarray", "numpy._core.multiarray"):
        with open(path, "rb") as file:
            assert re.search(rb"numpy\._?core\.multiarray", file.read())
        checkpoint = read_checkpoint(path)
        assert (checkpoint.best_rsum, checkpoint.step) == (499.25, 77), protocol
        assert checkpoint.settings["learning_rate"] == 0.5 and type(checkpoint.settings["learning_rate"]) is float
        assert checkpoint.settings["flags"] == [True, 200, 1.5] and checkpoint.settings["big_endian"] == 5
        _swap_numpy_generation(path)


def _swap_numpy_generation(path):
    """Rewrite the pickle in the file to the module name of the other NumPy generation."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
            archive.writestr(name, data.replace(new, old) if new in data else data.replace(old, new))


def test_what_shapes_do_not_tell_of_bert_comes_from_the_folder_of_bert_path_where_it_fits(write, bert_folder):
    path = write("esl_a")
    fitting = {**BERT, "num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 1e-6}
    config = read_checkpoint(path, {"bert_path": bert_folder(fitting)}).config
    assert config.text_options == fitting
    bert = load_model(read_checkpoint(path, {"bert_path": str(bert_folder(fitting))})).text_encoder.bert
    assert bert.encoder.layer[0].attention.self.num_attention_heads == 4
    other = {"bert_path": bert_folder({**fitting, "vocab_size": 999})}
    for paths in (None, {}, {"bert_path": None}, {"bert_path": "no-such-folder"}, other):
        assert read_checkpoint(path, paths).config.text_options == BERT


def test_a_hidden_size_without_heads_of_64_needs_a_configuration(tmp_path, bert_folder):
    bert = {**BERT, "hidden_size": 40, "num_attention_heads": 5}
    torch.save(released_content("vse_infty", bert=bert), tmp_path / "a.pth")
    assert "40 is no multiple of 64" in refusal(tmp_path / "a.pth")
    model = load_model(read_checkpoint(tmp_path / "a.pth", {"bert_path": bert_folder(bert)}))
    assert model.config.text_options == bert


def test_a_broken_bert_configuration_is_an_error_that_names_its_flag(write, bert_folder):
    folder = bert_folder(BERT)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=f"^--bert_path {re.escape(str(folder))}: not a BERT model"):
        read_checkpoint(write("esl_h"), {"bert_path": folder})


def test_a_text_encoder_that_no_released_model_has_is_refused(write):
    def recurrent(content):
        content["model"][1] = {
            "module.words.weight": torch.zeros(3, 3),
            "module.gpool.linear.weight": torch.zeros(1, 32),
        }

    assert "txt_enc: words.weight" in refusal(write("vse_infty", recurrent))


def test_lists_of_state_dicts_of_other_projects_are_refused(write):
    def without_pooling(content):
        for part in content["model"]:
            for key in [key for key in part if "gpool" in key]:
                del part[key]

    assert "neither ESL-H, ESL-A nor VSE∞" in refusal(write("vse_infty", without_pooling))
    assert "neither" in refusal(write("esl_a", lambda c: c["model"].__setitem__(2, {"attention.w": torch.zeros(1)})))
    assert "list of 1" in refusal(write("esl_a", lambda content: content.update(model=content["model"][:1])))
    assert "no ordinary tensor" in refusal(write("esl_a", lambda c: c["model"][0].update({"module.fc.weight": 3})))
    sparse = torch.zeros(2, 2).to_sparse()
    assert "no ordinary tensor" in refusal(write("esl_a", lambda c: c["model"][0].update({"module.fc.weight": sparse})))


def _zeros(shapes: dict) -> OrderedDict:
    """Tensors of any size without memory of their own."""
    kinds = {True: torch.zeros((), dtype=torch.int64), False: torch.zeros(())}
    return OrderedDict(
        (f"module.{key}", kinds[key.endswith("num_batches_tracked")].expand(shape)) for key, shape in shapes.items()
    )


@pytest.mark.parametrize(
    "kind, size, resnet, source",
    [("esl_a", 512, None, None), ("esl_h", 1024, None, None), ("vse_infty", 1024, None, None),
     ("vse_infty grid", 1024, RESNET101, "detector"), ("vse_infty grid", 512, RESNEXT101, "wsl"),
     ("vse_infty grid", 1024, RESNET152, "imagenet_res152"), ("esl_a grid", 512, RESNET101, "detector")],
)  # fmt: skip
def test_full_size_models_have_a_place_for_every_documented_key_and_shape(
    kind, size, resnet, source, tmp_path, repeating_tensors
):
    extra = {"resnet": resnet} if resnet else {}
    shapes = released_shapes(kind, embed_size=size, img_dim=2048, bert=FULL_BERT, **extra)
    torch.save({"model": [_zeros(part) for part in shapes]}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert checkpoint.config.embed_size == size and checkpoint.config.text_options == FULL_BERT
    expected = {"backbone_source": source, "input_scale_factor": 1.0} if resnet else {"img_dim": 2048}
    assert checkpoint.config.image_options == expected
    check_complete(checkpoint)


def test_other_kernel_sizes_are_told_by_the_level_sizes(tmp_path, repeating_tensors):
    for kind in ("esl_a", "esl_h"):
        torch.save(
            {"model": [_zeros(part) for part in released_shapes(kind, embed_size=6600, s=3)]}, tmp_path / "a.pth"
        )
        checkpoint = read_checkpoint(tmp_path / "a.pth")
        assert checkpoint.config.similarity_options["kernel_size"] == 3
        check_complete(checkpoint)


@needs_shared
@pytest.mark.parametrize("name, kind", [("esl_a", "esl_a"), ("esl_h", "esl_h"), ("vse_region", "vse_infty"),
                                        ("vse_grid", "vse_infty grid")])  # fmt: skip
def test_the_key_lists_of_full_size_released_models_are_fully_accounted_for(name, kind, tmp_path, repeating_tensors):
    listed = [{}, {}, {}]
    for line in (SHARED / "golden" / f"keys_{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            number, _, key, shape = line.split("\t")[:4]
            listed[int(number)][key.removeprefix("module.")] = tuple(map(int, re.findall(r"\d+", shape)))
    listed = [part for part in listed if part]
    size = listed[1]["linear.weight"][0]
    documented = released_shapes(kind, embed_size=size, img_dim=2048, bert=FULL_BERT, resnet=RESNET101)
    assert listed == documented
    torch.save({"model": [_zeros(part) for part in listed]}, tmp_path / "a.pth")
    check_complete(read_checkpoint(tmp_path / "a.pth"))


@needs_shared
def test_the_released_scores_of_a_whole_checkpoint_are_reproduced(tmp_path, bert_folder):
    golden = SHARED / "golden"
    io = np.load(golden / "checkpoint_tiny64_esl_a_io.npz")
    paths = {"bert_path": bert_folder({**BERT, "vocab_size": 200, "num_hidden_layers": 1, "num_attention_heads": 2,
                                       "intermediate_size": 64, "max_position_embeddings": 32})}  # fmt: skip
    source = golden / "checkpoint_tiny64_esl_a.pth"
    convert(source, tmp_path / "ours.pth", "ours", paths)
    captions = Tokens(torch.from_numpy(io["captions"]), torch.from_numpy(io["cap_lens"]))
    for checkpoint in (read_checkpoint(source, paths), read_checkpoint(tmp_path / "ours.pth")):
        model = load_model(checkpoint).eval()
        with torch.no_grad():
            scores = model(Fragments.full(torch.from_numpy(io["images"]).float()), captions)
        np.testing.assert_allclose(scores.numpy(), io["sims"], rtol=0, atol=1e-5)
    convert(tmp_path / "ours.pth", tmp_path / "again.pth", "released")
    assert_same_released(read_file(source), read_file(tmp_path / "again.pth"))
