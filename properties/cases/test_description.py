"""A description is written as one flat object, whose keys and order records and reports rely on."""

from __future__ import annotations

import json

import pytest

from lmc_verify.cases import CaseDescription, CaseSettings, build_case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.encoding import decode, encode
from lmc_verify.runs import repeated_case

END = '"support":28,"histories":"exact","seed":0,"dtype":"float64"'
KARATE = '{"dataset":"karate","nodes":34,"edges":156,'

RECORDED = (
    # As records of version 0.1.0 hold them: everything that a key depends on occurs.
    KARATE + '"model":"gcn","layers":3,"width":8,"activation_cut":"pre","estimator":"lmc","normaliser":"inclusion",'
    '"design":"clusters","per_batch":2,' + END + ',"beta":0.16,"partition":"metis","parts":4}',
    KARATE + '"model":"gcnii","layers":4,"width":16,"activation_cut":"post","activation":"tanh","encoder":true,'
    '"head":true,"residual":true,"norm":"layer","jump":"concat","dropout":0.5,"frozen":["layer 2","head"],'
    '"alpha":0.2,"shared_weights":false,"estimator":"lmc","normaliser":"inclusion","design":"epoch","per_batch":1,'
    + END
    + ',"beta":0.4,"score":"constant","partition":"random","parts":17,"replicate":2,"seen":"0,12"}',
    KARATE + '"model":"gcn","layers":2,"width":4,"activation_cut":"pre","estimator":"saint-node",'
    '"normaliser":"inclusion","design":"nodes","per_batch":2,"support":"about 10^43","histories":"sweeps:4","seed":3,'
    '"dtype":"float64","budget":5,"normalisation":"closed form"}',
    # Assembled from objects, with a design that does not say how large its batches are.
    '{"dataset":"graph","nodes":2,"edges":0,"model":"layeredmodel","layers":1,"width":1,"estimator":"mine",'
    '"normaliser":"inclusion","design":"OneBatch","per_batch":null,"support":1,"histories":"zero","seed":0,'
    '"dtype":"float64"}',
    # Of a check that crashed, and of a case that was not run.
    '{"dataset":"cora","model":"gcn","estimator":"gas","design":"clusters","histories":"exact","seed":0}',
    "{}",
)


@pytest.mark.parametrize("recorded", RECORDED)
def test_what_is_on_record_is_read_and_written_again_byte_for_byte(recorded: str) -> None:
    described = CaseDescription.from_dict(decode(recorded))
    assert encode(described.to_dict()) == recorded
    assert CaseDescription.from_dict(described.to_dict()) == described


def test_every_key_on_record_has_its_field() -> None:
    described = CaseDescription.from_dict(json.loads(RECORDED[1]))
    assert (described.model, described.estimator, described.design) == ("gcnii", "lmc", "epoch")
    assert (described.encoder, described.dropout, described.replicate) == (True, 0.5, 2)
    assert (described.frozen, described.seen) == (("layer 2", "head"), (0, 12))
    assert described.model_options == {"alpha": 0.2, "shared_weights": False}
    assert described.estimator_settings == {"beta": 0.4, "score": "constant"}


def test_a_setting_with_the_name_of_another_entry_gives_way() -> None:
    described = CaseDescription(
        model_options={"alpha": 0.2},
        estimator="mine",
        normaliser="inclusion",
        estimator_settings={"alpha": 1.0, "normaliser": "other", "parts": 3},
        parts=8,
    )
    flat = {"alpha": 0.2, "estimator": "mine", "normaliser": "inclusion", "parts": 8}
    assert list(described.to_dict().items()) == list(flat.items())


SETTINGS = {
    "dataset": {"name": "karate"},
    "model": {"name": "gcnii", "layers": 2, "width": 4, "activation": "tanh", "dropout": 0.5, "frozen": ["head"]},
    "estimator": {"name": "lmc", "beta": 0.4},
    "design": {"name": "epoch", "partition": "contiguous", "parts": 4, "per_batch": 1, "seen": [0, 2]},
    "sampling": {"replicate": 3},
    "histories": "zero",
    "seed": 5,
}


def test_a_built_case_is_described_by_its_settings_and_its_graph() -> None:
    settings = CaseSettings.model_validate(
        SETTINGS | {"model": {**SETTINGS["model"], "encoder": True, "head": True, "options": {"theta": 0.25}}}
    )
    assert list(build_case(settings).description.to_dict().items()) == [
        ("dataset", "karate"),
        ("nodes", 34),
        ("edges", 156),
        ("model", "gcnii"),
        ("layers", 2),
        ("width", 4),
        ("activation_cut", "pre"),
        ("activation", "tanh"),
        ("encoder", True),
        ("head", True),
        ("dropout", 0.5),
        ("frozen", ("head",)),
        ("theta", 0.25),
        ("estimator", "lmc"),
        ("normaliser", "inclusion"),
        ("design", "epoch"),
        ("per_batch", 1),
        ("support", 2),
        ("histories", "zero"),
        ("seed", 5),
        ("dtype", "float64"),
        ("beta", 0.4),
        ("partition", "contiguous"),
        ("parts", 4),
        ("replicate", 3),
        ("seen", "0,2"),
    ]


def test_what_is_planned_is_described_as_far_as_it_is_known() -> None:
    case = build_case(CaseSettings.model_validate({"dataset": {"name": "karate"}, "design": {"parts": 3}}))
    assert case.settings is not None
    planned = CaseDescription.planned(case.settings)
    assert planned.to_dict().items() <= case.description.to_dict().items()
    assert list(planned.to_dict()) == ["dataset", "model", "estimator", "design", "histories", "seed"]


def test_what_departs_in_sampling_and_training_is_described() -> None:
    """Two cases that differ there alone are two: their evidence is not added up. The error level does not count."""
    changes = {
        "training": {"steps": 5, "lengths": [2, 4, 8], "beta_schedule": "decaying", "step_size": 0.005},
        "sampling": {"alpha": 1e-9, "draws": 7, "replicate": 3},
    }
    usual, other = (build_case(CaseSettings.model_validate(SETTINGS | item)) for item in ({}, changes))
    assert usual.description.training == usual.description.sampling == {}
    written = other.description.to_dict()
    assert {key: value for key, value in written.items() if key not in usual.description.to_dict()} == {
        "sampling.draws": 7,
        "training.steps": 5,
        "training.lengths": (2, 4, 8),
        "training.beta_schedule": "decaying",
    }
    assert CaseDescription.from_dict(json.loads(json.dumps(written))) == other.description
    names = [repeated_case(Verdict("c", Outcome.EXACT, "", case=case.description)) for case in (usual, other)]
    assert names[0] != names[1]
    shared = build_case(CaseSettings.model_validate(SETTINGS | {"sampling": {"alpha": 1e-9, "replicate": 4}}))
    assert repeated_case(Verdict("c", Outcome.EXACT, "", case=shared.description)) == names[0]


def test_settings_alone_say_all_that_they_decide() -> None:
    case = build_case(CaseSettings.model_validate(SETTINGS | {"training": {"steps": 5}}))
    assert case.settings is not None
    asked, built = CaseDescription.asked(case.settings).to_dict(), case.description.to_dict()
    assert set(built) - set(asked) == {"nodes", "edges", "normaliser", "support", "dtype", "replicate"}
    assert asked.items() <= built.items()
