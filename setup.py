"Package metadata lives in `settings.ini`; this file only hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
extras = ("lessons", "lab", "hub", "serve", "track", "docs", "jax", "dev")
repository = settings["git_url"].rstrip("/")

# Outside the repository a README's links and pictures must lead back into it.
readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\]\()(?!http)", rf"\1{repository}/raw/main/", readme)
readme = re.sub(r"(\]\(|^\[[^\]]+\]: )(?!http|#)", rf"\1{repository}/blob/main/", readme, flags=re.M)
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=settings["author"],
    url=repository,
    project_urls={
        "Course": settings["doc_host"] + settings["doc_baseurl"],
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    },
    license="Apache-2.0",
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Framework :: Jupyter",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["llm_course", "llm_course.*"]),
    package_data={"llm_course": ["py.typed", "tales.json", "static/*", "bundled/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in extras},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
