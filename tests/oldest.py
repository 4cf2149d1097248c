"""The oldest versions that settings.ini promises, as pip takes them, and the newest of what runs the
notebooks: `pip install $(python tests/oldest.py)`."""

from configparser import ConfigParser
from pathlib import Path

RUNS = ("pytest", "execnb", "fastcore", "nbformat")


def main():
    config = ConfigParser(delimiters=["="])
    config.read(Path(__file__).parent.parent / "settings.ini", encoding="utf-8")
    settings = config["DEFAULT"]
    promised = [*settings["requirements"].split(), *settings["lessons_requirements"].split()]
    oldest = [name.replace(">=", "==") for name in dict.fromkeys(promised)]
    held = [name.split("=")[0] for name in oldest]
    runs = [name for name in RUNS if name not in held]
    print(*oldest, *runs)


if __name__ == "__main__":
    main()
