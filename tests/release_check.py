"""Everything that a release wants, but the upload: `make release-check`, on a tag with VERSION=0.3.0.

    python tests/release_check.py [VERSION]

It ends at the first thing that is wrong, with one sentence."""

import ast
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DIST = ROOT / "dist"


def settings_version():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["version"]


def package_version():
    tree = ast.parse((ROOT / "llm_course" / "__init__.py").read_text(encoding="utf-8"))
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    return ast.literal_eval(values[0])


def cited_version():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]


def check_versions(wanted):
    "settings.ini, the package and the citation say the same, and it is the version that is asked for."
    found = {
        "settings.ini": settings_version(),
        "llm_course/__init__.py": package_version(),
        "CITATION.cff": cited_version(),
    }
    wanted = wanted or found["settings.ini"]
    wrong = {name: version for name, version in found.items() if version != wanted}
    if wrong:
        sys.exit(f"The version is {wanted}, but {wrong}: write it there too.")
    return wanted


def check_changelog(version):
    "The newest entry is this version's, and it says something."
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = re.split(r"^## (.+)$", text, flags=re.M)[1:]
    if not entries or entries[0] != version or "- " not in entries[1]:
        sys.exit(f"CHANGELOG.md begins with {entries[:1]}: write what {version} changes above it.")


def run(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def changed():
    return run("git", "status", "--porcelain", "--", "nbs", "llm_course")


def check_notebooks():
    "Clean, exported, folded: nothing is left to do."
    if before := changed():
        sys.exit(f"Commit these first:\n{before}")
    run(BIN / "nbdev_clean")
    run(sys.executable, "tests/fold_cells.py")
    run(BIN / "nbdev_export")
    if after := changed():
        sys.exit(f"Cleaning, folding and exporting changed these; look at them and commit:\n{after}")


def check_packages(version):
    "Wheel and source distribution build, and hold what they should."
    for old in DIST.glob("*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    found = sorted(path.name for path in DIST.iterdir())
    wheel = f"llm_course-{version}-py3-none-any.whl"
    if found != [wheel, f"llm_course-{version}.tar.gz"]:
        sys.exit(f"dist holds {found}, and should hold a wheel and a source distribution.")
    return DIST / wheel


def check_readme(wheel):
    "Its text is in the wheel as Markdown, and every link in it leads somewhere on its own."
    from markdown_it import MarkdownIt

    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode("utf-8"))
    if metadata["Description-Content-Type"].split(";")[0] != "text/markdown":
        sys.exit("The wheel's description is no Markdown: set long_description_content_type.")
    page = MarkdownIt("commonmark").enable("table").render(metadata.get_payload())
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    relative = [target for target in targets if not target.startswith(("http", "#", "mailto:"))]
    if "<h1>llm_course</h1>" not in page or relative:
        sys.exit(f"On PyPI these links of the README lead nowhere: {relative[:5]}.")


def main():
    version = check_versions(*sys.argv[1:2] or [None])
    check_changelog(version)
    check_notebooks()
    wheel = check_packages(version)
    check_readme(wheel)
    print(f"{version} is ready: git tag v{version} && git push --tags publishes it.")


if __name__ == "__main__":
    main()
