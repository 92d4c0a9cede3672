"""names.json: what is written is read, and what is no name is refused in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_core.errors import UserError
from subrank.pages.names import LONGEST, check_names, read_groups, read_names, write_names

NODES = ("5_17", "mlp_out.3_2", "error.resid_post.3", "logit: she - he")


def test_what_is_written_is_read(tmp_path):
    names = {node: f"name of {node}" for node in NODES} | {"0_1": "</script>\u202e 👩‍👧 \"'"}
    write_names(tmp_path / "names.json", names, run="abc")
    assert read_names(tmp_path / "names.json") == names
    assert json.loads((tmp_path / "names.json").read_text())["run"] == "abc"


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(NODES), st.text(max_size=2 * LONGEST)))
def test_a_name_is_read_as_written_or_refused(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "names.json"
    try:
        write_names(path, names)
    except UserError:
        assert not path.exists()
    else:
        assert read_names(path) == {node: name.strip() for node, name in names.items()}


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ({"bracket": "x"}, "no node"),
        ({"5_x": "x"}, "no node"),
        ({"5_1": ""}, "not empty"),
        ({"5_1": " \t"}, "not empty"),
        ({"5_1": 3}, "not empty"),
        ({"5_1": "a\nb"}, "one line"),
        ({"5_1": "a\u2028b"}, "one line"),
        ({"5_1": "x" * (LONGEST + 1)}, "at most"),
    ],
)
def test_what_is_no_name_is_refused(tmp_path, names, word):
    (tmp_path / "names.json").write_text(json.dumps({"names": names}))
    with pytest.raises(UserError, match=word) as error:
        read_names(tmp_path / "names.json")
    assert "\n" not in str(error.value) and "names.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{}", '{"names": []}', "[]", '{"names": {'])
def test_what_is_no_names_file_is_refused(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_names(tmp_path / "names.json")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="missing"):
        read_names(tmp_path / "none.json")


def test_spaces_around_a_name_go():
    assert check_names({"5_1": "  x "}) == {"5_1": "x"}


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ([], "no groups"),
        ({"": ["5_1"]}, "not empty"),
        ({"a": []}, "list of nodes"),
        ({"a": "5_1"}, "list of nodes"),
        ({"a": [5]}, "list of nodes"),
        ({"a": ["bracket"]}, "no node"),
        ({"a": ["5_1"], "b": ["5_2", "5_1"]}, "5_1 is in two groups"),
    ],
)
def test_groups_are_read_or_refused(tmp_path, groups, word):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"names": {}, "groups": {"a": ["5_1", "logit: she - he"], "b": ["5_2"]}}))
    assert read_groups(path) == {"a": ["5_1", "logit: she - he"], "b": ["5_2"]}
    path.write_text(json.dumps({"names": {}, "groups": groups}))
    with pytest.raises(UserError, match=word) as error:
        read_groups(path)
    assert "\n" not in str(error.value) and "names.json" in str(error.value)
    path.write_text('{"names": {}}')
    assert read_groups(path) == {}
