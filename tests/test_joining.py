"""What a stranger meets first: workflows, forms, hooks, the release's check."""

import json
import re
import sys
from pathlib import Path

import pytest
import release_check
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = ("bug.yml", "stuck.yml")


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_alone(path):
    "What more a job may do stands in that job."
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job or "permissions" in job, name


def test_actions_are_named_exactly():
    "By a commit, with its version beside it; the same one everywhere."
    commits = {}
    for path in WORKFLOWS:
        for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8")):
            named = re.fullmatch(r"([\w/-]+)@([0-9a-f]{40})  # v\d+\.\d+\.\d+", line)
            assert named, f"{path.name}: {line}"
            assert commits.setdefault(named[1], named[2]) == named[2], f"{path.name}: {line}"
    assert len(commits) >= 6


def test_workflows_call_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = set()
    for path in WORKFLOWS:
        called |= set(re.findall(r"\bmake ([\w-]+)", path.read_text(encoding="utf-8")))
    assert called >= {"test", "test-oldest", "coverage", "docs", "release-check"}
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_asks(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"] and form["description"]
    for field in form["body"]:
        assert field["type"] in ("textarea", "input") and field["attributes"]["label"]


def test_the_hooks_before_a_commit_are_tools_that_are_here():
    [local] = read(".pre-commit-config.yaml")["repos"]
    for hook in local["hooks"]:
        tool, *arguments = hook["entry"].split()
        assert (Path(sys.executable).parent / Path(tool).name).exists(), tool
        for argument in arguments:
            assert "/" not in argument or (ROOT / argument).exists(), argument


def test_the_dev_container_makes_the_environment_of_make_test():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"].endswith("make .venv/.installed-dev")


def test_versions_changelog_and_citation_agree():
    version = release_check.check_versions(None)
    release_check.check_changelog(version)
    citation = read("CITATION.cff")
    assert citation["authors"] == [{"name": "The llm_course authors"}]
    with pytest.raises(SystemExit, match=r"The version is 9\.9, but"):
        release_check.check_versions("9.9")
    with pytest.raises(SystemExit, match="write what"):
        release_check.check_changelog("9.9")
