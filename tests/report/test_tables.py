"""Tables by hand: numbers, alignment, what they say."""

from skullgen.report import tables
from skullgen.report.tables import Table
from tests.report import samples


def test_numbers_and_spans():
    assert [tables.number(x) for x in (None, 1, 0.12345, -2.0)] == ["-", "1.000", "0.123", "-2.000"]
    assert tables.number(6.44, "+", digits=1) == "+6.4"
    row = {"mean": 0.12345, "low": 0.1, "high": 0.2}
    assert tables.span(row) == "0.123 [0.100, 0.200]"
    assert tables.span(row, "+") == "+0.123 [+0.100, +0.200]"
    assert tables.span(row | {"low": None, "high": None}) == "0.123"
    assert tables.span(None) == tables.span({"mean": None}) == "-"


def test_text_aligns_words_left_and_numbers_right():
    rows = [["a net", "0.700 [0.600, 0.800]", "3"], ["b", "-", "12"]]
    lines = tables.text(Table("title", ["net", "Dice", "skulls"], rows, ["a note"]))
    assert lines == [
        "title",
        "net                    Dice  skulls",
        "a net  0.700 [0.600, 0.800]       3",
        "b                         -      12",
        "a note",
    ]
    assert tables.text(Table("", ["a"], [])) == ["a"]


def test_a_verdict_has_a_line_for_each_net_and_column():
    means = {"dice": 0.7, "hd95_mm": 6.25, "dice_native": 0.6, "ceiling_native": 0.9}
    rows = [samples.row(metric=metric, mean=mean) for metric, mean in means.items()]
    rows += [
        samples.row(metric="own.metric", mean=0.3, skulls=7),
        samples.row(column="validation", mean=0.8, low=None),
        samples.row(by="skull", mean=0.1),
    ]
    minus = [samples.row(metric=name, mean=-0.05, minus="mirror") for name in ("dice", "bdsc")]
    table = tables.verdict(samples.verdict(rows, minus))
    assert table.rows == [
        ["vnet", "test", "0.700 [0.600, 0.800]", "-", "0.600 (0.900)", "-", "6.2", "40", "8"],
        ["vnet", "learnt from", "0.800", "-", "- (-)", "-", "-", "40", "8"],
    ]
    assert table.notes == [
        "own.metric, vnet, test: 0.300 [0.200, 0.400] (7 skulls)",
        "vnet minus mirror, test, Dice: -0.050 [-0.150, +0.050] (8 skulls, t)",
    ]
    assert "12.8 mm" in table.title


def test_a_verdict_says_who_learnt_how_and_how_much_there_was_to_gain():
    its = {"updates": 8, "curve": [[4, 0.3], [8, 0.45]], "converged": False}
    share = {"mean": 0.5, "low": 0.2, "high": 0.9}
    room = samples.row(metric="dice", mean=0.06) | {"low": 0.01, "high": 0.11}
    judged = samples.verdict([samples.row(metric="dice", mean=0.7)], [])
    judged["headroom"] = [
        {**room, "column": "test", "shares": {"vnet": share, "mirror": None}},
        {**room, "column": "test ct", "low": -0.01, "shares": {"vnet": None}},
    ]
    table = tables.verdict({**judged, "nets": {"vnet": its}})
    assert table.rows[0][0] == "vnet (not converged)"
    assert table.notes == [
        "headroom on test: +0.060 [+0.010, +0.110] (8 skulls); of it close: vnet 0.500 "
        "[0.200, 0.900]",
        "headroom on test ct: +0.060 [-0.010, +0.110] (8 skulls); within noise, nothing can be "
        "told apart here",
    ]


def test_fidelity_says_what_copies():
    table = tables.fidelity(samples.quality(0.82))
    assert table.columns == ["Dice, 5 pairs", "skull", "defect"]
    assert table.rows[0] == ["nearest training pair: generated", "0.820", "0.820"]
    assert table.rows[2][1:] == ["-", "-"] and table.rows[-2][1:] == ["25.00%", "25.00%"]
    assert table.title == (
        "5 generated pairs: 20.0% empty defects; equation 6 took 12.50% of the defects' voxels; "
        "dust, voxels a pair: 1.50 of skull, 0.00 of defect"
    )
    assert table.notes == [
        "20.0% of 5 generated skulls lie nearer to a training skull (Dice above 0.700) than 95 % "
        "of 3 unseen real ones do, where 5 % are expected if nothing is copied; the closest has "
        "0.750.",
        "5 generated pairs were compared; without held-out real ones no Dice is known as too near.",
    ]


def test_a_limit_that_unseen_copies_set_is_said_to_tell_nothing():
    near = {"limit": 0.995, "held_out": [0.7, 1.0], "generated": [0.8], "share_above": 0.0}
    says = tables.copies("skull", {**near, "closest": [{"dice": 0.8}]})
    assert says == (
        "1 generated skulls were compared, and no Dice is too near: unseen real ones lie at up to "
        "1.000 of training ones; is a skull there under two names?"
    )
    assert "lie nearer" in tables.copies(
        "skull", {**near, "limit": 0.9, "closest": [{"dice": 0.8}]}
    )
