"""What a visitor of the repository finds beside the code: how to cite, to report, and what is trusted."""

from __future__ import annotations

import re

import pytest

import cli
from tests.tracked import ROOT
from tudsr_runtime.version import __version__

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    yaml = pytest.importorskip("yaml", reason="reading YAML needs pyyaml, of the extra [train]")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    paper = citation["preferred-citation"]
    names = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{', '.join(names)}. *{paper['title']}.* CVPR {paper['year']}." in " ".join(
        readme.split()
    ).replace("> ", "")


def test_issue_templates_are_forms_that_ask_for_the_doctor() -> None:
    yaml = pytest.importorskip("yaml", reason="reading YAML needs pyyaml, of the extra [train]")
    forms = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in TEMPLATES]
    bodies = [form["body"] for form in forms if "body" in form]
    assert len(bodies) == 2
    for body in bodies:
        assert all({"type", "attributes"} <= {*field} and field["attributes"]["label"] for field in body)
    asked = [field for body in bodies for field in body if "tudsr doctor" in field["attributes"]["label"]]
    assert [field["validations"]["required"] for field in asked] == [True]


def test_security_names_only_commands_and_options_that_there_are() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`tudsr ([a-z]+)`", text))
    commands = {one.name or one.callback.__name__ for one in cli.app.registered_commands if one.callback}
    assert named
    assert named <= commands | {group.name for group in cli.app.registered_groups}
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).exists()
