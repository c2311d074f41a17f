"""Puts configs/ into the wheel as fedpara/configs; pyproject.toml says everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Builds the package with the configurations in it; an editable install reads those of the checkout."""

    def run(self) -> None:
        """Build anew, because setuptools puts what an earlier version left in build/ into the wheel too."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "fedpara", "configs"))


setup(cmdclass={"build_py": BuildWithConfigs})
