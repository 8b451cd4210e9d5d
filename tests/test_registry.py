"""Names of methods, their options in words, and the table made from the classes."""

import pytest

from modulewise import losses, methods, registry, schedules
from modulewise.errors import MethodError, ModulewiseError
from modulewise.heads import conv
from modulewise.method import Locality, Reach
from modulewise.methods import DGL, DeeplySupervised, KernelProxy, PredSim

NAMES = {
    "auglocal",
    "backprop",
    "bcd",
    "checkpointed",
    "deeply-supervised",
    "dgl",
    "difference-target-propagation",
    "direct-feedback-alignment",
    "feedback-alignment",
    "greedy",
    "kernel-proxy",
    "predsim",
    "synthetic-gradients",
}


def test_every_public_method_has_a_name_and_these_are_among_them():
    assert {cls.__name__ for cls in registry.known().values()} == set(methods.__all__)
    assert set(registry.known()) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_builds_its_class_for_a_number_of_classes(name):
    text = f"{name}(dgl)" if name == "deeply-supervised" else name
    built = registry.build(registry.parse(text), classes=7)
    assert type(built) is registry.known()[name]
    for field in ("classes", "outputs"):
        assert getattr(built, field, 7) == 7


@pytest.mark.parametrize("text", ["PredSim", "pred-sim", "pred_sim", "predsim"])
def test_hyphens_and_capitals_do_not_matter(text):
    assert str(registry.parse(text)) == "predsim"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("predsim:beta=0", PredSim(classes=5, beta=0.0)),
        ("predsim:beta=0.5,decoder-features=64", PredSim(classes=5, beta=0.5, decoder_features=64)),
        ("dgl:head=conv,dense=yes", DGL(classes=5, head=conv, dense=True)),
        (
            "kernel-proxy:kernel=relu,maximise=nmse,pool=4",
            KernelProxy(kernel=losses.RELU, maximise=losses.nmse, pool=4),
        ),
        ("kernel-proxy:pool=none", KernelProxy(pool=None)),
        ("deeply-supervised(predsim:beta=1)", DeeplySupervised(PredSim(classes=5, beta=1.0))),
    ],
)
def test_options_are_read_by_the_type_of_the_field(text, expected):
    assert registry.build(registry.parse(text), classes=5) == expected


def test_a_gaussian_kernel_takes_its_width():
    built = registry.build(registry.parse("kernel-proxy:kernel=gaussian(2.5)"), classes=5)
    assert built.kernel.name == losses.gaussian(2.5).name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dlg", "did you mean 'dgl'"),
        ("predsim:bta=1", "did you mean 'beta'"),
        ("predsim:beta=x", "expected a number"),
        ("predsim:decoder_features=2.5", "expected a whole number"),
        ("predsim:beta", "expected key=value"),
        ("predsim:beta=", "expected key=value"),
        ("predsim:beta=2", "expected a weight in"),
        ("predsim:classes=3", "no option 'classes'"),
        ("dgl:head=foo", "conv, linear, mlp, mlp-sr"),
        ("dgl:dense=maybe", "true or false"),
        ("dgl(predsim)", "no other method"),
        ("deeply-supervised", "deeply-supervised(dgl)"),
        ("deeply-supervised(bcd", "malformed"),
        ("", "malformed"),
    ],
)
def test_bad_words_are_refused_in_one_line(text, part):
    with pytest.raises(MethodError) as caught:
        registry.build(registry.parse(text), classes=10)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_stay_with_their_method_when_a_list_is_split():
    text = "backprop,predsim:beta=0,decoder_features=8@sequential,deeply-supervised(dgl:head=conv,dense=no),dgl"
    assert registry.split(text) == [
        "backprop",
        "predsim:beta=0,decoder_features=8@sequential",
        "deeply-supervised(dgl:head=conv,dense=no)",
        "dgl",
    ]


def test_methods_with_heads_are_those_with_a_trained_local_classifier():
    found = {
        name
        for name in registry.known()
        if name != "deeply-supervised" and registry.has_heads(registry.build(registry.parse(name), classes=10))
    }
    assert found >= {"auglocal", "dgl", "greedy", "predsim"}
    assert not found & (NAMES - {"auglocal", "dgl", "greedy", "predsim"})


@pytest.mark.parametrize(
    ("reach", "schedule", "parts", "expected"),
    [
        (Reach.GLOBAL, schedules.simultaneous, 3, "end-to-end"),
        (Reach.STRICT, schedules.simultaneous, 3, "weakly modular"),
        (Reach.STRICT, schedules.sequential, 3, "modular"),
        (Reach.PORT, schedules.sequential, 3, "modular"),
        (Reach.TARGETS, schedules.simultaneous, 3, "weakly modular"),
        (Reach.STRICT, schedules.simultaneous, 1, "end-to-end"),
    ],
)
def test_the_class_follows_from_method_and_schedule(reach, schedule, parts, expected):
    assert registry.modularity(Locality(reach), schedule, parts=parts) == expected


def test_an_unknown_schedule_is_refused_with_the_closest():
    with pytest.raises(ModulewiseError, match="did you mean 'sequential'"):
        registry.schedule("sequental")


def test_the_table_has_a_line_for_every_method_with_year_and_paper():
    lines = registry.markdown().splitlines()
    assert len(lines) == 2 + len(methods.__all__)
    for name, cls in registry.known().items():
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        paper = cls.references[0]
        assert f"| {paper.year} |" in line
        assert paper.title in line
        assert paper.link in line
        assert f"| {cls.locality} |" in line
