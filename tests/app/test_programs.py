"""The command `fedpara` in this process: its programs, its words, and how it differs from an installed one."""

import importlib.util
import os
import shlex
import subprocess
import sys
import tomllib
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest

import fedpara
from fedpara import installation
from fedpara.app import programs
from fedpara.app.make import find_modules_here
from fedpara.app.overrides import parse
from helpers import ROOT


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs the command; returns exit status, standard error and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", "")  # put back after

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/fedpara", *arguments])
        try:
            programs.main()
            status = 0
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.err, captured.out

    return run


def test_every_script_of_src_is_a_program():
    scripts = {path.stem for path in (ROOT / "src").glob("*.py")}
    assert programs.PROGRAMS.keys() == scripts
    for name, (module, _) in programs.PROGRAMS.items():
        assert f"from {module} import main\n" in (ROOT / "src" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", sorted(programs.PROGRAMS.keys() - {"train"}))
def test_every_program_has_help_that_says_how_it_is_started(command, name):
    status, error, out = command(name, "--help")
    assert (status, error) == (0, "")
    assert f"fedpara {name} " in out.splitlines()[0]


@pytest.mark.parametrize("typed", [[], ["--help"], ["-h"]])
def test_the_command_lists_its_programs(command, typed):
    status, _, out = command(*typed)
    assert status == 0
    for name, (_, purpose) in programs.PROGRAMS.items():
        assert f"  {name:<10} {purpose}\n" in out


def test_version(command):
    assert command("--version") == (0, "", f"fedpara {fedpara.__version__}\n")


def test_what_is_no_program_is_one_line(command):
    assert command("reprot", "logs") == (
        2,
        "error: reprot: must be one of train, eval, audit, report, status, reproduce, dashboard; did you mean "
        "report?\n",
        "",
    )


def test_folders_start_at_the_current_one(command, tmp_path):
    assert command("status") == (
        2,
        f"error: {tmp_path / 'logs'}: holds no run folder (metrics.csv, summary.json)\n",
        "",
    )
    assert os.environ["PROJECT_ROOT"] == str(tmp_path)
    assert installation.root() == tmp_path


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("fedpara ", "train eval audit report status reproduce dashboard"),
        ("fedpara re", "report reproduce"),
        ("fedpara report lo", ""),
        ("fedpara train model=vg", "model=vgg16 model=vgg16_quarter model=vgg_small"),
        ("fedpara train model=mlp federation.num_c", "federation.num_clients="),
    ],
)
def test_completion(command, monkeypatch, line, answer):
    monkeypatch.setenv("COMP_LINE", line)
    status, error, out = command("-sc", "query=bash")
    assert (status, error, out.strip()) == (0, "", answer)


def installed(folder):
    """The module `installation` as it is where configs/ is in the package."""
    (folder / "fedpara" / "configs").mkdir(parents=True)
    (folder / "fedpara" / "installation.py").write_text(Path(installation.__file__).read_text())
    found = importlib.util.spec_from_file_location("installed", folder / "fedpara" / "installation.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_a_checkout_and_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PROJECT_ROOT", "")  # put back after
    monkeypatch.chdir(tmp_path)
    wheel = installed(tmp_path)
    assert (installation.CHECKOUT, installation.CONFIGS, installation.root()) == (ROOT, ROOT / "configs", ROOT)
    assert (wheel.CHECKOUT, wheel.CONFIGS, wheel.root()) == (None, tmp_path / "fedpara" / "configs", tmp_path)
    assert wheel.TRAIN[-2:] == ("fedpara", "train")
    (tmp_path / "link").symlink_to(ROOT)
    module = str(tmp_path / "link" / "src" / "fedpara" / "__main__.py")  # python -m fedpara
    cases = {"src/train.py": "python src/train.py", "/bin/fedpara": "fedpara train", module: "fedpara train"}
    cases["/lib/pytest/__main__.py"] = "python src/train.py"
    for started, shown in cases.items():
        monkeypatch.setattr(sys, "argv", [started])
        assert installation.command_of("train") == shown
        assert wheel.command_of("train") == "fedpara train"


def test_a_script_outside_its_checkout_is_named_in_full(monkeypatch):
    monkeypatch.setattr(installation, "HERE", Path("/elsewhere"))
    monkeypatch.setattr(sys, "argv", [str(ROOT / "src" / "train.py")])
    assert installation.command_of("train") == f"python {shlex.quote(str(ROOT / 'src' / 'train.py'))}"


def test_the_jobs_of_a_command_are_commands():
    """So the lines that they print, such as how to resume, are right where the command was typed."""
    code = "import sys; sys.argv[0] = {!r}; from fedpara.installation import TRAIN; print(*TRAIN)"
    for started, train in (("/bin/fedpara", "-P -m fedpara train"), ("src/train.py", str(ROOT / "src" / "train.py"))):
        done = subprocess.run([sys.executable, "-c", code.format(started)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == train


def test_an_extra_is_installed_from_the_checkout_or_by_its_packages_names(monkeypatch, tmp_path):
    assert installation.install_line("ray") == "pip install -e '.[ray]'"
    about = message_from_string('Requires-Dist: torch>=2\nRequires-Dist: onnx>=1.18; extra == "export"\n')
    monkeypatch.setattr(metadata.Distribution, "requires", property(lambda self: about.get_all("Requires-Dist")))
    assert installed(tmp_path).install_line("export") == "pip install 'onnx>=1.18'"


def test_modules_of_the_current_folder_come_last(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "a_module_of_my_own.py").touch()
    before = list(sys.path)
    find_modules_here()
    find_modules_here()
    assert sys.path == [*before, str(tmp_path)]
    assert importlib.util.find_spec("a_module_of_my_own").origin == str(tmp_path / "a_module_of_my_own.py")


def test_the_commands_of_the_page_are_commands():
    page = (ROOT / "docs" / "install.md").read_text()
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("fedpara ")]
    assert {program for _, program, *_ in lines} == programs.PROGRAMS.keys()
    for _, program, *arguments in lines:
        for typed in arguments:
            if program == "train" and not typed.startswith("-"):
                assert parse(typed.replace("<run>", "run")).key_or_group
    (workspaces,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "dashboard"
    ]
    assert f"pip install '{workspaces}'" in page
