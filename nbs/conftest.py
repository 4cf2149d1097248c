"Each heading of a notebook is a test, also where pytest is given a notebook alone."

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def pytest_addoption(pluginmanager):
    pluginmanager.import_plugin("notebook_items")
